"""Checkpoints: safetensors files of weights, architecture, classes and preprocessing."""

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet_lib.checks import as_integer, as_number, check_integer, length_of, shown, type_name
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.devices import resolve_device
from alexnet_lib.files import as_path, read_tensors, write_tensors
from alexnet_lib.network.architecture import IMAGE_CHANNELS, Architecture
from alexnet_lib.network.model import AlexNet
from alexnet_lib.network.weight_files import (
    PYTORCH,
    SAFETENSORS,
    check_is_file,
    check_tensor,
    file_kind,
)

# The key of the library's metadata, as JSON, in that of safetensors.
_METADATA = "alexnet_lib"

# The arguments of an `AlexNet`, and attributes of the same names, that are plain data.
_ARGUMENTS = ("num_classes", "image_size", "dropout", "dropout_scaling", "in_channels")

_KEYS = ("architecture", *_ARGUMENTS, "classes", "preprocess", "metrics")

# Of keys that older files do not have.
_DEFAULTS = {"in_channels": IMAGE_CHANNELS}

# What metadata can mean. A confusion matrix of ImageNet's classes has a million numbers; as objects
# of Python, the shortest values take twenty times the memory of their text.
_MOST_VALUES = 2_000_000
_LONGEST_TEXT = 20_000_000
_DEEPEST = 50


def save_checkpoint(
    path: str | os.PathLike[str],
    model: AlexNet,
    *,
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model's weights with all that is needed to use them; a crash keeps the old file.

    Args:
        path: the file, ending in ``.safetensors``; its folder is created if it does not exist.
        model: an ``AlexNet``, in any dtype and on any device.
        classes: names of the classes, in the order of the outputs; None is ``model.classes``. Two
            classes may have the same name, as ImageNet's two cranes have.
        preprocess: the preprocessing of images; None is ``model.preprocess``.
        metrics: what to keep with the weights, for example ``metrics.to_dict()``: a mapping of
            finite numbers, texts, truth values and None, and of lists and mappings of them.
            ``load_checkpoint(path).metrics`` gives them back, as JSON has them: keys as texts,
            tuples and arrays as lists.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the path's ending, the number of class names or the metrics are wrong; a layer
            of the model is not the one of its architecture, which a checkpoint describes the
            network by; a weight is NaN or infinite: a training that diverged has nothing to keep.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from alexnet_lib import AlexNet, load_checkpoint, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "cats_and_dogs.safetensors"
        ...     save_checkpoint(path, AlexNet(2, image_size=67), classes=["cat", "dog"])
        ...     load_checkpoint(path).classes
        ('cat', 'dog')
    """
    file = as_path(path)
    if file.suffix != ".safetensors":
        raise ValueError(f"path is {shown(str(file))}; expected a name that ends in .safetensors")
    if not isinstance(model, AlexNet):
        raise TypeError(f"model is a {type_name(model)}; expected an alexnet_lib.AlexNet")
    preprocess = model.preprocess if preprocess is None else preprocess
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise TypeError(f"preprocess is a {type_name(preprocess)}; expected a Preprocess or None")
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics is a {type_name(metrics)}; expected a mapping or None")
    check_can_be_saved(model)
    metadata = {
        **_description(model),
        "classes": _names(model.classes if classes is None else classes, model.num_classes),
        "preprocess": None if preprocess is None else preprocess.to_dict(),
        "metrics": None if metrics is None else _plain("metrics", metrics),
    }
    text = json.dumps(metadata)
    if len(text) > _LONGEST_TEXT:
        raise ValueError(
            f"metrics and classes have {len(text):,} characters as JSON; expected at most "
            f"{_LONGEST_TEXT:,}"
        )
    write_tensors(file, _separate(model.state_dict()), {"format": "pt", _METADATA: text})


def check_can_be_saved(model: AlexNet) -> None:
    """Raises a ``ValueError`` unless the model's layers and weights are its architecture's."""
    if not isinstance(model.architecture, Architecture):
        raise ValueError(
            f"model.architecture is {shown(model.architecture)}; expected an Architecture"
        )
    described = _described(_description(model))
    _check_layers(described, model)
    _names(model.classes, described.num_classes)
    problem = "model holds other weights than its architecture has"
    _check_weights(described, model.state_dict(), problem)


def load_checkpoint(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> AlexNet:
    """The model of ``save_checkpoint``, in evaluation mode.

    Its ``classes``, ``preprocess`` and ``metrics`` are what ``save_checkpoint`` was given. The
    file may be a stranger's: nothing in it is executed, and all that it says is checked before a
    network is built. A file without a checksum, which older versions wrote, is read with a warning.

    Args:
        path: the ``.safetensors`` file; or the folder of a run, which has its best weights, or at
            least its latest ones.
        device: the device of the model, or ``"auto"``.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder without such files.
        ValueError: the file is damaged or was not written by ``save_checkpoint``, or has weights
            that are NaN or infinite; the message says what it is.
        TypeError: ``path`` is no path.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from alexnet_lib import AlexNet, load_checkpoint, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.safetensors"
        ...     save_checkpoint(path, AlexNet(2, image_size=67), metrics={"accuracy": 0.9})
        ...     load_checkpoint(path).metrics
        {'accuracy': 0.9}
    """
    file = as_path(path)
    with suppress(OSError):  # of names that are too long
        file = weights_of_run(file) or file
    expected = "; expected a .safetensors file of save_checkpoint, or the folder of a run"
    check_is_file(file, "path", expected)
    kind = file_kind(file)
    if kind == PYTORCH:
        kind += ", not of save_checkpoint: from_torchvision reads torchvision's weights, and "
        kind += "from_state_dict those of other code"
    if kind != SAFETENSORS:
        raise ValueError(f"path is {str(file)!r}, {kind}; expected a file of save_checkpoint")
    device = resolve_device(device)
    weights, texts = read_tensors(file)
    try:
        if _METADATA not in texts:
            raise ValueError("it holds weights alone, which from_state_dict reads")
        model = _read(texts[_METADATA])
    except ValueError as error:
        raise ValueError(f"{file} was not written by save_checkpoint: {error}") from error
    for name in model.state_dict():
        if name.endswith(".keep_probability"):  # which older versions did not write
            dtype = next(iter(weights.values())).dtype if weights else torch.float32
            weights.setdefault(name, torch.tensor(1.0 - model.dropout, dtype=dtype))
    _check_weights(model, weights, f"{file} holds other weights than its architecture has")
    model.load_state_dict(weights, assign=True)  # the file's tensors, with their dtype
    return model.to(device).eval()


def weights_of_run(folder: Path) -> Path | None:
    """The file of the best weights in the folder of a run, or of the latest; None: it has none."""
    files = (folder / name for name in ("best.safetensors", "last.safetensors"))
    return next(filter(Path.is_file, files), None)


def _description(model: AlexNet) -> dict[str, Any]:
    arguments = {name: getattr(model, name) for name in _ARGUMENTS}
    return {"architecture": model.architecture.to_dict(), **arguments}


def _described(metadata: Mapping[str, Any]) -> AlexNet:
    """The model that the metadata describes, with weights that take no memory."""
    try:
        architecture = Architecture.from_dict(metadata["architecture"])
    except ValueError as error:
        raise ValueError(f"architecture: {error}") from error
    check_integer("image_size", metadata["image_size"], 1)  # not None, as an argument can be
    with torch.device("meta"):
        return AlexNet(architecture=architecture, **{name: metadata[name] for name in _ARGUMENTS})


def _read(text: str) -> AlexNet:
    """The model that a file's metadata describes, with weights that take no memory.

    A ``ValueError`` names what is not as ``save_checkpoint`` writes it.
    """
    metadata = _parsed(text)
    if not isinstance(metadata, dict):
        raise ValueError(f"its metadata is {shown(metadata)}; expected an object of JSON")
    metadata = {**_DEFAULTS, **metadata}
    if missing := [key for key in _KEYS if key not in metadata]:
        raise ValueError(f"its metadata has no {missing[0]}")
    if unknown := sorted(set(metadata) - {*_KEYS}):
        raise ValueError(
            f"its metadata has the unknown key {shown(unknown[0])}; a later version of alexnet-lib "
            "may have written it"
        )
    model = _described(metadata)
    try:
        model.classes = _names(metadata["classes"], model.num_classes)
    except TypeError as error:  # which is about arguments
        raise ValueError(str(error)) from None
    for key, value in (("preprocess", metadata["preprocess"]), ("metrics", metadata["metrics"])):
        if not isinstance(value, dict | None):
            raise ValueError(f"{key} is {shown(value)}; expected an object of JSON, or null")
    if (preprocess := metadata["preprocess"]) is not None:
        try:
            model.preprocess = Preprocess.from_dict(preprocess)
        except ValueError as error:
            raise ValueError(f"preprocess: {error}") from error
    model.metrics = metadata["metrics"]
    return model


def _parsed(text: str) -> Any:
    """The value of a text of JSON, which no other reader would read as another one."""
    if len(text) > _LONGEST_TEXT:
        raise ValueError(
            f"its metadata has {len(text):,} characters; expected at most {_LONGEST_TEXT:,}"
        )
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"its metadata is no JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"its metadata nests deeper than {_DEEPEST} levels") from None
    return _plain("its metadata", value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"its metadata has the key {shown(key)} twice")
        values[key] = value
    return values


def _integer(digits: str) -> int:
    if len(digits) > 20:  # more than 64 bits have; Python refuses thousands in words of its own
        raise ValueError(f"its metadata has an integer of {len(digits)} digits; expected 64 bits")
    return int(digits)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"its metadata has {constant}, which is no number of JSON")


def _names(classes: Any, count: int) -> tuple[str, ...] | None:
    """The names of the classes as a tuple, or None; an error unless each output has one."""
    if classes is None:
        return None
    number = length_of(classes)
    if number is None or isinstance(classes, str | bytes | Set | Mapping):
        raise TypeError(f"classes is a {type_name(classes)}; expected a sequence of names")
    if number != count:
        raise ValueError(f"classes has {number} names; expected the model's {count}")
    names = tuple(itertools.islice(classes, count))
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"classes[{i}] is {shown(name)}; expected a name, a string")
    return tuple(_plain("classes", names))


class _NotJSON(Exception):  # noqa: N818  (never leaves this module)
    """What a value is that JSON cannot hold; the places of the values around it are added."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.places: list[str] = []


def _plain(name: str, value: Any) -> Any:
    """The value as JSON can hold it; a ``ValueError`` where it cannot."""
    try:
        return _as_json(value, _DEEPEST, itertools.count())
    except _NotJSON as error:
        # Of a value that holds itself, the place is as long as the recursion is deep.
        place = "".join(error.places[:-6:-1])
        raise ValueError(f"{name}{place} {error.problem}") from None


def _as_json(value: Any, depth: int, count: Iterator[int]) -> Any:
    if not depth:
        raise _NotJSON(f"nests deeper than {_DEEPEST} levels, or holds itself; expected less")
    if next(count) > _MOST_VALUES:
        raise _NotJSON(f"is beyond the first {_MOST_VALUES:,} values; expected fewer")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _as_text(value)
    pairs: Any = None
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    if pairs is None:
        number = value if isinstance(value, int | float) else as_number(value)
        if number is None:
            return _as_json(_listed(value), depth - 1, count)
        return _as_finite(number)
    plain: dict[Any, Any] = {}
    for key, item in pairs:
        try:
            text = _as_key(key) if isinstance(value, Mapping) else key
            if text in plain:
                raise _NotJSON("is a second key of this text; expected one")
            plain[text] = _as_json(item, depth - 1, count)
        except _NotJSON as error:
            error.places.append(f"[{shown(key)}]")
            raise
    return plain if isinstance(value, Mapping) else [*plain.values()]


def _as_finite(number: int | float) -> int | float:
    if math.isfinite(number) if isinstance(number, float) else -(2**63) <= number < 2**64:
        return int(number) if isinstance(number, int) else float(number)  # without their subclasses
    raise _NotJSON(
        f"is {shown(number)}; expected a finite number of at most 64 bits: JSON has no others "
        "(None stands for a number that is not known)"
    )


def _as_text(text: str) -> str:
    try:
        text.encode("utf-8", "surrogateescape")  # with the bytes of names of files
    except UnicodeEncodeError:
        raise _NotJSON(f"is {shown(text)}; expected a text of Unicode") from None
    return str(text)


def _as_key(key: Any) -> str:
    if isinstance(key, str):
        return _as_text(key)
    number = as_integer(key)
    if number is None:
        raise _NotJSON("is a key of another type; expected texts or integers as keys")
    return str(_as_finite(number))


def _listed(value: Any) -> Any:
    """What an array, a tensor or another library's scalar holds, as lists and plain values."""
    size = value.numel() if isinstance(value, Tensor) else as_integer(getattr(value, "size", 0))
    if size is not None and size > _MOST_VALUES:
        raise _NotJSON(f"has {size:,} values; expected at most {_MOST_VALUES:,}")
    try:
        listed = value.tolist()
    except Exception:  # of what is no array, or of tensors without values
        listed = None
    if not isinstance(listed, bool | int | float | str | list):
        raise _NotJSON(
            f"is a {type_name(value)}; expected numbers, texts, lists and mappings of them"
        )
    return listed


def _separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with a copy of each that shares its memory with another."""
    owners: set[int] = set()
    separate = {}
    for name, tensor in weights.items():
        owner = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if owner in owners else tensor
        owners.add(owner)
    return separate


def _layers(model: AlexNet) -> dict[str, str]:
    """Each layer of a model with its arguments, by its name; containers are without their parts."""
    return {
        # Whether a layer overwrites its input makes no difference to the network.
        name: re.sub(r"(, )?inplace=\w+", "", repr(module))
        if not [*module.children()]
        else f"a {type_name(module)}"
        for name, module in model.named_modules()
        if name
    }


def _check_layers(described: AlexNet, model: AlexNet) -> None:
    """Raises a ``ValueError`` unless the model's layers are those that are described."""
    expected, actual = _layers(described), _layers(model)
    for name in {**expected, **actual}:
        if (own := actual.get(name)) == (theirs := expected.get(name)):
            continue
        table = f"the architecture {model.architecture.name!r}"
        change = (
            f"has no {name}, which {table} has"
            if own is None
            else f"has {name}, {own}, which {table} has not"
            if theirs is None
            else f"has {own} as {name}, where {table} has {theirs}"
        )
        raise ValueError(
            f"model {change}; a checkpoint describes the network by its architecture: put the "
            "layer back, build the model with an Architecture of your own that has it, or keep "
            "the weights with torch.save(model.state_dict(), ...)"
        )


def _check_weights(model: AlexNet, weights: Mapping[str, Tensor], problem: str) -> None:
    """Raises a ``ValueError`` unless the weights are finite numbers of one dtype for each layer."""
    expected, actual = (
        {name: tuple(tensor.shape) for name, tensor in state.items()}
        for state in (model.state_dict(), weights)
    )
    for name in sorted({*actual, *expected}):
        own, theirs = actual.get(name), expected.get(name)
        if own != theirs:
            difference = (
                f"{name} is missing"
                if own is None
                else f"{shown(name)} belongs to no layer"
                if theirs is None
                else f"{name} has shape {own}, expected {theirs}"
            )
            raise ValueError(f"{problem}: {difference}")
    for name, tensor in weights.items():
        try:
            check_tensor(name, tensor)
        except ValueError as error:
            raise ValueError(f"{problem}: {error}") from None
    if len(dtypes := sorted({str(tensor.dtype) for tensor in weights.values()})) > 1:
        raise ValueError(f"{problem}: they are of {' and '.join(dtypes)}; expected one dtype")
