"""The command line. Whatever computes is imported by the command that needs it."""

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="alexnet-lib",
    help="AlexNet: train it, evaluate it, use it, and look at its numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
download_app = typer.Typer(help="Fetch a data set.", no_args_is_help=True)
app.add_typer(download_app, name="download")

_DATA_HELP = (
    "'shapes' (built in, synthetic), 'cifar10' (kept in ./data, downloaded where it is missing), "
    "or a folder: CIFAR-10's files, or images as train/CLASS/*.jpg and test/CLASS/*.jpg, or "
    "CLASS/*.jpg."
)
_CHECKPOINT_HELP = "A .safetensors file, or the folder of a run (its best weights)."
Device = Annotated[
    str, typer.Option(help="'auto' (CUDA, then Apple's MPS, then the CPU) or a device's name.")
]
Precision = Annotated[
    str,
    typer.Option(help="'float32', 'bfloat16', or 'auto': bfloat16 where the hardware has it."),
]
Workers = Annotated[
    int, typer.Option(help="Processes that decode image files; small images need none.", min=0)
]
KeepMemory = Annotated[
    bool,
    typer.Option(
        help="On Linux, keep freed memory for the next step instead of giving it back each time."
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        help="'modern', 'paper', 'tutorial' or 'finetune'; or a run's folder or its recipe.json, "
        "whose recipe and seed are taken."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field of the recipe, for example learning_rate=0.02; can be repeated "
        "[default: none].",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Of everything random [default: 0, or the stored run's].", min=0),
]
BatchSize = Annotated[int, typer.Option(help="Images in a batch.", min=1)]


@app.command()
def train(
    data: Annotated[str, typer.Argument(help=_DATA_HELP)],
    recipe: RecipeName = "modern",
    set_: Overrides = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images [default: the recipe's].")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the run [default: runs/ and the date and time]."),
    ] = None,
    train_images: Annotated[
        int | None,
        typer.Option(help="Use only so many of the training images [default: all]."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the images, in pixels [default: the network's own, 227]."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a step [default: the recipe's].")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate [default: the recipe's].")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="'paper', 'single_tower' or 'one_weird_trick' [default: the recipe's]."),
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Annotated[
        bool, typer.Option(help="Train through torch.compile, which is slower on CPUs.")
    ] = False,
    num_workers: Workers = 0,
    keep_memory: KeepMemory = True,
) -> None:
    """Train on DATA, evaluate on its test images, and write the run to a folder."""
    from alexnet_lib.devices import RunOptions
    from alexnet_lib.training.fit import fit

    _set_up_memory(keep_memory)
    named: dict[str, Any] = {
        "epochs": epochs,
        "train_images": train_images,
        "image_size": image_size,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "architecture": architecture,
    }
    given = {name: value for name, value in named.items() if value is not None}
    chosen, stored_seed = _recipe(recipe)
    run = fit(
        data,
        recipe=chosen,
        overrides=_overrides(set_) | given,
        seed=stored_seed if seed is None else seed,
        out=out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"),
        options=RunOptions(
            device=device, precision=precision, compile=compile, num_workers=num_workers
        ),
    )
    _report(run, data)


@app.command()
def doctor(
    data: Annotated[str, typer.Argument(help=_DATA_HELP)],
    recipe: RecipeName = "modern",
    set_: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps of the try at one batch.", min=1)] = 40,
    seed: Seed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    num_workers: Workers = 0,
    keep_memory: KeepMemory = True,
) -> None:
    """Say why a recipe does not learn: scale of signals and steps, dead units, one batch tried."""
    from alexnet_lib.analysis.diagnosis import diagnose
    from alexnet_lib.devices import RunOptions

    _set_up_memory(keep_memory)
    chosen, stored_seed = _recipe(recipe)
    options = RunOptions(device=device, precision=precision, num_workers=num_workers)
    print(
        diagnose(
            data,
            recipe=chosen,
            overrides=_overrides(set_),
            steps=steps,
            seed=stored_seed if seed is None else seed,
            options=options,
        )
    )


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the run; an earlier demo in it is replaced.")
    ] = Path("runs/demo"),
    device: Device = "auto",
    keep_memory: KeepMemory = True,
) -> None:
    """Train AlexNet on the built-in synthetic shapes in a minute or two, and evaluate it."""
    import json

    from alexnet_lib.devices import RunOptions, resolve_device
    from alexnet_lib.training.fit import RUN_FILES, fit
    from alexnet_lib.training.recipes import DEMO_OVERRIDES, RECIPES

    _set_up_memory(keep_memory)
    resolve_device(device)  # before anything is replaced
    recipe = RECIPES["modern"].overridden(DEMO_OVERRIDES)
    earlier = out / "recipe.json"
    if earlier.is_file():
        try:
            ours = json.loads(earlier.read_text(encoding="utf-8"))["recipe"] == recipe.to_dict()
        except (ValueError, KeyError, TypeError):
            ours = False
        if ours:
            for name in RUN_FILES:
                (out / name).unlink(missing_ok=True)
    run = fit("shapes", recipe=recipe, out=out, options=RunOptions(device=device))
    _report(run, "the built-in synthetic shapes")


def _recipe(name: str) -> tuple[Any, int]:
    """The recipe of this name with seed 0, or a run's with its own."""
    from alexnet_lib.training.recipes import RECIPES, resolve_recipe, stored_recipe

    path = Path(name)
    # A folder does not hide the recipe of its name: "./paper" is the folder.
    if name not in RECIPES and (path.suffix == ".json" or path.is_dir()):
        return stored_recipe(path)
    return resolve_recipe(name), 0


def _overrides(settings: list[str] | None) -> dict[str, Any]:
    """``FIELD=VALUE`` by field: a number, True, False, None, a list with commas, or a word."""
    import ast

    overrides: dict[str, Any] = {}
    for setting in settings or []:
        field, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set is {setting!r}; expected FIELD=VALUE")
        if field == "freeze":
            overrides[field] = tuple(filter(None, value.split(",")))
            continue
        word = {"true": "True", "false": "False", "none": "None"}.get(value.lower(), value)
        try:
            overrides[field] = ast.literal_eval(word)
        except (ValueError, SyntaxError):
            overrides[field] = value
    return overrides


def _set_up_memory(keep: bool) -> None:
    from alexnet_lib.kernels.memory import keep_freed_memory

    if keep:
        keep_freed_memory()


def _report(run: Any, data: str) -> None:
    images = run.history[-1].train.images
    print(f"trained on {data}: {images:,} images, {len(run.history)} epochs")
    if run.test is not None:
        print(f"test accuracy {run.test.accuracy:.1%} on {run.test.images:,} images")
    print(f"results in {run.folder}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help=_CHECKPOINT_HELP)],
    data: Annotated[str, typer.Argument(help=_DATA_HELP)],
    batch_size: BatchSize = 128,
    views: Annotated[
        int,
        typer.Option(
            help="Of each image, whose outputs are averaged: 1; 2, with the mirror image; or 10, "
            "corners and centre, each also mirrored."
        ),
    ] = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    num_workers: Workers = 0,
    keep_memory: KeepMemory = True,
) -> None:
    """Evaluate trained weights on the test images of DATA: accuracies, each class, confusion."""
    import numpy as np

    from alexnet_lib.data.loaders import BatchLoader
    from alexnet_lib.data.sources import open_datasets
    from alexnet_lib.training import loop

    _set_up_memory(keep_memory)
    model = _load(checkpoint)
    if model.preprocess is None:
        raise ValueError(f"{checkpoint} holds no preprocessing; expected a run's checkpoint")
    everything, _, test = open_datasets(data)
    if test is None:
        print(
            f"{data} has no test part: evaluating on all its images, which may include those that "
            "the network was trained on",
            file=sys.stderr,
        )
        test = everything
    if model.classes != test.classes:
        raise ValueError(
            f"the network's classes are {model.classes}, those of {data} are {test.classes}"
        )
    loader = BatchLoader(test, model.preprocess, batch_size=batch_size, num_workers=num_workers)
    metrics = loop.evaluate(
        model,
        loader,
        device=device,
        precision=precision,
        views=views,
        progress=sys.stderr.isatty(),
    )
    print(metrics)
    width = max(map(len, metrics.classes))
    for place, name in enumerate(metrics.classes):
        row = metrics.confusion[place].copy()
        row[place] = 0
        mistaken = int(np.argmax(row))
        most = f"most taken for {metrics.classes[mistaken]} ({row[mistaken]})" if row.any() else ""
        share = metrics.per_class_accuracy[place]
        print(f"{name:<{width}}  {share:6.1%}  {most}".rstrip())


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    checkpoint: Annotated[Path, typer.Option(help=_CHECKPOINT_HELP)],
    top: Annotated[int, typer.Option(help="How many classes to name for each image.", min=1)] = 5,
) -> None:
    """Name the likeliest classes of photos."""
    from alexnet_lib import inference

    for prediction in inference.predict(_load(checkpoint), images, top=top):
        print(prediction)


@app.command()
def stats(
    data: Annotated[str, typer.Argument(help=_DATA_HELP)],
    std: Annotated[
        str,
        typer.Option(
            help="'pixel': over all pixels; 'per_image': mean of the images' own deviations."
        ),
    ] = "pixel",
) -> None:
    """Measure the channels' mean and standard deviation (values 0 to 1) of the training images."""
    from alexnet_lib.data.images import ImageTensors
    from alexnet_lib.data.sources import open_datasets
    from alexnet_lib.data.statistics import compute_channel_stats

    images, *_ = open_datasets(data)
    source = images.images if isinstance(images, ImageTensors) else images
    print(compute_channel_stats(source, std=std))  # type: ignore[arg-type]


@app.command()
def summary(
    architecture: Annotated[
        str, typer.Argument(help="'paper', 'single_tower' or 'one_weird_trick'.")
    ] = "paper",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images, in pixels [default: 227, 227, 224].")
    ] = None,
    num_classes: Annotated[int, typer.Option(help="Number of classes.")] = 1000,
) -> None:
    """Print a network's layers: kernels, feature maps, parameters and multiply-accumulates."""
    from alexnet_lib.network import summary as tables

    print(tables.summary(architecture, image_size=image_size, num_classes=num_classes))


@download_app.callback()
def _download() -> None:
    pass


@download_app.command()
def cifar10(
    root: Annotated[Path, typer.Option(help="Folder to download to.")] = Path("data"),
) -> None:
    """Fetch CIFAR-10 (170 MB), MD5-checked; a broken download is resumed."""
    from alexnet_lib.data.cifar10 import download_cifar10

    print(f"CIFAR-10 is in {download_cifar10(root)}")


@app.command()
def info() -> None:
    """Print versions, devices, the precisions that these multiply, and where kernels are kept."""
    import platform

    import torch

    from alexnet_lib.devices import default_device, multiplies_bfloat16
    from alexnet_lib.kernels import cpu as kernels
    from alexnet_lib.training.fit import versions

    for name, number in versions().items():
        print(f"{name:<12} {number}")
    print(f"{'system':<12} {platform.platform()}")
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "unknown"
    print(f"{'processor':<12} {cpu}, {torch.get_num_threads()} threads")
    compiled = kernels.library()
    print(f"{'kernels':<12} {compiled._name if compiled else 'none: torch computes instead'}")
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    for device in map(torch.device, devices):
        native = "float32, bfloat16" if multiplies_bfloat16(device) else "float32"
        chosen = " (the default)" if device.type == default_device().type else ""
        name = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
        print(f"{'device':<12} {device}{name}{chosen}: multiplies {native}")


def _load(checkpoint: Path) -> Any:
    from alexnet_lib.network.checkpoints import load_checkpoint

    if checkpoint.is_dir():
        best, last = checkpoint / "best.safetensors", checkpoint / "last.safetensors"
        checkpoint = best if best.exists() else last
    return load_checkpoint(checkpoint)


def main() -> None:
    """Runs the command line: exit status 2 and one line for a user's mistake, 1 for a failed run.

    Raises:
        SystemExit: always.
    """
    try:
        app()
    except FloatingPointError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except (ValueError, TypeError, OSError) as error:
        _fail(str(error), 2)


def _fail(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)
