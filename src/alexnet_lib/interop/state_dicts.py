"""Weights of other code: read from state dicts and files, matched to layers by their shapes."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexnet_lib.checks import check_integer, shown, type_name
from alexnet_lib.files import as_path, read_tensors
from alexnet_lib.interop.torch_files import Unread, read_torch_file
from alexnet_lib.network import architecture as tables
from alexnet_lib.network.model import SAME_PROBABILITY, AlexNet
from alexnet_lib.network.weight_files import (
    PYTORCH,
    SAFETENSORS,
    check_is_file,
    check_tensor,
    file_kind,
)
from alexnet_lib.text import printable

Shape = tuple[int | None, ...]
"""Of a weight; None is a side that may have any length."""

# The keys under which training checkpoints hold the weights, most specific first.
_STATE_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("weights", "params"),
)

# Parts of names that DataParallel, torch.compile, FSDP and activation checkpointing add.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

# What a part of a tensor's name says about a network that is not one of plain layers.
_OTHER_TENSORS = {
    "running_mean": "it has batch normalisation, so it is another network",
    "weight_orig": "it is pruned: call torch.nn.utils.prune.remove on each layer, then save again",
    "parametrizations": "its layers are parametrised: call "
    "torch.nn.utils.parametrize.remove_parametrizations on each, then save again",
    "weight_g": "it has weight normalisation: call torch.nn.utils.remove_weight_norm on each "
    "layer, then save again",
    "_packed_params": "it is quantised: save the weights before quantisation",
    "zero_point": "it is quantised: save the weights before quantisation",
    "lora_A": "it has adapters (LoRA): merge them into the layers, then save again",
}

# Tensors by which other networks are known: name and, where that is not enough, shape.
_OTHER_NETWORKS: tuple[tuple[str, tuple[int, ...] | None, str], ...] = (
    ("layer1.0.conv1.weight", None, "a ResNet"),
    ("features.0.weight", (64, 3, 3, 3), "a VGG network"),
    ("features.conv0.weight", None, "a DenseNet"),
    ("features.3.squeeze.weight", None, "a SqueezeNet"),
    ("features.0.0.weight", None, "a MobileNet, EfficientNet or ConvNeXt"),
    ("class_token", None, "a vision transformer"),
    ("cls_token", None, "a vision transformer"),
    ("inception3a.branch1.conv.weight", None, "a GoogLeNet"),
)


def from_state_dict(
    weights: str | os.PathLike[str] | Mapping[str, Any],
    num_classes: int | None = None,
    *,
    architecture: str | tables.Architecture = "single_tower",
    in_channels: int | None = None,
    image_size: int | None = None,
    dropout: float = 0.5,
    seed: int | None = None,
) -> AlexNet:
    """An ``AlexNet`` with the weights of another class, whatever that calls its layers.

    Weights are matched to layers by their shapes, which differ in each of the three architectures;
    where two agree, as with 4096 classes, by their order. Weights do not say strides, paddings or
    normalisation: those are the architecture's. The outputs are the other network's if it computes
    the same; compare them on a few images.

    Args:
        weights: a state dict; a training checkpoint that holds one; or a file of either, of
            ``torch.save`` or of safetensors. Of a file, which may be a stranger's, only tensors and
            plain values are read, and nothing is executed. Prefixes of ``DataParallel`` and
            ``torch.compile`` are ignored. Other floating dtypes become that of the model.
        num_classes: number of classes; if it differs from that of the weights, the last layer is
            initialised as with ``initialization="kaiming"``. None keeps the number of the weights.
        architecture: as in ``AlexNet``; ``"single_tower"`` is that of most teaching code.
        in_channels: channels of the images; None is the number that the weights are for.
        image_size: as in ``AlexNet``; that which the weights are for.
        dropout: as in ``AlexNet``. ``dropout_scaling`` is that of the weights: ``"test"`` for those
            of an ``AlexNet`` that was trained with it.
        seed: for a new last layer, as in ``AlexNet``.

    Returns:
        The model, in training mode, without ``classes`` and ``preprocess``: set ``preprocess`` to
        what the weights were trained with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or the weights are not those of the architecture; the
            message says what they are.
        TypeError: ``weights`` is neither a path nor a state dict.

    Example:
        >>> from alexnet_lib import AlexNet, from_state_dict
        >>> other = AlexNet(10, architecture="single_tower", image_size=67).state_dict()
        >>> renamed = {f"net.layer{i}.{name.split('.')[-1]}": tensor
        ...            for i, (name, tensor) in enumerate(other.items())}
        >>> paired = {name.replace(f"layer{i}", f"layer{i // 2}"): tensor
        ...           for i, (name, tensor) in enumerate(renamed.items())}
        >>> from_state_dict(paired, image_size=67).num_classes
        10
    """
    state = read_state_dict(weights)
    return load_layers(
        state,
        num_classes,
        architecture=architecture,
        in_channels=in_channels,
        image_size=image_size,
        dropout=dropout,
        seed=seed,
    )


def load_layers(
    state: Mapping[str, Tensor],
    num_classes: int | None,
    *,
    architecture: str | tables.Architecture,
    in_channels: int | None,
    image_size: int | None,
    dropout: float,
    seed: int | None,
) -> AlexNet:
    """The model of ``from_state_dict``, of tensors that ``read_state_dict`` has read."""
    architecture = tables.resolve_architecture(architecture)
    num_classes = check_integer("num_classes", num_classes, 1, tables.MOST_COUNT, optional=True)
    state = dict(state)
    # Of a network whose dropout scales in the test.
    keep = [
        state.pop(name)
        for name, tensor in [*state.items()]
        if name.endswith("keep_probability") and tensor.ndim == 0
    ]
    for probability in keep:
        trained = 1 - float(probability)
        if abs(trained - dropout) > SAME_PROBABILITY:
            raise ValueError(
                f"dropout is {dropout:g}, but weights are those of a network with dropout "
                f"{trained:.2g} and dropout_scaling 'test'; expected {trained:.2g}"
            )
    layers = _grouped(state, architecture)
    patterns = _patterns(architecture, image_size, in_channels)
    found = _matched(layers, patterns)
    if len(found) != len(patterns) or len(found) != len(layers):
        raise ValueError(_difference(state, layers, patterns, found, architecture))
    for name, tensor in state.items():
        check_tensor(f"weights[{name!r}]", tensor)
    first, last = patterns[0][0], patterns[-1][0]
    groups = next(row.groups for row in architecture.layers if isinstance(row, tables.Conv))
    known = layers[found[last]]["weight"].shape[0]
    arguments: dict[str, Any] = {
        "architecture": architecture,
        "in_channels": layers[found[first]]["weight"].shape[1] * groups,
        "image_size": image_size,
        "dropout": dropout,
        "dropout_scaling": "test" if keep else "training",
        "seed": seed,
    }
    keeps_last = num_classes in {None, known}
    # Only a new last layer needs initial weights.
    if keeps_last:
        with torch.device("meta"):
            model = AlexNet(known, **arguments)
        model.to_empty(device=torch.get_default_device())
    else:
        model = AlexNet(num_classes, **arguments)
    kept = {}
    for name in model.state_dict():
        _, layer, kind = name.split(".")
        if kind == "keep_probability":
            kept[name] = keep[0]
        elif keeps_last or layer != last:
            kept[name] = layers[found[layer]][kind]
    model.load_state_dict(kept, strict=False)
    for name, weight in model.state_dict().items():  # float32 holds less than float64
        check_tensor(f"weights as {weight.dtype} of {name}", weight)
    return model


# Reading


def read_state_dict(
    weights: Any, *, missing: str = "", hint: str = "pass model.state_dict()"
) -> dict[str, Tensor]:
    """The tensors of a state dict, of a checkpoint that holds one, or of a file of either.

    Names are without the parts that wrappers add, and without a prefix that all have. ``missing``
    is added to the error for a file that does not exist, ``hint`` to that for another object.
    """
    if isinstance(weights, str | os.PathLike):
        weights = _read_file(as_path(weights, "weights"), missing)
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"weights is a {type_name(weights)}; expected a file or a state dict: {hint}"
        )
    stored = _state_of(weights)
    entries = {_plain_name(name): value for name, value in stored.items()}
    if len(entries) < len(stored):
        raise ValueError("weights has names that differ only in the parts that wrappers add")
    while len(starts := {name.partition(".")[0] for name in entries}) == 1 and len(entries) > 1:
        if starts & {"features", "classifier"} or not all("." in name for name in entries):
            break
        entries = {name.partition(".")[2]: value for name, value in entries.items()}
    for name, value in entries.items():
        if isinstance(value, Tensor):
            _check_stored(name, value)
        elif name.rpartition(".")[2] in {"weight", "bias"}:
            kind = value.name if isinstance(value, Unread) else type_name(value)
            raise ValueError(f"weights[{name!r}] is a {printable(kind)}; expected a tensor")
    # Of AveragedModel and batch normalisation: counts, which are no weights.
    return {
        name: value
        for name, value in entries.items()
        if isinstance(value, Tensor) and name.rpartition(".")[2] != "n_averaged"
    }


def _check_stored(name: str, tensor: Tensor) -> None:
    """Raises a ``ValueError`` for a tensor whose shape does not say how much memory it takes."""
    problem = None
    if tensor.is_nested or tensor.layout is not torch.strided:
        problem = "is sparse or nested; expected a dense tensor"
    elif type(tensor) in {Tensor, nn.Parameter} and not tensor.is_meta:
        stored = tensor.untyped_storage().nbytes()
        if tensor.nbytes > stored:
            problem = (
                f"has {tensor.nbytes:,} bytes as its shape {tuple(tensor.shape)} says, and holds "
                f"{stored:,}; expected a tensor that is not expanded: pass a clone() of it"
            )
    if problem:
        raise ValueError(f"weights[{name!r}] {problem}")


def _state_of(checkpoint: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict in a checkpoint, or the checkpoint itself."""
    held = {key: value for key, value in checkpoint.items() if isinstance(value, Mapping)}
    states = {key: value for key, value in held.items() if _has_tensors(value, any)}
    for key in _STATE_KEYS:
        if key in states:
            return states[key]
        if isinstance(model := checkpoint.get(key), nn.Module):
            raise TypeError(
                f"weights[{key!r}] is a {type_name(model)}, a whole model; expected a state dict: "
                f"pass weights[{key!r}].state_dict()"
            )
    if any(isinstance(value, Tensor) and value.ndim > 1 for value in checkpoint.values()):
        return checkpoint
    states = {key: value for key, value in states.items() if _has_tensors(value, all)}
    if len(states) > 1:
        raise ValueError(
            f"weights holds several state dicts, {', '.join(map(repr, states))}; expected one: "
            f"pass that of the network, weights[{next(iter(states))!r}] for example"
        )
    if states:
        return next(iter(states.values()))
    for key, value in checkpoint.items():
        if isinstance(value, Unread) and key in _STATE_KEYS:
            raise ValueError(
                _unread_text(f"weights[{key!r}] is", value, f"file, weights_only=False)[{key!r}]")
            )
    return checkpoint


def _has_tensors(state: Mapping[Any, Any], quantity: Any) -> bool:
    return bool(state) and quantity(isinstance(value, Tensor) for value in state.values())


def _plain_name(name: object) -> str:
    """A tensor's name without the parts of wrappers; errors show it, so it has no controls."""
    text = printable(name if isinstance(name, str) else shown(name))
    return ".".join(part for part in text.split(".") if part not in _WRAPPERS)


def _read_file(file: Path, missing: str) -> Any:
    check_is_file(file, "weights", missing)
    kind = file_kind(file)
    if kind == SAFETENSORS:
        return read_tensors(file)[0]
    if kind != PYTORCH:
        raise ValueError(
            f"weights is {str(file)!r}, {kind}; expected a file of torch.save or of safetensors"
        )
    try:
        saved = read_torch_file(file)
    except Exception as error:  # of many types
        raise ValueError(
            f"weights is {str(file)!r}, {kind} that is damaged or cut: download or save it again "
            f"({type(error).__name__}: {printable(str(error)[:200])})"
        ) from error
    if isinstance(saved, Unread):
        raise ValueError(
            _unread_text(f"weights is {str(file)!r},", saved, f"{str(file)!r}, weights_only=False)")
        )
    return saved


def _unread_text(place: str, model: Unread, load: str) -> str:
    """About an object in a file, which only running the code of its class would read."""
    return (
        f"{place} a whole pickled model of the class {printable(model.name)}; expected a state "
        "dict. Reading it would run code that the file names. If you trust it, convert it once, "
        "where its class can be imported: "
        f"torch.save(torch.load({load}.state_dict(), 'weights.pth')"
    )


# Matching


def _grouped(
    state: Mapping[str, Tensor], architecture: tables.Architecture
) -> dict[str, dict[str, Tensor]]:
    """Layer -> {"weight": tensor, "bias": tensor}, in the state's order; others are an error."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        layers.setdefault(layer, {})[kind] = tensor
    problem = f"weights do not fit the architecture {architecture.name!r}: "
    if not state:
        raise ValueError(problem + "there is no tensor among them")
    for part, meaning in _OTHER_TENSORS.items():
        if names := [name for name in state if part in name.split(".")]:
            raise ValueError(f"{problem}{names[0]} shows that {meaning}{_guess(state)}")
    for layer, tensors in layers.items():
        if unknown := sorted(set(tensors) - {"weight", "bias"}):
            name = f"{layer}.{unknown[0]}".removeprefix(".")
            raise ValueError(
                f"{problem}{name} is no weight or bias of a layer, so it is another network"
                f"{_guess(state)}"
            )
        for kind in ("weight", "bias"):
            if kind not in tensors:
                raise ValueError(
                    f"{problem}{layer} has no {kind}, and every layer of this network has one"
                    f"{_guess(state)}"
                )
    return layers


def _patterns(
    architecture: tables.Architecture, image_size: int | None, in_channels: int | None
) -> list[tuple[str, Shape]]:
    """The name and the weight's shape of each layer, in order."""
    first = next(row for row in architecture.layers if isinstance(row, tables.Conv))
    channels = first.groups if in_channels is None else in_channels
    patterns: list[tuple[str, Shape]] = []
    for info in tables.layer_infos(architecture, image_size, in_channels=channels):
        row, inputs = info.layer, info.input_shape[0]
        if isinstance(row, tables.Conv):
            free = row is first and in_channels is None
            depth = None if free else inputs // row.groups
            patterns.append((row.name, (row.channels, depth, row.kernel, row.kernel)))
        elif isinstance(row, tables.Linear):
            patterns.append((row.name, (row.features, inputs)))
    return patterns


def _matched(
    layers: Mapping[str, Mapping[str, Tensor]], patterns: list[tuple[str, Shape]]
) -> dict[str, str]:
    """Own layer -> their layer, by the weights' shapes."""
    by_last_name = {name.rpartition(".")[2]: name for name in layers}
    if all(
        name in by_last_name and _fits(pattern, layers[by_last_name[name]])
        for name, pattern in patterns
    ):
        return {name: by_last_name[name] for name, _ in patterns}
    found: dict[str, str] = {}
    # Those that can fit any number of classes or channels come last.
    for name, pattern in sorted(patterns, key=lambda row: None in row[1]):
        fitting = [
            layer
            for layer, tensors in layers.items()
            if layer not in found.values() and _fits(pattern, tensors)
        ]
        # safetensors sorts by name, "10" before "9"; names that differ in numbers have an order.
        if len({re.sub(r"\d+", "", layer) for layer in fitting}) == 1:
            fitting.sort(key=lambda layer: [int(n) for n in re.findall(r"\d+", layer)])
        if fitting:
            found[name] = fitting[0]
    return found


def _fits(pattern: Shape, tensors: Mapping[str, Tensor]) -> bool:
    weight, bias = tensors["weight"], tensors["bias"]
    return _fits_weight(pattern, weight.shape) and bias.shape == weight.shape[:1]


def _difference(
    state: Mapping[str, Tensor],
    layers: Mapping[str, Mapping[str, Tensor]],
    patterns: list[tuple[str, Shape]],
    found: Mapping[str, str],
    architecture: tables.Architecture,
) -> str:
    """What is wrong with weights that do not fit, with the cause where it can be known."""
    problem = f"weights do not fit the architecture {architecture.name!r}: "
    for other in tables.ARCHITECTURES.values():
        if other.layers == architecture.layers:
            continue
        theirs = _patterns(other, None, None)
        if len(_matched(layers, theirs)) == len(theirs) == len(layers):
            return (
                f"{problem}they are those of {other.name!r}: "
                f"from_state_dict(weights, architecture={other.name!r}) reads them"
            )
    missing = [(name, pattern) for name, pattern in patterns if name not in found]
    left = [layer for layer in layers if layer not in found.values()]
    held = ", ".join(_layer_text(layer, layers[layer]) for layer in [*layers][:12])
    held += f" and {len(layers) - 12} more" if len(layers) > 12 else ""
    guess = _guess(state)
    if len(missing) == len(left) == 1 and not guess:
        (name, pattern), tensors = missing[0], layers[left[0]]
        weight = tuple(tensors["weight"].shape)
        cause = f"{left[0]}.weight has shape {weight}, expected {_shape_text(pattern)} for {name}"
        if _fits_weight(pattern, weight):
            cause = (
                f"{left[0]}.bias has shape {tuple(tensors['bias'].shape)}, expected {weight[:1]}"
            )
        elif name == patterns[0][0] and _fits_weight((pattern[0], None, *pattern[2:]), weight):
            plural = "" if weight[1] == 1 else "s"
            cause += f"; it is for images of {weight[1]} channel{plural}, not {pattern[1]}"
        elif len(weight) == 2 and weight[0] == pattern[0]:
            cause += "; it may be for images of another size: pass image_size"
        return problem + cause
    causes = []
    if missing:
        wanted = ", ".join(f"{name} {_shape_text(pattern)}" for name, pattern in missing)
        causes.append(f"nothing has the shape of {wanted}")
    if left:
        causes.append(f"{', '.join(left[:5])} belong to no layer of it")
    return f"{problem}{'; '.join(causes)}{guess}. They are: {held}"


def _fits_weight(pattern: Shape, shape: tuple[int, ...]) -> bool:
    return len(pattern) == len(shape) and all(
        side in {None, own} for side, own in zip(pattern, shape, strict=True)
    )


def _guess(state: Mapping[str, Tensor]) -> str:
    for name, shape, network in _OTHER_NETWORKS:
        if name in state and shape in {None, tuple(state[name].shape)}:
            return f"; they look like those of {network}"
    return ""


def _layer_text(layer: str, tensors: Mapping[str, Tensor]) -> str:
    return f"{layer} {_shape_text(tuple(tensors['weight'].shape))}"


def _shape_text(shape: Shape) -> str:
    return f"({', '.join('any' if side is None else str(side) for side in shape)})"
