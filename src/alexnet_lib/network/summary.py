"""A network's table of layers, as text and as HTML."""

from dataclasses import dataclass, replace
from typing import Any

from alexnet_lib.checks import type_name
from alexnet_lib.network import architecture as tables
from alexnet_lib.text import format_table, html_table


@dataclass(frozen=True)
class SummaryRow:
    """One line of a ``Summary``; text is ready to print, counts are numbers.

    ``kernel`` is height x width x input channels of the group. ``activation`` and
    ``normalization`` follow the layer.
    """

    layer: str
    kernel: str
    stride: int | None
    padding: int | None
    groups: int | None
    activation: str
    normalization: str
    output_shape: tables.Shape
    parameters: int
    multiply_accumulates: int

    def cells(self) -> tuple[str, ...]:
        """The line as text, one string for each column."""
        channels, *sides = self.output_shape
        window = ("" if n is None else str(n) for n in (self.stride, self.padding, self.groups))
        return (
            self.layer,
            self.kernel,
            *window,
            f"{self.activation} {self.normalization}".rstrip(),
            "x".join(map(str, (*sides, channels))),
            f"{self.parameters:,}" if self.parameters else "",
            _millions(self.multiply_accumulates) if self.multiply_accumulates else "",
        )


@dataclass(frozen=True, repr=False)
class Summary:
    """A network's table of layers; prints as text and shows as HTML in a notebook."""

    architecture: str
    image_size: int
    num_classes: int
    rows: tuple[SummaryRow, ...]
    in_channels: int = tables.IMAGE_CHANNELS

    HEADER = (
        "layer",
        "kernel",
        "stride",
        "pad",
        "groups",
        "then",
        "output",
        "parameters",
        "MACs, M",  # millions of multiply-accumulates
    )

    @property
    def parameters(self) -> int:
        """Weights and biases of the whole network."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_accumulates(self) -> int:
        """Multiplications of one image's forward pass."""
        return sum(row.multiply_accumulates for row in self.rows)

    def _lines(self) -> list[tuple[str, ...]]:
        counts = f"{self.parameters:,}", _millions(self.multiply_accumulates)
        return [*(row.cells() for row in self.rows), ("total", *[""] * 6, *counts)]

    def _title(self) -> str:
        channels = "" if self.in_channels == tables.IMAGE_CHANNELS else f"x{self.in_channels}"
        return (
            f"AlexNet ({self.architecture}), images of {self.image_size}x{self.image_size}"
            f"{channels}, {self.num_classes:,} class{'es' * (self.num_classes != 1)}"
        )

    def __str__(self) -> str:
        header, *lines = format_table([self.HEADER, *self._lines()], right=(2, 3, 4, 7, 8))
        rule = "-" * max(map(len, lines))
        return "\n".join([self._title(), header, rule, *lines[:-1], rule, lines[-1]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table([self.HEADER, *self._lines()], self._title())


def summary(
    model_or_architecture: Any,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> Summary:
    """The network's table: layers, kernels, activations, normalisation, sizes and counts.

    Args:
        model_or_architecture: an ``AlexNet``, an ``Architecture`` or an architecture's name.
        image_size: side of the square image, in pixels; None is the model's or architecture's.
        num_classes: number of classes; None is the model's, or 1000.
        in_channels: channels of the image; None is the model's, or 3.

    Returns:
        A ``Summary``: ``print`` it, or show it in a notebook. Feature maps are written
        height x width x channels, as in the paper.

    Raises:
        ValueError: an unknown architecture, an image too small for it, channels that the groups of
            its first layer do not divide, or a network too large for a machine.
        TypeError: neither a model of this library nor an architecture.

    Example:
        >>> from alexnet_lib import summary
        >>> table = summary("paper")
        >>> table.parameters
        60965224
        >>> print(table)  # doctest: +ELLIPSIS
        AlexNet (paper), images of 227x227, 1,000 classes
        layer    kernel...
    """
    model = model_or_architecture
    if isinstance(model, str):
        model = tables.resolve_architecture(model, "model_or_architecture")
    architecture = getattr(model, "architecture", model)
    sizes = ("image_size", "num_classes", "in_channels")
    is_model = model is architecture or all(hasattr(model, name) for name in sizes)
    if not isinstance(architecture, tables.Architecture) or not is_model:
        raise TypeError(
            f"model_or_architecture is a {type_name(model)}; "
            "expected an AlexNet, an Architecture or the name of one"
        )
    if image_size is None:
        image_size = model.image_size
    if num_classes is None:
        num_classes = tables.DEFAULT_CLASSES if model is architecture else model.num_classes
    if in_channels is None:
        in_channels = tables.IMAGE_CHANNELS if model is architecture else model.in_channels
    rows: list[SummaryRow] = []
    infos = tables.layer_infos(architecture, image_size, num_classes, in_channels=in_channels)
    for info in infos:
        # Activations and normalisations are columns of the layer before them.
        match info.layer:
            case tables.ReLU():
                rows[-1] = replace(rows[-1], activation="ReLU")
            case tables.LRN():
                rows[-1] = replace(rows[-1], normalization="LRN")
            case layer:
                counts = info.parameters, info.multiply_accumulates
                kernel = _kernel(info)
                rows.append(SummaryRow(layer.name, *kernel, "", "", info.output_shape, *counts))
    channels, side, _ = infos[0].input_shape
    (classes,) = infos[-1].output_shape
    return Summary(architecture.name, side, classes, tuple(rows), channels)


def _kernel(info: tables.LayerInfo) -> tuple[str, int | None, int | None, int | None]:
    """The kernel of a layer as text, its stride, padding and groups."""
    match info.layer:
        case tables.Conv(kernel=kernel, stride=stride, padding=padding, groups=groups):
            inputs = info.input_shape[0] // groups
            return f"{kernel}x{kernel}x{inputs}", stride, padding, groups
        case tables.MaxPool(kernel=kernel, stride=stride):
            return f"max {kernel}x{kernel}", stride, None, None
        case tables.AdaptiveAvgPool():
            return "mean", None, None, None
    return "", None, None, None


def _millions(count: int) -> str:
    return f"{count / 1e6:,.{1 if count >= 1e6 else 3}f}"
