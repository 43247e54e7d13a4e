"""Batches of images: preprocessing, augmentation, and the order of an epoch.

A loader's order and augmentation are functions of (seed, epoch, position in the epoch), so they do
not depend on the batch size or the number of workers.
"""

import functools
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet_lib.checks import check_choice, check_integer
from alexnet_lib.data.augmentation import Augmentation, Mixing, On, RandomCrop
from alexnet_lib.data.images import ImageSet, ImageTensors, WrappedDataset, to_unit
from alexnet_lib.data.preprocess import ImageFit, Preprocess
from alexnet_lib.data.sources import Data, Parts, open_parts, split
from alexnet_lib.data.statistics import (
    CIFAR10_STATS,
    ChannelStats,
    PixelStatistics,
    StatsKind,
    measure_pixels,
)
from alexnet_lib.devices import Placement, derived_seed, generator_for, resolve_device

AnyAugmentation = Augmentation | RandomCrop | Mixing
Augmentations = AnyAugmentation | Sequence[AnyAugmentation] | None
Stats = ChannelStats | StatsKind
Batch = tuple[Tensor, Tensor]


@dataclass
class _State:
    """The state of a loader: the epoch of the next pass, and the reader while it is idle."""

    epoch: int = 0
    reader: DataLoader[Any] | None = None


@dataclass(frozen=True, eq=False)
class BatchLoader:
    """Batches of normalised images and their labels, on a device.

    Yields ``(images, labels)``: floating ``(batch, 3, image_size, image_size)`` and int64
    ``(batch,)``, or float32 ``(batch, classes)``, the weights of the classes, if an augmentation
    mixes images. The last batch may be smaller. Each complete pass increments the epoch, which
    changes the order and the augmentation; an interrupted pass changes nothing.

    Args:
        dataset: the images, their labels and the names of the classes.
        preprocess: resize, crop and normalisation.
        batch_size: images in a batch, at least 1.
        shuffle: a new random order in each epoch, instead of that of the data set.
        augmentation: the augmentations in their order, except that those of the network's
            input come last; at most one ``RandomCrop`` and one ``Mixing``.
        seed: for the order and the augmentation.
        placement: device, dtype and memory format of the images.
        num_workers: processes of the loader that read images not in memory; 0 reads in this one.
        stats: the channel statistics that ``preprocess`` normalises with, if known.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: an augmentation has another type.
    """

    dataset: ImageSet
    preprocess: Preprocess
    batch_size: int = 128
    shuffle: bool = False
    augmentation: tuple[AnyAugmentation, ...] = ()
    seed: int = 0
    placement: Placement = Placement()  # noqa: RUF009  (immutable)
    num_workers: int = 0
    stats: ChannelStats | None = None
    _state: _State = field(default_factory=_State, init=False, repr=False)

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_integer("num_workers", self.num_workers, 0)
        for item in self.augmentation:
            if isinstance(item, type) or not isinstance(item, AnyAugmentation):
                raise TypeError(
                    f"augmentation has a {type(item).__name__}; expected HorizontalFlip(), "
                    "RandomCrop() or another of alexnet_lib (torchvision's own belong in the "
                    "data set)"
                )
            if isinstance(item, Augmentation):
                check_choice(f"the 'on' of {item}", item.on, get_args(On))
        for kind in (RandomCrop, Mixing):
            same = [item for item in self.augmentation if isinstance(item, kind)]
            if len(same) > 1:
                raise ValueError(f"augmentation has {same}; expected at most one {kind.__name__}")

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    @property
    def epoch(self) -> int:
        """The epoch of the next pass, counted from 0."""
        return self._state.epoch

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass, counted from 0."""
        self._state.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        yield from self.batches(epoch)
        self.set_epoch(epoch + 1)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on, without reading those before it.

        They do not depend on earlier passes, and do not change the epoch of the next pass.
        """
        return self._batches(epoch, start, self.preprocess)

    def views(self, number: int) -> Iterator[tuple[Iterable[Tensor], Tensor]]:
        """The views of each batch of the next pass, as in ``Preprocess.views``, and its labels."""
        whole = replace(self.preprocess, image_size=self.preprocess.resize, edge=0)
        for images, labels in self._batches(self.epoch, 0, whole):
            yield self.preprocess.views(images, number), labels

    def _batches(self, epoch: int, start: int, preprocess: Preprocess) -> Iterator[Batch]:
        generator = generator_for(self.seed, epoch)
        count = len(self.dataset)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        draws = [augmentation.draw(count, generator) for augmentation in self.augmentation]
        seeds = torch.randint(2**31, (count,), generator=generator)
        positions = [*torch.arange(count).split(self.batch_size)][start:]
        if any(isinstance(item, Mixing) for item in self.augmentation):
            # An image is mixed with the next one of the epoch, which may be in the next batch.
            positions = [torch.cat([batch, (batch[-1:] + 1) % count]) for batch in positions]
        raw_batches = self._raw_batches([(order[batch], seeds[batch]) for batch in positions])
        for batch, (raw, labels) in zip(positions, raw_batches, strict=True):
            yield self._batch(raw, labels, [drawn[batch] for drawn in draws], preprocess)

    def _batch(
        self, raw: list[Tensor], labels: Tensor, draws: list[Tensor], preprocess: Preprocess
    ) -> Batch:
        """One preprocessed and augmented batch; ``raw`` is one tensor, or one for each image."""
        placement = self.placement
        raw = [image.to(placement.device, non_blocking=True) for image in raw]
        labels = labels.to(placement.device, non_blocking=True)
        if len(raw) > 1 or not preprocess.only_enlarges(*raw[0].shape[-2:]):
            raw = [preprocess.resized(image) for image in raw]
        images = raw[0] if len(raw) == 1 else torch.stack([*map(to_unit, raw)])
        corners = None
        for augmentation, drawn in zip(self.augmentation, draws, strict=True):
            if isinstance(augmentation, RandomCrop):
                corners = augmentation.corners(drawn, preprocess.margin)
            elif isinstance(augmentation, Mixing):
                if not isinstance(self.dataset, ImageTensors):
                    # Other batches may have images of other sizes, and the rounding of a rectangle
                    # must not depend on the batch.
                    images = preprocess.resized(images)
                images, kept = augmentation.mix(images, drawn[:-1])
                weights = F.one_hot(labels, len(self.dataset.classes)).float()
                labels = torch.lerp(weights[1:], weights[:-1], kept.to(weights.device)[:, None])
            elif augmentation.on != "input":
                if augmentation.on == "resized":
                    images = preprocess.resized(images)
                images = augmentation.apply(images, drawn[: len(images)])
        corners = None if corners is None else corners[: len(images)]
        inputs = preprocess.network_input(images, placement.dtype, placement.memory_format, corners)
        for augmentation, drawn in zip(self.augmentation, draws, strict=True):
            if isinstance(augmentation, Augmentation) and augmentation.on == "input":
                inputs = augmentation.apply(inputs, drawn[: len(inputs)])
        return inputs, labels

    def _raw_batches(self, batches: list[Batch]) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Images before augmentation, uint8 or floating from 0 to 1, and their labels."""
        if isinstance(self.dataset, ImageTensors):
            for indices, _ in batches:
                selected = indices.to(self.dataset.images.device)
                yield [self.dataset.images[selected]], self.dataset.labels[selected]
            return
        # A reader is used by one pass at a time, and keeps its processes for the next.
        reader, self._state.reader = self._state.reader, None
        if reader is None:
            reader = DataLoader(
                _Batches(self.dataset, self.preprocess),
                batch_size=None,
                sampler=[],
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                pin_memory=self.placement.device.type == "cuda",
                generator=torch.Generator(),  # instead of the global one
            )
        sampler: Any = reader.sampler
        sampler[:] = [[*zip(i.tolist(), seeds.tolist(), strict=True)] for i, seeds in batches]
        try:
            yield from reader
        finally:
            self._state.reader = reader


@dataclass(frozen=True, eq=False)
class _Batches(Dataset[tuple[list[Tensor], Tensor]]):
    """Batches of a set by (index, seed), with images resized if that makes them smaller."""

    dataset: ImageSet
    preprocess: Preprocess

    def __getitem__(self, batch: list[tuple[int, int]]) -> tuple[list[Tensor], Tensor]:
        images, labels = [], []
        for index, seed in batch:
            user_code = isinstance(self.dataset, WrappedDataset)  # which may be random
            with _global_generators(seed) if user_code else nullcontext():
                image, label = self.dataset[index]
            images.append(self.preprocess.shrunk(image))
            labels.append(label)
        alike = len({(image.shape, image.dtype) for image in images}) == 1
        return [torch.stack(images)] if alike else images, torch.tensor(labels)


@contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Seeds the CPU's global generators, which a data set may use, and restores them afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class Loaders(NamedTuple):
    """The loaders of the three parts; ``validation`` or ``test`` is None if it does not exist."""

    train: BatchLoader
    validation: BatchLoader | None
    test: BatchLoader | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.train.dataset.classes

    @property
    def stats(self) -> ChannelStats | None:
        """The channel statistics for the normalisation."""
        return self.train.stats

    @property
    def image_size(self) -> int:
        """Side of the network's input, in pixels."""
        return self.train.preprocess.image_size

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of an image, the same in all three parts."""
        return self.train.preprocess

    def to(
        self,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> "Loaders":
        """The same loaders, with batches on a device, in a dtype and memory format.

        Images in memory move to the device; None keeps a property.
        """
        device, old = resolve_device(device), self.train.placement
        placement = Placement(device, dtype or old.dtype, memory_format or old.memory_format)

        def moved(part: BatchLoader) -> BatchLoader:
            return replace(part, dataset=_moved(part.dataset, device), placement=placement)

        return Loaders(moved(self.train), *(part and moved(part) for part in self[1:]))


def _moved(data: ImageSet, device: torch.device) -> ImageSet:
    if not isinstance(data, ImageTensors):
        return data
    return replace(data, images=data.images.to(device), labels=data.labels.to(device))


@dataclass(frozen=True)
class Treatment:
    """Preprocessing, augmentation and channel statistics, as plain data."""

    preprocess: Preprocess
    augmentation: tuple[AnyAugmentation, ...] = ()
    stats: ChannelStats | None = None


def assemble_loaders(
    parts: Parts,
    choose_treatment: Callable[[Callable[[], PixelStatistics]], Treatment],
    *,
    batch_size: int,
    seed: int,
    num_workers: int,
    placement: Placement,
    **sizes: Any,
) -> Loaders:
    """Split, statistics, treatment and loaders, for all callers.

    ``choose_treatment`` is called once, with a function that measures the training images on its
    first call. The other arguments are those of ``build_loaders``; ``sizes`` those of ``split``.
    """
    parts = split(parts, seed=seed, **sizes)

    @functools.cache
    def measure() -> PixelStatistics:
        # The items of a random data set depend on the seed here too.
        with _global_generators(derived_seed(seed) % 2**32):
            return measure_pixels(parts.train)

    treatment = choose_treatment(measure)
    train = BatchLoader(
        _moved(parts.train, placement.device),
        treatment.preprocess,
        batch_size=batch_size,
        shuffle=True,
        augmentation=treatment.augmentation,
        seed=seed,
        placement=placement,
        num_workers=num_workers,
        stats=treatment.stats,
    )
    validation, test = (
        None
        if data is None
        else replace(train, dataset=_moved(data, placement.device), shuffle=False, augmentation=())
        for data in parts[1:]
    )
    return Loaders(train, validation, test)


def build_loaders(
    data: Data,
    *,
    batch_size: int = 128,
    image_size: int = 227,
    resize: int | None = None,
    image_fit: ImageFit = "crop",
    stats: Stats = "pixel",
    augmentation: Augmentations = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    train_images: int | None = None,
    classes: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    seed: int = 0,
) -> Loaders:
    """Loaders of training, validation and test images: of a folder, a data set, or a built-in one.

    A folder contains ``train/`` and ``test/`` or ``val/``, each with a folder of images for every
    class, or only the folders of the classes, which are then split. ``val/`` is the test set,
    unless there is also a ``test/``. A data set is map-style and yields (image, label): PIL images,
    arrays ``(H, W, 3)`` or tensors ``(3, H, W)``, uint8 or floating from 0 to 1, and integers from
    0. Small images of one size, in a folder or in a torchvision data set without a transform, are
    decoded once and kept in memory.

    Args:
        data: ``"shapes"``, the built-in synthetic images; ``"cifar10"``, in the folder ``data``,
            downloaded if it is missing; the path of a folder with images or with CIFAR-10's files;
            a data set of training images; or a pair of data sets, training and test images.
        batch_size: images in a batch, at least 1.
        image_size: side of the network's input, in pixels.
        resize: side of the images before the crop, in pixels; None is ``image_size``.
        image_fit: ``"crop"`` scales the shorter side and crops, ``"squash"`` scales both sides.
        stats: a ``ChannelStats`` for the normalisation, or ``"pixel"`` or ``"per_image"`` to
            measure the training images, as ``compute_channel_stats`` does.
        augmentation: one or several augmentations of the training images, or None.
        validation_fraction: fraction of the training images for a missing validation part, from 0
            to below 1; stratified, as are the test part and ``train_images``.
        test_fraction: fraction of all images for a missing test part, from 0 to below 1.
        train_images: number of training images to use, with those for validation; None uses all.
        classes: names of the classes of a data set; None takes its ``classes``, or their numbers.
        device: of the batches.
        num_workers: processes that read images that are not in memory; 0 reads in this one.
        seed: for the split, the order and the augmentation.

    Raises:
        FileNotFoundError: there is no such folder.
        TypeError: ``data`` has another type, or its items are not pairs.
        ValueError: an argument is out of its range; the folder has no images or one class; files
            are not images (they are named); a label has no class.
        OSError: CIFAR-10 cannot be downloaded.

    Example:
        >>> from alexnet_lib import build_loaders
        >>> loaders = build_loaders("shapes", image_size=67, batch_size=64)
        >>> images, labels = next(iter(loaders.train))
        >>> images.shape, loaders.classes[:3]
        (torch.Size([64, 3, 67, 67]), ('bar', 'bowtie', 'circle'))
    """
    preprocess = Preprocess(image_size if resize is None else resize, image_size, image_fit)
    if not isinstance(stats, ChannelStats) and stats not in get_args(StatsKind):
        raise ValueError(f"stats is {stats!r}; expected a ChannelStats, 'pixel' or 'per_image'")
    if not isinstance(augmentation, Sequence):
        augmentation = () if augmentation is None else (augmentation,)

    def choose_treatment(measure: Callable[[], PixelStatistics]) -> Treatment:
        values = stats if isinstance(stats, ChannelStats) else measure().channel_stats(stats)
        if min(values.std) <= 0:
            raise ValueError(
                f"stats has the standard deviations {values.std}; expected all above 0"
            )
        normalised = replace(preprocess, mean=values.mean, std=values.std)
        return Treatment(normalised, tuple(augmentation), values)

    return assemble_loaders(
        open_parts(data, classes=classes),
        choose_treatment,
        train_images=train_images,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        placement=Placement(resolve_device(device)),
    )


def build_cifar10_loaders(
    root: str | os.PathLike[str] = "data",
    *,
    batch_size: int = 128,
    image_size: int = 227,
    resize: int | None = None,
    stats: Stats = CIFAR10_STATS,
    augmentation: Augmentations = None,
    validation_fraction: float = 0.1,
    train_images: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    download: bool = True,
) -> Loaders:
    """Loaders of CIFAR-10: 50,000 training images, some of them for validation; 10,000 for testing.

    Args:
        root: folder of CIFAR-10, or to download it to (170 MB).
        batch_size: as in ``build_loaders``, and so are the other arguments.
        image_size: side of the network's input, in pixels.
        resize: side of the images before the crop, in pixels; None is ``image_size``.
        stats: channel statistics, or ``"pixel"`` or ``"per_image"`` to measure them.
        augmentation: one or several augmentations of the training images, or None.
        validation_fraction: fraction of the training images for validation.
        train_images: number of training images to use; None uses all.
        device: of the batches.
        seed: for the split, the order and the augmentation.
        download: download CIFAR-10 if it is missing.

    Raises:
        ValueError: an argument is out of its range, or a file is damaged.
        OSError: CIFAR-10 is missing or cannot be downloaded.

    Example:
        >>> from alexnet_lib import build_cifar10_loaders
        >>> loaders = build_cifar10_loaders("data", image_size=67)  # doctest: +SKIP
        >>> print(loaders.stats)  # doctest: +SKIP
        mean 0.4914, 0.4822, 0.4465; std 0.2470, 0.2435, 0.2616 (50,000 images)
    """
    from alexnet_lib.data.cifar10 import cifar10  # loads torchvision

    train, test = cifar10(root, download=download)
    return build_loaders(
        Parts(train, None, test),
        batch_size=batch_size,
        image_size=image_size,
        resize=resize,
        stats=stats,
        augmentation=augmentation,
        validation_fraction=validation_fraction,
        train_images=train_images,
        device=device,
        seed=seed,
    )
