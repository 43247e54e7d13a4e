"""The fixed treatment of an image: the same in training, in testing and for one photo."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from alexnet_lib.data.images import ImageLike, image_to_tensor, to_unit
from alexnet_lib.kernels import cpu

ImageFit = Literal["crop", "squash"]

VIEWS = (1, 2, 10)
"""Numbers of views of an image that an evaluation can average over."""


@dataclass(frozen=True)
class Preprocess:
    """What turns an image into the network's input, in training, in testing and for one photo.

    Resize, centre crop, then ``(scale * image - mean) / std`` with image values from 0 to 1. The
    resize is bilinear with antialiasing, torchvision's default.

    Args:
        resize: side, in pixels, of the square that an image is fitted to; at least ``image_size``.
        image_size: side, in pixels, of the centre crop that the network sees.
        fit: ``"crop"`` scales the shorter side to ``resize`` and cuts the rest off equally;
            ``"squash"`` forces both sides to it. The same for square images.
        scale: what an image value of 1 becomes before the mean is taken off: 1, or 255 for the
            raw values that the paper uses.
        mean: mean of each channel, in units of ``scale``.
        std: standard deviation of each channel, in units of ``scale``; above 0.
        edge: how many of the input's columns at the right and rows at the bottom are zeros instead
            of image. The released code's 224 pixels with rounding up are 227 with 3 of them.

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
    fit: ImageFit = "crop"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    edge: int = 0

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("edge", 0), ("resize", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")
        if self.edge >= self.image_size:
            raise ValueError(
                f"edge is {self.edge}; expected less than image_size, {self.image_size}"
            )
        if self.resize < self.window:
            raise ValueError(
                f"resize is {self.resize}; expected at least {self.window}, what the network sees"
            )
        if self.fit not in {"crop", "squash"}:
            raise ValueError(f"image_fit is {self.fit!r}; expected 'crop' or 'squash'")
        if not 0 < self.scale < np.inf:
            raise ValueError(f"scale is {self.scale!r}; expected a finite number above 0")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if np.shape(value) != (3,) or not np.isfinite(value).all():
                raise ValueError(f"{name} is {value!r}; expected three finite numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}; expected three numbers above 0")

    @property
    def window(self) -> int:
        """Side of the part of an image that the network sees: ``image_size - edge``, in pixels."""
        return self.image_size - self.edge

    def __call__(self, image: ImageLike) -> Float[Tensor, "*batch 3 size size"]:
        """The network's input for one image or for a batch of images of one size.

        Args:
            image: see ``image_to_tensor``: a PIL image, an array ``(H, W, 3)`` or
                ``(N, H, W, 3)``, or a tensor ``(3, H, W)`` or ``(N, 3, H, W)``; uint8, or
                floating from 0 to 1.

        Returns:
            float32 ``(3, image_size, image_size)``, or ``(N, 3, image_size, image_size)`` for a
            batch, on the image's device.

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
        """``__call__`` for tensors known to be uint8, or floating from 0 to 1, made in a dtype.

        Where a batch of small images on the CPU is enlarged, one compiled loop does all of it.

        Args:
            images: ``(3, H, W)`` or ``(N, 3, H, W)``.
            dtype: of the result; values are computed in float32.
            memory_format: of the result of a batch.
            corners: for each image of a batch, row and column of the upper left corner of what is
                cut out of the resized image, from 0 to ``resize - window``; None is the centre.

        Returns:
            ``(3, image_size, image_size)``, or a batch of them, on the device of ``images``.

        Raises:
            ValueError: a wrong rank or channel count, images without pixels, or corners that leave
                the resized image.
        """
        height, width = images.shape[-2:]
        if images.ndim not in {3, 4} or images.shape[-3] != 3 or 0 in (height, width):
            raise ValueError(
                f"images has shape {tuple(images.shape)}; expected (3, H, W) or (N, 3, H, W)"
            )
        if corners is not None:
            self._check_corners(corners, images)
        enlarges = max(height, width) <= self.resize
        keeps_shape = height == width or self.fit == "squash"
        if enlarges and keeps_shape and images.ndim == 4:
            if corners is None:
                middle = (self.resize - self.window) // 2
                places = torch.full((len(images), 2), middle, device=images.device)
            else:
                places = corners
            made = cpu.enlarge(
                images,
                places,
                resize=self.resize,
                window=self.window,
                size=self.image_size,
                scale=self.scale,
                mean=self.mean,
                std=self.std,
                dtype=dtype,
                memory_format=memory_format,
            )
            if made is not None:
                return made
        if enlarges:
            # Bilinear weights add up to 1, so the few pixels there are can be normalised first.
            made = self._cut(self.resized(self.normalized(to_unit(images))), corners)
        else:
            made = self.normalized(self._cut(self.resized(images), corners))
        made = self._with_edge(made.to(dtype))
        return made.contiguous(memory_format=memory_format) if made.ndim == 4 else made

    def views(
        self, images: Float[Tensor, "batch 3 r r"], number: int
    ) -> Iterator[Float[Tensor, "batch 3 size size"]]:
        """Several views of the same images, each as the network's input (paper, section 4.1).

        Args:
            images: normalised and of ``resize`` x ``resize`` pixels.
            number: 1, the centre; 2, the centre and its mirror image; 10, the four corners and the
                centre, each also mirrored.

        Yields:
            One view of all images at a time.

        Raises:
            ValueError: another number; ten views of images that leave no room for them.
        """
        if number not in VIEWS:
            raise ValueError(f"views is {number!r}; expected one of {', '.join(map(str, VIEWS))}")
        room = self.resize - self.window
        if number == 10 and not room:
            raise ValueError(
                f"views is 10, but resize is {self.resize}, all of which the network sees; "
                "expected a larger resize than image_size: build the loaders with resize=256, for "
                "example"
            )
        middle = (room // 2, room // 2)
        corners = [(0, 0), (0, room), (room, 0), (room, room)] if number == 10 else []
        for top, left in (*corners, middle):
            view = images[..., top : top + self.window, left : left + self.window]
            yield self._with_edge(view)
            if number > 1:
                yield self._with_edge(view.flip(-1))

    def _check_corners(self, corners: Tensor, images: Tensor) -> None:
        expected = (len(images), 2)
        if images.ndim != 4 or tuple(corners.shape) != expected:
            raise ValueError(f"corners has shape {tuple(corners.shape)}; expected (batch, 2)")
        # On a GPU looking would mean waiting, and an index out of range is an error there anyway.
        if corners.device.type == "cpu" and corners.numel():
            low, high = (int(value) for value in torch.aminmax(corners))
            room = self.resize - self.window
            if low < 0 or high > room:
                raise ValueError(f"corners run from {low} to {high}; expected 0 to {room}")

    def _with_edge(self, images: Tensor) -> Tensor:
        return F.pad(images, (0, self.edge, 0, self.edge)) if self.edge else images

    def _cut(self, images: Tensor, corners: Tensor | None) -> Tensor:
        """What the network sees of images of ``resize`` x ``resize`` pixels."""
        if corners is None:
            return _center_crop(images, self.window)
        side = torch.arange(self.window, device=images.device)
        rows, columns = (corners[:, i, None].to(images.device) + side for i in (0, 1))
        channels = torch.arange(images.shape[1], device=images.device)
        place = torch.arange(len(images), device=images.device)
        return images[
            place[:, None, None, None],
            channels[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    def resized(self, images: Shaped[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 r r"]:
        """uint8 images, or floating ones from 0 to 1, as float32 ``resize`` x ``resize``."""
        unit = to_unit(images)
        height, width = images.shape[-2:]
        if height == width == self.resize:
            return unit
        size = [self.resize, self.resize]
        if self.fit == "crop":
            ratio = self.resize / min(height, width)
            size = [max(self.resize, round(side * ratio)) for side in (height, width)]
        batch = unit if unit.ndim == 4 else unit[None]
        # Antialiasing changes nothing where an image grows, and costs more.
        shrinks = size[0] < height or size[1] < width
        resized = F.interpolate(batch, size, mode="bilinear", antialias=shrinks)
        resized = _center_crop(resized, self.resize)
        return resized if unit.ndim == 4 else resized[0]

    def normalized(self, images: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
        """``(scale * image - mean) / std`` of floating images from 0 to 1."""
        mean, std = (
            torch.tensor(value, dtype=images.dtype, device=images.device)[:, None, None]
            for value in (self.mean, self.std)
        )
        scaled = images if self.scale == 1 else images * self.scale
        return (scaled - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that JSON can hold; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocess":
        """The treatment that ``to_dict`` wrote.

        Raises:
            ValueError: the data does not describe one.
        """
        try:
            return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"data is not a Preprocess: {error!r}") from error


def _center_crop(images: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]
