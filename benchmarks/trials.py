"""Trials on CIFAR-10: what a change of a recipe or of the network gives, in accuracy and in time.

    python benchmarks/trials.py cifar10-jpeg search              # the trials behind `modern`
    python benchmarks/trials.py cifar10-jpeg regularisation      # decay, augmentation, averages
    python benchmarks/trials.py cifar10-jpeg few_images          # what helps against overfitting
    python benchmarks/trials.py cifar10-jpeg matters             # one change of `modern` at a time
    python benchmarks/trials.py cifar10-jpeg budget              # what fits into how many minutes
    python benchmarks/trials.py cifar10-jpeg matters --trials modern "no LRN" --seeds 0 1

A finished trial is appended, with its recipe, to benchmarks/results/trials.jsonl; one that is there
already is not run again, so the command can be stopped and repeated. The validation images judge;
the test images are looked at only by the trials of the budget, which decide nothing.
"""

import argparse
import itertools
import json
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench import table
from recipes import spread
from torch import nn

from alexnet_lib import (
    RECIPES,
    AlexNet,
    LocalResponseNorm,
    Recipe,
    RunOptions,
    fit,
    keep_freed_memory,
    prepare_loaders,
    prepare_model,
)
from alexnet_lib.data.sources import Parts, open_parts
from alexnet_lib.training.recipes import PAPER_RESIZE_RATIO

RESULTS = Path(__file__).parent / "results" / "trials.jsonl"
OPTIONS = RunOptions(progress=False)


class Trial(NamedTuple):
    """A recipe, and a change of its network."""

    recipe: Recipe
    change: Callable[[AlexNet], object] = lambda model: None


def trial(base: Recipe, change: Any = None, /, **changed: Any) -> Trial:
    recipe = base.overridden(changed)
    return Trial(recipe) if change is None else Trial(recipe, change)


def replaced(kind: type[nn.Module], build: Callable[[Any], nn.Module]) -> Callable[[AlexNet], None]:
    """A change of a network: other modules in the place of those of a kind."""

    def change(model: AlexNet) -> None:
        for part in (model.features, model.classifier):
            for name, module in [*part.named_children()]:
                if isinstance(module, kind):
                    setattr(part, name, build(module))

    return change


def reordered(part: str, first: str, second: str) -> Callable[[AlexNet], None]:
    """A change of a network: two layers in each other's place, wherever they follow each other."""

    def change(model: AlexNet) -> None:
        layers = [*getattr(model, part).named_children()]
        for i, (one, two) in enumerate(itertools.pairwise(layers)):
            if one[0].startswith(first) and two[0].startswith(second):
                layers[i : i + 2] = [two, one]
        setattr(model, part, nn.Sequential(OrderedDict(layers)))

    return change


def without_overlap(pool: nn.MaxPool2d) -> nn.MaxPool2d:
    return nn.MaxPool2d(pool.stride, pool.stride)  # the maps keep their sizes


# At full size on a part of the images, because a whole run takes an hour: 10,000 to train on and
# 5,000 to judge by.
PART = {"train_images": 15_000, "validation_fraction": 1 / 3}
MODERN = RECIPES["modern"].overridden(PART)

# What `modern` was before its filters decayed, and before Muon.
UNDECAYED = {
    "batch_size": 64,
    "learning_rate": 0.04,
    "filter_decay": 0.0,
    "weight_decay": 0.0005,
    "growth_fraction": 0.8,
}
SCALED = {"dropout_scaling": "training"}  # nn.Dropout
SAME_SIZE = {"growth_fraction": 0.0}
CROPS = {"random_shift": 0.0, "random_crop": True, "resize_ratio": PAPER_RESIZE_RATIO}
SLOWER = {"learning_rate": 0.02, "filter_rate_factor": 1.0}
SGD = {**SCALED, **SAME_SIZE, **CROPS, "optimizer": "sgd", "learning_rate": 0.02}
# Images that grow cost in five epochs what others cost in three.
SHORT, GROWING = {"epochs": 3}, {"epochs": 5}
FORMER = MODERN.overridden(UNDECAYED)

SEARCH: dict[str, Trial] = {
    "SGD": trial(FORMER, **SGD, **SHORT),
    "Muon for the filters": trial(FORMER, **SCALED, **SAME_SIZE, **CROPS, **SLOWER, **SHORT),
    "and rate 0.04 for the rest": trial(FORMER, **SCALED, **SAME_SIZE, **CROPS, **SHORT),
    "and shifts instead of crops": trial(FORMER, **SCALED, **SAME_SIZE, **SHORT),
    # 131, 131, 163, 195 and 227 pixels.
    "and growing images": trial(FORMER, **SCALED, **GROWING),
    "and the paper's dropout": trial(FORMER, **GROWING),
    "dropout 0.3": trial(FORMER, **GROWING, dropout=0.3),
    "no warm-up": trial(FORMER, **GROWING, warmup_fraction=0.0),
    "filters' rate 0.03": trial(FORMER, **GROWING, filter_rate_factor=0.75),
    "rate 0.06 for the rest": trial(
        FORMER, **GROWING, learning_rate=0.06, filter_rate_factor=1 / 3
    ),
}

# What decays, and what is against overfitting, shows only in a run that is long enough: small
# images, many epochs.
LONG = FORMER.overridden(
    {"image_size": 67, "train_images": 30_000, "validation_fraction": 1 / 6, "epochs": 13}
)
LARGER_BATCHES = {"batch_size": 128, "learning_rate": 0.056}
LONG_MODERN = RECIPES["modern"].overridden(
    {
        name: getattr(LONG, name)
        for name in ("image_size", "train_images", "validation_fraction", "epochs")
    }
)
REGULARISATION: dict[str, Trial] = {
    "no decay of the filters": trial(LONG),
    "filter decay 0.04": trial(LONG, filter_decay=0.04),
    "filter decay 0.15": trial(LONG, filter_decay=0.15),
    "weight decay 0.002": trial(LONG, weight_decay=0.002),
    "filter decay 0.04, weight decay 0.002": trial(LONG, filter_decay=0.04, weight_decay=0.002),
    "filter decay 0.08, weight decay 0.005": trial(LONG, filter_decay=0.08, weight_decay=0.005),
    "filter decay 0.08, weight decay 0.002, batches of 128 at rate 0.056": trial(
        LONG, filter_decay=0.08, weight_decay=0.002, **LARGER_BATCHES
    ),
    "modern": trial(LONG_MODERN),
    "modern, TrivialAugment": trial(LONG_MODERN, trivial_augment=True),
    "modern, colour noise, 0.1": trial(LONG_MODERN, color_noise=0.1),
    "modern, crops of 224 from 256 too": trial(
        LONG_MODERN, random_crop=True, resize_ratio=PAPER_RESIZE_RATIO
    ),
    "modern, label smoothing 0.2": trial(LONG_MODERN, label_smoothing=0.2),
    "modern, average of the weights, 0.99": trial(LONG_MODERN, ema_decay=0.99),
}

# 5,000 images, sixty times each: what is against overfitting has something to do.
FEW = RECIPES["modern"].overridden(
    {"image_size": 67, "train_images": 10_000, "validation_fraction": 1 / 2, "epochs": 60}
)
FEW_IMAGES: dict[str, Trial] = {
    "modern": trial(FEW),
    "TrivialAugment": trial(FEW, trivial_augment=True),
    "average of the weights, 0.99": trial(FEW, ema_decay=0.99),
}

SHORTER = MODERN.overridden(GROWING)
MATTERS: dict[str, Trial] = {
    "modern": trial(SHORTER),
    "SGD for the filters too": trial(SHORTER, optimizer="sgd"),
    "no LRN": trial(SHORTER, replaced(LocalResponseNorm, lambda norm: nn.Identity())),
    "LRN after pooling": trial(SHORTER, reordered("features", "norm", "pool")),
    "no groups": trial(SHORTER, architecture="single_tower"),
    "pooling without overlap": trial(SHORTER, replaced(nn.MaxPool2d, without_overlap)),
    "average pooling": trial(SHORTER, replaced(nn.MaxPool2d, lambda _: nn.AvgPool2d(3, 2))),
    "tanh": trial(SHORTER, replaced(nn.ReLU, lambda _: nn.Tanh())),
    "GELU": trial(SHORTER, replaced(nn.ReLU, lambda _: nn.GELU())),
    "leaky ReLU": trial(SHORTER, replaced(nn.ReLU, lambda _: nn.LeakyReLU(0.01))),
    "dropout before the ReLU": trial(SHORTER, reordered("classifier", "relu", "drop")),
    "no dropout": trial(SHORTER, dropout=0.0),
    "PyTorch's initialisation": trial(SHORTER, initialization="torch"),
    "the code's initialisation": trial(SHORTER, initialization="released_code"),
    "no warm-up": trial(SHORTER, warmup_fraction=0.0),
    "constant learning rate": trial(SHORTER, schedule="constant"),
    "no clipping": trial(SHORTER, max_grad_norm=None),
    "no label smoothing": trial(SHORTER, label_smoothing=0.0),
    "no weight decay": trial(SHORTER, weight_decay=0.0),
    "no flips": trial(SHORTER, flip=False),
    "colour noise": trial(SHORTER, color_noise=0.1),
    "no decay of the filters": trial(SHORTER, filter_decay=0.0),
    "batches of 64": trial(SHORTER, batch_size=64, learning_rate=0.04),
}


def budget(image_size: int, train_images: int, epochs: int) -> Trial:
    fields = {"image_size": image_size, "train_images": train_images, "epochs": epochs}
    return trial(RECIPES["modern"], **fields)


BUDGET: dict[str, Trial] = {
    f"{size} pixels, {images:,} images, {epochs} epochs": budget(size, images, epochs)
    for size, images, epochs in (
        (67, 5_000, 20),
        (67, 50_000, 10),
        (131, 5_000, 20),
        (131, 50_000, 5),
        (227, 5_000, 10),
        (227, 20_000, 5),
        (227, 50_000, 4),
    )
}

# Stored trials of what did not help, and is no part of recipes any more.
REMOVED = (
    "no decay, random erasing, 0.5",
    "no decay, CutMix, 1",
    "modern, mixup, 0.2",
    "modern, AdamW",
    "random erasing, 0.5",
    "mixup, 0.2",
    "CutMix, 1",
)

GROUPS = {
    "search": SEARCH,
    "regularisation": REGULARISATION,
    "few_images": FEW_IMAGES,
    "matters": MATTERS,
    "budget": BUDGET,
}


def run_trial(data: Parts, group: str, name: str, seed: int) -> dict[str, Any]:
    recipe, change = GROUPS[group][name]
    loaders = prepare_loaders(data, recipe, seed=seed, options=OPTIONS)
    if group != "budget":
        loaders = loaders._replace(test=None)
    model = prepare_model(loaders, recipe, seed=seed, options=OPTIONS)
    change(model)
    started = time.perf_counter()
    run = fit(loaders, recipe=recipe, model=model, seed=seed, options=OPTIONS)
    history = [record.to_dict() for record in run.history]
    return {
        "group": group,
        "trial": name,
        "seed": seed,
        "recipe": recipe.to_dict(),
        "images_per_second": statistics.median(
            line["train"]["images_per_second"] for line in history
        ),
        "seconds": time.perf_counter() - started,
        "training": [line["train"]["accuracy"] for line in history],
        "validation": [line["validation"]["accuracy"] for line in history],
        "test": None if run.test is None else run.test.accuracy,
    }


def stored() -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def is_of(line: dict[str, Any], name: str, seed: int, recipe: Recipe) -> bool:
    """Whether a stored line is that of a trial."""
    same = (line["trial"], line["seed"]) == (name, seed)
    return same and Recipe.from_dict(line["recipe"]) == recipe


def report(group: str) -> str:
    """A row for each trial of a group, with the mean and the spread of its seeds.

    The time is that of the seeds that had the machine for themselves.
    """
    lines = [line for line in stored() if line["group"] == group]
    rows = []
    for name in dict.fromkeys(line["trial"] for line in lines):
        runs = [line for line in lines if line["trial"] == name]
        rows.append(
            (
                name,
                str(len(runs)),
                median([run["seconds"] / 60 for run in runs if run["seconds"]], 1),
                median([run["images_per_second"] for run in runs if run["seconds"]], 0),
                spread([run["training"][-1] for run in runs if "training" in run]),
                spread([run["validation"][-1] for run in runs]),
                spread([run["test"] for run in runs if run["test"] is not None]),
            )
        )
    kept = [i for i, cells in enumerate(zip(*rows, strict=True)) if any(cells)]
    header, *lines = [tuple(row[i] for i in kept) for row in (HEADER, *rows)]
    return table(lines, header)


def median(numbers: list[float], digits: int) -> str:
    return f"{statistics.median(numbers):.{digits}f}" if numbers else ""


HEADER = ("trial", "seeds", "minutes", "images/s", "training, %", "validation, %", "test, %")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("group", choices=list(GROUPS))
    parser.add_argument("--trials", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    arguments = parser.parse_args()
    keep_freed_memory()
    trials, data = GROUPS[arguments.group], None
    for seed, name in itertools.product(arguments.seeds, arguments.trials or trials):
        if any(is_of(line, name, seed, trials[name].recipe) for line in stored()):
            continue
        data = data or open_parts(arguments.data)
        result = run_trial(data, arguments.group, name, seed)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(name, seed, result["validation"], result["test"], flush=True)
    print(report(arguments.group))


if __name__ == "__main__":
    main()
