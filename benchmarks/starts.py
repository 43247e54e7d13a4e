"""How training starts: the loss of the first steps from several initialisations and settings.

    python benchmarks/starts.py cifar10-jpeg

The same images, in the same order, at the network's own 227 pixels. The result goes to
benchmarks/results/starts.json; with --starts, only those named are run again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alexnet_lib import (
    RECIPES,
    Recipe,
    RunOptions,
    keep_freed_memory,
    prepare_loaders,
    prepare_model,
)
from alexnet_lib.analysis.diagnosis import step_losses
from alexnet_lib.data.sources import Parts, open_parts
from alexnet_lib.devices import seed_generators, versions
from alexnet_lib.kernels import cpu

# Name: (recipe, what is changed in it).
INVERTED: dict[str, Any] = {"dropout_scaling": "training"}
HE: dict[str, Any] = {"initialization": "kaiming", "learning_rate": 0.01}
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "the paper": ("paper", {}),
    "the paper's initialisation": ("paper", {"initialization": "paper"}),
    "nn.Dropout": ("paper", INVERTED),
    "nn.Dropout, the paper's initialisation": ("paper", {**INVERTED, "initialization": "paper"}),
    "nn.Dropout, normalised input": ("paper", {**INVERTED, "preprocessing": "standardize"}),
    "nn.Dropout, rate 0.001": ("paper", {**INVERTED, "learning_rate": 0.001}),
    "nn.Dropout, warm-up": ("paper", {**INVERTED, "warmup_fraction": 0.5}),
    "nn.Dropout, gradients clipped at 5": ("paper", {**INVERTED, "max_grad_norm": 5.0}),
    "the tutorial": ("tutorial", {}),
    "the tutorial, rate 0.01": ("tutorial", {"learning_rate": 0.01}),
    "the tutorial, He, rate 0.01": ("tutorial", HE),
    "the tutorial, He, rate 0.001": ("tutorial", {**HE, "learning_rate": 0.001}),
    "the tutorial, He, rate 0.01, clipped at 5": ("tutorial", {**HE, "max_grad_norm": 5.0}),
    "He, normalised input, rate 0.01": (
        "paper",
        {
            **INVERTED,
            "initialization": "kaiming",
            "preprocessing": "standardize",
            "bias_rate_factor": 1.0,
        },
    ),
}


def recipe_of(name: str) -> Recipe:
    """The recipe of a start."""
    base, changed = STARTS[name]
    return RECIPES[base].overridden({**changed, "train_images": 20_000})


def start(data: Parts, name: str, steps: int) -> dict[str, Any]:
    """The losses of a start's first steps; its schedule is that of a run of so many steps."""
    recipe = recipe_of(name)
    options = RunOptions(progress=False).resolved()
    loaders = prepare_loaders(data, recipe, options=options)
    model = prepare_model(loaders, recipe, options=options)
    seed_generators(0, torch.device(options.device))
    losses = step_losses(model, loaders.train, steps, recipe, options)
    return {
        "recipe": recipe.to_dict(),
        "precision": options.precision,
        "losses": [round(loss, 4) for loss in losses],
    }


@torch.no_grad()
def fc8_start(data: Parts, dropout_scaling: str, classes: int) -> dict[str, Any]:
    """fc8 at the start from the released code's initialisation: its input, and the curvature there.

    The inputs are nearly one vector a for all images. Along it the loss's second derivative is
    |a|^2 times the largest eigenvalue of diag(p) - p p^T, where p are the classes' probabilities.
    """
    recipe = RECIPES["paper"].overridden(
        {"dropout_scaling": dropout_scaling, "train_images": 2_000, "batch_size": 64}
    )
    options = RunOptions(precision="float32", memory_format="contiguous", progress=False).resolved()
    loaders = prepare_loaders(data, recipe, options=options)
    renamed = replace(loaders.train.dataset, classes=tuple(map(str, range(classes))))
    loaders = loaders._replace(train=replace(loaders.train, dataset=renamed))
    model = prepare_model(loaders, recipe, options=options).eval()
    seen: list[Tensor] = []
    model.classifier.fc8.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    images, _ = next(iter(loaders.train))
    p = model(images).softmax(1)
    spread = p.mean(0).diag() - p.T @ p / len(p)
    squared_length = seen[0].square().sum(1).mean().item()
    directions = F.normalize(seen[0], dim=1)
    return {
        "dropout_scaling": dropout_scaling,
        "classes": classes,
        "images": len(images),
        "squared_length": squared_length,
        "cosine": (directions @ directions.T).mean().item(),
        "likeliest": p.mean(0).max().item(),
        "curvature": squared_length * torch.linalg.eigvalsh(spread)[-1].item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--starts", nargs="*", default=list(STARTS), choices=list(STARTS))
    arguments = parser.parse_args()
    keep_freed_memory()
    cpu.load()
    data = open_parts(arguments.data)
    file = Path(__file__).parent / "results" / "starts.json"
    known = json.loads(file.read_text(encoding="utf-8"))["starts"] if file.exists() else {}
    starts = dict(known)
    for name in arguments.starts:
        starts[name] = start(data, name, arguments.steps)
        course = starts[name]["losses"][:: max(arguments.steps // 8, 1)]
        print(f"{name:<44} {[round(loss, 2) for loss in course]}", flush=True)
    result = {
        "command": f"python benchmarks/starts.py {arguments.data} --steps {arguments.steps}",
        "versions": versions(),
        "starts": {name: starts[name] for name in STARTS if name in starts},
        "fc8": [
            fc8_start(data, scaling, classes)
            for scaling in ("training", "test")
            for classes in (10, 1000)
        ],
    }
    file.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(f"written to {file}")


if __name__ == "__main__":
    main()
