"""Random augmentation of training images.

The random numbers of an epoch are drawn at once, for all images in their order, so that an image's
augmentation does not depend on the batch size.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from alexnet_lib.checks import (
    PROBABILITY,
    Range,
    check_integer,
    check_number,
    type_name,
)
from alexnet_lib.data.images import check_dense, to_unit
from alexnet_lib.data.statistics import ColorComponents

# Beyond this, float32 has no colours.
_STRENGTH = Range("a number from 0 to 1000", lambda x: 0 <= x <= 1000)
_SHARE = Range("a number above 0, at most 0.5", lambda x: 0 < x <= 0.5)
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


def _check_images(images: object, draws: object, *row: int) -> None:
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
    _check_draws(draws, len(images), *row)


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
