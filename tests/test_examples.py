"""The notebooks under ``examples/`` come to what their text says, without a warning.

`make docs` runs them too, and fails at an error or a warning in a cell.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = {file.stem: file for file in (ROOT / "examples").glob("*.md")}
# What holds when a notebook has run.
CLAIMS = {
    "exporting": "torch.allclose(model(image), loaded(image), atol=1e-5)",
    "features": "run.test.accuracy > 0.8 and on_features > on_pixels + 0.3",
    "fine_tuning": "tuned.test.accuracy > 0.8",
    "tutorial": "metrics.accuracy > 0.8",
}


def cells(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return re.findall(r"^```\{code-cell\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_notebook_comes_to_what_it_says_without_a_warning(name, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    codes = [*cells(EXAMPLES[name]), f"assert {CLAIMS[name]}"]
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, codes)])
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_each_notebook_has_code_a_claim_and_a_line_in_the_readme():
    assert set(CLAIMS) == set(EXAMPLES)
    assert all(len(cells(file)) >= 4 for file in EXAMPLES.values())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"](examples/{file.name})" in readme for file in EXAMPLES.values())
