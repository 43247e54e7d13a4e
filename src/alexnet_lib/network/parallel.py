"""How the network is split into parts that several processes compute: which rows of which layers.

A layer is split by its outputs: a part has some rows of the weight and of the bias, and needs all
inputs that these rows see. Nothing here knows of processes.

Sources of the two ways: the paper, section 3.5 and figure 2 (``"towers"``); Krizhevsky, "One weird
trick for parallelizing convolutional neural networks", arXiv 1404.5997, 2014 (``"hybrid"``).
"""

from typing import Literal, NamedTuple, NoReturn

from torch import nn

from alexnet_lib.checks import type_name
from alexnet_lib.network.model import AlexNet, PaperDropout
from alexnet_lib.network.normalization import LocalResponseNorm

Parallel = Literal["data", "hybrid", "towers"]

# The GPUs of the paper.
TOWERS = 2
# Layers that compute each feature, or each channel, from itself.
_ELEMENTWISE = (nn.ReLU, nn.Dropout, PaperDropout)
_CHANNELWISE = (nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)


class SplitLayer(NamedTuple):
    """The split of a layer by its outputs.

    Attributes:
        rows: for each part, how many of the outputs it has, in order.
        inputs: what the layer is given, and what it needs more: ``"images"``, the inputs of the
            other images of the batch; ``"features"``, the inputs that the other parts have;
            ``"own"``, nothing.
    """

    rows: tuple[int, ...]
    inputs: Literal["images", "features", "own"]


def split_layers(model: AlexNet, parallel: Parallel, parts: int) -> dict[str, SplitLayer]:
    """The layers with weights that are split into parts, by their names in the model, in order.

    Args:
        model: a network, whose layers may have been replaced.
        parallel: ``"data"``: none; ``"hybrid"``: the fully connected layers; ``"towers"``: all, so
            that the groups of each convolution are halved.
        parts: how many parts, at least 1.

    Raises:
        ValueError: there is a layer that cannot be split so.
    """
    layers: dict[str, SplitLayer] = {}
    if parallel == "towers":
        between = [("avgpool", model.avgpool), ("flatten", model.flatten)]
        features = [(f"features.{name}", layer) for name, layer in model.features.named_children()]
        for name, module in features + between:
            if type(module) is nn.Conv2d:
                if not layers and module.groups > 1:
                    _refuse(name, parallel, f"is the first one, and has {module.groups} groups")
                _check_halved(name, module, out_channels=module.out_channels)
                inputs: Literal["images", "features", "own"] = "features" if layers else "images"
                if module.groups > 1:
                    _check_halved(name, module, groups=module.groups)
                    inputs = "own"
                layers[name] = SplitLayer(rows_of(module.out_channels, TOWERS), inputs)
            elif type(module) is LocalResponseNorm:
                _check_halved(name, module, groups=module.groups)
            elif module is not None and type(module) not in _CHANNELWISE:
                _refuse(name, parallel, f"is a {type_name(module)}")
    if parallel != "data":
        for name, module in model.classifier.named_children():
            if type(module) is nn.Linear:
                rows = rows_of(module.out_features, parts)
                layers[f"classifier.{name}"] = SplitLayer(rows, "features" if layers else "images")
            elif type(module) not in _ELEMENTWISE:
                _refuse(f"classifier.{name}", parallel, f"is a {type_name(module)}")
    return layers


def rows_of(count: int, parts: int) -> tuple[int, ...]:
    """How many of the outputs each part has: as equal as can be, the first ones one more."""
    return tuple(count // parts + (part < count % parts) for part in range(parts))


def _check_halved(name: str, module: nn.Module, **numbers: int) -> None:
    for what, number in numbers.items():
        if number % TOWERS:
            _refuse(name, "towers", f"is a {type_name(module)} with {what}={number}")


def _refuse(name: str, parallel: str, problem: str) -> NoReturn:
    expected = (
        "ReLU, dropout and nn.Linear in the classifier"
        if parallel == "hybrid"
        else "the layers of the architecture 'paper', whose LocalResponseNorm has an even number "
        "of groups, and whose convolutions have that or one"
    )
    raise ValueError(
        f"parallel is {parallel!r}, but the layer {name} {problem}, which cannot be split so; "
        f"expected {expected}, or parallel='data'"
    )
