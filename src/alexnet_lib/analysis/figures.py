"""Pictures of runs, networks and images, drawn with matplotlib (the extra ``figures``)."""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alexnet_lib.analysis.features import layer_names
from alexnet_lib.checks import shown, type_name
from alexnet_lib.files import as_path, replacing
from alexnet_lib.network.architecture import LRN, Conv
from alexnet_lib.training.loop import check_model
from alexnet_lib.training.metrics import EpochRecord, EvalMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Classes of a confusion matrix whose cells have numbers, and whose names stand beside it.
_MOST_NUMBERED, _MOST_NAMED = 20, 40
_MARKERS = "osD^vPX"
_KERNELS_IN_ROW = 16  # as in the paper's figure 3


def plot_learning_curves(runs: Any, *, figure: "Figure | SubFigure | None" = None) -> "Figure":
    """Loss and accuracy of each epoch, of one run or several.

    A run is a ``Run``, the folder of one, or the records of its epochs. Broken lines are the
    training images (with dropout and augmentation), whole lines the validation images. A ring marks
    the best epoch, whose weights the run keeps: the highest validation accuracy on images of the
    last size.
    Where the images grow, a dotted line and their side in pixels stand at the first epoch of each
    size, unless the runs differ in it.

    Args:
        runs: one run, a list of them, or a mapping from names to them.
        figure: where to draw, also a part of a figure; None is a new one.

    Returns:
        The figure. It has no accuracy where the labels are no classes.

    Raises:
        FileNotFoundError: a folder holds no ``history.jsonl``.
        TypeError: ``runs`` has another type, or ``figure``.
        ValueError: there is no run or no epoch; ``history.jsonl`` is damaged.

    Example:
        >>> from alexnet_lib import EpochMetrics, EpochRecord, plot_learning_curves
        >>> metrics = [EpochMetrics(2 / n, 1 - 1 / n, 100, 1.0, 100.0) for n in (1, 2, 3)]
        >>> epochs = [EpochRecord(n, 0.01, m, None, 227) for n, m in enumerate(metrics, 1)]
        >>> plot_learning_curves(epochs).alt_text
        'Learning curves over 3 epochs. run: training accuracy 66.7 % in the last epoch.'
    """
    histories = _histories(runs)
    lines = [line for history in histories.values() for line in history]
    rows = [("loss", "loss", 1)]
    if any(line[part] and line[part]["accuracy"] is not None for line in lines for part in _PARTS):
        rows.append(("accuracy", "accuracy, %", 100))
    epochs = max(line["epoch"] for line in lines)
    from alexnet_lib.analysis import canvas

    alt_text = f"Learning curves over {epochs} epoch{'s' * (epochs != 1)}. " + " ".join(
        f"{name}: {_told(history)}" for name, history in histories.items()
    )
    legend = 0.25 * (1 + math.ceil((len(histories) if len(histories) > 1 else 0) / 2))
    with canvas.figure_for(figure, 2.1 * len(rows) + legend, alt_text) as drawn:
        panels = np.atleast_1d(drawn.subplots(len(rows), sharex=True))
        for panel, (metric, label, scale) in zip(panels, rows, strict=True):
            for number, history in enumerate(histories.values()):
                color = canvas.COLORS[number % len(canvas.COLORS)]
                marker = _MARKERS[number % len(_MARKERS)]
                for part, dashes in (("train", "--"), ("validation", "-")):
                    numbers, values = _series(history, part, metric)
                    panel.plot(
                        numbers,
                        scale * values,
                        dashes,
                        color=color,
                        marker=marker,
                        markersize=3.5 if len(history) < 40 else 0,
                        linewidth=1.2 if part == "train" else 1.8,
                    )
                best = history[_best(history)]
                if best["validation"] and best["validation"][metric] is not None:
                    panel.plot(
                        best["epoch"],
                        scale * best["validation"][metric],
                        "o",
                        markersize=11,
                        markeredgewidth=1.8,
                        markerfacecolor="none",
                        color=color,
                    )
            panel.set_ylabel(label)
            panel.grid(axis="y", color=canvas.INK, alpha=0.25, linewidth=0.6)
        _mark_sizes(panels, [*histories.values()])
        panels[-1].set_xlabel("epoch")
        panels[-1].set_xlim(0.5, epochs + 0.5)
        panels[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        _curve_legend(drawn, histories)
    return canvas.root_of(drawn)


_PARTS = ("train", "validation")
_DASHES: Any = (("--", "training"), ("-", "validation"))


def _histories(runs: Any) -> dict[str, list[Mapping[str, Any]]]:
    """The lines of ``history.jsonl`` of each run, by its name."""
    if isinstance(runs, Mapping):
        histories = {str(name): _history(run) for name, run in runs.items()}
    elif isinstance(runs, str | os.PathLike) or hasattr(runs, "history"):
        histories = {_run_name(runs, "run"): _history(runs)}
    elif not isinstance(runs, Iterable):
        raise TypeError(
            f"runs is a {type_name(runs)}; expected a Run, a run's folder, the records of its "
            "epochs, or a list or mapping of these"
        )
    elif (items := [*runs]) and all(isinstance(item, EpochRecord | Mapping) for item in items):
        histories = {"run": _history(items)}
    else:
        histories = {}
        for number, run in enumerate(items, 1):
            name = _run_name(run, f"run {number}")
            histories[name if name not in histories else f"{name} ({number})"] = _history(run)
    if not histories:
        raise ValueError("runs is empty; expected at least one run")
    for name, history in histories.items():
        if not history:
            raise ValueError(f"the run {name!r} has no epoch; expected at least one")
    return histories


def _run_name(run: Any, otherwise: str) -> str:
    path = run if isinstance(run, str | os.PathLike) else getattr(run, "folder", None)
    return otherwise if path is None else as_path(path).absolute().name


def _history(run: Any) -> list[Mapping[str, Any]]:
    if isinstance(run, str | os.PathLike):
        return read_history(as_path(run))
    records = getattr(run, "history", run)
    if not isinstance(records, Iterable):
        raise TypeError(
            f"a run is a {type_name(run)}; expected a Run, its folder, or the records of its epochs"
        )
    records = [*records]
    if wrong := [record for record in records if not isinstance(record, EpochRecord | Mapping)]:
        raise TypeError(f"a run has a {type_name(wrong[0])}; expected EpochRecords")
    return [record if isinstance(record, Mapping) else record.to_dict() for record in records]


def read_history(folder: Path) -> list[Mapping[str, Any]]:
    """The lines of ``history.jsonl`` in the folder of a run."""
    file = folder / "history.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the folder of a run")
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            float(line["epoch"])
            for part in filter(None, (line["train"], line["validation"])):
                float(part["loss"])
                float(part["accuracy"] or 0)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not the history of a run: {error!r}") from error
    return lines


def _series(history: Sequence[Any], part: str, metric: str) -> tuple[list[int], Any]:
    lines = [line for line in history if line[part] and line[part][metric] is not None]
    return [line["epoch"] for line in lines], np.array([line[part][metric] for line in lines])


def _best(history: Sequence[Any]) -> int:
    """The index of the epoch whose weights a run keeps."""
    # Accuracies on images of several sizes are not compared.
    sizes = [line.get("image_size") for line in history]
    first = max((i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1]), default=0)
    scores = [(line["validation"] or {}).get("accuracy") for line in history]
    if None in scores[first:]:
        return len(history) - 1
    return max(range(first, len(history)), key=lambda i: (scores[i], -i))


def _told(history: Sequence[Any]) -> str:
    """A sentence about a run."""
    line, part = history[_best(history)], "validation"
    which = f"in epoch {line['epoch']}, the best"
    if not line["validation"]:
        line, part, which = history[-1], "training", "in the last epoch"
    metrics = line["train" if part == "training" else part]
    if metrics["accuracy"] is None:
        return f"{part} loss {metrics['loss']:.4g} {which}."
    return f"{part} accuracy {100 * metrics['accuracy']:.1f} % {which}."


def _mark_sizes(panels: Any, histories: list[list[Any]]) -> None:
    from alexnet_lib.analysis.canvas import INK, SMALL

    sizes = {tuple(line.get("image_size") for line in history) for history in histories}
    if len(sizes) > 1:
        return
    (all_sizes,) = sizes
    changes = [i for i in range(1, len(all_sizes)) if all_sizes[i] != all_sizes[i - 1]]
    if not changes:
        return
    for index in (0, *changes):
        at = histories[0][index]["epoch"] - 0.5
        for panel in panels:
            if index:
                panel.axvline(at, color=INK, linestyle=":", linewidth=0.9)
        panels[0].annotate(
            f" {all_sizes[index]} px",
            (at, 1),
            xycoords=("data", "axes fraction"),
            va="bottom",
            fontsize=SMALL,
        )


def _curve_legend(figure: Any, histories: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    from alexnet_lib.analysis import canvas

    own = canvas.BLUE if len(histories) == 1 else canvas.INK
    marker = _MARKERS[0] if len(histories) == 1 else ""
    handles = [
        Line2D([], [], color=own, linestyle=dashes, marker=marker, markersize=3.5, label=label)
        for dashes, label in _DASHES
    ]
    ring = {"linestyle": "", "marker": "o", "markersize": 8, "markerfacecolor": "none"}
    handles.append(Line2D([], [], color=own, markeredgewidth=1.5, label="best epoch", **ring))  # type: ignore[arg-type]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    if len(histories) > 1:
        runs = [
            Line2D(
                [],
                [],
                color=canvas.COLORS[number % len(canvas.COLORS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                label=canvas.shortened(name, 2, canvas.SMALL),
            )
            for number, name in enumerate(histories)
        ]
        figure.legend(handles=runs, loc="outside lower center", ncols=2)


class LearningCurves:
    """The learning curves of a run in progress, drawn anew after each epoch: a ``Logger``.

    In a notebook the figure below the cell is replaced by the new one.

    Args:
        file: where to write the figure, for example ``"curves.svg"``; its end says the format. None
            writes nothing.
        earlier: the folder of a run that is resumed, whose epochs are drawn too.
        show: whether to show the figure; None does so in a notebook.

    Example:
        >>> from alexnet_lib import EpochMetrics, EpochRecord, LearningCurves, fit
        >>> fit("shapes", loggers=[LearningCurves()])  # doctest: +SKIP
        >>> curves = LearningCurves()
        >>> metrics = EpochMetrics(2.3, 0.1, 100, 1.0, 100.0)
        >>> curves.add(EpochRecord(1, 0.01, metrics, None, 227)).alt_text
        'Learning curves over 1 epoch. run: training accuracy 10.0 % in the last epoch.'
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        earlier: str | os.PathLike[str] | None = None,
        show: bool | None = None,
    ) -> None:
        self._file = None if file is None else as_path(file, "file")
        self._show = _in_notebook() if show is None else show
        self._history = [] if earlier is None else read_history(as_path(earlier, "earlier"))
        self._handle: Any = None

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Nothing is drawn of them."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Draws the curves, if these are the metrics of an epoch."""
        if "epoch" in metrics:
            accuracies = {f"{part}/accuracy": None for part in _PARTS}
            line: dict[str, Any] = {"epoch": int(metrics["epoch"])}
            for name, value in (accuracies | metrics).items():
                part, _, metric = name.partition("/")
                if part in _PARTS:
                    line.setdefault(part, {})[metric] = value
            if "validation/loss" not in metrics:
                line["validation"] = None
            self._draw(line | {"image_size": int(metrics["image_size"])})

    def finalize(self, status: str) -> None:
        """Nothing is left to be done."""

    def add(self, record: EpochRecord) -> "Figure":
        """Draws the curves with one more epoch; an epoch that was there before is replaced."""
        if not isinstance(record, EpochRecord):
            raise TypeError(f"record is a {type_name(record)}; expected an EpochRecord")
        return self._draw(record.to_dict())

    def _draw(self, line: Mapping[str, Any]) -> "Figure":
        earlier = [old for old in self._history if old["epoch"] < line["epoch"]]
        self._history = [*earlier, line]
        figure = plot_learning_curves(self._history)
        if self._file is not None:
            with replacing(self._file) as new:
                figure.savefig(new)
        if self._show:
            from IPython.display import display

            if self._handle is None:
                self._handle = display(figure, display_id=True)
            else:
                self._handle.update(figure)
        return figure


def _in_notebook() -> bool:
    # Where it is not imported, nobody runs in it.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def plot_confusion_matrix(metrics: EvalMetrics, *, axes: "Axes | None" = None) -> "Figure":
    r"""How many images of each class were classified as which.

    A row is a true class, a column a predicted one. The colour is the fraction of the row's images,
    so that classes of unequal numbers can be compared; it grows with the square root, so that few
    mistakes are seen too. Up to 20 classes the numbers of images stand in the cells; with more than
    40, the axes have the classes' numbers instead of their names.

    Args:
        metrics: of ``evaluate``, or a run's ``test`` or the ``validation`` of an ``EpochRecord``.
        axes: where to draw; None is a new figure.

    Raises:
        TypeError: ``metrics`` has another type, or ``axes``.
        ValueError: the metrics have no confusion matrix.

    Example:
        >>> import numpy as np
        >>> from alexnet_lib import EvalMetrics, plot_confusion_matrix
        >>> confusion = np.array([[8, 2], [0, 10]])
        >>> metrics = EvalMetrics(0.3, 0.9, {1: 0.9}, confusion, ("cat", "dog"), 20, 1.0)
        >>> print(plot_confusion_matrix(metrics).alt_text.replace(". ", ".\n"))
        Confusion matrix of 2 classes, 20 images, accuracy 90.0 %.
        Most often cat is taken for dog (2).
    """
    if not isinstance(metrics, EvalMetrics):
        raise TypeError(f"metrics is a {type_name(metrics)}; expected the EvalMetrics of evaluate")
    if metrics.confusion is None:
        raise ValueError("metrics has no confusion matrix: its labels are no classes")
    counts = np.asarray(metrics.confusion)
    classes, images = len(counts), int(counts.sum())
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    from alexnet_lib.analysis import canvas

    accuracy = 100 * counts.trace() / max(images, 1)
    headline = f"{images:,} images, accuracy {accuracy:.1f} %"
    alt_text = f"Confusion matrix of {classes} classes, {headline}."
    mistakes = counts - np.diag(counts.diagonal())
    if mistakes.any():
        true, taken = np.unravel_index(mistakes.argmax(), mistakes.shape)
        names = metrics.classes[true], metrics.classes[taken]
        alt_text += f" Most often {names[0]} is taken for {names[1]} ({mistakes.max():,})."
    side = max(canvas.WIDTH, 0.19 * min(classes, _MOST_NAMED))
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    with canvas.axes_for(axes, side, alt_text, width=side) as drawn:
        colors = colormaps["cividis"]
        scale = PowerNorm(0.5, vmin=0, vmax=1)
        drawn.imshow(shares, cmap=colors, norm=scale, interpolation="nearest")
        drawn.spines[:].set_visible(False)
        drawn.set(xlabel="predicted class", ylabel="true class", title=headline)
        if classes <= _MOST_NAMED:
            points = canvas.SMALL if classes <= _MOST_NUMBERED else 7
            labels = [canvas.shortened(name, 1.6, points) for name in metrics.classes]
            longest = max(canvas.width_of(label, points) for label in labels)
            upright = longest > 0.9 * (side - longest - 0.7) / classes
            drawn.set_xticks(range(classes), labels, rotation=90 * upright, fontsize=points)
            drawn.set_yticks(range(classes), labels, fontsize=points)
            drawn.tick_params(length=0)
        if classes <= _MOST_NUMBERED:
            digits = len(f"{counts.max():,}")
            points = min(canvas.SMALL, 0.7 * 72 * side / (classes + 2) / (0.6 * digits))
            for (row, column), count in np.ndenumerate(counts):
                color = canvas.text_color_on(colors(scale(shares[row, column])))
                text: Any = {"ha": "center", "va": "center", "fontsize": points, "color": color}
                drawn.text(column, row, f"{count:,}", **text)
        else:
            root = drawn.figure
            bar = root.colorbar(drawn.images[0], ax=drawn, shrink=0.7, pad=0.02)
            bar.set_label("fraction of the true class")
            bar.outline.set_visible(False)
            bar.ax.tick_params(colors=canvas.INK)
    return canvas.root_of(drawn)


def plot_kernels(model: nn.Module, *, layer: str = "conv1", axes: "Axes | None" = None) -> "Figure":
    """The kernels of a convolution as images; those of conv1 as in the paper's figure 3.

    Each tower of a network has a block, as each GPU has in the paper. Zero weights are grey, and
    the largest weight of each kernel, by its absolute value, is black or white: kernels that have
    learned nothing look like noise, as strong as the others. Kernels of 3 channels are in colour;
    of another number, the channels of a kernel stand side by side.

    Args:
        model: a network.
        layer: the name of a convolution, as in ``extract_features``.
        axes: where to draw; None is a new figure.

    Raises:
        TypeError: ``model`` or ``axes`` has another type.
        ValueError: there is no such layer, or it is no convolution of two dimensions.

    Example:
        >>> from alexnet_lib import AlexNet, plot_kernels
        >>> plot_kernels(AlexNet(10, image_size=67, seed=0)).alt_text
        'The 96 kernels of conv1, 11x11x3, in 2 blocks, one for each tower.'
    """
    check_model(model)
    modules = layer_names(model)
    module = modules.get(layer) if isinstance(layer, str) else None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 4:
        convolutions = [n for n, m in modules.items() if isinstance(m, nn.Conv2d) and "." not in n]
        raise ValueError(
            f"layer is {shown(layer)}; expected a convolution: {', '.join(convolutions)}"
        )
    kernels = [*map(_kernel_tile, weight.detach().float().cpu())]
    towers = _towers(model, module)
    towers = towers if len(kernels) % towers == 0 else 1
    channels, high, wide = weight.shape[1:]
    columns = _KERNELS_IN_ROW if channels in {1, 3} else max(1, _KERNELS_IN_ROW // channels)
    each = len(kernels) // towers
    columns = min(columns, each)
    from alexnet_lib.analysis import canvas

    alt_text = f"The {len(kernels)} kernels of {layer}, {high}x{wide}x{channels}"
    alt_text += f", in {towers} blocks, one for each tower." if towers > 1 else "."
    blocks = []
    for first in range(0, len(kernels), each):
        title = f"kernels {first + 1} to {first + each} of {layer}"
        title += f": tower {first // each + 1}" if towers > 1 else ""
        blocks.append(canvas.Tiles(kernels[first : first + each], columns, title, gap=0.03))
    return canvas.draw_tiles(axes, blocks, alt_text)


def _kernel_tile(kernel: Tensor) -> np.ndarray:
    """A kernel (channels, height, width) as an image with values from 0 to 1; zero is 0.5."""
    scaled = 0.5 + kernel / (2 * kernel.abs().max().clamp(min=1e-30))
    if len(kernel) not in {1, 3}:
        scaled = F.pad(scaled, (0, 1), value=torch.nan).movedim(0, 1).flatten(1)[:, :-1]
    return pixels_of(scaled if scaled.ndim == 3 else scaled[None])


def _towers(model: Any, module: Any) -> int:
    table = getattr(getattr(model, "architecture", None), "layers", ())
    groups = [row.groups for row in table if isinstance(row, Conv | LRN)]
    return max(groups) if groups else int(getattr(module, "groups", 1))


def pixels_of(image: Float[Tensor, "c h w"]) -> np.ndarray:
    """An image from 0 to 1 as an array for matplotlib: in colour if it has 3 channels."""
    image = image.detach().float().cpu().clamp(0, 1)
    if len(image) == 3:
        return np.asarray(image.movedim(0, -1))
    return np.asarray(image.mean(0))
