"""Images as tensors, and sets of images: in memory, as files, or from other data sets."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

ImageLike = Image.Image | np.ndarray | Tensor


def image_to_tensor(image: ImageLike, argument: str = "image") -> Shaped[Tensor, "*batch 3 h w"]:
    """One image, or a batch of one size, as a tensor with its channels first.

    PIL images have any 8-bit mode or 16-bit grey: EXIF rotation is applied, grey and palette become
    RGB, an alpha channel is dropped. Arrays are ``(H, W, 3)`` or ``(N, H, W, 3)``, tensors
    ``(3, H, W)`` or ``(N, 3, H, W)``, uint8 from 0 to 255 or floating from 0 to 1; they keep their
    dtype and their memory. ``argument`` is the name of the image in errors: a ``TypeError`` for
    another type, or a ``ValueError`` for a wrong rank, channel count, dtype or range.
    """
    if isinstance(image, Image.Image):
        return _pil_to_tensor(image, argument)
    if isinstance(image, np.ndarray):
        kind, layout, channel_axis = "an array", "(H, W, 3) or (N, H, W, 3)", -1
        # torch cannot share the memory of an array that is read-only or has negative strides.
        shared = image.flags.writeable and min(image.strides, default=0) >= 0
        tensor = torch.from_numpy(image if shared else image.copy())
    elif isinstance(image, Tensor):
        kind, layout, channel_axis, tensor = "a tensor", "(3, H, W) or (N, 3, H, W)", -3, image
    else:
        raise TypeError(
            f"{argument} is a {type(image).__name__}; expected a PIL image, an array or a tensor"
        )
    shape = tuple(tensor.shape)
    if tensor.ndim not in {3, 4} or shape[channel_axis] != 3 or 0 in shape[-3:]:
        raise ValueError(f"{argument} is {kind} of shape {shape}; expected {layout}")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        expected = "uint8 from 0 to 255 or floats from 0 to 1"
        raise ValueError(f"{argument} has dtype {tensor.dtype}; expected {expected}")
    if tensor.is_floating_point() and tensor.numel():
        low, high = (value.item() for value in torch.aminmax(tensor.detach()))
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{argument} has floats from {low:.4g} to {high:.4g}; expected 0 to 1: divide by "
                "the largest possible value first, and leave the normalisation to Preprocess"
            )
    return tensor.movedim(channel_axis, -3)


def _pil_to_tensor(image: Image.Image, argument: str) -> Tensor:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion to RGB clips 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(
            f"{argument} is a PIL image of mode {image.mode!r}, whose range is not defined; "
            "expected 8-bit or 16-bit"
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # directly to RGB, Pillow warns
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)


def to_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 from 0 to 1, floating ones as float32."""
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.float()


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """Images with int64 ``labels`` from 0 to ``len(classes) - 1``, and the names of the classes."""

    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.image(index), int(self.labels[index])

    @abstractmethod
    def image(self, index: int) -> Shaped[Tensor, "3 h w"]:
        """One image, uint8, or floating from 0 to 1."""

    @abstractmethod
    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageSet":
        """The images of these indices, in this order."""


@dataclass(frozen=True, eq=False)
class ImageTensors(ImageSet):
    """Images held in memory as one tensor."""

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def image(self, index: int) -> Shaped[Tensor, "3 h w"]:  # noqa: D102  (as above)
        return self.images[index]

    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageTensors":  # noqa: D102
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageFiles(ImageSet):
    """Image files, decoded at each access."""

    files: tuple[Path, ...]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def image(self, index: int) -> Shaped[Tensor, "3 h w"]:  # noqa: D102
        return read_image(self.files[index])

    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageFiles":  # noqa: D102
        files = tuple(self.files[i] for i in indices.tolist())
        return replace(self, files=files, labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class WrappedDataset(ImageSet):
    """The items ``indices`` of a user's map-style data set of (image, label), read each time."""

    dataset: Dataset[Any]
    indices: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def image(self, index: int) -> Shaped[Tensor, "3 h w"]:  # noqa: D102
        position = int(self.indices[index])
        return image_to_tensor(self.dataset[position][0], f"image {position} of the data set")

    def subset(self, indices: Int64[Tensor, " n"]) -> "WrappedDataset":  # noqa: D102
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])


def check_labels(labels: Int64[Tensor, " n"], classes: Sequence[str]) -> None:
    """Raises a ``ValueError`` unless every label is the number of a class."""
    if len(labels):
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= len(classes):
            raise ValueError(
                f"labels run from {low} to {high}; expected 0 to {len(classes) - 1}, "
                f"the numbers of the {len(classes)} classes"
            )


def read_image(file: Path) -> UInt8[Tensor, "3 h w"]:
    """The pixels of an image file; a ``ValueError`` names a file that cannot be decoded."""
    with open_image(file) as image:
        return image_to_tensor(image, "it")


@contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """An open image file; errors of its decoder become a ``ValueError`` that names it."""
    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"{file} cannot be read as an image: unknown format") from error
    # Errors of Pillow's decoders for damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{file} cannot be read as an image: {reason}") from error
