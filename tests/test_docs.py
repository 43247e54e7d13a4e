"""README and documentation say nothing that the library does not have."""

import ast
import inspect
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
from alexnet_lib import Recipe
from alexnet_lib.cli import app

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "docs"))
import bench  # noqa: E402
import check_pages  # noqa: E402
import precision  # noqa: E402
import recipes  # noqa: E402
import starts  # noqa: E402
import trials  # noqa: E402

COPIES = ROOT / "docs" / "examples"  # where the build shows the notebooks to Sphinx
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent != COPIES),
    *sorted((ROOT / "examples").glob("*.md")),
]


PYTHON = r"(?:python|\{code-cell\})"


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


def directive_of(name: str) -> str:
    value = getattr(alexnet_lib, name)
    if inspect.isclass(value):
        return "autoclass"
    return "autofunction" if inspect.isfunction(value) else "py:data"


def test_every_public_name_stands_once_in_the_reference_and_no_other() -> None:
    documented = [
        entry
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for entry in re.findall(
            r"^\.\. ((?:auto|py:)\w+):: alexnet_lib\.(\S+)$",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    ]
    assert sorted(documented) == sorted((directive_of(name), name) for name in alexnet_lib.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_is_valid_and_imports_what_there_is(page: Path) -> None:
    for code in blocks(page, PYTHON):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "alexnet_lib":
                names = {alias.name for alias in node.names}
                assert names - set(alexnet_lib.__all__) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_calls_on_a_page_have_arguments_that_there_are(page: Path) -> None:
    for code in blocks(page, PYTHON):
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id not in alexnet_lib.__all__:
                continue
            assert not any(isinstance(argument, ast.Starred) for argument in node.args)
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            signature = inspect.signature(getattr(alexnet_lib, node.func.id))
            try:
                signature.bind(*node.args, **keywords)
            except TypeError as error:
                pytest.fail(f"{ast.unparse(node)}: {error}")


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


def stored(file: str) -> Any:
    return recipes.read_json(ROOT / "benchmarks" / "results" / file)


@pytest.mark.parametrize("block", ["end_to_end", "step", "lrn", "loader", "photos"])
def test_the_readmes_tables_are_those_that_the_benchmarks_stored(block: str) -> None:
    measured = stored("bench-cpu.json")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert bench.REPORTS[block](measured["blocks"]) in readme
    assert bench.machine(measured) in readme.replace("\n", " ")


def test_the_readmes_table_of_recipes_is_that_of_the_stored_runs() -> None:
    assert recipes.report() in (ROOT / "README.md").read_text(encoding="utf-8")


# What was measured is documented as that of today's code: name of the stored run, recipe, and what
# its command changed in the recipe.
STORED_RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern": ("modern", {}),
    "modern-sgd": ("modern", {**trials.UNDECAYED, **trials.SGD, "epochs": 10}),
    "paper": ("paper", {"epochs": 7}),
    "tutorial": ("tutorial", {"validation_fraction": 0.1}),
}


@pytest.mark.parametrize("run", sorted(run.name for run in recipes.RUNS.iterdir()))
def test_a_stored_run_is_one_of_the_recipe_of_today(run: str) -> None:
    name, _, known_seed = run.partition("-seed-")
    base, changed = STORED_RUNS[name]
    recipe, seed = alexnet_lib.stored_recipe(recipes.RUNS / run)
    expected = alexnet_lib.RECIPES[base].overridden(changed)
    # The views of the test images are no part of the training.
    assert recipe.to_dict() | {"views": None} == expected.to_dict() | {"views": None}
    assert seed == int(known_seed or 0)
    history = recipes.history(recipes.RUNS / run)
    assert [line["epoch"] for line in history] == [*range(1, recipe.epochs + 1)]


def test_the_stored_starts_are_those_of_the_recipes_of_today() -> None:
    measured = stored("starts.json")["starts"]
    assert {name: Recipe.from_dict(start["recipe"]) for name, start in measured.items()} == {
        name: starts.recipe_of(name) for name in starts.STARTS
    }


def test_the_stored_precisions_are_those_of_the_recipe_of_today() -> None:
    measured = stored("precision.json")
    assert "--train-images 12000 --epochs 2" in measured["command"]
    expected = precision.RECIPE.overridden({"train_images": 12_000, "epochs": 2})
    assert Recipe.from_dict(measured["recipe"]) == expected


def test_the_stored_trials_are_those_of_today() -> None:
    known = set()
    for line in trials.stored():
        if line["trial"] in trials.REMOVED:
            with pytest.raises(ValueError, match=r"no longer has|optimizer is 'adamw'"):
                Recipe.from_dict(line["recipe"])
            continue
        trial = trials.GROUPS[line["group"]][line["trial"]]
        assert Recipe.from_dict(line["recipe"]) == trial.recipe
        assert len(line["validation"]) == trial.recipe.epochs
        known.add((line["group"], line["trial"], line["seed"]))
    assert len(known) == sum(line["trial"] not in trials.REMOVED for line in trials.stored())


# What is planted in a page, and the words of the check that finds it without a browser.
PLANTED = {
    "script": ('<script src="https://cdn.example.org/mathjax.js"></script>', "from the network"),
    "style": ('<link rel="stylesheet" href="//fonts.example.org/a.css">', "from the network"),
    "image": ('<img src="gone.svg" alt="A curve">', "missing"),
    "undescribed": ('<img src="data.html">', "an image without a text"),
    "described by its name": ('<img src="data.html" alt="a/b.png">', "an image without a text"),
    "inline formula": (r"<p>at most \(x^2\)</p>", "raw formula"),
    "dollars": ("<p>at most $x^2$ of it</p>", "raw formula"),
    "command": (r"<p>\frac{1}{2}</p>", "raw formula"),
    "long line": (f"<pre>{'x' * (check_pages.CODE_COLUMNS + 1)}</pre>", "line of code"),
    "wide table": ("<table><tr>" + "<td>1,000,000</td>" * 9 + "</tr></table>", "a table of 99"),
    "same title": ("<title>The data - here</title>", "the title of data.html too"),
}


def site_with(folder: Path, planted: str) -> Path:
    (folder / "data.html").write_text(
        "<title>Data - here</title><p>$5 and $6</p>", encoding="utf-8"
    )
    (folder / "page.html").write_text(
        f"<html><body><div role=main style='width: 80%'>{planted}</div></body></html>",
        encoding="utf-8",
    )
    return folder


@pytest.mark.parametrize("name", PLANTED)
def test_the_check_of_the_pages_finds_a_planted_fault(name: str, tmp_path: Path) -> None:
    planted, words = PLANTED[name]
    (fault,) = check_pages.faults(site_with(tmp_path, planted))
    assert fault.startswith("page.html")
    assert words in fault


def test_the_check_of_the_pages_finds_nothing_in_a_good_page(tmp_path: Path) -> None:
    good = "<p>$5, <code>\\frac</code></p><math><mi>x</mi></math><pre>\\(x</pre>"
    assert check_pages.faults(site_with(tmp_path, good)) == []


def test_the_check_of_the_pages_names_a_word_that_the_search_does_not_find(tmp_path: Path) -> None:
    terms = {"terms": dict.fromkeys(check_pages.SEARCHED.split(), 0), "titleterms": {}}
    terms["terms"] |= {"fine": 0, "tune": 0}
    del terms["terms"]["install"]
    text = f"Search.setIndex({json.dumps(terms)})"
    (tmp_path / "searchindex.js").write_text(text, encoding="utf-8")
    assert check_pages.faults(tmp_path) == ["search: nothing is found for 'install'"]


# What is planted in a page, and the words of the check in a browser.
PLANTED_IN_BROWSER = {
    "text": (f"<p>{'x' * 400}</p>", "beyond the column"),
    "drawing": ("<svg width='1500' height='9'></svg>", "svg ends"),
    "cut": (f"<p style='overflow: hidden'>{'x' * 400}</p>", "are cut"),
    "hidden code": (f"<pre style='overflow: auto'>{'x' * 400}</pre>", "1440: "),
    "first column": (
        "<div style='overflow: auto'><table><tbody><tr>"
        + "<td>1000000</td>" * 12
        + "</table></div>",
        "without its first column",
    ),
    "image": ("<img src='gone.svg'>", "an image failed"),
    "formula": (r"<p>\(x^2\)</p>", "raw formula"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED_IN_BROWSER)
def test_the_check_in_a_browser_finds_a_planted_fault(name: str, tmp_path: Path) -> None:
    program = check_pages.browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    planted, words = PLANTED_IN_BROWSER[name]
    found = check_pages.faults_in_browser(site_with(tmp_path, planted), program, seconds=120)
    assert any(words in fault for fault in found)
    assert all(fault.startswith("page.html") for fault in found)
