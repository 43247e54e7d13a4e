"""Channel statistics and colour components, measured in one pass over a set of images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet_lib import interrupts
from alexnet_lib.checks import as_number, check_choice, check_integer, length_of, shown, type_name
from alexnet_lib.data.decoding import ImageError
from alexnet_lib.data.images import (
    MAX_CHANNELS,
    MAX_CLASSES,
    EncodedImages,
    ImageSet,
    ImageTensors,
    as_list,
    check_dense,
    check_labels,
    image_of,
    image_to_tensor,
)
from alexnet_lib.devices import generator_for, thread_pool
from alexnet_lib.text import progress_bar

Images = np.ndarray | Tensor | Dataset[Any] | DataLoader[Any]
StatsKind = Literal["pixel", "per_image"]
Values = tuple[float, ...]  # one for each channel
_PHOTOS = 64  # photos that are decoded at a time
_BLOCK = 256  # images of an array or a tensor at a time, to bound the float64 copies


@dataclass(frozen=True)
class ChannelStats:
    """Mean and standard deviation of each channel in ``count`` images, for values from 0 to 1.

    Raises:
        ValueError: a field has a wrong type or length, or is out of its range.
    """

    mean: Values
    std: Values
    count: int

    def __post_init__(self) -> None:
        fields = {
            "mean": check_numbers("mean", self.mean),
            "std": check_numbers("std", self.std),
            "count": check_integer("count", self.count, 1),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the class is frozen
        if len(self.mean) != len(self.std) or min(self.std) < 0:
            raise ValueError(
                f"mean is {shown(self.mean)} and std is {shown(self.std)}; expected one number of "
                "each for each channel, and no std below 0"
            )

    def __str__(self) -> str:
        mean, std = (", ".join(f"{x:.4f}" for x in values) for values in (self.mean, self.std))
        return f"mean {mean}; std {std} ({self.count:,} images)"


def check_numbers(name: str, values: Any) -> Values:
    """A tuple of plain floats; a ``ValueError`` unless they are finite, one for each channel."""
    numbers = [as_number(value) for value in as_list(values) or ()]
    if not 0 < len(numbers) <= MAX_CHANNELS or not all(_is_moderate(x) for x in numbers):
        raise ValueError(
            f"{name} is {shown(values)}; expected finite numbers, one for each channel (up to "
            f"{MAX_CHANNELS})"
        )
    return tuple(float(number) for number in numbers if number is not None)


def _is_moderate(number: float | None) -> bool:
    """Whether float32 holds a number and what is computed with it."""
    return number is not None and abs(number) <= _LARGEST


_LARGEST = 1e9

# Over the 50,000 training images of the original CIFAR-10. The first is the standard deviation
# over all pixels, the second the mean of the images' own deviations; both are in wide use.
CIFAR10_STATS = ChannelStats(
    (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784), count=50_000
)
CIFAR10_STATS_PER_IMAGE = replace(CIFAR10_STATS, std=(0.2023, 0.1994, 0.2010))
IMAGENET_STATS = ChannelStats((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), count=1_281_167)


@dataclass(frozen=True)
class ColorComponents:
    """Principal components of the pixel colours of ``count`` images, the largest first.

    ``directions[i]`` is the i-th unit vector, of length C, and ``std[i]`` the standard
    deviation of the pixels along it (the root of the eigenvalue), for values from 0 to 1.

    Raises:
        ValueError: a field has a wrong type or length, or is out of its range.
    """

    std: Values
    directions: tuple[Values, ...]
    count: int

    def __post_init__(self) -> None:
        std, rows = check_numbers("std", self.std), self.directions
        if not isinstance(rows, tuple | list) or len(rows) != len(std) or min(std) < 0:
            raise ValueError(
                f"std is {shown(self.std)} and directions is {shown(rows)}; expected one number of "
                "at least 0, and one direction, for each channel"
            )
        directions = tuple(check_numbers("directions", row) for row in rows)
        if any(len(row) != len(std) for row in directions):
            raise ValueError(f"directions is {shown(rows)}; expected rows of {len(std)} numbers")
        # The class is frozen.
        object.__setattr__(self, "std", std)
        object.__setattr__(self, "directions", directions)
        object.__setattr__(self, "count", check_integer("count", self.count, 1))


def compute_channel_stats(
    images: Images,
    *,
    std: StatsKind = "pixel",
    channels: int | None = None,
    progress: bool = True,
) -> ChannelStats:
    """Mean and standard deviation of each channel, for values from 0 to 1, in one float64 pass.

    Two quantities are called the standard deviation of a data set. ``std="pixel"`` is that of all
    pixels of all images (divisor n). ``std="per_image"`` is the mean of the images' own standard
    deviations (divisor n - 1, as torch's), which is smaller, because it ignores the differences
    between images; for CIFAR-10 it is the often copied 0.2023, 0.1994, 0.2010.

    Args:
        images: an array ``(N, H, W, C)`` or ``(H, W, C)``; a tensor ``(N, C, H, W)``; or a
            ``Dataset`` or ``DataLoader`` that yields such images, or PIL images, alone or as the
            first of a pair (image, label). uint8 from 0 to 255, or floating from 0 to 1. Except
            in ``std="per_image"``, an image has the weight of its number of pixels.
        std: ``"pixel"`` or ``"per_image"``.
        channels: number of channels, as in ``build_loaders``; None is 1 or 3, as the images have.
        progress: show a bar in a terminal, if the images come one by one.

    Raises:
        ValueError: no images; a wrong or ambiguous shape (an array with 3 at both ends); a wrong
            dtype or range; one-pixel images with ``std="per_image"``.
        TypeError: ``images`` has another type.

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
    check_choice("std", std, get_args(StatsKind))
    channels = check_integer("channels", channels, 1, MAX_CHANNELS, optional=True)
    return measure_pixels(images, channels=channels, progress=progress).channel_stats(std)


def compute_color_components(
    images: Images, *, channels: int | None = None, progress: bool = True
) -> ColorComponents:
    """The principal components of all pixels' colours, for ``ColorNoise`` (paper, section 4.1).

    Arguments and errors are those of ``compute_channel_stats``. The components are for values from
    0 to 1; the largest element of each unit vector is positive.

    Example:
        >>> import numpy as np
        >>> from alexnet_lib import compute_color_components
        >>> images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
        >>> images[1, ..., 1] = 255
        >>> components = compute_color_components(images)
        >>> components.std[0], [round(x, 4) for x in components.directions[0]]
        (0.5, [0.0, 1.0, 0.0])
    """
    channels = check_integer("channels", channels, 1, MAX_CHANNELS, optional=True)
    return measure_pixels(images, channels=channels, progress=progress).color_components


@dataclass(frozen=True)
class PixelStatistics:
    """The statistics of a set of images, for values from 0 to 1.

    ``per_image_std`` is None if an image has one pixel, which has no standard deviation.
    """

    mean: Values
    std: Values
    per_image_std: Values | None
    color_components: ColorComponents
    count: int

    def channel_stats(self, std: StatsKind) -> ChannelStats:
        """The mean with one of the standard deviations; a ``ValueError`` if that is None."""
        deviation = self.std if std == "pixel" else self.per_image_std
        if deviation is None:
            raise ValueError(
                "std is 'per_image', but an image has one pixel, which has no standard deviation; "
                "expected 'pixel'"
            )
        return ChannelStats(self.mean, deviation, self.count)


def measure_pixels(
    images: Images,
    *,
    channels: int | None = None,
    progress: bool = True,
    sample: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> PixelStatistics:
    """The statistics in one pass; arguments and errors are those of ``compute_channel_stats``.

    Of an ``ImageSet`` that is not in memory, a random ``sample`` of so many images is measured;
    None measures all. With ``skip_bad``, images that cannot be read are left out.
    """
    if isinstance(images, ImageSet) and not isinstance(images, ImageTensors):
        channels = images.channels
        if sample is not None and sample < len(images):
            drawn = torch.randperm(len(images), generator=generator_for(seed, 2, 1))[:sample]
            images = images.subset(drawn.sort().values)
    count = pixels = 0
    smallest = 2
    mean = products = deviations = torch.zeros(0, dtype=torch.float64)
    for block in _blocks(images, channels, progress=progress, skip_bad=skip_bad):
        if not len(block):
            continue
        if not count:
            mean, deviations = torch.zeros(2, block.shape[1], dtype=torch.float64)
            # Of two channels' deviations from the mean.
            products = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        elif block.shape[1] != len(mean):
            raise ValueError(
                f"images have {len(mean)} channels and {block.shape[1]}; expected the same in all: "
                "pass channels=3 or 1"
            )
        # float64 on the CPU: Apple's MPS has none.
        values = block.cpu().to(torch.float64).flatten(2)
        if block.dtype == torch.uint8:
            values /= 255
        size = values.shape[2]
        smallest = min(smallest, size)
        image_means = values.mean(2)
        values = values - image_means[:, :, None]
        image_products = values @ values.mT
        variances = image_products.diagonal(dim1=1, dim2=2) / max(size - 1, 1)
        deviations += variances.sqrt().sum(0)
        # Chan, Golub, LeVeque 1983: the deviations of two sets are merged without subtracting large
        # sums, so that nothing is lost however many images there are.
        block_pixels = size * len(values)
        block_mean = image_means.mean(0)
        between = image_means - block_mean
        total = pixels + block_pixels
        delta = block_mean - mean
        mean += delta * (block_pixels / total)
        products += image_products.sum(0) + size * (between.T @ between)
        products += torch.outer(delta, delta) * (pixels * block_pixels / total)
        pixels = total
        count += len(values)
    if not count:
        raise ValueError("images is empty; expected at least one image")
    covariance = products / pixels
    return PixelStatistics(
        mean=tuple(mean.tolist()),
        std=tuple(covariance.diag().sqrt().tolist()),
        per_image_std=tuple((deviations / count).tolist()) if smallest > 1 else None,
        color_components=_color_components(covariance, count),
        count=count,
    )


def _color_components(covariance: Tensor, count: int) -> ColorComponents:
    eigenvalues, columns = torch.linalg.eigh(covariance)
    directions = columns.T.flip(0)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    # Rounding can leave the eigenvalue of a flat direction a little below 0.
    std = eigenvalues.flip(0).clamp(min=0).sqrt()
    return ColorComponents(tuple(std.tolist()), tuple(map(tuple, directions.tolist())), count)


_INTEGERS = {torch.uint8, torch.uint16, torch.int8, torch.int16, torch.int32, torch.int64}


def compute_class_weights(labels: Any, classes: int | None = None) -> Tensor:
    """The weight of each class in a loss: inversely proportional to its number of images.

    n / (classes x images of the class), as scikit-learn's ``"balanced"``: the mean weight of an
    image is 1. A class without images gets 0.

    Args:
        labels: integers ``(N,)``, as a list, an array or a tensor; or a loader of the library.
        classes: number of classes; None is the loader's, or the largest label plus 1.

    Returns:
        float32 ``(classes,)``, for example for ``torch.nn.CrossEntropyLoss(weight=...)``.

    Raises:
        ValueError: no labels, or one that is no integer from 0 to below ``classes``.

    Example:
        >>> from alexnet_lib import compute_class_weights
        >>> compute_class_weights([0, 0, 0, 1])
        tensor([0.6667, 2.0000])
    """
    dataset = getattr(labels, "dataset", labels)
    if isinstance(dataset, ImageSet):
        labels, classes = dataset.labels, len(dataset.classes) if classes is None else classes
    try:
        numbers = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # whatever torch meets
        raise ValueError(f"labels is {shown(labels)}; expected integers (N,)") from None
    check_dense(numbers, "labels")
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype not in _INTEGERS:
        raise ValueError(
            f"labels has shape {tuple(numbers.shape)} and dtype {numbers.dtype}; expected integers "
            "(N,), at least one"
        )
    numbers = numbers.cpu().long()
    least = int(numbers.max()) + 1 if classes is None else classes
    number = check_integer("the number of classes", least, 1, MAX_CLASSES)
    check_labels(numbers, range(number))
    counts = torch.bincount(numbers, minlength=number)
    weights: Tensor = len(numbers) / (number * counts.clamp(min=1).double()) * (counts > 0)
    return weights.float()


def _blocks(
    images: Any, channels: int | None, *, progress: bool, skip_bad: bool
) -> Iterator[Tensor]:
    """The images as tensors ``(n, C, H, W)``."""
    if isinstance(images, ImageTensors):
        images, channels = images.images, images.channels
    if isinstance(images, np.ndarray | Tensor):
        batch = _batch(images, "images", channels)
        if isinstance(images, Tensor) and images.ndim == 3:
            raise ValueError(
                f"images is a tensor of shape {tuple(images.shape)}; expected (N, C, H, W): pass "
                "images[None] for a single image"
            )
        if len(batch):  # split makes one empty block of no images
            for block in batch.split(_BLOCK):
                interrupts.check()
                yield block
        return
    if not hasattr(images, "__getitem__") and not hasattr(images, "__iter__"):
        raise TypeError(
            f"images is a {type_name(images)}; expected an array, a tensor, a Dataset or a "
            "DataLoader"
        )
    total = length_of(images)
    items: Iterable[Any]
    if isinstance(images, ImageSet):
        items = _read(images, skip_bad=skip_bad)
    elif hasattr(images, "__iter__"):
        items = images
    else:  # not every Dataset is iterable or raises the IndexError that ends iteration by index
        items = (images[i] for i in range(len(images)))
    hidden = None if progress else True  # None: where there is no terminal
    bar = progress_bar(items, "channel statistics", total, disable=hidden, leave=False)
    for index, item in enumerate(bar):
        interrupts.check()
        yield _batch(image_of(item), f"images[{index}]", channels)


def _read(images: ImageSet, *, skip_bad: bool) -> Iterator[Tensor]:
    """The images of a set; files are decoded in several threads."""

    def read(index: int) -> Tensor | None:
        try:
            return images.image(index)
        except ImageError:
            if skip_bad:
                return None
            raise

    if not isinstance(images, EncodedImages):
        yield from (image for i in range(len(images)) if (image := read(i)) is not None)
        return
    with thread_pool("alexnet-lib-statistics") as pool:
        for indices in torch.arange(len(images)).split(_PHOTOS):
            yield from (image for image in pool.map(read, indices.tolist()) if image is not None)


def _batch(image: Any, argument: str, channels: int | None) -> Tensor:
    if isinstance(image, np.ndarray) and image.ndim in {3, 4}:
        first, last = image.shape[-3], image.shape[-1]
        if first == last and first == (channels or 3):
            raise ValueError(
                f"{argument} is an array of shape {image.shape}, which could have its channels "
                "first or last; pass a tensor with its channels first"
            )
    tensor = image_to_tensor(image, argument, channels)
    return tensor if tensor.ndim == 4 else tensor[None]
