"""The promises of the data sets: the files' pixels, the parts, and errors that name the file."""

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Items, exif, random_pixels, write_class_folders
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData, VisionDataset
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
    text = (
        f"1 files in {tmp_path} are ignored, because their names do not end like those of images; "
        f"{tmp_path / 'cat' / 'notes.txt'} is the first"
    )
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


def test_a_torchvision_data_set_without_transforms_is_decoded_once():
    pictures = Pictures()
    wrapped = wrap_dataset(pictures)
    assert isinstance(wrapped, ImageTensors)
    assert np.array_equal(wrapped.images.numpy(), np.stack(pictures.pixels).transpose(0, 3, 1, 2))
    assert wrapped.labels.tolist() == pictures.targets
    assert wrapped.classes == ("cat", "dog", "emu")
    assert pictures.decoded == 6


def test_a_data_set_with_a_transform_is_read_anew_each_time():
    pictures = Pictures(transform=v2.RandomHorizontalFlip(1.0))
    wrapped = wrap_dataset(pictures)
    assert isinstance(wrapped, WrappedDataset)
    assert pictures.decoded == 0
    for _ in range(2):
        image, label = wrapped[1]
        assert np.array_equal(image.numpy(), pictures.pixels[1][:, ::-1].transpose(2, 0, 1))
        assert label == 1
    assert pictures.decoded == 2


def test_labels_are_those_after_a_target_transform():
    wrapped = wrap_dataset(Pictures(target_transform=lambda target: 2 - target))
    assert wrapped.labels.tolist() == [0, 1, 2, 2, 1, 0]


def test_large_images_without_transforms_are_read_anew():
    assert isinstance(wrap_dataset(Pictures(size=(8, 97))), WrappedDataset)


def test_a_data_set_that_has_no_targets_is_asked_for_its_labels():
    fake_data = FakeData(size=5, image_size=(3, 8, 8), num_classes=4)
    wrapped = wrap_dataset(fake_data, classes="abcd")
    assert isinstance(wrapped, ImageTensors)
    assert wrapped.labels.tolist() == [
        int(label) for _, label in map(fake_data.__getitem__, range(5))
    ]
    assert wrapped.classes == ("a", "b", "c", "d")


def test_targets_may_be_a_tensor_or_an_array():
    for kind in (torch.tensor, np.array):
        pictures = Pictures()
        pictures.targets = kind(pictures.targets)
        labels = wrap_dataset(pictures).labels
        assert (labels.tolist(), labels.dtype) == ([2, 1, 0, 0, 1, 2], torch.int64)


def test_a_subset_has_the_labels_and_images_of_its_positions():
    pictures = Pictures()
    wrapped = wrap_dataset(Subset(pictures, [5, 3]), classes=pictures.classes)
    assert wrapped.labels.tolist() == [2, 0]
    assert np.array_equal(wrapped[0][0].numpy(), pictures.pixels[5].transpose(2, 0, 1))


def test_classes_without_names_have_their_numbers():
    wrapped = wrap_dataset(Items([(np.zeros((8, 8, 3), np.uint8), label) for label in (0, 2)]))
    assert wrapped.classes == ("0", "1", "2")


@bad_input
def test_a_label_beyond_the_given_classes_is_refused():
    text = "labels run from 0 to 2; expected 0 to 1, the numbers of the 2 classes"
    with pytest.raises(ValueError, match=text):
        wrap_dataset(Pictures(), classes=["cat", "dog"])


@bad_input
@pytest.mark.parametrize("stream", [Stream, SizedStream])
def test_a_data_set_without_positions_is_refused(stream):
    text = f"data is a {stream.__name__}; expected .* a map-style data set with a length"
    with pytest.raises(TypeError, match=text):
        wrap_dataset(stream())


@bad_input
def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="data is an empty data set; expected at least one image"):
        wrap_dataset(Subset(Pictures(), []))


@bad_input
@pytest.mark.parametrize("item", [torch.zeros(3, 8, 8), (torch.zeros(3, 8, 8), 0, 0)])
def test_items_that_are_no_pairs_are_refused(item):
    text = rf"item 0 of data is a {type(item).__name__}; expected a pair \(image, label\)"
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
    with pytest.raises(ValueError, match=r"^the test images of data have the classes"):
        open_parts((train, test))
    assert open_parts((train, test), classes=train.classes).test.classes == ("ant", "bee", "cat")
    test.classes = train.classes
    assert open_parts((train, test)).test.labels.tolist() == [0, 1]


def test_a_pair_may_have_no_test_images():
    train, validation, test = open_parts((Pictures(), None))
    assert (len(train), validation, test) == (6, None, None)


@bad_input
def test_names_of_classes_are_for_data_sets_alone():
    with pytest.raises(ValueError, match="classes is given, but data is 'shapes'; expected a data"):
        open_parts("shapes", classes=["cat", "dog"])


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
    if not count:
        assert drawn is None
        return
    assert len(drawn) == count
    assert sorted((*train.indices.tolist(), *drawn.indices.tolist())) == everything.tolist()
    assert torch.equal(drawn.labels, labels[drawn.indices])
    counts = drawn.labels.bincount(minlength=len(sizes)).numpy()
    assert (abs(counts - count * np.array(sizes) / len(labels)) < 1).all()


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
        (
            {"validation_fraction": 0.999},
            "validation_fraction is 0.999 and test_fraction 0.0, which leaves no images",
        ),
        ({"train_images": 61}, "train_images is 61; expected 3 (one of each class) to 60"),
        ({"train_images": 2}, "train_images is 2; expected 3 (one of each class) to 60"),
        ({"train_images": 30.0}, "train_images is 30.0; expected 3 (one of each class) to 60"),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
    ],
)
def test_a_wrong_argument_of_the_split_is_named_with_what_was_expected(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        parts_of(lazy(60), **options)
