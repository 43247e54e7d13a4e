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

from alexnet_lib import Recipe, RunOptions, keep_freed_memory, prepare_loaders, prepare_model
from alexnet_lib.data.sources import Parts, open_parts
from alexnet_lib.devices import versions
from alexnet_lib.kernels import cpu
from alexnet_lib.training.state import TrainingRun

# What the recipes have in common: batches of 128, flips and no other augmentation.
RECIPE = Recipe("plain")


def curve(data: Parts, recipe: Recipe, options: RunOptions) -> dict[str, Any]:
    """The loss of each training step, and the validation metrics after each epoch."""
    loaders = prepare_loaders(data, recipe, options=options)
    model = prepare_model(loaders, recipe, options=options)
    run = TrainingRun(recipe, loaders, model, seed=0, options=options)
    losses: list[torch.Tensor] = []
    while not run.finished:
        while run.totals.steps < run.steps_in_epoch:
            images, loss = run.totals.images, run.totals.loss.clone()
            run.take_step()
            losses.append((run.totals.loss - loss) / (run.totals.images - images))
        record = run.finish_epoch()
        print(f"{options.precision}, epoch {record.epoch}: {record.validation}", flush=True)
    validation = [record.to_dict()["validation"] for record in run.history]
    return {
        "losses": [round(loss, 5) for loss in torch.stack(losses).tolist()],
        "validation": validation,
        "images/s": [record.train.images_per_second for record in run.history],
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
    cpu.load()
    data = open_parts(arguments.data)
    recipe = RECIPE.overridden(
        {
            "train_images": arguments.train_images,
            "epochs": arguments.epochs,
            "image_size": arguments.image_size,
        }
    )
    curves = {}
    for precision in ("float32", "bfloat16"):
        options = RunOptions(
            device=arguments.device,
            precision=precision,
            memory_format="channels_last",
            progress=False,
        )
        curves[precision] = curve(data, recipe, options.resolved())
    result = {
        "command": " ".join(["python", "benchmarks/precision.py", *sys.argv[1:]]),
        "versions": versions(),
        "recipe": recipe.to_dict(),
        "curves": curves,
    }
    file = Path(__file__).parent / "results" / "precision.json"
    file.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(f"written to {file}")


if __name__ == "__main__":
    main()
