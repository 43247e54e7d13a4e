"""What the recipes reach: finished runs, kept with their histories, and the table made of them.

    alexnet-lib train cifar10-jpeg --recipe modern --seed 1 --out runs/modern-seed-1
    python benchmarks/recipes.py runs/modern-seed-1 cifar10-jpeg
    python benchmarks/recipes.py                                     # the table alone

The second line evaluates the run's weights on the test images with one view and with more, and
copies its recipe.json, history.jsonl and result.json (not the weights) to benchmarks/results/runs/,
or to the folder that --runs names. Runs of one recipe with several seeds are one row of the table.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import table

from alexnet_lib import (
    BatchLoader,
    Recipe,
    evaluate,
    keep_freed_memory,
    load_checkpoint,
    stored_recipe,
)
from alexnet_lib.data.sources import open_parts

RUNS = Path(__file__).parent / "results" / "runs"

HEADER = (
    "run",
    "seeds",
    "training images",
    "epochs",
    "minutes",
    "images/s",
    "validation, %",
    "test, %",
    "2 views",
    "10 views",
)


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def history(run: Path) -> list[dict[str, Any]]:
    lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def store(run: Path, data: str, folder: Path, numbers: Sequence[int]) -> None:
    """Keeps a finished run, and what its best weights make of the test images in several views."""
    result = read_json(run / "result.json")
    model = load_checkpoint(run / "best.safetensors")
    test = open_parts(data).test
    assert test is not None
    preprocess = model.preprocess
    assert preprocess is not None
    if not preprocess.margin:  # one crop only
        numbers = [number for number in numbers if number != 10]
    accuracies = {
        str(read_json(run / "recipe.json")["recipe"]["views"]): result["test"]["accuracy"]
    }
    for number in numbers:
        if str(number) not in accuracies:
            loader = BatchLoader(test, preprocess, batch_size=128)
            metrics = evaluate(model, loader, precision="auto", views=number)
            accuracies[str(number)] = metrics.accuracy
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("recipe.json", "history.jsonl", "result.json"):
        shutil.copy(run / file, folder / file)
    text = json.dumps({"test_images": len(test), "accuracy_by_views": accuracies}, indent=2)
    (folder / "views.json").write_text(text + "\n", encoding="utf-8")


def spread(accuracies: Sequence[float]) -> str:
    """The mean of the seeds in per cent and, where there are several, their standard deviation."""
    if not accuracies:
        return ""
    mean = f"{100 * statistics.mean(accuracies):.1f}"
    return mean if len(accuracies) < 2 else f"{mean} ± {100 * statistics.stdev(accuracies):.1f}"


def grouped(runs: Path) -> list[list[Path]]:
    """The stored runs, those of one recipe that differ in the seed together.

    The views of the test images, of which the table has a column each, are no part of it here.
    """
    groups: dict[Recipe, list[Path]] = {}
    for run in sorted(runs.iterdir()):
        recipe, _ = stored_recipe(run)
        groups.setdefault(replace(recipe, views=1), []).append(run)
    return [*groups.values()]


def name_of(run: Path) -> str:
    return run.name.partition("-seed-")[0]


def rows(runs: Path) -> list[tuple[str, ...]]:
    """A row for each recipe of the stored runs, the best first; the speed is the fastest seed's."""
    lines: list[tuple[str, ...]] = []
    for seeds in grouped(runs):
        fields = read_json(seeds[0] / "recipe.json")["recipe"]
        results = [read_json(run / "result.json") for run in seeds]
        histories = [history(run) for run in seeds]
        views = [read_json(run / "views.json")["accuracy_by_views"] for run in seeds]
        images = fields["train_images"] or 50_000
        trained = images - round(images * fields["validation_fraction"])
        best = [max(line["validation"]["accuracy"] for line in lines) for lines in histories]
        lines.append(
            (
                name_of(seeds[0]),
                str(len(seeds)),
                f"{trained:,}",
                str(len(histories[0])),
                f"{min(result['seconds'] for result in results) / 60:.0f}",
                f"{max(result['images_per_second'] for result in results):.0f}",
                spread(best),
                *(
                    spread([view[number] for view in views if number in view])
                    for number in ("1", "2", "10")
                ),
            )
        )
    return sorted(lines, key=lambda row: -float(row[-3].split()[0]))


def report(runs: Path = RUNS) -> str:
    return table(rows(runs), HEADER)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--name")
    parser.add_argument("--views", type=int, nargs="*", default=[1, 2, 10])
    parser.add_argument("--runs", type=Path, default=RUNS, help="the folder of the stored runs")
    arguments = parser.parse_args()
    if arguments.run:
        keep_freed_memory()
        name = arguments.name or arguments.run.name
        store(arguments.run, arguments.data, arguments.runs / name, arguments.views)
    print(report(arguments.runs))


if __name__ == "__main__":
    main()
