"""The command line. The package loads what a command needs when the command asks for it."""

import io
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import typer.core

import alexnet_lib as lib
from alexnet_lib import interrupts
from alexnet_lib.text import printable, say


class _Commands(typer.core.TyperGroup):
    """The commands; a signal that stops one of them is the exit status, 128 and its number."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _processes():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            if text := _told(stop, "interrupted"):
                for line in _how_to_go_on(ctx.invoked_subcommand, stop):
                    say(printable(line))
                say(f"error: {text}")
            number = getattr(stop, "number", signal.SIGINT)
            raise SystemExit(128 + number) from None


def _processes() -> AbstractContextManager[Any]:
    """The processes that torchrun has started, if this is one of them."""
    if _world_size() == "1":
        return nullcontext()
    from alexnet_lib.training.distributed import joined

    return joined()


def _world_size() -> str:
    """How many processes torchrun has started, as it says it."""
    return os.environ.get("WORLD_SIZE", "1")


def _told(error: BaseException, otherwise: str) -> str:
    """What is to be said of an error; nothing if another process says it."""
    told: str | None = getattr(error, "told", None)
    return str(error) or otherwise if told is None else told


def _how_to_go_on(command: str | None, stop: KeyboardInterrupt) -> list[str]:
    """The lines about what an interrupted command has left, and what goes on with it."""
    if command == "download":
        return ["what was downloaded is kept; to go on, repeat the command"]
    folder = getattr(getattr(stop, "run", None), "folder", None)
    if folder is None:
        return []
    arguments = ["train", "shapes"]  # the demo
    if command == "train":
        values = iter(sys.argv[1:])
        arguments = []
        for value in values:
            if value == "--resume":
                next(values, None)
            elif not value.startswith("--resume="):
                arguments.append(value)
    line = shlex.join([*arguments, "--resume", str(folder)])
    if _world_size() == "1":
        return ["to go on:", f"  alexnet-lib {line}"]
    return ["to go on with torchrun and its options as before:", f"  -m alexnet_lib {line}"]


app = typer.Typer(
    cls=_Commands,
    name="alexnet-lib",
    help="AlexNet: training, evaluation, prediction, and its tables of layers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
download_app = typer.Typer(help="Download a data set.", no_args_is_help=True)
app.add_typer(download_app, name="download")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"alexnet-lib {lib.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version)
    ] = False,
) -> None:
    count, command = _world_size(), context.invoked_subcommand
    if count != "1" and command not in {"train", "evaluate"}:
        raise ValueError(
            f"{command} was started as one of {count} processes (WORLD_SIZE), each of which would "
            "do the same; expected it without torchrun, which train and evaluate take"
        )


Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="'shapes' (built in, synthetic); 'cifar10' (kept in ./data, downloaded where it is "
        "missing); a folder: CIFAR-10's files, or images as train/CLASS/*.jpg and "
        "test/CLASS/*.jpg, or as CLASS/*.jpg, or of shards (*.tar); or a CSV file of image,label.",
    ),
]
DataOrOwn = Annotated[
    str | None,
    typer.Argument(metavar="DATA", help="As for train [default: the data of the run]."),
]
_ARCHITECTURE_HELP = "'paper', 'single_tower' or 'one_weird_trick'."
_CHECKPOINT_HELP = "A .safetensors file, or the folder of a run (its best weights)."
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Names of the classes to use, in their order, with commas [default: those of DATA].",
    ),
]
Parts = Annotated[
    list[str] | None,
    typer.Option(
        "--part",
        metavar="PART=NAME",
        help="The folder in DATA of a part: train=NAME, validation=NAME, test=NAME; of a CSV file, "
        "train=NAME is the folder of its images. Can be repeated. 'none': there are no parts, "
        "every folder is a class [default: folders with the usual names].",
    ),
]
OnBadImage = Annotated[
    str,
    typer.Option(
        help="What to do with an image that cannot be read: 'stop' with an error, or 'skip' it, "
        "with a warning."
    ),
]
OnNonfinite = Annotated[
    str,
    typer.Option(
        help="What to do about a step whose loss or gradient is NaN or infinite: 'stop' with an "
        "error, or 'skip' it, at most ten times in an epoch."
    ),
]
Device = Annotated[
    str, typer.Option(help="'auto' (CUDA, then Apple's MPS, then the CPU) or a device's name.")
]
Precision = Annotated[
    str,
    typer.Option(
        help="'float32', 'bfloat16', 'float16', or 'auto': bfloat16 where the hardware has it, "
        "float16 on older CUDA devices that have that, else float32."
    ),
]
Parallel = Annotated[
    str,
    typer.Option(
        help="How several processes of torchrun divide a step: 'data' (each has a share of the "
        "images), 'hybrid' (and a part of each fully connected layer), or 'towers' (two processes, "
        "each with one tower of the paper's network)."
    ),
]
ReduceDtype = Annotated[
    str,
    typer.Option(
        help="The dtype in which processes of torchrun sum their gradients: 'same' (that of the "
        "gradients), or 'bfloat16', which sends half as much."
    ),
]
Workers = Annotated[
    int, typer.Option(help="Processes that decode image files; small images need none.")
]
KeepMemory = Annotated[
    bool,
    typer.Option(
        help="On Linux, keep freed memory for the next step instead of returning it to the system."
    ),
]
_RECIPE_HELP = (
    "'modern', 'paper', 'tutorial' or 'finetune'; or a run's folder or its recipe.json, whose "
    "recipe and seed are used"
)
RecipeName = Annotated[
    str | None,
    typer.Option(help=f"{_RECIPE_HELP} [default: modern, or that of the run to be resumed]."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field of the recipe, for example learning_rate=0.02, channels=1, "
        "background=black, balance=sampler, accumulation_steps=4, early_stopping=5 or "
        "freeze=conv1,conv2; the fields are those of alexnet_lib.Recipe. Can be repeated "
        "[default: none].",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of all random numbers [default: 0, or the stored run's]."),
]


@app.command(short_help="Train on DATA, evaluate, and write the run to a folder.")
def train(
    data: Data,
    recipe: RecipeName = None,
    set_: Overrides = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Training images to use.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images, pixels.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    architecture: Annotated[str | None, typer.Option(help=_ARCHITECTURE_HELP)] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            help="Plan the run to end within so many minutes, by the speed of its first steps: "
            "with fewer epochs, or with one of fewer images [default: all epochs]."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder for the run [default: runs/ and date and time].")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="auto|DIR",
            help="Go on with the stopped run in DIR, which ends as if it had not been stopped. "
            "'auto': with the one in the folder for the run, or else the newest of this command in "
            "runs/; if there is none, with a new run [default: a new run].",
        ),
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds from one state to resume from to the next.")
    ] = 300.0,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="Write the metrics for TensorBoard to the run [default: no]."
        ),
    ] = False,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures", help="Draw the learning curves into the run's figures/ [default: no]."
        ),
    ] = False,
    classes: Classes = None,
    part: Parts = None,
    on_bad_image: OnBadImage = "stop",
    on_nonfinite: OnNonfinite = "stop",
    seed: Seed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Annotated[
        bool, typer.Option(help="Train through torch.compile, which is slower on CPUs.")
    ] = False,
    num_workers: Workers = 0,
    parallel: Parallel = "data",
    reduce_dtype: ReduceDtype = "same",
    keep_memory: KeepMemory = True,
) -> None:
    """Train on DATA, evaluate on its test images, and write the run to a folder.

    Options from --epochs to --architecture that are not given are the recipe's. Ctrl-C (or SIGTERM)
    writes a state to resume from and stops; a second one stops at once.
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
    from alexnet_lib.training.distributed import current
    from alexnet_lib.training.recipes import resolve_recipe

    group = current()
    if group.size == 1 and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        say(
            "srun has started this command several times, and each of them trains alone: to train "
            "together, let srun start torchrun, once on each machine (docs: More than one machine)"
        )
    if resume is None and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        resume = "auto"  # torchrun has started the processes again, since one of them failed
    if recipe is None and resume not in {None, "auto"}:
        base, stored_seed = _resumed_recipe(resume)
    else:
        base, stored_seed = _recipe(recipe)
    seed = stored_seed if seed is None else seed
    wanted = None
    if resume is not None:
        whole = resolve_recipe(base, overrides | given)
        wanted = _Wanted(whole, seed, data, _names(classes), max_minutes)
    path, is_new = group.first(lambda: _run_folder(out, resume, wanted))
    folder = Path(path)
    if wanted is not None and group.first(lambda: _report_finished(folder, wanted)):
        return
    try:
        run = lib.fit(
            data,
            recipe=base,
            overrides=overrides | given,
            classes=_names(classes),
            parts=_parts(part),
            seed=seed,
            out=folder if out is None else out,
            resume=resume,
            checkpoint_every=checkpoint_every,
            max_minutes=max_minutes,
            loggers=_loggers(folder, tensorboard=tensorboard, figures=figures),
            options=lib.RunOptions(
                device,
                precision,
                compile=compile,
                num_workers=num_workers,
                on_bad_image=on_bad_image,
                on_nonfinite=on_nonfinite,
                parallel=parallel,
                reduce_dtype=reduce_dtype,
            ),
        )
    finally:
        if is_new and group.is_first:
            with suppress(OSError):  # something was written
                folder.rmdir()
    again = [word for name in part or () for word in ("--part", name)]
    if on_bad_image != "stop":
        again += ["--on-bad-image", on_bad_image]
    if group.is_first:
        _report(run, data, again)


def _loggers(folder: Path, *, tensorboard: bool, figures: bool) -> list[Any]:
    loggers: list[Any] = [lib.TensorBoardLogger(folder)] if tensorboard else []
    if figures:
        earlier = folder if (folder / "history.jsonl").is_file() else None
        loggers.append(lib.LearningCurves(folder / "figures/learning_curves.svg", earlier=earlier))
    return loggers


class _Wanted(NamedTuple):
    """What is to be trained, by which a run is known."""

    recipe: Any
    seed: int
    data: str
    classes: tuple[str, ...] | None
    max_minutes: float | None

    def is_of(self, folder: Path) -> bool:
        """Whether the run in a folder is this one, as far as can be seen without the data."""
        from alexnet_lib.training.planning import stored_plan
        from alexnet_lib.training.recipes import read_description

        try:
            stored, recipe = read_description(folder / "recipe.json"), self.recipe
            if self.max_minutes is not None:
                if stored["planned_from"]["max_minutes"] != self.max_minutes:
                    return False
                recipe = stored_plan(recipe, stored)
            same = lib.stored_recipe(folder) == (recipe, self.seed)
            classes = self.classes is None or [*self.classes] == stored["classes"]
            return same and classes and bool(stored["data"] == self.data)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return False


def _run_folder(out: str | None, resume: str | None, wanted: _Wanted | None) -> tuple[str, bool]:
    """The folder of a run, and whether it was created here."""
    from itertools import count

    from alexnet_lib.files import as_path

    if out is not None:
        return str(as_path(out, "out")), False
    if resume not in {None, "auto"}:
        return str(as_path(resume, "resume")), False
    if wanted is not None:
        for folder in sorted(Path("runs").glob("*"), reverse=True):
            if not (folder / "result.json").exists() and wanted.is_of(folder):
                return str(folder), False
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        folder = Path("runs", name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):  # of a run that was begun in the same second
            folder.mkdir(parents=True)
            return str(folder), True
    raise AssertionError


def _resumed_recipe(resume: str | None) -> tuple[Any, int]:
    """Recipe and seed of the run that is to be resumed."""
    from alexnet_lib.files import as_path

    folder = as_path(resume, "resume")
    if not (folder / "recipe.json").is_file():
        raise FileNotFoundError(
            f"resume is {resume!r}, which holds no run; expected the folder of one, or 'auto'"
        )
    return lib.stored_recipe(folder)


def _report_finished(folder: Path, wanted: _Wanted) -> bool:
    """Whether a folder holds the finished run that is wanted; its result is printed then."""
    import json

    from alexnet_lib.files import RunFolder

    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        epochs = result["epochs"]
        lines = [f"the run in {folder} is finished: {epochs} epoch{'s' * (epochs != 1)}"]
        if test := result["test"]:
            accuracy, images = test["accuracy"], test["images"]
            lines.append(f"test accuracy {accuracy:.1%} on {images:,} images")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False  # fit says what is wrong
    if not wanted.is_of(folder):
        return False
    with RunFolder(folder, resume=True) as locked:
        locked.state.unlink(missing_ok=True)  # it may have been killed before that
    print(*lines, sep="\n")
    return True


@app.command(short_help="Report why a recipe does not learn.")
def doctor(
    data: Data,
    recipe: Annotated[str | None, typer.Option(help=f"{_RECIPE_HELP} [default: modern].")] = None,
    set_: Overrides = None,
    steps: Annotated[int, typer.Option(help="Training steps on one batch.")] = 40,
    classes: Classes = None,
    part: Parts = None,
    on_bad_image: OnBadImage = "stop",
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
        classes=_names(classes),
        parts=_parts(part),
        steps=steps,
        seed=stored_seed if seed is None else seed,
        options=lib.RunOptions(
            device, precision, num_workers=num_workers, on_bad_image=on_bad_image
        ),
    )
    print(diagnosis)


@app.command(short_help="Train on the built-in shapes, in about a minute.")
def demo(
    out: Annotated[
        str, typer.Option(help="Folder for the run; an earlier demo in it is replaced.")
    ] = "runs/demo",
    device: Device = "auto",
    keep_memory: KeepMemory = True,
) -> None:
    """Train AlexNet on the built-in synthetic shapes in about a minute, and evaluate it."""
    from alexnet_lib.devices import resolve_device
    from alexnet_lib.files import RunFolder
    from alexnet_lib.training.recipes import DEMO_OVERRIDES

    _set_up_memory(keep_memory)
    resolve_device(device)  # before anything is replaced
    recipe = lib.RECIPES["modern"].overridden(DEMO_OVERRIDES)
    # Locked: a demo that is running is left alone. So is another run; fit then refuses the folder.
    with RunFolder(out, resume=True) as folder, suppress(OSError, ValueError):
        if lib.stored_recipe(folder.path)[0] == recipe:
            for name in RunFolder.FILES:
                (folder.path / name).unlink(missing_ok=True)
    run = lib.fit("shapes", recipe=recipe, out=folder.path, options=lib.RunOptions(device))
    _report(run, "the built-in synthetic shapes")


def _recipe(name: str | None) -> tuple[Any, int]:
    """This name with seed 0, or the recipe and the seed of a run; None is ``modern``."""
    from alexnet_lib.files import as_path

    name = "modern" if name is None else name
    path = as_path(name, "recipe")
    # "paper" is always the recipe, "./paper" the folder.
    if name in lib.RECIPES:
        if (path / "recipe.json").exists():
            note = f"the folder of this name is not used: its name is './{name}'"
            say(f"--recipe is {name!r}, the recipe; {note}")
    elif path.suffix == ".json" or path.is_dir():
        return lib.stored_recipe(path)
    return name, 0


def _overrides(settings: list[str] | None) -> dict[str, Any]:
    """``FIELD=VALUE`` by field: a number, True, False, None, a list with commas, or a word."""
    import ast

    overrides: dict[str, Any] = {}
    for field, text in _pairs("--set", "FIELD=VALUE", settings):
        word = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
        value: Any = text
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = ast.literal_eval(word)
        if field == "freeze" and not isinstance(value, list | tuple):
            value = [] if value is None else filter(None, text.split(","))
        overrides[field] = value if isinstance(value, str | int | float | None) else tuple(value)
    return overrides


def _parts(given: list[str] | None) -> dict[str, str] | None:
    """The folders of ``--part``, by part."""
    if given and [part.lower() for part in given] == ["none"]:
        return {}
    return dict(_pairs("--part", "PART=NAME, or none", given)) if given else None


def _pairs(option: str, expected: str, given: list[str] | None) -> list[tuple[str, str]]:
    """The two sides of each ``NAME=VALUE`` that an option was given."""
    pairs: list[tuple[str, str]] = []
    for text in given or []:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise ValueError(f"{option} is {text!r}; expected {expected}")
        if name in dict(pairs):
            raise ValueError(f"{option} is given twice for {name}; expected one")
        pairs.append((name, value))
    return pairs


def _names(classes: str | None) -> tuple[str, ...] | None:
    """The names of ``--classes``."""
    from alexnet_lib.files import as_text

    return None if classes is None else tuple(map(str.strip, as_text(classes).split(",")))


def _set_up_memory(keep: bool) -> None:
    if keep:
        lib.keep_freed_memory()


def _report(run: Any, data: str, options: Iterable[str] = ()) -> None:
    """Prints the result; ``options`` are what a command needs to open the data again."""
    images, epochs, folder = run.history[-1].train.images, len(run.history), str(run.folder)
    with suppress(OSError):  # the files are written: that nobody reads this is no failure
        print(f"trained on {data}: {images:,} images, {epochs} epoch{'s' * (epochs != 1)}")
        # In a terminal, the last line of the progress has just said it.
        if run.test is not None and not (sys.stdout.isatty() and sys.stderr.isatty()):
            print(f"test accuracy {run.test.accuracy:.1%} on {run.test.images:,} images")
        print(f"results in {folder}; next, for example")
        for words in (
            ["evaluate", folder, *options],
            ["predict", "photo.jpg", "--checkpoint", folder],
        ):
            print(f"  {shlex.join(['alexnet-lib', *words])}", flush=True)
        return
    _discard(sys.stdout)


@app.command(short_help="Evaluate trained weights on test images.")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help=_CHECKPOINT_HELP, metavar="CHECKPOINT")],
    data: DataOrOwn = None,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = 128,
    views: Annotated[
        int,
        typer.Option(
            help="Views of each image, whose outputs are averaged: 1; 2, with the mirror image; "
            "or 10, the four corners and the centre, also mirrored."
        ),
    ] = 1,
    classes: Classes = None,
    part: Parts = None,
    on_bad_image: OnBadImage = "stop",
    device: Device = "auto",
    precision: Precision = "auto",
    num_workers: Workers = 0,
    keep_memory: KeepMemory = True,
) -> None:
    """Evaluate trained weights on the test images of DATA: accuracies, each class, confusion."""
    from alexnet_lib.checks import check_choice, check_integer
    from alexnet_lib.data.preprocess import VIEWS
    from alexnet_lib.data.sources import open_parts, split
    from alexnet_lib.inference import known_preprocess
    from alexnet_lib.text import format_table
    from alexnet_lib.training.distributed import current

    group = current()
    _set_up_memory(keep_memory)
    names, seed = _names(classes), None
    _check_order("CHECKPOINT", checkpoint, data)
    if data is None:
        data, seed, trained = _data_of_run(checkpoint)
        names = names or trained
    check_choice("views", views, VIEWS)
    batch_size = check_integer("batch_size", batch_size, 1)
    model = lib.load_checkpoint(checkpoint)
    preprocess = known_preprocess(model)
    with group.unhurried():
        opened = open_parts(
            data,
            classes=names,
            parts=_parts(part),
            channels=preprocess.channels,
            background=preprocess.background,
            on_bad_image=on_bad_image,  # type: ignore[arg-type]  # the loader checks it
            to_learn=False,
        )
    test, note = opened.test, ""
    if test is None and seed is not None:
        test = split(opened, train_images=None, validation_fraction=0.0, seed=seed).test
        note = "the images that the run held out"
    if test is None:
        test = opened.train
        note = "all its images, which may include those that it was trained on (without DATA, "
        note += "evaluate takes those that the run held out)"
    if note and group.is_first:
        say(f"{data} has no test part: evaluating on {note}")
    metrics = lib.evaluate(
        model,
        lib.BatchLoader(
            test,
            preprocess,
            batch_size=batch_size,
            num_workers=num_workers,
            on_bad_image=on_bad_image,  # type: ignore[arg-type]
            share=(group.rank, group.size),
        ),
        device=group.own(lib.RunOptions(device)).device,
        precision=precision,
        views=views,
        progress=sys.stderr.isatty() and group.is_first,
    )
    if not group.is_first:
        return
    print(metrics)
    if lines := metrics.class_lines():
        print(*format_table(lines, right=[1]), sep="\n")


@app.command(short_help="Write the figures of a run to RUN/figures.")
def figures(
    run: Annotated[str, typer.Argument(help="The folder of a run.", metavar="RUN")],
    data: DataOrOwn = None,
    classes: Classes = None,
    part: Parts = None,
    on_bad_image: OnBadImage = "stop",
) -> None:
    """Write the figures of a run to RUN/figures: curves, kernels, confusion matrix, images."""
    _check_order("RUN", run, data)
    files = lib.write_figures(
        run,
        data=data,
        classes=_names(classes),
        parts=_parts(part),
        on_bad_image=on_bad_image,
        progress=sys.stderr.isatty(),
    )
    print(*files, sep="\n")


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, or folders of image files.", metavar="IMAGE"),
    ],
    checkpoint: Annotated[str, typer.Option(help=_CHECKPOINT_HELP, metavar="PATH")],
    top: Annotated[int, typer.Option(help="How many classes to print for each image.")] = 5,
    device: Device = "auto",
) -> None:
    """Print the most likely classes of photos.

    An image that cannot be read is named on the standard error stream, the others are classified,
    and the exit status is 1.
    """
    from alexnet_lib.inference import answers

    bad = False
    for answer in answers(lib.load_checkpoint(checkpoint, device=device), images, top=top):
        if isinstance(answer, lib.Prediction):
            print(answer, flush=True)
        else:
            say(f"error: {answer}")
            bad = True
    if bad:
        raise typer.Exit(1)


@app.command(short_help="Measure mean and standard deviation of the channels.")
def stats(
    data: Data,
    std: Annotated[
        str,
        typer.Option(
            help="'pixel': over all pixels; 'per_image': mean of the images' own deviations."
        ),
    ] = "pixel",
    classes: Classes = None,
    part: Parts = None,
) -> None:
    """Measure the channels' mean and standard deviation (values 0 to 1) of the training images."""
    from alexnet_lib.data.sources import open_parts

    images = open_parts(data, classes=_names(classes), parts=_parts(part), to_learn=False).train
    print(lib.compute_channel_stats(images, std=std))  # type: ignore[arg-type]


@app.command(short_help="Print a network's layers, sizes and operations.")
def summary(
    architecture: Annotated[str, typer.Argument(help=_ARCHITECTURE_HELP)] = "paper",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images, in pixels [default: 227, 227, 224].")
    ] = None,
    num_classes: Annotated[int, typer.Option(help="Number of classes.")] = 1000,
) -> None:
    """Print a network's layers: kernels, feature maps, parameters and multiply-accumulates."""
    from alexnet_lib.network.architecture import resolve_architecture

    table = resolve_architecture(architecture)
    print(lib.summary(table, image_size=image_size, num_classes=num_classes))


@download_app.callback()
def _download() -> None:
    pass


@download_app.command()
def cifar10(
    root: Annotated[str, typer.Option(help="Folder to download to.", metavar="PATH")] = "data",
) -> None:
    """Download CIFAR-10 (170 MB), MD5-checked; an interrupted download is resumed."""
    print(f"CIFAR-10 is in {lib.download_cifar10(root)}")


@app.command(short_help="Print versions, devices and compiled kernels.")
def info() -> None:
    """Print versions, devices and their precisions, and the file of the compiled kernels."""
    import platform

    import torch

    from alexnet_lib.devices import multiplies_bfloat16, multiplies_float16, versions
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
        native = "float32" + ", bfloat16" * multiplies_bfloat16(device)
        native += ", float16" * multiplies_float16(device)
        first = device.type == lib.default_device().type and not device.index
        default = " (the default)" if first else ""
        name = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
        rows.append(("device", f"{device}{name}{default}: multiplies {native}"))
    print(*format_table(rows), sep="\n")


def _check_order(name: str, run: str, data: str | None) -> None:
    """Raises a ``ValueError`` if the folder of a run was given as its data."""
    from alexnet_lib.files import as_path

    exchanged = data is not None and (as_path(data, "data") / "recipe.json").is_file()
    if exchanged and not as_path(run, name.lower()).exists():
        raise ValueError(f"{name} is '{run}' and DATA a run; expected the other order")


def _data_of_run(checkpoint: str) -> tuple[str, int, tuple[str, ...] | None]:
    """What a run was trained on, as ``train`` was given it; its seed; the classes to use."""
    from alexnet_lib.files import as_path
    from alexnet_lib.training.preparation import data_of_run
    from alexnet_lib.training.recipes import read_description

    path = as_path(checkpoint, "checkpoint")
    folder = path if path.is_dir() else path.parent
    try:
        stored = read_description(folder / "recipe.json")
        described, seed = (str(stored["data"]), (*stored["classes"],)), int(stored["seed"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(
            f"DATA is missing, and '{checkpoint}' is not of a run, which has its own; expected both"
        ) from None
    data, classes = data_of_run(*described)
    return data, seed, classes


def main() -> None:
    """Runs the command line; the exit status is 2 for a user's mistake, 1 for a failed run."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, or a program without a console
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            # A name that the terminal cannot show must not cost the result.
            stream.reconfigure(errors="backslashreplace")
    stopping = interrupts.handled(("SIGINT", "SIGTERM", "SIGHUP"))
    with warnings.catch_warnings(), stopping:
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            try:
                app()
            finally:
                _flush(sys.stdout)
        except BrokenPipeError:  # of "| head", which has seen enough
            raise SystemExit(1) from None
        except (ValueError, TypeError, OSError, OverflowError, ModuleNotFoundError) as error:
            _fail(error, 2)
        except (FloatingPointError, MemoryError, RuntimeError) as error:  # torch's are the last
            _fail(error, 1)
        finally:
            with suppress(OSError):
                _flush(sys.stderr)


def _fail(error: Exception, status: int) -> None:
    """Ends with one line, or in Python's development mode with the traceback."""
    from alexnet_lib.checks import type_name

    if sys.flags.dev_mode:
        raise error
    # What follows in torch's errors is about its own code.
    if text := _told(error, type_name(error)):
        for line in f"error: {text}".splitlines()[: 1 if status == 1 else None]:
            say(printable(line))
    raise SystemExit(status)


def _show_warning(message: Any, *_: object) -> None:
    for line in f"warning: {message}".splitlines():
        say(printable(line))


def _flush(stream: Any) -> None:
    try:
        stream.flush()
    except OSError:
        _discard(stream)
        raise


def _discard(stream: Any) -> None:
    """Sends what is left nowhere, or Python would fail with it again at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
