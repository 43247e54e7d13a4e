"""The promises of the loaders for images that are not in memory: files, data sets, processes."""

import copy
import gc
import multiprocessing
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    COMPONENTS,
    Fade,
    assert_same_pass,
    in_memory,
    random_batch,
    random_pixels,
    read_lazily,
    whole_pass,
)
from PIL import Image
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from alexnet_lib import inference, interrupts
from alexnet_lib.data import decoding, reading, statistics
from alexnet_lib.data.augmentation import (
    ColorNoise,
    HorizontalFlip,
    RandomCrop,
    RandomShift,
    TrivialAugment,
)
from alexnet_lib.data.decoding import ImageError
from alexnet_lib.data.images import ImageFiles, ImageTensors
from alexnet_lib.data.loaders import BatchLoader, Treatment, assemble_loaders, build_loaders
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.reading import Workers
from alexnet_lib.data.sources import open_parts, wrap_dataset
from alexnet_lib.data.statistics import (
    ChannelStats,
    compute_channel_stats,
    compute_color_components,
)
from alexnet_lib.devices import Placement

STATS = ChannelStats((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), 1)
AS_IT_IS = Preprocess(resize=4, image_size=4)

# Of photos that are resized to 40: smaller, of this size, cropped alone, larger.
SIZES = (
    *((30, 30), (30, 30), (24, 36), (30, 41), (40, 40)),
    *((40, 55), (60, 60), (60, 60), (41, 80), (90, 50), (35, 90)),
)
RESIZE = 40

AUGMENTATIONS = (
    (),
    (HorizontalFlip(), RandomCrop(), ColorNoise(COMPONENTS), TrivialAugment(), Fade()),
    (HorizontalFlip(), ColorNoise(COMPONENTS)),
    (HorizontalFlip(), Fade(), RandomCrop()),
    (RandomShift(),),
)
any_augmentation = pytest.mark.parametrize(
    "augmentation",
    AUGMENTATIONS,
    ids=["+".join(type(one).__name__ for one in several) or "none" for several in AUGMENTATIONS],
)
any_fit = pytest.mark.parametrize("image_fit", ["crop", "squash"])
with_or_without_workers = pytest.mark.parametrize("num_workers", [0, 2])


@pytest.fixture(autouse=True)
def ended_workers(monkeypatch):
    """Ends worker processes: a test that holds an error holds the loader, in a cycle.

    Freed by the cyclic garbage collector, torch waits five seconds for each of them.
    """
    started = []
    real = Workers.__init__

    def noting(self, *args, **options):
        real(self, *args, **options)
        started.append(weakref.ref(self))

    monkeypatch.setattr(Workers, "__init__", noting)
    yield
    for reference in started:
        if (workers := reference()) is not None:
            workers.close()


@pytest.fixture
def photos(tmp_path: Path) -> ImageFiles:
    """A file of each of the sizes."""
    files = []
    for number, (height, width) in enumerate(SIZES):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(random_pixels(height, width, seed=number)).save(files[-1])
    return ImageFiles(tuple(files), torch.arange(len(SIZES)) % 3, ("a", "b", "c"))


def loader_of(photos: ImageFiles, image_fit="crop", **options) -> BatchLoader:
    preprocess = Preprocess(RESIZE, 33, image_fit, mean=STATS.mean, std=STATS.std)
    return BatchLoader(photos, preprocess, **{"batch_size": 3, "shuffle": True, **options})


class Recorded(Dataset):
    """Numbered images of 4 x 4 pixels; records which of them are read, in this process."""

    def __init__(self, count: int = 20) -> None:
        self.count, self.read = count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.full((3, 4, 4), index, dtype=torch.uint8), index % 2


class ReadingProcess(Dataset):
    """Images whose colour is the number of the process that reads them."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        colour = torch.tensor([os.getpid() >> shift & 255 for shift in (0, 8, 16)])
        return colour.to(torch.uint8)[:, None, None].expand(3, 4, 4), 0


class Drawn(Dataset):
    """Images of random colours: red is torch's, green NumPy's and blue Python's."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        colour = torch.tensor([torch.rand(()), np.random.random(), random.random()])
        return colour[:, None, None].expand(3, 4, 4), index % 2


def lazily(data: Dataset, **options) -> BatchLoader:
    """A loader of a data set, whose labels are asked for here."""
    options = {"batch_size": 2, "shuffle": True, **options}
    return BatchLoader(wrap_dataset(data, ("a", "b")), AS_IT_IS, **options)


# The treatment


@any_fit
@pytest.mark.parametrize("batch_size", [1, 4, len(SIZES)])
def test_a_photo_gives_the_same_input_by_itself_and_through_a_loader(photos, image_fit, batch_size):
    loader = loader_of(photos, image_fit, batch_size=batch_size, shuffle=False)
    for file, image in zip(photos.files, whole_pass(loader), strict=True):
        with Image.open(file) as photo:
            alone = loader.preprocess(photo)
        torch.testing.assert_close(image, alone, rtol=0, atol=1e-5)


@any_fit
@pytest.mark.parametrize(("height", "width"), sorted(set(SIZES)))
def test_images_in_memory_give_the_same_input_as_files(tmp_path, height, width, image_fit):
    pixels = random_batch(3, height, width)
    files = tuple(tmp_path / f"{number}.png" for number in range(3))
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image.movedim(0, -1).numpy()).save(file)
    held = in_memory(pixels)
    augmentation = (HorizontalFlip(), ColorNoise(COMPONENTS), TrivialAugment())
    loader = loader_of(ImageFiles(files, held.labels, held.classes), image_fit, batch_size=2)
    loader = replace(loader, augmentation=augmentation)
    for mine, other in zip(loader, replace(loader, dataset=held), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


@any_augmentation
@any_fit
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_photos_batch_decides_nothing_about_its_treatment(
    photos, image_fit, augmentation, batch_size
):
    options = {"augmentation": augmentation, "batch_size": len(SIZES), "shuffle": False}
    loader = loader_of(photos, image_fit, **options)
    ((expected, labels),) = loader
    batches = [*replace(loader, batch_size=batch_size)]
    images = torch.cat([images for images, _ in batches])
    torch.testing.assert_close(torch.cat([labels for _, labels in batches]), labels)
    # Rounding to bytes, which TrivialAugment does, can fall to either side of a half.
    apart = (images - expected).abs()
    assert (apart > 1e-5).float().mean() < 1e-4
    assert apart.max() < 1e-5 or TrivialAugment() in augmentation


# The processes


@any_augmentation
def test_the_number_of_workers_changes_no_bit(photos, augmentation):
    loader = loader_of(photos, augmentation=augmentation)
    for num_workers in (1, 2):
        workers = replace(loader, num_workers=num_workers)
        for epoch in range(2):
            loader.set_epoch(epoch)
            assert_same_pass(workers, loader)


def test_photos_come_from_the_workers_as_bytes_and_no_larger_than_they_are_needed(
    photos, monkeypatch
):
    arrived = []
    real = BatchLoader._finished
    monkeypatch.setattr(
        BatchLoader,
        "_finished",
        lambda self, raw, *rest: arrived.extend(raw) or real(self, raw, *rest),
    )
    whole_pass(loader_of(photos, batch_size=1, shuffle=False, num_workers=2))
    whole_pass(loader_of(photos, batch_size=len(SIZES), shuffle=False, num_workers=2))
    assert {images.dtype for images in arrived} == {torch.uint8}
    shapes = [tuple(images.shape[-2:]) for images in arrived]
    smaller = [size if min(size) < RESIZE else (RESIZE, RESIZE) for size in SIZES]
    assert shapes == 2 * smaller


def processes_of(loader: BatchLoader) -> set[int]:
    """The numbers of the processes that read the images of a pass."""
    colours = (255 * whole_pass(loader)[:, :, 0, 0]).round().int()
    return {red + (green << 8) + (blue << 16) for red, green, blue in colours.tolist()}


def test_without_workers_images_are_read_in_this_process():
    assert processes_of(lazily(ReadingProcess())) == {os.getpid()}


def test_the_processes_are_the_same_in_every_epoch_and_end_with_their_loader():
    loader = lazily(ReadingProcess(), num_workers=2)
    first = processes_of(loader)
    assert len(first) == 2
    assert os.getpid() not in first
    next(iter(loader))  # and after a pass that was broken off
    assert processes_of(loader) == first
    assert first <= {child.pid for child in multiprocessing.active_children()}
    del loader
    gc.collect()
    assert not first & {child.pid for child in multiprocessing.active_children()}


@with_or_without_workers
@pytest.mark.parametrize("steps", [1, 3])
def test_a_pass_that_was_broken_off_is_followed_by_a_complete_one(photos, num_workers, steps):
    loader = loader_of(photos, num_workers=num_workers, augmentation=(HorizontalFlip(),))
    expected = [whole_pass(replace(loader, num_workers=0))]
    for _ in range(2):
        for step, _ in enumerate(loader, 1):
            if step == steps:
                break
    assert loader.epoch == 0
    assert torch.equal(whole_pass(loader), expected[0])
    assert loader.epoch == 1


@with_or_without_workers
@pytest.mark.parametrize("earlier_passes", [0, 1])
def test_two_passes_at_the_same_time_are_both_right(photos, num_workers, earlier_passes):
    loader = loader_of(photos, num_workers=num_workers, augmentation=(HorizontalFlip(),))
    alone = replace(loader, num_workers=0)
    expected = [whole_pass(alone) for _ in range(3)]
    for _ in range(earlier_passes):
        whole_pass(loader)
    loader.set_epoch(0)
    for batches in zip(*zip(loader, loader, strict=True), strict=True):
        assert torch.equal(torch.cat([images for images, _ in batches]), expected[0])
    assert loader.epoch == 1
    # And of two epochs, which have other orders.
    both = zip(loader.batches(1), loader.batches(2), strict=True)
    for batches, whole in zip(zip(*both, strict=True), expected[1:], strict=True):
        assert torch.equal(torch.cat([images for images, _ in batches]), whole)


@with_or_without_workers
@pytest.mark.parametrize("earlier_passes", [0, 1])
def test_a_pass_within_a_pass_is_right_and_disturbs_it_in_nothing(
    photos, num_workers, earlier_passes
):
    loader = loader_of(photos, num_workers=num_workers)
    alone = replace(loader, num_workers=0)
    expected = [whole_pass(alone) for _ in range(2)]
    for _ in range(earlier_passes):
        whole_pass(loader)
    loader.set_epoch(0)
    outer = []
    for step, (images, _) in enumerate(loader):
        outer.append(images)
        if step == 1:
            inner = torch.cat([images for images, _ in loader.batches(1)])
    assert torch.equal(torch.cat(outer), expected[0])
    assert torch.equal(inner, expected[1])


# The threads


@pytest.fixture
def threads():
    """A function that sets the number of torch's threads; restored at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def readers() -> list[str]:
    """Names of the threads that read images."""
    return [thread.name for thread in threading.enumerate() if "alexnet-lib" in thread.name]


@pytest.fixture
def slow_reads(monkeypatch) -> list[Path]:
    """The files that are read from here on, each slowly."""
    read = []
    real = Preprocess.read

    def slowly(self, file):
        read.append(file)
        time.sleep(0.005)
        return real(self, file)

    monkeypatch.setattr(Preprocess, "read", slowly)
    return read


@any_augmentation
def test_the_number_of_threads_changes_nothing(photos, augmentation, threads):
    loader = loader_of(photos, augmentation=augmentation)

    def as_read() -> list[torch.Tensor]:
        plan = loader._plan(1, loader.preprocess)
        wanted = torch.arange(len(SIZES)).split(3)
        return [image for raw in loader._raw_batches(plan, [*wanted]) for image in raw.images]

    threads(1)
    pixels, batches = as_read(), [*loader.batches(1)]
    for number in (2, 5):
        threads(number)
        for mine, other in zip(as_read(), pixels, strict=True):
            assert torch.equal(mine, other)
        for mine, other in zip(loader.batches(1), batches, strict=True):
            # Where torch enlarges floating images in threads, the last bit can differ.
            torch.testing.assert_close(mine, other, rtol=0, atol=2e-6)


def test_photos_are_read_by_as_many_threads_as_torch_computes_with(photos, threads, slow_reads):
    for number in (1, 3):
        threads(number)
        batches = iter(loader_of(photos, batch_size=len(SIZES)))
        next(batches)
        assert len(readers()) == number
        batches.close()


def test_photos_are_read_ahead_but_not_all_of_them(photos, threads, slow_reads):
    threads(2)
    batches = iter(loader_of(photos, batch_size=1))
    next(batches)
    time.sleep(0.3)
    assert len(slow_reads) == 3  # the batch in use, and two more
    next(batches)
    time.sleep(0.1)
    assert len(slow_reads) == 4
    batches.close()


@pytest.mark.parametrize("ending", ["break", "exception", "close", "exhausted", "bad image"])
def test_no_thread_is_left_and_nothing_is_read_after_a_pass(photos, threads, slow_reads, ending):
    threads(3)
    loader = loader_of(photos, batch_size=4, shuffle=False)
    error = None
    if ending == "break":
        for _ in loader:
            assert readers()
            break
    elif ending == "exception":
        try:
            for _ in loader:
                raise ZeroDivisionError
        except ZeroDivisionError as raised:
            error = raised
    elif ending == "close":
        batches = loader.batches(0)
        next(batches)
        batches.close()
    elif ending == "exhausted":
        whole_pass(loader)
    else:
        photos.files[1].write_bytes(b"")
        try:
            whole_pass(loader)
        except ValueError as raised:
            error = raised
    while ending != "exhausted" and readers():
        time.sleep(0.01)  # they end with the images that they are reading
    assert readers() == []
    count = len(slow_reads)
    time.sleep(0.05)
    assert len(slow_reads) == count
    assert (error is None) == (ending not in {"exception", "bad image"})  # and it is kept till here


class _InCycle:
    """What only the garbage collector frees, with a pass that nobody has closed."""

    def __init__(self, batches) -> None:
        self.batches, self.itself = batches, self


PASSES = {
    "batches": lambda photos: loader_of(photos, batch_size=4, shuffle=False).batches(0),
    "statistics": lambda photos: statistics._read(photos, skip_bad=False),
    "predictions": lambda photos: inference._image_batches(
        photos.files, Preprocess(RESIZE, 33, mean=STATS.mean, std=STATS.std), torch.device("cpu")
    ),
}


@pytest.mark.parametrize("kind", PASSES)
def test_a_pass_that_is_collected_waits_for_no_thread(
    kind, photos, threads, slow_reads, monkeypatch
):
    threads(3)
    batches = PASSES[kind](photos)
    next(batches)
    pass_ = _InCycle(batches)
    del batches, pass_
    # The collector may run where a lock is held that the end of a thread needs, in Thread.start.
    joined = []
    monkeypatch.setattr(threading.Thread, "join", lambda *arguments: joined.append(arguments))
    gc.collect()
    while readers():
        time.sleep(0.01)
    assert joined == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
def test_the_threads_of_the_system_do_not_become_more_with_each_pass(photos):
    loader = loader_of(photos)
    whole_pass(loader)
    before = len(os.listdir("/proc/self/task"))
    for _ in range(10):
        whole_pass(loader)
        next(iter(loader))
    # The threads of earlier tests may end meanwhile, and torch's own may start.
    assert len(os.listdir("/proc/self/task")) < before + 5


@with_or_without_workers
def test_photos_can_be_read_in_inference_mode(photos, num_workers):
    loader = loader_of(photos, num_workers=num_workers)
    expected = [*loader.batches(0)]
    with torch.inference_mode():
        inferred = [*loader.batches(0)]
    for mine, other in zip(inferred, expected, strict=True):
        assert torch.equal(mine[0], other[0])


def test_data_sets_of_users_are_read_in_the_callers_thread():
    class Witness(Recorded):
        def __getitem__(self, index):
            self.read.append(threading.get_ident())
            return super().__getitem__(index)

    data = Witness(12)
    loader = lazily(data)
    data.read.clear()
    for number, _ in enumerate(loader, 1):
        assert len([x for x in data.read if x > 1000]) == 2 * number  # and none ahead
    assert {x for x in data.read if x > 1000} == {threading.get_ident()}


# Copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@with_or_without_workers
def test_a_loader_can_be_copied_after_a_pass(photos, num_workers, copied):
    loader = loader_of(photos, num_workers=num_workers, augmentation=(HorizontalFlip(),))
    next(iter(loader))
    whole_pass(loader)
    twin = copied(loader)
    assert twin.epoch == 1
    assert_same_pass(twin, loader)


# Images that cannot be read


def per_image(loader: BatchLoader) -> list[torch.Tensor]:
    return [image for images, _ in loader for image in images]


@pytest.mark.bad_input
@with_or_without_workers
def test_a_damaged_photo_is_named_and_does_no_harm_to_the_next_pass(photos, num_workers):
    photos.files[5].write_bytes(photos.files[5].read_bytes()[:60])
    loader = loader_of(photos, num_workers=num_workers, batch_size=1, shuffle=False)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"5\.png cannot be read as an image"):
            whole_pass(loader)
    before = torch.cat([image for _, (image, _) in zip(range(5), loader, strict=False)])
    assert torch.equal(before, whole_pass(replace(loader, dataset=photos.subset(torch.arange(5)))))


def error_of(loader: BatchLoader) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  (compared by the caller)
        whole_pass(loader)
    return raised.value


@pytest.mark.bad_input
def test_the_error_of_a_photo_is_the_same_line_from_a_worker(photos):
    photos.files[5].write_bytes(b"no image")
    errors = [error_of(loader_of(photos, num_workers=number)) for number in (0, 1, 2)]
    assert len({str(error) for error in errors}) == 1
    assert {type(error) for error in errors} == {ImageError}
    assert re.fullmatch(r".*5\.png cannot be read as an image: .*", str(errors[0]))
    assert all(error.__cause__ is None for error in errors[1:])


class Faulty(Dataset):
    """Numbered images; the item ``at`` raises an error, or is what it is given."""

    def __init__(self, fault: object, at: int = 17) -> None:
        self.fault, self.at = fault, at

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == self.at:
            if isinstance(self.fault, Exception):
                raise self.fault
            return self.fault, 0
        return torch.full((3, 4, 4), index, dtype=torch.uint8), 0


class HardToPickleError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} {second}")
        self.lock = threading.Lock()


def faulty(fault: object, **options) -> BatchLoader:
    """A loader of ten of these items; labels are not asked for, which would meet the fault."""
    data = wrap_dataset(Recorded(20), ("a", "b"))
    data = replace(data, dataset=Faulty(fault)).subset(torch.arange(10, 20))
    return BatchLoader(data, AS_IT_IS, **{"batch_size": 3, **options})


@pytest.mark.bad_input
@with_or_without_workers
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (struct.error("unpack needs 4 bytes"), "struct.error: unpack needs 4 bytes"),
        (HardToPickleError(1, 2), r"\S+HardToPickleError: 1 2"),
        (KeyError("image"), "KeyError: 'image'"),
        (StopIteration(), "StopIteration: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_item_that_raises_is_named_and_its_error_is_the_cause(num_workers, fault, text):
    error = error_of(faulty(fault, num_workers=num_workers))
    assert isinstance(error, ValueError)
    assert re.fullmatch(f"item 17 of data cannot be read: {text}", str(error))
    assert "__getitem__" in "".join(traceback.format_exception(error))


@pytest.mark.bad_input
@with_or_without_workers
def test_an_item_that_is_no_image_is_an_error_in_one_line(num_workers):
    error = error_of(faulty(torch.full((3, 4, 4), -1.0), num_workers=num_workers))
    assert isinstance(error, ValueError)
    assert str(error).startswith("image 17 of the data set has floats from -1 to -1; expected 0")
    assert "\n" not in str(error)
    error = error_of(faulty("cat.jpg", num_workers=num_workers))
    assert isinstance(error, TypeError)
    assert str(error).startswith("image 17 of the data set is a str; expected")


SKIPPING = {"on_bad_image": "skip", "bad_image_limit": 0.5}
cannot_be_read = pytest.mark.filterwarnings("ignore:.* cannot be read and is left out:UserWarning")
number_of_workers = pytest.mark.parametrize("num_workers", [0, 1, 2])


@pytest.mark.bad_input
@cannot_be_read
@any_fit
@pytest.mark.parametrize(
    ("num_workers", "batch_size"),
    [(0, 1), (0, 3), (0, len(SIZES)), (1, len(SIZES)), (2, 1), (2, 3)],
)
def test_bad_photos_are_left_out_and_the_others_stay_as_they_were(
    photos, num_workers, image_fit, batch_size
):
    options = {"augmentation": AUGMENTATIONS[1], "batch_size": batch_size, **SKIPPING}
    loader = loader_of(photos, image_fit, num_workers=num_workers, **options)
    intact = per_image(replace(loader, batch_size=1, num_workers=0))
    labels = [label for _, labels in loader.batches(0) for label in labels.tolist()]
    order = loader._plan(0, loader.preprocess).order.tolist()
    for bad in (0, 3, 8):
        photos.files[bad].write_bytes(b"no image")
    kept = [position for position, index in enumerate(order) if index not in {0, 3, 8}]
    assert 0 < len(kept) < len(order)
    batches = [*loader]
    images = [image for images, _ in batches for image in images]
    for image, position in zip(images, kept, strict=True):
        apart = (image - intact[position]).abs()  # TrivialAugment rounds to bytes
        assert (apart > 1e-5).float().mean() < 1e-3
    assert [label for _, y in batches for label in y.tolist()] == [labels[i] for i in kept]
    expected = [sum(i // batch_size == n for i in kept) for n in range(len(loader))]
    assert [len(y) for _, y in batches] == [size for size in expected if size]
    assert loader.epoch == 1


@pytest.fixture
def plain_photos(tmp_path: Path) -> ImageFiles:
    """Ten files, each of one colour and a class of its own."""
    files = tuple(tmp_path / f"{number}.png" for number in range(10))
    for number, file in enumerate(files):
        Image.new("RGB", (6, 6), (20 * number,) * 3).save(file)
    return ImageFiles(files, torch.arange(10), tuple("abcdefghij"))


@pytest.mark.bad_input
@cannot_be_read
@number_of_workers
def test_a_batch_of_which_nothing_remains_is_left_out(plain_photos, num_workers):
    for bad, expected in (
        ({0, 1}, [2, 2, 2, 2]),
        ({8, 9}, [2, 2, 2, 2]),
        ({4, 5, 8}, [2, 2, 2, 1]),
    ):
        files = [file.read_bytes() for file in plain_photos.files]
        for number in bad:
            plain_photos.files[number].write_bytes(b"no image")
        loader = BatchLoader(plain_photos, AS_IT_IS, 2, num_workers=num_workers, **SKIPPING)
        assert [len(labels) for _, labels in loader] == expected
        assert loader.epoch == 1
        assert sum(len(labels) for _, labels in loader.batches(0, 2)) == 6 - len(
            bad & {*range(4, 10)}
        )
        for file, content in zip(plain_photos.files, files, strict=True):
            file.write_bytes(content)


@pytest.mark.bad_input
@with_or_without_workers
def test_each_bad_image_is_warned_about_once_and_remembered(plain_photos, num_workers):
    for number in (2, 7):
        plain_photos.files[number].write_bytes(b"no image")
    loader = BatchLoader(plain_photos, AS_IT_IS, 3, num_workers=num_workers, **SKIPPING)
    assert loader.bad_images == {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            whole_pass(loader)
        list(loader.views(1))
    names = [str(plain_photos.files[number]) for number in (2, 7)]
    assert [item.category for item in caught] == [UserWarning] * 2
    for name, item in zip(names, caught, strict=True):
        assert str(item.message).startswith(f"{name} cannot be read and is left out: ")
    assert list(loader.bad_images) == names
    assert not any(name in reason for name, reason in loader.bad_images.items())
    assert all(loader.bad_images.values())
    loader.bad_images.clear()  # a copy
    assert list(loader.bad_images) == names


@pytest.mark.bad_input
@cannot_be_read
@with_or_without_workers
def test_items_that_cannot_be_read_are_left_out_by_their_number(num_workers):
    loader = faulty(struct.error("short"), num_workers=num_workers, on_bad_image="skip")
    numbers = (255 * whole_pass(loader)[:, 0, 0, 0]).round().int().tolist()
    assert numbers == [10, 11, 12, 13, 14, 15, 16, 18, 19]
    assert loader.bad_images == {"item 17 of data": "struct.error: short"}


@pytest.mark.bad_input
@cannot_be_read
@with_or_without_workers
def test_more_bad_images_than_the_limit_stop_every_pass(plain_photos, num_workers):
    for number in (1, 4, 6):
        plain_photos.files[number].write_bytes(b"no image")
    options = {"num_workers": num_workers, "on_bad_image": "skip"}
    within = BatchLoader(plain_photos, AS_IT_IS, 3, bad_image_limit=0.3, **options)
    assert len(whole_pass(within)) == 7
    for limit in (0.29, 0, np.float64(0.2)):
        loader = BatchLoader(plain_photos, AS_IT_IS, 3, bad_image_limit=limit, **options)
        for _ in range(2):
            with pytest.raises(ValueError, match="cannot be read, which is more than") as raised:
                whole_pass(loader)
        text = str(raised.value)
        assert f"of 10 images cannot be read, which is more than bad_image_limit, {limit}" in text
        assert f"{plain_photos.files[1]}: " in text


@pytest.mark.bad_input
@cannot_be_read
def test_the_error_beyond_the_limit_lists_ten_images(tmp_path):
    files = tuple(tmp_path / f"{number}.png" for number in range(40))
    for number, file in enumerate(files):
        file.write_bytes(b"no image") if number < 13 else Image.new("RGB", (6, 6)).save(file)
    data = ImageFiles(files, torch.zeros(40).long(), ("a",))
    loader = BatchLoader(data, AS_IT_IS, 20, on_bad_image="skip")
    with pytest.raises(ValueError, match=r"^13 of 40 images cannot be read") as raised:
        whole_pass(loader)
    assert str(raised.value).count("no image") == 0
    assert str(raised.value).count(str(tmp_path)) == 10
    assert str(raised.value).endswith("; and 3 more")


@pytest.mark.bad_input
@with_or_without_workers
def test_want_of_memory_is_not_the_fault_of_an_image(photos, num_workers, monkeypatch):
    def fails(self, file):
        raise MemoryError("no room")

    monkeypatch.setattr(Preprocess, "read", fails)
    loader = loader_of(photos, num_workers=num_workers, **SKIPPING)
    with pytest.raises(MemoryError, match="no room"):
        whole_pass(loader)
    assert loader.bad_images == {}


@pytest.mark.bad_input
@cannot_be_read
def test_the_statistics_leave_bad_photos_out_too(folder):
    bad = folder / "train" / "cat" / "2.png"
    bad.write_bytes(bad.read_bytes()[:100])
    options = {"image_size": 33, "resize": RESIZE}
    with pytest.raises(ValueError, match=r"2\.png cannot be read as an image"):
        build_loaders(folder, **options)
    loaders = build_loaders(folder, **options, **SKIPPING)
    assert loaders.stats.count == 9
    assert len(whole_pass(loaders.train)) == 9
    assert list(loaders.train.bad_images) == [str(bad)]
    assert {part.on_bad_image for part in loaders} == {"skip"}


class Large(Dataset):
    """Images for which there is no memory."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        raise MemoryError


@with_or_without_workers
@pytest.mark.bad_input
def test_want_of_memory_in_a_data_set_is_not_the_fault_of_an_item(num_workers):
    data = replace(wrap_dataset(Recorded(4), ("a", "b")), dataset=Large())
    loader = BatchLoader(data, AS_IT_IS, num_workers=num_workers, **SKIPPING)
    with pytest.raises(MemoryError, match="item 0 of data: there is not enough memory to read it"):
        whole_pass(loader)


# Processes that die

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says that one is stopped")


class Deadly(Dataset):
    """Numbered images; whoever reads item 7 dies, as long as the file is there."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 7 and self.file.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((3, 4, 4), index, dtype=torch.uint8), 0


def deadly(file: Path, **options) -> BatchLoader:
    data = replace(wrap_dataset(Recorded(20), ("a", "b")), dataset=Deadly(file))
    return BatchLoader(data, AS_IT_IS, **{"batch_size": 3, "num_workers": 2, **options})


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
@pytest.mark.bad_input
def test_a_process_that_dies_is_spoken_of_and_the_loader_goes_on(tmp_path):
    (tmp_path / "deadly").touch()
    loader = deadly(tmp_path / "deadly")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="1 of the 2 processes that read images ended in th"):
            whole_pass(loader)
    assert loader.epoch == 0
    (tmp_path / "deadly").unlink()
    for _ in range(2):
        images = whole_pass(loader)
        assert (255 * images[:, 0, 0, 0]).round().int().tolist() == [*range(20)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_a_process_that_dies_between_two_passes_is_replaced(tmp_path):
    loader = deadly(tmp_path / "none")
    whole_pass(loader)
    process = loader._state.workers._loader._iterator._workers[0]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    time.sleep(0.1)  # torch's own check raises an error wherever the main thread is
    images = whole_pass(loader)
    assert (255 * images[:, 0, 0, 0]).round().int().tolist() == [*range(20)]


@needs_signals
@pytest.mark.bad_input
def test_the_error_of_a_process_that_dies_is_one_line(tmp_path):
    (tmp_path / "deadly").touch()
    with pytest.raises(RuntimeError) as caught:
        whole_pass(deadly(tmp_path / "deadly"))
    shown = "".join(traceback.format_exception_only(caught.value))
    assert len(shown.splitlines()) == 1
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@needs_signals
@pytest.mark.bad_input
def test_a_process_that_takes_its_time_to_end_is_spoken_of_too(tmp_path, monkeypatch):
    def closed(batches):
        raise EOFError  # the connection through which a batch comes is closed first

    batches = iter(deadly(tmp_path / "none"))
    next(batches)
    process = processes_of_pass(batches)[0]
    monkeypatch.setattr(_BaseDataLoaderIter, "__next__", closed)
    threading.Timer(1.5, process.kill).start()
    with pytest.raises(RuntimeError, match="1 of the 2 processes that read images ended in th"):
        next(batches)


@needs_signals
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_processes_ignore_the_signals_that_ask_a_program_to_stop(name, tmp_path):
    loader = deadly(tmp_path / "none")
    batches = iter(loader)
    first, _ = next(batches)
    processes = processes_of_pass(batches)
    for process in processes:
        os.kill(process.pid, getattr(signal, name))
    rest = [images for images, _ in batches]
    images = torch.cat([first, *rest])
    assert (255 * images[:, 0, 0, 0]).round().int().tolist() == [*range(20)]
    assert processes_of_workers(loader) == processes
    loader._state.workers.close()
    assert not any(process.is_alive() for process in processes)


def processes_of_workers(loader: BatchLoader) -> list:
    return [*loader._state.workers._processes]


def processes_of_pass(batches) -> list:
    """The processes of a pass that is under way, which are the only children."""
    return sorted(multiprocessing.active_children(), key=lambda process: process.pid)


def stop(process) -> None:
    """Stops a process, and waits until it is."""
    os.kill(process.pid, signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


@linux
@pytest.mark.bad_input
def test_a_process_that_is_stopped_is_an_error_and_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_STOPPED_SECONDS", 1)
    loader = deadly(tmp_path / "none")
    batches = iter(loader)
    next(batches)
    for process in (processes := processes_of_pass(batches)):
        stop(process)
    with pytest.raises(
        RuntimeError, match=r"2 of the 2 processes .* been stopped for 1 s"
    ) as error:
        list(batches)
    assert error.value.__cause__ is None
    assert not any(process.is_alive() for process in processes)
    images = whole_pass(loader)
    assert (255 * images[:, 0, 0, 0]).round().int().tolist() == [*range(20)]


@linux
def test_a_process_that_is_stopped_between_two_passes_is_replaced(tmp_path):
    loader = deadly(tmp_path / "none")
    whole_pass(loader)
    stop(processes_of_workers(loader)[1])
    images = whole_pass(loader)
    assert (255 * images[:, 0, 0, 0]).round().int().tolist() == [*range(20)]


class Slow(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(0.3)
        return torch.full((3, 4, 4), index, dtype=torch.uint8), 0


def test_a_slow_disk_is_no_error(monkeypatch):
    monkeypatch.setattr(reading, "_CHECK_SECONDS", 0.05)
    data = replace(wrap_dataset(Recorded(4), ("a", "b")), dataset=Slow())
    loader = BatchLoader(data, AS_IT_IS, batch_size=2, num_workers=1)
    for _ in range(2):
        next(iter(loader))  # the next pass has to wait for the batches of this one
    assert len(whole_pass(loader)) == 4


def test_a_signal_is_noticed_while_a_process_reads(monkeypatch):
    monkeypatch.setattr(reading, "_CHECK_SECONDS", 0.05)
    data = replace(wrap_dataset(Recorded(4), ("a", "b")), dataset=Slow())
    batches = iter(BatchLoader(data, AS_IT_IS, batch_size=2, num_workers=1))
    next(batches)
    monkeypatch.setattr(interrupts, "_received", signal.SIGTERM)
    monkeypatch.setattr(interrupts, "_handling", threading.get_ident())
    with pytest.raises(interrupts.Interrupted):
        next(batches)


@needs_signals
def test_a_loader_in_a_cycle_ends_its_processes(tmp_path):
    loader = deadly(tmp_path / "none")
    whole_pass(loader)
    processes = processes_of_workers(loader)
    cycle = [loader]
    cycle.append(cycle)
    del loader, cycle
    gc.collect()
    for process in processes:
        process.join(5)
    assert not any(process.is_alive() for process in processes)


ENDING = """
import os, signal, sys, time
import torch
from pathlib import Path
from torch.utils.data import TensorDataset
from alexnet_lib.data.loaders import BatchLoader
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.sources import wrap_dataset

images = TensorDataset(torch.zeros(400, 3, 4, 4, dtype=torch.uint8), torch.arange(400) % 2)
data = wrap_dataset(images, ("a", "b"))
loader = BatchLoader(data, Preprocess(4, 4), batch_size=3, num_workers=2)
batches = iter(loader)
next(batches)
import multiprocessing
processes = multiprocessing.active_children()
print(*[process.pid for process in processes], flush=True)
"""


def ended(number: str) -> bool:
    """Whether a process ends; its parent, which may not have asked for its status, is gone."""
    file = Path(f"/proc/{number}/stat")
    for _ in range(200):
        if not file.exists() or file.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    os.kill(int(number), signal.SIGKILL)
    return False


@linux
@pytest.mark.parametrize(
    "method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("end", ["kill -9", "SIGTERM", "exit while one is stopped"])
def test_no_process_and_no_folder_is_left_when_the_program_ends(end, method, tmp_path):
    script = f"import multiprocessing\nmultiprocessing.set_start_method({method!r})\n{ENDING}"
    if end == "exit while one is stopped":
        script += "os.kill(processes[0].pid, signal.SIGSTOP)\ntime.sleep(0.1)\n"
    else:
        script += "time.sleep(100)\n"
    command, environment = [sys.executable, "-c", script], {**os.environ, "TMPDIR": str(tmp_path)}
    program = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    numbers = program.stdout.readline().split()
    assert len(numbers) == 2
    if end != "exit while one is stopped":
        program.send_signal(signal.SIGKILL if end == "kill -9" else signal.SIGTERM)
    program.wait(60)
    program.stdout.close()
    assert [ended(number) for number in numbers] == [True, True]
    if end == "exit while one is stopped":  # the others leave no time to tidy up
        assert [*tmp_path.iterdir()] == []


# Random data sets


@pytest.fixture
def states(pytestconfig):
    """A function that tells the states of torch's, NumPy's and Python's global generators."""

    def all_states() -> tuple:
        _, keys, *rest = np.random.get_state()
        # Type checks draw from Python's generator which items of a list they look at.
        python = None if pytestconfig.getoption("jaxtyping_packages", None) else random.getstate()
        return torch.get_rng_state().tolist(), keys.tolist(), rest, python

    return all_states


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [in_memory, read_lazily])
@any_augmentation
def test_a_pass_leaves_the_global_generators_alone(kind, augmentation, num_workers, states):
    loader = BatchLoader(
        kind(random_batch(12, 8, 8)),
        Preprocess(8, 7),
        batch_size=4,
        augmentation=augmentation,
        num_workers=num_workers,
        shuffle=True,
    )
    before = states()
    whole_pass(loader)
    next(iter(loader))
    assert states() == before


@with_or_without_workers
def test_a_random_data_set_leaves_the_global_generators_alone(num_workers, states):
    loader = lazily(Drawn(), num_workers=num_workers)
    before = states()
    whole_pass(loader)
    next(iter(loader))
    assert states() == before


def test_a_random_data_sets_pictures_depend_on_seed_epoch_and_position_alone():
    loader = lazily(Drawn())
    first, second = whole_pass(loader), whole_pass(loader)
    for other in (replace(loader, num_workers=2), replace(loader, batch_size=5)):
        torch.manual_seed(1)
        np.random.seed(2)
        random.seed(3)
        assert torch.equal(whole_pass(other), first)
        assert torch.equal(whole_pass(other), second)
    assert not torch.equal(whole_pass(replace(loader, seed=1)), first)


@with_or_without_workers
def test_a_random_data_sets_pictures_are_others_in_each_epoch_and_at_each_position(num_workers):
    loader = lazily(Drawn(), num_workers=num_workers, shuffle=False)
    colours = [whole_pass(loader)[:, :, 0, 0] for _ in range(2)]
    for channel in torch.cat(colours).T:
        assert len(channel.unique()) == 2 * len(Drawn())


# A pass from any batch on


@with_or_without_workers
@any_augmentation
def test_batches_are_the_epochs_from_any_one_on(photos, augmentation, num_workers):
    loader = loader_of(photos, augmentation=augmentation, num_workers=num_workers)
    whole = replace(loader, num_workers=0)
    whole.set_epoch(2)
    expected = [*whole]
    for start in (3, 1, 0, len(loader)):
        batches = [*loader.batches(2, start)]
        assert len(batches) == len(loader) - start
        for (images, labels), other in zip(batches, expected[start:], strict=True):
            assert torch.equal(images, other[0])
            assert torch.equal(labels, other[1])


@pytest.mark.parametrize("kind", [in_memory, read_lazily])
def test_batches_change_nothing_in_the_loader(kind):
    loader = BatchLoader(kind(random_batch(20, 4, 4)), AS_IT_IS, batch_size=6, shuffle=True)
    expected = [whole_pass(loader) for _ in range(3)]
    loader.set_epoch(1)
    for epoch, start in ((2, 0), (5, 2), (0, 3)):
        next(loader.batches(epoch, start))
        list(loader.batches(epoch, start))
        assert loader.epoch == 1
    assert torch.equal(whole_pass(loader), expected[1])
    assert torch.equal(whole_pass(loader), expected[2])


@pytest.mark.parametrize("augmentation", [(), (HorizontalFlip(), RandomCrop())])
def test_no_image_before_the_first_batch_asked_for_is_read(augmentation):
    data = Recorded(20)
    loader = lazily(data, batch_size=3, augmentation=augmentation)
    data.read.clear()
    list(loader.batches(1))
    order = [*data.read]
    data.read.clear()
    list(loader.batches(1, 4))
    assert data.read == order[12:]
    data.read.clear()
    list(loader.batches(1, 7))
    assert not data.read


# The way of an image, from its file to the loaders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of different sizes in two classes, for training, validation and testing."""
    for part, count in (("train", 5), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random_pixels(*SIZES[number * 2], seed=number)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file was decoded."""
    counts: Counter[Path] = Counter()
    real = decoding._pixels

    def counting(image, name, *options):
        counts[Path(name)] += 1
        return real(image, name, *options)

    monkeypatch.setattr(decoding, "_pixels", counting)
    return counts


@pytest.fixture
def constructed(monkeypatch: pytest.MonkeyPatch) -> list[BatchLoader]:
    """The loaders that are constructed."""
    loaders = []
    real = BatchLoader.__post_init__
    monkeypatch.setattr(
        BatchLoader, "__post_init__", lambda self: loaders.append(self) or real(self)
    )
    return loaders


def once(files: tuple[Path, ...]) -> dict[Path, int]:
    return dict.fromkeys(files, 1)


@pytest.mark.parametrize("stats", ["pixel", "per_image"])
def test_each_training_photo_is_decoded_once_before_the_first_batch(
    folder, decoded, constructed, stats
):
    loaders = build_loaders(folder, image_size=33, resize=RESIZE, stats=stats)
    assert isinstance(loaders.train.dataset, ImageFiles)
    assert decoded == once(loaders.train.dataset.files)
    assert len(decoded) == 10
    assert constructed == list(loaders)


def test_photos_are_split_before_they_are_measured(folder, decoded, constructed):
    loaders = build_loaders(folder / "train", image_size=33, test_fraction=0.2)
    assert [len(part.dataset) for part in loaders] == [7, 1, 2]
    assert decoded == once(loaders.train.dataset.files)
    assert loaders.stats == compute_channel_stats(loaders.train.dataset)
    assert constructed == list(loaders)


def test_known_statistics_decode_no_photo(folder, decoded, constructed):
    build_loaders(folder, image_size=33, stats=STATS)
    assert not decoded
    assert len(constructed) == 3


def test_a_treatment_may_ask_for_the_measurement_several_times_or_not_at_all(
    folder, decoded, constructed
):
    def assembled(choose_treatment):
        return assemble_loaders(
            open_parts(folder),
            choose_treatment,
            train_images=None,
            validation_fraction=0.1,
            batch_size=4,
            seed=3,
            num_workers=0,
            placement=Placement(),
        )

    def measuring(measure):
        first = measure()
        noise = ColorNoise(measure().color_components)
        stats = first.channel_stats("pixel")
        preprocess = Preprocess(RESIZE, 33, mean=stats.mean, std=stats.std)
        assert measure() is first
        return Treatment(preprocess, (noise,), stats)

    loaders = assembled(measuring)
    assert decoded == once(loaders.train.dataset.files)
    assert constructed == list(loaders)
    assert loaders.train.augmentation[0].components == compute_color_components(
        loaders.train.dataset
    )
    assert loaders.validation.augmentation == loaders.test.augmentation == ()
    assert [part.shuffle for part in loaders] == [True, False, False]
    assert {part.preprocess for part in loaders} == {loaders.preprocess}
    assert {(part.batch_size, part.seed) for part in loaders} == {(4, 3)}
    decoded.clear()
    constructed.clear()
    assembled(lambda measure: Treatment(AS_IT_IS))
    assert not decoded
    assert len(constructed) == 3


def test_a_pass_decodes_each_photo_once(folder, decoded):
    loaders = build_loaders(folder, image_size=33, stats=STATS, batch_size=3)
    list(loaders.train)
    assert decoded == once(loaders.train.dataset.files)


def test_small_photos_of_one_size_are_decoded_once_for_all_epochs(tmp_path, decoded):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = random_pixels(8, 8, seed=number)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    loaders = build_loaders(tmp_path, image_size=8)
    assert isinstance(loaders.train.dataset, ImageTensors)
    for _ in range(2):
        for part in loaders:
            list(part) if part else None
    assert set(decoded.values()) == {1}
    assert len(decoded) == 8
