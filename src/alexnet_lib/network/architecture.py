"""The network as data: the tables of layers, the arithmetic of shapes, and the counts.

The model, its initialisation, the summary and the documentation read the three tables in this
module, so each number of the paper is written once. Nothing here imports torch.

References:
    Paper: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks", NIPS 2012.
    Code: the authors' source of 2012, released in 2025 as computerhistory/AlexNet-Source-Code.
    One weird trick: Krizhevsky, "One weird trick for parallelizing convolutional neural
    networks", arXiv 1404.5997, 2014.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from math import prod
from types import MappingProxyType
from typing import Annotated, Any, get_args

from alexnet_lib.checks import (
    MOST_FLOAT,
    MOST_SIDE,
    Range,
    as_integer,
    between,
    check_choice,
    check_fields,
    check_integer,
    did_you_mean,
    shown,
)

Shape = tuple[int, ...]

# What a network can mean; a file that describes more is damaged, or meant to exhaust its reader.
# Channels, features or classes: the largest sets of images have 10 million identities.
MOST_COUNT = 2**24
MOST_LAYERS = 1000
# Weights and biases in all: half a terabyte in float32.
_MOST_PARAMETERS = 2**37
# Values of a feature map of one image: 8 GB in float32. A small file can describe a large one.
_MOST_OUTPUTS = 2**31
# An integer of Python may have any number of digits; those of torch have 64 bits.
_LARGEST = 2**63 - 1
# Pairs of a stride and a padding are at most half the square of it.
_MOST_SOLVED = 2**11
_LONGEST_NAME = 100

# Red, green and blue, unless said otherwise.
IMAGE_CHANNELS = 3

FINITE = Range("a finite number that float32 can hold", lambda x: abs(x) <= MOST_FLOAT)
_DEVIATION = Range(f"{FINITE.text}, at least 0", lambda x: 0 <= x <= MOST_FLOAT)

_Count = Annotated[int, between(1, MOST_COUNT)]
_Side = Annotated[int, between(1, MOST_SIDE)]
_Number = Annotated[float, FINITE]


class _Row:
    """A row of a table of layers: its fields are checked, and stored as plain numbers for JSON."""

    name: str

    def __post_init__(self) -> None:
        check_fields(self)
        _check_name(self.name)
        if "." in self.name:
            raise ValueError(f"name is {self.name!r}; expected a name without dots, as torch has")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise ValueError(
            f"name is {shown(name)}; expected a string of 1 to {_LONGEST_NAME} printable characters"
        )


@dataclass(frozen=True)
class Conv(_Row):
    """A square convolution with a bias.

    Args:
        name: name of the layer, for example ``"conv1"``.
        channels: number of kernels, hence of output channels.
        kernel: side of a kernel, in pixels.
        stride: step between two windows, in pixels.
        padding: zeros added on each side, in pixels.
        groups: number of groups of channels, each convolved alone (2: the paper's two GPUs).
        code_std: standard deviation of the released code's initial weights.
        initial_bias: the bias that the paper and the released code start from.
    """

    name: str
    channels: _Count
    kernel: _Side
    stride: _Side = 1
    padding: Annotated[int, between(0, MOST_SIDE)] = 0
    groups: _Count = 1
    code_std: Annotated[float, _DEVIATION] = 0.01
    initial_bias: _Number = 0.0


@dataclass(frozen=True)
class ReLU(_Row):
    """max(x, 0), elementwise."""

    name: str


@dataclass(frozen=True)
class LRN(_Row):
    """Local response normalisation over neighbouring channels (paper, section 3.3).

    Args:
        name: name of the layer.
        size: number n of channels in a neighbourhood.
        alpha: the paper's alpha; it is divided by ``size`` when applied, as in the released code.
        beta: exponent.
        k: additive constant.
        groups: number of groups of channels; a neighbourhood stays inside its group.
    """

    name: str
    size: _Count = 5
    alpha: _Number = 1e-4
    beta: _Number = 0.75
    k: _Number = 2.0
    groups: _Count = 1


@dataclass(frozen=True)
class MaxPool(_Row):
    """Overlapping max pooling (paper, section 3.4): windows of 3 pixels, 2 pixels apart."""

    name: str
    kernel: _Side = 3
    stride: _Side = 2


@dataclass(frozen=True)
class AdaptiveAvgPool(_Row):
    """Average pooling to ``output_size`` x ``output_size`` for any input size."""

    name: str
    output_size: _Side


@dataclass(frozen=True)
class Flatten(_Row):
    """(channels, height, width) to channels * height * width features."""

    name: str


@dataclass(frozen=True)
class Dropout(_Row):
    """Dropout; the probability is the model's argument."""

    name: str


@dataclass(frozen=True)
class Linear(_Row):
    """A fully connected layer with a bias.

    Args:
        name: name of the layer.
        features: number of output features; None stands for the number of classes.
        code_std: standard deviation of the released code's initial weights.
        initial_bias: the bias that the paper and the released code start from.
    """

    name: str
    features: Annotated[int | None, between(1, MOST_COUNT)]
    code_std: Annotated[float, _DEVIATION] = 0.01
    initial_bias: _Number = 0.0


Layer = Conv | ReLU | LRN | MaxPool | AdaptiveAvgPool | Flatten | Dropout | Linear

_LAYER_KINDS: dict[str, type[Layer]] = {kind.__name__: kind for kind in get_args(Layer)}


@dataclass(frozen=True)
class Architecture:
    """A network of AlexNet's family as a table of layers.

    Args:
        name: the name of the table.
        image_size: side of the square input images that the table was made for, in pixels.
        layers: the layers in order, at most 1000: convolutional ones, the first a ``Conv``, the
            last possibly an ``AdaptiveAvgPool``; one ``Flatten``; then ``Linear``, ``ReLU`` and
            ``Dropout``, ending with ``Linear(name, None)``, the classes.

    Raises:
        ValueError: the table does not have this form, or two layers have the same name.

    Example:
        >>> from alexnet_lib import ARCHITECTURES
        >>> paper = ARCHITECTURES["paper"]
        >>> paper.smallest_image_size
        67
        >>> [layer.name for layer in paper.layers][:4]
        ['conv1', 'relu1', 'norm1', 'pool1']
    """

    name: str
    image_size: int
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_rows(self.layers)
        # The class is frozen.
        object.__setattr__(self, "layers", tuple(self.layers))
        names = [layer.name for layer in self.layers]
        flattens = [i for i, layer in enumerate(self.layers) if isinstance(layer, Flatten)]
        if len(flattens) != 1:
            raise ValueError(f"layers has {len(flattens)} Flatten layers; expected exactly one")
        features, classifier = self.layers[: flattens[0]], self.layers[flattens[0] + 1 :]
        problem = None
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            problem = f"repeats the names {repeated}; each layer needs its own"
        elif not features or not isinstance(features[0], Conv):
            problem = "does not start with a Conv"
        elif wrong := [x.name for x in features if isinstance(x, Linear)]:
            problem = f"has the Linear layers {wrong} before its Flatten"
        elif any(isinstance(x, AdaptiveAvgPool) for x in features[:-1]):
            problem = "has an AdaptiveAvgPool that is not directly before its Flatten"
        elif wrong := [x.name for x in classifier if not isinstance(x, Linear | ReLU | Dropout)]:
            problem = f"has {wrong} after its Flatten; only Linear, ReLU and Dropout can be there"
        elif [x.name for x in classifier if getattr(x, "features", 0) is None] != names[-1:]:
            problem = "must end with its only Linear(name, None), the layer of the classes"
        elif self.smallest_image_size > MOST_SIDE:
            problem = f"need images of more than {MOST_SIDE} pixels a side"
        if problem:
            raise ValueError(f"layers {problem}")
        object.__setattr__(self, "image_size", _checked_image_size(self, self.image_size))

    @property
    def smallest_image_size(self) -> int:
        """The smallest side of an image, in pixels, with every feature map at least 1x1."""
        size = 1
        for layer in reversed(self.layers):
            if isinstance(layer, Conv | MaxPool):
                padding = getattr(layer, "padding", 0)
                size = max(1, (size - 1) * layer.stride + layer.kernel - 2 * padding)
        return size

    @property
    def stride(self) -> int:
        """Pixels of the image from one place of the last feature maps to the next."""
        return prod(layer.stride for layer in self.layers if isinstance(layer, Conv | MaxPool))

    @property
    def takes_any_size(self) -> bool:
        """Whether an adaptive pool makes the classifier independent of the image's size."""
        return any(isinstance(layer, AdaptiveAvgPool) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain data for JSON; ``from_dict`` reads it."""
        layers = [{"kind": type(layer).__name__, **asdict(layer)} for layer in self.layers]
        return {"name": self.name, "image_size": self.image_size, "layers": layers}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Architecture":
        """The architecture that ``to_dict`` wrote; other data is a ``ValueError``."""
        if not isinstance(data, Mapping) or set(data) != _KEYS:
            actual = [*data] if isinstance(data, Mapping) else data
            keys = ", ".join(sorted(_KEYS))
            raise ValueError(f"data is {shown(actual)}; expected a mapping with the keys {keys}")
        rows = data["layers"]
        if not isinstance(rows, list | tuple) or len(rows) > MOST_LAYERS:
            raise ValueError(f"layers is {shown(rows)}; expected a list of at most {MOST_LAYERS}")
        layers = tuple(_layer(i, row) for i, row in enumerate(rows))
        return cls(data["name"], data["image_size"], layers)


_KEYS = {"name", "image_size", "layers"}


def _layer(index: int, row: object) -> Layer:
    """The layer of one entry of ``to_dict``'s ``layers``."""
    kind = row.get("kind") if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(kind, str) or kind not in _LAYER_KINDS:
        raise ValueError(
            f"layers[{index}] is {shown(row)}; expected a mapping whose kind is one of "
            f"{', '.join(_LAYER_KINDS)}"
        )
    build = _LAYER_KINDS[kind]
    arguments = {key: value for key, value in row.items() if key != "kind"}
    known = {field.name: field.default is MISSING for field in fields(build)}
    for key in {**known, **arguments}:
        if key not in known or (known[key] and key not in arguments):
            problem = f"has no {key}" if key in known else f"has an unknown key {shown(key)}"
            raise ValueError(f"layers[{index}], {kind}, {problem}; expected {', '.join(known)}")
    try:
        return build(**arguments)
    except ValueError as error:
        raise ValueError(f"layers[{index}], {kind}: {error}") from None


def _check_rows(layers: object) -> None:
    """Raises a ``ValueError`` unless these are layers, and not too many."""
    if not isinstance(layers, tuple | list):
        raise ValueError(f"layers is {shown(layers)}; expected a tuple of layers")
    if len(layers) > MOST_LAYERS:
        raise ValueError(f"layers has {len(layers)} of them; expected at most {MOST_LAYERS}")
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(
                f"layers[{index}] is {shown(layer)}; expected one of {', '.join(_LAYER_KINDS)}"
            )


def _checked_image_size(architecture: Architecture, image_size: object) -> int:
    smallest, size = architecture.smallest_image_size, as_integer(image_size)
    if size is None or size < smallest:
        raise ValueError(
            f"image_size is {shown(image_size)}; the architecture {architecture.name!r} needs "
            f"images of at least {smallest}x{smallest} pixels (an integer)"
        )
    if size > MOST_SIDE:
        raise ValueError(f"image_size is {shown(size)}; expected at most {MOST_SIDE} pixels")
    return size


# The layer table of the paper (section 3.5, figure 2), input 227: see `conv_output_size` for why
# the paper says 224. Initial values: released code, layers' definition files of network 145.
PAPER = Architecture(
    "paper",
    image_size=227,
    layers=(
        Conv("conv1", 96, kernel=11, stride=4),
        ReLU("relu1"),
        LRN("norm1", groups=2),
        MaxPool("pool1"),
        Conv("conv2", 256, kernel=5, padding=2, groups=2, initial_bias=1.0),
        ReLU("relu2"),
        LRN("norm2", groups=2),
        MaxPool("pool2"),
        Conv("conv3", 384, kernel=3, padding=1, code_std=0.03),
        ReLU("relu3"),
        Conv("conv4", 384, kernel=3, padding=1, groups=2, code_std=0.03, initial_bias=1.0),
        ReLU("relu4"),
        Conv("conv5", 256, kernel=3, padding=1, groups=2, code_std=0.03, initial_bias=1.0),
        ReLU("relu5"),
        MaxPool("pool5"),
        Flatten("flatten"),
        Linear("fc6", 4096, initial_bias=1.0),
        ReLU("relu6"),
        Dropout("drop6"),
        Linear("fc7", 4096, initial_bias=1.0),
        ReLU("relu7"),
        Dropout("drop7"),
        Linear("fc8", None),
    ),
)

# Teaching code and torchvision have the dropout layers before fc6 and fc7.
_DROPOUT_FIRST = (
    Flatten("flatten"),
    Dropout("drop6"),
    Linear("fc6", 4096, initial_bias=1.0),
    ReLU("relu6"),
    Dropout("drop7"),
    Linear("fc7", 4096, initial_bias=1.0),
    ReLU("relu7"),
    Linear("fc8", None),
)

# What most teaching code builds: the paper's layers on one GPU, without groups.
SINGLE_TOWER = Architecture(
    "single_tower",
    image_size=227,
    layers=(
        Conv("conv1", 96, kernel=11, stride=4),
        ReLU("relu1"),
        LRN("norm1"),
        MaxPool("pool1"),
        Conv("conv2", 256, kernel=5, padding=2, initial_bias=1.0),
        ReLU("relu2"),
        LRN("norm2"),
        MaxPool("pool2"),
        Conv("conv3", 384, kernel=3, padding=1, code_std=0.03),
        ReLU("relu3"),
        Conv("conv4", 384, kernel=3, padding=1, code_std=0.03, initial_bias=1.0),
        ReLU("relu4"),
        Conv("conv5", 256, kernel=3, padding=1, code_std=0.03, initial_bias=1.0),
        ReLU("relu5"),
        MaxPool("pool5"),
        *_DROPOUT_FIRST,
    ),
)

# `torchvision.models.alexnet`: the network of the 2014 paper, with torchvision's adaptive pool and
# dropout (pytorch/vision pull request 549 and issue 185).
ONE_WEIRD_TRICK = Architecture(
    "one_weird_trick",
    image_size=224,
    layers=(
        Conv("conv1", 64, kernel=11, stride=4, padding=2),
        ReLU("relu1"),
        MaxPool("pool1"),
        Conv("conv2", 192, kernel=5, padding=2, initial_bias=1.0),
        ReLU("relu2"),
        MaxPool("pool2"),
        Conv("conv3", 384, kernel=3, padding=1, code_std=0.03),
        ReLU("relu3"),
        Conv("conv4", 256, kernel=3, padding=1, code_std=0.03, initial_bias=1.0),
        ReLU("relu4"),
        Conv("conv5", 256, kernel=3, padding=1, code_std=0.03, initial_bias=1.0),
        ReLU("relu5"),
        MaxPool("pool5"),
        AdaptiveAvgPool("avgpool", output_size=6),
        *_DROPOUT_FIRST,
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {table.name: table for table in (PAPER, SINGLE_TOWER, ONE_WEIRD_TRICK)}
)
"""The three architectures by name: ``"paper"``, ``"single_tower"``, ``"one_weird_trick"``."""

# The number of ImageNet's classes.
DEFAULT_CLASSES = 1000


def resolve_architecture(
    architecture: str | Architecture, name: str = "architecture"
) -> Architecture:
    """The architecture of this name, or the architecture itself; ``name`` is the argument's."""
    if isinstance(architecture, str):
        architecture = ARCHITECTURES.get(architecture, architecture)
    if not isinstance(architecture, Architecture):
        raise ValueError(
            f"{name} is {shown(architecture)}; expected an Architecture or one of "
            f"{', '.join(map(repr, ARCHITECTURES))}{did_you_mean(architecture, ARCHITECTURES)}"
        )
    return architecture


def conv_output_size(
    size: int, kernel: int, stride: int = 1, padding: int = 0, *, ceil_mode: bool = False
) -> int:
    r"""The side of the feature map after a convolution or a pooling.

    .. math:: \left\lfloor \frac{\text{size} + 2\,\text{padding} - \text{kernel}}
        {\text{stride}} \right\rfloor + 1

    With ``ceil_mode`` the quotient is rounded up, as in the released code (``layer.py``,
    ``modulesX``): the last window may reach over the right and lower edge, where it reads zeros.
    So the paper's 224 pixels give the 55x55 map of its figure, as 227 do when rounded down.

    Args:
        size: side of the input, in pixels, at least 1.
        kernel: side of the window, in pixels, at least 1 and at most ``size + 2 * padding``.
        stride: step between windows, in pixels, at least 1.
        padding: pixels added on each side, at least 0.
        ceil_mode: round up instead of down. (torch's pooling layers leave out a last window that
            would start in the padding; the authors' formula, given here, does not.)

    Raises:
        ValueError: an argument is out of its range, or no window fits.

    Example:
        >>> from alexnet_lib import conv_output_size
        >>> conv_output_size(227, kernel=11, stride=4)
        55
        >>> conv_output_size(224, kernel=11, stride=4)
        54
        >>> conv_output_size(224, kernel=11, stride=4, ceil_mode=True)
        55
    """
    size = check_integer("size", size, 1, _LARGEST)
    kernel = check_integer("kernel", kernel, 1, _LARGEST)
    stride = check_integer("stride", stride, 1, _LARGEST)
    padding = check_integer("padding", padding, 0, _LARGEST)
    check_choice("ceil_mode", ceil_mode, (True, False))
    margin = size + 2 * padding - kernel
    if margin < 0:
        raise ValueError(
            f"kernel is {kernel}, larger than the padded input: "
            f"size {size} + 2 * padding {padding} = {size + 2 * padding}"
        )
    return 1 + (-(-margin // stride) if ceil_mode else margin // stride)


def solve_stride_padding(size: int, output_size: int, kernel: int) -> list[tuple[int, int]]:
    """Every (stride, padding) with which a kernel turns ``size`` pixels into ``output_size``.

    It recovers what the paper does not say, for example that conv3 has stride 1 and padding 1.
    Paddings from 0 to ``kernel - 1`` are tried, and strides from 1 to ``size``.

    Args:
        size: side of the input, in pixels, from 1 to 2048.
        output_size: side of the output, in pixels, from 1 to 2048.
        kernel: side of the window, in pixels, from 1 to 2048.

    Returns:
        The pairs in order of stride, then padding; an empty list if there are none.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from alexnet_lib import solve_stride_padding
        >>> solve_stride_padding(13, output_size=13, kernel=3)
        [(1, 1)]
        >>> solve_stride_padding(227, output_size=55, kernel=11)
        [(4, 0), (4, 1)]
    """
    size = check_integer("size", size, 1, _MOST_SOLVED)
    output_size = check_integer("output_size", output_size, 1, _MOST_SOLVED)
    kernel = check_integer("kernel", kernel, 1, _MOST_SOLVED)
    pairs = []
    for padding in range(kernel):
        margin = size + 2 * padding - kernel
        if margin < 0:
            continue
        # margin // stride is output_size - 1
        least = margin // output_size + 1
        most = size if output_size == 1 else min(size, margin // (output_size - 1))
        pairs += [(stride, padding) for stride in range(least, most + 1)]
    return sorted(pairs)


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a network for images of a given size.

    ``input_shape`` and ``output_shape`` are (channels, height, width) or (features,), without the
    batch; ``parameters`` counts weights and biases; ``multiply_accumulates`` counts the products
    of one image's forward pass, without biases (twice this many floating-point operations).
    """

    layer: Layer
    input_shape: Shape
    output_shape: Shape
    parameters: int
    multiply_accumulates: int


def layer_infos(
    architecture: str | Architecture,
    image_size: int | None = None,
    num_classes: int = DEFAULT_CLASSES,
    *,
    in_channels: int = IMAGE_CHANNELS,
) -> list[LayerInfo]:
    """Every layer with its shapes and counts; arguments and errors as in ``feature_map_shapes``."""
    architecture = resolve_architecture(architecture)
    image_size = architecture.image_size if image_size is None else image_size
    image_size = _checked_image_size(architecture, image_size)
    num_classes = check_integer("num_classes", num_classes, 1, MOST_COUNT)
    in_channels = check_integer("in_channels", in_channels, 1, MOST_COUNT)
    shape: Shape = (in_channels, image_size, image_size)
    infos = []
    in_all = 0
    for layer in architecture.layers:
        parameters = products = 0
        output: Shape = shape
        match layer:
            case Conv():
                side = conv_output_size(shape[1], layer.kernel, layer.stride, layer.padding)
                if shape[0] % layer.groups or layer.channels % layer.groups:
                    raise ValueError(
                        f"{layer.name} has {layer.groups} groups, which do not divide its "
                        f"{shape[0]} input and {layer.channels} output channels"
                    )
                weights = layer.channels * (shape[0] // layer.groups) * layer.kernel**2
                parameters, products = weights + layer.channels, weights * side**2
                output = (layer.channels, side, side)
            case LRN() if shape[0] % layer.groups:
                raise ValueError(
                    f"{layer.name} has {layer.groups} groups, which do not divide its {shape[0]} "
                    "channels"
                )
            case MaxPool():
                side = conv_output_size(shape[1], layer.kernel, layer.stride)
                output = (shape[0], side, side)
            case AdaptiveAvgPool():
                output = (shape[0], layer.output_size, layer.output_size)
            case Flatten():
                output = (prod(shape),)
            case Linear():
                features = num_classes if layer.features is None else layer.features
                products = shape[0] * features
                parameters, output = products + features, (features,)
        in_all += parameters
        _check_possible(layer, "outputs", prod(output), _MOST_OUTPUTS)
        _check_possible(layer, "parameters, with those before it", in_all, _MOST_PARAMETERS)
        infos.append(LayerInfo(layer, shape, output, parameters, products))
        shape = output
    return infos


def _check_possible(layer: Layer, values: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(
            f"{layer.name} has {shown(count)} {values}; expected at most {most}: lower image_size, "
            "num_classes or in_channels, or make the layer smaller"
        )


def feature_map_shapes(
    architecture: str | Architecture,
    image_size: int | None = None,
    *,
    num_classes: int = DEFAULT_CLASSES,
    in_channels: int = IMAGE_CHANNELS,
) -> dict[str, Shape]:
    """The shape of every layer's output, by the layer's name, in order.

    Args:
        architecture: an ``Architecture``, or the name of one of ``ARCHITECTURES``.
        image_size: side of the square image, in pixels; None is the architecture's own.
        num_classes: number of outputs of the last layer, at least 1.
        in_channels: channels of the image, at least 1: 3 for colour, 1 for grey.

    Returns:
        (channels, height, width) for feature maps, (features,) after ``Flatten``; no batch.

    Raises:
        ValueError: an unknown architecture, an image too small for it, channels that the groups
            of its first layer do not divide, or a network too large for a machine.

    Example:
        >>> from alexnet_lib import feature_map_shapes
        >>> shapes = feature_map_shapes("paper")
        >>> shapes["conv1"], shapes["pool5"], shapes["fc8"]
        ((96, 55, 55), (256, 6, 6), (1000,))
    """
    infos = layer_infos(architecture, image_size, num_classes, in_channels=in_channels)
    return {info.layer.name: info.output_shape for info in infos}
