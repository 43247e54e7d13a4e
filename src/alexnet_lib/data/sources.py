"""What people name as data, opened: a folder of images, CIFAR-10, the shapes, other data sets."""

import operator
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from tqdm.auto import tqdm

from alexnet_lib.data.cifar10 import cifar10, is_cifar10
from alexnet_lib.data.images import (
    ImageFiles,
    ImageSet,
    ImageTensors,
    WrappedDataset,
    open_image,
    read_image,
)
from alexnet_lib.data.shapes import shapes

# Images up to this side, in pixels, all of one size, are kept decoded in memory.
SMALL_IMAGE = 96

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# What file managers and archivers leave behind.
_LITTER = frozenset({".DS_Store", "Thumbs.db", ".ipynb_checkpoints", "__MACOSX", "desktop.ini"})
_VALIDATION_NAMES = ("val", "valid", "validation")

_T = TypeVar("_T")


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
    with open_image(file) as image:
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
