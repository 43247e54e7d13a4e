"""How training starts: the loss of the first steps from several initialisations and settings.

    python benchmarks/starts.py cifar10-jpeg

The same images, in the same order, at the network's own 227 pixels. The result goes to
benchmarks/results/starts.json; with --starts, only those named are run again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alexnet_lib import RECIPES, keep_freed_memory, kernels
from alexnet_lib.diagnosis import step_losses
from alexnet_lib.recipes import MEMORY_FORMATS, RunOptions
from alexnet_lib.training import versions

# Name: (recipe, what is changed in it). Without the help that the library's recipe `paper` has.
BARE_PAPER: dict[str, Any] = {"max_grad_norm": None, "warmup_fraction": 0.0, "learning_rate": 0.01}
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "the paper's text": ("paper", {**BARE_PAPER, "initialization": "paper"}),
    "the released code": ("paper", BARE_PAPER),
    "the released code, rate 0.001": ("paper", {**BARE_PAPER, "learning_rate": 0.001}),
    "the released code, warm-up": ("paper", {**BARE_PAPER, "warmup_fraction": 0.5}),
    "the released code, gradients clipped at 5": ("paper", {**BARE_PAPER, "max_grad_norm": 5.0}),
    "the released code, normalised input": (
        "paper",
        {**BARE_PAPER, "normalization": "pixel_std"},
    ),
    "the tutorial": ("tutorial", {}),
    "the tutorial, rate 0.01": ("tutorial", {"learning_rate": 0.01}),
    "He, normalised input, rate 0.01": (
        "paper",
        {
            **BARE_PAPER,
            "initialization": "kaiming",
            "normalization": "pixel_std",
            "bias_rate_factor": 1.0,
        },
    ),
}


def losses(data: str, name: str, steps: int) -> dict[str, Any]:
    base, changed = STARTS[name]
    recipe = RECIPES[base].overridden({**changed, "train_images": 20_000})
    options = RunOptions(progress=False).resolved()
    memory_format = MEMORY_FORMATS[options.memory_format]
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    loaders = recipe.build_loaders(data, seed=0).to(options.device, dtype, memory_format)
    model = recipe.build_model(loaders.classes, seed=0)
    model.to(options.device, memory_format=memory_format)  # type: ignore[call-overload]
    torch.manual_seed(0)
    found = step_losses(model, loaders.train, steps, recipe, options)
    return {
        "recipe": recipe.to_dict(),
        "precision": options.precision,
        "losses": [round(loss, 4) for loss in found],
    }


@torch.no_grad()
def fc8_input(data: str) -> dict[str, float]:
    """What fc8 gets at the start from the released code's initialisation: length, and likeness."""
    recipe = RECIPES["paper"].overridden({"train_images": 2_000, "batch_size": 64})
    loaders = recipe.build_loaders(data, seed=0)
    model = recipe.build_model(loaders.classes, seed=0).eval()
    seen: list[Tensor] = []
    model.classifier.fc8.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    images, _ = next(iter(loaders.train))
    model(images)
    directions = F.normalize(seen[0], dim=1)
    return {
        "images": len(images),
        "squared_length": seen[0].square().sum(1).mean().item(),
        "cosine": (directions @ directions.T).mean().item(),
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
    kernels.library()
    file = Path(__file__).parent / "results" / "starts.json"
    known = json.loads(file.read_text(encoding="utf-8"))["starts"] if file.exists() else {}
    starts = {name: known[name] for name in STARTS if name in known}
    for name in arguments.starts:
        starts[name] = losses(arguments.data, name, arguments.steps)
        course = starts[name]["losses"]
        print(f"{name:<44} {[round(x, 2) for x in course[:: len(course) // 8]]}", flush=True)
    result = {
        "command": " ".join(["python", "benchmarks/starts.py", *sys.argv[1:]]),
        "versions": versions(),
        "starts": starts,
        "fc8_input": fc8_input(arguments.data),
    }
    file.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(f"written to {file}")


if __name__ == "__main__":
    main()
