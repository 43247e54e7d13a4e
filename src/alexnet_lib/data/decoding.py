"""Image files and PIL images as tensors: any mode, any EXIF, any error of a decoder in words."""

import ctypes
import errno
import io
import itertools
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import ExifTags, Image, ImageColor
from torch import Tensor

from alexnet_lib.checks import check_integer, shown, type_name
from alexnet_lib.files import as_path
from alexnet_lib.text import printable

# The formats of photos, of data sets and of the web, with the endings of their files. Pillow's
# others stay closed, whatever a file is called: EPS starts Ghostscript, WMF the system's renderer,
# ICO and others contain files of further formats, and most of them are rarely tested. HEIF is a
# plugin's (pillow_heif), where the program has registered one.
FORMATS = {
    "JPEG": ".jfif .jpe .jpeg .jpg .mpo",
    "PNG": ".apng .png",
    "GIF": ".gif",
    "BMP": ".bmp",
    "PPM": ".pbm .pgm .pnm .ppm",
    "WEBP": ".webp",
    "TIFF": ".tif .tiff",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
    "HEIF": "",
    "DIB": ".dib",
    "TGA": ".tga",  # is recognised by nothing but its header's plausibility, so the last
}
IMAGE_SUFFIXES = frozenset(" ".join(FORMATS.values()).split())

# What else comes with the name of an image, by its first bytes.
_OTHERS = {
    b"%!PS": "it is a PostScript file, which is a program",
    b"\xc5\xd0\xd3\xc6": "it is a PostScript file, which is a program",
    b"%PDF": "it is a PDF file",
    b"8BPS": "it is a Photoshop file",
    b"\0\0\1\0": "it is an icon file (ICO)",
    b"\xd7\xcd\xc6\x9a": "it is a Windows metafile",
    b"PK\3\4": "it is a ZIP archive",
    b"\x1f\x8b": "it is a gzip archive",
    b"<svg": "it is an SVG drawing",
    b"<?xml": "it is an XML file, perhaps an SVG drawing",
    b"<!doctype html": "it is a web page",
    b"<html": "it is a web page",
    b"version https://git-lfs": "it is a pointer of Git LFS: `git lfs pull` gets the image",
}
_HEIC = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}

# The largest cameras of phones have 16,320 x 12,240 pixels, those of studios fewer.
MAX_PIXELS = 200_000_000
# The memory that decoding takes for each pixel, measured, with alpha and an EXIF rotation; and what
# it may take for an image.
_BYTES_A_PIXEL = {"WEBP": 24, "AVIF": 24, "HEIF": 24, "JPEG2000": 24}
_OTHER_BYTES_A_PIXEL = 16
MAX_DECODED_BYTES = MAX_PIXELS * _OTHER_BYTES_A_PIXEL
# A TIFF file of the largest studio cameras, 151 megapixels of 16 bits, has 0.9 GB.
MAX_FILE_BYTES = 1 << 30
# Larger images are converted in tiles of this side: Pillow lends the memory of no larger ones, and
# what a conversion needs beside its result stays small.
_TILE = 2048

# Of an EXIF orientation: the first column and row that is stored are not those that are seen.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of a TIFF file


class ImageError(ValueError):
    """An image that cannot be read; the message names it, and the reason."""


@dataclass(frozen=True)
class FilePart:
    """An image that lies in a larger file, as in a tar file.

    Args:
        file: the larger file.
        name: of the image in it.
        offset: of the first byte of the image.
        size: of the image, in bytes.
        version: size and time of change (ns) that the file has: in another one, other bytes may lie
            at this place.
    """

    file: Path
    name: str
    offset: int
    size: int
    version: tuple[int, int]

    def __str__(self) -> str:
        return os.path.join(self.file, self.name)


def read_image(
    file: Path | FilePart, *, channels: int = 3, background: str = "white", side: int | None = None
) -> Shaped[Tensor, "{channels} h w"]:
    """The pixels of an image file, as a viewer shows them.

    EXIF orientation is applied, and transparent pixels are mixed with the background. Of an
    animation or a file of several pages, this is the first image.

    Args:
        file: the file, or the part of a file, of one of ``FORMATS``.
        channels: 3 is red, green and blue; 1 is luma (ITU-R 601).
        background: colour behind transparent pixels, as ``PIL.ImageColor.getrgb`` takes it.
        side: a JPEG file may be decoded at a half, a quarter or an eighth of its size, as long as
            no side becomes shorter than this. None decodes it at its full size.

    Returns:
        uint8; or float32 from 0 to 1 for grey files of 9 to 16 bits, of which no bit is lost.

    Raises:
        ImageError: the file cannot be read, for whatever reason, or is larger than
            ``MAX_FILE_BYTES``, ``MAX_PIXELS`` or ``MAX_DECODED_BYTES`` allow; it is named.
        MemoryError: there is not enough memory for an image within these limits.
        OSError: the process has too many open files.
        ValueError: another number of channels, or no colour.

    Example:
        >>> import tempfile, PIL.Image
        >>> from pathlib import Path
        >>> from alexnet_lib.data.decoding import read_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "transparent.png"
        ...     PIL.Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(file)
        ...     read_image(file, background="red")[:, 0, 0].tolist()
        [255, 0, 0]
    """
    source = file if isinstance(file, FilePart) else as_path(file, "file")
    colour = check_background(background)
    _check_channels(channels)
    with _in_words(source), _identified(_content(source)) as image:
        if side is not None:
            image.draft(None, (side, side))  # does nothing for other formats
        return _pixels(image, str(source), channels, colour)


def pil_to_tensor(
    image: Image.Image, argument: str = "image", channels: int = 3, background: str = "white"
) -> Shaped[Tensor, "{channels} h w"]:
    """The pixels of a PIL image, in memory of their own; as ``read_image``.

    Raises:
        ImageError: its pixels cannot be read, are too many, or have no defined range.
        MemoryError: there is not enough memory.
        ValueError: another number of channels, or no colour.
    """
    colour = check_background(background)
    _check_channels(channels)
    with _in_words(argument):
        _check_size(image)
        pixels = _pixels(image, argument, channels, colour)
        return pixels.clone(memory_format=torch.contiguous_format)


@contextmanager
def open_image(file: Path | FilePart) -> Iterator[Image.Image]:
    """An open image file; whatever its decoder raises becomes an ``ImageError`` that names it."""
    with _in_words(file):
        if isinstance(file, FilePart):
            with _identified(_content(file)) as image:
                yield image
        else:
            with open_regular(file) as stream:
                _check_bytes(os.fstat(stream.fileno()).st_size)
                with _identified(stream) as image:
                    yield image


def _content(source: Path | FilePart) -> io.BytesIO:
    """The bytes of an image.

    Not on the disk: a file that somebody cuts while it is mapped kills the process.
    """
    with open_regular(source if isinstance(source, Path) else source.file) as stream:
        status = os.fstat(stream.fileno())
        size = status.st_size
        if isinstance(source, FilePart):
            if (status.st_size, status.st_mtime_ns) != source.version:
                raise ValueError(f"{source.file} has changed since it was opened")
            stream.seek(source.offset)
            size = source.size
        _check_bytes(size)
        return io.BytesIO(stream.read(size))


@contextmanager
def open_regular(file: Path) -> Iterator[io.BufferedReader]:
    """An open file; an error if it is a pipe or a device, which may never end."""
    # Without O_NONBLOCK, a pipe is not even opened until somebody writes to it.
    waits_not = getattr(os, "O_NONBLOCK", 0)
    with open(file, "rb", opener=lambda path, flags: os.open(path, flags | waits_not)) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a pipe, a device or a socket; expected a file")
        yield stream


def _check_bytes(count: int) -> None:
    if count > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES:,} bytes, the limit for an image file")


def _identified(stream: io.BufferedIOBase) -> Image.Image:
    """The open image of a stream, if it has one of the formats and an acceptable size.

    Pillow's own ``open`` warns of sizes that cameras have.
    """
    head = stream.read(64)
    Image.preinit()
    reason = None
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        stream.seek(0)
        try:
            accepted = accept is None or accept(head[:16])
            image: Image.Image | None = None
            if accepted is True:
                image = factory(stream, "")  # type: ignore[arg-type]
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # another format may begin like this
        if image is not None:
            _check_size(image)
            return image
        if accepted:  # Pillow was built without it
            reason = str(accepted)
    raise ValueError(reason or _description(head))


def _description(head: bytes) -> str:
    """What a file is that has none of the formats."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    expected = f"expected one of {', '.join(FORMATS)}"
    for start, description in _OTHERS.items():
        if head.startswith(start) or text.startswith(start):
            return f"{description}; {expected}"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return "it is a HEIC photo: install pillow-heif and call pillow_heif.register_heif_opener()"
    if head[4:8] == b"ftyp":
        return f"it is a video, or another MPEG-4 file; {expected}"
    return f"unknown format; {expected}" if head else "it is empty"


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"it is {width} x {height} pixels large")
    each = _BYTES_A_PIXEL.get(image.format or "", _OTHER_BYTES_A_PIXEL)
    most = min(MAX_PIXELS, MAX_DECODED_BYTES // each)
    if width * height > most:
        kind = f" of format {image.format}" if each != _OTHER_BYTES_A_PIXEL else ""
        raise ValueError(
            f"it has {width:,} x {height:,} = {width * height:,} pixels; expected at most {most:,} "
            f"for an image{kind}, which take {MAX_DECODED_BYTES / 1e9:.1f} GB of memory: make it "
            "smaller"
        )


def check_background(background: object) -> tuple[int, int, int]:
    """Red, green and blue of a colour, from 0 to 255; a ``ValueError`` if it is none."""
    expected = "expected a colour such as 'white' or '#ff0000'"
    if not isinstance(background, str):
        raise ValueError(f"background is {shown(background)}; {expected}")
    try:
        colour = ImageColor.getrgb(background)
    except ValueError as error:
        raise ValueError(f"background is {shown(background)}; {expected}") from error
    if len(colour) == 4 and colour[3] < 255:
        raise ValueError(f"background is {shown(background)}, which is transparent; {expected}")
    return colour[0], colour[1], colour[2]


def _check_channels(channels: int) -> None:
    if check_integer("channels", channels, 1) not in {1, 3}:
        raise ValueError(
            f"channels is {shown(channels)}; expected 1 or 3 for image files and PIL images: pass "
            "images with other channels as arrays or tensors"
        )


# Of the machine or the process, not of the image.
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE}


@contextmanager
def _in_words(name: object) -> Iterator[None]:
    """Turns every error into an ``ImageError``: decoders raise whatever their parser met.

    Want of memory or of file descriptors is not the image's fault, and stays what it is.
    """
    named = printable(str(name))
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if isinstance(error, MemoryError) or number == errno.ENOMEM:
            raise MemoryError(f"{named}: there is not enough memory to read this image") from error
        if number in _OF_THE_MACHINE:
            raise OSError(number, getattr(error, "strerror", ""), named) from error
        reason = getattr(error, "strerror", None) or str(error) or type_name(error)
        if not isinstance(error, OSError | ValueError | SyntaxError):  # these have sentences
            reason = f"{type_name(error)}: {error}" if str(error) else type_name(error)
        raise ImageError(f"{named} cannot be read as an image: {printable(reason)}") from error


def _pixels(image: Image.Image, name: str, channels: int, background: tuple[int, ...]) -> Tensor:
    """The pixels of an image; where possible in its own memory."""
    format_, tags = image.format, getattr(image, "tag_v2", {})
    image.load()
    image = _turned(image, name)
    width, height = image.size
    if width * height <= _TILE**2:
        return _converted(image, format_, tags, channels, background).expand(channels, -1, -1)
    result = None
    for top, left in itertools.product(range(0, height, _TILE), range(0, width, _TILE)):
        bottom, right = min(top + _TILE, height), min(left + _TILE, width)
        tile = image.crop((left, top, right, bottom))
        pixels = _converted(tile, format_, tags, channels, background)
        if result is None:
            result = torch.empty(len(pixels), height, width, dtype=pixels.dtype, device="cpu")
        result[:, top:bottom, left:right] = pixels
    assert result is not None
    return result.expand(channels, -1, -1)


def _converted(
    image: Image.Image,
    format_: str | None,
    tags: Any,
    channels: int,
    background: tuple[int, ...],
) -> Tensor:
    """``(1, H, W)`` of grey, ``(3, H, W)`` of colours."""
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        return _deep_grey(image, format_, tags, background)
    if image.has_transparency_data:
        # Premultiplied grey has no conversion but to grey with alpha.
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image).convert("RGB")
    if image.mode == "LAB":  # has no conversion to grey
        image = image.convert("RGB")
    mode = "L" if channels == 1 or image.mode in {"1", "L"} else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    return _exported(image)


def _turned(image: Image.Image, name: str) -> Image.Image:
    """The image as its EXIF orientation wants it seen.

    Pillow's own ``exif_transpose`` writes the rest of the EXIF data anew, which fails if any of it
    is damaged, and copies images that need no turn.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception as error:
        warnings.warn(
            f"{printable(name)}: its EXIF data cannot be read ({type_name(error)}: {error}); it is "
            "taken as it is stored, and may have to be turned",
            stacklevel=2,
        )
        return image
    return image if turn is None else image.transpose(turn)


def _deep_grey(
    image: Image.Image, format_: str | None, tags: Any, background: tuple[int, ...]
) -> Tensor:
    """``(1, H, W)``, float32 from 0 to 1, of a grey image of more than 8 bits."""
    # Pillow scales PGM files of 9 to 16 bits to 65535, in a mode of 32 bits; so older versions PNG.
    if image.mode == "F" or (image.mode == "I" and format_ not in {"PPM", "PNG"}):
        kind = "floating" if image.mode == "F" else "whole"
        raise ValueError(
            f"its pixels are {kind} numbers without a defined range (mode {image.mode!r}): convert "
            "it to 8 or 16 bits, or pass an array of floats from 0 to 1"
        )
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    levels = np.asarray(image)
    pixels = levels.astype(np.float32) / np.float32(2**bits - 1)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts 8 bits only
        pixels = 1 - pixels
    if "transparency" in image.info:
        red, green, blue = background
        luma = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
        pixels[levels == image.info["transparency"]] = luma
    return torch.from_numpy(pixels)[None]


class _ArrowArray(ctypes.Structure):
    """https://arrow.apache.org/docs/format/CDataInterface.html, as far as it is used."""


_ArrowArray._fields_ = [
    ("length, null_count, offset, n_buffers and n_children", ctypes.c_int64 * 5),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


class _Lent:
    """Memory for an array of NumPy, which keeps this object, and so the lender."""

    def __init__(self, lender: object, address: int, shape: Any, strides: Any) -> None:
        self.lender = lender
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": shape,
            "strides": strides,
            "typestr": "|u1",
        }


def _exported(image: Image.Image) -> Tensor:
    """``(C, H, W)`` of an image of mode L or RGB, in its own memory if Pillow lends it.

    NumPy's own way copies the pixels twice, and holds the interpreter's lock.
    """
    try:
        _, lender = image.__arrow_c_array__()
    # Pillow before 11.2; or a large image, which is in several blocks of memory.
    except (AttributeError, ValueError):
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)
    array = _ArrowArray.from_address(_capsule_pointer(lender, b"arrow_array"))
    width, height = image.size
    if image.mode == "RGB":  # four bytes a pixel, the last one is not used
        address = array.children[0].contents.buffers[1]
        lent = _Lent(lender, address, (3, height, width), (1, 4 * width, 4))
    else:
        lent = _Lent(lender, array.buffers[1], (1, height, width), (0, width, 1))
    return torch.from_numpy(np.asarray(lent))
