"""A network's table of layers, as text and as HTML."""

from dataclasses import dataclass, replace
from html import escape
from typing import Any

from alexnet_lib.network.architecture import (
    DEFAULT_CLASSES,
    LRN,
    AdaptiveAvgPool,
    Architecture,
    Conv,
    Dropout,
    LayerInfo,
    MaxPool,
    ReLU,
    Shape,
    layer_infos,
    resolve_architecture,
)
from alexnet_lib.text import format_table


@dataclass(frozen=True)
class SummaryRow:
    """One line of a ``Summary``; text is ready to print, counts are numbers."""

    layer: str
    kernel: str
    activation: str
    normalization: str
    output_shape: Shape
    parameters: int
    multiply_accumulates: int

    def cells(self) -> tuple[str, ...]:
        """The line as text, one string for each column."""
        return (
            self.layer,
            self.kernel,
            self.activation,
            self.normalization,
            "x".join(map(str, (*self.output_shape[1:], self.output_shape[0]))),
            f"{self.parameters:,}" if self.parameters else "",
            f"{self.multiply_accumulates:,}" if self.multiply_accumulates else "",
        )


@dataclass(frozen=True, repr=False)
class Summary:
    """A network's table of layers; prints as text and shows as HTML in a notebook.

    ``parameters`` and ``multiply_accumulates`` are the sums over ``rows``; the latter is for the
    forward pass of one image.
    """

    architecture: str
    image_size: int
    num_classes: int
    rows: tuple[SummaryRow, ...]

    HEADER = (
        "layer",
        "kernel (count)",
        "activation",
        "normalisation",
        "feature map",
        "parameters",
        "multiply-accumulates",
    )

    @property
    def parameters(self) -> int:
        """Weights and biases of the whole network."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_accumulates(self) -> int:
        """Products of one image's forward pass."""
        return sum(row.multiply_accumulates for row in self.rows)

    def _lines(self) -> list[tuple[str, ...]]:
        total = ("total", "", "", "", "", f"{self.parameters:,}", f"{self.multiply_accumulates:,}")
        return [*(row.cells() for row in self.rows), total]

    def _title(self) -> str:
        return (
            f"AlexNet ({self.architecture}), images of {self.image_size}x{self.image_size}, "
            f"{self.num_classes:,} classes"
        )

    def __str__(self) -> str:
        header, *lines = format_table([self.HEADER, *self._lines()], right=(5, 6))
        rule = "-" * max(map(len, lines))
        return "\n".join([self._title(), header, rule, *lines[:-1], rule, lines[-1]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(line, "td") for line in self._lines())
        return (
            f"<table><caption>{escape(self._title())}</caption>"
            f"<thead>{row(self.HEADER, 'th')}</thead><tbody>{body}</tbody></table>"
        )


def summary(
    model_or_architecture: Any, *, image_size: int | None = None, num_classes: int | None = None
) -> Summary:
    """The network's table: layer, kernel and count, activation, normalisation, sizes and counts.

    Args:
        model_or_architecture: an ``AlexNet``, an ``Architecture`` or an architecture's name.
        image_size: side of the square image, in pixels; None is the model's or architecture's.
        num_classes: number of classes; None is the model's, or 1000.

    Returns:
        A ``Summary``: ``print`` it, or show it in a notebook. Feature maps are written
        height x width x channels, as in the paper.

    Raises:
        ValueError: an unknown architecture, or an image too small for it.
        TypeError: neither a model of this library nor an architecture.

    Example:
        >>> from alexnet_lib import summary
        >>> table = summary("paper")
        >>> table.parameters
        60965224
        >>> print(table)  # doctest: +ELLIPSIS
        AlexNet (paper), images of 227x227, 1,000 classes
        layer    kernel (count)...
    """
    if isinstance(model_or_architecture, str | Architecture):
        architecture = resolve_architecture(model_or_architecture)
    else:
        model = model_or_architecture
        if not isinstance(getattr(model, "architecture", None), Architecture):
            raise TypeError(
                f"model_or_architecture is a {type(model).__name__}; "
                "expected an AlexNet, an Architecture or the name of one"
            )
        architecture = model.architecture
        image_size = model.image_size if image_size is None else image_size
        num_classes = model.num_classes if num_classes is None else num_classes
    image_size = architecture.image_size if image_size is None else image_size
    num_classes = DEFAULT_CLASSES if num_classes is None else num_classes
    rows: list[SummaryRow] = []
    for info in layer_infos(architecture, image_size, num_classes):
        # An activation or a normalisation is a column of the layer it follows.
        if isinstance(info.layer, ReLU) and rows:
            rows[-1] = replace(rows[-1], activation="ReLU")
        elif isinstance(info.layer, LRN) and rows:
            rows[-1] = replace(rows[-1], normalization="LRN")
        else:
            counts = info.parameters, info.multiply_accumulates
            name, kernel = info.layer.name, _kernel_text(info)
            rows.append(SummaryRow(name, kernel, "", "", info.output_shape, *counts))
    return Summary(architecture.name, image_size, num_classes, tuple(rows))


def _kernel_text(info: LayerInfo) -> str:
    match info.layer:
        case Conv() as conv:
            depth = info.input_shape[0] // conv.groups
            text = f"{conv.kernel}x{conv.kernel}x{depth} ({conv.channels})"
            text += f", stride {conv.stride}" if conv.stride > 1 else ""
            text += f", padding {conv.padding}" if conv.padding else ""
            return text + (f", {conv.groups} groups" if conv.groups > 1 else "")
        case MaxPool() as pool:
            return f"max {pool.kernel}x{pool.kernel}, stride {pool.stride}"
        case AdaptiveAvgPool():
            return "mean, adaptive"
        case Dropout():
            return "dropout"
        case _:
            return ""
