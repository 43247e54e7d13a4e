"""The notebooks under ``examples/``, cell by cell in a kernel."""

import re
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.md"))


def cells(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return re.findall(r"^```\{code-cell\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_a_notebook_runs_and_shows_no_error_or_warning(file, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells(file))])
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.get("name") == "stderr"]
    # The last pass over the test images.
    shown = " ".join(str(output.get("data", output.get("text"))) for output in outputs)
    assert "Error" not in shown


def test_there_are_notebooks_with_code():
    assert len(EXAMPLES) >= 3
    assert all(len(cells(file)) >= 4 for file in EXAMPLES)
