"""Checkpoints: safetensors files of weights, architecture, classes and preprocessing."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alexnet_lib.checks import as_number, type_name
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.files import as_path, replacing
from alexnet_lib.network.architecture import IMAGE_CHANNELS, Architecture
from alexnet_lib.network.model import AlexNet
from alexnet_lib.network.weight_files import PYTORCH, SAFETENSORS, check_is_file, file_kind

# The key of the library's metadata, as JSON, in that of safetensors.
_METADATA = "alexnet_lib"

# The arguments of an `AlexNet`, and attributes of the same names, that are plain data.
_ARGUMENTS = ("num_classes", "image_size", "dropout", "dropout_scaling", "in_channels")

# Of arguments that older files do not have.
_DEFAULTS = {"in_channels": IMAGE_CHANNELS}


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
        classes: names of the classes, in the order of the outputs; None is ``model.classes``.
        preprocess: the preprocessing of images; None is ``model.preprocess``.
        metrics: what to keep with the weights, for example ``metrics.to_dict()``: numbers, texts,
            and lists and mappings of them. ``load_checkpoint(path).metrics`` gives them back, as
            JSON has it: keys as texts, tuples and arrays as lists, numbers that are not finite as
            None.

    Raises:
        TypeError: the model is not an ``AlexNet``.
        ValueError: the path's ending, the number of class names or the metrics are wrong; a layer
            of the model is not the one of its architecture, which a checkpoint describes the
            network by.
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
        raise ValueError(f"path is {str(file)!r}; expected a name that ends in .safetensors")
    if not isinstance(model, AlexNet):
        raise TypeError(f"model is a {type_name(model)}; expected an alexnet_lib.AlexNet")
    names = model.classes if classes is None else tuple(map(str, classes))
    preprocess = preprocess or model.preprocess
    metadata = {
        **_description(model),
        "classes": names,
        "preprocess": None if preprocess is None else preprocess.to_dict(),
        "metrics": None if metrics is None else _plain("metrics", metrics),
    }
    check_can_be_saved(model)
    weights = model.state_dict()
    if names is not None and len(names) != (count := model.num_classes):
        raise ValueError(f"classes has {len(names)} names; expected the model's {count}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(file) as new:
        try:
            save_file(tensors, new, {"format": "pt", _METADATA: json.dumps(metadata)})
        except SafetensorError as error:
            raise OSError(f"{file} cannot be written: {error}") from error


def check_can_be_saved(model: AlexNet) -> None:
    """Raises a ``ValueError`` unless the model's layers and weights are its architecture's."""
    described = _described(_description(model))
    _check_layers(described, model)
    problem = "model holds other weights than its architecture has"
    _check_weights(described, model.state_dict(), problem)


def load_checkpoint(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> AlexNet:
    """The model of ``save_checkpoint``, in evaluation mode.

    Its ``classes``, ``preprocess`` and ``metrics`` are what ``save_checkpoint`` was given.

    Args:
        path: the ``.safetensors`` file.
        device: the device of the model.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: the file is damaged or was not written by ``save_checkpoint``; the message says
            what it is.

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
    check_is_file(file, "path", "; expected a .safetensors file of save_checkpoint")
    kind = file_kind(file)
    if kind == PYTORCH:
        kind += ", not of save_checkpoint: from_torchvision reads torchvision's weights, and "
        kind += "from_state_dict those of other code"
    if kind != SAFETENSORS:
        raise ValueError(f"path is {str(file)!r}, {kind}; expected a file of save_checkpoint")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            if _METADATA not in (found := opened.metadata() or {}):
                raise ValueError("it holds weights alone, which from_state_dict reads")
            metadata = json.loads(found[_METADATA])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        model = _described(metadata)
        classes, preprocess = metadata["classes"], metadata["preprocess"]
        model.classes = None if classes is None else tuple(classes)
        model.preprocess = None if preprocess is None else Preprocess.from_dict(preprocess)
        model.metrics = metadata["metrics"]
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or not a safetensors file: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} was not written by save_checkpoint: {error!r}") from error
    _check_weights(model, weights, f"{file} holds other weights than its architecture has")
    model.load_state_dict(weights, assign=True)  # the file's tensors, with their dtype
    return model.to(device).eval()


def _description(model: AlexNet) -> dict[str, Any]:
    arguments = {name: getattr(model, name) for name in _ARGUMENTS}
    return {"architecture": model.architecture.to_dict(), **arguments}


def _described(metadata: Mapping[str, Any]) -> AlexNet:
    """The model that the metadata describes, with weights that take no memory."""
    metadata = {**_DEFAULTS, **metadata}
    arguments = {name: metadata[name] for name in _ARGUMENTS}
    with torch.device("meta"):
        return AlexNet(architecture=Architecture.from_dict(metadata["architecture"]), **arguments)


def _plain(name: str, value: Any) -> Any:
    """The value as JSON can hold it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if hasattr(value, "tolist"):  # arrays, tensors and NumPy's numbers
        return _plain(name, value.tolist())
    number = as_number(value)
    if number is None:
        raise ValueError(
            f"{name} is a {type_name(value)}; expected numbers, texts, lists and mappings of them"
        )
    return number if math.isfinite(number) else None


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
    """Raises a ``ValueError`` unless the weights have the names and shapes of a model's."""
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
                else f"{name} belongs to no layer"
                if theirs is None
                else f"{name} has shape {own}, expected {theirs}"
            )
            raise ValueError(f"{problem}: {difference}")
