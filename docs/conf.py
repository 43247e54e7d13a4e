import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import typer
from docutils import nodes
from latex2mathml.converter import convert
from matplotlib import pyplot as plt
from matplotlib.text import Text
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import alexnet_lib
from alexnet_lib.cli import app

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import bench  # noqa: E402
import communication  # noqa: E402
import recipes  # noqa: E402
import trials  # noqa: E402

project = "alexnet-lib"
author = "the alexnet-lib authors"
copyright = f"2026, {author}"
version = release = alexnet_lib.__version__

extensions = [
    "myst_nb",  # MyST's Markdown, and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_static_path = ["_static", "style"]  # what the build makes, and what is kept
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"{project} {release}"

myst_enable_extensions = ["attrs_inline", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_selector = "div:not(.output) > div.highlight pre"

# The build runs the notebooks: an error, or anything on stderr, is a warning of the build.
nb_execution_mode = "force"  # or "off" (make docs NOTEBOOKS=off)
nb_execution_in_temp = True
nb_execution_timeout = 1800  # seconds for a cell
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "error"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Types stay in the signature, one argument a line: shapes such as "batch 3 h w" are lost among the
# words of a description.
autodoc_typehints = "signature"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table whose last columns, this many, are numbers and stand to the right."""
    rule = ["---"] * (len(header) - numbers) + ["--:"] * numbers
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def layer_table(table: alexnet_lib.Summary) -> str:
    """The table of layers in five columns: more are too many for a phone."""
    rows = []
    for row in table.rows:
        layer, kernel, stride, padding, groups, then, size, *counts = row.cells()
        if row.stride and row.stride > 1:
            kernel += f", stride {stride}"
        if row.padding:
            kernel += f", padding {padding}"
        if row.groups and row.groups > 1:
            kernel += f", {groups} groups"
        operations = ", ".join(filter(None, (kernel, *then.split())))
        rows.append((layer, size, operations, *counts))
    macs = f"{table.multiply_accumulates / 1e6:,.1f}"
    rows.append(("total", "", "", f"{table.parameters:,}", macs))
    header = ("layer", "feature map", "kernel, and what follows", "parameters", "MACs, M")
    return markdown_table(header, rows, numbers=2)


# Sphinx reads nothing outside of docs/. Links to pages are one folder shorter there.
_notebooks = ROOT / "docs/examples"
shutil.rmtree(_notebooks, ignore_errors=True)
_notebooks.mkdir()
for _file in (ROOT / "examples").glob("*.md"):
    _text = _file.read_text(encoding="utf-8").replace("](../docs/", "](../")
    # What the kernel says of itself, for a build that runs nothing.
    _text = _text.replace("---\n", "---\nlanguage_info: {name: python}\n", 1)
    (_notebooks / _file.name).write_text(_text, encoding="utf-8")


# The pages' numbers are read from the code: {{ paper_table }}, {{ paper_parameters }} ...
myst_substitutions = {
    "cifar10_stats_table": markdown_table(
        ("", "red", "green", "blue"),
        [
            ("mean", *(f"{value:.8f}" for value in alexnet_lib.CIFAR10_STATS.mean)),
            ("over all pixels", *(f"{value:.8f}" for value in alexnet_lib.CIFAR10_STATS.std)),
            (
                "mean of the images' own",
                *(f"{value:.4f}" for value in alexnet_lib.CIFAR10_STATS_PER_IMAGE.std),
            ),
        ],
        numbers=3,
    )
}
for _name, _architecture in alexnet_lib.ARCHITECTURES.items():
    _table = alexnet_lib.summary(_name)
    myst_substitutions[f"{_name}_table"] = layer_table(_table)
    myst_substitutions[f"{_name}_parameters"] = f"{_table.parameters:,}"
    myst_substitutions[f"{_name}_smallest"] = str(_architecture.smallest_image_size)


# What was measured is read from where the benchmarks stored it: {{ bench_lrn }} ...
_measured = json.loads((ROOT / "benchmarks/results/bench-cpu.json").read_text(encoding="utf-8"))
myst_substitutions["bench_machine"] = bench.machine(_measured)
for _name in _measured["blocks"]:
    myst_substitutions[f"bench_{_name}"] = bench.REPORTS[_name](_measured["blocks"])

_photos = _measured["blocks"]["photos"]["500x375"]["images/s"]["ours"] / 2  # on two cores
myst_substitutions["photos_speed"] = f"{_photos:.0f}"
myst_substitutions["images_table"] = communication.report_images(_photos)
myst_substitutions["published_table"] = communication.report_published()
myst_substitutions["predictions_table"] = communication.report_predictions()

_precision = json.loads((ROOT / "benchmarks/results/precision.json").read_text(encoding="utf-8"))
myst_substitutions["precision_table"] = markdown_table(
    ("", "epoch", "validation loss", "validation accuracy", "training images/s"),
    [
        (
            precision,
            str(epoch),
            f"{metrics['loss']:.4f}",
            f"{metrics['accuracy']:.1%}",
            f"{speed:.0f}",
        )
        for precision, curve in _precision["curves"].items()
        for epoch, (metrics, speed) in enumerate(
            zip(curve["validation"], curve["images/s"], strict=True), 1
        )
    ],
    numbers=4,
)


myst_substitutions["recipes_table"] = recipes.report()

for _group in trials.GROUPS:
    myst_substitutions[f"{_group}_table"] = trials.report(_group)

_starts = json.loads((ROOT / "benchmarks/results/starts.json").read_text(encoding="utf-8"))
myst_substitutions["starts_table"] = markdown_table(
    ("", "first loss", "highest", "mean of the last 20"),
    [
        (
            name,
            f"{start['losses'][0]:.2f}",
            f"{max(start['losses']):.1f}",
            f"{np.mean(start['losses'][-20:]):.3f}",
        )
        for name, start in _starts["starts"].items()
    ],
    numbers=3,
)

myst_substitutions["stability_table"] = markdown_table(
    ("dropout", "classes", "squared length", "cosine", "p, likeliest", "curvature", "stable below"),
    [
        (
            {"training": "`nn.Dropout`", "test": "the paper's"}[start["dropout_scaling"]],
            f"{start['classes']:,}",
            f"{start['squared_length']:,.0f}",
            f"{start['cosine']:.2f}",
            f"{start['likeliest']:.2g}",
            f"{start['curvature']:,.0f}",
            f"{2 * (1 + 0.9) / start['curvature']:.2g}",
        )
        for start in _starts["fc8"]
    ],
    numbers=6,
)


FIGURES = {
    "precision": "Training loss of both precisions",
    "recipes": "Validation accuracy of the recipes",
    "starts": "Loss of the first training steps",
}
# Beside a page's text and on a phone the letters have about the size of the text.
STYLE = {"font.size": 11, "lines.linewidth": 1.5, "legend.frameon": False, "svg.fonttype": "none"}
INKS = {"": "#222222", "-dark": "#dddddd"}


@contextmanager
def drawing(name: str, height: float) -> Iterator[Any]:
    """Axes of a figure that is written twice, for light and for dark pages, the same each time."""
    with plt.rc_context({"svg.hashsalt": name, **STYLE}):
        figure, axes = plt.subplots(figsize=(4.8, height), layout="constrained")
        yield axes
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        columns = 1 if max(map(len, labels)) > 15 else 2
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        for suffix, ink in INKS.items():
            axes.spines[["left", "bottom"]].set_color(ink)
            axes.tick_params(color=ink)
            for text in figure.findobj(Text):
                text.set_color(ink)
            file = ROOT / "docs/_static" / f"{name}{suffix}.svg"
            file.parent.mkdir(exist_ok=True)
            figure.savefig(file, transparent=True, metadata={"Date": None})
        plt.close(figure)


for _name, _text in FIGURES.items():
    myst_substitutions[f"figure_{_name}"] = (
        f"![{_text}](/_static/{_name}.svg){{.only-light}}\n"
        f"![{_text}](/_static/{_name}-dark.svg){{.only-dark}}"
    )


def smooth(losses: Sequence[float], steps: int = 10) -> np.ndarray:
    return np.convolve(losses, np.ones(steps) / steps, "valid")


def steps_of(images: int) -> str:
    return f"training step ({images} images)"


# The table has the others too.
DRAWN_STARTS = (
    "the paper",
    "nn.Dropout",
    "nn.Dropout, rate 0.001",
    "nn.Dropout, warm-up",
    "nn.Dropout, gradients clipped at 5",
    "the tutorial",
    "He, normalised input, rate 0.01",
)


def draw_starts() -> None:
    """The loss of the first steps, the mean of five; what blows up leaves the figure."""
    with drawing("starts", 5) as axes:
        for name in DRAWN_STARTS:
            losses = smooth(_starts["starts"][name]["losses"], 5)
            axes.plot(np.arange(5, 5 + len(losses)), losses, label=name)
        axes.axhline(np.log(10), color="grey", linewidth=0.8, linestyle=":")
        images = {start["recipe"]["batch_size"] for start in _starts["starts"].values()}
        axes.set(xlabel=steps_of(*images), ylabel="training loss", ylim=(1.5, 6))


def draw_recipes() -> None:
    """Validation accuracy of the stored runs, by the number of images trained on."""
    with drawing("recipes", 3.6) as axes:
        for run, *_ in recipes.grouped(recipes.RUNS):  # the first seed
            lines = recipes.history(run)
            fields = recipes.read_json(run / "recipe.json")["recipe"]
            images = fields["train_images"] or 50_000
            images -= round(images * fields["validation_fraction"])
            seen = [images * line["epoch"] / 1000 for line in lines]
            accuracies = [100 * line["validation"]["accuracy"] for line in lines]
            axes.plot(seen, accuracies, marker="o", markersize=3, label=recipes.name_of(run))
        axes.axhline(10, color="grey", linewidth=0.8, linestyle=":")
        axes.set(
            xlabel="images trained on, thousands", ylabel="validation accuracy, %", ylim=(0, 100)
        )


def draw_precision() -> None:
    """Training loss of both precisions, each step and the mean of ten."""
    with drawing("precision", 3.6) as axes:
        for precision, color in (("float32", "tab:blue"), ("bfloat16", "tab:orange")):
            losses = _precision["curves"][precision]["losses"]
            steps = np.arange(1, len(losses) + 1)
            axes.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps[9:], smooth(losses), color=color, label=precision)
        axes.axhline(np.log(10), color="grey", linewidth=0.8, linestyle=":")
        axes.annotate("ln 10: chance", (len(losses), np.log(10)), ha="right", va="bottom")
        label = steps_of(_precision["recipe"]["batch_size"])
        axes.set(xlabel=label, ylabel="training loss", ylim=(None, 2.6))


matplotlib.use("svg")
draw_precision()
draw_starts()
draw_recipes()


def help_texts(command: Any, context: typer.Context) -> Iterator[str]:
    """The help of a command and of all below it, as Markdown."""
    yield f"## `{context.command_path}`\n\n```text\n{command.get_help(context)}\n```\n"
    for name, below in getattr(command, "commands", {}).items():
        yield from help_texts(below, typer.Context(below, info_name=name, parent=context))


def add_help_texts(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == "reference/command_line":
        # The text must not depend on the width of the terminal that builds it.
        os.environ["COLUMNS"] = "82"
        command = typer.main.get_command(app)
        context = typer.Context(command, info_name="alexnet-lib")
        source[0] += "\n" + "\n".join(help_texts(command, context))


def plain_signature(
    _app: Sphinx, _what: str, _name: str, thing: Any, _options: Any, signature: str, returns: str
) -> tuple[str, str]:
    """Shows the value of a constant that no page has, and a type without the range it allows."""

    def value(constant: re.Match[str]) -> str:
        shown = eval(constant[0], vars(sys.modules[thing.__module__]))
        return repr(shown) if isinstance(shown, int | float | str) else constant[0]

    if signature:
        signature = re.sub(r"Annotated\[(.*?), Range\(.*?>\)\]", r"\1", signature)
        signature = re.sub(r"(?<== )(?:\w+\.)?[A-Z][A-Z0-9_]{3,}\b", value, signature)
    return signature, returns


# Browsers show MathML themselves, without a script and without a network.
def visit_inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_block_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def show_outputs(_app: Sphinx, page: nodes.document) -> None:
    """Gives what notebooks show the form of the pages: figures a text alternative, tables a box."""
    for output in page.findall(nodes.container):
        if output.get("nb_element") == "mime_bundle":
            for image in output.findall(nodes.image):
                # A figure as plain text is its description.
                image["alt"] = next(output.findall(nodes.literal_block)).astext()
                del image["height"]  # follows from the width, which is smaller on a phone
            for html in output.findall(nodes.raw):
                # The line above a table that scrolls must not scroll with it.
                caption, _, table = html.astext().removeprefix("<table>").rpartition("</caption>")
                above = f"<p>{caption.removeprefix('<caption>')}</p>" if caption else ""
                box = f'<div class="table-wrapper container"><table class="docutils">{table}</div>'
                html[:] = [nodes.Text(above + box)]


def setup(sphinx: Sphinx) -> None:
    sphinx.connect("doctree-read", show_outputs)
    sphinx.connect("source-read", add_help_texts)
    sphinx.connect("autodoc-process-signature", plain_signature)
    sphinx.add_html_math_renderer("mathml", (visit_inline_math, None), (visit_block_math, None))
