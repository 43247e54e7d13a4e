"""Image files and PIL images as tensors: any mode, any EXIF, any error of a decoder in words."""

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError
from torch import Tensor

from alexnet_lib.checks import check_integer, type_name

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


def read_image(
    file: Path, *, channels: int = 3, background: str = "white", side: int | None = None
) -> Shaped[Tensor, "{channels} h w"]:
    """The pixels of an image file, as a viewer shows them.

    EXIF orientation is applied, and transparent pixels are mixed with the background. Of an
    animation or a file of several pages, this is the first image.

    Args:
        file: the file, of any format that Pillow reads.
        channels: 3 is red, green and blue; 1 is luma (ITU-R 601).
        background: colour behind transparent pixels, as ``PIL.ImageColor.getrgb`` takes it.
        side: a JPEG file may be decoded at a half, a quarter or an eighth of its size, as long as
            no side becomes shorter than this. None decodes it at its full size.

    Returns:
        uint8; or float32 from 0 to 1 for grey files of 9 to 16 bits, of which no bit is lost.

    Raises:
        ImageError: the file cannot be read, for whatever reason; it is named.
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
    colour = check_background(background)
    _check_channels(channels)
    with open_image(file) as image:
        if side is not None:
            image.draft(None, (side, side))  # does nothing for other formats
        return _pixels(image, str(file), channels, colour)


def pil_to_tensor(
    image: Image.Image, argument: str = "image", channels: int = 3, background: str = "white"
) -> Shaped[Tensor, "{channels} h w"]:
    """The pixels of a PIL image, in memory of their own; as ``read_image``.

    Raises:
        ImageError: its pixels cannot be read, or have no defined range.
        ValueError: another number of channels, or no colour.
    """
    colour = check_background(background)
    _check_channels(channels)
    with _in_words(argument):
        pixels = _pixels(image, argument, channels, colour)
        return pixels.clone(memory_format=torch.contiguous_format)


@contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """An open image file; whatever its decoder raises becomes an ``ImageError`` that names it."""
    with _in_words(file), Image.open(file) as image:
        yield image


def check_background(background: object) -> tuple[int, int, int]:
    """Red, green and blue of a colour, from 0 to 255; a ``ValueError`` if it is none."""
    expected = "expected a colour such as 'white' or '#ff0000'"
    if not isinstance(background, str):
        raise ValueError(f"background is {background!r}; {expected}")
    try:
        colour = ImageColor.getrgb(background)
    except ValueError as error:
        raise ValueError(f"background is {background!r}; {expected}") from error
    if len(colour) == 4 and colour[3] < 255:
        raise ValueError(f"background is {background!r}, which is transparent; {expected}")
    return colour[0], colour[1], colour[2]


def _check_channels(channels: int) -> None:
    if check_integer("channels", channels, 1) not in {1, 3}:
        raise ValueError(
            f"channels is {channels}; expected 1 or 3 for image files and PIL images: pass images "
            "with other channels as arrays or tensors"
        )


@contextmanager
def _in_words(name: object) -> Iterator[None]:
    """Turns every error into an ``ImageError``: decoders raise whatever their parser met."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type_name(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "unknown format"
        elif not isinstance(error, OSError | ValueError | SyntaxError):  # these have sentences
            reason = f"{type_name(error)}: {error}" if str(error) else type_name(error)
        raise ImageError(f"{name} cannot be read as an image: {reason}") from error


def _pixels(image: Image.Image, name: str, channels: int, background: tuple[int, ...]) -> Tensor:
    """The pixels of an image; where possible in its own memory."""
    if 0 in image.size:
        raise ValueError(f"it is {image.width} x {image.height} pixels large")
    format_, tags = image.format, getattr(image, "tag_v2", {})
    image.load()
    image = _turned(image, name)
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        return _deep_grey(image, format_, tags, background).expand(channels, -1, -1)
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
    return _exported(image).expand(channels, -1, -1)


def _turned(image: Image.Image, name: str) -> Image.Image:
    """The image as its EXIF orientation wants it seen.

    Pillow's own ``exif_transpose`` writes the rest of the EXIF data anew, which fails if any of it
    is damaged, and copies images that need no turn.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:
        warnings.warn(
            f"{name}: its EXIF data cannot be read ({type_name(error)}: {error}); it is taken as "
            "it is stored, and may have to be turned",
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
