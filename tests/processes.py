"""Runs in processes of their own, which tests kill: started from one that has torch loaded."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import QUIET, Noisy, tiny_recipe, use_tiny

from alexnet_lib import cli
from alexnet_lib.devices import RunOptions
from alexnet_lib.training.fit import fit

# Every start takes a tenth of a second instead of several, where the system can fork.
SERVER: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
if os.name == "posix":
    SERVER.set_forkserver_preload(["processes"])

# What is trained on how: data, changes of the recipe, options.
RUNS: Mapping[str, tuple[str, dict[str, Any], RunOptions]] = MappingProxyType(
    {
        "plateau": (
            "shapes",
            {
                "schedule": "plateau",
                "plateau_patience": 1,
                "dropout": 0.5,
                "resize_ratio": 1.5,
                "random_crop": True,
                "color_noise": 0.1,
                "batch_size": 5,
                "accumulation_steps": 3,
            },
            QUIET,
        ),
        "average": (
            "shapes",
            {
                "optimizer": "muon",
                "learning_rate": 0.01,
                "ema_decay": 0.7,
                "random_shift": 0.2,
                "dropout": 0.5,
                "max_grad_norm": 1.0,
            },
            RunOptions("cpu", "bfloat16", "channels_last", progress=False),
        ),
        "random data": ("noisy", {"balance": "sampler"}, QUIET),
        "files in workers": (
            "files",
            {"flip": True, "resize_ratio": 1.2, "random_crop": True},
            RunOptions("cpu", "float32", num_workers=2, progress=False),
        ),
    }
)
EPOCHS = 3
# So large that files are not kept in memory.
PHOTO = (140, 130)


def begin(target: Callable[..., object], *arguments: object) -> Any:
    """Starts a process, which can have processes of its own."""
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    return process


def train(name: str, folder: Path, files: Path, draws: int = 0, every: float = 0.0) -> None:
    """Trains a run to its end, or from where it was stopped; before, something draws numbers."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        torch.set_num_threads(1)
        torch.rand(draws)
        data, changes, options = RUNS[name]
        kinds = {"noisy": Noisy(), "files": files}
        fit(
            kinds.get(data, data),
            recipe=tiny_recipe(epochs=EPOCHS, validation_fraction=0.2, **changes),
            seed=3,
            out=folder,
            resume="auto",
            checkpoint_every=every,
            options=options,
        )


def train_until_call(number: int, name: str, folder: Path, files: Path) -> None:
    """The same; the process kills itself at this call of what changes files."""
    left = number

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for function in ("fsync", "replace", "mkdir", "unlink", "rmdir", "chmod"):
        setattr(os, function, killing(getattr(os, function)))
    train(name, folder, files)


def command(arguments: list[str], folder: Path, streams: str = "") -> None:
    """The command line, in a folder and a process group of its own; what it prints is in a file.

    ``streams`` are those that are ``"closed"``, ``"full"`` or ``"unread"``, for example
    ``"stderr full"``.
    """
    os.setsid()
    os.chdir(folder)
    with Path("output").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if name in streams:
            if "closed" in streams:
                os.close(number)
                setattr(sys, name, None)  # as Python begins then
            elif "full" in streams:
                os.dup2(os.open("/dev/full", os.O_WRONLY), number)
            else:
                read, write = os.pipe()
                os.close(read)
                os.dup2(write, number)
            if "closed" not in streams:
                setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        torch.set_num_threads(1)
        sys.argv = ["alexnet-lib", *arguments]
        cli.main()


def kill_at_random(
    name: str, folder: Path, files: Path, *, kills: int, seed: int, seconds: float
) -> int:
    """Kills a run at random moments, and lets it end then; the number of kills."""
    draw, done = random.Random(seed), 0
    while not (folder / "result.json").exists():
        process = begin(train, name, folder, files, done)
        process.join(draw.uniform(0, seconds) if done < kills else None)
        if process.is_alive():
            process.kill()
            done += 1
        process.join()
        assert process.exitcode in {0, -signal.SIGKILL}
    if (folder / "state.safetensors").exists():  # it was killed before it could remove that
        process = begin(train, name, folder, files)
        process.join()
        assert process.exitcode == 1  # "is finished"
    return done


def wait_for(condition: Callable[[], object], process: Any) -> None:
    """Waits until something is true, which it must be before the process ends."""
    while not condition():
        assert process.is_alive(), "it ended before"
        time.sleep(0.005)


def result_of(folder: Path) -> dict[str, Any]:
    """All that a run has computed: weights, history and test, without what the clock says."""
    lines = (folder / "history.jsonl").read_text().splitlines()
    result = json.loads((folder / "result.json").read_text())
    found: dict[str, Any] = {"test": result["test"], "history": [*map(json.loads, lines)]}
    found["test"].pop("seconds")
    for line in found["history"]:
        line["train"].pop("images_per_second")
    for name in ("best", "last"):
        found |= {f"{name} {k}": v for k, v in load_file(folder / f"{name}.safetensors").items()}
    return found


def assert_same_result(folder: Path, other: Path) -> None:
    """Two runs have ended with the same weights and metrics, bit for bit."""
    own, theirs = result_of(folder), result_of(other)
    assert own.keys() == theirs.keys()
    for name, value in own.items():
        same = torch.equal(value, theirs[name]) if torch.is_tensor(value) else value == theirs[name]
        assert same, f"{name}: {value} and {theirs[name]}"
    files = {"recipe.json", "history.jsonl", "best.safetensors", "last.safetensors", "result.json"}
    assert {file.name for file in folder.iterdir()} == files
