"""The promises of the loaders: the tutorial's batches, in an order that is a function of the seed.

Most sets here are of numbered images: all pixels of image i have the value i, so that a batch says
which images it holds.
"""

import copy
import pickle
import re
from dataclasses import FrozenInstanceError, replace
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import (
    COMPONENTS,
    Fade,
    FakeCifar10,
    assert_same_pass,
    in_memory,
    random_batch,
    random_pixels,
    read_lazily,
    smooth_pixels,
    whole_pass,
    witness,
    write_class_folders,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms as tv
from torchvision.transforms import v2

from alexnet_lib.data import images as image_sets
from alexnet_lib.data import loaders as loaders_module
from alexnet_lib.data.augmentation import (
    ColorNoise,
    HorizontalFlip,
    RandomCrop,
    RandomShift,
    TrivialAugment,
)
from alexnet_lib.data.images import ImageFiles, ImageTensors, WrappedDataset
from alexnet_lib.data.loaders import (
    BatchLoader,
    Loaders,
    build_cifar10_loaders,
    build_loaders,
)
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.statistics import (
    CIFAR10_STATS,
    ChannelStats,
    compute_channel_stats,
    compute_color_components,
)
from alexnet_lib.devices import Placement, generator_for

STATS = ChannelStats((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), 1)
AS_IT_IS = Preprocess(resize=4, image_size=4)

KINDS = (
    HorizontalFlip(),
    RandomCrop(),
    ColorNoise(COMPONENTS),
    TrivialAugment(),
    Fade(),
)
COMBINATIONS = (
    *((augmentation,) for augmentation in KINDS),
    KINDS,
    KINDS[::-1],
)
any_augmentation = pytest.mark.parametrize(
    "augmentation",
    COMBINATIONS,
    ids=["+".join(type(one).__name__ for one in several) for several in COMBINATIONS],
)
any_kind = pytest.mark.parametrize("kind", [in_memory, read_lazily])
any_fit = pytest.mark.parametrize("image_fit", ["crop", "squash"])


EPOCH_0_OF_SEED_3 = [3, 1, 10, 2, 11, 7, 0, 9, 8, 5, 6, 4]
EPOCH_4_OF_SEED_3 = [11, 2, 4, 10, 1, 5, 7, 3, 9, 8, 6, 0]


def numbered_images(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4)


def shuffling(count: int = 50, **options) -> BatchLoader:
    options = {"batch_size": 8, "shuffle": True, **options}
    return BatchLoader(in_memory(numbered_images(count)), AS_IT_IS, **options)


def flipping(kind=in_memory, **options) -> BatchLoader:
    """A loader of 20 images that are unlike their mirror images."""
    images = random_batch(20, 4, 4)
    options = {"shuffle": True, "augmentation": (HorizontalFlip(),), **options}
    return BatchLoader(kind(images), AS_IT_IS, **options)


def augmenting(kind=in_memory, **options) -> BatchLoader:
    """A loader of 20 random images that are cropped, and have an edge."""
    images = random_batch(20, 8, 8)
    preprocess = Preprocess(8, 7, mean=(0.5,) * 3, std=(0.25,) * 3, edge=1)
    return BatchLoader(kind(images), preprocess, **{"shuffle": True, **options})


def numbers(loader: BatchLoader) -> list[int]:
    """The numbers of the images of a pass, in their order."""
    return [
        number
        for images, _ in loader
        for number in (255 * images[:, 0, 0, 0]).round().int().tolist()
    ]


def dataset_loaders(count: int = 60, classes: int = 3, **options) -> Loaders:
    images = numbered_images(count)
    data = TensorDataset(images, torch.arange(count) % classes)
    test = TensorDataset(images[:20], torch.arange(20) % classes)
    options = {"image_size": 4, "stats": STATS, **options}
    return build_loaders((data, test), **options)


def positions(loader: BatchLoader) -> set[int]:
    """The positions of a part's images in the data set that was given."""
    assert isinstance(loader.dataset, WrappedDataset)
    return set(loader.dataset.indices.tolist())


# A batch


def test_a_batch_is_the_tutorials_to_tensor_resize_and_normalize_of_each_image(device):
    photos = np.stack([random_pixels(32, 32, seed) for seed in range(2)])
    data = in_memory(torch.from_numpy(photos).movedim(-1, 1))
    preprocess = Preprocess(227, 227, "squash", mean=STATS.mean, std=STATS.std)
    ((images, _),) = BatchLoader(data, preprocess, placement=Placement(device))
    tutorial = tv.Compose(
        [tv.ToTensor(), tv.Resize((227, 227)), tv.Normalize(STATS.mean, STATS.std)]
    )
    expected = torch.stack([tutorial(photo) for photo in photos])
    torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-5)


def test_a_batch_is_float32_images_and_int64_labels():
    images, labels = next(iter(BatchLoader(in_memory(numbered_images(5)), AS_IT_IS)))
    assert (images.shape, images.dtype) == ((5, 3, 4, 4), torch.float32)
    assert (labels.shape, labels.dtype) == ((5,), torch.int64)


@any_kind
def test_a_saved_batch_does_not_hold_the_labels_of_the_whole_epoch(kind):
    for _, labels in BatchLoader(kind(random_batch(20, 4, 4)), AS_IT_IS, batch_size=8):
        assert labels.untyped_storage().nbytes() == 8 * len(labels)


@any_kind
def test_each_image_comes_with_its_own_label(device, kind):
    loader = BatchLoader(
        kind(numbered_images(50), classes=7), AS_IT_IS, shuffle=True, placement=Placement(device)
    )
    images, labels = next(iter(loader))
    assert labels.tolist() == [
        number % 7 for number in (255 * images[:, 0, 0, 0]).round().int().tolist()
    ]


def test_without_shuffle_the_order_is_that_of_the_data_set():
    assert numbers(shuffling(shuffle=False)) == list(range(50))


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_the_length_is_the_number_of_batches_and_only_the_last_is_short(count, batch_size):
    loader = shuffling(count, batch_size=batch_size)
    sizes = [len(labels) for _, labels in loader]
    assert len(loader) == len(sizes)
    assert set(sizes[:-1]) <= {batch_size}
    assert 0 < sizes[-1] <= batch_size
    assert sum(sizes) == count


def test_a_resize_above_the_image_size_yields_the_middle_of_the_larger_image():
    image = torch.from_numpy(random_pixels(10, 10)).movedim(-1, 0)[None]
    ((images, _),) = BatchLoader(in_memory(image), Preprocess(resize=10, image_size=4))
    assert torch.equal(images, image[..., 3:7, 3:7] / 255)


# The order of an epoch


def test_looking_at_the_first_batch_any_number_of_times_changes_nothing():
    loader = flipping(batch_size=6)
    looks = [next(iter(loader))[0] for _ in range(3)]
    assert torch.equal(looks[0], looks[1])
    assert torch.equal(looks[0], looks[2])
    assert torch.equal(looks[0], whole_pass(loader)[:6])


def test_a_pass_that_is_broken_off_does_not_advance_the_epoch():
    loader = shuffling()
    for step, _ in enumerate(loader):
        if step == 3:
            break
    assert numbers(loader) == numbers(shuffling())


def test_an_exhausted_pass_advances_the_epoch():
    loader = shuffling()
    first, second = numbers(loader), numbers(loader)
    assert first != second
    fresh = shuffling()
    fresh.set_epoch(1)
    assert second == numbers(fresh)


@pytest.mark.parametrize(
    "whole_of",
    [
        lambda loader: list(islice(loader, len(loader))),
        lambda loader: list(zip(range(len(loader)), loader, strict=False)),
        lambda loader: list(zip(loader, range(len(loader)), strict=False)),
        lambda loader: [next(batches) for batches in [iter(loader)] for _ in range(len(loader))],
    ],
    ids=["islice", "zip with a range", "zip of a range", "next"],
)
@pytest.mark.parametrize("count", [50, 48, 5])
def test_a_pass_is_complete_when_its_last_batch_is_handed_out(whole_of, count):
    loader = shuffling(count)
    whole_of(loader)
    assert loader.epoch == 1
    whole_of(loader)
    assert loader.epoch == 2


def test_a_pass_without_its_last_batch_is_not_complete():
    loader = shuffling()
    list(islice(loader, len(loader) - 1))
    assert loader.epoch == 0


def test_an_epoch_that_is_set_during_the_last_batch_stays():
    loader = shuffling()
    for number, _ in enumerate(loader):
        if number == len(loader) - 1:
            loader.set_epoch(7)
    assert loader.epoch == 7


def test_the_order_of_an_epoch_is_that_of_earlier_versions():
    # Stored results, and runs that are resumed, depend on it.
    loader = BatchLoader(in_memory(numbered_images(12)), AS_IT_IS, shuffle=True, seed=3)
    assert numbers(loader) == EPOCH_0_OF_SEED_3
    loader.set_epoch(4)
    assert numbers(loader) == EPOCH_4_OF_SEED_3


@pytest.mark.bad_input
@pytest.mark.parametrize("epoch", [-1, 1.0, "1", None, True])
def test_an_epoch_is_an_integer_from_0(epoch):
    loader = shuffling()
    for use in (loader.set_epoch, loader.batches):
        with pytest.raises(ValueError, match=f"epoch is {epoch!r}; expected an integer of at leas"):
            use(epoch)
    assert loader.epoch == 0
    with pytest.raises(ValueError, match="start is -1; expected an integer of at least 0"):
        loader.batches(0, -1)


@pytest.mark.bad_input  # for the annotations
def test_numpys_integers_are_integers():
    loader = BatchLoader(
        in_memory(numbered_images(20)),
        AS_IT_IS,
        batch_size=np.int64(8),
        seed=np.int32(1),
        num_workers=np.uint8(0),
        shuffle=np.bool_(True),
    )
    assert numbers(loader) == numbers(shuffling(20, seed=1))
    loader.set_epoch(np.int64(3))
    kept = (loader.batch_size, loader.seed, loader.num_workers, loader.shuffle, loader.epoch)
    assert kept == (8, 1, 0, True, 3)
    assert {type(value) for value in kept} == {int, bool}
    images = {"image_size": np.int64(4), "resize": np.int16(6), "train_images": np.int32(40)}
    loaders = dataset_loaders(60, seed=np.int64(2), batch_size=np.int64(7), **images)
    plain = dataset_loaders(60, image_size=4, resize=6, train_images=40, seed=2, batch_size=7)
    assert positions(loaders.train) == positions(plain.train)
    assert loaders.preprocess == plain.preprocess
    assert_same_pass(loaders.train, plain.train)


@any_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on_where_the_loader_is_and_by_itself(kind, copied):
    loader = flipping(kind)
    whole_pass(loader)
    twin = copied(loader)
    assert_same_pass(twin, loader)
    assert (twin.epoch, loader.epoch) == (2, 2)
    whole_pass(twin)
    assert (twin.epoch, loader.epoch) == (3, 2)


# Whole batches, and classes of equal weight


@any_kind
@given(count=st.integers(1, 40), batch_size=st.integers(1, 40))
@settings(max_examples=15)
def test_drop_last_leaves_out_the_smaller_batch_and_nothing_else(kind, count, batch_size):
    batch_size = min(count, batch_size)
    options = {"batch_size": batch_size, "shuffle": True}
    loader = BatchLoader(kind(numbered_images(count)), AS_IT_IS, **options)
    whole = [labels.tolist() for _, labels in loader.batches(1)]
    dropping = replace(loader, drop_last=True)
    dropping.set_epoch(1)
    expected = [labels for labels in whole if len(labels) == batch_size]
    assert [labels.tolist() for _, labels in dropping] == expected
    assert dropping.epoch == 2
    assert len(dropping) == len(expected) == count // batch_size
    assert [labels.tolist() for _, labels in dropping.batches(1, 1)] == expected[1:]
    dropping.set_epoch(1)
    assert [labels.tolist() for _, labels in dropping.views(1)] == expected


@pytest.mark.bad_input
def test_drop_last_that_leaves_nothing_is_refused():
    text = "drop_last is True, but batch_size is 8 and there are 5 images, so that no batch is left"
    with pytest.raises(ValueError, match=text):
        shuffling(5, drop_last=True)
    assert len(shuffling(8, drop_last=True)) == 1


def unequal(sizes: list[int], kind=in_memory, **options) -> BatchLoader:
    """A loader of numbered images, so many of each class."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    data = replace(kind(numbered_images(len(labels)), classes=len(sizes)), labels=labels)
    return BatchLoader(data, AS_IT_IS, **{"shuffle": True, "balanced": True, **options})


def test_a_balanced_epoch_has_each_class_equally_often_and_each_image_of_a_class():
    loader = unequal([150, 40, 10])
    labels = torch.cat([labels for epoch in range(40) for _, labels in loader.batches(epoch)])
    shares = torch.bincount(labels) / len(labels)
    assert len(labels) == 40 * 200
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    images = [n for epoch in range(40) for x, _ in loader.batches(epoch) for n in numbers_of(x)]
    counts = np.bincount(images, minlength=200)
    # About 18, 67 and 267 times.
    for first, last, mean in ((0, 150, 17.8), (150, 190, 66.7), (190, 200, 266.7)):
        assert counts[first:last].mean() == pytest.approx(mean, rel=0.06)
        assert counts[first:last].min() > mean / 4
        assert counts[first:last].max() < mean * 2.2


def numbers_of(images: torch.Tensor) -> list[int]:
    return (255 * images[:, 0, 0, 0]).round().int().tolist()


@any_kind
def test_a_balanced_epoch_is_a_function_of_seed_and_epoch(kind):
    loader = unequal([9, 3, 1], kind, batch_size=4)
    epochs = [numbers(loader), numbers(loader)]
    assert epochs[0] != epochs[1]
    assert numbers(replace(loader, batch_size=5)) == epochs[0]
    assert numbers(unequal([9, 3, 1])) == epochs[0]
    assert numbers(replace(loader, seed=1)) != epochs[0]
    assert [n for images, _ in loader.batches(0, 2) for n in numbers_of(images)] == epochs[0][8:]
    assert len(loader) == 4
    assert len(replace(loader, drop_last=True)) == len([*replace(loader, drop_last=True)]) == 3


@any_kind
def test_images_of_a_balanced_epoch_come_with_their_own_labels(kind):
    loader = unequal([9, 3, 1], kind, batch_size=4)
    for images, labels in loader:
        assert labels.tolist() == [(n >= 9) + (n >= 12) for n in numbers_of(images)]


def test_classes_without_images_are_not_drawn():
    for sizes in ([0, 0, 5, 2], [0, 5, 0, 0, 2, 0], [3, 0], [0, 3]):
        loader = unequal(sizes)
        drawn = torch.cat([y for epoch in range(200) for _, y in loader.batches(epoch)])
        counts = torch.bincount(drawn, minlength=len(sizes))
        present = [size > 0 for size in sizes]
        shares = [here / sum(present) for here in present]
        assert (counts / counts.sum()).tolist() == pytest.approx(shares, abs=0.05)


@pytest.mark.bad_input
def test_a_balanced_epoch_is_shuffled():
    with pytest.raises(ValueError, match="balanced is True, but shuffle is False; expected shuffl"):
        unequal([2, 2], shuffle=False)


def test_drop_last_and_balanced_are_those_of_the_training_images_alone():
    loaders = dataset_loaders(60, drop_last=True, balanced=True, batch_size=8)
    assert [(part.drop_last, part.balanced) for part in loaders] == [
        (True, True),
        (False, False),
        (False, False),
    ]
    assert sum(len(labels) for _, labels in loaders.test) == 20


# Channels


@any_kind
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_any_number_of_channels_are_augmented_and_normalised(kind, channels):
    images = torch.randint(0, 256, (6, channels, 8, 8), dtype=torch.uint8)
    data = kind(images)
    data = data if kind is in_memory else replace(data, channels=channels)
    values = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    augmentation = (HorizontalFlip(1.0), RandomCrop(), RandomShift())
    loader = BatchLoader(data, Preprocess(8, 6, **values), augmentation=augmentation)
    assert whole_pass(loader).shape == (6, channels, 6, 6)
    plain = replace(loader, augmentation=())
    torch.testing.assert_close(whole_pass(plain), (images[..., 1:7, 1:7] / 255 - 0.5) / 0.25)


@pytest.mark.bad_input
def test_other_channels_than_those_of_the_images_are_refused():
    grey = ImageTensors(numbered_images(4)[:, :1], torch.zeros(4).long(), ("a",))
    text = "preprocess is for 3 channels, the length of its mean, but the images have 1; expected"
    with pytest.raises(ValueError, match=text):
        BatchLoader(grey, AS_IT_IS)
    one = Preprocess(4, 4, mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match=r"ColorNoise of 3 channels, but the images have 1; expec"):
        BatchLoader(grey, one, augmentation=(ColorNoise(COMPONENTS),))
    two = ImageTensors(torch.zeros(4, 2, 4, 4, dtype=torch.uint8), grey.labels, ("a",))
    values = Preprocess(4, 4, mean=(0.5,) * 2, std=(0.5,) * 2)
    text = r"TrivialAugment\(\), which is for images of 1 or 3 channels, but the images have 2"
    with pytest.raises(ValueError, match=text):
        BatchLoader(two, values, augmentation=(TrivialAugment(),))
    BatchLoader(grey, one, augmentation=(TrivialAugment(),))


@pytest.mark.bad_input
def test_statistics_of_other_channels_are_refused():
    grey = TensorDataset(numbered_images(20)[:, :1], torch.arange(20) % 2)
    text = "stats has 3 channels, but the images have 1; expected statistics of these images"
    with pytest.raises(ValueError, match=text):
        build_loaders(grey, image_size=4, stats=STATS)


@pytest.mark.parametrize(("channels", "expected"), [(None, 1), (1, 1), (3, 3)])
def test_grey_data_sets_stay_grey_or_become_rgb(channels, expected):
    grey = TensorDataset(numbered_images(20)[:, :1], torch.arange(20) % 2)
    loaders = build_loaders(grey, image_size=4, channels=channels)
    assert loaders.channels == len(loaders.stats.mean) == loaders.preprocess.channels == expected
    assert next(iter(loaders.train))[0].shape[1] == expected


@pytest.mark.parametrize(("channels", "expected"), [(None, 3), (1, 1), (3, 3)])
def test_files_become_grey_or_rgb(tmp_path, channels, expected):
    root = write_class_folders(tmp_path, count=5, size=(100, 110))
    loaders = build_loaders(root, image_size=32, channels=channels)
    assert isinstance(loaders.train.dataset, ImageFiles)
    assert (loaders.channels, loaders.preprocess.channels) == (expected, expected)
    assert {images.shape[1] for images, _ in loaders.train} == {expected}


def test_transparent_pixels_get_the_background_in_every_part_and_in_the_statistics(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(5):
            clear = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
            clear.save(tmp_path / name / f"{number}.png")
    stats = ChannelStats((0.0,) * 3, (1.0,) * 3, 1)
    for background, colour in (("white", [1, 1, 1]), ("#0000ff", [0, 0, 1])):
        loaders = build_loaders(tmp_path, image_size=8, background=background, stats=stats)
        for part in loaders:
            assert whole_pass(part).amax((0, 2, 3)).tolist() == colour
            assert whole_pass(part).amin((0, 2, 3)).tolist() == colour
        assert loaders.preprocess.background == background
        assert compute_channel_stats(loaders.train.dataset).mean == pytest.approx(colour)


def test_set_epoch_repeats_an_epoch_exactly(device):
    loader = flipping(placement=Placement(device))
    passes = [whole_pass(loader) for _ in range(3)]
    loader.set_epoch(1)
    assert torch.equal(whole_pass(loader), passes[1])
    assert torch.equal(whole_pass(loader), passes[2])


def test_different_seeds_give_different_orders(device):
    assert numbers(shuffling(seed=0, placement=Placement(device))) != numbers(
        shuffling(seed=1, placement=Placement(device))
    )


def test_an_epoch_of_one_seed_is_no_epoch_of_the_next_seed():
    later = shuffling(seed=0)
    later.set_epoch(1)
    assert numbers(later) != numbers(shuffling(seed=1))


def test_augmentation_differs_between_epochs(device):
    loader = flipping(shuffle=False, placement=Placement(device))
    assert not torch.equal(whole_pass(loader), whole_pass(loader))


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_every_image_comes_exactly_once_in_an_epoch(device, seed, epoch):
    loader = shuffling(seed=seed, placement=Placement(device))
    loader.set_epoch(epoch)
    assert sorted(numbers(loader)) == list(range(50))


@any_augmentation
@settings(max_examples=10)
@given(batch_size=st.integers(1, 25))
def test_order_and_augmentation_do_not_depend_on_the_batch_size(device, augmentation, batch_size):
    loader = augmenting(augmentation=augmentation, placement=Placement(device))
    assert_same_pass(replace(loader, batch_size=batch_size), loader)


@any_augmentation
def test_order_and_augmentation_do_not_depend_on_where_the_images_are_held(device, augmentation):
    loaders = [
        augmenting(kind, augmentation=augmentation, placement=Placement(device))
        for kind in (in_memory, read_lazily)
    ]
    assert_same_pass(*loaders)


@any_augmentation
def test_an_augmentation_changes_images_and_is_another_one_in_each_epoch(device, augmentation):
    loader = augmenting(augmentation=augmentation, shuffle=False, placement=Placement(device))
    plain = whole_pass(replace(loader, augmentation=()))
    first, second = whole_pass(loader), whole_pass(loader)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, second)


@any_augmentation
def test_an_augmentation_leaves_images_held_in_memory_as_they_were(device, augmentation):
    loader = augmenting(augmentation=augmentation, placement=Placement(device))
    before = loader.dataset.images.clone()
    whole_pass(loader)
    assert torch.equal(loader.dataset.images, before)


@any_augmentation
def test_an_augmentation_keeps_dtype_and_memory_format(device, augmentation):
    placement = Placement(device, torch.bfloat16, torch.channels_last)
    for images, _ in augmenting(augmentation=augmentation, placement=placement):
        assert images.dtype == torch.bfloat16
        assert images.is_contiguous(memory_format=torch.channels_last)


# The parts


def test_a_single_data_set_is_split_into_the_three_parts():
    data = TensorDataset(numbered_images(60), torch.arange(60) % 3)
    loaders = build_loaders(data, image_size=4, stats=STATS)
    assert [len(part.dataset) for part in loaders] == [43, 5, 12]
    assert set.union(*map(positions, loaders)) == set(range(60))


def test_fractions_seed_and_train_images_decide_the_parts():
    options = {"validation_fraction": 0.25, "seed": 1, "train_images": 40}
    loaders = dataset_loaders(60, **options)
    assert [len(part.dataset) for part in loaders] == [30, 10, 20]
    assert positions(loaders.train) == positions(dataset_loaders(60, **options).train)
    assert positions(loaders.train) != positions(
        dataset_loaders(60, **{**options, "seed": 0}).train
    )
    data = TensorDataset(numbered_images(60), torch.arange(60) % 3)
    whole = build_loaders(
        data, image_size=4, stats=STATS, validation_fraction=0.0, test_fraction=0.0
    )
    assert (whole.validation, whole.test) == (None, None)
    assert positions(whole.train) == set(range(60))


def test_only_the_training_part_is_shuffled_and_augmented():
    train, validation, test = dataset_loaders(augmentation=HorizontalFlip())
    assert [part.shuffle for part in (train, validation, test)] == [True, False, False]
    assert train.augmentation == (HorizontalFlip(),)
    assert validation.augmentation == test.augmentation == ()


def test_augmentations_are_none_or_one_or_a_sequence_of_them():
    several = (HorizontalFlip(), RandomCrop(), Fade())
    assert dataset_loaders(augmentation=None).train.augmentation == ()
    assert dataset_loaders(augmentation=Fade()).train.augmentation == (Fade(),)
    assert dataset_loaders(augmentation=several).train.augmentation == several
    assert dataset_loaders(augmentation=list(several)).train.augmentation == several


# What the loaders know


def test_pixel_statistics_are_measured_on_the_training_part_alone():
    loaders = dataset_loaders(60, stats="pixel", validation_fraction=0.5)
    images = torch.stack([image for image, _ in DataLoader(loaders.train.dataset, batch_size=None)])
    expected = compute_channel_stats(images)
    assert loaders.stats.count == 30
    assert loaders.stats.mean == pytest.approx(expected.mean, rel=1e-12)
    assert loaders.stats.std == pytest.approx(expected.std, rel=1e-12)


def test_per_image_statistics_are_the_mean_of_the_training_images_own_deviations():
    images = random_batch(20, 8, 8)
    data = TensorDataset(images, torch.arange(20) % 2)
    options = {"image_size": 8, "validation_fraction": 0.0, "test_fraction": 0.0}
    loaders = build_loaders(data, stats="per_image", **options)
    expected = compute_channel_stats(images, std="per_image")
    assert loaders.stats.mean == pytest.approx(expected.mean, rel=1e-12)
    assert loaders.stats.std == pytest.approx(expected.std, rel=1e-12)
    assert loaders.stats.std != build_loaders(data, **options).stats.std
    assert loaders.preprocess.std == loaders.stats.std


def test_a_part_of_a_loader_can_be_measured_as_it_is():
    for kind in (in_memory, read_lazily):
        images = random_batch(20, 8, 8)
        data = BatchLoader(kind(images), AS_IT_IS).dataset
        assert compute_channel_stats(data).mean == pytest.approx(
            compute_channel_stats(images).mean, rel=1e-12
        )
        assert compute_color_components(data).std == pytest.approx(
            compute_color_components(images).std, rel=1e-12
        )


def test_all_parts_are_normalised_with_the_stats():
    for part in dataset_loaders():
        assert part.preprocess == Preprocess(4, 4, "crop", mean=STATS.mean, std=STATS.std)


def test_loaders_unpack_into_training_validation_and_test():
    loaders = dataset_loaders()
    train, validation, test = loaders
    assert (train, validation, test) == (loaders.train, loaders.validation, loaders.test)


def test_loaders_tell_their_classes_stats_image_size_and_preprocess():
    loaders = dataset_loaders(classes=3, resize=6)
    assert loaders.classes == ("0", "1", "2")
    assert loaders.stats == STATS
    assert loaders.image_size == 4
    assert loaders.preprocess.resize == 6


@any_kind
@pytest.mark.parametrize("number", [1, 2, 10])
def test_views_are_those_of_the_whole_images_in_the_order_of_the_next_pass(device, kind, number):
    images = random_batch(20, 8, 8)
    preprocess = Preprocess(11, 8, mean=STATS.mean, std=STATS.std, edge=2)
    loader = BatchLoader(
        kind(images), preprocess, batch_size=6, shuffle=True, placement=Placement(device)
    )
    loader.set_epoch(1)
    epoch = shuffling(20, placement=Placement(device))
    epoch.set_epoch(1)
    order = torch.tensor(numbers(epoch))
    whole = preprocess.normalized(preprocess.resized(images.to(device)))[order.to(device)]
    expected = list(preprocess.views(whole, number))
    batches = [(list(views), labels) for views, labels in loader.views(number)]
    assert torch.equal(torch.cat([labels for _, labels in batches]).cpu(), order % 2)
    for views in zip(expected, *(views for views, _ in batches), strict=True):
        torch.testing.assert_close(torch.cat(views[1:]), views[0], rtol=0, atol=2e-5)


def test_views_leave_the_epoch_as_it_is():
    loader = shuffling()
    loader.set_epoch(3)
    list(loader.views(1))
    assert loader.epoch == 3


def test_a_loader_cannot_be_changed():
    loader = shuffling()
    with pytest.raises(FrozenInstanceError):
        loader.batch_size = 9


def test_a_copy_with_other_arguments_starts_at_epoch_0_and_leaves_the_first_alone():
    loader = shuffling()
    list(loader)
    copy = replace(loader, batch_size=9)
    assert (loader.epoch, copy.epoch) == (1, 0)
    assert numbers(copy) == numbers(shuffling())
    assert numbers(loader) != numbers(shuffling())


def test_to_changes_dtype_and_memory_format_of_the_batches(device):
    for part in dataset_loaders().to(device, torch.bfloat16, torch.channels_last):
        images, labels = next(iter(part))
        assert images.device == labels.device == device
        assert images.dtype == torch.bfloat16
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64


@any_kind
def test_batches_in_bfloat16_are_those_in_float32_rounded_once(device, kind, implementation):
    treatment = Preprocess(9, 7, mean=(0.5,) * 3, std=(0.25,) * 3)
    images = random_batch(20, 4, 4)
    loader = BatchLoader(
        kind(images),
        treatment,
        augmentation=(HorizontalFlip(),),
        shuffle=True,
        placement=Placement(device),
    )
    short = Placement(device, torch.bfloat16, torch.channels_last)
    expected = whole_pass(loader).bfloat16()
    assert torch.equal(whole_pass(replace(loader, placement=short)), expected)


# What is applied to what


def test_input_is_what_the_network_gets_and_comes_last_wherever_it_stands():
    seen = []
    both = (witness("input", seen), witness("pixels", seen))
    treatment = Preprocess(resize=9, image_size=6, edge=1)
    whole_pass(BatchLoader(in_memory(numbered_images(3)), treatment, augmentation=both))
    assert seen == [
        ("pixels", (3, 3, 4, 4), torch.uint8, [0, 1, 2]),
        ("input", (3, 3, 6, 6), torch.float32, [0, 1, 2]),
    ]


SIZES = ((30, 30), (40, 40), (30, 41), (40, 61), (61, 50), (60, 60))  # resized to 40


@any_kind
@any_fit
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_are_changed_before_the_resize_only_where_that_enlarges_them(
    kind, image_fit, height, width
):
    seen = []
    images = kind(random_batch(3, height, width))
    treatment = Preprocess(40, 33, image_fit)
    whole_pass(BatchLoader(images, treatment, augmentation=(witness("pixels", seen),)))
    square = height == width or image_fit == "squash"
    before = square and max(height, width) <= 40
    ((_, shape, _, _),) = seen
    assert shape == ((3, 3, height, width) if before else (3, 3, 40, 40))


@any_kind
@any_fit
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("augmentation", [HorizontalFlip(1.0), ColorNoise(COMPONENTS)])
def test_a_flip_and_colour_noise_give_the_same_input_as_after_the_resize(
    device, kind, image_fit, height, width, augmentation
):
    images = random_batch(6, height, width)
    preprocess = Preprocess(40, 33, image_fit, mean=STATS.mean, std=STATS.std, edge=3)
    loader = BatchLoader(
        kind(images), preprocess, augmentation=(augmentation,), placement=Placement(device)
    )
    draws = augmentation.draw(6, generator_for(loader.seed, 0)).to(device)
    images = images.to(device)
    resized = augmentation.apply(preprocess.resized(images), draws)
    expected = preprocess.network_input(resized)
    torch.testing.assert_close(whole_pass(loader), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, preprocess(images), atol=0.01)


@any_kind
@any_fit
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_trivial_augment_sees_images_of_the_size_they_are_resized_to(
    kind, image_fit, height, width, monkeypatch
):
    seen = []
    real = TrivialAugment.apply
    monkeypatch.setattr(
        TrivialAugment, "apply", lambda self, x, draws: seen.append(x.shape) or real(self, x, draws)
    )
    images = kind(random_batch(3, height, width))
    loader = BatchLoader(images, Preprocess(40, 33, image_fit), augmentation=(TrivialAugment(),))
    assert whole_pass(loader).shape == (3, 3, 33, 33)
    assert seen == [(3, 3, 40, 40)]


@any_kind
def test_trivial_augment_does_the_same_to_images_of_any_size_once_they_are_resized(device, kind):
    images = random_batch(8, 20, 20)
    treatment = Preprocess(40, 33)
    loader = BatchLoader(
        kind(images), treatment, augmentation=(TrivialAugment(),), placement=Placement(device)
    )
    resized = (255 * treatment.resized(images)).round().to(torch.uint8)
    expected = whole_pass(replace(loader, dataset=in_memory(resized)))
    torch.testing.assert_close(whole_pass(loader), expected, rtol=0, atol=1e-5)


def test_images_keep_their_own_draws_in_every_batch(device):
    seen = []
    both = (witness("pixels", seen), witness("input", seen))
    loader = BatchLoader(
        in_memory(numbered_images(5)),
        AS_IT_IS,
        augmentation=both,
        batch_size=3,
        placement=Placement(device),
    )
    whole_pass(loader)
    assert [draws for *_, draws in seen] == [[0, 1, 2], [0, 1, 2], [3, 4], [3, 4]]


def test_augmentations_are_applied_in_their_order(device):
    noise, flip = ColorNoise(COMPONENTS), TrivialAugment()
    passes = [
        whole_pass(augmenting(augmentation=both, placement=Placement(device)))
        for both in ((noise, flip), (flip, noise))
    ]
    # Only the last one's values lie between those of bytes.
    bytes_are = [
        torch.allclose(values, values.round(), atol=1e-3)
        for values in (255 * (0.25 * inputs + 0.5)[..., :6, :6] for inputs in passes)
    ]
    assert bytes_are == [True, False]


def test_an_augmentation_of_the_input_changes_what_the_network_would_get(device):
    loader = augmenting(augmentation=(Fade(),), shuffle=False, placement=Placement(device))
    plain = whole_pass(replace(loader, augmentation=()))
    draws = Fade().draw(20, generator_for(loader.seed, 0)).to(device)
    assert torch.equal(whole_pass(loader), plain * draws[:, None, None, None])


def test_color_noise_is_added_before_the_normalisation(device):
    loader = augmenting(augmentation=(ColorNoise(COMPONENTS),), placement=Placement(device))
    plain = whole_pass(replace(loader, augmentation=()))
    added = whole_pass(loader) - plain
    colours = added[..., 0, 0]
    torch.testing.assert_close(
        added[..., :6, :6], colours[:, :, None, None].expand(-1, -1, 6, 6), rtol=0, atol=1e-5
    )
    # The edge stays 0.
    assert not added[..., 6:, :].any()
    # std 0.25 makes the noise four times as large.
    assert 0.2 * 0.4 < colours.norm(dim=1).mean() < 0.6 * 0.4


@any_kind
def test_a_random_crop_is_some_part_of_the_whole_image(device, kind):
    images = random_batch(20, 8, 8)
    preprocess = Preprocess(11, 8, mean=STATS.mean, std=STATS.std, edge=1)
    loader = BatchLoader(
        kind(images),
        preprocess,
        augmentation=(RandomCrop(),),
        batch_size=6,
        placement=Placement(device),
    )
    uncropped = replace(
        loader, augmentation=(), preprocess=replace(preprocess, image_size=11, edge=0)
    )
    corners = set()
    for cropped, whole in zip(whole_pass(loader), whole_pass(uncropped), strict=True):
        crops = whole.unfold(1, 7, 1).unfold(2, 7, 1)  # (3, 5, 5, 7, 7)
        apart = (crops - cropped[:, None, None, :7, :7]).abs().amax((0, 3, 4))
        assert apart.min() < 1e-5
        corners.add(int(apart.argmin()))
    assert len(corners) > 5


def test_a_random_crop_without_a_margin_changes_nothing(device):
    loader = flipping(augmentation=(RandomCrop(),), placement=Placement(device))
    plain = whole_pass(replace(loader, augmentation=()))
    assert torch.equal(whole_pass(loader), plain)


def test_to_changes_the_device_of_the_batches_and_of_images_in_memory(monkeypatch):
    # Every machine has the device "meta", which holds shapes without numbers to look at.
    monkeypatch.setattr(image_sets, "check_labels", lambda labels, classes: None)
    monkeypatch.setattr(loaders_module, "resolve_device", torch.device)
    data = in_memory(numbered_images(20))
    loaders = Loaders(BatchLoader(data, AS_IT_IS, shuffle=True), None, None).to("meta")
    images, labels = next(iter(loaders.train))
    devices = (images.device, labels.device, loaders.train.dataset.images.device)
    assert {device.type for device in devices} == {"meta"}
    assert loaders.validation is None


def test_to_leaves_what_it_is_not_told():
    before = dataset_loaders().to("cpu", torch.float64, torch.channels_last)
    before.train.set_epoch(5)
    after = before.to("cpu")
    assert after.train.placement.dtype == torch.float64
    assert after.train.placement.memory_format == torch.channels_last
    for old, new in zip(before, after, strict=True):
        for name in ("preprocess", "batch_size", "shuffle", "augmentation", "seed", "stats"):
            assert getattr(new, name) == getattr(old, name)
    assert after.train.epoch == 0


def test_to_leaves_the_loaders_it_came_from_alone():
    before = dataset_loaders()
    before.to("cpu", torch.float64, torch.channels_last)
    assert {part.placement for part in before} == {Placement()}


def test_the_data_set_of_a_loader_works_in_torchs_dataloader():
    for kind in (in_memory, read_lazily):
        loader = BatchLoader(kind(numbered_images(5)), AS_IT_IS)
        ((images, labels),) = DataLoader(loader.dataset, batch_size=5)
        assert torch.equal(images, numbered_images(5))
        assert labels.tolist() == [0, 1, 0, 1, 0]


# The builders


def test_any_torch_data_set_is_taken():
    data = TensorDataset(torch.rand(10, 3, 6, 8), torch.arange(10) % 2)
    options = {"image_size": 5, "validation_fraction": 0.2, "test_fraction": 0.0}
    loaders = build_loaders(data, batch_size=6, **options)
    assert [tuple(images.shape) for images, _ in loaders.train] == [(6, 3, 5, 5), (2, 3, 5, 5)]
    assert loaders.test is None


def test_a_data_sets_classes_can_be_named():
    data = TensorDataset(numbered_images(4), torch.arange(4) % 2)
    loaders = build_loaders((data, data), classes=["cat", "dog"], image_size=4, stats=STATS)
    assert loaders.classes == loaders.test.dataset.classes == ("cat", "dog")


@any_kind
@any_augmentation
@pytest.mark.parametrize("parts", [2, 3])
def test_the_shares_of_a_batch_are_the_batch(kind, augmentation, parts):
    whole = augmenting(kind, augmentation=augmentation, batch_size=6, seed=2)  # the last has 2
    shares = [replace(whole, share=(number, parts)) for number in range(parts)]
    for (images, labels), *several in zip(whole, *shares, strict=True):
        torch.testing.assert_close(
            torch.cat([part[0] for part in several]), images, rtol=0, atol=1e-6
        )
        assert torch.equal(torch.cat([part[1] for part in several]), labels)
    assert {len(shares[0]), len(whole)} == {4}
    assert shares[0].epoch == whole.epoch == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_the_shares_of_files_are_the_batches_of_files(photo_folder, workers):
    def loaders(**options):
        everything = {"validation_fraction": 0.0, "test_fraction": 0.0}
        augmentation = (HorizontalFlip(), Fade())
        return build_loaders(
            photo_folder,
            image_size=32,
            batch_size=5,
            augmentation=augmentation,
            **everything,
            **options,
        )

    # Batches of 5 and 1 images.
    shares = (loaders(num_workers=workers).share(number, 2).train for number in range(2))
    for (images, labels), *several in zip(loaders().train, *shares, strict=True):
        torch.testing.assert_close(torch.cat([part[0] for part in several]), images)
        assert torch.equal(torch.cat([part[1] for part in several]), labels)


def test_the_parts_of_a_share_are_as_equal_as_they_can_be():
    for parts in range(1, 9):
        shares = (shuffling(share=(i, parts)) for i in range(parts))
        counts = [[len(labels) for _, labels in share] for share in shares]
        for several in zip(*counts, strict=True):
            assert max(several) - min(several) <= 1
        assert sum(map(sum, counts)) == 50


def test_shares_have_epoch_and_bad_images_in_common_with_the_loaders_they_came_from():
    loaders = build_loaders("shapes", image_size=32, train_images=20, batch_size=4)
    shared = loaders.share(1, 2)
    for _ in shared.train:
        pass
    assert loaders.train.epoch == shared.train.epoch == 1


@pytest.mark.bad_input
@pytest.mark.parametrize("share", [1, "12", (0,), (2, 2), (-1, 2), (0, 0), (0.0, 1), (True, 2), {}])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match=r"^share is .*; expected the number of a part"):
        shuffling(share=share)


@pytest.mark.bad_input
def test_more_parts_than_images_in_a_batch_are_refused():
    with pytest.raises(
        ValueError, match="batch_size is 8, of which 9 processes have no image each"
    ):
        shuffling(share=(0, 9))


def test_batch_size_seed_and_workers_are_those_of_all_parts():
    for part in dataset_loaders(batch_size=7, seed=3, num_workers=2):
        assert (part.batch_size, part.seed, part.num_workers) == (7, 3, 2)


@pytest.fixture
def photo_folder(tmp_path):
    """Two classes of photos, lying and standing, larger than the loaders keep in memory."""
    for name, height, width in (("cat", 80, 120), ("dog", 150, 100)):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.roll(smooth_pixels(height, width), 10 * number, axis=1)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("image_fit", "resize"),
    [("crop", [v2.Resize(60), v2.CenterCrop(60)]), ("squash", [v2.Resize((60, 60))])],
)
def test_photos_of_mixed_sizes_are_fitted_as_torchvision_does(photo_folder, image_fit, resize):
    loaders = build_loaders(
        photo_folder,
        image_size=60,
        image_fit=image_fit,
        stats=STATS,
        test_fraction=0.0,
        validation_fraction=0.0,
    )
    ((images, _),) = replace(loaders.train, shuffle=False)
    floating = v2.ToDtype(torch.float32, scale=True)
    treatment = v2.Compose([v2.ToImage(), *resize, floating, v2.Normalize(STATS.mean, STATS.std)])
    files = loaders.train.dataset.files
    assert len(files) == 6
    for image, file in zip(images, files, strict=True):
        with Image.open(file) as photo:
            expected = treatment(photo).as_subclass(torch.Tensor)
        # A value between two bytes can be rounded to the other.
        apart = (image - expected).abs() * torch.tensor(STATS.std)[:, None, None] * 255
        assert apart.max() < 1.01
        assert apart.mean() < 0.3


def test_photos_are_split_by_file_into_three_stratified_parts(photo_folder):
    loaders = build_loaders(
        photo_folder, image_size=60, stats=STATS, test_fraction=0.34, validation_fraction=0.5
    )
    assert all(isinstance(part.dataset, ImageFiles) for part in loaders)
    assert [part.dataset.labels.tolist() for part in loaders] == [[0, 1]] * 3
    assert len({file for part in loaders for file in part.dataset.files}) == 6


def test_small_images_of_one_size_are_held_in_memory(tmp_path):
    root = write_class_folders(tmp_path, ("cat", "dog"), count=5)
    loaders = build_loaders(root, image_size=8)
    assert [len(part.dataset) for part in loaders] == [7, 1, 2]
    assert all(isinstance(part.dataset, ImageTensors) for part in loaders)
    assert loaders.classes == ("cat", "dog")


def test_a_folders_own_parts_are_kept(tmp_path):
    for part, count in (("train", 4), ("val", 3), ("test", 2)):
        write_class_folders(tmp_path / part, count=count)
    loaders = build_loaders(tmp_path, image_size=8)
    assert [len(part.dataset) for part in loaders] == [8, 6, 4]


def test_cifar10_is_normalised_with_the_published_statistics(tmp_path, monkeypatch):
    fake = FakeCifar10(tmp_path, monkeypatch)
    loaders = build_cifar10_loaders(fake.archive.parent, image_size=67, download=False)
    assert [len(part.dataset) for part in loaders] == [18, 2, 4]
    assert loaders.classes == fake.classes
    assert loaders.stats == CIFAR10_STATS
    assert loaders.image_size == 67


def test_the_shapes_need_no_files():
    loaders = build_loaders("shapes", image_size=67, train_images=40)
    assert [len(part.dataset) for part in loaders] == [36, 4, 2000]
    assert len(loaders.classes) == 10
    assert next(iter(loaders.train))[0].shape == (36, 3, 67, 67)


# Wrong input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected an integer from 1 to 1000000"),
        ({"batch_size": 2.0}, "batch_size is 2.0; expected an integer from 1 to 1000000"),
        ({"drop_last": "no"}, "drop_last is 'no'; expected one of True, False"),
        ({"balanced": None}, "balanced is None; expected one of True, False"),
        ({"drop_last": True, "batch_size": 100}, "drop_last is True, but batch_size is 100 and th"),
        ({"on_bad_image": "ignore"}, "on_bad_image is 'ignore'; expected one of 'stop', 'skip'"),
        ({"bad_image_limit": 2}, "bad_image_limit is 2; expected a fraction from 0 to 1"),
        ({"bad_image_limit": None}, "bad_image_limit is None; expected a fraction from 0 to 1"),
        ({"stats_images": 0}, "stats_images is 0; expected an integer of at least 1, or None"),
        ({"num_workers": -1}, "num_workers is -1; expected an integer from 0 to 1024"),
        ({"stats": "cifar"}, "stats is 'cifar'; expected a ChannelStats, 'pixel' or"),
        ({"stats": None}, "stats is None; expected a ChannelStats, 'pixel' or"),
        (
            {"stats": ChannelStats((0.0,) * 3, (1.0, 0.0, 1.0), 1)},
            "stats has the standard deviations (1.0, 0.0, 1.0); expected all above 0",
        ),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
        ({"resize": 3}, "resize is 3; expected at least 4, what the network sees"),
        (
            {"augmentation": (RandomCrop(), RandomCrop())},
            "augmentation has [RandomCrop(), RandomCrop()]; expected at most one RandomCrop",
        ),
        ({"image_fit": "stretch"}, "image_fit is 'stretch'; expected one of 'crop', 'squash'"),
        ({"device": "gpu"}, "device is 'gpu'; expected 'auto' or a device of this machine"),
        ({"device": None}, "device is None; expected 'auto', a torch.device or its name"),
        ({"device": "cuda:99"}, "device is 'cuda:99'; expected 'auto' or a device of this machine"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataset_loaders(60, classes=3, **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (TensorDataset(torch.zeros(2)), "torch.utils.data.dataset.TensorDataset"),
        (DataLoader([1, 2]), "torch.utils.data.dataloader.DataLoader"),
        (numbered_images(4), "torch.Tensor"),
        ("photos", "str"),
        (None, "NoneType"),
    ],
)
def test_a_loader_of_something_else_says_what_takes_data_sets(data, name):
    with pytest.raises(
        TypeError, match=rf"^dataset is a {name}; expected .* build_loaders\(data\)"
    ):
        BatchLoader(data, AS_IT_IS)


@pytest.mark.bad_input
def test_a_loader_of_no_images_and_one_without_a_preprocess_are_refused():
    data = in_memory(numbered_images(4))
    with pytest.raises(ValueError, match="dataset has no images; expected at least one"):
        BatchLoader(data.subset(torch.arange(0)), AS_IT_IS)
    with pytest.raises(TypeError, match=r"preprocess is a function; expected a Preprocess"):
        BatchLoader(data, whole_pass)


@pytest.mark.bad_input
def test_an_augmentation_on_something_else_is_refused():
    class Misspelt(HorizontalFlip):
        on = "image"

    text = r"^the 'on' of .* is 'image'; expected one of 'pixels', 'resized', 'input'$"
    with pytest.raises(ValueError, match=text):
        dataset_loaders(60, classes=3, augmentation=Misspelt())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("augmentation", "name"),
    [
        (v2.RandomHorizontalFlip(), "torchvision.transforms.v2._geometry.RandomHorizontalFlip"),
        ([HorizontalFlip(), v2.RandomCrop(4)], "torchvision.transforms.v2._geometry.RandomCrop"),
        ("flip", "str"),
        (0.5, "float"),
        ([None], "NoneType"),
        (RandomCrop, "type"),
        (HorizontalFlip, "type"),
    ],
)
def test_what_is_no_augmentation_is_refused_and_named(augmentation, name):
    text = f"augmentation has a {name}; expected HorizontalFlip(), RandomCrop() or another of"
    with pytest.raises(TypeError, match=re.escape(text)):
        dataset_loaders(augmentation=augmentation)


def test_another_preprocessing_normalises_by_its_own_mean_and_deviation(implementation):
    other = Preprocess(12, 9, mean=(0.1, 0.2, 0.3), std=(0.5,) * 3)
    images = in_memory(random_batch(9, 8, 8))
    loader = BatchLoader(images, Preprocess(16, 16, mean=(0.5,) * 3), 4)
    expected = BatchLoader(images, other, 4)
    for (found, _), (wanted, _) in zip(loader.batches(0, 0, other), expected, strict=True):
        assert torch.equal(found, wanted)
