"""Whether bfloat16 learns as float32 does: the loss at each step of both, on the same images.

    python benchmarks/precision.py cifar10-jpeg --train-images 12000 --epochs 2

Same recipe, same seed, hence the same weights, order and augmentation; both on this machine, one
after the other. The result goes to benchmarks/results/precision.json.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from alexnet_lib import RECIPES, evaluate, keep_freed_memory
from alexnet_lib.kernels import cpu as kernels
from alexnet_lib.training.fit import versions
from alexnet_lib.training.loop import run_steps, train_steps

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def curve(data: str, precision: str, overrides: dict[str, Any], device: str) -> dict[str, Any]:
    """The loss of each training step, and the validation metrics after each epoch."""
    recipe = RECIPES["modern"].overridden(overrides)
    loaders = recipe.build_loaders(data, seed=0)
    loaders = loaders.to(device, DTYPES[precision], torch.channels_last)
    model = recipe.build_model(loaders.classes, seed=0)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = recipe.build_optimizer(model)
    schedule = recipe.build_schedule(optimizer, recipe.epochs * len(loaders.train))
    losses, validation, speeds = [], [], []

    def criterion(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = recipe.criterion(logits, labels)
        losses.append(loss.detach())
        return loss

    torch.manual_seed(0)
    for _ in range(recipe.epochs):
        steps = train_steps(
            model,
            loaders.train,
            optimizer,
            criterion=criterion,
            precision=precision,
            batch_scheduler=schedule,
            max_grad_norm=recipe.max_grad_norm,
        )
        metrics = run_steps(steps, loaders.train, precision, progress=True)
        speeds.append(metrics.images_per_second)
        found = evaluate(model, loaders.validation, precision=precision)
        validation.append({"loss": found.loss, "accuracy": found.accuracy})
    return {
        "losses": [round(loss, 5) for loss in torch.stack(losses).float().tolist()],
        "validation": validation,
        "images/s": speeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    keep_freed_memory()
    kernels.library()
    overrides = {
        "train_images": arguments.train_images,
        "epochs": arguments.epochs,
        "image_size": arguments.image_size,
    }
    result = {
        "command": " ".join(["python", "benchmarks/precision.py", *sys.argv[1:]]),
        "versions": versions(),
        "recipe": RECIPES["modern"].overridden(overrides).to_dict(),
        "curves": {
            precision: curve(arguments.data, precision, overrides, arguments.device)
            for precision in DTYPES
        },
    }
    file = Path(__file__).parent / "results" / "precision.json"
    file.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(f"written to {file}")


if __name__ == "__main__":
    main()
