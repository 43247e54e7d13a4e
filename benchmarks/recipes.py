"""What the recipes reach: finished runs, kept with their histories, and the table made of them.

    alexnet-lib train cifar10-jpeg --recipe modern --out runs/modern
    python benchmarks/recipes.py runs/modern cifar10-jpeg --name modern
    python benchmarks/recipes.py                                         # the table alone

The second line evaluates the run's weights on the test images with one and ten views, and copies
its recipe.json, history.jsonl and result.json (not the weights) to benchmarks/results/runs/, or to
the folder that --runs names.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexnet_lib import BatchLoader, evaluate, keep_freed_memory, load_checkpoint
from alexnet_lib.data.sources import open_parts

RUNS = Path(__file__).parent / "results" / "runs"

HEADER = (
    "run",
    "recipe",
    "training images",
    "epochs",
    "minutes",
    "images/s",
    "validation",
    "test, 1 view",
    "10 views",
)


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def history(run: Path) -> list[dict[str, Any]]:
    lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def store(run: Path, data: str, folder: Path, numbers: Sequence[int]) -> None:
    """Keeps a finished run, and what its best weights make of the test images in several views."""
    known = read_json(run / "recipe.json")["recipe"]["views"]
    result = read_json(run / "result.json")
    model = load_checkpoint(run / "best.safetensors")
    test = open_parts(data).test
    assert test is not None
    assert model.preprocess is not None
    accuracies = {str(known): result["test"]["accuracy"]}
    for number in numbers:
        if number != known:
            loader = BatchLoader(test, model.preprocess, batch_size=128)
            metrics = evaluate(model, loader, precision="auto", views=number)
            accuracies[str(number)] = metrics.accuracy
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("recipe.json", "history.jsonl", "result.json"):
        shutil.copy(run / file, folder / file)
    text = json.dumps({"test_images": len(test), "accuracy_by_views": accuracies}, indent=2)
    (folder / "views.json").write_text(text + "\n", encoding="utf-8")


def rows(runs: Path) -> list[Sequence[str]]:
    """A row for each stored run, the best first."""
    table = []
    for run in runs.iterdir():
        recipe, result = read_json(run / "recipe.json"), read_json(run / "result.json")
        lines, views = history(run), read_json(run / "views.json")["accuracy_by_views"]
        fields = recipe["recipe"]
        images = fields["train_images"] or 50_000
        trained = images - round(images * fields["validation_fraction"])
        best = max(line["validation"]["accuracy"] for line in lines)
        table.append(
            (
                run.name,
                fields["name"],
                f"{trained:,}",
                str(len(lines)),
                f"{result['seconds'] / 60:.0f}",
                f"{result['images_per_second']:.0f}",
                f"{best:.1%}",
                f"{views['1']:.1%}",
                f"{views['10']:.1%}" if "10" in views else "",
            )
        )
    return sorted(table, key=lambda row: -float(row[-2].rstrip("%")))


def report(runs: Path = RUNS) -> str:
    lines = [HEADER, ["---"] * 2 + ["--:"] * (len(HEADER) - 2), *rows(runs)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--name")
    parser.add_argument("--views", type=int, nargs="*", default=[1, 10])
    parser.add_argument("--runs", type=Path, default=RUNS, help="the folder of the stored runs")
    arguments = parser.parse_args()
    if arguments.run:
        keep_freed_memory()
        name = arguments.name or arguments.run.name
        store(arguments.run, arguments.data, arguments.runs / name, arguments.views)
    print(report(arguments.runs))


if __name__ == "__main__":
    main()
