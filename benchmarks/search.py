"""The search behind the recipe `modern`: one field changed at a time, judged by validation images.

    python benchmarks/search.py cifar10-jpeg

Trials are small (images of 67 pixels, half of the training set, a fifth of it for validation, five
epochs; a few with all training images and ten epochs), so they rank choices and foretell no
accuracy. The test images are not looked at. Each trial is appended, with its recipe, to
benchmarks/results/search.jsonl; those that are there already are not run again.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from alexnet_lib import RECIPES, Recipe, RunOptions, fit, keep_freed_memory, prepare_loaders
from alexnet_lib.data.sources import Parts, open_parts

RESULTS = Path(__file__).parent / "results" / "search.jsonl"

# The paper's network and batch size, He's initialisation, SGD, crops and flips.
BASE = Recipe(
    "search",
    image_size=67,
    train_images=25_000,
    validation_fraction=0.2,
    epochs=5,
    resize_ratio=256 / 224,
    random_crop=True,
)

TRIALS: dict[str, dict[str, Any]] = {
    "base": {},
    "rate 0.015": {"learning_rate": 0.015},
    "rate 0.06": {"learning_rate": 0.06},
    "rate 0.1": {"learning_rate": 0.1},
    "AdamW": {"optimizer": "adamw", "learning_rate": 0.0005, "weight_decay": 0.05},
    "AdamW 0.00025": {"optimizer": "adamw", "learning_rate": 0.00025, "weight_decay": 0.05},
    "AdamW 0.001": {"optimizer": "adamw", "learning_rate": 0.001, "weight_decay": 0.05},
    "batch 64": {"batch_size": 64},
    "batch 64, rate 0.015": {"batch_size": 64, "learning_rate": 0.015},
    "batch 64, AdamW": {
        "batch_size": 64,
        "optimizer": "adamw",
        "learning_rate": 0.00035,
        "weight_decay": 0.05,
    },
    "no label smoothing": {"label_smoothing": 0.0},
    "CutMix": {"cutmix": 1.0},
    "no random crop": {"random_crop": False},
    "wider crop": {"resize_ratio": 1.3},
    "dropout 0.25": {"dropout": 0.25},
    "weight decay 0.002": {"weight_decay": 0.002},
    "weight average": {"ema_decay": 0.99},
    "random erasing": {"erasing": 0.25},
    "mixup": {"mixup": 0.2},
    "colour noise": {"color_noise": 0.1},
    "TrivialAugment": {"trivial_augment": True},
    "no warm-up": {"warmup_fraction": 0.0},
    "no clipping": {"max_grad_norm": None},
    "PyTorch's initialisation": {"initialization": "torch"},
    "the code's initialisation": {"initialization": "released_code"},
}

# `modern` on small images: what five epochs of half the images favour need not win over ten of all.
LONG = replace(RECIPES["modern"], name=BASE.name, image_size=BASE.image_size)

LONG_TRIALS: dict[str, dict[str, Any]] = {
    "ten epochs": {},
    "ten epochs, rate 0.01": {"learning_rate": 0.01},
    "ten epochs, AdamW": {"optimizer": "adamw", "learning_rate": 0.00035, "weight_decay": 0.05},
    "ten epochs, dropout 0.25": {"dropout": 0.25},
}

ALL = {
    **{name: (changed, BASE.overridden(changed)) for name, changed in TRIALS.items()},
    **{name: (changed, LONG.overridden(changed)) for name, changed in LONG_TRIALS.items()},
}


def run_trial(data: Parts, name: str) -> dict[str, Any]:
    changed, recipe = ALL[name]
    options = RunOptions(progress=False)
    loaders = prepare_loaders(data, recipe, options=options)._replace(test=None)
    started = time.perf_counter()
    run = fit(loaders, recipe=recipe, options=options)
    return {
        "trial": name,
        "changed": changed,
        "recipe": recipe.to_dict(),
        "history": [record.to_dict() for record in run.history],
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--trials", nargs="*", default=list(ALL), choices=list(ALL))
    arguments = parser.parse_args()
    keep_freed_memory()
    done = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    known = [(line["trial"], line["recipe"]) for line in map(json.loads, done)]
    new = [name for name in arguments.trials if (name, ALL[name][1].to_dict()) not in known]
    data = open_parts(arguments.data) if new else None
    for name in new:
        result = run_trial(data, name)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        accuracies = [f"{line['validation']['accuracy']:.1%}" for line in result["history"]]
        print(f"{name:<28} {' '.join(accuracies)}  {result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
