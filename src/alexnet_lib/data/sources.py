"""Image folders, CIFAR-10, the shapes and users' data sets: opened, and split into parts."""

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from alexnet_lib import interrupts
from alexnet_lib.checks import (
    FRACTION,
    as_integer,
    check_integer,
    check_number,
    did_you_mean,
    length_of,
    shown,
    type_name,
)
from alexnet_lib.data.folders import (
    MOST_IN_MEMORY,
    SMALL_IMAGE,
    OnBadImage,
    PartNames,
    Reading,
    class_folders,
    listed,
    part_folders,
)
from alexnet_lib.data.images import (
    LABEL_KEYS,
    MAX_CHANNELS,
    MAX_CLASSES,
    ImageSet,
    ImageTensors,
    WrappedDataset,
    image_to_tensor,
    read_item,
    with_channels,
)
from alexnet_lib.data.shapes import shapes
from alexnet_lib.data.shards import class_names, find_shards, open_shards
from alexnet_lib.data.tables import TABLE_SUFFIXES, image_table
from alexnet_lib.devices import generator_for
from alexnet_lib.files import as_path
from alexnet_lib.text import printable, progress_bar

# Names of data sets that need no folder.
BUILT_IN = ("shapes", "cifar10")


class Parts(NamedTuple):
    """The three parts of a data set; ``validation`` or ``test`` is None if it does not exist."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet | None


# "shapes", "cifar10", a folder or a CSV file; training images, a pair of training and test images,
# or a mapping of parts.
Data = str | os.PathLike[str] | Dataset[Any] | tuple[Any, Any] | Mapping[str, Any] | Parts


def open_parts(
    data: Data,
    *,
    classes: Iterable[str] | None = None,
    parts: PartNames | None = None,
    channels: int | None = None,
    background: str = "white",
    on_bad_image: OnBadImage = "stop",
    bad_image_limit: float = 0.1,
    to_learn: bool = True,
) -> Parts:
    """The images of ``data``; arguments and errors are those of ``build_loaders``.

    With ``to_learn=False``, one class is enough, and a class may have no images.
    """
    if classes is not None:
        expected = f"a list of different names, up to {MAX_CLASSES:,}"
        if isinstance(classes, str | bytes) or not isinstance(classes, Iterable):
            raise ValueError(f"classes is {shown(classes)}; expected {expected}")
        given = tuple(islice(classes, MAX_CLASSES + 1))
        names = tuple(str(name) for name in given if isinstance(name, str) or _is_number(name))
        if len(names) < len(given) or not 0 < len(set(names)) == len(names) <= MAX_CLASSES:
            raise ValueError(f"classes is {shown(classes)}; expected {expected}")
        classes = names
    channels = check_integer("channels", channels, 1, MAX_CHANNELS, optional=True)
    if isinstance(data, Parts):
        return _with_channels(data, channels)
    channels_read = 3 if channels is None else channels
    files = Reading(channels_read, background, on_bad_image, bad_image_limit, to_learn)
    if isinstance(data, tuple) and len(data) == 2:
        data = {"train": data[0], "test": data[1]}
    if not isinstance(data, Mapping):
        return _open(data, classes, parts, channels, files)
    sets = {"validation" if key == "val" else key: part for key, part in data.items()}
    if "train" not in sets or set(sets) - set(Parts._fields):
        raise ValueError(
            f"data has the parts {shown([*data])}; expected train, and validation or test"
        )
    opened = _open(sets["train"], classes, parts, channels, files)
    if opened[1:] != (None, None):
        raise ValueError(f"{shown(sets['train'])} has parts itself; expected training images only")
    validation, test = (
        None
        if (part := sets.get(name)) is None
        else _open_other(part, opened.train, files, first=sets["train"], named=classes is None)
        for name in ("validation", "test")
    )
    return Parts(opened.train, validation, test)


def _is_number(name: object) -> bool:
    number = as_integer(name)
    return number is not None and abs(number) < MAX_CLASSES


def _open_other(data: Any, train: ImageSet, files: Reading, *, first: Any, named: bool) -> ImageSet:
    """Validation or test images; ``named``: they have the classes of the training images.

    ``first`` is what was given as training images.
    """
    files = replace(files, channels=train.channels)
    if isinstance(data, str | os.PathLike):
        path = as_path(data, "data")
        if path.suffix.lower() in TABLE_SUFFIXES:
            return image_table(path, files, classes=train.classes, parts=None)
        if shards := find_shards(path, parts={}):
            own = None if named else train.classes
            numbered = None
            if isinstance(first, str | os.PathLike):
                folder = as_path(first, "data")
                numbered = class_names(folder if folder.is_dir() else folder.parent)
            return open_shards(
                shards["train"], files, classes=own, training=train.classes, numbered=numbered
            )
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder")
        return class_folders(path, files, training=train.classes)
    names = _class_names(data)
    if named and names is not None and names != train.classes:
        raise ValueError(
            f"the other images of data have the classes {names}, the training images "
            f"{train.classes}, so that the same number stands for two classes; expected "
            "the same classes in both, or classes=... with the names of all"
        )
    return wrap_dataset(data, train.classes, train.channels, files.background)


def _open(
    data: Any,
    classes: tuple[str, ...] | None,
    parts: PartNames | None,
    channels: int | None,
    reading: Reading,
) -> Parts:
    # Imports torchvision, which the network does not need.
    from alexnet_lib.data.cifar10 import cifar10, is_cifar10

    if not isinstance(data, str | os.PathLike):
        if parts is not None:
            raise ValueError(f"parts is given, but data is a {type_name(data)}; expected a folder")
        return Parts(wrap_dataset(data, classes, channels, reading.background), None, None)
    path = as_path(data, "data")
    built_in = isinstance(data, str) and data in BUILT_IN
    if built_in and path.is_dir():
        warnings.warn(
            f"data is {data!r}, the built-in set; the folder of this name is not used: its name is "
            f"'./{data}'",
            stacklevel=3,
        )
    if built_in or (path.suffix.lower() not in TABLE_SUFFIXES and is_cifar10(path)):
        if classes is not None or parts is not None:
            given = "classes" if parts is None else "parts"
            raise ValueError(f"{given} is given, but data is {data!r}, which has its own")
        if data == "shapes":
            train, test = shapes()
        else:
            root = "data" if built_in else path
            train, test = cifar10(root, download=built_in)
        return _with_channels(Parts(train, None, test), channels)
    if shards := find_shards(path, parts):
        numbered = class_names(shards["train"][0].parent)
        open_part = partial(open_shards, reading=reading, classes=classes, numbered=numbered)
        return _opened(shards, open_part)
    if path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        return Parts(image_table(path, reading, classes=classes, parts=parts), None, None)
    return image_folder(path, reading, classes=classes, parts=parts)


def _with_channels(parts: Parts, channels: int | None) -> Parts:
    """The parts with this number of channels, if they are in memory."""

    def changed(part: ImageSet | None) -> ImageSet | None:
        if channels is None or not isinstance(part, ImageTensors):
            return part
        return replace(part, images=with_channels(part.images, channels, "data"))

    train, validation, test = map(changed, parts)
    assert train is not None
    return Parts(train, validation, test)


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
    validation_fraction = check_number("validation_fraction", validation_fraction, FRACTION)
    test_fraction = check_number("test_fraction", test_fraction, FRACTION)
    train, validation, test = parts
    generator, ties = generator_for(seed, 0), generator_for(seed, 1, 1)
    if test is None and test_fraction:
        train, test = _split_off(train, round(test_fraction * len(train)), generator, ties)
    if train_images is not None:
        least, number = len(train.classes), as_integer(train_images)
        if number is None or not least <= number <= len(train):
            raise ValueError(
                f"train_images is {shown(train_images)}; expected {least} (one of each class) to "
                f"{len(train):,}, the training images there are"
            )
        _, train = _split_off(train, number, generator, ties, keep="drawn")
    if validation is None and validation_fraction:
        count = round(validation_fraction * len(train))
        train, validation = _split_off(train, count, generator, ties)
    return Parts(train, validation if validation else None, test if test else None)


def _split_off(
    data: ImageSet,
    count: int,
    generator: torch.Generator,
    ties: torch.Generator,
    *,
    keep: Literal["rest", "drawn"] = "rest",
) -> tuple[ImageSet, ImageSet]:
    """The rest, and ``count`` images drawn in the classes' proportions, both in their old order.

    Each class keeps at least one image in the part ``keep``; so the other may have fewer.
    """
    sizes = torch.bincount(data.labels, minlength=len(data.classes))
    least = (sizes.clamp(max=1) if keep == "drawn" else torch.zeros_like(sizes)).tolist()
    most = (sizes if keep == "drawn" else (sizes - 1).clamp(min=0)).tolist()
    # Largest remainders, in integers, so that they are the same on every machine; equal ones in
    # random order.
    shares = (sizes * count).tolist()
    counts = [min(max(x // len(data), a), b) for x, a, b in zip(shares, least, most, strict=True)]
    missing = count - sum(counts)
    sign = 1 if missing > 0 else -1
    order = torch.randperm(len(sizes), generator=ties).tolist()
    while missing:
        bound = most if missing > 0 else least
        free = [i for i in order if counts[i] != bound[i]]
        if not free:
            break
        free.sort(key=lambda i: sign * (counts[i] * len(data) - shares[i]))
        for i in free[: abs(missing)]:
            counts[i] += sign
            missing -= sign
    order_of_images = torch.randperm(len(data), generator=generator)
    order_of_images = order_of_images[data.labels[order_of_images].argsort(stable=True)]
    drawn = torch.zeros(len(data), dtype=torch.bool)
    for number, indices in zip(counts, order_of_images.split(sizes.tolist()), strict=True):
        drawn[indices[:number]] = True
    return data.subset((~drawn).nonzero()[:, 0]), data.subset(drawn.nonzero()[:, 0])


def image_folder(
    folder: Path,
    reading: Reading = Reading(),  # noqa: B008  (frozen)
    *,
    classes: tuple[str, ...] | None = None,
    parts: PartNames | None = None,
) -> Parts:
    """The images of a folder; errors are those of ``build_loaders``.

    With a test part, ``val/`` is the validation part; without, it is the test part, as for
    ImageNet.
    """
    if folder.is_file():
        weights = folder.suffix.lower() in {".pt", ".pth", ".safetensors", ".ckpt", ".bin"}
        what = "file of weights" if weights else "file"
        raise ValueError(
            f"{printable(str(folder))} is a {what}; expected a folder of images (unpack an archive "
            f"first), or a file that ends in {' or '.join(TABLE_SUFFIXES)}"
        )
    if not folder.is_dir():
        names = os.listdir(folder.parent) if folder.parent.is_dir() else []
        near = did_you_mean(folder.name, [*BUILT_IN, *names])
        raise FileNotFoundError(f"{folder}: no such folder{near}")
    folders = part_folders(folder, parts)
    if not folders:
        return Parts(class_folders(folder, reading, classes=classes), None, None)
    # Selected classes leave others out; otherwise a folder of no training class is an error.
    return _opened(folders, partial(class_folders, reading=reading, classes=classes))


def _opened(found: Mapping[str, Any], open_part: Callable[..., ImageSet]) -> Parts:
    """The parts of which folders or shards were found; errors are those of ``build_loaders``."""
    train = open_part(found["train"])
    others = {
        part: open_part(found[part], training=train.classes)
        for part in ("validation", "test")
        if part in found
    }
    if "test" not in others:
        return Parts(train, None, others.get("validation"))
    return Parts(train, others.get("validation"), others["test"])


def wrap_dataset(
    dataset: Any,
    classes: tuple[str, ...] | None = None,
    channels: int | None = None,
    background: str = "white",
) -> ImageSet:
    """A user's map-style data set; errors are those of ``build_loaders``.

    The images of torchvision's own data sets without a transform are decoded once, if they are
    small and of one size. Other items are read in each epoch, because they may be random.
    """
    if isinstance(dataset, ImageSet):
        return dataset
    hint = ""
    if isinstance(dataset, DataLoader):
        hint = ": pass its data set, loader.dataset"
    elif isinstance(dataset, np.ndarray | Tensor):
        hint = ": pass torch.utils.data.TensorDataset(images, labels)"
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset | Mapping)
    if hint or not indexed or length_of(dataset) is None:
        raise TypeError(
            f"data is a {type_name(dataset)}; expected 'shapes', 'cifar10', a folder, a CSV file, "
            f"a map-style data set with a length, or a pair of them: training and test images{hint}"
        )
    if not len(dataset):
        raise ValueError("data is an empty data set; expected at least one image")
    first, _ = read_item(dataset, 0)
    name = "image 0 of the data set"
    channels = image_to_tensor(first, name, channels, background).shape[-3]
    values = _stored_labels(dataset)
    if values is None:
        values = []
        for index in progress_bar(range(len(dataset)), "labels", disable=None, leave=False):
            interrupts.check()
            values.append(read_item(dataset, index)[1])
    names = _class_names(dataset) if classes is None else classes
    labels, names = _numbered(values, names)
    wrapped = WrappedDataset(
        dataset, torch.arange(len(labels)), labels, names, channels, background
    )
    if not _same_each_time(dataset):
        return wrapped
    count = len(wrapped)
    images: list[Tensor] = []
    for i in progress_bar(range(count), "reading", disable=None, leave=False):
        interrupts.check()
        image = wrapped.image(i)
        same_shape = not images or image.shape == images[0].shape
        small = max(image.shape) <= SMALL_IMAGE and count * image.numel() <= MOST_IN_MEMORY
        if image.dtype != torch.uint8 or not small or not same_shape:
            return wrapped
        images.append(image)
    return ImageTensors(torch.stack(images), labels, names)


def _method_of_torchvision(dataset: Any) -> bool:
    """Whether torchvision's own code reads the items, not that of a subclass."""
    method = getattr(type(dataset), "__getitem__", None)
    return getattr(method, "__module__", "").startswith("torchvision.datasets.")


def _same_each_time(dataset: Any) -> bool:
    """Whether the items are known to be the same in each epoch."""
    if not _method_of_torchvision(dataset) or getattr(dataset, "transforms", dataset) is not None:
        return False
    from torchvision.datasets.folder import default_loader

    return getattr(dataset, "loader", default_loader) is default_loader


def _stored_labels(dataset: Any) -> Sequence[Any] | None:  # noqa: PLR0911
    """The labels of the items, where they are known without reading images; else None.

    Only of code that is known to read them from there: an attribute of another class may say
    something else than its items.
    """
    if type(dataset) is Subset:
        inner = _stored_labels(dataset.dataset)
        return inner and [inner[i] for i in dataset.indices]
    if type(dataset) is ConcatDataset:
        parts = [_stored_labels(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        return [*dataset.tensors[1]]
    if type(dataset).__module__ == "datasets.arrow_dataset" and not dataset.format["type"]:
        key = next((key for key in LABEL_KEYS if key in dataset.column_names), None)
        return None if key is None else [*dataset[key]]
    if "torchvision.datasets" not in sys.modules or not _method_of_torchvision(dataset):
        return None
    from torchvision.datasets import CIFAR10, MNIST, DatasetFolder

    if dataset.target_transform is not None:
        return None
    if isinstance(dataset, DatasetFolder):
        return [label for _, label in dataset.samples]
    if isinstance(dataset, CIFAR10 | MNIST):
        targets = dataset.targets
        return targets.tolist() if isinstance(targets, Tensor) else [*targets]
    return None


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """The names that a data set gives its classes, also behind a ``Subset``."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    names, features = (getattr(dataset, name, None) for name in ("classes", "features"))
    if names is None and isinstance(features, Mapping):
        label = next((features[key] for key in LABEL_KEYS if key in features), None)
        names = getattr(label, "names", None)
    return tuple(map(str, names)) if isinstance(names, Iterable) else None


def _numbered(
    values: Sequence[Any], names: tuple[str, ...] | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as int64 numbers, and the names of the classes; labels may be names themselves."""
    if all(isinstance(value, str) for value in values):
        names = names or tuple(sorted(set(values)))
        numbers = {name: number for number, name in enumerate(names)}
        if unknown := sorted(set(values) - set(numbers)):
            raise ValueError(
                f"data has the labels {listed(unknown)}, which are not in {shown(names)}"
            )
        return torch.tensor([numbers[value] for value in values]), names
    labels = []
    for index, value in enumerate(values):
        if (number := as_integer(value)) is None:
            raise TypeError(
                f"the label of image {index} of the data set is {shown(value)}; expected an "
                "integer from 0, or the name of a class"
            )
        if not 0 <= number < MAX_CLASSES:
            raise ValueError(
                f"the label of image {index} of the data set is {shown(value)}; expected an "
                f"integer from 0 to {MAX_CLASSES - 1:,}"
            )
        labels.append(number)
    return torch.tensor(labels), names or tuple(map(str, range(max(labels) + 1)))
