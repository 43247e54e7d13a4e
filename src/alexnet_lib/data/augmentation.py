"""Random augmentation of training images.

The random numbers of an epoch are drawn at once, for all images in their order, so that an image's
augmentation does not depend on the batch size.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from alexnet_lib.checks import (
    PROBABILITY,
    Range,
    as_number,
    check_integer,
    check_number,
    shown,
    type_name,
)
from alexnet_lib.data.images import as_list, check_dense, to_unit
from alexnet_lib.data.statistics import ColorComponents

# Outside of these, float32 has no weights between 0 and 1, or no colours.
_ALPHA = Range("a number above 0, from 0.001 to 1000", lambda x: 0.001 <= x <= 1000)
_STRENGTH = Range("a number from 0 to 1000", lambda x: 0 <= x <= 1000)
_SHARE = Range("a number above 0, at most 0.5", lambda x: 0 < x <= 0.5)
_LARGEST_RATIO = 1000.0
_MOST_IMAGES = 2**31 - 1  # of an epoch

On = Literal["pixels", "resized", "input"]
Images = Shaped[Tensor, "batch c h w"]
FloatImages = Float[Tensor, "batch c h w"]


@runtime_checkable
class Augmentation(Protocol):
    """A random change of a single training image.

    Attributes:
        on: ``"resized"`` changes the image of ``resize`` x ``resize`` pixels before the crop;
            ``"pixels"`` the same, or the image before the resize, if it is smaller; both get uint8,
            or floating from 0 to 1. ``"input"`` changes the normalised input of the network.
    """

    on: ClassVar[On]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of ``count`` images: a CPU tensor with one row for each."""

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The changed images, ``(batch, C, H, W)``, given their rows of ``draw``.

        A loader hands over both on the device of its batches. To read a number of them there, as
        ``tolist`` does, is to wait for the device.
        """


@runtime_checkable
class Mixing(Protocol):
    """A random mixture of each training image, and its label, with the next one of the epoch."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of ``count`` images: a CPU tensor with one row for each."""

    def mix(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch + 1, C, H, W)`` images, each but the last mixed with the next; their weights.

        The devices are as in ``Augmentation.apply``; the weights are on that of the images.
        """


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors each image left to right with the given probability (paper, section 4.1).

    Args:
        probability: from 0 to 1; the paper's 1/2.
    """

    on: ClassVar[On] = "pixels"
    probability: float = 0.5

    def __post_init__(self) -> None:
        _set(self, probability=check_number("probability", self.probability, PROBABILITY))

    def draw(self, count: int, generator: torch.Generator) -> Bool[Tensor, " count"]:
        """Which images are mirrored."""
        count = _check_drawing(count, generator)
        return torch.rand(count, generator=generator) < self.probability

    def apply(self, images: Images, draws: Bool[Tensor, " batch"]) -> Images:
        """The images, some of them mirrored."""
        _check_images(images, draws)
        if not _one_by_one(images):
            mirrored = draws.to(images.device)[:, None, None, None]
            return torch.where(mirrored, images.flip(-1), images)
        # torch.where of bytes takes sixteen times as long.
        flipped = torch.empty_like(images)
        for new, old, mirror in zip(flipped, images, draws.tolist(), strict=True):
            new.copy_(old.flip(-1) if mirror else old)
        return flipped


@dataclass(frozen=True)
class RandomCrop:
    """Crops the resized image at a random position (paper, section 4.1).

    The range of positions is ``resize`` minus the side of the crop: the paper's 224 of 256 pixels
    have 33 x 33 positions. Cropping is part of the resize, and costs no time.
    """

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """The position of each crop, vertically and horizontally, from 0 to below 1."""
        count = _check_drawing(count, generator)
        return torch.rand(count, 2, generator=generator)

    def corners(self, draws: Float[Tensor, "batch 2"], margin: int) -> Int64[Tensor, "batch 2"]:
        """Row and column of the crops' upper left corners, each from 0 to ``margin``."""
        margin = check_integer("margin", margin, 0, _MOST_IMAGES)
        _check_draws(draws, len(draws) if isinstance(draws, Tensor) and draws.ndim else 0, 2)
        return (draws * (margin + 1)).long()


@dataclass(frozen=True)
class RandomShift:
    """Shifts each image by a random number of its pixels; what is missing is its mirror image.

    With 1/8 of 32 pixels, that is the usual crop of CIFAR-10's images out of 40 x 40 pixels, of
    which 4 on each side are padding (He et al., arXiv 1512.03385, section 4.2), here of reflected
    pixels. Unlike ``RandomCrop``, it leaves the whole image visible in a test.

    Args:
        share: the largest shift in each direction, as a fraction of the side; above 0, at most 1/2.
    """

    on: ClassVar[On] = "pixels"
    share: float = 0.125

    def __post_init__(self) -> None:
        _set(self, share=check_number("share", self.share, _SHARE))

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """The shift of each image, vertically and horizontally, from 0 to below 1."""
        count = _check_drawing(count, generator)
        return torch.rand(count, 2, generator=generator)

    def apply(self, images: Images, draws: Float[Tensor, "batch 2"]) -> Images:
        """The images, shifted."""
        _check_images(images, draws, 2)
        rows, columns = (
            self._indices(images.shape[axis], draws[:, axis + 2].to(images.device))
            for axis in (-2, -1)
        )
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        # Indices around a slice put its axis last.
        shifted = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
        return shifted.permute(0, 3, 1, 2)

    def _indices(self, side: int, draws: Float[Tensor, " batch"]) -> Int64[Tensor, "batch side"]:
        """Where each row or column of the shifted images comes from."""
        most = min(round(self.share * side), side - 1)
        shift = (draws * (2 * most + 1)).long().clamp(0, 2 * most) - most
        index = (torch.arange(side, device=draws.device) + shift[:, None]).abs()
        return torch.where(index < side, index, 2 * (side - 1) - index)


@dataclass(frozen=True)
class ColorNoise:
    """Adds to each image one random colour along the principal components (paper, section 4.1).

    The colour is the sum over the components of a x (standard deviation) x (direction), with a
    random a for each image and component. The paper's text multiplies by the eigenvalue, which is a
    variance and depends on the unit of the pixels; the authors' code multiplies by
    ``color_stdevs``, and so does this. Values may leave the range from 0 to 1.

    Args:
        components: from ``compute_color_components`` for the training set.
        strength: standard deviation of a, at least 0; the paper has 0.1.
    """

    on: ClassVar[On] = "pixels"
    components: ColorComponents
    strength: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.components, ColorComponents):
            raise TypeError(
                f"components is a {type_name(self.components)}; expected the result of "
                "compute_color_components"
            )
        _set(self, strength=check_number("strength", self.strength, _STRENGTH))

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count c"]:
        """What is added to each image's channels."""
        count = _check_drawing(count, generator)
        std = torch.tensor(self.components.std) * self.strength
        directions = torch.tensor(self.components.directions)
        return torch.randn(count, len(std), generator=generator) * std @ directions

    def apply(self, images: Images, draws: Float[Tensor, "batch c2"]) -> FloatImages:
        """The images in other colours, float32."""
        _check_images(images, draws, len(self.components.std))
        if images.shape[1] != draws.shape[1]:
            raise ValueError(
                f"images have {images.shape[1]} channels and the components of ColorNoise "
                f"{draws.shape[1]}; expected the same: compute the components for these images"
            )
        return to_unit(images) + draws.to(images.device)[:, :, None, None]


@dataclass(frozen=True)
class TrivialAugment:
    """One random operation of random strength on each image: Müller and Hutter, arXiv 2103.10158.

    torchvision's ``TrivialAugmentWide`` for grey or colour images, one by one, which is slow for
    large images. On a GPU it waits for the device, as no other augmentation does: the operations
    are chosen on the CPU, and torchvision copies the matrices of rotations, shears and translations
    from there for each image.
    """

    on: ClassVar[On] = "resized"

    def draw(self, count: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
        """A seed for each image."""
        count = _check_drawing(count, generator)
        return torch.randint(2**62, (count,), generator=generator)

    def apply(self, images: Images, draws: Int64[Tensor, " batch"]) -> Images:
        """The changed images, uint8."""
        _check_images(images, draws)
        if draws.is_floating_point():
            raise ValueError(f"draws has dtype {draws.dtype}; expected int64, the seeds of `draw`")
        if images.shape[1] not in {1, 3}:
            raise ValueError(
                f"images have {images.shape[1]} channels; expected 1 or 3, grey or colour, for "
                "TrivialAugment: use other augmentations"
            )
        from torchvision.transforms.v2 import TrivialAugmentWide

        augment = TrivialAugmentWide()
        if images.dtype != torch.uint8:
            images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        changed = torch.empty_like(images)
        # torchvision draws from the global generator of the CPU; its state is restored.
        with torch.random.fork_rng(devices=[]):
            for i, seed in enumerate(draws.tolist()):
                torch.default_generator.manual_seed(seed)
                changed[i] = augment(images[i])
        return changed


@dataclass(frozen=True)
class RandomErasing:
    """Erases a rectangle of each image with the given probability: Zhong et al., arXiv 1708.04896.

    Erased pixels are 0 in the network's input: the mean of the training set.

    Args:
        probability: from 0 to 1.
        area: smallest and largest erased fraction of the image; sides that are longer are cut.
        ratio: smallest and largest height / width.

    Example:
        >>> import torch
        >>> from alexnet_lib import RandomErasing
        >>> erasing = RandomErasing(probability=1.0)
        >>> draws = erasing.draw(4, torch.Generator().manual_seed(0))
        >>> erased = erasing.apply(torch.ones(4, 3, 20, 20), draws)
        >>> sorted(set(erased.flatten().tolist()))
        [0.0, 1.0]
    """

    on: ClassVar[On] = "input"
    # The defaults are the paper's for CIFAR-10, except the area, which is torchvision's 0.02 to
    # 0.33 (the paper: to 0.4).
    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        _set(self, probability=check_number("probability", self.probability, PROBABILITY))
        area, ratio = _pair(self.area), _pair(self.ratio)
        if area is None or not 0 < area[0] <= area[1] <= 1:
            raise ValueError(
                f"area is {shown(self.area)}; expected two increasing fractions up to 1"
            )
        if ratio is None or not 1 / _LARGEST_RATIO <= ratio[0] <= ratio[1] <= _LARGEST_RATIO:
            raise ValueError(
                f"ratio is {shown(self.ratio)}; expected two increasing numbers above 0, from "
                f"{1 / _LARGEST_RATIO} to {_LARGEST_RATIO}"
            )
        _set(self, area=area, ratio=ratio)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 4"]:
        """Top, left, height and width of the rectangles, from 0 to 1.

        Height and width are fractions of the image's side, 0 without a rectangle; top and left are
        fractions of the range in which the rectangle fits.
        """
        count = _check_drawing(count, generator)
        erased, area, ratio, top, left = torch.rand(5, count, generator=generator)
        area = self.area[0] + area * (self.area[1] - self.area[0])
        low, high = map(math.log, self.ratio)
        ratio = (low + ratio * (high - low)).exp()
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()]).clamp(max=1)
        return torch.stack([top, left, *(sides * (erased < self.probability))], dim=1)

    def apply(self, images: FloatImages, draws: Float[Tensor, "batch 4"]) -> FloatImages:
        """The images, some of them with a rectangle of zeros."""
        _check_images(images, draws, 4)
        size, draws = _size(images), draws.to(images.device)
        sides = (draws[:, 2:] * size).round()
        starts = ((size - sides + 1) * draws[:, :2]).floor()
        erased = images.clone()
        if not _one_by_one(images):
            return erased.masked_fill_(_rectangles(starts, starts + sides, images), 0)
        boxes = torch.cat([starts, starts + sides], dim=1).long().tolist()
        # A mask of all images takes three times as long.
        for image, (top, left, bottom, right) in zip(erased, boxes, strict=True):
            image[:, top:bottom, left:right] = 0
        return erased


@dataclass(frozen=True)
class Mixup:
    """Mixes each image with the next, pixel by pixel: Zhang et al., arXiv 1710.09412.

    Args:
        alpha: an image's weight in its mixture is drawn from Beta(alpha, alpha); above 0.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _set(self, alpha=check_number("alpha", self.alpha, _ALPHA))

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
        """Each image's weight, from 0 to 1."""
        count = _check_drawing(count, generator)
        return _beta(self.alpha, count, generator)

    def mix(
        self, images: Shaped[Tensor, "one_more c h w"], draws: Float[Tensor, " batch"]
    ) -> tuple[FloatImages, Float[Tensor, " batch"]]:
        """All images but the last, mixed with the next one, float32; their weights."""
        _check_images(images, draws, one_more=1)
        kept, unit = draws.to(images.device), to_unit(images)
        return torch.lerp(unit[1:], unit[:-1], kept[:, None, None, None]), kept


@dataclass(frozen=True)
class CutMix:
    """Pastes a rectangle of the next image into each: Yun et al., arXiv 1905.04899.

    Images are mixed before they are cropped: a ``RandomCrop`` may cut off part of a rectangle at
    the border, without a change of the labels.

    Args:
        alpha: an image's weight in its mixture is drawn from Beta(alpha, alpha); above 0. If the
            border cuts a rectangle, the weight is the fraction of the remaining pixels.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _set(self, alpha=check_number("alpha", self.alpha, _ALPHA))

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 3"]:
        """The centre of each rectangle, vertically and horizontally, and its side, from 0 to 1."""
        count = _check_drawing(count, generator)
        side = (1 - _beta(self.alpha, count, generator)).sqrt()
        return torch.cat([torch.rand(count, 2, generator=generator), side[:, None]], dim=1)

    def mix(
        self, images: Shaped[Tensor, "one_more c h w"], draws: Float[Tensor, "batch 3"]
    ) -> tuple[Images, Float[Tensor, " batch"]]:
        """All images but the last, with a rectangle of the next one; their weights."""
        _check_images(images, draws, 3, one_more=1)
        size, draws = _size(images), draws.to(images.device)
        centers, halves = draws[:, :2] * size, draws[:, 2:] * size / 2
        pasted = _rectangles((centers - halves).round(), (centers + halves).round(), images)
        kept = 1 - pasted.float().mean((1, 2, 3))
        return torch.where(pasted, images[1:], images[:-1]), kept


def _set(instance: object, **fields: object) -> None:
    """Sets fields of a frozen dataclass."""
    for name, value in fields.items():
        object.__setattr__(instance, name, value)


def _check_drawing(count: object, generator: object) -> int:
    """The count, an integer; an error unless it and the generator can be drawn with."""
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        kind = generator.device if isinstance(generator, torch.Generator) else type_name(generator)
        raise TypeError(f"generator is a {kind}; expected a torch.Generator of the CPU")
    number: int = check_integer("count", count, 0, _MOST_IMAGES)
    return number


def _check_images(images: object, draws: object, *row: int, one_more: int = 0) -> None:
    """Errors unless images are a batch, and ``draws`` has a row of this shape for each of them."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images is a {type_name(images)}; expected a tensor (batch, C, H, W)")
    check_dense(images, "images")
    real = images.dtype == torch.uint8 or images.is_floating_point()
    if images.ndim != 4 or not real:
        raise ValueError(
            f"images has shape {tuple(images.shape)} and dtype {images.dtype}; expected "
            "(batch, C, H, W), uint8 or floating"
        )
    if one_more and not len(images):
        raise ValueError("images is empty; expected an image more than are mixed")
    _check_draws(draws, len(images) - one_more, *row)


def _check_draws(draws: object, count: int, *row: int) -> None:
    if not isinstance(draws, Tensor):
        raise TypeError(f"draws is a {type_name(draws)}; expected the tensor of `draw`")
    check_dense(draws, "draws")
    if tuple(draws.shape) != (count, *row) or draws.is_complex():
        raise ValueError(
            f"draws has shape {tuple(draws.shape)} and dtype {draws.dtype}; expected "
            f"{(count, *row)}, a row of `draw` for each image"
        )


def _one_by_one(images: Tensor) -> bool:
    """Whether images are changed one after the other: on a GPU, each would cost some launches."""
    return images.device.type == "cpu"


def _size(images: Tensor) -> Tensor:
    """Height and width, on the images' device; a copy of them from the CPU would wait for it."""
    return torch.stack([torch.full((), side, device=images.device) for side in images.shape[-2:]])


def _rectangles(starts: Tensor, ends: Tensor, images: Tensor) -> Bool[Tensor, "batch 1 h w"]:
    """The pixels in each image's rectangle, whose corners are ``(batch, 2)``, rows first."""
    rows, columns = (
        (starts[:, axis, None] <= index) & (index < ends[:, axis, None])
        for axis, index in enumerate(
            torch.arange(side, device=images.device) for side in images.shape[-2:]
        )
    )
    return rows[:, None, :, None] & columns[:, None, None, :]


def _pair(values: Any) -> tuple[float, float] | None:
    """Two plain numbers, or None if they are something else."""
    listed = as_list(values)
    if listed is None or len(listed) != 2:
        return None
    low, high = map(as_number, listed)
    return None if low is None or high is None else (low, high)


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    # torch.distributions takes no generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()
