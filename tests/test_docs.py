"""README and documentation say nothing that the library does not have."""

import ast
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import alexnet_lib
from alexnet_lib.cli import app

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import bench  # noqa: E402
import recipes  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def command_lines() -> Iterator[Any]:
    for page in PAGES:
        for language in ("console", "bash", "sh"):
            for block in blocks(page, language):
                for line in block.replace("\\\n", " ").splitlines():
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                    if words[:1] == ["alexnet-lib"]:
                        yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words)}")


def test_every_public_name_stands_on_a_page_of_the_reference() -> None:
    documented = {
        name.rpartition(".")[2]
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for name in re.findall(
            r"^\.\. (?:auto|py:)\w+:: (alexnet_lib\S+)",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }
    assert set(alexnet_lib.__all__) - documented == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_is_valid_and_imports_what_there_is(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "alexnet_lib":
                names = {alias.name for alias in node.names}
                assert names - set(alexnet_lib.__all__) == set()


@pytest.mark.parametrize("words", list(command_lines()))
def test_a_command_line_on_a_page_is_understood(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="alexnet-lib")
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
        context = typer.Context(command, info_name=name, parent=context)
    # Reads and converts the arguments, as the command line does, and calls nothing.
    command.parse_args(context, words)


@pytest.mark.parametrize("block", ["end_to_end", "step", "lrn", "loader"])
def test_the_readmes_tables_are_those_that_the_benchmarks_stored(block: str) -> None:
    stored = json.loads((ROOT / "benchmarks/results/bench-cpu.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert bench.REPORTS[block](stored["blocks"]) in readme
    assert bench.machine(stored) in readme.replace("\n", " ")


def test_the_readmes_table_of_recipes_is_that_of_the_stored_runs() -> None:
    assert recipes.report() in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("run", sorted(recipes.RUNS.iterdir()), ids=lambda run: run.name)
def test_a_stored_run_can_be_repeated_from_its_recipe(run: Path) -> None:
    recipe, seed = alexnet_lib.stored_recipe(run)
    assert recipe.name in alexnet_lib.RECIPES
    assert len(recipes.history(run)) == recipe.epochs
    assert seed >= 0
