"""Image files and PIL images as tensors: every mode, and every error of a decoder in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor


class ImageError(ValueError):
    """An image that cannot be read; the message names it, and the reason."""


def read_image(
    file: Path, *, channels: int = 3, background: str = "white", side: int | None = None
) -> Shaped[Tensor, "channels h w"]:
    """The pixels of an image file."""
    with open_image(file) as image:
        return pil_to_tensor(image, "it", channels, background)


def pil_to_tensor(
    image: Image.Image, argument: str = "image", channels: int = 3, background: str = "white"
) -> Shaped[Tensor, "channels h w"]:
    """The pixels of a PIL image."""
    image = ImageOps.exif_transpose(image)
    if image.mode in {"I", "F"}:
        raise ImageError(f"{argument} is a PIL image of mode {image.mode!r}")
    if image.mode.startswith("I;16"):
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)
        return pixels.expand(channels, -1, -1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, ImageColor.getrgb(background))
        image = Image.alpha_composite(canvas, image)
    pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
    return pixels[None] if channels == 1 else pixels.movedim(-1, 0)


@contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """An open image file; errors of its decoder become an ``ImageError`` that names it."""
    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise ImageError(f"{file} cannot be read as an image: unknown format") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{file} cannot be read as an image: {reason}") from error
