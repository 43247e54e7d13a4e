"""Checkpoints: safetensors files of weights, architecture, classes and preprocessing."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.files import replacing
from alexnet_lib.network.architecture import Architecture
from alexnet_lib.network.model import AlexNet

# The key of the library's metadata, as JSON, in that of safetensors.
_METADATA = "alexnet_lib"

# The arguments of an `AlexNet`, and attributes of the same names, that are plain data.
_ARGUMENTS = ("num_classes", "image_size", "dropout", "dropout_scaling")


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
        metrics: plain numbers to keep with the weights, for example ``metrics.to_dict()``.

    Raises:
        TypeError: the model is not an ``AlexNet``.
        ValueError: the path's ending or the number of class names is wrong; the model has been
            changed, so that its architecture no longer describes its weights.
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
    file = Path(path)
    if file.suffix != ".safetensors":
        raise ValueError(f"path is {str(file)!r}; expected a name that ends in .safetensors")
    if not isinstance(model, AlexNet):
        raise TypeError(f"model is a {type(model).__name__}; expected an AlexNet")
    if not hasattr(last := model.classifier[-1], "out_features"):
        raise ValueError(f"model ends with {last}; expected a Linear layer of the classes")
    names = model.classes if classes is None else tuple(map(str, classes))
    preprocess = preprocess or model.preprocess
    metadata = {
        "architecture": model.architecture.to_dict(),
        **{name: getattr(model, name) for name in _ARGUMENTS},
        "classes": names,
        "preprocess": None if preprocess is None else preprocess.to_dict(),
        "metrics": None if metrics is None else dict(metrics),
    }
    weights = model.state_dict()
    problem = "model has been changed, and its architecture does not describe its weights any more"
    _check_weights(_described(metadata), weights, problem)
    if names is not None and len(names) != (count := model.num_classes):
        raise ValueError(f"classes has {len(names)} names; expected the model's {count}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(file) as new:
        try:
            save_file(tensors, new, {"format": "pt", _METADATA: json.dumps(metadata)})
        except SafetensorError as error:
            raise OSError(f"{file} cannot be written: {error}") from error


def load_checkpoint(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> AlexNet:
    """The model of ``save_checkpoint``, in evaluation mode, with ``classes`` and ``preprocess``.

    Args:
        path: the ``.safetensors`` file.
        device: the device of the model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or was not written by ``save_checkpoint``.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a .safetensors checkpoint")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = json.loads((opened.metadata() or {})[_METADATA])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        model = _described(metadata)
        classes, preprocess = metadata["classes"], metadata["preprocess"]
        model.classes = None if classes is None else tuple(classes)
        model.preprocess = None if preprocess is None else Preprocess.from_dict(preprocess)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or not a safetensors file: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} was not written by save_checkpoint: {error!r}") from error
    _check_weights(model, weights, f"{file} holds other weights than its architecture has")
    model.load_state_dict(weights, assign=True)  # the file's tensors, with their dtype
    return model.to(device).eval()


def _described(metadata: Mapping[str, Any]) -> AlexNet:
    """The model that the metadata describes, with weights that take no memory."""
    arguments = {name: metadata[name] for name in _ARGUMENTS}
    with torch.device("meta"):
        return AlexNet(architecture=Architecture.from_dict(metadata["architecture"]), **arguments)


def _check_weights(model: AlexNet, weights: Mapping[str, Tensor], problem: str) -> None:
    """Raises a ``ValueError`` unless the weights have the names and shapes of a model's."""
    expected, actual = (
        {name: tuple(tensor.shape) for name, tensor in state.items()}
        for state in (model.state_dict(), weights)
    )
    for name in sorted({*actual, *expected}):
        if actual.get(name) != expected.get(name):
            raise ValueError(
                f"{problem}: {name} has shape {actual.get(name)}, expected {expected.get(name)}"
            )
