"""Preprocessing of images: the same in training, testing and prediction."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from alexnet_lib.checks import ABOVE_ZERO, check_choice, check_integer, check_number
from alexnet_lib.data.images import ImageLike, image_to_tensor, to_unit
from alexnet_lib.kernels import cpu

ImageFit = Literal["crop", "squash"]
VIEWS = (1, 2, 10)  # numbers of views of an image, over which an evaluation can average


@dataclass(frozen=True)
class Preprocess:
    """Turns an image into the network's input, in training, testing and prediction.

    Resize, centre crop, then ``(scale * image - mean) / std`` with image values from 0 to 1. As in
    torchvision, the resize is bilinear with antialiasing, and 8-bit images that shrink are rounded.

    Args:
        resize: side of the resized square image, in pixels; at least ``image_size - edge``.
        image_size: side of the network's input, in pixels.
        image_fit: ``"crop"`` scales the shorter side to ``resize`` and crops the centre;
            ``"squash"`` scales both sides to it. For square images both are the same.
        scale: factor for image values: 1, or 255 for the paper's raw values.
        mean: mean of each channel, in units of ``scale``.
        std: standard deviation of each channel, in units of ``scale``; above 0.
        edge: number of columns at the right and of rows at the bottom of the input that are zeros
            instead of image. The released code's 224 pixels, rounded up, are 227 with 3 of them.

    Raises:
        ValueError: a field is out of its range.

    Example:
        >>> import numpy as np
        >>> from alexnet_lib import Preprocess
        >>> preprocess = Preprocess(resize=67, image_size=67, mean=(0.5,) * 3, std=(0.25,) * 3)
        >>> photo = np.full((480, 640, 3), 255, dtype=np.uint8)
        >>> preprocess(photo).shape, round(preprocess(photo).mean().item(), 3)
        (torch.Size([3, 67, 67]), 2.0)
    """

    resize: int = 227
    image_size: int = 227
    image_fit: ImageFit = "crop"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    edge: int = 0

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("edge", 0), ("resize", 1)):
            check_integer(name, getattr(self, name), least)
        if self.edge >= self.image_size:
            raise ValueError(
                f"edge is {self.edge}; expected less than image_size, {self.image_size}"
            )
        if self.resize < self.crop_size:
            expected = f"at least {self.crop_size}, what the network sees"
            raise ValueError(f"resize is {self.resize}; expected {expected}")
        check_choice("image_fit", self.image_fit, get_args(ImageFit))
        check_number("scale", self.scale, ABOVE_ZERO)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if np.shape(value) != (3,) or not np.isfinite(value).all():
                raise ValueError(f"{name} is {value!r}; expected three finite numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}; expected three numbers above 0")

    @property
    def crop_size(self) -> int:
        """Side of the crop of an image: ``image_size - edge``, in pixels."""
        return self.image_size - self.edge

    @property
    def margin(self) -> int:
        """``resize - crop_size``, in pixels: the range of the crop's position."""
        return self.resize - self.crop_size

    def __call__(self, image: ImageLike) -> Float[Tensor, "*batch 3 size size"]:
        """The network's input for one image, or for a batch of images of one size.

        Args:
            image: a PIL image; an array ``(H, W, 3)`` or ``(N, H, W, 3)`` or a tensor ``(3, H, W)``
                or ``(N, 3, H, W)``, uint8 from 0 to 255, or floating from 0 to 1.

        Returns:
            float32 ``(3, image_size, image_size)``, or a batch of them, on the image's device.

        Raises:
            ValueError: a wrong rank, channel count, dtype or range.
        """
        return self.network_input(image_to_tensor(image))

    def network_input(
        self,
        images: Shaped[Tensor, "*batch 3 h w"],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        corners: Int64[Tensor, "batch 2"] | None = None,
    ) -> Float[Tensor, "*batch 3 size size"]:
        """``__call__`` for tensors that are known to be uint8, or floating from 0 to 1.

        If images on the CPU are enlarged, a compiled loop does all steps at once.

        Args:
            images: ``(3, H, W)`` or ``(N, 3, H, W)``.
            dtype: of the result; values are computed in float32.
            memory_format: of the result for a batch.
            corners: row and column of the upper left corner of each crop in the resized images of
                a batch, from 0 to ``margin``; None is the centre.

        Raises:
            ValueError: a wrong rank or channel count, no pixels, or corners out of their range.
        """
        if images.ndim not in {3, 4} or images.shape[-3] != 3 or 0 in images.shape[-2:]:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; expected (3, H, W) or (N, 3, H, W)"
            )
        if corners is not None and (images.ndim != 4 or corners.shape != (len(images), 2)):
            raise ValueError(f"corners has shape {tuple(corners.shape)}; expected (batch, 2)")
        # On a GPU this would wait for the device, and an index out of range is an error anyway.
        if corners is not None and corners.device.type == "cpu" and corners.numel():
            low, high = (int(value) for value in torch.aminmax(corners))
            if low < 0 or high > self.margin:
                raise ValueError(f"corners run from {low} to {high}; expected 0 to {self.margin}")
        batch = images if images.ndim == 4 else images[None]
        if not self.only_enlarges(*batch.shape[-2:]):
            batch = self.resized(batch)
        center = torch.full((len(batch), 2), self.margin // 2, device=batch.device)
        result = cpu.enlarge(
            batch,
            center if corners is None else corners,
            resize=self.resize,
            crop=self.crop_size,
            size=self.image_size,
            scale=self.scale,
            mean=self.mean,
            std=self.std,
            dtype=dtype,
            memory_format=memory_format,
        )
        if result is None:
            # Bilinear weights add up to 1, so images are normalised before they become larger.
            result = self._crop(self.resized(self.normalized(to_unit(batch))), corners)
            result = self._with_edge(result.to(dtype)).contiguous(memory_format=memory_format)
        return result if images.ndim == 4 else result[0]

    def only_enlarges(self, height: int, width: int) -> bool:
        """Whether the resize of such images crops nothing and makes no side smaller."""
        square = height == width or self.image_fit == "squash"
        return square and max(height, width) <= self.resize

    def views(
        self, images: Float[Tensor, "batch 3 r r"], number: int
    ) -> Iterator[Float[Tensor, "batch 3 size size"]]:
        """Several views of the same images, as inputs of the network (paper, section 4.1).

        Args:
            images: normalised, of ``resize`` x ``resize`` pixels.
            number: 1, the centre; 2, also its mirror image; 10, also the four corners and theirs.

        Raises:
            ValueError: another number; ten views of images that are no larger than the crop.
        """
        check_choice("views", number, VIEWS)
        if number == 10 and not self.margin:
            raise ValueError(
                f"views is 10, but resize is {self.resize}, the size of the crop; "
                "expected a larger resize than image_size: build the loaders with resize=256, for "
                "example"
            )
        positions = [*itertools.product((0, self.margin), repeat=2)] if number == 10 else []
        for top, left in (*positions, (self.margin // 2, self.margin // 2)):
            view = images[..., top : top + self.crop_size, left : left + self.crop_size]
            yield self._with_edge(view)
            if number > 1:
                yield self._with_edge(view.flip(-1))

    def _with_edge(self, images: Tensor) -> Tensor:
        return F.pad(images, (0, self.edge, 0, self.edge)) if self.edge else images

    def _crop(self, images: Tensor, corners: Tensor | None) -> Tensor:
        """The crops of images of ``resize`` x ``resize`` pixels."""
        if corners is None:
            return _center_crop(images, self.crop_size)
        crops = images.unfold(2, self.crop_size, 1).unfold(3, self.crop_size, 1)
        top, left = corners.to(images.device).T
        return crops[torch.arange(len(images), device=images.device), :, top, left]

    def shrunk(self, image: Shaped[Tensor, "3 h w"]) -> Shaped[Tensor, "3 h2 w2"]:
        """The image, resized unless the resize makes it larger."""
        shorter, longer = sorted(image.shape[-2:])
        enlarged = shorter < self.resize if self.image_fit == "crop" else longer <= self.resize
        return image if enlarged else self.resized(image)

    def resized(self, images: Shaped[Tensor, "*batch 3 h w"]) -> Shaped[Tensor, "*batch 3 r r"]:
        """Images, uint8 or floating, of ``resize`` x ``resize`` pixels.

        Scaled images are float32, or uint8 if 8-bit images shrink; others keep their dtype.
        """
        height, width = images.shape[-2:]
        size = [self.resize, self.resize]
        if self.image_fit == "crop":
            ratio = self.resize / min(height, width)
            size = [max(self.resize, round(side * ratio)) for side in (height, width)]
        if size == [height, width]:
            return _center_crop(images, self.resize)
        # Antialiasing changes nothing if an image becomes larger, and takes time.
        shrinks = size[0] < height or size[1] < width
        to_uint8 = shrinks and images.dtype == torch.uint8
        batch = images if images.ndim == 4 else images[None]
        # torch resizes uint8 on CPUs only, and to more than one pixel.
        if not (to_uint8 and images.device.type == "cpu" and self.resize > 1):
            batch = to_unit(batch)
        batch = F.interpolate(batch, size, mode="bilinear", antialias=shrinks)
        if to_uint8 and batch.is_floating_point():
            batch = (batch * 255).round().to(torch.uint8)
        batch = _center_crop(batch, self.resize)
        return batch if images.ndim == 4 else batch[0]

    def normalized(self, images: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
        """``(scale * image - mean) / std`` of floating images from 0 to 1."""
        mean, std = (images.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        scaled = images if self.scale == 1 else images * self.scale
        return (scaled - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON; ``from_dict`` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocess":
        """The ``Preprocess`` of a ``to_dict``; a ``ValueError`` for other data."""
        try:
            return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"data is not a Preprocess: {error!r}") from error


def _center_crop(images: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]
