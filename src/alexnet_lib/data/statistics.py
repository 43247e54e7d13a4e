"""Over a set of images: each channel's mean and standard deviation, and the colours' components."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from alexnet_lib.data.images import image_to_tensor

# Images of a tensor or an array are summed this many at a time, to bound the float64 copies.
_BLOCK = 256


@dataclass(frozen=True)
class ChannelStats:
    """Mean and standard deviation of the red, green and blue channel, for values from 0 to 1.

    ``count`` is the number of images they were measured on.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    count: int

    def __str__(self) -> str:
        mean, std = (", ".join(f"{x:.4f}" for x in values) for values in (self.mean, self.std))
        return f"mean {mean}; std {std} ({self.count:,} images)"


# Over the 50,000 training images of the original CIFAR-10. The first is the standard deviation
# over all pixels, the second the mean of the images' own deviations; both are in wide use.
CIFAR10_STATS = ChannelStats(
    mean=(0.49139968, 0.48215841, 0.44653091),
    std=(0.24703223, 0.24348513, 0.26158784),
    count=50_000,
)
"""CIFAR-10's training set, standard deviation over all pixels."""

CIFAR10_STATS_PER_IMAGE = ChannelStats(
    mean=CIFAR10_STATS.mean, std=(0.2023, 0.1994, 0.2010), count=50_000
)
"""CIFAR-10's training set, mean of the images' own standard deviations (to four digits)."""

IMAGENET_STATS = ChannelStats(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), count=1_281_167
)
"""ImageNet's, that torchvision's weights were trained with."""


@dataclass(frozen=True)
class ColorComponents:
    """Principal components of the colours of pixels, for values from 0 to 1, the largest first.

    ``directions[i]`` is the i-th unit vector (red, green, blue) and ``std[i]`` the standard
    deviation of the pixels along it, the square root of the covariance's eigenvalue. ``count`` is
    the number of images they were measured on.
    """

    std: tuple[float, float, float]
    directions: tuple[
        tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]
    ]
    count: int


def compute_channel_stats(
    images: np.ndarray | Tensor | Dataset[Any] | DataLoader[Any],
    *,
    std: Literal["pixel", "per_image"] = "pixel",
    progress: bool = True,
) -> ChannelStats:
    r"""The channels' mean and standard deviation, in one pass with float64 accumulators.

    Two numbers go by the name of a data set's standard deviation. ``std="pixel"`` is the ordinary
    one, over all pixels of all images (divisor n). ``std="per_image"`` is the mean of the images'
    own deviations (divisor n - 1, torch's), which is smaller, because it leaves out how the images
    differ from each other; for CIFAR-10 it gives the much copied 0.2023, 0.1994, 0.2010.

    Args:
        images: an array ``(N, H, W, 3)`` or ``(H, W, 3)``; a tensor ``(N, 3, H, W)``; or a
            ``Dataset`` or ``DataLoader`` that yields such images, or PIL images, alone or as the
            first of a pair (image, label). uint8 from 0 to 255, or floating from 0 to 1. Images
            of different sizes count by their pixels in ``mean`` and ``std="pixel"``.
        std: ``"pixel"`` or ``"per_image"``.
        progress: show a bar where there is a terminal and the images come one by one.

    Returns:
        The statistics, for values from 0 to 1.

    Raises:
        ValueError: no images; a shape, dtype or range that is wrong or could be read in two ways
            (an array with 3 at both ends); one-pixel images with ``std="per_image"``.
        TypeError: ``images`` is of another kind.

    Example:
        >>> import numpy as np
        >>> from alexnet_lib import compute_channel_stats
        >>> images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
        >>> images[1] = 255
        >>> compute_channel_stats(images).std
        (0.5, 0.5, 0.5)
        >>> compute_channel_stats(images, std="per_image").std
        (0.0, 0.0, 0.0)
    """
    if std not in {"pixel", "per_image"}:
        raise ValueError(f"std is {std!r}; expected 'pixel' or 'per_image'")
    moments = _moments(images, per_image=std == "per_image", progress=progress)
    result = moments.image_deviations if std == "per_image" else moments.covariance.diag().sqrt()
    return ChannelStats(_triple(moments.mean), _triple(result), moments.count)


def compute_color_components(
    images: np.ndarray | Tensor | Dataset[Any] | DataLoader[Any], *, progress: bool = True
) -> ColorComponents:
    """The principal components of all pixels' colours, for ``ColorNoise`` (paper, section 4.1).

    Args:
        images: as ``compute_channel_stats``'s.
        progress: as ``compute_channel_stats``'s.

    Returns:
        The components, for values from 0 to 1; of the two opposite unit vectors, the one whose
        largest part is positive.

    Raises:
        ValueError: as ``compute_channel_stats``.
        TypeError: ``images`` is of another kind.

    Example:
        >>> import numpy as np
        >>> from alexnet_lib import compute_color_components
        >>> images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
        >>> images[1, ..., 1] = 255
        >>> components = compute_color_components(images)
        >>> components.std[0], [round(x, 4) for x in components.directions[0]]
        (0.5, [0.0, 1.0, 0.0])
    """
    moments = _moments(images, per_image=False, progress=progress)
    eigenvalues, columns = torch.linalg.eigh(moments.covariance)
    directions = columns.T.flip(0)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    # Rounding can leave the eigenvalue of a flat direction a little below 0.
    std = eigenvalues.flip(0).clamp(min=0).sqrt()
    first, second, third = map(_triple, directions)
    return ColorComponents(_triple(std), (first, second, third), moments.count)


@dataclass(frozen=True)
class _Moments:
    mean: Tensor
    covariance: Tensor  # divisor n
    image_deviations: Tensor  # mean of the images' own standard deviations
    count: int


def _moments(images: Any, *, per_image: bool, progress: bool) -> _Moments:
    count = 0
    pixels = 0
    mean = torch.zeros(3, dtype=torch.float64)
    products = torch.zeros(3, 3, dtype=torch.float64)  # of two channels' deviations from the mean
    deviations = torch.zeros(3, dtype=torch.float64)
    for block in _blocks(images, progress=progress):
        # float64 on the CPU: Apple's MPS has none.
        values = block.cpu().to(torch.float64).flatten(2)
        if block.dtype == torch.uint8:
            values /= 255
        size = values.shape[2]
        image_means = values.mean(2)
        values = values - image_means[:, :, None]
        image_products = values @ values.mT
        if per_image:
            if size < 2:
                raise ValueError("images have one pixel each, which has no standard deviation")
            variances = image_products.diagonal(dim1=1, dim2=2) / (size - 1)
            deviations += variances.sqrt().sum(0)
        # Chan, Golub, LeVeque 1983: two sets' deviations are merged without subtracting large
        # sums, so nothing is lost however many images there are.
        block_pixels = size * len(values)
        block_mean = image_means.mean(0)
        apart = image_means - block_mean
        total = pixels + block_pixels
        delta = block_mean - mean
        mean += delta * (block_pixels / total)
        products += image_products.sum(0) + size * (apart.T @ apart)
        products += torch.outer(delta, delta) * (pixels * block_pixels / total)
        pixels = total
        count += len(values)
    if not count:
        raise ValueError("images is empty; expected at least one image")
    return _Moments(mean, products / pixels, deviations / count, count)


def _triple(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = values.tolist()
    return red, green, blue


def _blocks(images: Any, *, progress: bool) -> Iterator[Tensor]:
    """Tensors ``(n, 3, H, W)`` that together are the images."""
    if isinstance(images, np.ndarray | Tensor):
        whole = _unambiguous(images, "images")
        if isinstance(images, Tensor) and images.ndim == 3:
            raise ValueError(
                f"images is a tensor of shape {tuple(images.shape)}; "
                "expected (N, 3, H, W): pass images[None] for a single image"
            )
        if len(whole):  # split gives one empty block of none
            yield from (whole if whole.ndim == 4 else whole[None]).split(_BLOCK)
        return
    if not hasattr(images, "__getitem__") and not hasattr(images, "__iter__"):
        raise TypeError(
            f"images is a {type(images).__name__}; "
            "expected an array, a tensor, a Dataset or a DataLoader"
        )
    # A Dataset need not be iterable, and iterating over one by index stops at an IndexError that
    # not every Dataset raises.
    items = images if hasattr(images, "__iter__") else (images[i] for i in range(len(images)))
    total = len(images) if hasattr(images, "__len__") else None
    bar = tqdm(items, "channel statistics", total, disable=None if progress else True, leave=False)
    for position, item in enumerate(bar):
        image = item[0] if isinstance(item, tuple | list) else item
        tensor = _unambiguous(image, f"images[{position}]")
        yield tensor if tensor.ndim == 4 else tensor[None]


def _unambiguous(image: Any, argument: str) -> Tensor:
    if isinstance(image, np.ndarray) and image.ndim in {3, 4} and image.shape[-1] == 3:
        if image.shape[-3] == 3:
            raise ValueError(
                f"{argument} is an array of shape {image.shape}, which could have its channels "
                "first or last; pass a tensor with its channels first"
            )
    elif not isinstance(image, np.ndarray | Tensor | Image.Image):
        raise TypeError(
            f"{argument} is a {type(image).__name__}; expected a PIL image, an array or a tensor"
        )
    return image_to_tensor(image, argument)
