"""Two hosts, which are network namespaces of this machine with addresses of their own."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from processes import result_of
from tiny import QUIET
from together import approximate

from alexnet_lib import stored_recipe
from alexnet_lib.training.fit import fit

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.177.0.1", "10.177.0.2")
WAIT_SECONDS = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip")),
        reason="it makes network namespaces: Linux, root, iproute2",
    ),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def hosts() -> Iterator[Sequence[str]]:
    """The names of two namespaces that a cable joins."""
    names = [f"alexnet-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip(
            "-n",
            names[0],
            "link",
            "add",
            "cable",
            "type",
            "veth",
            "peer",
            "cable",
            "netns",
            names[1],
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def started(hosts: Sequence[str], folder: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """torchrun on both hosts, as one run; what each prints comes out of a pipe."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests/training")])
    environment = {
        **{**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        **{"GLOO_SOCKET_IFNAME": "cable", "WAIT_SECONDS": str(WAIT_SECONDS)},
    }
    tiny = ["--architecture", "tiny", "--batch-size", "5", "--device", "cpu", "--seed", "3"]
    return [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"),
                *("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number)),
                *("--master-addr", ADDRESSES[0], "--master-port", "29511"),
                *("-m", "elastic", "train", "shapes", *tiny, "--precision", "float32"),
                *("--checkpoint-every", "0", "--out", "run", *arguments),
            ],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number, host in enumerate(hosts)
    ]


def test_a_run_on_two_hosts_is_that_of_one_process(hosts, tmp_path):
    processes = started(hosts, tmp_path, "--epochs", "2")
    for process in processes:
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed
    recipe, seed = stored_recipe(tmp_path / "run")
    fit("shapes", recipe=recipe, seed=seed, out=tmp_path / "alone", options=QUIET)
    own, other = (result_of(tmp_path / name) for name in ("run", "alone"))
    assert own["history"] == approximate(other["history"], 1e-3)


def test_a_host_that_is_cut_off_ends_the_run_on_both(hosts, tmp_path):
    processes = started(hosts, tmp_path, "--epochs", "100000")
    while not (tmp_path / "run" / "state.safetensors").exists():
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    ip("-n", hosts[1], "link", "set", "cable", "down")
    printed = [process.communicate(timeout=600)[0] for process in processes]
    assert all(process.returncode != 0 for process in processes), printed
    assert re.search(r"process 1 of 2 .* gave no sign", printed[0]), printed[0]
    assert re.search(r"process 0 of 2 .* gave no sign", printed[1]), printed[1]
