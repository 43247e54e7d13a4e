"""A drawing of a network, made from its table of layers."""

from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any

from alexnet_lib.network import architecture as tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
_TEXT = 2.0  # the column of names
_ROW = 0.52
_BOX = 0.26
_LARGEST = 0.62  # the image
_NARROWEST = 0.8  # a box with its text


@dataclass
class _Stage:
    """A layer with weights or a pooling, and what follows it."""

    name: str
    shape: tables.Shape
    text: list[str]
    towers: int
    sees_all: bool
    kind: str
    more: list[str] = field(default_factory=list)


def plot_architecture(
    architecture: str | tables.Architecture,
    *,
    image_size: int | None = None,
    num_classes: int = tables.DEFAULT_CLASSES,
    in_channels: int = tables.IMAGE_CHANNELS,
    axes: "Axes | None" = None,
) -> "Figure":
    """A network from the image above to the classes below, drawn from its table of layers.

    A box is the output of a layer: height x width x channels, or a number of features. Where a
    network has two towers, each has a box with its half, as each GPU has in the paper. The lines
    show what a layer reads; they cross, in another colour, where it reads both towers (in the paper
    conv3 and the fully connected layers). The width of a box grows with the channels, and its
    height with the side of the feature maps, though less than these do.

    Args:
        architecture: an ``Architecture``, or the name of one of ``ARCHITECTURES``.
        image_size: side of the square image, in pixels; None is the architecture's own.
        num_classes: number of outputs of the last layer, at least 1.
        in_channels: channels of the image, at least 1.
        axes: where to draw; None is a new figure.

    Raises:
        TypeError: ``axes`` has another type.
        ValueError: as in ``feature_map_shapes``.

    Example:
        >>> from alexnet_lib import plot_architecture
        >>> plot_architecture("paper").alt_text[:73]
        'The layers of AlexNet (paper) from top to bottom: image 227x227x3; conv1 '
    """
    table = tables.resolve_architecture(architecture)
    infos = tables.layer_infos(table, image_size, num_classes, in_channels=in_channels)
    stages = _stages(infos)
    from alexnet_lib.analysis import canvas

    told = "; ".join(
        f"{stage.name} {_size(stage.shape)}"
        + f", in {stage.towers} towers" * (stage.towers > 1)
        + ", reads both towers" * stage.sees_all
        for stage in stages
    )
    alt_text = f"The layers of AlexNet ({table.name}) from top to bottom: {told}."
    colors = {
        "image": canvas.INK,
        "conv": canvas.BLUE,
        "pool": canvas.GREEN,
        "linear": canvas.PURPLE,
    }
    heights = [_height(stage) for stage in stages]
    total = sum(height + _ROW - _BOX for height in heights)
    area = canvas.WIDTH - _TEXT
    most = max(stage.shape[0] / stage.towers for stage in stages)
    from matplotlib.patches import FancyBboxPatch

    with canvas.inches_for(axes, total, alt_text) as (drawn, factor):
        before: list[tuple[float, float]] = []
        y = (_ROW - _BOX) / 2
        for stage, height in zip(stages, heights, strict=True):
            slot = area / stage.towers
            width = slot * 0.9 * sqrt(stage.shape[0] / stage.towers / most)
            width = max(min(_NARROWEST, slot * 0.9), width)
            centers = [_TEXT + slot * (tower + 0.5) for tower in range(stage.towers)]
            for x, bottom in before:
                for number, center in enumerate(centers):
                    own = len(before) != len(centers) or before.index((x, bottom)) == number
                    if not own and not stage.sees_all:
                        continue
                    crosses = stage.sees_all
                    drawn.plot(
                        (x, center),
                        (bottom, y),
                        color=canvas.ORANGE if crosses else canvas.INK,
                        linewidth=1.6 if crosses else 1.2,
                        zorder=1,
                    )
            color = colors[stage.kind]
            for center in centers:
                box = FancyBboxPatch(
                    (center - width / 2, y),
                    width,
                    height,
                    boxstyle="round,pad=0,rounding_size=0.05",
                    facecolor=color,
                    edgecolor="none",
                    zorder=2,
                )
                drawn.add_patch(box)
                share = (stage.shape[0] // stage.towers, *stage.shape[1:])
                drawn.text(
                    center,
                    y + height / 2,
                    _size(share) + " classes" * (stage is stages[-1]),
                    fontsize=canvas.SMALL * factor,
                    color=canvas.text_color_on(color),
                    ha="center",
                    va="center_baseline",
                    zorder=3,
                )
            _write(drawn, stage, y + height / 2, factor)
            before = [(center, y + height) for center in centers]
            y += height + _ROW - _BOX
        drawn.set(xlim=(0, canvas.WIDTH), ylim=(total, 0))
    return canvas.root_of(drawn)


def _write(drawn: Any, stage: _Stage, y: float, factor: float) -> None:
    from alexnet_lib.analysis import canvas

    lines = [", ".join(filter(None, (*stage.text, *stage.more)))]
    text = {"fontsize": canvas.FONT * factor, "weight": "bold", "va": "center_baseline"}
    drawn.text(0, y - 0.09 * bool(lines[0]), stage.name, **text)
    if lines[0]:
        text = {"fontsize": canvas.SMALL * factor, "va": "center_baseline"}
        drawn.text(0, y + 0.1, canvas.shortened(lines[0], _TEXT, 7.2), **text)


def _height(stage: _Stage) -> float:
    side = stage.shape[1] if len(stage.shape) > 1 else 1
    return max(_BOX, min(_LARGEST, _LARGEST * sqrt(side / 227)))


def _size(shape: tables.Shape) -> str:
    channels, *sides = shape
    return "x".join(map(str, (*sides, f"{channels:,}" if not sides else channels)))


def _stages(infos: list[tables.LayerInfo]) -> list[_Stage]:
    """What is drawn, from the image on; layers without a box of their own are words."""
    towers = max(
        (x.layer.groups for x in infos if isinstance(x.layer, tables.Conv | tables.LRN)), default=1
    )
    stages = [_Stage("image", infos[0].input_shape, [], 1, False, "image")]
    # Of teaching code, where dropout comes before the layer.
    before: list[str] = []
    for info in infos:
        before_towers = stages[-1].towers
        match info.layer:
            case tables.Conv(name=name) as conv:
                text = [f"{conv.kernel}x{conv.kernel}"]
                text += [f"stride {conv.stride}"] * (conv.stride > 1)
                crosses = before_towers > 1 and conv.groups == 1
                stages.append(_Stage(name, info.output_shape, text, towers, crosses, "conv"))
            case tables.Linear(name=name):
                # The last layer is one, the classes.
                split = towers if info is not infos[-1] else 1
                split = split if info.output_shape[0] % split == 0 else 1
                crosses = before_towers > 1
                stages.append(_Stage(name, info.output_shape, [*before], split, crosses, "linear"))
                before = []
            case tables.MaxPool(name=name) as pool:
                text = [f"max {pool.kernel}x{pool.kernel}, stride {pool.stride}"]
                stages.append(_Stage(name, info.output_shape, text, before_towers, False, "pool"))
            case tables.AdaptiveAvgPool(name=name):
                stages.append(
                    _Stage(name, info.output_shape, ["mean"], before_towers, False, "pool")
                )
            case tables.ReLU():
                stages[-1].more.append("ReLU")
            case tables.LRN():
                stages[-1].more.append("LRN")
            case tables.Dropout():
                if stages[-1].kind == "linear" and "ReLU" in stages[-1].more and not _first(infos):
                    stages[-1].more.append("dropout")
                else:
                    before.append("dropout before")
    return stages


def _first(infos: list[tables.LayerInfo]) -> bool:
    """Whether the first dropout comes before the first fully connected layer."""
    order = [type(x.layer) for x in infos if isinstance(x.layer, tables.Dropout | tables.Linear)]
    return bool(order) and order[0] is tables.Dropout
