"""The command line in processes of torchrun, which are real ones."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import write_class_folders
from processes import result_of
from tiny import QUIET
from together import approximate

from alexnet_lib import stored_recipe
from alexnet_lib.training.fit import fit

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="it stops processes by signals")


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """torchrun, in a folder; all that it and its processes print comes out of one pipe."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests/training")])
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_the_readmes_line_trains_in_two_processes_of_which_one_writes_and_speaks(tmp_path):
    photos = write_class_folders(tmp_path / "photos", count=20, size=(70, 70))
    (line,) = re.findall(r"^torchrun (.*?)\s*(?:#.*)?$", (ROOT / "README.md").read_text(), re.M)
    words = ["photos" if word == "cifar10" else word for word in shlex.split(line)]
    assert {"--nproc-per-node", "2", "photos"} <= {*words}
    small = ["--image-size", "67", "--batch-size", "5", "--epochs", "1", "--device", "cpu"]
    process = torchrun(tmp_path, *words, *small)
    printed, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, printed
    (run,) = (tmp_path / "runs").iterdir()
    for text in ("AlexNet (paper", "epoch 1/1: ", "test: ", "trained on photos", "results in "):
        assert printed.count(text) == 1, printed
    result = json.loads((run / "result.json").read_text())
    (counts,) = re.findall(r"photos: (\d+) training, (\d+) validation, (\d+) test", printed)
    assert sum(map(int, counts)) == len([*photos.rglob("*.png")])
    assert sum(map(sum, result["test"]["confusion"])) == int(counts[2])
    assert json.loads((run / "recipe.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_a_process_that_is_killed_costs_the_steps_since_the_newest_state(tmp_path):
    tiny = ["--architecture", "tiny", "--batch-size", "5", "--device", "cpu", "--seed", "3"]
    process = torchrun(
        tmp_path,
        *("--standalone", "--nproc-per-node", "2", "--max-restarts", "1"),
        *("-m", "elastic", "train", "shapes", *tiny, "--set", "dropout=.5", "--epochs", "4"),
        *("--precision", "float32", "--checkpoint-every", "0", "--out", "run"),
    )
    state = tmp_path / "run" / "state.safetensors"
    while not state.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(int((tmp_path / "attempt 0 rank 1").read_text()), signal.SIGKILL)
    printed, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, printed
    assert (tmp_path / "attempt 1 rank 1").exists()
    assert re.search(r"error: process 1 of 2 .* gave no sign", printed), printed
    assert re.search(r"goes on after [1-9]\d* of 44 steps", printed), printed
    recipe, seed = stored_recipe(tmp_path / "run")
    fit("shapes", recipe=recipe, seed=seed, out=tmp_path / "alone", options=QUIET)
    own, other = (result_of(tmp_path / name) for name in ("run", "alone"))
    # The kernels may be compiled for one of the runs only; resized pixels differ by their rounding.
    assert own["history"] == approximate(other["history"], 1e-3)
