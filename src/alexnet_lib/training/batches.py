"""What a loader yields, as tensors on a device; and what the numbers of its labels mean."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from alexnet_lib.checks import shown, type_name
from alexnet_lib.data.images import IMAGE_KEYS, LABEL_KEYS, image_and_label
from alexnet_lib.network.architecture import MOST_COUNT
from alexnet_lib.training.distributed import WHOLE, Place
from alexnet_lib.training.metrics import NO_SHARES

_PARTS = ("images", "labels")
_LABELS = "int64 (batch,)"
_MOST_WITHIN = 20  # data sets in data sets; one may be its own


class Batch(NamedTuple):
    """A batch on a device; integer labels are int64.

    ``bounds`` are the smallest and the largest integer label; ``shares`` tells whether the rows of
    floating labels are shares of the classes. Both are None where looking would have meant to wait
    for a device. ``place`` is its place in the whole batch, which it is unless it is a share of it.
    """

    images: Tensor
    labels: Tensor
    place: Place
    bounds: tuple[int, int] | None = None
    shares: bool | None = None


def moved_batches(
    loader: Iterable[Any],
    device: torch.device,
    place: Callable[[int], Place] = WHOLE,
) -> Iterator[Batch]:
    """The batches of any loader, on a device, without those that have no images.

    ``place`` is what ``Group.places`` returns, where they are shares.
    """
    try:
        items = iter(loader)
    except TypeError as error:
        kind = type_name(loader)
        raise TypeError(f"loader is a {kind}; expected an iterable of batches: {error}") from error
    for item in items:
        images, labels = (as_tensor(*part) for part in zip(_PARTS, pair(item), strict=True))
        if images.ndim == 0 or (labels.ndim and len(images) != len(labels)):
            raise ValueError(
                f"loader yields images of shape {tuple(images.shape)} with labels of shape "
                f"{tuple(labels.shape)}; expected as many labels as images"
            )
        where = place(len(images))
        if where.whole:
            yield labelled(*placed(images, labels, where), device, where)


def placed(images: Tensor, labels: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Images and labels; for a share without any, an image of zeros of the first class."""
    if place.images:
        return images, labels
    images, labels = (part.new_zeros((1, *part.shape[1:])) for part in (images, labels))
    if labels.is_floating_point():
        labels[:, 0] = 1
    return images, labels


def pair(item: Any) -> tuple[Any, Any]:
    """Images and labels of what a loader yields: a pair, or a mapping with the usual keys."""
    if (found := image_and_label(item)) is not None:
        return found
    if isinstance(item, Mapping):
        raise ValueError(
            f"loader yields a {type_name(item)} with the keys {[*item]}; expected pairs (images, "
            f"labels), or one of {IMAGE_KEYS} for the images and one of {LABEL_KEYS} for the labels"
        )
    length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    raise ValueError(f"loader yields a {type_name(item)}{length}; expected pairs (images, labels)")


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor, an array, or a list of numbers, arrays or tensors, as a tensor."""
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            return torch.stack([*value])
        if isinstance(value, np.ndarray | np.generic | list | tuple):
            array = np.asarray(value)
            if array.dtype == np.float64:  # what Python's numbers are, and NumPy's as a rule
                array = array.astype(np.float32)
            # torch takes neither read-only arrays nor negative strides.
            return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError, RuntimeError):
        pass
    first = f" of {type_name(value[0])}" if isinstance(value, list | tuple) and value else ""
    raise ValueError(
        f"{name} are a {type_name(value)}{first}; expected numbers of one shape, in a tensor, an "
        "array or a list"
    )


def labelled(
    images: Tensor, labels: Tensor, device: torch.device, place: Place | None = None
) -> Batch:
    """A batch on the device, its labels looked at where they are on the CPU."""
    if labels.ndim == 0:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {_LABELS}")
    if images.is_meta or labels.is_meta:
        raise ValueError("images or labels are on the device 'meta'; expected ones with numbers")
    if labels.is_complex():
        raise ValueError(f"labels are {labels.dtype}; expected {_LABELS}")
    if not labels.is_floating_point():
        # Arithmetic on labels, such as that of a confusion matrix, does not fit smaller integers.
        labels = labels.long()
    looked = _look(labels) if labels.device.type == "cpu" else (None, None)
    return Batch(
        images.to(device, non_blocking=True),
        labels.to(device, non_blocking=True),
        place or Place(0, len(images), len(images)),
        *looked,
    )


def _look(labels: Tensor) -> tuple[tuple[int, int] | None, bool | None]:
    if not labels.numel():
        return None, None
    if labels.is_floating_point():
        return None, not bool(no_shares(labels).any()) if labels.ndim == 2 else None
    low, high = torch.aminmax(labels)
    return (int(low), int(high)), None


def no_shares(labels: Tensor) -> Tensor:
    """For each row of ``(batch, classes)`` whether it is not at least 0 with the sum 1."""
    wide = labels.float()
    tolerance = max(0.01, 4 * torch.finfo(labels.dtype).eps)
    # Written so that NaN is no share.
    return ~((wide >= 0).all(1) & ((wide.sum(1) - 1).abs() <= tolerance))


def are_classes(labels: Tensor, logits: Tensor) -> bool:
    """Whether labels can be classes or shares of them, so that an accuracy has a meaning."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        return False
    if labels.is_floating_point():
        return labels.shape == logits.shape
    return labels.ndim == 1


def check_labels(batch: Batch, logits: Tensor, classes: int, *, cross_entropy: bool) -> None:
    """Raises a ``ValueError`` if labels are none of the classes, or not fit for cross entropy.

    Nothing is read from a device.
    """
    labels, shape = batch.labels, tuple(logits.shape)
    hint = "for other tasks than one class for each image, pass criterion=..."
    if cross_entropy:
        if logits.ndim < 2 or shape[1] < 2:
            raise ValueError(
                f"model returns logits of shape {shape}, on which cross entropy has no meaning; "
                f"expected (batch, classes) with at least 2 classes: {hint}"
            )
        shares = (shape[0], classes, *shape[2:])
        if labels.shape != (shares if labels.is_floating_point() else shares[:1] + shares[2:]):
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected {_LABELS}, or "
                f"the share of each class, floating {shares}: {hint}"
            )
        if batch.shares is False:
            raise ValueError(NO_SHARES)
    if are_classes(labels, logits) and batch.bounds is not None:
        low, high = batch.bounds
        if low < 0 or high >= classes:
            owner = "the model" if classes == shape[1] else "data"
            raise ValueError(
                f"labels run from {low} to {high}, but {owner} has {classes} classes; "
                f"expected 0 to {classes - 1}"
            )


def model_names(model: Any) -> tuple[str, ...] | None:
    """The names of a model's classes (of the wrapped one of ``DataParallel`` and the like)."""
    inner = getattr(model, "module", None)
    return names_of(getattr(model, "classes", None)) or names_of(getattr(inner, "classes", None))


def data_names(loader: Any) -> tuple[str, ...] | None:
    """The names of the classes of a loader's data set, also of a part of it."""
    return _dataset_names(getattr(loader, "dataset", None))


def _dataset_names(data: Any, within: int = 0) -> tuple[str, ...] | None:
    if data is None or within > _MOST_WITHIN:
        return None
    names = names_of(getattr(data, "classes", None))
    if names is None and isinstance(data, ConcatDataset):
        several = {_dataset_names(part, within + 1) for part in data.datasets}
        if len(several) > 1:
            raise ValueError(
                f"the data sets of a ConcatDataset have the classes "
                f"{', '.join(sorted(map(str, several)))}, so that the same number stands for "
                "several classes; expected the same classes in all"
            )
        return several.pop()
    if names is None:
        return _dataset_names(getattr(data, "dataset", None), within + 1)
    return names


def names_of(names: Any) -> tuple[str, ...] | None:
    """A sequence or an array of names as texts; None if it is something else, empty or endless."""
    if isinstance(names, np.ndarray):
        names = names.tolist()
    if not isinstance(names, Sequence) or isinstance(names, str | bytes):
        return None
    if not 0 < len(names) <= MOST_COUNT:
        return None
    return tuple(map(str, names))


def real(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Names; None for those that are only the numbers 0, 1, ..., which a set without names has."""
    return None if names == numbers_as_names(len(names or ())) else names


def numbers_as_names(count: int) -> tuple[str, ...]:
    """``("0", "1", ...)``."""
    return tuple(map(str, range(count)))


def check_order(model: Any, names: tuple[str, ...] | None) -> None:
    """Raises a ``ValueError`` if a model to train has the classes of the data in another order."""
    known = real(model_names(model))
    if known and names and known != names and sorted(known) == sorted(names):
        raise ValueError(
            f"model has the classes of data in another order, {known}; data has {names}, so that "
            "the same number stands for two classes: open data with classes=model.classes, or set "
            "model.classes to those of data if the last layer is to learn them anew"
        )


class ClassMap:
    """The classes of a model with ``outputs`` classes, and how labels of a loader's data map to it.

    By name where both have names, else by number; ``outputs`` becomes the names of the model's,
    and ``numbers`` theirs of the data's, or None where they are the same.

    Raises:
        ValueError: data has a class that the model does not have, or more classes.
    """

    def __init__(self, model: Any, loader: Any, outputs: int, device: torch.device) -> None:
        known, data = model_names(model), data_names(loader)
        if known is not None and len(known) != outputs:
            known = None  # of the last layer before it was replaced
        known, names = real(known), real(data)
        if known and data and not names and sorted(known) == sorted(data):
            raise ValueError(
                f"the model has the classes {shown(known)}, data has {shown(data)}, which may be "
                "these names or their places; expected data that was opened with "
                "classes=model.classes (--classes and the names), so that they are names"
            )
        self.numbers: Tensor | None = None
        self._count = outputs
        if known and names:
            self._map(known, names, device)
        elif data is not None and (len(data) > outputs or (names and len(data) != outputs)):
            raise ValueError(
                f"data has {len(data)} classes, {data}, but the model has {outputs}, and without "
                "names on both sides they can only be told by their numbers; expected as many: "
                "set model.classes to the names"
            )
        self.outputs = known or names or numbers_as_names(outputs)

    def _map(self, known: tuple[str, ...], names: tuple[str, ...], device: torch.device) -> None:
        if names == known[: len(names)]:
            return
        unknown = sorted({*names} - {*known})
        twice = len({*names}) < len(names) or len({*known}) < len(known)
        if unknown or twice:
            reason = (
                f"the model does not have {shown(unknown)}" if unknown else "a name stands twice"
            )
            more = ""
            if not twice and {*known} < {*names}:
                more = ": open data with classes=model.classes (--classes and the names)"
            raise ValueError(
                f"the model has the classes {shown(known)}, data has {shown(names)}: {reason}; "
                f"expected data of the model's classes{more}"
            )
        self._count = len(names)
        self.numbers = torch.tensor([known.index(name) for name in names], device=device)

    def numbered(self, batch: Batch, logits: Tensor, *, cross_entropy: bool) -> Tensor:
        """The labels of a batch in the model's classes; errors are those of ``check_labels``."""
        numbers = self.numbers
        if numbers is None or not self._are_of_data(batch.labels):
            outputs = logits.shape[1] if logits.ndim > 1 else 1
            check_labels(batch, logits, outputs, cross_entropy=cross_entropy)
            return batch.labels
        check_labels(batch, logits, self._count, cross_entropy=cross_entropy)
        if not batch.labels.is_floating_point():
            return numbers[batch.labels]
        shares = batch.labels.new_zeros(logits.shape)
        return shares.index_copy_(1, numbers, batch.labels)

    def _are_of_data(self, labels: Tensor) -> bool:
        if labels.is_floating_point():
            return labels.ndim == 2 and labels.shape[1] == self._count
        return labels.ndim == 1
