"""The notebooks under ``examples/`` come to what their text says, without a warning.

`make docs` runs them too, and fails at an error or a warning in a cell. The lines that clusters
start are such that torchrun and the command take them.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from torch.distributed.run import get_args_parser

from alexnet_lib import cli

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


# Scripts of clusters


def command_of(file: Path) -> list[str]:
    """The line of torchrun in a script."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".sh":
        line = text.replace("\\\n", " ").partition('SLURM_CPUS_PER_TASK" ')[2].splitlines()[0]
        return shlex.split(line.replace("$SLURM_NNODES", "2"))
    yaml = pytest.importorskip("yaml")
    job = next(part for part in yaml.safe_load_all(text) if part["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container["command"]


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml"])
def test_the_line_of_a_cluster_is_one_that_torchrun_and_the_command_take(name):
    program, *arguments = command_of(ROOT / "examples" / name)
    assert program == "torchrun"
    given = get_args_parser().parse_args(arguments)
    assert (given.nnodes, given.nproc_per_node, given.rdzv_backend) == ("2", "4", "c10d")
    assert given.rdzv_endpoint.endswith(":29500")
    assert (given.module, given.training_script) == (True, "alexnet_lib")
    command, *options = given.training_script_args
    train = typer.main.get_command(cli.app).commands[command]
    context = train.make_context(command, options)
    assert context.params["data"] == "/shared/imagenet"
    assert (context.params["recipe"], context.params["num_workers"]) == ("paper", 8)
    assert (context.params["out"], context.params["resume"]) == ("/shared/runs/imagenet", "auto")


def test_the_script_of_slurm_is_one_that_bash_reads():
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    subprocess.run([bash, "-n", ROOT / "examples/slurm.sh"], check=True)
