"""The promises of the data sets: the files' pixels, the parts, and errors that name the file."""

import re
import shutil
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Items, exif, random_pixels, write_class_folders
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder, VisionDataset
from torchvision.transforms import v2

from alexnet_lib.data.images import ImageFiles, ImageSet, ImageTensors, WrappedDataset
from alexnet_lib.data.sources import Parts, image_folder, open_parts, split, wrap_dataset

bad_input = pytest.mark.bad_input


def pixels_of(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0)


def test_a_folder_of_small_images_of_one_size_is_held_in_memory_with_exactly_their_pixels(tmp_path):
    write_class_folders(tmp_path, ["dog", "cat"], count=3)
    train, validation, test = image_folder(tmp_path)
    assert isinstance(train, ImageTensors)
    assert (train.classes, train.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])
    files = [tmp_path / name / f"{i}.png" for name in ("cat", "dog") for i in range(3)]
    assert torch.equal(train.images, torch.stack([pixels_of(file) for file in files]))
    assert (validation, test) == (None, None)


def test_larger_images_stay_files_and_are_read_when_asked_for(tmp_path):
    write_class_folders(tmp_path, size=(8, 97))
    train, _, _ = image_folder(tmp_path)
    assert isinstance(train, ImageFiles)
    image, label = train[3]
    assert torch.equal(image, pixels_of(tmp_path / "dog" / "1.png"))
    assert label == 1


def test_images_of_mixed_sizes_stay_files(tmp_path):
    write_class_folders(tmp_path)
    Image.fromarray(random_pixels(8, 9)).save(tmp_path / "cat" / "wide.png")
    assert isinstance(image_folder(tmp_path)[0], ImageFiles)


def test_images_that_exif_makes_of_mixed_sizes_stay_files(tmp_path):
    write_class_folders(tmp_path, size=(6, 8))
    Image.fromarray(random_pixels(6, 8)).save(tmp_path / "cat" / "turned.png", exif=exif(6))
    train, _, _ = image_folder(tmp_path)
    assert isinstance(train, ImageFiles)
    assert {train[i][0].shape for i in range(len(train))} == {(3, 6, 8), (3, 8, 6)}


def test_images_in_folders_below_a_class_belong_to_it(tmp_path):
    write_class_folders(tmp_path)
    write_class_folders(tmp_path / "cat", ["black", "white"])
    train, _, _ = image_folder(tmp_path)
    assert (train.classes, train.labels.tolist()) == (("cat", "dog"), [0] * 6 + [1] * 2)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"train": 3, "test": 2}, (6, None, 4)),
        ({"train": 3, "val": 1}, (6, None, 2)),
        ({"train": 3, "valid": 1}, (6, None, 2)),
        ({"train": 3, "val": 1, "test": 2}, (6, 2, 4)),
        ({"train": 3}, (6, None, None)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_part_becomes_the_set_of_its_name_and_val_alone_the_test_set(
    tmp_path, parts, expected
):
    for seed, (part, count) in enumerate(parts.items()):
        write_class_folders(tmp_path / part, count=count, seed=100 * seed)
    sets = image_folder(tmp_path)
    assert tuple(None if part is None else len(part) for part in sets) == expected


def test_test_labels_follow_the_training_classes(tmp_path):
    write_class_folders(tmp_path / "train")
    write_class_folders(tmp_path / "test", ["dog", "cat"])
    _, _, test = image_folder(tmp_path)
    assert test.classes == ("cat", "dog")
    assert torch.equal(test[3][0], pixels_of(tmp_path / "test" / "dog" / "1.png"))
    assert test[3][1] == 1


def test_what_file_managers_leave_is_passed_over_without_a_word(tmp_path):
    write_class_folders(tmp_path)
    for name in (".DS_Store", "cat/.DS_Store", "cat/._0.jpg", "dog/Thumbs.db", "dog/desktop.ini"):
        (tmp_path / name).write_bytes(b"litter")
    for name in (".ipynb_checkpoints", "cat/.ipynb_checkpoints", "__MACOSX", "__MACOSX/cat"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "cat" / "0.png", tmp_path / name / "0-checkpoint.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, _, _ = image_folder(tmp_path)
    assert (train.classes, len(train)) == (("cat", "dog"), 4)


def test_a_strange_suffix_warns_and_names_the_file(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("mine")
    text = f"{tmp_path / 'cat' / 'notes.txt'} is ignored"
    with pytest.warns(UserWarning, match=re.escape(text)):
        train, _, _ = image_folder(tmp_path)
    assert len(train) == 4


@bad_input
def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'no'}: no such folder")):
        image_folder(tmp_path / "no")


@bad_input
def test_an_empty_folder_is_told_what_was_expected(tmp_path):
    text = f"{tmp_path} has no images in class folders; expected CLASS/IMAGE.jpg"
    with pytest.raises(ValueError, match=re.escape(text)):
        image_folder(tmp_path)


@bad_input
def test_one_class_is_too_few(tmp_path):
    write_class_folders(tmp_path, ["cat"])
    text = f"{tmp_path} has one class, 'cat'; expected at least two"
    with pytest.raises(ValueError, match=re.escape(text)):
        image_folder(tmp_path)


@bad_input
def test_a_class_without_images_is_named(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "emu").mkdir()
    text = f"{tmp_path} has no images for the classes ['emu']"
    with pytest.raises(ValueError, match=re.escape(text)):
        image_folder(tmp_path)


@bad_input
def test_a_class_that_training_does_not_have_is_named(tmp_path):
    write_class_folders(tmp_path / "train")
    write_class_folders(tmp_path / "test", ["cat", "dog", "emu"])
    text = f"{tmp_path / 'test'} has the folders ['emu'], which are not training classes"
    with pytest.raises(ValueError, match=re.escape(text)):
        image_folder(tmp_path)


def write_text_as_image(file: Path) -> str:
    file.write_text("no image")
    return f"{file} cannot be read as an image: unknown format"


def write_truncated_jpeg(file: Path, size: int = 8) -> str:
    Image.fromarray(random_pixels(size, size)).save(file)
    file.write_bytes(file.read_bytes()[:-40])
    return f"{file} cannot be read as an image: image file is truncated"


@bad_input
@pytest.mark.parametrize("damage", [write_text_as_image, write_truncated_jpeg])
def test_a_damaged_file_is_named_with_its_fault(tmp_path, damage):
    write_class_folders(tmp_path)
    text = damage(tmp_path / "dog" / "bad.jpg")
    with pytest.raises(ValueError, match=re.escape(text)):
        image_folder(tmp_path)


@bad_input
def test_several_damaged_files_are_named_in_one_error(tmp_path):
    write_class_folders(tmp_path)
    texts = [write_truncated_jpeg(tmp_path / name / "bad.jpg") for name in ("cat", "dog")]
    with pytest.raises(ValueError, match="cannot be read") as error:
        image_folder(tmp_path)
    assert all(text in str(error.value) for text in texts)


@bad_input
def test_of_many_damaged_files_ten_are_named_and_the_others_counted(tmp_path):
    write_class_folders(tmp_path)
    for i in range(13):
        write_text_as_image(tmp_path / "cat" / f"bad{i}.jpg")
    with pytest.raises(ValueError, match=r"; and 3 more$") as error:
        image_folder(tmp_path)
    assert str(error.value).count("unknown format") == 10


@bad_input
def test_a_large_truncated_file_is_named_when_it_is_read(tmp_path):
    write_class_folders(tmp_path, size=(100, 100))
    text = write_truncated_jpeg(tmp_path / "cat" / "bad.jpg", size=100)
    train, _, _ = image_folder(tmp_path)
    with pytest.raises(ValueError, match=re.escape(text)):
        [train[i] for i in range(len(train))]


# Other data sets


class Pictures(VisionDataset):
    """Six PIL images as torchvision has them; counts how often one is decoded."""

    classes = ("cat", "dog", "emu")

    def __init__(self, size: tuple[int, int] = (8, 8), **transforms) -> None:
        super().__init__(root="", **transforms)
        self.pixels = [random_pixels(*size, seed) for seed in range(6)]
        self.targets = [2, 1, 0, 0, 1, 2]
        self.decoded = 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int):
        self.decoded += 1
        image, target = Image.fromarray(self.pixels[index]), self.targets[index]
        return (image, target) if self.transforms is None else self.transforms(image, target)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3, 8, 8), 0


class SizedStream(Stream):
    def __len__(self) -> int:
        return 1


def fake_data(count: int = 5, size: int = 8, **options) -> FakeData:
    return FakeData(size=count, image_size=(3, size, size), num_classes=4, **options)


def test_a_data_set_of_torchvision_without_transforms_is_held_in_memory():
    data = fake_data()
    wrapped = wrap_dataset(data, classes=tuple("abcd"))
    assert isinstance(wrapped, ImageTensors)
    items = [data[i] for i in range(5)]
    pixels = np.stack([np.asarray(image) for image, _ in items])
    assert np.array_equal(wrapped.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert wrapped.labels.tolist() == [int(label) for _, label in items]
    assert wrapped.classes == ("a", "b", "c", "d")


def test_a_subclass_may_be_random_and_is_read_each_time():
    pictures = Pictures()
    wrapped = wrap_dataset(pictures)
    assert isinstance(wrapped, WrappedDataset)
    assert wrapped.labels.tolist() == pictures.targets
    assert wrapped.classes == ("cat", "dog", "emu")


def test_a_data_set_with_a_transform_is_read_anew_each_time():
    pictures = Pictures(transform=v2.RandomHorizontalFlip(1.0))
    wrapped = wrap_dataset(pictures)
    assert isinstance(wrapped, WrappedDataset)
    decoded = pictures.decoded
    for _ in range(2):
        image, label = wrapped[1]
        assert np.array_equal(image.numpy(), pictures.pixels[1][:, ::-1].transpose(2, 0, 1))
        assert label == 1
    assert pictures.decoded == decoded + 2


def test_labels_are_those_after_a_target_transform():
    wrapped = wrap_dataset(Pictures(target_transform=lambda target: 2 - target))
    assert wrapped.labels.tolist() == [0, 1, 2, 2, 1, 0]


def test_large_images_without_transforms_are_read_anew():
    assert isinstance(wrap_dataset(fake_data(size=97)), WrappedDataset)


def test_targets_may_be_a_tensor_or_an_array():
    for kind in (torch.tensor, np.array):
        pictures = Pictures()
        pictures.targets = kind(pictures.targets)
        labels = wrap_dataset(pictures).labels
        assert (labels.tolist(), labels.dtype) == ([2, 1, 0, 0, 1, 2], torch.int64)


def test_a_subset_has_the_labels_and_images_of_its_positions():
    pictures = Pictures()
    wrapped = wrap_dataset(Subset(pictures, [5, 3]))
    assert wrapped.classes == pictures.classes
    assert wrapped.labels.tolist() == [2, 0]
    assert np.array_equal(wrapped[0][0].numpy(), pictures.pixels[5].transpose(2, 0, 1))


def test_classes_without_names_have_their_numbers():
    wrapped = wrap_dataset(Items([(np.zeros((8, 8, 3), np.uint8), label) for label in (0, 2)]))
    assert wrapped.classes == ("0", "1", "2")


@bad_input
def test_a_label_beyond_the_given_classes_is_refused():
    text = "labels run from 0 to 2; expected 0 to 1, the numbers of the 2 classes"
    with pytest.raises(ValueError, match=text):
        wrap_dataset(Pictures(), classes=("cat", "dog"))


@bad_input
@pytest.mark.parametrize("stream", [Stream, SizedStream])
def test_a_data_set_without_positions_is_refused(stream):
    name = f"test_sources.{stream.__name__}"
    text = rf"data is a {name}; expected .* a map-style data set with a length"
    with pytest.raises(TypeError, match=text):
        wrap_dataset(stream())


@bad_input
def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="data is an empty data set; expected at least one image"):
        wrap_dataset(Subset(Pictures(), []))


@bad_input
@pytest.mark.parametrize("item", [torch.zeros(3, 8, 8), (torch.zeros(3, 8, 8), 0, 0)])
def test_items_that_are_no_pairs_are_refused(item):
    name = "tuple of 3" if isinstance(item, tuple) else "torch.Tensor"
    text = rf"item 0 of data is a {name}; expected a pair \(image, label\)"
    with pytest.raises(TypeError, match=text):
        wrap_dataset(Items([item]))


@bad_input
@pytest.mark.parametrize("label", [0.5, "cat", [0, 1]])
def test_a_label_that_is_no_integer_is_refused(label):
    text = f"the label of image 1 of the data set is {label!r}; expected an integer from 0"
    image = torch.zeros(3, 8, 8)
    with pytest.raises(TypeError, match=re.escape(text)):
        wrap_dataset(Items([(image, 0), (image, label)]))


# Data by name


def test_the_shapes_have_training_and_test_images():
    train, validation, test = open_parts("shapes")
    assert (len(train), validation, len(test)) == (6_000, None, 2_000)


@pytest.mark.parametrize("kind", [Path, str])
def test_a_folder_is_opened_with_its_parts(tmp_path, kind):
    for part, count in (("train", 4), ("val", 3), ("test", 2)):
        write_class_folders(tmp_path / part, count=count)
    assert [len(part) for part in open_parts(kind(tmp_path))] == [8, 6, 4]


def test_a_data_set_is_all_training_images():
    pictures = Pictures(transform=v2.Identity())
    train, validation, test = open_parts(pictures)
    assert train.dataset is pictures
    assert (validation, test) == (None, None)


@pytest.mark.parametrize("names", [None, ["cat", "dog", "emu"]])
def test_a_pair_of_data_sets_is_training_and_test_images_of_the_same_classes(names):
    items = [[(torch.zeros(3, 8, 8), label) for label in labels] for labels in ((0, 1, 2), (1,))]
    train, validation, test = open_parts((Items(items[0]), Items(items[1])), classes=names)
    assert (train.labels.tolist(), validation, test.labels.tolist()) == ([0, 1, 2], None, [1])
    assert train.classes == test.classes == tuple(names or "012")


@bad_input
def test_a_pair_whose_numbers_stand_for_different_classes_is_refused():
    train, test = (Items([(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 8, 8), 1)]) for _ in range(2))
    train.classes, test.classes = ["ant", "bee", "cat"], ["ant", "cat"]
    with pytest.raises(ValueError, match=r"^the other images of data have the classes"):
        open_parts((train, test))
    assert open_parts((train, test), classes=train.classes).test.classes == ("ant", "bee", "cat")
    test.classes = train.classes
    assert open_parts((train, test)).test.labels.tolist() == [0, 1]


def test_a_pair_may_have_no_test_images():
    train, validation, test = open_parts((Pictures(), None))
    assert (len(train), validation, test) == (6, None, None)


@bad_input
@pytest.mark.parametrize("given", [{"classes": ["cat", "dog"]}, {"parts": {}}])
def test_names_are_not_for_built_in_sets(given):
    text = f"{next(iter(given))} is given, but data is 'shapes', which has its own"
    with pytest.raises(ValueError, match=text):
        open_parts("shapes", **given)


@bad_input
@pytest.mark.parametrize("data", [7, None, []])
def test_data_of_another_kind_are_refused_and_named(data):
    text = rf"data is (a {type(data).__name__}|an empty data set); expected"
    with pytest.raises((TypeError, ValueError), match=text):
        open_parts(data)


# The parts


def lazy(count: int = 60, classes: int = 3) -> WrappedDataset:
    """Images whose labels take turns; nothing here reads them."""
    indices = torch.arange(count)
    return WrappedDataset(Items([], count), indices, indices % classes, tuple("abc"[:classes]))


def parts_of(train: ImageSet, validation=None, test=None, **options) -> Parts:
    options = {
        "train_images": None,
        "validation_fraction": 0.1,
        "test_fraction": 0.0,
        "seed": 0,
        **options,
    }
    return split(Parts(train, validation, test), **options)


def positions(part: ImageSet) -> set[int]:
    """The positions of a part's images in the data set that was given."""
    assert isinstance(part, WrappedDataset)
    return set(part.indices.tolist())


def test_the_parts_are_disjoint_and_together_all_images():
    parts = parts_of(lazy(60), validation_fraction=0.25, test_fraction=0.2)
    assert [len(part) for part in parts] == [36, 12, 12]
    assert set.union(*map(positions, parts)) == set(range(60))


def test_all_parts_have_the_classes_proportions():
    parts = parts_of(lazy(60), validation_fraction=0.25, test_fraction=0.2)
    assert [part.labels.bincount().tolist() for part in parts] == [[12] * 3, [4] * 3, [4] * 3]


@pytest.mark.parametrize("number", [1, 2])
def test_the_seed_decides_the_parts(number):
    same, again, other = (
        positions(parts_of(lazy(), test_fraction=0.2, seed=seed)[number]) for seed in (0, 0, 1)
    )
    assert same == again
    assert same != other


def test_a_fraction_of_0_means_no_part():
    train, validation, test = parts_of(lazy(60), validation_fraction=0.0, test_fraction=0.0)
    assert (validation, test) == (None, None)
    assert positions(train) == set(range(60))


def test_a_fraction_that_is_less_than_an_image_means_no_part():
    train, validation, test = parts_of(lazy(6), validation_fraction=0.05, test_fraction=0.05)
    assert (len(train), validation, test) == (6, None, None)


def test_parts_that_are_there_are_left_alone():
    train, validation, test = lazy(60), lazy(9), lazy(6)
    parts = parts_of(train, validation, test, validation_fraction=0.5, test_fraction=0.5)
    assert parts == (train, validation, test)


def test_train_images_is_the_exact_number_of_images_in_training_and_validation():
    train, validation, _ = parts_of(lazy(60), train_images=31)
    assert len(train) + len(validation) == 31
    assert not positions(train) & positions(validation)


def test_train_images_leaves_the_test_part_alone():
    few, every_one = (
        parts_of(lazy(60), test_fraction=0.2, train_images=count) for count in (3, None)
    )
    assert positions(few.test) == positions(every_one.test)
    given = lazy(6)
    assert parts_of(lazy(60), None, given, train_images=3).test is given


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    percent=st.integers(0, 99),
    seed=st.integers(0, 1000),
)
def test_a_part_has_the_exact_count_and_the_classes_proportions(sizes, percent, seed):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    classes = tuple(map(str, range(len(sizes))))
    everything = torch.arange(len(labels))
    data = WrappedDataset(TensorDataset(everything), everything, labels, classes)
    count = round(percent / 100 * len(labels))
    assume(count < len(labels))
    train, drawn, _ = parts_of(data, validation_fraction=percent / 100, seed=seed)
    # Each class keeps an image to train on.
    possible = sum(max(size - 1, 0) for size in sizes)
    if not min(count, possible):
        assert drawn is None
        return
    assert len(drawn) == min(count, possible)
    assert sorted((*train.indices.tolist(), *drawn.indices.tolist())) == everything.tolist()
    assert torch.equal(drawn.labels, labels[drawn.indices])
    counts = drawn.labels.bincount(minlength=len(sizes)).numpy()
    assert (counts <= np.maximum(np.array(sizes) - 1, 0)).all()
    exact = count * np.array(sizes) / len(labels)
    if (np.array(sizes) - 1 >= np.ceil(exact))[np.array(sizes) > 0].all():
        assert (abs(counts - exact) < 1).all()


def test_no_class_is_lost_from_training():
    for seed in range(5):
        train, validation, test = parts_of(lazy(3), test_fraction=0.4, seed=seed)
        assert (len(train), validation, test) == (3, None, None)
        rare = lazy(60)
        rare = replace(rare, labels=(torch.arange(60) >= 58).long() + (torch.arange(60) >= 59))
        kept = parts_of(rare, train_images=6, validation_fraction=0.5, seed=seed).train
        assert sorted(set(kept.labels.tolist())) == [0, 1, 2]


def test_which_class_gives_one_more_is_random():
    extra = set()
    for seed in range(20):
        test = parts_of(lazy(60), test_fraction=1 / 60, seed=seed, validation_fraction=0.0).test
        extra |= set(test.labels.tolist())
    assert extra == {0, 1, 2}


@bad_input
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"validation_fraction": 1.0},
            "validation_fraction is 1.0; expected a fraction from 0 to below 1",
        ),
        ({"test_fraction": 1}, "test_fraction is 1; expected a fraction from 0 to below 1"),
        ({"test_fraction": -0.1}, "test_fraction is -0.1; expected a fraction from 0 to below 1"),
        ({"train_images": 61}, "train_images is 61; expected 3 (one of each class) to 60"),
        ({"train_images": 2}, "train_images is 2; expected 3 (one of each class) to 60"),
        ({"train_images": 30.0}, "train_images is 30.0; expected 3 (one of each class) to 60"),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
    ],
)
def test_a_wrong_argument_of_the_split_is_named_with_what_was_expected(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        parts_of(lazy(60), **options)


# What an item is, against what stands beside it


def folder_of(tmp_path, **options) -> ImageFolder:
    return ImageFolder(write_class_folders(tmp_path, count=3, size=(100, 100)), **options)


def relabelled(data: ImageFolder) -> ImageFolder:
    data.samples = [(path, 1 - label) for path, label in data.samples]
    return data


class Swapped(ImageFolder):
    """A subclass that says something else than ``targets``."""

    def __getitem__(self, index: int):
        image, label = super().__getitem__(index)
        return image, 1 - label


@pytest.mark.parametrize(
    "build",
    [
        folder_of,
        lambda root: relabelled(folder_of(root)),
        lambda root: folder_of(root, target_transform=lambda label: 1 - label),
        lambda root: Swapped(write_class_folders(root, count=3, size=(100, 100))),
        lambda root: Subset(relabelled(folder_of(root)), [5, 0, 1]),
        lambda root: ConcatDataset([folder_of(root), relabelled(ImageFolder(root))]),
        lambda root: ConcatDataset([folder_of(root), Swapped(root)]),
    ],
)
def test_labels_are_those_of_the_items(tmp_path, build):
    data = build(tmp_path)
    wrapped = wrap_dataset(data)
    expected = [data[i][1] for i in range(len(data))]
    assert wrapped.labels.tolist() == expected
    assert [wrapped[i][1] for i in range(len(data))] == expected


def test_labels_of_torchvisions_own_folder_are_known_without_reading_images(tmp_path, monkeypatch):
    data = folder_of(tmp_path)
    read = []
    loader = data.loader
    monkeypatch.setattr(data, "loader", lambda path: read.append(path) or loader(path))
    wrap_dataset(data)
    assert len(read) == 1  # the first image, for the number of channels


def mapping(image_key: str, label_key: str, label) -> dict:
    return {"id": 7, image_key: Image.new("RGB", (8, 8)), label_key: label}


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_items_may_be_mappings(image, label):
    wrapped = wrap_dataset(Items([mapping(image, label, 1), mapping(image, label, 0)]))
    assert wrapped.labels.tolist() == [1, 0]
    assert wrapped.image(0).shape == (3, 8, 8)


def test_names_of_a_hugging_face_data_set_are_known():
    data = Items([mapping("image", "label", 1)])
    data.features = {"image": None, "label": SimpleNamespace(names=["cat", "dog"])}
    assert wrap_dataset(data).classes == ("cat", "dog")


@bad_input
def test_a_mapping_with_other_keys_is_refused_and_its_keys_named():
    text = r"item 0 of data has the keys \['id', 'photo', 'label'\]; expected one of \('image'"
    with pytest.raises(TypeError, match=text):
        wrap_dataset(Items([mapping("photo", "label", 1)]))


def test_labels_may_be_names():
    image = torch.zeros(3, 8, 8)
    wrapped = wrap_dataset(Items([(image, "dog"), (image, "cat"), (image, "dog")]))
    assert (wrapped.classes, wrapped.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    with pytest.raises(ValueError, match=r"data has the labels dog, which are not in \('cat',\)"):
        wrap_dataset(Items([(image, "dog")]), classes=("cat",))


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32, torch.tensor, np.array])
def test_labels_may_be_integers_of_any_kind(kind):
    image = torch.zeros(3, 8, 8)
    wrapped = wrap_dataset(Items([(image, kind(200)), (image, kind(3))]))
    assert (wrapped.labels.tolist(), wrapped.labels.dtype) == ([200, 3], torch.int64)


@bad_input
@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (torch.zeros(4, 3, 8, 8), "pass torch.utils.data.TensorDataset(images, labels)"),
        (np.zeros((4, 8, 8, 3)), "pass torch.utils.data.TensorDataset(images, labels)"),
        (DataLoader(Items([1])), "pass its data set, loader.dataset"),
    ],
)
def test_what_is_near_a_data_set_is_refused_with_a_hint(data, hint):
    with pytest.raises(TypeError, match=re.escape(hint)):
        open_parts(data)


def test_an_item_that_cannot_be_read_is_named():
    class Broken(Items):
        def __getitem__(self, index):
            raise struct.error("unpack requires a buffer")

    with pytest.raises(ValueError, match=r"item 0 of data cannot be read: struct\.error: unpack"):
        wrap_dataset(Broken([0]))


# Channels


@pytest.mark.parametrize(("channels", "expected"), [(None, 1), (1, 1), (3, 3)])
def test_tensors_keep_their_channel_unless_told_otherwise(channels, expected):
    data = TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4))
    part = open_parts(data, channels=channels).train
    assert (part.channels, part.image(0).shape) == (expected, (expected, 8, 8))


def test_more_channels_have_to_be_said():
    data = TensorDataset(torch.rand(4, 5, 8, 8), torch.arange(4))
    with pytest.raises(ValueError, match="for another number of channels, pass channels=C"):
        open_parts(data)
    assert open_parts(data, channels=5).train.image(0).shape == (5, 8, 8)


@pytest.mark.parametrize("size", [8, 100])
def test_photos_can_be_read_as_grey(tmp_path, size):
    root = write_class_folders(tmp_path, size=(size, size))
    part = open_parts(root, channels=1).train
    assert part.channels == 1
    grey = np.asarray(Image.open(root / "cat" / "0.png").convert("L"))
    assert np.array_equal(part.image(0)[0].numpy(), grey)


def test_built_in_sets_can_be_grey():
    color, grey = (open_parts("shapes", channels=channels).train for channels in (3, 1))
    expected = Image.fromarray(color.images[0].movedim(0, -1).numpy()).convert("L")
    assert np.array_equal(grey.images[0, 0].numpy(), np.asarray(expected))


def test_a_mapping_of_parts_is_opened_as_its_keys_say():
    def part(count: int) -> TensorDataset:
        return TensorDataset(torch.zeros(count, 3, 8, 8), torch.arange(count) % 2)

    parts = open_parts({"train": part(6), "val": part(4), "test": part(2)})
    assert [len(part) for part in parts] == [6, 4, 2]
    assert open_parts({"train": part(6), "validation": part(4)}).test is None


@bad_input
@pytest.mark.parametrize("keys", [["test"], ["train", "exam"], []])
def test_a_mapping_of_other_parts_is_refused(keys):
    data = {key: TensorDataset(torch.zeros(2, 3, 8, 8), torch.arange(2)) for key in keys}
    with pytest.raises(ValueError, match=r"data has the parts .*; expected train, and validation"):
        open_parts(data)
