import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import typer
from sphinx.application import Sphinx

import alexnet_lib
from alexnet_lib.cli import app

project = "alexnet-lib"
author = "the alexnet-lib authors"
copyright = f"2026, {author}"
version = release = alexnet_lib.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"

myst_enable_extensions = ["dollarmath", "substitution"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

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
    total = ("total", "", "", "", "", f"{table.parameters:,}", f"{table.multiply_accumulates:,}")
    return markdown_table(table.HEADER, [*(row.cells() for row in table.rows), total], numbers=2)


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


def setup(sphinx: Sphinx) -> None:
    sphinx.connect("source-read", add_help_texts)
