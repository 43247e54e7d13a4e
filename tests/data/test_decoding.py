"""The promises of decoding: every mode, every orientation, and every failure in words."""

import contextlib
import errno
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import EXIF_ORIENTATION, random_pixels, smooth_pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile, ImageOps, features
from torch.utils.data import DataLoader, Dataset

from alexnet_lib.data import decoding
from alexnet_lib.data.decoding import ImageError, open_image, pil_to_tensor, read_image


def tiff(pixels: np.ndarray, bits: int = 16, order: str = "<", **tags: int) -> bytes:
    """A grey TIFF file of one strip; ``tags`` replace its entries."""
    height, width = pixels.shape
    data = pixels.tobytes()
    names = {"width": 256, "bits": 258, "photometric": 262, "orientation": 274, "format": 339}
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height}
    entries |= {279: len(data), 273: 0, **{names[name]: value for name, value in tags.items()}}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    parts = [b"II*\0" if order == "<" else b"MM\0*", struct.pack(f"{order}IH", 8, len(entries))]
    parts += [struct.pack(f"{order}HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries)]
    return b"".join([*parts, bytes(4), data])


def png(width: int, height: int, depth: int, kind: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG file of rows that start with their filter, with chunks before the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(name.encode(), data) for name, data in chunks.items())]
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    """Reads the image that the bytes of a file are."""

    def read_bytes(data: bytes, **arguments: object) -> torch.Tensor:
        file = tmp_path / "image"
        file.write_bytes(data)
        return read_image(file, **arguments)

    return read_bytes


# 8 bits


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
@pytest.mark.parametrize("channels", [1, 3])
def test_opaque_images_of_every_mode_are_what_pillow_makes_of_them(mode, channels):
    image = Image.fromarray(random_pixels(6, 9))
    image = Image.merge(mode, image.split()) if mode == "LAB" else image.convert(mode)
    colour = image.convert("RGB")
    # Pillow has no conversion of LAB to grey.
    grey = (colour if mode == "LAB" else image).convert("L")
    expected = np.array(grey)[None] if channels == 1 else np.array(colour).transpose(2, 0, 1)
    result = pil_to_tensor(image, channels=channels)
    assert result.dtype == torch.uint8
    assert np.array_equal(result.numpy(), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "TGA"])
def test_files_of_every_format_are_read_as_pillow_reads_them(kind, read):
    data = encoded(Image.fromarray(smooth_pixels(12, 20)), kind)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read(data).numpy(), expected)


def test_a_cmyk_jpeg_is_read(read):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert read(encoded(image, "JPEG", quality=100))[:, 8, 8].tolist() == [255, 0, 0]


@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3]))
def test_lent_memory_is_that_of_the_pixels_and_stays(height, width, channels):
    pixels = random_pixels(height, width)
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    expected = np.array(image)
    tensor = decoding._exported(image)
    del image
    Image.new("RGB", (width, height), "red").copy()
    assert np.array_equal(tensor.movedim(0, -1).numpy().reshape(expected.shape), expected)


def test_an_image_in_several_blocks_of_memory_is_copied(monkeypatch):
    image = Image.fromarray(random_pixels(5, 7))
    expected = decoding._exported(image).clone()

    def no_block(self):
        raise ValueError("Image is in multiple array blocks")

    monkeypatch.setattr(Image.Image, "__arrow_c_array__", no_block)
    assert torch.equal(decoding._exported(image), expected)
    assert decoding._exported(image.convert("L")).shape == (1, 5, 7)


def test_a_pil_images_tensor_is_not_its_memory():
    image = Image.new("RGB", (4, 4), "white")
    pil_to_tensor(image).zero_()
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_only_the_first_image_of_an_animation_is_read(read):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"save_all": True, "append_images": frames[1:], "lossless": True}
        if kind in {"GIF", "PNG", "TIFF"}:
            del options["lossless"]
        assert read(encoded(frames[0], kind, **options))[:, 4, 4].tolist() == [255, 0, 0]


# Transparency


def half_transparent() -> Image.Image:
    """Red at the left; the right is transparent, above a blue that is not seen."""
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (4, 0, 8, 4))
    return image


TRANSPARENT = {
    "RGBA": half_transparent(),
    "RGBa": half_transparent().convert("RGBa"),
    "P with an alpha palette": half_transparent().quantize(4),
}


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize(
    ("background", "colour"),
    [("white", [255, 255, 255]), ("#010203", [1, 2, 3]), ("rgb(9, 8, 7)", [9, 8, 7])],
)
def test_the_background_is_seen_through_transparent_pixels_only(name, background, colour):
    result = pil_to_tensor(TRANSPARENT[name], background=background)
    assert result[:, 0, 0].tolist() == [255, 0, 0]
    assert result[:, 0, 7].tolist() == colour


@pytest.mark.parametrize("mode", ["LA", "La", "PA"])
def test_grey_and_palettes_with_alpha_have_a_background(mode):
    image = Image.new("LA", (2, 1), (200, 255))
    image.putpixel((1, 0), (200, 0))
    image = image.convert("RGBA").convert("PA") if mode == "PA" else image.convert(mode)
    result = pil_to_tensor(image, background="black")
    assert result[:, 0, 1].tolist() == [0, 0, 0]
    assert abs(int(result[0, 0, 0]) - 200) <= 3  # a palette of few colours
    assert pil_to_tensor(image, channels=1, background="white")[0, 0, 1] == 255


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_palettes_transparent_colour_has_a_background(transparency, read):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF") if transparency == 1 else ("PNG",):
        result = read(encoded(image, kind, transparency=transparency), background="blue")
        assert result[:, 0].T.tolist() == [[255, 0, 0], [0, 0, 255]]


def test_a_colour_that_stands_for_transparency_has_a_background(read):
    rows = b"\0" + bytes([255, 255, 255, 1, 2, 3])
    result = read(png(2, 1, 8, 2, rows, tRNS=bytes([0, 1, 0, 2, 0, 3])), background="red")
    assert result[:, 0].T.tolist() == [[255, 255, 255], [255, 0, 0]]
    grey = read(png(2, 1, 8, 0, b"\0\x64\x07", tRNS=b"\0\x07"), background="red")
    assert grey[:, 0].T.tolist() == [[100, 100, 100], [255, 0, 0]]
    deep = read(png(2, 1, 16, 0, b"\0\x12\x34\xff\xff", tRNS=b"\x12\x34"), channels=1)
    assert deep.tolist() == [[[1.0, 1.0]]]


@given(alpha=st.integers(0, 255), value=st.integers(0, 255), below=st.integers(0, 255))
def test_half_transparent_pixels_are_mixed(alpha, value, below):
    image = Image.new("RGBA", (1, 1), (value,) * 3 + (alpha,))
    result = pil_to_tensor(image, background=f"rgb({below}, {below}, {below})")
    expected = (alpha * value + (255 - alpha) * below) / 255
    assert abs(int(result[0, 0, 0]) - expected) <= 1


# More than 8 bits


LEVELS = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)  # 12 bits of 16


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(LEVELS), "PNG"),
        encoded(Image.fromarray(LEVELS), "TIFF"),
        encoded(Image.fromarray(LEVELS), "JPEG2000"),
        tiff(LEVELS),
        tiff(LEVELS.astype(">u2"), order=">"),
        tiff(LEVELS.T, orientation=5),
        tiff(LEVELS.T.astype(">u2"), order=">", orientation=5),
        tiff(65535 - LEVELS, photometric=0),
        b"P5\n64 64\n65535\n" + LEVELS.astype(">u2").tobytes(),
        b"P2\n64 64\n65535\n" + " ".join(map(str, LEVELS.flatten())).encode() + b"\n",
    ],
    ids=["PNG", "TIFF", "J2K", "little", "big", "turned", "big turned", "inverse", "PGM", "plain"],
)
def test_16_bits_keep_all_their_levels(data, read):
    for channels in (1, 3):
        result = read(data, channels=channels)
        assert result.dtype == torch.float32
        expected = np.broadcast_to(np.float32(LEVELS) / 65535, (channels, 64, 64))
        np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6)


def test_the_depth_that_a_file_states_is_its_range(read):
    values = np.arange(4096)
    pairs = values.reshape(-1, 2).T
    packed = np.stack([pairs[0] >> 4, (pairs[0] & 15) << 4 | pairs[1] >> 8, pairs[1] & 255])
    rows = packed.T.reshape(64, 96).astype(np.uint8)
    result = read(tiff(rows, 12, width=64), channels=1)
    np.testing.assert_allclose(result.flatten().numpy(), values / 4095, rtol=0, atol=1e-6)
    pgm = read(b"P5\n4 1\n4095\n" + np.array([0, 1, 2048, 4095], ">u2").tobytes(), channels=1)
    assert (pgm * 4095).round().tolist() == [[[0, 1, 2048, 4095]]]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "data",
    [
        tiff(LEVELS.astype("<u4"), 32),
        tiff(LEVELS.astype("<i4"), 32, format=2),
        tiff(LEVELS.astype("<i2"), format=2),
        tiff(LEVELS.astype("<f4"), 32, format=3),
        b"Pf\n1 1\n-1.0\n\0\0\x80?",
    ],
    ids=["32 bits", "signed 32", "signed 16", "floats", "PFM"],
)
def test_pixels_without_a_range_are_refused_with_a_remedy(data, read):
    text = r"image cannot be read as an image: its pixels are (whole|floating) numbers without a "
    with pytest.raises(ImageError, match=text + r"defined range \(mode '[IF]'\): convert it to 8"):
        read(data)


# Orientation


def turned(pixels: np.ndarray) -> list[np.ndarray]:
    """What is seen of stored pixels, for the orientations 1 to 8 of the EXIF standard."""
    mirrored, flipped = pixels[:, ::-1], pixels[::-1]
    swapped = pixels.transpose(1, 0, 2)
    return [
        *(pixels, mirrored, pixels[::-1, ::-1], flipped),
        *(swapped, swapped[:, ::-1], swapped[::-1, ::-1], swapped[::-1]),
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_an_image_is_turned_as_its_exif_says(orientation, kind, read):
    pixels = random_pixels(4, 6)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    result = read(encoded(Image.fromarray(pixels), kind, exif=exif, **options))
    assert np.array_equal(result.numpy(), turned(pixels)[orientation - 1].transpose(2, 0, 1))


def jpeg_with_exif(entries: list[bytes], orientation: int = 6, after: bytes = b"") -> bytes:
    """A JPEG file of 40 x 20 stored pixels whose EXIF has an orientation and these entries."""
    turn = struct.pack("<HHIHH", EXIF_ORIENTATION, 3, 1, orientation, 0)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1 + len(entries))
    exif = head + b"".join([turn, *entries]) + bytes(4) + after
    return encoded(Image.fromarray(smooth_pixels(20, 40)), "JPEG", exif=exif)


BROKEN_ENTRIES = {
    "a rational of 0 bytes": struct.pack("<HHII", 282, 5, 1, 60000),
    "a rational without a denominator": struct.pack("<HHII", 282, 5, 1, 8),
    "a pointer outside": struct.pack("<HHII", 34665, 4, 1, 99999),
    "an unknown type": struct.pack("<HHII", 40000, 77, 3, 5),
    "a huge count": struct.pack("<HHII", 315, 2, 2**31, 5),
    "a signed rational": struct.pack("<HHII", 37380, 10, 5, 9),
}


@pytest.mark.parametrize("name", BROKEN_ENTRIES)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of some
def test_a_turned_photo_with_broken_exif_is_read_and_turned(name, read):
    result = read(jpeg_with_exif([BROKEN_ENTRIES[name]]))
    assert result.shape == (3, 40, 20)


@pytest.mark.parametrize(
    ("tag", "kind", "count", "value"),
    [(282, 1, 1, 0), (282, 6, 5, 255), (282, 11, 2, 255), (271, 5, 1, 0), (700, 3, 5, 255)],
)
def test_exif_that_cannot_be_written_again_is_no_error(tag, kind, count, value, read):
    after = 8 + 2 + 2 * 12 + 4
    entry = struct.pack("<HHII", tag, kind, count, after)
    data = jpeg_with_exif([entry], after=bytes([value]) * 64)
    # Pillow's own function writes the EXIF data of a turned image anew.
    with pytest.raises(Exception, match=r"."):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert read(data).shape == (3, 40, 20)


def test_if_the_orientation_cannot_be_read_a_warning_names_the_file(monkeypatch, read):
    def broken(self):
        raise struct.error("unpack requires a buffer of 8 bytes")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    with pytest.warns(UserWarning, match=r"image: its EXIF data cannot be read \(struct.error: un"):
        assert read(encoded(Image.fromarray(smooth_pixels(20, 40)), "JPEG")).shape == (3, 20, 40)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_none(orientation, read):
    assert read(jpeg_with_exif([], orientation)).shape == (3, 20, 40)


# JPEG at a reduced scale


@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    side=st.integers(1, 80),
    kind=st.sampled_from(["JPEG", "MPO"]),
)
def test_a_reduced_image_is_as_small_as_possible_and_no_side_is_too_short(
    tmp_path_factory, height, width, side, kind
):
    file = tmp_path_factory.getbasetemp() / "reduced.jpg"
    image = Image.fromarray(smooth_pixels(height, width))
    frames = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(file, kind, **frames)
    shape = read_image(file, side=side).shape[1:]
    factors = [f for f in (1, 2, 4, 8) if f == 1 or min(height, width) // side >= f]
    assert shape == tuple(-(-length // factors[-1]) for length in (height, width))
    assert min(shape) >= min(side, height, width)


def test_a_reduced_image_is_the_same_picture(tmp_path):
    Image.fromarray(smooth_pixels(512, 768)).save(tmp_path / "a.jpg", quality=95)
    reduced = read_image(tmp_path / "a.jpg", side=128)
    assert reduced.shape == (3, 128, 192)
    full = read_image(tmp_path / "a.jpg").float()
    means = torch.nn.functional.avg_pool2d(full, 4)
    assert (reduced - means).abs().max() <= 3


def test_without_a_side_and_in_other_formats_nothing_is_reduced(tmp_path):
    pixels = smooth_pixels(64, 64)
    for name in ("a.jpg", "a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (3, 64, 64)
    assert read_image(tmp_path / "a.png", side=8).shape == (3, 64, 64)


def test_a_turned_photo_is_reduced_and_turned(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(smooth_pixels(64, 96)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", side=32).shape == (3, 48, 32)


# Failures


def raising(error: BaseException):
    def load(self):
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (struct.error("unpack requires a buffer"), "struct.error: unpack requires a buffer"),
        (RuntimeError("Failed to decode frame"), "RuntimeError: Failed to decode frame"),
        (zlib.error("Error -3"), "zlib.error: Error -3"),
        (EOFError(), "EOFError"),
        (IndexError("list index"), "IndexError: list index"),
        (KeyError(3), "KeyError: 3"),
        (AssertionError(), "AssertionError"),
        (OverflowError("too large"), "OverflowError: too large"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (SyntaxError("not a PNG file"), "not a PNG file"),
        (OSError("image file is truncated"), "image file is truncated"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("part", ["load", "getexif", "convert"])
def test_whatever_a_decoder_raises_names_the_file(error, reason, part, tmp_path, monkeypatch):
    file = tmp_path / "photo.gif"
    Image.fromarray(smooth_pixels(8, 8)).convert("P").save(file)
    kind = ImageFile.ImageFile if part == "load" else Image.Image
    monkeypatch.setattr(kind, part, lambda self, *a, **k: raising(error)(self))
    if part == "getexif":
        with pytest.warns(UserWarning, match="its EXIF data cannot be read"):
            read_image(file)
        return
    with pytest.raises(ImageError) as caught:
        read_image(file)
    assert str(caught.value) == f"{file} cannot be read as an image: {reason}"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_bad_image(error, tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "_pixels", lambda *a: raising(error())(None))
    with pytest.raises(error):
        read_image(tmp_path / "a.png")


FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000"]
FORMATS += [name.upper() for name in ("webp", "avif") if features.check(name)]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_an_error(kind, share, read):
    data = encoded(Image.fromarray(random_pixels(32, 48)), kind)
    with pytest.raises(ImageError, match="image cannot be read as an image: "):
        read(data[: int(share * len(data))])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_read_or_named_and_nothing_else(kind, read):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    exif[ExifTags.Base.XResolution] = 72.0
    options = {"exif": exif} if kind in {"PNG", "JPEG", "TIFF", "WEBP", "AVIF"} else {}
    whole = encoded(Image.fromarray(smooth_pixels(16, 24)), kind, **options)
    random = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for position in random.integers(0, min(len(data), 400), 3):
            data[position] = random.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert read(bytes(data), side=8).shape[0] == 3


def test_a_file_that_does_not_exist_or_is_a_folder_is_named(tmp_path):
    for file, reason in ((tmp_path / "a.jpg", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ImageError, match=re.escape(f"{file} cannot be read as an image: ")):
            read_image(file)
        with pytest.raises(ImageError, match=reason):
            read_image(file)


def test_a_decompression_bomb_is_an_error_with_its_size(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"a.png cannot be read as .* 100 x 100 = 10,000 pixels"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="10,000 pixels; expected at most 1,000"):
        pil_to_tensor(Image.new("L", (100, 100)))


# Limits


@pytest.mark.parametrize(
    ("format_", "most"), [("PNG", 200_000_000), ("WEBP", 133_333_333), ("JPEG2000", 133_333_333)]
)
def test_the_limit_of_pixels_includes_every_camera(format_, most):
    for width, height, accepted in ((11_648, 8_736, True), (most, 1, True), (most, 2, False)):
        image = types.SimpleNamespace(size=(width, height), format=format_)
        if accepted:
            decoding._check_size(image)
        else:
            with pytest.raises(ValueError, match=f"expected at most {most:,} "):
                decoding._check_size(image)


def test_a_photo_of_a_large_camera_is_read_without_a_warning(tmp_path):
    Image.new("L", (11_648, 8_736), 77).save(tmp_path / "photo.jpg")
    pixels = read_image(tmp_path / "photo.jpg", side=227)
    assert pixels.shape == (3, 1092, 1456)
    assert (pixels == 77).all()


MEMORY = """
import resource, sys
from pathlib import Path
from PIL import Image
import torch
from alexnet_lib.data.decoding import ImageError, read_image
Image.init()
torch.set_num_threads(1)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]), ) * 2)
for file in sys.argv[2:]:
    try:
        print(tuple(read_image(Path(file)).shape))
    except (ImageError, MemoryError) as error:
        print(f"{type(error).__name__}: {error}")
"""


def read_within(memory: int, *files: Path) -> list[str]:
    """What comes of files in a process that may take so many bytes more."""
    command = [sys.executable, "-c", MEMORY, str(memory), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


linux = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")


@linux
def test_decoding_takes_no_more_memory_than_is_stated(tmp_path):
    side = 6000
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    files = [tmp_path / f"{mode}.tif" for mode in ("RGBA", "CMYK", "I;16")]
    for file in files:
        Image.new(file.stem, (side, side)).save(file, exif=exif, compression="tiff_deflate")
    # Beside the pixels, what does not grow with the image: libraries, tiles.
    most = decoding._OTHER_BYTES_A_PIXEL * side**2 + 100_000_000
    assert read_within(most, *files) == [f"(3, {side}, {side})"] * len(files)


@linux
def test_bombs_are_refused_before_they_take_memory_and_want_of_it_is_not_the_images_fault(tmp_path):
    sizes = {"square.png": (50_000, 50_000), "line.png": (2**31 - 1, 1)}
    for name, (width, height) in sizes.items():
        (tmp_path / name).write_bytes(png(width, height, 16, 6, bytes(3000)))
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.bmp")
    *bombs, large = read_within(80_000_000, *(tmp_path / name for name in (*sizes, "large.bmp")))
    for bomb, (width, height) in zip(bombs, sizes.values(), strict=True):
        assert f"it has {width:,} x {height:,} = {width * height:,} pixels; expected" in bomb
    assert (
        large == f"MemoryError: {tmp_path}/large.bmp: there is not enough memory to read this image"
    )


@pytest.mark.parametrize("part", ["load", "getexif", "convert"])
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_want_of_memory_anywhere_is_one(part, error, tmp_path, monkeypatch):
    if part == "getexif" and isinstance(error, OSError):
        return  # a defect of the EXIF data
    file = tmp_path / "photo.gif"
    Image.fromarray(smooth_pixels(8, 8)).convert("P").save(file)
    kind = ImageFile.ImageFile if part == "load" else Image.Image
    monkeypatch.setattr(kind, part, lambda self, *a, **k: raising(error)(self))
    with pytest.raises(MemoryError, match=r"photo\.gif: there is not enough memory to read"):
        read_image(file)


def test_too_many_open_files_are_not_the_images_fault(tmp_path, monkeypatch):
    full = raising(OSError(errno.EMFILE, "Too many open files"))
    monkeypatch.setattr(decoding.os, "open", lambda *a, **k: full(None))
    with pytest.raises(OSError, match=r"Too many open files.*a\.png") as caught:
        read_image(tmp_path / "a.png")
    assert not isinstance(caught.value, ImageError)


@pytest.mark.parametrize(
    ("mode", "orientation", "width", "height"),
    [
        *(
            (mode, orientation, width, height)
            for mode in ("L", "RGB", "RGBA", "P", "I;16")
            for orientation in (1, 3, 6)
            for width, height in ((3000, 20), (20, 3000), (300, 280))
        ),
        # More than Pillow lends the memory of, and seconds in all modes and orientations.
        *(("RGB", 6, 2100, 2100), ("RGBA", 1, 2100, 2100), ("I;16", 3, 2100, 2100)),
    ],
)
def test_large_images_are_converted_in_tiles_to_the_same_pixels(
    mode, orientation, width, height, tmp_path, monkeypatch
):
    pixels = smooth_pixels(height, width)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.ascontiguousarray(pixels[..., 1])))
    image.save(tmp_path / "a.png", exif=exif, compress_level=1)
    for channels in (1, 3):
        monkeypatch.setattr(decoding, "_TILE", 5000)
        whole = read_image(tmp_path / "a.png", channels=channels)
        monkeypatch.setattr(decoding, "_TILE", 128)
        tiled = read_image(tmp_path / "a.png", channels=channels)
        assert tiled.dtype == whole.dtype
        assert torch.equal(tiled, whole)


@pytest.mark.parametrize("large", ["at once", "later"])
def test_a_file_larger_than_the_limit_is_refused(large, tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    Image.new("L", (10, 10)).save(file)
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", file.stat().st_size)
    read_image(file)
    if large == "at once":
        with file.open("ab") as opened:
            opened.write(b"more")
        with pytest.raises(ImageError, match=r"a.png cannot .* more than \d+ bytes, the limit"):
            read_image(file)


# What an image file is not


STRANGERS = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "PDF": b"%PDF-1.7\n",
    "icon": encoded(Image.new("RGB", (16, 16)), "ICO"),
    "ZIP": b"PK\3\4" + bytes(60),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "web page": b" \n<!DOCTYPE HTML><html></html>",
    "SVG": b"<svg xmlns=''></svg>",
    "pillow_heif": b"\0\0\0\x18ftypheic" + bytes(60),
    "video": b"\0\0\0\x18ftypisom" + bytes(60),
    "Photoshop": b"8BPS" + bytes(60),
    "unknown format": b"some text, longer than any header of an image file has to be" * 2,
    "empty": b"",
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_other_files_are_not_opened_whatever_they_are_called(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)  # is not called
    for name in ("cat.jpg", "cat.png", "cat.eps"):
        (tmp_path / name).write_bytes(STRANGERS[kind])
        with pytest.raises(ImageError, match=f"{name} cannot be read as an image: .*{kind}"):
            read_image(tmp_path / name)


def test_formats_that_are_not_named_stay_closed(tmp_path):
    opened = []
    Image.init()
    for name in set(Image.OPEN) - set(decoding.FORMATS):
        for suffix in (".jpg", f".{name.lower()}"):
            file = tmp_path / f"a{suffix}"
            with contextlib.suppress(Exception):
                file.write_bytes(encoded(Image.new("RGB", (16, 16)), name))
            with contextlib.suppress(ImageError):
                read_image(file)
                opened.append(file)
    assert not opened


def test_a_plugin_for_heic_photos_is_used_where_it_is_registered(tmp_path, monkeypatch):
    file = tmp_path / "photo.heic"
    file.write_bytes(STRANGERS["pillow_heif"])

    class HeifFile(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._size, self._mode = (4, 3), "RGB"

        def load(self):
            self.im = Image.new("RGB", self.size, "red").im

    monkeypatch.setitem(Image.OPEN, "HEIF", (HeifFile, lambda head: head[8:12] == b"heic"))
    assert read_image(file)[:, 0, 0].tolist() == [255, 0, 0]


def test_the_endings_of_image_files_are_pillows_of_the_formats():
    Image.init()
    known = Image.registered_extensions()
    for kind, endings in decoding.FORMATS.items():
        for ending in endings.split():
            assert known.get(ending, kind).replace("MPO", "JPEG") == kind


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_a_device_and_a_folder_are_errors_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    for name, text in (("pipe", "a pipe, a device"), ("zero", "a pipe, a device"), ("folder", "")):
        for read_head in (read_image, lambda file: open_image(file).__enter__()):
            with pytest.raises(
                ImageError, match=f"{name}.jpg cannot be read as an image: .*{text}"
            ):
                read_head(tmp_path / f"{name}.jpg")


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    file = tmp_path / "a.bmp"
    Image.fromarray(random_pixels(400, 400)).save(file)
    real = decoding._identified

    def cutting(stream):
        image = real(stream)
        os.truncate(file, 100)
        return image

    monkeypatch.setattr(decoding, "_identified", cutting)
    assert read_image(file).shape == (3, 400, 400)  # it was in memory already
    with pytest.raises(ImageError, match="truncated"):
        read_image(file)


def test_names_with_signs_for_the_terminal_are_escaped(tmp_path):
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "a\x1b[2Jb.jpg")
    assert "\x1b" not in str(caught.value)
    assert r"a\x1b[2Jb.jpg cannot be read" in str(caught.value)


def test_texts_that_unpack_to_much_are_refused(read):
    text = b"Comment\0\0" + zlib.compress(bytes(80_000_000))
    data = png(1, 1, 8, 0, b"\0\0", zTXt=text)
    with pytest.raises(ImageError, match=r"image cannot be read as an image: .*[Dd]ecompress"):
        read(data)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ImageError, match="image cannot be read as an image: it is 0 x 5 pixels"):
        pil_to_tensor(Image.new("RGB", (0, 5)))


def test_a_lazy_pil_image_that_is_damaged_is_named():
    data = encoded(Image.fromarray(random_pixels(32, 48)), "PNG")
    image = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(ImageError, match="photo 3 cannot be read as an image: image file is trun"):
        pil_to_tensor(image, "photo 3")


def test_open_image_leaves_its_own_errors_as_they_are(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    error = ImageError("another image")
    with pytest.raises(ImageError) as caught, open_image(tmp_path / "a.png"):
        raise error
    assert caught.value is error


class Broken(Dataset):
    def __init__(self, file: Path):
        self.file = file

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return read_image(self.file)


def test_an_image_error_survives_a_worker_process(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    error = pickle.loads(pickle.dumps(ImageError("a.jpg cannot be read")))
    assert type(error) is ImageError
    assert str(error) == "a.jpg cannot be read"
    with pytest.raises(ImageError, match=r"a.jpg cannot be read as an image: unknown format"):
        next(iter(DataLoader(Broken(tmp_path / "a.jpg"), num_workers=1)))


# Wrong arguments


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"channels": 4}, "channels is 4; expected 1 or 3 for image files and PIL images"),
        ({"channels": 0}, "channels is 0; expected an integer of at least 1"),
        ({"background": "rot"}, "background is 'rot'; expected a colour such as 'white'"),
        ({"background": 7}, "background is 7; expected a colour such as 'white'"),
        ({"background": "#ffffff00"}, "background is '#ffffff00', which is transparent; expected"),
    ],
)
def test_wrong_arguments_are_refused_and_not_blamed_on_the_file(arguments, text, tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    for call in (
        lambda: read_image(tmp_path / "a.png", **arguments),
        lambda: pil_to_tensor(Image.new("L", (2, 2)), **arguments),
    ):
        with pytest.raises(ValueError, match=re.escape(text)) as caught:
            call()
        assert not isinstance(caught.value, ImageError)


def test_reading_warns_of_nothing(read):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for channels in (1, 3):
            read(encoded(image, "PNG", transparency=b"\xff\x00"), channels=channels)
