"""Data as people name it, opened and split: folders of images, CIFAR-10, the shapes, data sets."""

import operator
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from tqdm.auto import tqdm

from alexnet_lib.checks import FRACTION, check_number
from alexnet_lib.data.images import (
    ImageFiles,
    ImageSet,
    ImageTensors,
    WrappedDataset,
    open_image,
    read_image,
)
from alexnet_lib.data.shapes import shapes
from alexnet_lib.devices import generator_for

# Images up to this side, in pixels, all of one size, are kept decoded in memory.
SMALL_IMAGE = 96

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# What file managers and archivers leave behind.
_LITTER = frozenset({".DS_Store", "Thumbs.db", ".ipynb_checkpoints", "__MACOSX", "desktop.ini"})
_VALIDATION_NAMES = ("val", "valid", "validation")

_T = TypeVar("_T")


class Parts(NamedTuple):
    """The three parts of a data set; ``validation`` or ``test`` is None where there is none."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet | None


# "shapes", "cifar10" or a folder; training images, or a pair of training and test images.
Data = str | os.PathLike[str] | Dataset[Any] | tuple[Dataset[Any], Dataset[Any] | None] | Parts


def open_parts(data: Data, *, classes: Iterable[str] | None = None) -> Parts:
    """The images that ``data`` names, as ``build_loaders`` says, with its errors."""
    # Loads torchvision, which the network and the shapes do without.
    from alexnet_lib.data.cifar10 import cifar10, is_cifar10

    if not isinstance(data, str | os.PathLike | Parts):
        train, test = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
        train_set = wrap_dataset(train, classes)
        return Parts(
            train_set, None, None if test is None else wrap_dataset(test, train_set.classes)
        )
    if classes is not None:
        raise ValueError(f"classes is given, but data is {data!r}; expected a data set as data")
    if isinstance(data, Parts):
        return data
    if data == "shapes":
        train_set, test_set = shapes()
    elif is_cifar10(data):
        named = data == "cifar10"
        train_set, test_set = cifar10("data" if named else data, download=named)
    else:
        return image_folder(data)
    return Parts(train_set, None, test_set)


def split(
    parts: Parts,
    *,
    train_images: int | None,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> Parts:
    """The parts, with the missing ones drawn from the training images: stratified, by ``seed``.

    The arguments are those of ``build_loaders``.

    Raises:
        ValueError: an argument is out of its range, or no images are left to train on.
    """
    check_number("validation_fraction", validation_fraction, FRACTION)
    check_number("test_fraction", test_fraction, FRACTION)
    train, validation, test = parts
    generator = generator_for(seed, 0)
    if test is None and test_fraction:
        train, test = _split_off(train, round(test_fraction * len(train)), generator)
    if train_images is not None:
        least = len(train.classes)
        if not isinstance(train_images, int) or not least <= train_images <= len(train):
            raise ValueError(
                f"train_images is {train_images!r}; expected {least} (one of each class) to "
                f"{len(train):,}, the training images there are"
            )
        _, train = _split_off(train, train_images, generator)
    if validation is None and validation_fraction:
        train, validation = _split_off(train, round(validation_fraction * len(train)), generator)
    if not len(train):
        raise ValueError(
            f"validation_fraction is {validation_fraction!r} and test_fraction {test_fraction!r}, "
            "which leaves no images to train on; expected smaller ones, or more images"
        )
    return Parts(train, validation if validation else None, test if test else None)


def _split_off(data: ImageSet, count: int, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """The rest, and ``count`` images drawn in the classes' proportions; both in their old order."""
    sizes = torch.bincount(data.labels, minlength=len(data.classes))
    # Largest remainders, so that the classes' counts add up to `count` exactly; in integers and
    # stably sorted, so that they are the same on every machine.
    counts = sizes * count // len(data)
    remainders = sizes * count % len(data)
    largest = remainders.argsort(descending=True, stable=True)
    counts[largest[: count - int(counts.sum())]] += 1
    order = torch.randperm(len(data), generator=generator)
    order = order[data.labels[order].argsort(stable=True)]
    drawn = torch.zeros(len(data), dtype=torch.bool)
    for class_count, indices in zip(counts.tolist(), order.split(sizes.tolist()), strict=True):
        drawn[indices[:class_count]] = True
    return data.subset((~drawn).nonzero()[:, 0]), data.subset(drawn.nonzero()[:, 0])


def image_folder(root: str | os.PathLike[str]) -> Parts:
    """The images of a folder, as ``build_loaders`` reads it.

    Beside a ``test/``, ``val/`` is the validation part; without one, it is the test part, as with
    ImageNet. What file managers leave (``.DS_Store``, ``Thumbs.db``, ``__MACOSX`` ...) is ignored.

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
        return Parts(_class_folders(folder), None, None)
    test: Path | None = folder / "test"
    validation = next((folder / n for n in _VALIDATION_NAMES if (folder / n).is_dir()), None)
    if not (folder / "test").is_dir():
        test, validation = validation, None
    train_set = _class_folders(train)
    validation_set, test_set = (
        None if part is None else _class_folders(part, train_set.classes)
        for part in (validation, test)
    )
    return Parts(train_set, validation_set, test_set)


def _class_folders(folder: Path, classes: tuple[str, ...] | None = None) -> ImageSet:
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
        inside = [
            file
            for file in sorted((folder / name).rglob("*"))
            if file.is_file()
            and not any(map(_is_litter, (file, *file.relative_to(folder).parents)))
        ]
        images = [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES]
        strange += [file for file in inside if file.suffix.lower() not in IMAGE_SUFFIXES]
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
            f"{len(strange)} files in {folder} are ignored, because their names do not end like "
            f"those of images; {strange[0]} is the first",
            stacklevel=3,
        )
    source = ImageFiles(tuple(files), torch.tensor(labels), classes)
    sizes = _each_file(_image_size, source.files, folder)
    if len(set(sizes)) > 1 or max(sizes[0]) > SMALL_IMAGE:
        return source
    pixels = _each_file(read_image, source.files, folder)
    if len({image.shape for image in pixels}) > 1:  # EXIF has turned some of them
        return source
    return ImageTensors(torch.stack(pixels), source.labels, classes)


def _is_litter(path: Path) -> bool:
    return path.name in _LITTER or path.name.startswith("._")


def _image_size(file: Path) -> tuple[int, int]:
    """Width and height, from the file's head alone."""
    with open_image(file) as image:
        return image.size


def _each_file(read: Callable[[Path], _T], files: Sequence[Path], folder: Path) -> list[_T]:
    """``read`` of each file; all that cannot be read are named in one error."""
    results, problems = [], []
    for file in tqdm(files, f"reading {folder}", disable=None, leave=False):
        try:
            results.append(read(file))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError("; ".join(problems[:10]) + more)
    return results


def wrap_dataset(dataset: Dataset[Any], classes: Iterable[str] | None = None) -> ImageSet:
    """Any map-style data set of (image, label), as the loaders need it.

    A torchvision data set without a transform, whose images are small and of one size, is decoded
    once. Any other is read anew in each epoch, since what it yields may be random.

    Raises:
        TypeError: the data set has no length, an item is not a pair, or a label not an integer.
        ValueError: it is empty, or a label has no class.
    """
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    if not indexed or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"data is a {type(dataset).__name__}; expected 'shapes', 'cifar10', a folder, a "
            "map-style data set with a length, or a pair of them: training and test images"
        )
    if not len(dataset):
        raise ValueError("data is an empty data set; expected at least one image")
    labels = torch.tensor(_labels_of(dataset))
    given = getattr(dataset, "classes", None) if classes is None else classes
    names = tuple(map(str, range(int(labels.max()) + 1) if given is None else given))
    wrapped = WrappedDataset(dataset, torch.arange(len(labels)), labels, names)
    if getattr(dataset, "transforms", dataset) is not None:
        return wrapped
    images: list[Tensor] = []
    bar = tqdm(range(len(wrapped)), "reading", disable=None, leave=False)
    for i in bar:
        image, _ = wrapped[i]
        if image.dtype != torch.uint8 or max(image.shape) > SMALL_IMAGE:
            return wrapped
        if images and image.shape != images[0].shape:
            return wrapped
        images.append(image)
    return ImageTensors(torch.stack(images), labels, names)


def _labels_of(dataset: Any) -> list[int]:
    targets = getattr(dataset, "targets", None)
    # torchvision's targets are what they were before a target_transform.
    untouched = getattr(dataset, "target_transform", None) is None
    if targets is not None and len(targets) == len(dataset) and untouched:
        targets = targets.tolist() if hasattr(targets, "tolist") else targets
        return [_label(target, i) for i, target in enumerate(targets)]
    labels = []
    bar = tqdm(range(len(dataset)), "labels", disable=None, leave=False)
    for i in bar:
        item = dataset[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise TypeError(
                f"item {i} of data is a {type(item).__name__}; expected a pair (image, label)"
            )
        labels.append(_label(item[1], i))
    return labels


def _label(value: Any, index: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"the label of image {index} of the data set is {value!r}; expected an integer from 0"
        ) from None
