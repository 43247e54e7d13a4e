"""Image folders, CIFAR-10, the shapes and users' data sets: opened, and split into parts."""

import operator
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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

# Images of one size, with sides up to this number of pixels, are decoded once and kept in memory.
SMALL_IMAGE = 96

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Files of file managers and archivers.
_LITTER = (".DS_Store", "Thumbs.db", ".ipynb_checkpoints", "__MACOSX", "desktop.ini")
_VALIDATION_NAMES = ("val", "valid", "validation")


class Parts(NamedTuple):
    """The three parts of a data set; ``validation`` or ``test`` is None if it does not exist."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet | None


# "shapes", "cifar10" or a folder; training images, or a pair of training and test images.
Data = str | os.PathLike[str] | Dataset[Any] | tuple[Dataset[Any], Dataset[Any] | None] | Parts


def open_parts(data: Data, *, classes: Iterable[str] | None = None) -> Parts:
    """The images of ``data``; arguments and errors are those of ``build_loaders``."""
    # Imports torchvision, which the network does not need.
    from alexnet_lib.data.cifar10 import cifar10, is_cifar10

    if not isinstance(data, str | os.PathLike | Parts):
        train, test = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
        train_set = wrap_dataset(train, classes)
        own = getattr(test, "classes", None)
        if classes is None and own is not None and tuple(map(str, own)) != train_set.classes:
            raise ValueError(
                f"the test images of data have the classes {tuple(own)}, the training images "
                f"{train_set.classes}, so that the same number stands for two classes; expected "
                "the same classes in both, or classes=... with the names of all"
            )
        test_set = None if test is None else wrap_dataset(test, train_set.classes)
        return Parts(train_set, None, test_set)
    if classes is not None:
        raise ValueError(f"classes is given, but data is {data!r}; expected a data set as data")
    if isinstance(data, Parts):
        return data
    if data == "shapes":
        train, test = shapes()
    elif data == "cifar10":
        train, test = cifar10("data")
    elif is_cifar10(data):
        train, test = cifar10(data, download=False)
    else:
        return image_folder(data)
    return Parts(train, None, test)


def split(
    parts: Parts,
    *,
    train_images: int | None,
    validation_fraction: float,
    test_fraction: float = 0.2,
    seed: int,
) -> Parts:
    """The parts; missing ones are drawn from the training images, stratified.

    Arguments and errors are those of ``build_loaders``.
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
    if validation is None and validation_fraction and len(train):
        train, validation = _split_off(train, round(validation_fraction * len(train)), generator)
    if not len(train):
        raise ValueError(
            f"validation_fraction is {validation_fraction!r} and test_fraction {test_fraction!r}, "
            "which leaves no images to train on; expected smaller ones, or more images"
        )
    return Parts(train, validation if validation else None, test if test else None)


def _split_off(data: ImageSet, count: int, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """The rest, and ``count`` images drawn in the classes' proportions, both in their old order."""
    sizes = torch.bincount(data.labels, minlength=len(data.classes))
    # Largest remainders, so that the classes' counts add up to `count`; in integers and with a
    # stable sort, so that they are the same on every machine.
    counts = sizes * count // len(data)
    largest = (sizes * count % len(data)).argsort(descending=True, stable=True)
    counts[largest[: count - int(counts.sum())]] += 1
    order = torch.randperm(len(data), generator=generator)
    order = order[data.labels[order].argsort(stable=True)]
    drawn = torch.zeros(len(data), dtype=torch.bool)
    for class_count, indices in zip(counts.tolist(), order.split(sizes.tolist()), strict=True):
        drawn[indices[:class_count]] = True
    return data.subset((~drawn).nonzero()[:, 0]), data.subset(drawn.nonzero()[:, 0])


def image_folder(root: str | os.PathLike[str]) -> Parts:
    """The images of a folder; errors are those of ``build_loaders``.

    With a ``test/``, ``val/`` is the validation part; without, it is the test part, as for
    ImageNet. Files of file managers (``.DS_Store``, ``Thumbs.db``, ``__MACOSX`` ...) are ignored.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not (folder / "train").is_dir():
        return Parts(_class_folders(folder), None, None)
    train = _class_folders(folder / "train")
    validation = [name for name in _VALIDATION_NAMES if (folder / name).is_dir()][:1]
    test = ["test"] if (folder / "test").is_dir() else []
    parts = [_class_folders(folder / name, train.classes) for name in validation + test]
    return Parts(train, parts[0] if len(parts) == 2 else None, parts[-1] if parts else None)


def _class_folders(folder: Path, classes: tuple[str, ...] | None = None) -> ImageSet:
    """The images of a folder of class folders; ``classes`` are those of the training set."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_litter(path))
    classes = classes or tuple(names)
    if unknown := sorted(set(names) - set(classes)):
        raise ValueError(f"{folder} has the folders {unknown}, which are not training classes")
    labelled = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).rglob("*"))
        if file.is_file() and not any(map(_is_litter, (file, *file.relative_to(folder).parents)))
    ]
    others = [file for file, _ in labelled if file.suffix.lower() not in IMAGE_SUFFIXES]
    images = [pair for pair in labelled if pair[0].suffix.lower() in IMAGE_SUFFIXES]
    files, labels = [file for file, _ in images], [label for _, label in images]
    empty = [classes[label] for label in sorted({*range(len(classes))} - {*labels})]
    if not files:
        raise ValueError(f"{folder} has no images in class folders; expected CLASS/IMAGE.jpg")
    if len(classes) < 2:
        raise ValueError(f"{folder} has one class, {classes[0]!r}; expected at least two")
    if empty:
        raise ValueError(f"{folder} has no images for the classes {empty}")
    if others:
        warnings.warn(
            f"{len(others)} files in {folder} are ignored, because their names do not end like "
            f"those of images; {others[0]} is the first",
            stacklevel=3,
        )
    source = ImageFiles(tuple(files), torch.tensor(labels), classes)
    sizes = _read_all(_image_size, files, folder)
    if len(set(sizes)) > 1 or max(sizes[0]) > SMALL_IMAGE:
        return source
    pixels = _read_all(read_image, files, folder)
    if len({image.shape for image in pixels}) > 1:  # EXIF has rotated some of them
        return source
    return ImageTensors(torch.stack(pixels), source.labels, classes)


def _is_litter(path: Path) -> bool:
    return path.name in _LITTER or path.name.startswith("._")


def _image_size(file: Path) -> tuple[int, int]:
    """Width and height, from the file's header."""
    with open_image(file) as image:
        return image.size


def _read_all(read: Callable[[Path], Any], files: Sequence[Path], folder: Path) -> list[Any]:
    """``read`` of each file; one error names all files that cannot be read."""
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
    """A user's map-style data set of (image, label); errors are those of ``build_loaders``.

    The images of a torchvision data set without a transform are decoded once, if they are small and
    of one size. Other items are read in each epoch, because they may be random.
    """
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    if not indexed or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"data is a {type(dataset).__name__}; expected 'shapes', 'cifar10', a folder, a "
            "map-style data set with a length, or a pair of them: training and test images"
        )
    if not len(dataset):
        raise ValueError("data is an empty data set; expected at least one image")
    labels = torch.tensor([_checked_label(*pair) for pair in enumerate(_labels(dataset))])
    names = getattr(dataset, "classes", None) if classes is None else classes
    names = tuple(map(str, range(int(labels.max()) + 1) if names is None else names))
    wrapped = WrappedDataset(dataset, torch.arange(len(labels)), labels, names)
    if getattr(dataset, "transforms", dataset) is not None:
        return wrapped
    images: list[Tensor] = []
    for i in tqdm(range(len(wrapped)), "reading", disable=None, leave=False):
        image, _ = wrapped[i]
        same_shape = not images or image.shape == images[0].shape
        if image.dtype != torch.uint8 or max(image.shape) > SMALL_IMAGE or not same_shape:
            return wrapped
        images.append(image)
    return ImageTensors(torch.stack(images), labels, names)


def _labels(dataset: Any) -> Iterator[Any]:
    targets = getattr(dataset, "targets", None)
    # torchvision's targets do not include a target_transform.
    untransformed = getattr(dataset, "target_transform", None) is None
    if targets is not None and len(targets) == len(dataset) and untransformed:
        yield from targets.tolist() if hasattr(targets, "tolist") else targets
        return
    for i in tqdm(range(len(dataset)), "labels", disable=None, leave=False):
        item = dataset[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise TypeError(
                f"item {i} of data is a {type(item).__name__}; expected a pair (image, label)"
            )
        yield item[1]


def _checked_label(index: int, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"the label of image {index} of the data set is {value!r}; expected an integer from 0"
        ) from None
