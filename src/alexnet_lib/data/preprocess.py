"""Preprocessing of images: the same in training, testing and prediction."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from alexnet_lib.checks import (
    MOST_SIDE,
    Range,
    check_choice,
    check_integer,
    check_number,
    shown,
    type_name,
)
from alexnet_lib.data.decoding import FilePart, check_background, read_image
from alexnet_lib.data.images import ImageLike, image_to_tensor, to_unit
from alexnet_lib.data.statistics import check_numbers
from alexnet_lib.kernels import cpu
from alexnet_lib.kernels.cpu import Resize

ImageFit = Literal["crop", "squash"]
Decode = Literal["reduced", "full"]
# Within these, float32 holds all results.
_SCALE = Range("a number from 1e-6 to 1e6", lambda x: 1e-6 <= x <= 1e6)
_LEAST_STD = 1e-9
VIEWS = (1, 2, 10)  # numbers of views of an image, over which an evaluation can average


@dataclass(frozen=True)
class Preprocess:
    """Turns an image into the network's input, in training, testing and prediction.

    Resize, centre crop, then ``(scale * image - mean) / std`` with image values from 0 to 1. As in
    torchvision, the resize is bilinear with antialiasing, and 8-bit images that shrink are rounded:
    values are the same to within one level of 255.

    Args:
        resize: side of the resized square image, in pixels; at least ``image_size - edge``.
        image_size: side of the network's input, in pixels.
        image_fit: ``"crop"`` scales the shorter side to ``resize`` and crops the centre;
            ``"squash"`` scales both sides to it. For square images both are the same.
        scale: factor for image values: 1, or 255 for the paper's raw values.
        mean: mean of each channel, in units of ``scale``; their number is the number of channels.
        std: standard deviation of each channel, in units of ``scale``; above 0.
        edge: number of columns at the right and of rows at the bottom of the input that are zeros
            instead of image. The released code's 224 pixels, rounded up, are 227 with 3 of them.
        background: colour behind transparent pixels of files and PIL images, as
            ``PIL.ImageColor.getrgb`` takes it.
        decode: ``"reduced"`` decodes JPEG files at a half, a quarter or an eighth of their size,
            where both sides stay at least ``resize``; ``"full"`` at their size, which is slower.

    Raises:
        ValueError: a field has a wrong type, or is out of its range.

    Example:
        >>> import numpy as np
        >>> from alexnet_lib import Preprocess
        >>> mean, std = (0.5,) * 3, (0.25,) * 3
        >>> preprocess = Preprocess(resize=67, image_size=67, mean=mean, std=std)
        >>> photo = np.full((480, 640, 3), 255, dtype=np.uint8)
        >>> preprocess(photo).shape, round(preprocess(photo).mean().item(), 3)
        (torch.Size([3, 67, 67]), 2.0)
    """

    resize: int = 227
    image_size: int = 227
    image_fit: ImageFit = "crop"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    edge: int = 0
    background: str = "white"
    decode: Decode = "reduced"

    def __post_init__(self) -> None:
        plain: dict[str, Any] = {}
        for name, least in (("image_size", 1), ("edge", 0), ("resize", 1)):
            plain[name] = check_integer(name, getattr(self, name), least, MOST_SIDE)
        plain["scale"] = check_number("scale", self.scale, _SCALE)
        plain |= {name: check_numbers(name, getattr(self, name)) for name in ("mean", "std")}
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.edge >= self.image_size:
            raise ValueError(
                f"edge is {self.edge}; expected less than image_size, {self.image_size}"
            )
        if self.resize < self.crop_size:
            expected = f"at least {self.crop_size}, what the network sees"
            raise ValueError(f"resize is {self.resize}; expected {expected}")
        check_choice("image_fit", self.image_fit, get_args(ImageFit))
        check_choice("decode", self.decode, get_args(Decode))
        check_background(self.background)
        if min(self.std) < _LEAST_STD:
            raise ValueError(
                f"std is {shown(self.std)}; expected numbers above 0, at least {_LEAST_STD}"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean is {shown(self.mean)} and std is {shown(self.std)}; expected one number of "
                "each for each channel"
            )

    @property
    def channels(self) -> int:
        """Number of channels of the images: of the entries of ``mean`` and ``std``."""
        return len(self.mean)

    @property
    def crop_size(self) -> int:
        """Side of the crop of an image: ``image_size - edge``, in pixels."""
        return self.image_size - self.edge

    @property
    def margin(self) -> int:
        """``resize - crop_size``, in pixels: the range of the crop's position."""
        return self.resize - self.crop_size

    def at_image_size(self, image_size: int) -> "Preprocess":
        """The same for an input of another size: the same part of an image, in other pixels."""
        crop = check_integer("image_size", image_size, self.edge + 1, MOST_SIDE) - self.edge
        resize = max(crop, round(self.resize / self.crop_size * crop))
        return replace(self, image_size=crop + self.edge, resize=resize)

    def __call__(self, image: ImageLike) -> Float[Tensor, "*batch c size size"]:
        """The network's input for one image, or for a batch of images of one size.

        Args:
            image: a PIL image; an array ``(H, W, C)`` or ``(N, H, W, C)`` or a tensor ``(C, H, W)``
                or ``(N, C, H, W)``, uint8 from 0 to 255, uint16, or floating from 0 to 1; an array
                or tensor ``(H, W)`` is a grey image. Where C is not ``channels``, grey becomes
                colour and colour grey.

        Returns:
            float32 ``(channels, image_size, image_size)``, or a batch of them, on the image's
            device.

        Raises:
            ValueError: a wrong rank, channel count, dtype or range.
        """
        channels, background = self.channels, self.background
        return self.network_input(image_to_tensor(image, channels=channels, background=background))

    def read(self, file: Path | FilePart) -> Shaped[Tensor, "c h w"]:
        """The pixels of an image file, resized unless the resize makes the image larger.

        Raises:
            ImageError: the file cannot be read; it is named.
        """
        side = None if self.decode == "full" else self.resize
        channels, background = self.channels, self.background
        return self.shrunk(read_image(file, channels=channels, background=background, side=side))

    def network_input(
        self,
        images: Shaped[Tensor, "*batch c h w"],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        corners: Int64[Tensor, "batch 2"] | None = None,
        mean_and_std: Float[Tensor, "2 c 1 1"] | None = None,
    ) -> Float[Tensor, "*batch c size size"]:
        """``__call__`` for tensors that are known to be uint8, or floating from 0 to 1.

        If images on the CPU are enlarged, a compiled loop does all steps at once.

        Args:
            images: ``(C, H, W)`` or ``(N, C, H, W)`` with ``channels`` channels.
            dtype: of the result; values are computed in float32.
            memory_format: of the result for a batch.
            corners: row and column of the upper left corner of each crop in the resized images of
                a batch, from 0 to ``margin``; None is the centre.
            mean_and_std: what the method of this name returns for the images' device; None copies
                them there, which waits for a GPU.

        Raises:
            ValueError: a wrong rank or channel count, no pixels, or corners out of their range.
        """
        c = self.channels
        if images.ndim not in {3, 4} or images.shape[-3] != c or 0 in images.shape[-2:]:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; expected ({c}, H, W) or (N, {c}, H, W)"
            )
        if corners is not None and (images.ndim != 4 or corners.shape != (len(images), 2)):
            raise ValueError(f"corners has shape {tuple(corners.shape)}; expected (batch, 2)")
        # On a GPU this would wait for the device, and an index out of range is an error anyway.
        if corners is not None and corners.device.type == "cpu" and corners.numel():
            low, high = (int(value) for value in torch.aminmax(corners))
            if low < 0 or high > self.margin:
                raise ValueError(f"corners run from {low} to {high}; expected 0 to {self.margin}")
        batch = images if images.ndim == 4 else images[None]
        height, width = batch.shape[-2:]
        resize = self._resize(height, width)
        if resize.height < height or resize.width < width:
            batch = self.resized(batch)
            resize = Resize(self.resize, self.resize, 0, 0, self.resize)
        result = cpu.enlarge(
            batch,
            corners,
            resize,
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
            normalized = self.normalized(to_unit(batch), mean_and_std)
            result = self._crop(self.resized(normalized), corners)
            result = self._with_edge(result.to(dtype)).contiguous(memory_format=memory_format)
        return result if images.ndim == 4 else result[0]

    def only_enlarges(self, height: int, width: int) -> bool:
        """Whether the resize of such images crops nothing and makes no side smaller."""
        square = height == width or self.image_fit == "squash"
        return square and max(height, width) <= self.resize

    def views(
        self, images: Float[Tensor, "batch c r r"], number: int
    ) -> Iterator[Float[Tensor, "batch c size size"]]:
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
            center = slice(self.margin // 2, self.margin // 2 + self.crop_size)
            return images[..., center, center]
        crops = images.unfold(2, self.crop_size, 1).unfold(3, self.crop_size, 1)
        top, left = corners.to(images.device).T
        return crops[torch.arange(len(images), device=images.device), :, top, left]

    def shrunk(self, image: Shaped[Tensor, "c h w"]) -> Shaped[Tensor, "c h2 w2"]:
        """The image, resized unless the resize makes it larger."""
        shorter, longer = sorted(image.shape[-2:])
        enlarged = shorter < self.resize if self.image_fit == "crop" else longer <= self.resize
        return image if enlarged else self.resized(image)

    def resized(self, images: Shaped[Tensor, "*batch c h w"]) -> Shaped[Tensor, "*batch c r r"]:
        """Images, uint8 or floating, of ``resize`` x ``resize`` pixels.

        Scaled images are float32, or uint8 if 8-bit images shrink; others keep their dtype.
        """
        height, width = images.shape[-2:]
        resize = self._resize(height, width)
        if (resize.height, resize.width) == (height, width):
            return _window(images, resize)
        shrinks = resize.height < height or resize.width < width
        to_uint8 = shrinks and images.dtype == torch.uint8
        batch = images if images.ndim == 4 else images[None]
        result = cpu.shrink(batch, resize) if to_uint8 else None
        if result is None:
            result = _resized(batch, resize, to_uint8, shrinks)
        return result if images.ndim == 4 else result[0]

    def _resize(self, height: int, width: int) -> Resize:
        """How images of this size become ``resize`` x ``resize`` pixels."""
        taller = wider = self.resize
        if self.image_fit == "crop":
            ratio = self.resize / min(height, width)
            taller, wider = (max(self.resize, round(side * ratio)) for side in (height, width))
        top, left = (taller - self.resize) // 2, (wider - self.resize) // 2
        return Resize(taller, wider, top, left, self.resize)

    def mean_and_std(self, device: torch.device) -> Float[Tensor, "2 c 1 1"]:
        """Mean and standard deviation of each channel as a float32 tensor on a device."""
        values = (self.mean, self.std)
        return torch.tensor(values, dtype=torch.float32, device=device)[..., None, None]

    def normalized(
        self,
        images: Float[Tensor, "*batch c h w"],
        mean_and_std: Float[Tensor, "2 c 1 1"] | None = None,
    ) -> Float[Tensor, "*batch c h w"]:
        """``(scale * image - mean) / std`` of floating images from 0 to 1."""
        if mean_and_std is None:
            mean_and_std = images.new_tensor((self.mean, self.std))[..., None, None]
        mean, std = mean_and_std.unbind()
        scaled = images if self.scale == 1 else images * self.scale
        return (scaled - mean) / std

    def denormalized(self, images: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c h w"]:
        """The inverse of ``normalized``, to show what the network sees: values from 0 to 1.

        The zeros of ``edge`` become the mean. Augmented images can have values outside of 0 to 1.
        """
        mean, std = images.new_tensor((self.mean, self.std))[..., None, None].unbind()
        return (images * std + mean) / self.scale

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON; ``from_dict`` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocess":
        """The ``Preprocess`` of a ``to_dict``; a ``ValueError`` for other data."""
        if not isinstance(data, Mapping):
            raise ValueError(f"data is a {type_name(data)}; expected the mapping of a Preprocess")
        names = {field.name for field in fields(cls)}
        missing, unknown = sorted({"mean", "std"} - set(data)), [*(set(data) - names)]
        if missing or unknown:
            raise ValueError(
                f"data is not a Preprocess: it lacks {missing} and has the unknown {shown(unknown)}"
            )
        try:
            lists = {k: tuple(v) for k, v in data.items() if isinstance(v, list)}  # of JSON
            return cls(**{**data, **lists})
        except (TypeError, ValueError) as error:
            raise ValueError(f"data is not a Preprocess: {error}") from error


def _window(images: Tensor, resize: Resize) -> Tensor:
    """The window of images that have the size of the whole resize."""
    rows = slice(resize.top, resize.top + resize.window)
    columns = slice(resize.left, resize.left + resize.window)
    return images[..., rows, columns]


def _resized(batch: Tensor, resize: Resize, to_uint8: bool, shrinks: bool) -> Tensor:
    """The window of resized images, with torch's operations."""
    # torch's resize is fast, but also computes what the window leaves out; and if the result is one
    # pixel wide, all its rows are the first one (torch 2.14).
    if resize.window == 1 or resize.height * resize.width > 4 * resize.window**2:
        batch = _resampled(batch, resize)
    else:
        if not (to_uint8 and batch.device.type == "cpu"):  # torch resizes uint8 on CPUs only
            batch = to_unit(batch)
        # Antialiasing changes nothing if an image becomes larger, and takes time.
        size = (resize.height, resize.width)
        batch = F.interpolate(batch, size, mode="bilinear", antialias=shrinks)
        batch = _window(batch, resize)
    if to_uint8 and batch.is_floating_point():
        batch = (batch * 255).round().to(torch.uint8)
    return batch


def _resampled(images: Tensor, resize: Resize) -> Tensor:
    """The window of resized images, bilinear with antialiasing, from what it needs of them.

    The weights are torch's: they fall off linearly to the source distance of two output pixels, or
    of one source pixel, if that is more. They are computed on the device of the images, since a
    copy would wait for it.
    """
    # Apple's MPS has no float64.
    device = torch.device("cpu") if images.device.type == "mps" else images.device
    axes = ((-2, resize.height, resize.top), (-1, resize.width, resize.left))
    taps = []
    for axis, resized, first in axes:
        length = images.shape[axis]
        scale = length / resized
        reach = max(scale, 1.0)
        start = max(0, math.floor((first + 0.5) * scale - reach))
        end = min(length, math.ceil((first + resize.window - 0.5) * scale + reach))
        pixels = torch.arange(first, first + resize.window, dtype=torch.float64, device=device)
        centers = (pixels + 0.5) * scale
        # One row for each output pixel.
        offsets = torch.arange(2 * math.ceil(reach) + 2, device=device)
        positions = (centers[:, None] - reach).floor() + offsets
        weights = (1 - (positions + 0.5 - centers[:, None]).abs() / reach).clamp(min=0)
        weights = weights.where((positions >= 0) & (positions < length), 0)
        weights = (weights / weights.sum(1, keepdim=True)).float().to(images.device)
        positions = (positions - start).clamp(0, end - start - 1).long().to(images.device)
        taps.append((axis, positions, weights[:, :, None] if axis == -2 else weights))
        images = images.narrow(axis, start, end - start)
    images = to_unit(images)
    for axis, positions, weights in taps:
        source, images = images, images.new_zeros(())
        for position, weight in zip(positions.unbind(1), weights.unbind(1), strict=True):
            images = images + source.index_select(axis, position) * weight
    return images
