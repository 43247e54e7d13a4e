"""The random treatments of training images.

What is random is drawn for all images of an epoch at once, in the order in which they come, so that
an image's treatment does not depend on the batch size or on who makes the batch.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from alexnet_lib.data.images import to_unit
from alexnet_lib.data.statistics import ColorComponents


@runtime_checkable
class Augmentation(Protocol):
    """A random change of each training image by itself.

    Attributes:
        on: ``"pixels"``: it changes images as they come, mostly small and uint8, before the resize
            where the data set's images are of one size, or else after it, then floating from 0 to
            1; ``"input"``: it changes the network's input, after crop and normalisation.
    """

    on: ClassVar[Literal["pixels", "input"]]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of ``count`` images: a CPU tensor with one row for each."""
        ...

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The changed images, ``(batch, 3, H, W)``, given their rows of ``draw``."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """A random mixture of each training image, and its label, with the next one of the epoch."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of ``count`` images: a CPU tensor with one row for each."""
        ...

    def mix(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch + 1, 3, H, W)`` images, each mixed with the next; the share each keeps."""
        ...


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors each image left to right with the given probability (paper, section 4.1).

    Args:
        probability: from 0 to 1; the paper's 1/2.

    Example:
        >>> import torch
        >>> from alexnet_lib import HorizontalFlip
        >>> flip = HorizontalFlip()
        >>> draws = flip.draw(4, torch.Generator().manual_seed(0))
        >>> flip.apply(torch.rand(4, 3, 8, 8), draws).shape
        torch.Size([4, 3, 8, 8])
    """

    on: ClassVar[Literal["pixels", "input"]] = "pixels"

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def draw(self, count: int, generator: torch.Generator) -> Bool[Tensor, " count"]:
        """Which images are mirrored."""
        return torch.rand(count, generator=generator) < self.probability

    def apply(
        self, images: Shaped[Tensor, "batch 3 h w"], draws: Bool[Tensor, " batch"]
    ) -> Shaped[Tensor, "batch 3 h w"]:
        """The images, some of them mirrored."""
        return torch.where(draws.to(images.device)[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class RandomCrop:
    """Cuts the network's window out of a random place of the resized image (paper, section 4.1).

    How far it moves is up to the loader: ``resize`` less what the network sees. The paper's 224 of
    256 pixels leave 33 x 33 places. The cut is made while images are enlarged, and costs nothing.

    Example:
        >>> import torch
        >>> from alexnet_lib import RandomCrop
        >>> crop = RandomCrop()
        >>> draws = crop.draw(4, torch.Generator().manual_seed(0))
        >>> crop.corners(draws, room=32).shape
        torch.Size([4, 2])
    """

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """Where each window lies, vertically and horizontally, from 0 to below 1."""
        return torch.rand(count, 2, generator=generator)

    def corners(self, draws: Float[Tensor, "batch 2"], room: int) -> Int64[Tensor, "batch 2"]:
        """Row and column of the windows' upper left corners, each from 0 to ``room``."""
        return (draws * (room + 1)).long()


@dataclass(frozen=True)
class ColorNoise:
    """Adds to each image one random colour along the principal components (paper, section 4.1).

    The colour is the sum over the components of a x (standard deviation) x (direction), where a is
    drawn anew for each image and component. The paper's text multiplies by the eigenvalue, which is
    a variance and would change with the unit of the pixels; the authors' code multiplies by what it
    calls ``color_stdevs``, and so does this. Values may leave the range from 0 to 1.

    Args:
        components: as ``compute_color_components`` measures them over the training set.
        strength: standard deviation of a, at least 0; the paper's 0.1.

    Example:
        >>> import torch
        >>> from alexnet_lib import compute_color_components
        >>> from alexnet_lib import ColorNoise
        >>> images = torch.rand(4, 3, 8, 8)
        >>> noise = ColorNoise(compute_color_components(images))
        >>> draws = noise.draw(4, torch.Generator().manual_seed(0))
        >>> noise.apply(images, draws).shape
        torch.Size([4, 3, 8, 8])
    """

    on: ClassVar[Literal["pixels", "input"]] = "pixels"

    components: ColorComponents
    strength: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength is {self.strength!r}; expected a finite number from 0")

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 3"]:
        """What is added to each image's red, green and blue."""
        std = torch.tensor(self.components.std) * self.strength
        directions = torch.tensor(self.components.directions)
        return torch.randn(count, 3, generator=generator) * std @ directions

    def apply(
        self, images: Shaped[Tensor, "batch 3 h w"], draws: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch 3 h w"]:
        """The images in other colours, float32."""
        return to_unit(images) + draws.to(images.device)[:, :, None, None]


@dataclass(frozen=True)
class TrivialAugment:
    """One random operation of random strength on each image: Müller and Hutter, arXiv 2103.10158.

    torchvision's ``TrivialAugmentWide``, image by image, so it is for small images on the CPU: 128
    of CIFAR-10 take some 20 ms.

    Example:
        >>> import torch
        >>> from alexnet_lib import TrivialAugment
        >>> augment = TrivialAugment()
        >>> draws = augment.draw(4, torch.Generator().manual_seed(0))
        >>> augment.apply(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), draws).shape
        torch.Size([4, 3, 8, 8])
    """

    on: ClassVar[Literal["pixels", "input"]] = "pixels"

    def draw(self, count: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
        """A seed for each image."""
        return torch.randint(2**62, (count,), generator=generator)

    def apply(
        self, images: Shaped[Tensor, "batch 3 h w"], draws: Int64[Tensor, " batch"]
    ) -> Shaped[Tensor, "batch 3 h w"]:
        """The changed images, uint8."""
        from torchvision.transforms.v2 import TrivialAugmentWide

        augment = TrivialAugmentWide()
        if images.dtype != torch.uint8:
            images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        made = torch.empty_like(images)
        # torchvision draws from the global generator of the CPU, which is put back.
        with torch.random.fork_rng(devices=[]):
            for place, seed in enumerate(draws.tolist()):
                torch.default_generator.manual_seed(seed)
                made[place] = augment(images[place])
        return made


@dataclass(frozen=True)
class RandomErasing:
    """Erases a rectangle of each image with the given probability: Zhong et al., arXiv 1708.04896.

    What is erased becomes 0 in the network's input: the training set's mean.

    Args:
        probability: from 0 to 1.
        area: smallest and largest share of the image that is erased, before a side longer than the
            image's is cut.
        ratio: least and greatest height over width.

    Example:
        >>> import torch
        >>> from alexnet_lib import RandomErasing
        >>> erasing = RandomErasing(probability=1.0)
        >>> draws = erasing.draw(4, torch.Generator().manual_seed(0))
        >>> erased = erasing.apply(torch.ones(4, 3, 20, 20), draws)
        >>> sorted(set(erased.flatten().tolist()))
        [0.0, 1.0]
    """

    on: ClassVar[Literal["pixels", "input"]] = "input"

    # The defaults are the paper's for CIFAR-10, but for the area, which is torchvision's 0.02 to
    # 0.33 (the paper: to 0.4).
    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is {self.area!r}; expected two rising shares up to 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio!r}; expected two rising numbers above 0")

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 4"]:
        """Top, left, height and width of the rectangles, as shares of the image's side.

        Top and left are shares of the room that the rectangle leaves. Without a rectangle, height
        and width are 0.
        """
        erased, area, ratio, top, left = torch.rand(5, count, generator=generator)
        area = self.area[0] + area * (self.area[1] - self.area[0])
        low, high = map(math.log, self.ratio)
        ratio = (low + ratio * (high - low)).exp()
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)
        sides = sides * (erased < self.probability)[:, None]
        return torch.cat([top[:, None], left[:, None], sides], dim=1)

    def apply(
        self, images: Float[Tensor, "batch 3 h w"], draws: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch 3 h w"]:
        """The images, some of them with a rectangle of zeros."""
        size = torch.tensor(images.shape[-2:])
        sides = (draws[:, 2:] * size).round()
        starts = ((size - sides + 1) * draws[:, :2]).floor()
        erased = images.clone()
        # One by one: a mask of all images takes three times as long on the CPU.
        for image, start, side in zip(
            erased, starts.long().tolist(), sides.long().tolist(), strict=True
        ):
            (top, left), (height, width) = start, side
            image[:, top : top + height, left : left + width] = 0
        return erased


@dataclass(frozen=True)
class Mixup:
    """Mixes each image with the next, pixel by pixel: Zhang et al., arXiv 1710.09412.

    Args:
        alpha: the share that an image keeps is drawn from Beta(alpha, alpha); above 0.

    Example:
        >>> import torch
        >>> from alexnet_lib import Mixup
        >>> mixup = Mixup(alpha=0.2)
        >>> draws = mixup.draw(4, torch.Generator().manual_seed(0))
        >>> images, kept = mixup.mix(torch.rand(5, 3, 8, 8), draws)
        >>> images.shape, kept.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4]))
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
        """The share that each image keeps."""
        return _beta(self.alpha, count, generator)

    def mix(
        self, images: Shaped[Tensor, "one_more 3 h w"], draws: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch 3 h w"], Float[Tensor, " batch"]]:
        """All images but the last, mixed with the next one, float32; the share each keeps."""
        kept = draws.to(images.device)
        return torch.lerp(
            to_unit(images[1:]), to_unit(images[:-1]), kept[:, None, None, None]
        ), kept


@dataclass(frozen=True)
class CutMix:
    """Pastes a rectangle of the next image into each: Yun et al., arXiv 1905.04899.

    Images are mixed before they are cropped: of a rectangle at the border, a ``RandomCrop`` may cut
    some away, which the labels' shares do not know.

    Args:
        alpha: the share that an image keeps is drawn from Beta(alpha, alpha); above 0. A rectangle
            that reaches over the edge is cut, and the share is that of the pixels kept.

    Example:
        >>> import torch
        >>> from alexnet_lib import CutMix
        >>> cutmix = CutMix()
        >>> draws = cutmix.draw(4, torch.Generator().manual_seed(0))
        >>> images, kept = cutmix.mix(torch.rand(5, 3, 8, 8), draws)
        >>> images.shape, kept.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4]))
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 3"]:
        """The centre of each rectangle, vertically and horizontally, and its side, from 0 to 1."""
        side = (1 - _beta(self.alpha, count, generator)).sqrt()
        return torch.cat([torch.rand(count, 2, generator=generator), side[:, None]], dim=1)

    def mix(
        self, images: Shaped[Tensor, "one_more 3 h w"], draws: Float[Tensor, "batch 3"]
    ) -> tuple[Shaped[Tensor, "batch 3 h w"], Float[Tensor, " batch"]]:
        """All images but the last, with a rectangle of the next one; the share each keeps."""
        size = torch.tensor(images.shape[-2:])
        centers, halves = draws[:, :2] * size, draws[:, 2:] * size / 2
        boxes = _boxes((centers - halves).round(), (centers + halves).round(), images[1:])
        kept = 1 - boxes.float().mean((1, 2, 3))
        return torch.where(boxes, images[1:], images[:-1]), kept


def _boxes(
    starts: Float[Tensor, "batch 2"],
    ends: Float[Tensor, "batch 2"],
    images: Shaped[Tensor, "batch 3 h w"],
) -> Bool[Tensor, "batch 1 h w"]:
    """Which pixels of images lie in their box, from ``starts`` to before ``ends``."""
    inside = []
    for axis, side in enumerate(images.shape[-2:]):
        place = torch.arange(side, device=images.device)
        start, end = (edges[:, axis, None].to(images.device) for edges in (starts, ends))
        inside.append((place >= start) & (place < end))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    # torch.distributions takes no generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability!r}; expected 0 to 1")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha!r}; expected a finite number above 0")
