"""The command line. The package loads what a command needs when the command asks for it."""

import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

import alexnet_lib as lib

app = typer.Typer(
    name="alexnet-lib",
    help="AlexNet: training, evaluation, prediction, and its tables of layers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
download_app = typer.Typer(help="Download a data set.", no_args_is_help=True)
app.add_typer(download_app, name="download")

_DATA_HELP = (
    "'shapes' (built in, synthetic), 'cifar10' (kept in ./data, downloaded where it is missing), "
    "or a folder: CIFAR-10's files, or images as train/CLASS/*.jpg and test/CLASS/*.jpg, or "
    "CLASS/*.jpg."
)
_ARCHITECTURE_HELP = "'paper', 'single_tower' or 'one_weird_trick'."
_CHECKPOINT_HELP = "A .safetensors file, or the folder of a run (its best weights)."
Device = Annotated[
    str, typer.Option(help="'auto' (CUDA, then Apple's MPS, then the CPU) or a device's name.")
]
Precision = Annotated[
    str, typer.Option(help="'float32', 'bfloat16', or 'auto': bfloat16 where the hardware has it.")
]
Workers = Annotated[
    int, typer.Option(help="Processes that decode image files; small images need none.", min=0)
]
KeepMemory = Annotated[
    bool,
    typer.Option(
        help="On Linux, keep freed memory for the next step instead of returning it to the system."
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        help="'modern', 'paper', 'tutorial' or 'finetune'; or a run's folder or its recipe.json, "
        "whose recipe and seed are used."
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
    typer.Option(help="Seed of all random numbers [default: 0, or the stored run's].", min=0),
]


@app.command()
def train(
    data: Annotated[str, typer.Argument(help=_DATA_HELP)],
    recipe: RecipeName = "modern",
    set_: Overrides = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run [default: runs/ and date and time].")
    ] = None,
    train_images: Annotated[int | None, typer.Option(help="Training images to use.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images, pixels.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    architecture: Annotated[str | None, typer.Option(help=_ARCHITECTURE_HELP)] = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Annotated[
        bool, typer.Option(help="Train through torch.compile, which is slower on CPUs.")
    ] = False,
    num_workers: Workers = 0,
    keep_memory: KeepMemory = True,
) -> None:
    """Train on DATA, evaluate on its test images, and write the run to a folder.

    Options from --epochs to --architecture that are not given are the recipe's.
    """
    _set_up_memory(keep_memory)
    overrides = _overrides(set_)
    fields = {
        "epochs": epochs,
        "train_images": train_images,
        "image_size": image_size,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "architecture": architecture,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if twice := sorted(set(overrides) & set(given)):
        raise ValueError(f"{', '.join(twice)} is given as an option and by --set; expected one")
    base, stored_seed = _recipe(recipe)
    run = lib.fit(
        data,
        recipe=base,
        overrides=overrides | given,
        seed=stored_seed if seed is None else seed,
        out=out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"),
        options=lib.RunOptions(device, precision, compile=compile, num_workers=num_workers),
    )
    _report(run, data)


@app.command()
def doctor(
    data: Annotated[str, typer.Argument(help=_DATA_HELP)],
    recipe: RecipeName = "modern",
    set_: Overrides = None,
    steps: Annotated[int, typer.Option(help="Training steps on one batch.", min=1)] = 40,
    seed: Seed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    num_workers: Workers = 0,
    keep_memory: KeepMemory = True,
) -> None:
    """Report why a recipe does not learn: signals, step sizes, dead units, steps on one batch."""
    _set_up_memory(keep_memory)
    base, stored_seed = _recipe(recipe)
    diagnosis = lib.diagnose(
        data,
        recipe=base,
        overrides=_overrides(set_),
        steps=steps,
        seed=stored_seed if seed is None else seed,
        options=lib.RunOptions(device, precision, num_workers=num_workers),
    )
    print(diagnosis)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the run; an earlier demo in it is replaced.")
    ] = Path("runs/demo"),
    device: Device = "auto",
    keep_memory: KeepMemory = True,
) -> None:
    """Train AlexNet on the built-in synthetic shapes in a minute or two, and evaluate it."""
    from alexnet_lib.devices import resolve_device
    from alexnet_lib.files import RunFolder
    from alexnet_lib.training.recipes import DEMO_OVERRIDES

    _set_up_memory(keep_memory)
    resolve_device(device)  # before anything is replaced
    recipe = lib.RECIPES["modern"].overridden(DEMO_OVERRIDES)
    # Another run is left alone; fit then refuses the folder.
    with suppress(OSError, ValueError):
        if lib.stored_recipe(out)[0] == recipe:
            for name in RunFolder.FILES:
                (out / name).unlink(missing_ok=True)
    run = lib.fit("shapes", recipe=recipe, out=out, options=lib.RunOptions(device))
    _report(run, "the built-in synthetic shapes")


def _recipe(name: str) -> tuple[Any, int]:
    """This name with seed 0, or the recipe and the seed of a run."""
    path = Path(name)
    # "paper" is always the recipe, "./paper" the folder.
    if name not in lib.RECIPES and (path.suffix == ".json" or path.is_dir()):
        return lib.stored_recipe(path)
    return name, 0


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
    if keep:
        lib.keep_freed_memory()


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
    batch_size: Annotated[int, typer.Option(help="Images in a batch.", min=1)] = 128,
    views: Annotated[
        int,
        typer.Option(
            help="Views of each image, whose outputs are averaged: 1; 2, with the mirror image; "
            "or 10, the four corners and the centre, also mirrored."
        ),
    ] = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    num_workers: Workers = 0,
    keep_memory: KeepMemory = True,
) -> None:
    """Evaluate trained weights on the test images of DATA: accuracies, each class, confusion."""
    from alexnet_lib.data.sources import open_parts
    from alexnet_lib.text import format_table

    _set_up_memory(keep_memory)
    model = _load(checkpoint)
    if model.preprocess is None:
        raise ValueError(f"{checkpoint} contains no preprocessing; expected a run's checkpoint")
    train, _, test = open_parts(data)
    if test is None:
        note = "evaluating on all its images, which may include those that it was trained on"
        print(f"{data} has no test part: {note}", file=sys.stderr)
        test = train
    if model.classes != test.classes:
        raise ValueError(f"the model has the classes {model.classes}, {data} has {test.classes}")
    metrics = lib.evaluate(
        model,
        lib.BatchLoader(test, model.preprocess, batch_size=batch_size, num_workers=num_workers),
        device=device,
        precision=precision,
        views=views,
        progress=sys.stderr.isatty(),
    )
    print(metrics)
    rows = []
    for i, (name, accuracy) in enumerate(
        zip(metrics.classes, metrics.per_class_accuracy, strict=True)
    ):
        mistakes = metrics.confusion[i].copy()
        mistakes[i] = 0
        worst = int(mistakes.argmax())
        confused = f"most often confused with {metrics.classes[worst]} ({mistakes[worst]})"
        rows.append((name, f"{accuracy:.1%}", confused if mistakes.any() else ""))
    print(*format_table(rows, right=[1]), sep="\n")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    checkpoint: Annotated[Path, typer.Option(help=_CHECKPOINT_HELP)],
    top: Annotated[int, typer.Option(help="How many classes to print for each image.", min=1)] = 5,
) -> None:
    """Print the most likely classes of photos."""
    for prediction in lib.predict(_load(checkpoint), images, top=top):
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
    from alexnet_lib.data.sources import open_parts

    print(lib.compute_channel_stats(open_parts(data).train, std=std))  # type: ignore[arg-type]


@app.command()
def summary(
    architecture: Annotated[str, typer.Argument(help=_ARCHITECTURE_HELP)] = "paper",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images, in pixels [default: 227, 227, 224].")
    ] = None,
    num_classes: Annotated[int, typer.Option(help="Number of classes.")] = 1000,
) -> None:
    """Print a network's layers: kernels, feature maps, parameters and multiply-accumulates."""
    print(lib.summary(architecture, image_size=image_size, num_classes=num_classes))


@download_app.callback()
def _download() -> None:
    pass


@download_app.command()
def cifar10(
    root: Annotated[Path, typer.Option(help="Folder to download to.")] = Path("data"),
) -> None:
    """Download CIFAR-10 (170 MB), MD5-checked; an interrupted download is resumed."""
    print(f"CIFAR-10 is in {lib.download_cifar10(root)}")


@app.command()
def info() -> None:
    """Print versions, devices and their precisions, and the file of the compiled kernels."""
    import platform

    import torch

    from alexnet_lib.devices import multiplies_bfloat16, versions
    from alexnet_lib.kernels import cpu
    from alexnet_lib.text import format_table

    processor = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "unknown"
    kernels = cpu.load()
    rows = [
        *versions().items(),
        ("system", platform.platform()),
        ("processor", f"{processor}, {torch.get_num_threads()} threads"),
        ("kernels", kernels._name if kernels else "none: torch's operations are used"),
    ]
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    for device in map(torch.device, devices):
        native = "float32, bfloat16" if multiplies_bfloat16(device) else "float32"
        first = device.type == lib.default_device().type and not device.index
        default = " (the default)" if first else ""
        name = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
        rows.append(("device", f"{device}{name}{default}: multiplies {native}"))
    print(*format_table(rows), sep="\n")


def _load(checkpoint: Path) -> Any:
    if checkpoint.is_dir():
        best, last = checkpoint / "best.safetensors", checkpoint / "last.safetensors"
        checkpoint = best if best.exists() else last
    return lib.load_checkpoint(checkpoint)


def main() -> None:
    """Runs the command line; the exit status is 2 for a user's mistake, 1 for a failed run."""
    try:
        app()
    except (FloatingPointError, KeyboardInterrupt, ValueError, TypeError, OSError) as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        status = {FloatingPointError: 1, KeyboardInterrupt: 130}.get(type(error), 2)
        raise SystemExit(status) from None
