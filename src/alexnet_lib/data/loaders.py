"""Batches of images: preprocessing, augmentation, and the order of an epoch.

A loader's order and augmentation are functions of (seed, epoch, position in the epoch), so they do
not depend on the batch size or the number of workers.
"""

import functools
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from alexnet_lib.checks import (
    as_integer,
    check_choice,
    check_integer,
    check_number,
    shown,
    type_name,
)
from alexnet_lib.data.augmentation import (
    Augmentation,
    ColorNoise,
    On,
    RandomCrop,
    RandomShift,
    TrivialAugment,
)
from alexnet_lib.data.folders import (
    BAD_LIMIT,
    OnBadImage,
    PartNames,
    check_bad_images,
)
from alexnet_lib.data.images import EncodedImages, ImageSet, ImageTensors, as_list, to_unit
from alexnet_lib.data.preprocess import Decode, ImageFit, Preprocess
from alexnet_lib.data.reading import (
    Failure,
    ImageReader,
    RawBatch,
    Requests,
    Workers,
    read_in_threads,
    seeded_generators,
)
from alexnet_lib.data.sources import Data, Parts, open_parts, split
from alexnet_lib.data.statistics import (
    CIFAR10_STATS,
    ChannelStats,
    PixelStatistics,
    StatsKind,
    measure_pixels,
)
from alexnet_lib.devices import (
    MEMORY_FORMATS,
    MOST_WORKERS,
    Placement,
    derived_seed,
    generator_for,
    memory_explained,
    processes,
    resolve_device,
)
from alexnet_lib.kernels import cpu
from alexnet_lib.text import format_table, html_table

AnyAugmentation = Augmentation | RandomCrop
Augmentations = AnyAugmentation | Sequence[AnyAugmentation] | None
Stats = ChannelStats | StatsKind
Batch = tuple[Tensor, Tensor]

# Images: more than any machine has memory for.
MAX_BATCH_SIZE = 1_000_000
_LOWER = "lower batch_size, image_size or resize"


@dataclass
class _State:
    """What changes in a loader; worker processes, kept while they are idle, stay out of copies."""

    epoch: int = 0
    bad_images: dict[str, str] = field(default_factory=dict)
    workers: Workers | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "bad_images": {**self.bad_images}, "workers": None}


class _Plan(NamedTuple):
    """What is drawn for an epoch: a row for each of its positions.

    All that batches are computed with is on their device from here on: a copy for each of them
    would wait for it.
    """

    order: Tensor  # index of the image, where those in memory are
    seeds: Tensor  # for random data sets, on the CPU
    labels: Tensor
    draws: list[Tensor]  # for each augmentation
    mean_and_std: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class BatchLoader:
    """Batches of normalised images and their labels, on a device.

    Yields ``(images, labels)``: floating ``(batch, C, image_size, image_size)`` and int64
    ``(batch,)``. The last batch may be smaller.

    A pass is complete when it has yielded its last batch. That increments the epoch, which changes
    the order and the augmentation. A pass that is left earlier changes nothing, and the next one
    repeats it: after ``for batch in islice(loader, 10)``, for example, call ``set_epoch``.

    Image files are read in threads while the caller computes, or in worker processes. Data sets of
    users are read in the caller's thread, or in worker processes.

    On a GPU, what is drawn for a pass is copied there at its start. After that, batches of images
    in memory copy nothing and wait for nothing (but with ``TrivialAugment``); those of others are
    copied from pinned memory, without waiting.

    Args:
        dataset: the images, their labels and the names of the classes.
        preprocess: resize, crop and normalisation.
        batch_size: images in a batch, at least 1.
        shuffle: a new random order in each epoch, instead of that of the data set.
        augmentation: the augmentations in their order, except that those of the network's
            input come last; at most one ``RandomCrop``.
        seed: for the order and the augmentation.
        placement: device, dtype and memory format of the images.
        num_workers: processes of the loader that read images not in memory; 0 reads in this one.
        stats: the channel statistics that ``preprocess`` normalises with, if known.
        drop_last: leave out the last batch of an epoch if it is smaller.
        balanced: draw as many images as there are with replacement, each class with the same
            probability; classes without images are never drawn. Needs ``shuffle``.
        on_bad_image: what to do about an image that cannot be read. ``"stop"`` raises its error.
            ``"skip"`` leaves it out of its batch, and a batch of which nothing remains out of the
            epoch, with one warning for each image.
        bad_image_limit: fraction of the images, from 0 to 1: more bad ones are an error. Unless it
            is 0, one is allowed.
        share: ``(i, n)``: of each batch, the part number i, from 0, of n parts of consecutive
            images, whose sizes differ by at most one; ``batch_size`` and ``len`` are those of the
            whole batches. A part without images is an empty batch. None: whole batches, which are
            refused in one of several processes of ``torch.distributed``, since each of them would
            get the same ones; ``(0, 1)`` is for a process that is to have them all.

    Raises:
        ValueError: an argument is out of its range, or does not fit the images; this is one of
            several processes and has no share.
        TypeError: ``dataset``, ``preprocess`` or an augmentation has another type.
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
    drop_last: bool = False
    balanced: bool = False
    on_bad_image: OnBadImage = "stop"
    bad_image_limit: float = 0.1
    share: tuple[int, int] | None = None
    _state: _State = field(default_factory=_State, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, ImageSet):
            raise TypeError(
                f"dataset is a {type_name(self.dataset)}; expected the images of a part, as "
                "build_loaders(data) makes them from a data set or a folder"
            )
        if not isinstance(self.preprocess, Preprocess):
            raise TypeError(f"preprocess is a {type_name(self.preprocess)}; expected a Preprocess")
        plain = {
            "batch_size": check_integer("batch_size", self.batch_size, 1, MAX_BATCH_SIZE),
            "seed": check_integer("seed", self.seed, 0),
            "num_workers": check_integer("num_workers", self.num_workers, 0, MOST_WORKERS),
            "bad_image_limit": check_number("bad_image_limit", self.bad_image_limit, BAD_LIMIT),
        }
        for name in ("shuffle", "drop_last", "balanced"):
            value = getattr(self, name)
            plain[name] = bool(value) if isinstance(value, np.bool_) else value
            check_choice(name, plain[name], (True, False))
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # the class is frozen
        check_choice("on_bad_image", self.on_bad_image, get_args(OnBadImage))
        if self.share is not None:
            object.__setattr__(self, "share", _checked_share(self.share, self.batch_size))
        if not isinstance(self.placement, Placement):
            raise TypeError(f"placement is a {type_name(self.placement)}; expected a Placement")
        if not isinstance(self.stats, ChannelStats | None):
            raise TypeError(f"stats is a {type_name(self.stats)}; expected a ChannelStats or None")
        self._check_augmentation()
        self._check_images()

    def _check_augmentation(self) -> None:
        channels = self.dataset.channels
        if not isinstance(self.augmentation, tuple | list):
            raise TypeError(
                f"augmentation is a {type_name(self.augmentation)}; expected a tuple of "
                "augmentations"
            )
        for item in self.augmentation:
            if isinstance(item, type) or not isinstance(item, AnyAugmentation):
                raise TypeError(
                    f"augmentation has a {type_name(item)}; expected HorizontalFlip(), "
                    "RandomCrop() or another of alexnet_lib (torchvision's own belong in the "
                    "data set)"
                )
            if isinstance(item, Augmentation):
                check_choice(f"the 'on' of {item}", item.on, get_args(On))
            if isinstance(item, TrivialAugment) and channels not in {1, 3}:
                raise ValueError(
                    f"augmentation has {item}, which is for images of 1 or 3 channels, but the "
                    f"images have {channels}; expected an augmentation without it"
                )
            if isinstance(item, ColorNoise) and len(item.components.std) != channels:
                raise ValueError(
                    f"augmentation has ColorNoise of {len(item.components.std)} channels, but the "
                    f"images have {channels}; expected compute_color_components of these images"
                )
        crops = [item for item in self.augmentation if isinstance(item, RandomCrop)]
        if len(crops) > 1:
            raise ValueError(f"augmentation has {crops}; expected at most one RandomCrop")

    def _check_images(self) -> None:
        count, channels = len(self.dataset), self.dataset.channels
        if self.preprocess.channels != channels:
            raise ValueError(
                f"preprocess is for {self.preprocess.channels} channels, the length of its mean, "
                f"but the images have {channels}; expected the same number: give both a mean and "
                "a std of that length, or build_loaders(data, channels=...)"
            )
        if not count:
            raise ValueError("dataset has no images; expected at least one")
        if self.drop_last and count < self.batch_size:
            raise ValueError(
                f"drop_last is True, but batch_size is {self.batch_size} and there are {count} "
                f"images, so that no batch is left; expected a batch_size of at most {count}, or "
                "drop_last=False"
            )
        if self.balanced and not self.shuffle:
            raise ValueError(
                "balanced is True, but shuffle is False; expected shuffle=True, since a balanced "
                "epoch is a random draw"
            )

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __repr__(self) -> str:
        _, images, _, *words = self._cells("")
        words = [f"{images} images in batches of {self.batch_size}", *filter(None, words)]
        return f"BatchLoader({', '.join(words)})"

    def _cells(self, part: str) -> tuple[str, ...]:
        """The line of the table of ``Loaders``."""
        side = self.preprocess.image_size
        order = "balanced" if self.balanced else "shuffled" if self.shuffle else ""
        names = ", ".join(type(augmentation).__name__ for augmentation in self.augmentation)
        size = f"{self.dataset.channels}x{side}x{side}"
        return (
            part,
            f"{len(self.dataset):,}",
            f"{len(self):,} of {self.batch_size}",
            size,
            order,
            names,
        )

    @property
    def epoch(self) -> int:
        """The epoch of the next pass, counted from 0."""
        return self._state.epoch

    @property
    def bad_images(self) -> dict[str, str]:
        """The images that could not be read so far, as files or items, each with the reason."""
        return {**self._state.bad_images}

    def add_bad_images(self, bad_images: Mapping[str, str]) -> None:
        """Counts images that another loader of the same images could not read."""
        self._state.bad_images |= bad_images
        self._check_bad_images()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass, an integer counted from 0."""
        self._state.epoch = check_integer("epoch", epoch, 0)

    def state(self) -> dict[str, Any]:
        """The epoch and the bad images, as plain data, which ``set_state`` takes."""
        return {"epoch": self.epoch, "bad_images": self.bad_images}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from the state of a loader of the same images."""
        self.set_epoch(state["epoch"])
        self._state.bad_images = {**state["bad_images"]}

    def __iter__(self) -> Iterator[Batch]:
        epoch, complete = self.epoch, False
        with closing(self._numbered_batches(epoch, 0, self.preprocess)) as batches:
            for number, batch in batches:
                if number == len(self) - 1:
                    # Before the last batch is yielded: islice and zip do not ask for more.
                    complete = True
                    self.set_epoch(epoch + 1)
                yield batch
        if not complete:  # nothing remained of the last batch
            self.set_epoch(epoch + 1)

    def batches(
        self, epoch: int, start: int = 0, preprocess: Preprocess | None = None
    ) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on, without reading those before it.

        They do not depend on earlier passes, and do not change the epoch of the next pass.
        ``preprocess`` takes the place of the loader's.
        """
        return (batch for _, batch in self.numbered_batches(epoch, start, preprocess))

    def numbered_batches(
        self, epoch: int, start: int = 0, preprocess: Preprocess | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """The same with their numbers; batches of which no image can be read are missing."""
        epoch, start = check_integer("epoch", epoch, 0), check_integer("start", start, 0)
        return self._numbered_batches(epoch, start, preprocess or self.preprocess)

    def views(self, number: int) -> Iterator[tuple[Iterable[Tensor], Tensor]]:
        """The views of each batch of the next pass, as in ``Preprocess.views``, and its labels."""
        whole = replace(self.preprocess, image_size=self.preprocess.resize, edge=0)
        for _, (images, labels) in self._numbered_batches(self.epoch, 0, whole):
            yield self.preprocess.views(images, number), labels

    def _plan(self, epoch: int, preprocess: Preprocess) -> _Plan:
        generator = generator_for(self.seed, epoch)
        count = len(self.dataset)
        if self.balanced:
            order = _balanced_order(self.dataset.labels.cpu(), generator)
        elif self.shuffle:
            order = torch.randperm(count, generator=generator)
        else:
            order = torch.arange(count)
        draws = [augmentation.draw(count, generator) for augmentation in self.augmentation]
        seeds = torch.randint(2**31, (count,), generator=generator)
        data, device = self.dataset, self.placement.device
        if isinstance(data, ImageTensors):
            order = order.to(data.images.device)
        return _Plan(
            order,
            seeds,
            data.labels[order.to(data.labels.device)].to(device),
            [drawn.to(device) for drawn in draws],
            preprocess.mean_and_std(device),
        )

    def _numbered_batches(
        self, epoch: int, start: int, preprocess: Preprocess
    ) -> Generator[tuple[int, Batch], None, None]:
        """Preprocessed and augmented batches with their numbers in the epoch."""
        if self.share is None and (number := processes()) > 1:
            raise ValueError(
                f"this is one of {number} processes of torch.distributed, each of which would get "
                "the same batches; expected loaders.share(torch.distributed.get_rank(), "
                f"{number}), or loaders.share(0, 1) where one process is to have all images"
            )
        plan, count, size = self._plan(epoch, preprocess), len(self.dataset), self.batch_size
        wanted = [
            self._part(first, min(first + size, count))
            for first in range(start * size, len(self) * size, size)
        ]
        # Only a last batch of fewer images than there are parts has a part without any.
        last = [part for part in wanted if part.start == part.stop]
        wanted = wanted[: len(wanted) - len(last)]
        with closing(self._raw_batches(plan, wanted)) as raw_batches:
            for number, (batch, raw) in enumerate(zip(wanted, raw_batches, strict=True), start):
                positions: slice | Tensor = batch
                if raw.failures:
                    self._note(raw.failures)
                    positions = torch.arange(batch.start, batch.stop)[raw.kept]
                if len(raw.images):
                    yield number, self._finished(raw.images, positions, plan, preprocess)
                elif self.share is not None and self.share[1] > 1:
                    yield number, self._empty(plan, preprocess)
        if last:
            yield len(self) - 1, self._empty(plan, preprocess)

    def _part(self, first: int, end: int) -> slice:
        """The positions of a batch that are this loader's."""
        i, n = self.share or (0, 1)
        count = end - first
        begin, end = first + count * i // n, first + count * (i + 1) // n
        return slice(begin, end)

    def _empty(self, plan: _Plan, preprocess: Preprocess) -> Batch:
        """A batch without images."""
        placement, side = self.placement, preprocess.image_size
        shape = (0, self.dataset.channels, side, side)
        images = torch.empty(shape, dtype=placement.dtype, device=placement.device)
        return images, plan.labels[:0]

    def _raw_batches(self, plan: _Plan, wanted: list[slice]) -> Generator[RawBatch, None, None]:
        """The images at the wanted positions, batch by batch."""
        if isinstance(self.dataset, ImageTensors):
            for batch in wanted:
                images = self.dataset.images[plan.order[batch]]
                yield RawBatch(images, [*range(len(images))], [])
            return
        requests = Requests(plan.order, plan.seeds, wanted)
        # Before the first image: a resize by torch can differ from the kernel's in rounding, and an
        # image must not depend on what was read before it.
        cpu.load()
        if self.num_workers:
            yield from self._read_in_workers(requests)
        elif isinstance(self.dataset, EncodedImages):
            yield from read_in_threads(self._reader, requests)
        else:  # user code, which may not expect threads
            yield from map(self._reader.read_batch, requests)

    @property
    def _reader(self) -> ImageReader:
        pin_memory = self.placement.device.type == "cuda"
        return ImageReader(self.dataset, self.preprocess, pin_memory=pin_memory)

    def _read_in_workers(self, requests: Requests) -> Iterator[RawBatch]:
        # Processes serve one pass at a time.
        workers, self._state.workers = self._state.workers, None
        if workers is None:
            workers = Workers(self._reader, self.num_workers)
        try:
            yield from workers.read(requests)
        finally:
            self._state.workers = workers

    def _note(self, failures: list[Failure]) -> None:
        """Remembers images that cannot be read; raises if that is to stop the pass."""
        bad = self._state.bad_images
        for failure in failures:
            if self.on_bad_image == "stop" or not failure.is_of_the_image:
                failure.throw()
            if failure.name not in bad:
                bad[failure.name] = failure.reason
                text = f"{failure.name} cannot be read and is left out: {failure.reason}"
                warnings.warn(text, stacklevel=2)
        self._check_bad_images()

    def _check_bad_images(self) -> None:
        problems = [f"{name}: {reason}" for name, reason in self._state.bad_images.items()]
        check_bad_images(problems, len(self.dataset), self.bad_image_limit)

    def _finished(
        self,
        raw: Tensor | list[Tensor],
        positions: slice | Tensor,
        plan: _Plan,
        preprocess: Preprocess,
    ) -> Batch:
        """One preprocessed and augmented batch; ``raw`` is one tensor, or one for each image."""
        with memory_explained(f"a batch of {len(raw)} images", _LOWER):
            return self._computed(raw, positions, plan, preprocess)

    def _computed(
        self,
        raw: Tensor | list[Tensor],
        positions: slice | Tensor,
        plan: _Plan,
        preprocess: Preprocess,
    ) -> Batch:
        placement = self.placement
        draws = [drawn[positions] for drawn in plan.draws]
        # A copy: saving a part of the epoch's labels would save all of them.
        labels = plan.labels[positions].clone()
        if isinstance(raw, Tensor):
            images = self._sent(raw)
            if not preprocess.only_enlarges(*images.shape[-2:]):
                images = preprocess.resized(images)
        else:
            sent = map(self._sent, raw)
            images = torch.stack([to_unit(preprocess.resized(image)) for image in sent])
        corners, in_memory = None, isinstance(self.dataset, ImageTensors)
        for augmentation, drawn in zip(self.augmentation, draws, strict=True):
            if isinstance(augmentation, RandomCrop):
                corners = augmentation.corners(drawn, preprocess.margin)
            elif augmentation.on != "input":
                # Of images that are read, other batches have some of other sizes, and a shift is a
                # number of pixels.
                sizes = isinstance(augmentation, RandomShift) and not in_memory
                if augmentation.on == "resized" or sizes:
                    images = preprocess.resized(images)
                images = augmentation.apply(images, drawn)
        inputs = preprocess.network_input(
            images, placement.dtype, placement.memory_format, corners, plan.mean_and_std
        )
        for augmentation, drawn in zip(self.augmentation, draws, strict=True):
            if isinstance(augmentation, Augmentation) and augmentation.on == "input":
                inputs = augmentation.apply(inputs, drawn)
        return inputs, labels

    def _sent(self, images: Tensor) -> Tensor:
        """Images on the device of the batches, without waiting for it where that is possible."""
        device = self.placement.device
        if device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()  # of those that are read, most are in pinned memory
        return images.to(device, non_blocking=True)


def _checked_share(share: Any, batch_size: int) -> tuple[int, int]:
    """A share of two plain integers."""
    numbers = [as_integer(number) for number in as_list(share) or ()]
    number, parts = numbers if len(numbers) == 2 else (None, None)
    if number is None or parts is None or not 0 <= number < parts:
        raise ValueError(
            f"share is {shown(share)}; expected the number of a part, from 0, and how many there "
            "are, for example (0, 2)"
        )
    if parts > batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, of which {parts} processes have no image each; expected "
            f"at least {parts}"
        )
    return number, parts


def _balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many indices as there are images: a class for each, then one of its images."""
    sizes = torch.bincount(labels)
    present = sizes.nonzero()[:, 0]
    drawn = present[torch.randint(len(present), (len(labels),), generator=generator)]
    share = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    first = sizes.cumsum(0) - sizes
    return labels.argsort(stable=True)[first[drawn] + (share * sizes[drawn]).long()]


class Loaders(NamedTuple):
    """The loaders of the three parts; ``validation`` or ``test`` is None if it does not exist.

    Prints as a table, and shows as one in a notebook.
    """

    train: BatchLoader
    validation: BatchLoader | None
    test: BatchLoader | None

    def __repr__(self) -> str:
        return "\n".join(format_table(self._rows(), right=(1,)))

    def _repr_html_(self) -> str:
        return html_table(self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        header = ("part", "images", "batches", "input", "order", "augmentation")
        loaders = [(name, loader) for name, loader in self._asdict().items() if loader is not None]
        return [header, *(loader._cells(name) for name, loader in loaders)]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.train.dataset.classes

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return self.train.dataset.channels

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
        floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        if dtype is not None and not floating:
            raise ValueError(f"dtype is {shown(dtype)}; expected a floating dtype, or None")
        check_choice("memory_format", memory_format, (None, *MEMORY_FORMATS.values()))
        placement = Placement(device, dtype or old.dtype, memory_format or old.memory_format)

        def moved(part: BatchLoader) -> BatchLoader:
            return replace(part, dataset=_moved(part.dataset, device), placement=placement)

        return self._each(moved)

    def share(self, number: int, parts: int) -> "Loaders":
        """The same loaders, with a part of each batch: for one of several processes.

        ``train_one_epoch`` and ``evaluate`` of a share compute with all processes of
        ``torch.distributed`` together, each of which calls them. ``fit`` shares by itself.

        Args:
            number: of the part, from 0; that of a process is ``torch.distributed.get_rank()``.
            parts: how many there are: the number of processes. With 1, a process has all images.

        Raises:
            ValueError: there is no such part, or a batch has fewer images than there are parts.

        Example:
            >>> from alexnet_lib import build_loaders
            >>> loaders = build_loaders("shapes", image_size=67, batch_size=64)
            >>> images, labels = next(iter(loaders.share(0, 3).train))
            >>> len(images)
            21
        """

        def shared(part: BatchLoader) -> BatchLoader:
            loader = replace(part, share=(number, parts))
            object.__setattr__(loader, "_state", part._state)  # the class is frozen
            return loader

        return self._each(shared)

    def _each(self, changed: Callable[[BatchLoader], BatchLoader]) -> "Loaders":
        return Loaders(changed(self.train), *(part and changed(part) for part in self[1:]))


def _moved(data: ImageSet, device: torch.device) -> ImageSet:
    if not isinstance(data, ImageTensors):
        return data
    lower = "lower train_images, or choose another device"
    with memory_explained(f"the {len(data)} images of data on {device}", lower):
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
    drop_last: bool = False,
    balanced: bool = False,
    stats_images: int | None = 2000,
    on_bad_image: OnBadImage = "stop",
    bad_image_limit: float = 0.1,
    **sizes: Any,
) -> Loaders:
    """Split, statistics, treatment and loaders, for all callers.

    ``choose_treatment`` is called once, with a function that measures the training images on its
    first call. The other arguments are those of ``build_loaders``; ``sizes`` those of ``split``.
    """
    sample = check_integer("stats_images", stats_images, 1, optional=True)
    parts = split(parts, seed=seed, **sizes)

    @functools.cache
    def measure() -> PixelStatistics:
        skip_bad = on_bad_image == "skip"
        # The items of a random data set depend on the seed here too.
        with seeded_generators(derived_seed(seed) % 2**32):
            return measure_pixels(parts.train, sample=sample, seed=seed, skip_bad=skip_bad)

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
        drop_last=drop_last,
        balanced=balanced,
        on_bad_image=on_bad_image,
        bad_image_limit=bad_image_limit,
    )
    validation, test = (
        None
        if data is None
        else replace(
            train,
            dataset=_moved(data, placement.device),
            augmentation=(),
            shuffle=False,
            drop_last=False,
            balanced=False,
        )
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
    parts: PartNames | None = None,
    channels: int | None = None,
    background: str = "white",
    decode: Decode = "reduced",
    stats_images: int | None = 2000,
    drop_last: bool = False,
    balanced: bool = False,
    on_bad_image: OnBadImage = "stop",
    bad_image_limit: float = 0.1,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    seed: int = 0,
) -> Loaders:
    """Loaders of training, validation and test images: of a folder, a data set, or a built-in one.

    A folder contains ``train/`` and ``test/`` or ``val/``, each with a folder of images for every
    class, or only the folders of the classes, which are then split. ``val/`` is the test set,
    unless there is also a ``test/``. Other usual names of parts are known. A CSV file has a line
    of image,label for each image. A data set is map-style; its items are pairs (image, label), or
    mappings with these keys: PIL images, arrays ``(H, W, C)`` or tensors ``(C, H, W)``, uint8 or
    floating from 0 to 1; and integers from 0, or names of classes. Small images of one size, in a
    folder, in shards or in a data set of torchvision without a transform, are decoded once and kept
    in memory, if they take up to 2 GiB.

    Args:
        data: ``"shapes"``, the built-in synthetic images; ``"cifar10"``, in the folder ``data``,
            downloaded if it is missing; the path of a folder with images, with CIFAR-10's files or
            with shards (tar files as WebDataset writes them), of one shard, of several by a range
            as in ``train-{000..099}.tar``, or of a CSV file; a data set of training images; a pair
            of these but the built-in ones, training and test images; or a mapping of ``"train"``,
            ``"validation"``, ``"test"``.
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
            Of a folder: the class folders to take, in this order.
        parts: names of the folders of ``"train"``, ``"validation"`` and ``"test"``, where they
            are unusual; ``{}``: there are no parts, every folder is a class.
        channels: of the images. None: photos are RGB, arrays and tensors keep their 1 or 3. Grey
            images are repeated for 3, colour images become their luma for 1.
        background: colour behind transparent pixels, as Pillow's ``ImageColor`` names it.
        decode: ``"reduced"`` lets a JPEG be decoded at a smaller scale, no smaller than ``resize``,
            which is faster; ``"full"`` decodes each pixel.
        stats_images: number of images from which the statistics of images that are not in memory
            are measured, drawn by the seed; None measures all.
        drop_last: leave out the last training batch of an epoch if it is smaller.
        balanced: draw the training images of an epoch with replacement, as many as there are, each
            class equally often on average.
        on_bad_image: ``"stop"`` raises the error of an image that cannot be read; ``"skip"`` leaves
            the image out, with a warning.
        bad_image_limit: fraction of a part's images, from 0 to 1: more bad ones are an error.
            Unless it is 0, one is allowed.
        device: of the batches.
        num_workers: processes that read images that are not in memory; 0 reads in this one.
        seed: for the split, the order and the augmentation.

    Raises:
        FileNotFoundError: there is no such folder.
        TypeError: ``data`` has another type, or its items are not pairs.
        ValueError: an argument is out of its range; the folder has no images or one class; files
            are not images (they are named); a label has no class; it cannot be told which folders
            are parts and which are classes (the message says what to do).
        OSError: CIFAR-10 cannot be downloaded.

    Example:
        >>> from alexnet_lib import build_loaders
        >>> loaders = build_loaders("shapes", image_size=67, batch_size=64)
        >>> images, labels = next(iter(loaders.train))
        >>> images.shape, loaders.classes[:3]
        (torch.Size([64, 3, 67, 67]), ('bar', 'bowtie', 'circle'))
    """
    preprocess = Preprocess(
        image_size if resize is None else resize,
        image_size,
        image_fit,
        background=background,
        decode=decode,
    )
    kinds = get_args(StatsKind)
    if not isinstance(stats, ChannelStats) and not (isinstance(stats, str) and stats in kinds):
        raise ValueError(
            f"stats is {shown(stats)}; expected a ChannelStats, 'pixel' or 'per_image'"
        )
    if not isinstance(augmentation, Sequence):
        augmentation = () if augmentation is None else (augmentation,)

    opened = open_parts(
        data,
        classes=classes,
        parts=parts,
        channels=channels,
        background=background,
        on_bad_image=on_bad_image,
        bad_image_limit=bad_image_limit,
    )
    if isinstance(stats, ChannelStats) and len(stats.mean) != opened.train.channels:
        raise ValueError(
            f"stats has {len(stats.mean)} channels, but the images have {opened.train.channels}; "
            "expected statistics of these images: 'pixel' measures them"
        )

    def choose_treatment(measure: Callable[[], PixelStatistics]) -> Treatment:
        values = stats if isinstance(stats, ChannelStats) else measure().channel_stats(stats)
        if min(values.std) <= 0:
            raise ValueError(
                f"stats has the standard deviations {values.std}; expected all above 0"
            )
        normalised = replace(preprocess, mean=values.mean, std=values.std)
        return Treatment(normalised, tuple(augmentation), values)

    return assemble_loaders(
        opened,
        choose_treatment,
        train_images=train_images,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        placement=Placement(resolve_device(device)),
        drop_last=drop_last,
        balanced=balanced,
        stats_images=stats_images,
        on_bad_image=on_bad_image,
        bad_image_limit=bad_image_limit,
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
    drop_last: bool = False,
    balanced: bool = False,
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
        drop_last: leave out the last training batch of an epoch if it is smaller.
        balanced: draw the training images of an epoch with replacement, as in ``build_loaders``.
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
        drop_last=drop_last,
        balanced=balanced,
        device=device,
        seed=seed,
    )
