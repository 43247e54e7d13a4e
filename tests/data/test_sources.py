"""The promises of the data sets: the files' pixels, and errors that name the file."""

import re
import shutil
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FakeCifar10, Items, exif, random_pixels, smooth_pixels, write_class_folders
from PIL import Image
from torch.utils.data import IterableDataset, Subset
from torchvision.datasets import FakeData, VisionDataset
from torchvision.transforms import v2

from alexnet_lib.data import cifar10 as cifar10_module
from alexnet_lib.data.cifar10 import CIFAR10_URL_VARIABLE, cifar10, download_cifar10, is_cifar10
from alexnet_lib.data.images import ImageFiles, ImageTensors, WrappedDataset, read_image
from alexnet_lib.data.sources import image_folder, open_datasets, wrap_dataset

bad_input = pytest.mark.bad_input
ORDER = torch.tensor([3, 0, 3])


def pixels_of(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0)


# ImageTensors, ImageFiles, WrappedDataset


def image_tensors() -> ImageTensors:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    return ImageTensors(images, torch.tensor([0, 1, 1, 0]), ("cat", "dog"))


def test_a_subset_of_tensors_has_the_images_asked_for_in_their_order():
    whole = image_tensors()
    part = whole.subset(ORDER)
    assert torch.equal(part.images, whole.images[ORDER])
    assert part.labels.tolist() == [0, 0, 0]
    assert part.classes == whole.classes


def test_a_subset_of_tensors_is_a_copy():
    whole = image_tensors()
    before = whole.images.clone()
    whole.subset(torch.arange(4)).images.zero_()
    assert torch.equal(whole.images, before)


def test_a_subset_of_files_has_the_files_asked_for_in_their_order(tmp_path):
    write_class_folders(tmp_path, size=(100, 8))
    whole, _, _ = image_folder(tmp_path)
    part = whole.subset(ORDER)
    assert part.files == tuple(tmp_path / name for name in ("dog/1.png", "cat/0.png", "dog/1.png"))
    assert part.labels.tolist() == [1, 0, 1]
    assert part.classes == ("cat", "dog")


def test_a_subset_of_a_subset_of_another_data_set_reads_the_right_images():
    images = [torch.full((3, 8, 8), value, dtype=torch.uint8) for value in range(5)]
    whole = wrap_dataset(Items([(image, value) for value, image in enumerate(images)]))
    part = whole.subset(torch.tensor([4, 2, 0])).subset(torch.tensor([1, 0]))
    assert isinstance(part, WrappedDataset)
    assert [(int(image[0, 0, 0]), label) for image, label in map(part.__getitem__, range(2))] == [
        (2, 2),
        (4, 4),
    ]


@bad_input
@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_class_is_refused(label):
    text = f"labels run from {min(label, 0)} to {max(label, 0)}; expected 0 to 1, the numbers of"
    with pytest.raises(ValueError, match=text):
        ImageTensors(torch.zeros(2, 3, 8, 8), torch.tensor([0, label]), ("cat", "dog"))


# Image files


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_a_file_of_another_mode_is_read_as_rgb(tmp_path, mode):
    image = Image.fromarray(random_pixels(6, 8)).convert(mode)
    image.save(tmp_path / "image.png")
    expected = np.array(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "image.png").numpy(), expected)


def test_a_file_is_turned_as_its_exif_says(tmp_path):
    stored = smooth_pixels(16, 24)
    Image.fromarray(stored).save(tmp_path / "image.jpg", exif=exif(6), quality=100, subsampling=0)
    image = read_image(tmp_path / "image.jpg").numpy().transpose(1, 2, 0)
    assert image.shape == (24, 16, 3)
    assert np.abs(image - np.rot90(stored, -1).astype(int)).max() < 8  # JPEG's own error


# Folders


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
    text = f"1 files in {tmp_path} do not end like images and are passed over, {tmp_path / 'cat'}"
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
    text = f"{tmp_path / 'test'} has the folders ['emu'], which are no training classes"
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


@bad_input
def test_a_missing_file_and_a_broken_header_are_named(tmp_path):
    missing, broken = tmp_path / "missing.png", tmp_path / "broken.ppm"
    broken.write_bytes(b"P6 8 x 255\n")
    for file in (missing, broken):
        with pytest.raises(ValueError, match=re.escape(f"{file} cannot be read as an image: ")):
            read_image(file)


# CIFAR-10


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCifar10:
    return FakeCifar10(tmp_path, monkeypatch)


@pytest.fixture
def served(fake: FakeCifar10, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCifar10]:
    """The data set, with its archive at the address that the variable names."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = partial(Quiet, directory=fake.archive.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/{fake.archive.name}"
        monkeypatch.setenv(CIFAR10_URL_VARIABLE, address)
        yield fake
        server.shutdown()
        thread.join()


def assert_is(fake: FakeCifar10, sets: tuple[ImageTensors, ImageTensors]) -> None:
    names = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
    for part, batches in zip(sets, names, strict=True):
        assert isinstance(part, ImageTensors)
        expected = np.concatenate([fake.images[name] for name in batches])
        assert np.array_equal(part.images.numpy(), expected)
        assert part.labels.tolist() == [label for name in batches for label in fake.labels[name]]
        assert part.classes == fake.classes


@pytest.mark.parametrize("download", [True, False])
def test_cifar10_is_read_from_its_folder_with_each_channel_in_its_place(fake, download):
    assert_is(fake, cifar10(fake.batches.parent, download=download))


def test_cifar10_is_read_from_the_folder_of_the_batches_itself(fake):
    assert_is(fake, cifar10(str(fake.batches), download=False))


@pytest.mark.parametrize("download", [True, False])
def test_cifar10_is_read_from_the_archive_alone(fake, download):
    shutil.rmtree(fake.batches)
    assert_is(fake, cifar10(fake.archive.parent, download=download, progress=False))


def test_cifar10_is_known_by_its_name_its_files_and_its_archive(fake):
    assert is_cifar10("cifar10")
    assert is_cifar10(fake.batches)
    assert is_cifar10(str(fake.batches.parent))
    shutil.rmtree(fake.batches)
    assert is_cifar10(fake.archive.parent)
    fake.archive.unlink()
    assert not is_cifar10(fake.archive.parent)


def test_a_folder_of_images_and_the_shapes_are_no_cifar10(tmp_path):
    assert not is_cifar10(write_class_folders(tmp_path / "photos"))
    assert not is_cifar10("shapes")


def test_a_folder_that_holds_cifar10_is_opened_as_such_and_nothing_is_downloaded(fake, monkeypatch):
    monkeypatch.setattr(
        cifar10_module, "download_cifar10", lambda *a, **k: pytest.fail("downloaded")
    )
    train, validation, test = open_datasets(fake.batches.parent)
    assert validation is None
    assert_is(fake, (train, test))


def test_cifar10_by_its_name_is_kept_in_the_folder_data_of_this_one(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, validation, test = open_datasets("cifar10")
    assert validation is None
    assert_is(served, (train, test))
    assert (tmp_path / "data" / served.batches.name).is_dir()


def test_cifar10_is_downloaded_from_the_address_in_the_variable(served, tmp_path):
    root = tmp_path / "new" / "data"
    assert download_cifar10(root, progress=False) == root / "cifar-10-batches-py"
    assert_is(served, cifar10(root, download=False))


def test_a_damaged_batch_is_healed_by_a_download(served, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(served.batches, root / served.batches.name)
    (root / served.batches.name / "data_batch_3").write_bytes(b"damaged")
    assert_is(served, cifar10(root, progress=False))


def test_cifar10_that_is_there_is_not_downloaded_again(fake):
    fake.archive.unlink()
    before = {file: file.stat().st_mtime_ns for file in fake.batches.iterdir()}
    assert download_cifar10(fake.batches.parent) == fake.batches
    assert {file: file.stat().st_mtime_ns for file in fake.batches.iterdir()} == before


@bad_input
def test_without_a_download_a_damaged_batch_is_named(fake):
    fake.archive.unlink()
    batch = fake.batches / "data_batch_3"
    batch.write_bytes(b"damaged")
    text = (
        f"{batch}: damaged (wrong MD5 sum); delete it and get CIFAR-10 again with "
        f"alexnet-lib download cifar10 --root {fake.batches.parent}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        cifar10(fake.batches.parent, download=False)


@bad_input
def test_without_a_download_a_damaged_archive_is_named(fake):
    shutil.rmtree(fake.batches)
    fake.archive.write_bytes(fake.archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match=re.escape(f"{fake.archive}: damaged (wrong MD5 sum)")):
        cifar10(fake.archive.parent, download=False)


@bad_input
def test_without_a_download_missing_files_are_told_how_to_be_got(fake, tmp_path):
    text = (
        f"{tmp_path / 'data' / 'cifar-10-batches-py' / 'data_batch_1'}: missing; get CIFAR-10 "
        f"with alexnet-lib download cifar10 --root {tmp_path / 'data'}"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(text)):
        cifar10(tmp_path / "data", download=False)


def test_without_a_network_the_error_says_what_was_tried_and_what_to_do(
    fake, tmp_path, monkeypatch
):
    mine = "http://127.0.0.1:9/mine.tar.gz"
    monkeypatch.setenv(CIFAR10_URL_VARIABLE, mine)
    with pytest.raises(OSError, match=r"no address gave cifar-10-python\.tar\.gz") as error:
        cifar10(tmp_path / "data", progress=False)
    text = str(error.value)
    for address in (mine, "http://127.0.0.1:9/own-host.tar.gz"):
        assert re.search(f"^{re.escape(address)}: .*refused", text, re.MULTILINE)
    assert f"(MD5 {fake.md5})" in text
    assert f"put it into {(tmp_path / 'data').resolve()}" in text
    assert f"set {CIFAR10_URL_VARIABLE} to an address" in text


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


def test_a_subset_has_the_labels_and_images_of_its_places():
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
def test_a_data_set_without_places_is_refused(stream):
    text = f"dataset is a {stream.__name__}; expected a map-style data set, with a length"
    with pytest.raises(TypeError, match=text):
        wrap_dataset(stream())


@bad_input
def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="dataset is empty; expected at least one image"):
        wrap_dataset(Subset(Pictures(), []))


@bad_input
@pytest.mark.parametrize("item", [torch.zeros(3, 8, 8), (torch.zeros(3, 8, 8), 0, 0)])
def test_items_that_are_no_pairs_are_refused(item):
    text = rf"dataset\[0\] is a {type(item).__name__}; expected a pair \(image, label\)"
    with pytest.raises(TypeError, match=text):
        wrap_dataset(Items([item]))


@bad_input
@pytest.mark.parametrize("label", [0.5, "cat", [0, 1]])
def test_a_label_that_is_no_integer_is_refused(label):
    text = f"the label of image 1 of the data set is {label!r}; expected an integer from 0"
    image = torch.zeros(3, 8, 8)
    with pytest.raises(TypeError, match=re.escape(text)):
        wrap_dataset(Items([(image, 0), (image, label)]))


@bad_input
def test_a_wrong_image_of_a_data_set_is_named_by_its_place():
    image = torch.zeros(3, 8, 8)
    wrapped = wrap_dataset(Items([(image, 0), (255 + image, 0)]))
    with pytest.raises(ValueError, match="image 1 of the data set has floats from 255 to 255"):
        wrapped.subset(torch.tensor([1]))[0]
