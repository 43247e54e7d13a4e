"""Batches: data sets, the fixed and the random treatment, and the order of an epoch.

A loader's order and augmentation are functions of (seed, epoch, position in the epoch's order), so
they depend neither on the batch size nor on the number of workers.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet_lib.data.augmentation import Augmentation, Mixing, RandomCrop
from alexnet_lib.data.cifar10 import cifar10
from alexnet_lib.data.images import ImageSet, ImageTensors
from alexnet_lib.data.preprocess import ImageFit, Preprocess
from alexnet_lib.data.shapes import shapes
from alexnet_lib.data.sources import image_folder, wrap_dataset
from alexnet_lib.data.statistics import CIFAR10_STATS, ChannelStats, compute_channel_stats
from alexnet_lib.devices import checked_device

Stats = ChannelStats | Literal["train", "train_per_image"]
AnyAugmentation = Augmentation | RandomCrop | Mixing
Augmentations = AnyAugmentation | Sequence[AnyAugmentation] | None


@dataclass(eq=False)
class BatchLoader:
    """Batches of normalised images and their labels, on a device.

    Yields ``(images, labels)``: floating ``(batch, 3, image_size, image_size)`` and int64
    ``(batch,)``, or, where an augmentation mixes images, float32 ``(batch, classes)``: each class's
    share. The last batch may be short. It works wherever torch's ``DataLoader`` is iterated
    over. Each exhausted pass advances the epoch, and with it the order and the augmentation; a
    pass that is broken off changes nothing. ``set_epoch`` overrides.

    Args:
        dataset: the images, their labels and the names of the classes.
        preprocess: the fixed treatment.
        batch_size: images in a batch, at least 1.
        shuffle: a new random order in each epoch, instead of the data set's.
        augmentation: the random treatments, in the order in which they are applied, but that those
            on the network's input come last; at most one ``RandomCrop`` and one ``Mixing``.
        seed: of the order and the augmentation.
        device: where the batches are made.
        dtype: of the batches' images.
        memory_format: of the batches' images.
        num_workers: processes that decode image files; 0 decodes in this one. Images that are held
            in memory need none.
        stats: what the treatment's mean and standard deviation were taken from, where it is known.
    """

    dataset: ImageSet
    preprocess: Preprocess
    batch_size: int = 128
    shuffle: bool = False
    augmentation: tuple[AnyAugmentation, ...] = ()
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    num_workers: int = 0
    stats: ChannelStats | None = None
    _epoch: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")
        for each in self.augmentation:
            if isinstance(each, Augmentation) and each.on not in ("pixels", "input"):
                raise ValueError(
                    f"augmentation has {each}, on {each.on!r}; expected 'pixels' or 'input'"
                )
        for kind in (RandomCrop, Mixing):
            found = [each for each in self.augmentation if isinstance(each, kind)]
            if len(found) > 1:
                raise ValueError(f"augmentation has {found}; expected at most one {kind.__name__}")

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass that of this epoch, counted from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self._epoch
        generator = _generator(self.seed, epoch)
        count = len(self.dataset)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        draws = [each.draw(count, generator) for each in self.augmentation]
        batches = list(torch.arange(count).split(self.batch_size))
        if any(isinstance(each, Mixing) for each in self.augmentation):
            # An image is mixed with the next one of the epoch, whichever batch that is in.
            batches = [torch.cat([batch, (batch[-1:] + 1) % count]) for batch in batches]
        raw_batches = self._raw_batches([order[batch] for batch in batches], generator)
        for places, (raw, labels) in zip(batches, raw_batches, strict=True):
            yield self._batch(
                raw.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
                [drawn[places] for drawn in draws],
            )
        self._epoch = epoch + 1

    def uncropped(self) -> "BatchLoader":
        """A loader of the whole resized images, normalised, as ``Preprocess.views`` takes them."""
        whole = replace(self.preprocess, image_size=self.preprocess.resize, edge=0)
        return replace(self, preprocess=whole)

    def _batch(self, images: Tensor, labels: Tensor, draws: list[Tensor]) -> tuple[Tensor, Tensor]:
        corners = None
        for augmentation, drawn in zip(self.augmentation, draws, strict=True):
            if isinstance(augmentation, RandomCrop):
                room = self.preprocess.resize - self.preprocess.window
                corners = augmentation.corners(drawn, room)
            elif isinstance(augmentation, Mixing):
                images, kept = augmentation.mix(images, drawn[:-1])
                shares = F.one_hot(labels, len(self.dataset.classes)).float()
                labels = torch.lerp(shares[1:], shares[:-1], kept.to(shares.device)[:, None])
            elif augmentation.on == "pixels":
                images = augmentation.apply(images, drawn[: len(images)])
        if corners is not None:
            corners = corners[: len(images)]
        inputs = self.preprocess.network_input(images, self.dtype, self.memory_format, corners)
        for augmentation, drawn in zip(self.augmentation, draws, strict=True):
            if isinstance(augmentation, Augmentation) and augmentation.on == "input":
                inputs = augmentation.apply(inputs, drawn[: len(inputs)])
        return inputs, labels

    def _raw_batches(
        self, batches: list[Int64[Tensor, " _"]], generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images of one size, uint8 or floating from 0 to 1, before augmentation; labels."""
        if isinstance(self.dataset, ImageTensors):
            for places in batches:
                here = places.to(self.dataset.images.device)
                yield self.dataset.images[here], self.dataset.labels[here]
        else:
            yield from DataLoader(
                _Fitted(self.dataset, self.preprocess),
                batch_sampler=[places.tolist() for places in batches],
                num_workers=self.num_workers,
                pin_memory=self.device.type == "cuda",
                generator=generator,
            )


@dataclass(frozen=True, eq=False)
class _Fitted(Dataset[tuple[Tensor, int]]):
    """A set's images brought to one size, so that they can be stacked."""

    dataset: ImageSet
    preprocess: Preprocess

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return self.preprocess.resized(image), label


class Loaders(NamedTuple):
    """The three parts of a data set; ``validation`` or ``test`` is None where there is none."""

    train: BatchLoader
    validation: BatchLoader | None
    test: BatchLoader | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.train.dataset.classes

    @property
    def stats(self) -> ChannelStats | None:
        """The channel statistics that images are normalised with."""
        return self.train.stats

    @property
    def image_size(self) -> int:
        """Side of the images that the loaders yield, in pixels."""
        return self.train.preprocess.image_size

    @property
    def preprocess(self) -> Preprocess:
        """The treatment of an image, the same in all three parts."""
        return self.train.preprocess

    def with_preprocess(self, preprocess: Preprocess) -> "Loaders":
        """The same loaders with another treatment of images, in all three parts."""
        return Loaders(
            *(
                None if loader is None else replace(loader, preprocess=preprocess)  # type: ignore[arg-type]
                for loader in self
            )
        )

    def to(
        self,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> "Loaders":
        """The same loaders, making their batches on a device, in a dtype and memory format.

        Images that are held in memory move to the device; None leaves a property as it is.
        """
        where = checked_device(device, "a device of this machine, for example 'cpu' or 'cuda'")
        return Loaders(
            *(
                None if loader is None else _moved(loader, where, dtype, memory_format)  # type: ignore[arg-type]
                for loader in self
            )
        )


def _moved(
    loader: BatchLoader,
    device: torch.device,
    dtype: torch.dtype | None,
    memory_format: torch.memory_format | None,
) -> BatchLoader:
    data = loader.dataset
    if isinstance(data, ImageTensors):
        data = replace(data, images=data.images.to(device), labels=data.labels.to(device))
    return replace(
        loader,
        dataset=data,
        device=device,
        dtype=dtype or loader.dtype,
        memory_format=memory_format or loader.memory_format,
    )


def build_cifar10_loaders(
    root: str | os.PathLike[str] = "data",
    *,
    batch_size: int = 128,
    image_size: int = 227,
    stats: Stats = CIFAR10_STATS,
    augmentation: Augmentations = None,
    validation_fraction: float = 0.1,
    train_images: int | None = None,
    resize: int | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    seed: int = 0,
    download: bool = True,
) -> Loaders:
    """Loaders of CIFAR-10: 50,000 training images, of which some for validation; 10,000 for tests.

    Args:
        root: folder that holds CIFAR-10, or that it is downloaded to (170 MB).
        batch_size: images in a batch, at least 1.
        image_size: side of the images that the network sees, in pixels.
        stats: channel statistics to normalise with, or ``"train"`` to measure them, or
            ``"train_per_image"``: with the mean of the images' own deviations.
        augmentation: random treatments of the training images, one or several, or None.
        validation_fraction: share of the training images kept for validation, from 0 (none) to
            below 1; drawn by ``seed``, with equal shares of each class.
        train_images: use only so many of the training images (the validation share included),
            drawn by ``seed`` with equal shares of each class; None uses all.
        resize: side that images are resized to before the centre crop of ``image_size``, in
            pixels; None is ``image_size``.
        device: where the batches are made.
        num_workers: without use here, since the images are held in memory; as in the other
            builders.
        seed: of the parts, the order and the augmentation.
        download: fetch CIFAR-10 where it is missing.

    Returns:
        The training, validation and test loaders.

    Raises:
        ValueError: an argument is out of its range, or a file is damaged.
        OSError: CIFAR-10 is missing or cannot be downloaded.

    Example:
        >>> from alexnet_lib import build_cifar10_loaders
        >>> loaders = build_cifar10_loaders("data", image_size=67)  # doctest: +SKIP
        >>> images, labels = next(iter(loaders.train))  # doctest: +SKIP
        >>> images.shape  # doctest: +SKIP
        torch.Size([128, 3, 67, 67])
    """
    train, test = cifar10(root, download=download)
    return build_loaders(
        (train, None, test),
        batch_size=batch_size,
        image_size=image_size,
        image_fit="squash",
        stats=stats,
        augmentation=augmentation,
        validation_fraction=validation_fraction,
        train_images=train_images,
        resize=resize,
        device=device,
        num_workers=num_workers,
        seed=seed,
    )


def build_image_folder_loaders(
    root: str | os.PathLike[str],
    *,
    batch_size: int = 128,
    image_size: int = 227,
    image_fit: ImageFit = "crop",
    stats: Stats = "train",
    augmentation: Augmentations = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    train_images: int | None = None,
    resize: int | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    seed: int = 0,
) -> Loaders:
    """Loaders of a folder of images: ``train/`` and ``test/`` of class folders, or these alone.

    Args:
        root: folder with ``train/`` beside ``test/`` or ``val/``, or with the classes' folders,
            which are then split. ``val/`` is the test set, unless there is a ``test/`` too.
        batch_size: images in a batch, at least 1.
        image_size: side of the images that the network sees, in pixels.
        image_fit: ``"crop"`` (shorter side and centre crop) or ``"squash"`` (both sides forced).
        stats: channel statistics to normalise with, or ``"train"`` to measure them on the
            training part, which reads every image once; or ``"train_per_image"``: with the mean of
            the images' own deviations.
        augmentation: random treatments of the training images, one or several, or None.
        validation_fraction: share of the training images kept for validation where the folder has
            no validation part, from 0 (none) to below 1.
        test_fraction: share of all images kept for testing where the folder has no test part,
            from 0 (none) to below 1.
        train_images: use only so many of the training images (the validation share included),
            drawn by ``seed`` in the classes' proportions; None uses all.
        resize: side that images are fitted to before the centre crop of ``image_size``, in
            pixels; None is ``image_size``.
        device: where the batches are made.
        num_workers: processes that decode the files; 0 decodes in this one.
        seed: of the parts, the order and the augmentation.

    Returns:
        The training, validation and test loaders.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an argument is out of its range; the folder holds no images or one class; files
            are not images (they are named).
    """
    return build_loaders(
        image_folder(root),
        batch_size=batch_size,
        image_size=image_size,
        image_fit=image_fit,
        stats=stats,
        augmentation=augmentation,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        train_images=train_images,
        resize=resize,
        device=device,
        num_workers=num_workers,
        seed=seed,
    )


def build_dataset_loaders(
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    *,
    batch_size: int = 128,
    image_size: int = 227,
    image_fit: ImageFit = "crop",
    stats: Stats = "train",
    augmentation: Augmentations = None,
    validation_fraction: float = 0.1,
    train_images: int | None = None,
    resize: int | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    seed: int = 0,
    classes: Iterable[str] | None = None,
) -> Loaders:
    """Loaders of any map-style data set of (image, label): CIFAR-100, FashionMNIST, your own.

    A torchvision data set is best given without a transform: its small images are then decoded
    once. Images are PIL images, arrays ``(H, W, 3)`` or tensors ``(3, H, W)``, uint8 or floating
    from 0 to 1; labels are integers from 0.

    Args:
        train: the training images.
        test: the test images, or None.
        batch_size: images in a batch, at least 1.
        image_size: side of the images that the network sees, in pixels.
        image_fit: ``"crop"`` (shorter side and centre crop) or ``"squash"`` (both sides forced).
        stats: channel statistics to normalise with, or ``"train"`` to measure them on the
            training part, which reads every image once; or ``"train_per_image"``: with the mean of
            the images' own deviations.
        augmentation: random treatments of the training images, one or several, or None.
        validation_fraction: share of the training images kept for validation, from 0 (none) to
            below 1.
        train_images: use only so many of the training images (the validation share included),
            drawn by ``seed`` in the classes' proportions; None uses all.
        resize: side that images are fitted to before the centre crop of ``image_size``, in
            pixels; None is ``image_size``.
        device: where the batches are made.
        num_workers: processes that read the data set; 0 reads in this one.
        seed: of the parts, the order and the augmentation.
        classes: names of the classes; None takes the data set's ``classes``, or the labels'
            numbers.

    Returns:
        The training, validation and test loaders.

    Raises:
        TypeError: a data set has no length, or its items are no pairs.
        ValueError: an argument is out of its range, or a label has no class.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from alexnet_lib import build_dataset_loaders
        >>> data = TensorDataset(torch.rand(40, 3, 8, 8), torch.arange(40) % 4)
        >>> loaders = build_dataset_loaders(data, image_size=67, batch_size=16)
        >>> [len(labels) for images, labels in loaders.train]
        [16, 16, 4]
    """
    train_set = wrap_dataset(train, classes)
    test_set = None if test is None else wrap_dataset(test, train_set.classes)
    return build_loaders(
        (train_set, None, test_set),
        batch_size=batch_size,
        image_size=image_size,
        image_fit=image_fit,
        stats=stats,
        augmentation=augmentation,
        validation_fraction=validation_fraction,
        train_images=train_images,
        resize=resize,
        device=device,
        num_workers=num_workers,
        seed=seed,
    )


def build_shapes_loaders(
    *,
    batch_size: int = 128,
    image_size: int = 67,
    stats: Stats = "train",
    augmentation: Augmentations = None,
    validation_fraction: float = 0.1,
    train_images: int | None = None,
    resize: int | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    seed: int = 0,
) -> Loaders:
    """Loaders of the built-in synthetic set: ten kinds of figures, drawn, no files needed.

    Args:
        batch_size: images in a batch, at least 1.
        image_size: side of the images that the network sees, in pixels.
        stats: channel statistics to normalise with, or ``"train"`` to measure them, or
            ``"train_per_image"``: with the mean of the images' own deviations.
        augmentation: random treatments of the training images, one or several, or None.
        validation_fraction: share of the training images kept for validation, from 0 (none) to
            below 1.
        train_images: use only so many of the training images (the validation share included);
            None uses all.
        resize: side that images are resized to before the centre crop of ``image_size``, in
            pixels; None is ``image_size``.
        device: where the batches are made.
        num_workers: without use here, since the images are held in memory; as in the other
            builders.
        seed: of the parts, the order and the augmentation; the images are the same for each.

    Returns:
        The training, validation and test loaders.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from alexnet_lib import build_shapes_loaders
        >>> loaders = build_shapes_loaders(batch_size=64)
        >>> images, labels = next(iter(loaders.train))
        >>> images.shape, loaders.classes[:3]
        (torch.Size([64, 3, 67, 67]), ('bar', 'bowtie', 'circle'))
    """
    train, test = shapes()
    return build_loaders(
        (train, None, test),
        batch_size=batch_size,
        image_size=image_size,
        image_fit="squash",
        stats=stats,
        augmentation=augmentation,
        validation_fraction=validation_fraction,
        train_images=train_images,
        resize=resize,
        device=device,
        num_workers=num_workers,
        seed=seed,
    )


def build_loaders(
    parts: tuple[ImageSet, ImageSet | None, ImageSet | None],
    *,
    batch_size: int,
    image_size: int,
    image_fit: ImageFit,
    stats: Stats,
    augmentation: Augmentations,
    validation_fraction: float,
    train_images: int | None,
    resize: int | None,
    device: torch.device | str,
    num_workers: int,
    seed: int,
    test_fraction: float = 0.0,
) -> Loaders:
    """Loaders of (training, validation or None, test or None); the arguments are the builders'."""
    train, validation, test = parts
    for name, fraction in (
        ("validation_fraction", validation_fraction),
        ("test_fraction", test_fraction),
    ):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} is {fraction!r}; expected a share from 0 to below 1")
    split = _generator(seed, 0)
    if test is None and test_fraction:
        train, test = _split_off(train, round(test_fraction * len(train)), split)
    if train_images is not None:
        least = len(train.classes)
        if not isinstance(train_images, int) or not least <= train_images <= len(train):
            raise ValueError(
                f"train_images is {train_images!r}; expected {least} (one of each class) to "
                f"{len(train):,}, the training images there are"
            )
        _, train = _split_off(train, train_images, split)
    if validation is None and validation_fraction:
        train, validation = _split_off(train, round(validation_fraction * len(train)), split)
    if not len(train):
        raise ValueError(
            f"validation_fraction is {validation_fraction!r} and test_fraction {test_fraction!r}, "
            "which leaves no images to train on; expected smaller shares, or more images"
        )
    preprocess = Preprocess(image_size if resize is None else resize, image_size, image_fit)
    if stats in ("train", "train_per_image"):
        std: Literal["pixel", "per_image"] = "pixel" if stats == "train" else "per_image"
        stats = compute_channel_stats(pixels_of(train), std=std)
    elif not isinstance(stats, ChannelStats):
        raise ValueError(
            f"stats is {stats!r}; expected a ChannelStats, 'train' or 'train_per_image'"
        )
    if min(stats.std) <= 0:
        raise ValueError(f"stats has the standard deviations {stats.std}; expected all above 0")
    preprocess = replace(preprocess, mean=stats.mean, std=stats.std)

    def loader(part: ImageSet, *, training: bool = False) -> BatchLoader:
        return BatchLoader(
            part,
            preprocess,
            batch_size=batch_size,
            shuffle=training,
            augmentation=_checked(augmentation) if training else (),
            seed=seed,
            num_workers=num_workers,
            stats=stats,
        )

    loaders = Loaders(
        loader(train, training=True),
        None if validation is None or not len(validation) else loader(validation),
        None if test is None or not len(test) else loader(test),
    )
    return loaders.to(device)


def pixels_of(data: ImageSet) -> Tensor | ImageSet:
    """What statistics are measured on: the images in memory, or the data set that reads them."""
    return data.images if isinstance(data, ImageTensors) else data


def _checked(augmentation: Augmentations) -> tuple[AnyAugmentation, ...]:
    if augmentation is None:
        return ()
    chosen = tuple(augmentation) if isinstance(augmentation, Sequence) else (augmentation,)
    for each in chosen:
        if isinstance(each, type) or not isinstance(each, Augmentation | RandomCrop | Mixing):
            raise TypeError(
                f"augmentation has a {type(each).__name__}; expected HorizontalFlip(), "
                "RandomCrop() or another of alexnet_lib.transforms (torchvision's own belong into "
                "the data set)"
            )
    return chosen


def _split_off(data: ImageSet, count: int, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """The rest, and ``count`` images drawn in the classes' proportions; both in their old order."""
    sizes = torch.bincount(data.labels, minlength=len(data.classes))
    # Largest remainders, so that the classes' shares add up to `count` exactly; in integers and
    # stably sorted, so that they are the same on every machine.
    shares = sizes * count // len(data)
    remainders = sizes * count % len(data)
    largest = remainders.argsort(descending=True, stable=True)
    shares[largest[: count - int(shares.sum())]] += 1
    order = torch.randperm(len(data), generator=generator)
    order = order[data.labels[order].argsort(stable=True)]
    drawn = torch.zeros(len(data), dtype=torch.bool)
    for share, places in zip(shares.tolist(), order.split(sizes.tolist()), strict=True):
        drawn[places[:share]] = True
    return data.subset((~drawn).nonzero()[:, 0]), data.subset(drawn.nonzero()[:, 0])


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A generator for one epoch; NumPy's seed sequence mixes the two numbers well."""
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}; expected an integer of at least 0")
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
