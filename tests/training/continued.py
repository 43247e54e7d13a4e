"""Runs that are stopped and continued; as a script, from files, in a process of its own.

    python continued.py FOLDER THREADS DEVICE

continues each run whose state is in the folder to its end, and writes the state that it then has.
"""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tiny import tiny_recipe, use_tiny
from torch import Tensor

from alexnet_lib import prepare_loaders, prepare_model
from alexnet_lib.devices import RunOptions
from alexnet_lib.files import read_tensors, write_tensors
from alexnet_lib.kernels import cpu
from alexnet_lib.training.state import TrainingRun

State = tuple[dict[str, Any], dict[str, Tensor]]

# What each recipe changes in the tiny one.
RECIPES = MappingProxyType(
    {
        # Its rate is so small that no image changes its class: the first epoch stays the best, and
        # every later one is a plateau. The warm-up ends in the second epoch.
        "sgd": {
            "epochs": 4,
            "dropout": 0.5,
            "learning_rate": 1e-4,
            "schedule": "plateau",
            "plateau_patience": 1,
            "warmup_fraction": 0.4,
            "bias_rate_factor": 2.0,
            "resize_ratio": 1.5,
            "random_crop": True,
            "color_noise": 0.1,
        },
        "average": {
            "epochs": 4,
            "dropout": 0.5,
            "learning_rate": 0.05,
            "ema_decay": 0.7,
            "trivial_augment": True,
            "balance": "sampler",
            "max_grad_norm": 1.0,
        },
        # The first two epochs see images of 12 pixels.
        "muon": {
            "epochs": 4,
            "dropout": 0.5,
            "optimizer": "muon",
            "image_size": 20,
            "growth_fraction": 0.5,
            "start_size": 0.6,
            "random_shift": 0.2,
        },
        # The 11 batches of an epoch are four steps, the last of two batches.
        "accumulating": {
            "epochs": 4,
            "dropout": 0.5,
            "batch_size": 5,
            "accumulation_steps": 3,
            "balance": "loss",
            "early_stopping": 3,
        },
    }
)
OPTIONS = MappingProxyType(
    {
        "float32": RunOptions("cpu", "float32", "contiguous", progress=False),
        "bfloat16": RunOptions("cpu", "bfloat16", "channels_last", progress=False),
        "float16": RunOptions("cpu", "float16", "channels_last", progress=False),
    }
)
# A recipe and how it is carried out.
RUNS = tuple(f"{recipe} {options}" for recipe in RECIPES for options in OPTIONS)


def begin(name: str, device: torch.device | str, *, seed: int = 3) -> TrainingRun:
    """The run of this name, before its first step."""
    recipe_name, options_name = name.split()
    recipe = tiny_recipe(**RECIPES[recipe_name])
    options = replace(OPTIONS[options_name], device=str(device))
    cpu.load()  # as in fit: compiled from the first step on, whatever ran before
    loaders = prepare_loaders("shapes", recipe, seed=seed, options=options)
    model = prepare_model(loaders, recipe, seed=seed, options=options)
    return TrainingRun(recipe, loaders, model, seed=seed, options=options)


def go_on(run: TrainingRun, steps: int | None = None) -> TrainingRun:
    """Takes so many steps, or all that are left; an epoch is finished before the next begins."""
    while not run.finished and steps != 0:
        if run.epoch_read:
            run.finish_epoch()
            continue
        run.take_step()
        steps = None if steps is None else steps - 1
    return run


def state_of(run: TrainingRun) -> State:
    """A copy of the state of a run."""
    return copy.deepcopy(run.state())


def write(run: TrainingRun, folder: Path, name: str) -> None:
    """The state of a run in a file."""
    data, tensors = run.state()
    write_tensors(
        folder / f"{name}.safetensors", tensors, {"state": json.dumps(data, allow_nan=False)}
    )


def read(folder: Path, name: str) -> State:
    """The state that ``write`` wrote."""
    tensors, metadata = read_tensors(folder / f"{name}.safetensors")
    return json.loads(metadata["state"]), tensors


def main(folder: Path, threads: int, device: str) -> None:
    """Continues what is in the folder."""
    torch.set_num_threads(threads)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        for name in RUNS:
            run = begin(name, device)
            run.set_state(*read(folder, f"stopped {name}"))
            write(go_on(run), folder, f"ended {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
