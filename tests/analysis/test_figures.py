"""The promises of the figures: what they show, that it can be read, and what they leave alone."""

import ast
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from helpers import in_memory, random_batch, random_pixels, seeded, write_class_folders
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text
from pictures import CLASSES, state_of, two_towers
from PIL import Image
from tiny import QUIET, tiny_recipe, use_tiny
from torch import Tensor

import alexnet_lib
from alexnet_lib import (
    ARCHITECTURES,
    AlexNet,
    BatchLoader,
    EpochMetrics,
    EpochRecord,
    EvalMetrics,
    LearningCurves,
    Preprocess,
    analysis,
    cli,
    extract_features,
    feature_map_shapes,
    fit,
    load_checkpoint,
    plot_architecture,
    plot_batch,
    plot_confusion_matrix,
    plot_examples,
    plot_feature_maps,
    plot_grad_cam,
    plot_kernels,
    plot_learning_curves,
    plot_neighbors,
    plot_predictions,
    predict,
    prepare_loaders,
    write_figures,
)
from alexnet_lib.analysis import canvas, figures, run_figures
from alexnet_lib.analysis.figures import read_history
from alexnet_lib.text import printable

LONG = ("a name without an end, number 1", "a name without an end, number 2")
DARK = "#131416"


def record(
    epoch: int, accuracy: float | None = 0.5, *, loss: float = 1.0, size: int = 20, held_out=True
) -> EpochRecord:
    train = EpochMetrics(2 * loss, accuracy and accuracy / 2, 100, 1.0, 100.0)
    validation = EvalMetrics(loss, accuracy, {}, None, (), 100, 1.0) if held_out else None
    return EpochRecord(epoch, 0.01, train, validation, size)


def confusion(counts: Any, classes: Any = None) -> EvalMetrics:
    counts = np.asarray(counts)
    names = tuple(f"class {i}" for i in range(len(counts))) if classes is None else classes
    return EvalMetrics(1.0, 0.5, {1: 0.5}, counts, names, int(counts.sum()), 1.0)


def photos(count: int = 4, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, 20, 20, generator=seeded(2))


def pairs(count: int = 4, channels: int = 3) -> list[tuple[Tensor, int]]:
    return [(image, number % 10) for number, image in enumerate(photos(count, channels))]


# Every figure, with what is long, many or single; ``axes`` is None, or the caller's.
DRAWN: dict[str, Callable[..., Figure]] = {
    "curves": lambda **to: plot_learning_curves([record(i, i / 9) for i in range(1, 6)]),
    "curves, one epoch": lambda **to: plot_learning_curves([record(1)]),
    "curves, many runs": lambda **to: plot_learning_curves(
        {f"{LONG[0]}{i}": [record(1), record(2, 0.6 + i / 50)] for i in range(9)}
    ),
    "curves, growing": lambda **to: plot_learning_curves(
        [record(i, size=20 if i < 3 else 30) for i in range(1, 6)]
    ),
    "confusion": lambda **to: plot_confusion_matrix(confusion(np.eye(10) * 90 + 1, CLASSES), **to),
    "confusion, two": lambda **to: plot_confusion_matrix(confusion(np.eye(2) * 9, LONG), **to),
    "confusion, many": lambda **to: plot_confusion_matrix(confusion(np.eye(100)), **to),
    "kernels": lambda **to: plot_kernels(two_towers(), **to),
    "predictions": lambda **to: plot_predictions(two_towers(), pairs(), **to),
    "predictions, long names": lambda **to: plot_predictions(
        two_towers(classes=2), [(photos()[0], LONG[0])], classes=LONG, **to
    ),
    "predictions, grey": lambda **to: plot_predictions(two_towers(1), pairs(2, 1), **to),
    "neighbors": lambda **to: plot_neighbors(two_towers(), pairs(2), pairs(9), layer="relu4", **to),
    "feature maps": lambda **to: plot_feature_maps(two_towers(), photos()[0], **to),
    "batch": lambda **to: plot_batch(
        (photos(), torch.arange(4)), preprocess=two_towers().preprocess, classes=CLASSES, **to
    ),
    "batch, long names": lambda **to: plot_batch(
        (photos(8), torch.arange(8) % 2), preprocess=two_towers().preprocess, classes=LONG, **to
    ),
    "examples": lambda **to: plot_examples(in_memory(random_batch(9, 8, 12)), **to),
    "grad-cam": lambda **to: plot_grad_cam(two_towers(), pairs(), layer="relu3", **to),
    "architecture": lambda **to: plot_architecture("paper", **to),
    "architecture, torchvision's": lambda **to: plot_architecture("one_weird_trick", **to),
}


@pytest.fixture(params=DRAWN, scope="module")
def drawn(request) -> Iterator[Figure]:
    """Drawn once, because what is asked of it changes nothing."""
    settings = dict(matplotlib.rcParams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.pyplot", None)  # its import is an error
        figure = DRAWN[request.param]()
        figure.changed = {x for x, value in matplotlib.rcParams.items() if value != settings[x]}
        yield figure


def texts_of(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts_of(figure)]


def images_of(figure: Figure) -> list[np.ndarray]:
    (axes,) = figure.axes
    return [np.asarray(image.get_array()) for image in axes.images]


# Reading a figure.


def test_colors_can_be_told_from_white_and_from_a_dark_page():
    for page in ("white", DARK):
        assert all(canvas.contrast(color, page) >= 3 for color in canvas.COLORS)
        assert canvas.contrast(canvas.INK, page) >= 4.2
    assert canvas.contrast("black", "white") == pytest.approx(21)
    assert canvas.contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)  # as WebAIM has it


def test_a_figure_is_transparent_and_every_text_outside_of_boxes_is_ink(drawn):
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=50)
    opacity = np.asarray(Image.open(file).convert("RGBA"))[..., 3]
    assert (opacity < 255).mean() > 0.02
    free = {to_hex(text.get_color()) for text in texts_of(drawn)} - {"#000000", "#ffffff"}
    assert free == {canvas.INK}
    axes = [axis for part in drawn.axes if part.axison for axis in (part.xaxis, part.yaxis)]
    ticks = {to_hex(label.get_color()) for axis in axes for label in axis.get_ticklabels()}
    assert ticks <= {canvas.INK}


def test_no_text_is_cut_off_and_none_lies_on_another(drawn):
    drawn.draw_without_rendering()
    page = drawn.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(drawn)]
    # Ticks beyond the limits of an axis are not drawn.
    boxes = [(text, box) for text, box in boxes if box.width and _is_drawn(text, drawn)]
    points = drawn.dpi / 72
    for text, box in boxes:
        assert box.x0 > page.x0 - points, text
        assert box.x1 < page.x1 + points, text
        assert box.y0 > page.y0 - points, text
        assert box.y1 < page.y1 + points, text
    for number, (text, box) in enumerate(boxes):
        for other, beside in boxes[:number]:
            wide = min(box.x1, beside.x1) - max(box.x0, beside.x0)
            high = min(box.y1, beside.y1) - max(box.y0, beside.y0)
            assert min(wide, high) < 2 * points, f"{text!r} lies on {other!r}"


def _is_drawn(text: str, figure: Figure) -> bool:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if tick.label1.get_text() == text and not low <= tick.get_loc() <= high:
                    return False
    return True


def test_text_is_readable_on_a_phone(drawn):
    # A column of 358 pixels, where the figure is wider.
    scale = min(1, 358 / (96 * drawn.get_size_inches()[0]))
    sizes = {text.get_fontsize() * 96 / 72 * scale for text in texts_of(drawn)}
    many = "100 classes" in drawn.alt_text
    assert min(sizes) >= (5 if many else 6.5)


def test_a_figure_says_in_words_what_it_shows_and_writes_that_to_its_file(drawn):
    assert re.fullmatch(r"[A-Z0-9].{20,}\.", drawn.alt_text, re.DOTALL)
    files = {kind: io.BytesIO() for kind in ("png", "svg", "pdf")}
    for kind, file in files.items():
        drawn.savefig(file, format=kind, dpi=30)
    assert Image.open(files["png"]).text["Description"] == drawn.alt_text
    assert f"<title>{drawn.alt_text}</title>" in files["svg"].getvalue().decode()
    assert b"/Subject" in files["pdf"].getvalue()


@pytest.mark.parametrize("name", ["curves", "kernels", "architecture"])
def test_the_same_figure_is_the_same_file(name, tmp_path):
    for number in range(2):
        DRAWN[name]().savefig(tmp_path / f"{number}.svg")
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()


def test_a_notebook_shows_a_figure_with_its_size_and_its_words():
    figure = DRAWN["confusion, two"]()
    data, metadata = figure._repr_mimebundle_(include=None, exclude=None)
    assert data["image/png"].startswith("iVBOR")  # a PNG in base 64
    assert metadata["image/png"] == {"width": 499, "height": 499, "alt": figure.alt_text}
    assert data["text/plain"] == figure.alt_text


@pytest.mark.parametrize("name", [name for name in DRAWN if not name.startswith("curves")])
def test_a_figure_is_drawn_on_the_callers_axes(name):
    figure = Figure(figsize=(4, 3))
    left, right = figure.subplots(1, 2)
    assert DRAWN[name](axes=right) is figure
    assert figure.alt_text
    assert right.has_data()
    assert not left.has_data()


def test_ticks_of_the_callers_axes_have_the_color_of_the_other_texts():
    axes = Figure().subplots()
    axes.get_xticklabels()
    plot_confusion_matrix(confusion(np.eye(50)), axes=axes)
    assert {to_hex(label.get_color()) for label in axes.get_xticklabels()} == {canvas.INK}


def test_curves_are_drawn_on_a_part_of_the_callers_figure():
    figure = Figure(layout="constrained")
    left, right = figure.subfigures(1, 2)
    assert plot_learning_curves([record(1)], figure=right) is figure
    assert len(right.axes) == 2
    assert not left.axes


@pytest.mark.bad_input
def test_axes_and_figures_of_another_type_are_errors():
    with pytest.raises(TypeError, match=r"axes is a matplotlib\.figure\.Figure; expected the Axes"):
        plot_kernels(two_towers(), axes=Figure())
    with pytest.raises(TypeError, match="figure is a str; expected a Figure or SubFigure"):
        plot_learning_curves([record(1)], figure="here")


def test_drawing_changes_no_setting_of_matplotlib_and_needs_no_pyplot(drawn):
    drawn.savefig(io.BytesIO(), format="png", dpi=10)
    assert not drawn.changed


@pytest.mark.parametrize("name", DRAWN)
def test_without_matplotlib_a_figure_is_an_error_that_says_what_to_install(name, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, canvas.__name__)
    monkeypatch.delattr(analysis, "canvas")
    with pytest.raises(ImportError, match=r"pip install 'alexnet-lib\[figures\]'"):
        DRAWN[name]()


def test_only_one_module_imports_matplotlib_before_a_figure_is_drawn():
    folder = Path(analysis.__file__).parent
    names = {
        file.name
        for file in folder.glob("*.py")
        for statement in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Import | ast.ImportFrom | ast.Try)
        and "matplotlib" in ast.unparse(statement)
    }
    assert names == {"canvas.py"}


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60), st.floats(0.2, 3), st.floats(5, 12))
def test_a_shortened_name_fits_and_keeps_both_ends(name, inches, points):
    short = canvas.shortened(name, inches, points)
    canvas._unshown.clear()  # or the next figure would warn of it
    assert canvas.width_of(short, points) <= max(inches, 4 * canvas.width_of("m", points)) + 1e-9
    assert printable(short) == short
    if name.isprintable() and short != name and "\\" not in short:
        start, end = short.split("…")[0], short.rpartition("…")[2]
        assert name.startswith(start)
        assert name.endswith(end)


def write_font(file: Path, sign: str) -> str:
    """A font that has one sign, which is a triangle."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((0, 700))
    pen.lineTo((700, 0))
    pen.closePath()
    builder, glyphs = FontBuilder(1000, isTTF=True), (".notdef", "sign")
    builder.setupGlyphOrder([*glyphs])
    builder.setupCharacterMap({ord(sign): "sign"})
    builder.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "One sign", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)
    return str(file)


@pytest.fixture
def system_fonts(monkeypatch) -> list[str]:
    """The files of fonts of the system, which has none but matplotlib's own."""
    fonts: list[str] = []
    own = [e for e in font_manager.fontManager.ttflist if matplotlib.get_data_path() in e.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: fonts)
    monkeypatch.setattr(canvas, "_unshown", [])
    monkeypatch.setattr(canvas, "_told", set())
    canvas._known_families.cache_clear()
    yield fonts
    canvas._known_families.cache_clear()


NAMED: dict[str, Callable[[Any], Figure]] = {
    "confusion": lambda names: plot_confusion_matrix(confusion(np.eye(len(names)), names)),
    "curves": lambda names: plot_learning_curves({name: [record(1)] for name in names}),
    "predictions": lambda names: plot_predictions(
        two_towers(classes=len(names)), [(photos()[0], names[0])], classes=names
    ),
}


@pytest.mark.parametrize("draw", NAMED.values(), ids=NAMED)
def test_a_sign_that_the_usual_font_lacks_is_drawn_in_one_of_the_system(
    draw, system_fonts, tmp_path
):
    system_fonts += [write_font(tmp_path / "one.ttf", "猫"), __file__]  # the other is no font
    figure = draw(("猫", "dog"))
    figure.savefig(tmp_path / "figure.png")  # a missing sign is a warning, here an error
    families = {t.get_text(): t.get_fontfamily() for t in texts_of(figure)}
    assert families["猫"] == [*families["dog"], "One sign"]


@pytest.mark.parametrize("draw", NAMED.values(), ids=NAMED)
def test_signs_that_no_font_has_are_numbers_and_one_warning(draw, system_fonts, tmp_path):
    with pytest.warns(UserWarning, match="no font") as warned:
        figure = draw(("猫", "犬猫", "dog"))
    figure.savefig(tmp_path / "figure.png")  # where matplotlib would warn of each
    (text,) = (str(warning.message) for warning in warned)
    assert "all signs of 猫, 犬猫: figures show their numbers; install a font" in text
    assert {"\\u732b", "dog"} <= {*written(figure)}
    draw(("猫", "dog")).savefig(tmp_path / "again.png")


def test_a_name_of_wide_signs_is_shortened_to_its_width(system_fonts, tmp_path):
    system_fonts.append(write_font(tmp_path / "one.ttf", "猫"))
    short = canvas.shortened("猫" * 30, 1, 8.5)
    assert canvas.width_of(short, 8.5) <= 1
    assert (short[0], short[-1], "…" in short) == ("猫", "猫", True)
    assert len(short) < len(canvas.shortened("c" * 30, 1, 8.5))


def test_names_are_no_formulas():
    figure = plot_confusion_matrix(confusion(np.eye(2), ("$cat_1$", "$\\frac{dog$")))
    figure.draw_without_rendering()
    assert "$cat_1$" in written(figure)


# What is left alone.


@pytest.mark.parametrize(
    "name", ["kernels", "predictions", "neighbors", "feature maps", "grad-cam"]
)
def test_the_model_and_the_random_numbers_are_afterwards_as_they_were(name, monkeypatch):
    model = two_towers().train()
    model.features.conv2.eval()
    model(photos()).sum().backward()
    monkeypatch.setitem(globals(), "two_towers", lambda *_: model)
    before = state_of(model)
    DRAWN[name]()
    assert state_of(model) == before


def test_a_loader_is_afterwards_as_it_was(monkeypatch):
    use_tiny(monkeypatch)
    loader = prepare_loaders("shapes", tiny_recipe()).train
    before = [images for images, _ in loader.batches(0)]
    plot_batch(loader)
    assert loader.epoch == 0
    assert all(map(torch.equal, before, (images for images, _ in loader)))


# Learning curves.


def lines_of(figure: Figure, panel: int, style: str) -> list[tuple[list, list]]:
    lines = [x for x in figure.axes[panel].lines if x.get_linestyle() == style and len(x._x) > 1]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def test_curves_are_loss_and_accuracy_of_training_and_validation():
    records = [record(i, i / 10, loss=3 / i) for i in (1, 2, 3)]
    figure = plot_learning_curves(records)
    assert lines_of(figure, 0, "-") == [([1, 2, 3], [3.0, 1.5, 1.0])]
    assert lines_of(figure, 0, "--") == [([1, 2, 3], [6.0, 3.0, 2.0])]
    assert lines_of(figure, 1, "-") == [([1, 2, 3], pytest.approx([10, 20, 30]))]
    assert lines_of(figure, 1, "--") == [([1, 2, 3], pytest.approx([5, 10, 15]))]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy, %"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([20, 30])), min_size=1))
def test_the_best_epoch_is_that_whose_weights_a_run_keeps(epochs):
    best, best_accuracy, last = 0, -1.0, None
    for number, (accuracy, size) in enumerate(epochs):  # as TrainingRun.finish_epoch does
        if size != last or accuracy > best_accuracy:
            best, best_accuracy = number, accuracy
        last = size
    history = [record(i, a, size=s).to_dict() for i, (a, s) in enumerate(epochs, 1)]
    assert figures._best(history) == best


def test_the_best_epoch_of_a_run_is_ringed_in_both_panels(monkeypatch, tmp_path):
    use_tiny(monkeypatch)
    run = fit("shapes", recipe=tiny_recipe(epochs=3), out=tmp_path / "run", options=QUIET)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors").metrics
    for source in (run, tmp_path / "run", run.history, [run], {"run": str(tmp_path / "run")}):
        figure = plot_learning_curves(source)
        assert figure.alt_text == plot_learning_curves(run).alt_text
        for panel, metric, scale in ((0, "loss", 1), (1, "accuracy", 100)):
            (ring,) = (x for x in figure.axes[panel].lines if x.get_markersize() == 11)
            assert list(ring.get_xdata()) == [best["epoch"]]
            assert list(ring.get_ydata()) == pytest.approx([scale * best["validation"][metric]])


def test_the_runs_of_a_list_have_the_names_of_their_folders(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        line = json.dumps(record(1).to_dict())
        (tmp_path / name / "history.jsonl").write_text(f"{line}\n")
    figure = plot_learning_curves([tmp_path / "one", tmp_path / "two", [record(1)]])
    assert [text.get_text() for text in figure.legends[1].get_texts()] == ["one", "two", "run 3"]
    assert "two: validation accuracy 50.0 % in epoch 1, the best." in figure.alt_text


def test_growing_images_are_marked_where_they_grow():
    grow = [record(i, size=20 if i < 3 else 30) for i in range(1, 6)]
    figure = plot_learning_curves(grow)
    assert {" 20 px", " 30 px"} <= set(written(figure))
    assert [
        line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"
    ] == [2.5]
    assert " 20 px" not in written(plot_learning_curves([grow, [record(1)]]))
    assert " 20 px" not in written(plot_learning_curves([record(1), record(2)]))


def test_a_regression_has_no_accuracy_and_a_run_may_have_no_validation():
    regression = [record(i, None, loss=1 / i) for i in (1, 2)]
    assert len(plot_learning_curves(regression).axes) == 1
    assert plot_learning_curves(regression).alt_text.endswith(
        "validation loss 0.5 in epoch 2, the best."
    )
    without = plot_learning_curves([record(i, held_out=False) for i in (1, 2)])
    assert lines_of(without, 0, "-") == []
    assert not [line for line in without.axes[0].lines if line.get_markersize() == 11]


@pytest.mark.bad_input
def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(TypeError, match="runs is a int; expected a Run"):
        plot_learning_curves(3)
    with pytest.raises(TypeError, match="a run has a int; expected EpochRecords"):
        plot_learning_curves([[1, 2]])
    with pytest.raises(ValueError, match="runs is empty"):
        plot_learning_curves([])
    with pytest.raises(ValueError, match="the run 'a' has no epoch"):
        plot_learning_curves({"a": []})
    with pytest.raises(FileNotFoundError, match=r"history.jsonl: no such file; expected the fold"):
        plot_learning_curves(tmp_path)
    for damaged in ('{"epoch": 1}', "[1]", "{", '{"epoch": "a", "train": {}, "validation": null}'):
        (tmp_path / "history.jsonl").write_text(damaged)
        with pytest.raises(ValueError, match=r"history.jsonl is not the history of a run"):
            plot_learning_curves(tmp_path)


def test_curves_of_a_run_in_progress_are_written_after_each_epoch(tmp_path):
    file = tmp_path / "figures" / "curves.svg"
    curves = LearningCurves(file)
    for number in (1, 2):
        figure = curves.add(record(number))
        assert f"over {number} epoch" in file.read_text()
        assert f"over {number} epoch" in figure.alt_text
    # A run that was resumed repeats an epoch.
    assert "over 2 epochs" in curves.add(record(2, 0.9)).alt_text
    figure = curves.add(record(2, 0.9))
    assert lines_of(figure, 1, "-") == [([1, 2], pytest.approx([50, 90]))]
    assert list(file.parent.iterdir()) == [file]
    with pytest.raises(TypeError, match="record is a int; expected an EpochRecord"):
        curves.add(3)


@pytest.mark.parametrize("validation_fraction", [0.2, 0])
def test_the_curves_of_a_run_in_progress_are_those_of_its_history(
    monkeypatch, tmp_path, validation_fraction
):
    use_tiny(monkeypatch)
    file, run = tmp_path / "curves.svg", tmp_path / "run"
    recipe = tiny_recipe(epochs=2, validation_fraction=validation_fraction)
    drawn = []
    curves = LearningCurves(file, show=False)
    plot = figures.plot_learning_curves
    monkeypatch.setattr(
        figures, "plot_learning_curves", lambda x: drawn.append(plot(x)) or drawn[-1]
    )
    fit("shapes", recipe=recipe, out=run, loggers=[curves], options=QUIET)
    assert [figure.alt_text for figure in drawn] == [
        plot_learning_curves(history).alt_text.replace("history", "run")
        for history in (read_history(run)[:1], read_history(run))
    ]
    for panel, style in ((0, "-"), (0, "--"), (1, "-"), (1, "--")):
        assert lines_of(drawn[-1], panel, style) == lines_of(
            plot_learning_curves(run), panel, style
        )
    assert "over 2 epochs" in file.read_text()
    resumed = LearningCurves(file, earlier=run, show=False)
    assert "over 2 epochs" in resumed.add(record(2)).alt_text


def test_in_a_notebook_the_figure_of_the_last_epoch_is_replaced(monkeypatch):
    events = []

    class Handle:
        def update(self, figure):
            events.append(("update", figure.alt_text))

    def display(figure, *, display_id):
        events.append(("display", figure.alt_text))
        return Handle()

    shell = type("Shell", (), {"kernel": None})()
    ipython = type(sys)("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = type(sys)("IPython.display")
    ipython.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    curves = LearningCurves()
    for number in (1, 2, 3):
        curves.add(record(number))
    assert [event for event, _ in events] == ["display", "update", "update"]
    assert "over 3 epochs" in events[-1][1]
    LearningCurves(show=False).add(record(1))
    ipython.get_ipython = lambda: None  # IPython in a terminal, or only imported
    LearningCurves().add(record(1))
    assert len(events) == 3


# Confusion matrix.


@settings(max_examples=10, deadline=None)
@given(
    st.integers(2, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(0, 5000), min_size=n, max_size=n), min_size=n, max_size=n
        )
    )
)
def test_a_confusion_matrix_keeps_the_counts_and_colors_the_fractions_of_a_row(rows):
    counts = np.array(rows)
    figure = plot_confusion_matrix(confusion(counts))
    (axes,) = figure.axes
    cells = {text.get_position(): int(text.get_text().replace(",", "")) for text in axes.texts}
    assert cells == {(j, i): n for (i, j), n in np.ndenumerate(counts)}
    (colors,) = images_of(figure)
    total = counts.sum(1)
    assert colors.sum(1) == pytest.approx(np.where(total > 0, 1.0, 0.0))
    assert (colors * total[:, None]) == pytest.approx(counts)


def test_numbers_in_cells_can_be_read():
    counts = np.outer(np.arange(8), np.arange(8)) ** 2
    (axes,) = plot_confusion_matrix(confusion(counts)).axes
    (image,) = axes.images
    for text in axes.texts:
        column, row = text.get_position()
        color = image.cmap(image.norm(image.get_array()[row, column]))
        assert canvas.contrast(color, text.get_color()) >= 4.5


def test_a_row_of_the_matrix_is_a_true_class():
    figure = plot_confusion_matrix(confusion([[5, 3], [0, 7]], ("cat", "dog")))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert "Most often cat is taken for dog (3)." in figure.alt_text
    assert axes.get_title() == "15 images, accuracy 80.0 %"


def test_many_classes_have_no_numbers_and_still_more_no_names():
    thirty = plot_confusion_matrix(confusion(np.eye(30)))
    assert not thirty.axes[0].texts
    assert "class 29" in written(thirty)
    assert "class 29" not in written(plot_confusion_matrix(confusion(np.eye(41))))


@pytest.mark.bad_input
def test_metrics_without_a_confusion_matrix_are_an_error():
    with pytest.raises(ValueError, match="metrics has no confusion matrix"):
        plot_confusion_matrix(EvalMetrics(1.0, None, {}, None, (), 9, 1.0))
    with pytest.raises(TypeError, match=r"metrics is a numpy\.ndarray; expected the EvalMetrics"):
        plot_confusion_matrix(np.eye(2))


# Kernels.


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 3, 4]), st.integers(1, 5), st.integers(0, 99), st.floats(1e-6, 1e6))
def test_kernels_are_scaled_to_0_to_1_with_zero_in_the_middle(channels, size, seed, scale):
    kernel = scale * torch.randn(channels, size, size, generator=seeded(seed))
    kernel[0, 0, 0] = 0.0
    tile = figures._kernel_tile(kernel)
    values = tile[np.isfinite(tile)]
    assert values.min() >= 0
    assert values.max() <= 1
    assert tile[0, 0] == pytest.approx(0.5) if channels != 3 else tile[0, 0, 0] == 0.5
    assert values.size == kernel.numel()
    if channels in {1, 3}:
        expected = 0.5 + kernel / (2 * kernel.abs().max().clamp(min=1e-30))
        assert tile == pytest.approx(expected.movedim(0, -1).numpy().reshape(tile.shape), abs=1e-5)
    if size > 1:
        assert max(values.max() - 0.5, 0.5 - values.min()) == pytest.approx(0.5)
    assert figures._kernel_tile(torch.zeros(3, size, size)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("architecture", "titles"),
    [
        ("paper", ["kernels 1 to 48 of conv1: tower 1", "kernels 49 to 96 of conv1: tower 2"]),
        ("one_weird_trick", ["kernels 1 to 64 of conv1"]),
    ],
)
def test_the_kernels_of_each_tower_are_a_block_in_their_order(architecture, titles):
    with torch.device("meta"):
        model = AlexNet(10, architecture=architecture)
    with torch.no_grad():
        model.features.conv1.to_empty(device="cpu").weight.normal_(generator=seeded())
    figure = plot_kernels(model)
    assert written(figure) == titles
    tiles = images_of(figure)
    weights = model.features.conv1.weight
    assert len(tiles) == len(weights)
    for number in (0, 50):
        assert tiles[number] == pytest.approx(figures._kernel_tile(weights[number].detach()))
    (axes,) = figure.axes
    left, tops = axes.images[0].get_extent()[0], [x.get_extent()[3] for x in axes.images]
    assert [x.get_extent()[0] for x in axes.images].count(left) == len(tiles) / 16
    assert tops == sorted(tops)


def test_the_channels_of_a_kernel_that_is_no_color_stand_side_by_side():
    tiles = images_of(plot_kernels(two_towers(), layer="conv2"))
    assert {tile.shape for tile in tiles} == {(3, 4 * 3 + 3)}  # 4 channels, 3 gaps
    assert {tile.shape for tile in images_of(plot_kernels(two_towers(1)))} == {(3, 3)}


@pytest.mark.bad_input
def test_a_layer_without_kernels_is_named():
    for layer in ("fc4", "relu1", "conv9", 3):
        with pytest.raises(ValueError, match=r"expected a convolution: conv1, conv2, conv3$"):
            plot_kernels(two_towers(), layer=layer)
    with pytest.raises(TypeError, match="model is a str"):
        plot_kernels("paper")


# Predictions.


def bars_of(figure: Figure) -> list[Rectangle]:
    (axes,) = figure.axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [bar for bar in bars if bar.get_alpha() is None]


def test_bars_are_as_long_as_the_probabilities_and_the_right_one_has_another_color():
    model = two_towers()
    predictions = predict(model, photos(4), top=3)
    right = [predictions[0].classes[0], predictions[1].classes[2], "none of them", None]
    items = [*zip(photos(4), right[:3], strict=False), photos(4)[3]]
    figure = plot_predictions(model, items, top=3)
    bars = iter(bars_of(figure))
    side = images_side(figure)
    for prediction, label in zip(predictions, right, strict=True):
        for name, share in zip(prediction.classes, prediction.probabilities, strict=True):
            bar = next(bars)
            assert bar.get_width() / side == pytest.approx(share, rel=1e-4)
            color = canvas.ORANGE if name == label else canvas.BLUE
            assert to_hex(bar.get_facecolor()) == color
    assert next(bars, None) is None
    assert "none of them" in written(figure)


def images_side(figure: Figure) -> float:
    left, right, *_ = figure.axes[0].images[0].get_extent()
    return right - left


def test_images_are_shown_as_the_network_sees_them(tmp_path):
    model = two_towers()
    pixels = random_pixels(40, 60)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    for image in (pixels, tmp_path / "image.png", str(tmp_path / "image.png")):
        (shown,) = images_of(plot_predictions(model, [image]))
        expected = model.preprocess(pixels).movedim(0, -1) * 0.2 + 0.4
        assert shown == pytest.approx(np.asarray(expected), abs=0.01)


def test_one_image_or_pair_and_the_items_of_a_data_set_are_taken_and_at_most_count():
    model, data = two_towers(), in_memory(random_batch(9, 20, 20))
    assert len(images_of(plot_predictions(model, photos()[0]))) == 1
    assert len(images_of(plot_predictions(model, data[1]))) == 1
    figure = plot_predictions(model, data, count=5)
    assert len(images_of(figure)) == 5
    # As labels of images 1 and 3.
    assert written(figure).count("bee") >= 2
    mapping = [{"image": photos()[0], "label": 3}]
    assert "dog" in written(plot_predictions(model, mapping, top=1))


@pytest.mark.bad_input
@pytest.mark.parametrize("draw", [plot_predictions, plot_grad_cam])
def test_images_that_cannot_be_drawn_are_errors(draw):
    model = two_towers()
    with pytest.raises(ValueError, match="images is empty"):
        draw(model, [])
    with pytest.raises(TypeError, match="images is a int; expected images, or pairs"):
        draw(model, 3)
    with pytest.raises(ValueError, match="image 0 is a batch of 4 images; expected single"):
        draw(model, [photos()])
    with pytest.raises(ValueError, match="a class is 10; expected a number from 0 to 9"):
        draw(model, [(photos()[0], 10)], **({"layer": "relu3"} if draw is plot_grad_cam else {}))
    with pytest.raises(ValueError, match="count is 0; expected an integer of at least 1"):
        draw(model, photos(), count=0)
    model.preprocess = None
    with pytest.raises(ValueError, match="preprocess is None and the model has none"):
        draw(model, photos())


# Nearest neighbours.


def test_the_nearest_images_are_those_with_the_smallest_distance_of_features():
    model, searched = two_towers(), photos(70)
    queries = [searched[66], photos(71)[70]]
    figure = plot_neighbors(model, queries, searched, neighbors=3, layer="relu4")
    inputs = torch.stack([*map(model.preprocess, searched)])
    known = extract_features(model, inputs, "relu4")["relu4"].numpy()
    shown = images_of(figure)
    assert len(shown) == 2 * 4
    for row, query in enumerate(queries):
        own = extract_features(model, model.preprocess(query)[None], "relu4")["relu4"].numpy()
        order = np.sqrt(((known - own) ** 2).sum(1)).argsort()[:3]
        for column, image in enumerate([query, *searched[order.tolist()]]):
            expected = np.asarray(image.movedim(0, -1))
            assert shown[4 * row + column] == pytest.approx(expected, abs=1e-5)
    assert (shown[0] == shown[1]).all()  # the query is among them


def test_neighbors_of_the_querys_class_are_bold():
    labelled = pairs(9)
    figure = plot_neighbors(two_towers(), labelled[:1], labelled, neighbors=9, layer="relu4")
    bold = [text.get_text() for text in texts_of(figure) if text.get_weight() == "bold"]
    assert bold == ["ant", "ant"]
    assert len(images_of(figure)) == 10
    assert not written(plot_neighbors(two_towers(), photos(1), photos(3), layer="relu4"))


# Feature maps.


def test_the_strongest_maps_of_each_layer_are_shown_each_from_its_lowest_to_its_highest():
    model = two_towers()
    figure = plot_feature_maps(model, photos()[0], layers=["conv3", "fc5"], maps=3)
    outputs = extract_features(model, model.preprocess(photos()[0])[None], "conv3", "fc5")
    means = outputs["conv3"][0].mean((1, 2))
    strongest = sorted((-means).argsort()[:3].tolist())
    assert written(figure) == [
        "image, 20x20",
        "conv3: 3 of 8 maps, 9x9",
        *(str(index + 1) for index in strongest),
        "fc5: 10 features",
    ]
    colors = matplotlib.colormaps["viridis"]
    _, *maps, features = images_of(figure)
    for index, shown in zip(strongest, maps, strict=True):
        values = outputs["conv3"][0, index].numpy()
        unit = (values - values.min()) / np.ptp(values)
        assert shown == pytest.approx(colors(unit), abs=0.01)
    assert features.shape == (1, 10, 4)


def test_all_layers_from_the_first_to_the_last_are_shown():
    lines = [
        text.partition(":")[0] for text in written(plot_feature_maps(two_towers(), photos()[0]))
    ]
    named = [line for line in lines if not line.isdigit()]
    assert named == ["image, 20x20", "relu1", "relu2", "relu3", "pool3", "relu4", "fc5"]


# Batches and examples.


def test_a_batch_is_shown_as_it_was_before_the_normalisation():
    images = random_batch(4, 20, 20)
    preprocess = Preprocess(20, 20, scale=255, mean=(120.0, 90.0, 60.0), std=(2.0, 70.0, 1.0))
    loader = BatchLoader(in_memory(images), preprocess, batch_size=3)
    figure = plot_batch(loader)
    expected = images[:3].movedim(1, -1).numpy() / 255
    assert np.stack(images_of(figure)) == pytest.approx(expected, abs=1e-5)
    assert written(figure) == ["0", "1", "0"]
    assert len(images_of(plot_batch(loader, count=2))) == 2


def test_labels_that_are_shares_are_shown_with_their_classes():
    labels = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])
    figure = plot_batch((photos(2), labels), preprocess=Preprocess(20, 20), classes=CLASSES[:3])
    assert written(figure) == ["ant 70%, bee 30%", "bee"]


@pytest.mark.bad_input
def test_a_batch_that_cannot_be_shown_is_an_error():
    with pytest.raises(TypeError, match="preprocess is a NoneType; expected the Preprocess that"):
        plot_batch(photos())
    with pytest.raises(ValueError, match=r"batch has images of shape \(4, 1, 20, 20\); expected"):
        plot_batch(photos(channels=1), preprocess=Preprocess(20, 20))


def test_examples_of_each_class_stand_in_its_row(tmp_path):
    write_class_folders(tmp_path, ("cat", "dog", "eel"), count=3)
    figure = plot_examples(tmp_path, count=2)
    assert written(figure) == ["cat", "dog", "eel"]
    (axes,) = figure.axes
    assert len({image.get_extent()[3] for image in axes.images}) == 3
    assert len(axes.images) == 6
    first = np.asarray(Image.open(tmp_path / "dog" / "0.png").resize((64, 64), 2)) / 255
    assert images_of(figure)[2] == pytest.approx(first, abs=0.02)


# Grad-CAM.


def test_a_map_lies_over_its_image_and_names_its_class():
    model = two_towers()
    likeliest = [prediction.classes[0] for prediction in predict(model, photos(2))]
    shares = [prediction.probabilities[0] for prediction in predict(model, photos(2))]
    figure = plot_grad_cam(model, photos(2), layer="relu3")
    captions = [f"{n} {s:.0%}" for n, s in zip(likeliest, shares, strict=True)]
    assert written(figure) == captions
    for target in ("cat", 2):
        chosen = plot_grad_cam(model, pairs(1), target=target, layer="relu3")
        assert [text.split()[0] for text in written(chosen)] == ["ant", "cat"]
    # Where the map is highest, the figure is brightest.
    image, overlay = images_of(chosen)
    batch = model.preprocess(photos(1)[0])[None]
    heat = alexnet_lib.grad_cam(model, batch, 2, layer="relu3")[0]
    enlarged = F.interpolate(heat[None, None], (20, 20), mode="bilinear")
    bright = overlay.mean(-1) - 0.35 * image.mean(-1)
    assert np.corrcoef(bright.ravel(), enlarged.numpy().ravel())[0, 1] > 0.95
    with pytest.raises(ValueError, match="target is 'cow'; expected a class"):
        plot_grad_cam(model, photos(1), target="cow", layer="relu3")


# The drawing of a network.


def boxes_of(figure: Figure) -> list[FancyBboxPatch]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]


def crossing(figure: Figure) -> set[float]:
    """The upper ends of the lines to layers that read both towers."""
    lines = [line for line in figure.axes[0].lines if line.get_color() == canvas.ORANGE]
    return {round(line.get_ydata()[1], 6) for line in lines}


def test_the_towers_of_the_paper_cross_at_conv3_and_the_fully_connected_layers():
    figure = plot_architecture("paper")
    named = re.findall(r"(\w+) [^;]*reads both towers", figure.alt_text)
    assert named == ["conv3", "fc6", "fc7", "fc8"]
    assert len(crossing(figure)) == 4
    orange = [line for line in figure.axes[0].lines if line.get_color() == canvas.ORANGE]
    assert len(orange) == 4 + 4 + 4 + 2
    # To conv1, pool1, conv2, pool2, conv4, conv5 and pool5, in each tower.
    assert len(figure.axes[0].lines) == len(orange) + 2 * 7
    assert len(boxes_of(figure)) == 1 + 2 * 10 + 1


@pytest.mark.parametrize("name", ["single_tower", "one_weird_trick"])
def test_a_network_of_one_tower_has_no_crossing(name):
    figure = plot_architecture(name)
    assert not crossing(figure)
    assert "towers" not in figure.alt_text
    assert len(figure.axes[0].lines) == len(boxes_of(figure)) - 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_drawn_sizes_are_those_of_the_table(name):
    figure = plot_architecture(name, num_classes=10, image_size=131)
    for layer, shape in feature_map_shapes(name, 131, num_classes=10).items():
        if re.match("conv|pool|avgpool", layer):
            channels, high, wide = shape
            halves = channels // (2 if name == "paper" else 1)
            assert written(figure).count(layer) == 1
            assert f"{high}x{wide}x{halves}" in written(figure)
    assert "10 classes" in written(figure)
    assert "131x131x3" in written(figure)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_pages_show_the_network_of_today(name):
    file = Path(__file__).parents[2] / "docs" / "images" / f"{name}.svg"
    alt_text = plot_architecture(name).alt_text
    assert f"<title>{alt_text}</title>" in file.read_text(encoding="utf-8")


# The figures of a run.

OF_RUN = ["learning_curves.svg", "kernels.png", "confusion_matrix.svg"]
OF_DATA = [
    "batch.png",
    "predictions.png",
    "feature_maps.png",
    "grad_cam.png",
    "neighbors.png",
]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    use_tiny(monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "photos", ("cat", "dog"), count=20, size=(12, 12))
    fit("photos", recipe=tiny_recipe(epochs=2), out="run", options=QUIET)
    return Path("run")


def test_the_figures_of_a_run_are_written_to_its_folder(run):
    files = write_figures(run)
    assert [file.name for file in files] == OF_RUN + OF_DATA
    assert sorted(files) == sorted((run / "figures").iterdir())
    for file in files:
        assert file.read_bytes().startswith((b"\x89PNG", b"<?xml"))
    result = json.loads((run / "result.json").read_text())
    images = sum(map(sum, result["test"]["confusion"]))
    assert f"{images} images, accuracy" in (run / "figures" / OF_RUN[2]).read_text()
    assert "<!-- cat -->" in (run / "figures" / OF_RUN[2]).read_text()  # an SVG notes its texts
    before = (run / "figures" / "grad_cam.png").read_bytes()
    assert write_figures(run, data="photos") == files
    assert (run / "figures" / "grad_cam.png").read_bytes() == before


def test_without_its_data_the_figures_of_the_run_alone_are_written(run):
    Path("photos").rename("elsewhere")
    with pytest.warns(UserWarning, match="the data of the run, photos, cannot be opened"):
        files = write_figures(run)
    assert [file.name for file in files] == OF_RUN
    assert [file.name for file in write_figures(run, data="elsewhere")] == OF_RUN + OF_DATA


def test_the_confusion_matrix_of_a_run_in_progress_is_computed(run):
    expected = json.loads((run / "result.json").read_text())["test"]["confusion"]
    (run / "result.json").unlink()
    seen = []
    original = run_figures.plot_confusion_matrix
    try:
        run_figures.plot_confusion_matrix = lambda metrics: (
            seen.append(metrics),
            original(metrics),
        )[1]
        files = write_figures(run)
    finally:
        run_figures.plot_confusion_matrix = original
    assert [file.name for file in files] == [*OF_RUN[:2], *OF_DATA, OF_RUN[2]]
    assert seen[0].confusion.tolist() == expected


@pytest.fixture
def batches(monkeypatch) -> list[Any]:
    """The training loaders that were drawn."""
    drawn, draw = [], run_figures.plot_batch
    monkeypatch.setattr(
        run_figures, "plot_batch", lambda loader: (drawn.append(loader), draw(loader))[1]
    )
    return drawn


def test_the_classes_that_a_run_was_given_are_those_of_its_figures(run, batches):
    fit("photos", recipe=tiny_recipe(epochs=1), classes=["dog", "cat"], out="b", options=QUIET)
    assert len(write_figures("b")) == len(OF_RUN + OF_DATA)
    assert batches[0].dataset.classes == ("dog", "cat")


def test_parts_and_classes_that_a_run_was_given_can_be_given_to_its_figures(run, batches):
    write_class_folders(Path("parts", "a b"), ("cat", "cow", "dog"), count=20)
    write_class_folders(Path("parts", "c"), ("cat", "cow", "dog"), count=2)
    given = {"parts": {"train": "a b", "test": "c"}, "classes": ["dog", "cat"]}
    fit("parts", recipe=tiny_recipe(epochs=1), out="b", options=QUIET, **given)
    Path("parts").rename("moved")
    assert len(write_figures("b", data="moved", **given)) == len(OF_RUN + OF_DATA)
    assert (batches[0].dataset.classes, len(batches[0].dataset)) == (("dog", "cat"), 36)


def test_labels_of_data_whose_classes_have_another_order_are_those_of_the_run(run, monkeypatch):
    fit("photos", recipe=tiny_recipe(epochs=1), classes=["dog", "cat"], out="b", options=QUIET)
    labels = []
    draw = run_figures.plot_predictions
    monkeypatch.setattr(
        run_figures,
        "plot_predictions",
        lambda model, images: (
            labels.append([model.classes[n] for _, n in images]),
            draw(model, images),
        )[1],
    )
    for folder, options in (("run", {}), ("b", {"data": "photos"}), ("b", {})):
        write_figures(folder, **options)
    assert labels[0] == labels[1]
    assert len(set(labels[0])) == 2


@pytest.mark.bad_input
def test_data_of_classes_that_a_run_does_not_have_are_refused_before_anything_is_written(run):
    write_class_folders(Path("others"), ("cat", "cow"), count=20, size=(12, 12))
    with pytest.raises(ValueError, match=r"the model does not have \['cow'\]"):
        write_figures("run", data="others")
    assert not (run / "figures").exists()


@pytest.mark.bad_input
def test_a_folder_that_holds_no_run_is_an_error(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"recipe.json: no such file; expected the folder"):
        write_figures(tmp_path)
    for name, error in (("result.json", "the result"), ("recipe.json", "the recipe")):
        for damaged in ("{}", "[]", "{", '{"test": {"confusion": [[1]]}}'):
            (run / name).write_text(damaged)
            with pytest.raises(ValueError, match=rf"{name} is not {error} of a run"):
                write_figures(run)
        (run / name).unlink()
        if name == "result.json":
            continue


def test_the_command_prints_the_files_it_wrote(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["alexnet-lib", "figures", "run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        str(Path("run", "figures", name)) for name in OF_RUN + OF_DATA
    ]
