"""fit: from data and a recipe to a trained network, with its history and its files."""

import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from alexnet_lib.data.loaders import Loaders
from alexnet_lib.devices import MEMORY_FORMATS, RunOptions, seeded
from alexnet_lib.kernels import cpu
from alexnet_lib.network.checkpoints import save_checkpoint
from alexnet_lib.network.model import AlexNet
from alexnet_lib.training.loop import evaluate, run_steps, train_steps
from alexnet_lib.training.metrics import EpochMetrics, EvalMetrics, Totals
from alexnet_lib.training.recipes import Recipe, resolve_recipe

# What a run writes into its folder.
RUN_FILES = (
    "recipe.json",
    "history.jsonl",
    "best.safetensors",
    "last.safetensors",
    "result.json",
)

# A run's time is foretold after this many steps; the first few, which set things up, do not count.
_ESTIMATE_STEPS = 20
_SETTLING_STEPS = 3
# Training and evaluating an image differ by about this factor (a backward pass costs two forward).
_FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a run: its number from 1, the rate it ended with, and its metrics."""

    epoch: int
    learning_rate: float
    train: EpochMetrics
    validation: EvalMetrics | None

    def to_dict(self) -> dict[str, Any]:
        """The line of ``history.jsonl``."""
        train, validation = self.train, self.validation
        return {
            "epoch": self.epoch,
            "learning_rate": self.learning_rate,
            "train": {
                "loss": train.loss,
                "accuracy": train.accuracy,
                "images_per_second": train.images_per_second,
            },
            "validation": validation and {"loss": validation.loss, "accuracy": validation.accuracy},
        }


@dataclass(frozen=True, eq=False)
class Run:
    """What ``fit`` did.

    ``history`` has a record for each epoch; ``test`` holds the metrics on the test images, or None
    where there are none; ``model`` has the weights of the best validation accuracy (of the last
    epoch where there is no validation part), its ``classes`` and ``preprocess``; ``folder`` is
    where the files are, or None.
    """

    history: tuple[EpochRecord, ...]
    test: EvalMetrics | None
    model: AlexNet
    folder: Path | None


def fit(
    data: str | os.PathLike[str] | Loaders,
    *,
    recipe: str | Recipe = "modern",
    overrides: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    model: AlexNet | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008  (frozen)
) -> Run:
    """Trains a network, evaluates it on the test images once, and writes what it found.

    With ``out``, the folder gets ``recipe.json`` (all that determines the run, except a given model
    or ``Loaders``), ``history.jsonl`` (a line an epoch), ``best.safetensors`` (weights of the best
    validation accuracy), ``last.safetensors`` (weights after the last finished epoch) and, at the
    end, ``result.json``.

    Args:
        data: ``"shapes"``; ``"cifar10"``; a folder with CIFAR-10 or with images; or ``Loaders``.
        recipe: a name among ``RECIPES``, or a ``Recipe``.
        overrides: fields of the recipe to change, by name.
        epochs: passes over the training images, at least 1; None is the recipe's.
        model: a network to go on with, whose layers ``freeze`` are frozen from now on; None builds
            the recipe's.
        seed: of the weights, the parts, the order, the augmentation and dropout, as far as a given
            model or ``Loaders`` leave them open. torch's global generators are left as they were.
        out: a folder to write to, that holds no run yet; None writes nothing.
        options: device, precision and the like.

    Returns:
        The history, the test metrics, the trained model and the folder.

    Raises:
        ValueError: an argument is out of its range; the model or the loaders contradict the recipe
            (the field is named).
        FileExistsError: ``out`` holds a run already.
        OSError: ``out`` cannot be written, or the disk has too little room for the checkpoints.
        FloatingPointError: a loss or a weight became NaN or infinite; the message names the epoch
            (and the step of a training loss), and the files keep the last good weights.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from alexnet_lib import Recipe, RunOptions, build_dataset_loaders, fit
        >>> data = TensorDataset(torch.rand(60, 3, 8, 8), torch.arange(60) % 2)
        >>> loaders = build_dataset_loaders(data, image_size=67, batch_size=32)
        >>> run = fit(
        ...     loaders,
        ...     recipe=Recipe("mine", image_size=67, batch_size=32, flip=False, epochs=1),
        ...     options=RunOptions(progress=False),
        ... )
        >>> run.history[0].train.images, run.history[0].validation.images
        (54, 6)
    """
    recipe = resolve_recipe(recipe, overrides)
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}; expected an integer from 0 to below 2**63")
    if not isinstance(data, str | os.PathLike | Loaders):
        raise TypeError(
            f"data is a {type(data).__name__}; expected 'shapes', 'cifar10', a folder, or Loaders "
            "(a recipe's build_loaders makes them of any data set)"
        )
    if not isinstance(options, RunOptions):
        raise TypeError(f"options is a {type(options).__name__}; expected RunOptions")
    options = options.resolved()
    device = torch.device(options.device)
    memory_format = MEMORY_FORMATS[options.memory_format]
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    # Compiled at once, so that every step of every run of a seed is computed by the same code.
    compiled = device.type == "cpu" and cpu.library() is not None
    folder = None if out is None else _new_folder(Path(out))
    if isinstance(data, Loaders):
        loaders = data
        _check_loaders(loaders, recipe)
    else:
        loaders = recipe.build_loaders(data, seed, device=device, num_workers=options.num_workers)
    if recipe.schedule == "plateau" and loaders.validation is None:
        raise ValueError(
            "data has no validation images, but the recipe's schedule 'plateau' goes by their error"
        )
    whose = {"model": model is not None, "loaders": isinstance(data, Loaders)}
    given = [name for name, is_given in whose.items() if is_given]
    if model is None:
        model = recipe.build_model(loaders.classes, seed)
    else:
        _check_model(model, recipe, loaders)
        model.freeze(*recipe.freeze)
    loaders = loaders.to(device, dtype, memory_format)
    model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    model.classes, model.preprocess = loaders.classes, loaders.preprocess
    source = "loaders" if isinstance(data, Loaders) else os.fspath(data)
    if folder is not None:
        _check_disk(folder, model)
        description = {
            "recipe": recipe.to_dict(),
            "data": source,
            "given": given,
            "seed": seed,
            "options": asdict(options),
            "threads": torch.get_num_threads(),
            "kernels": compiled,
        }
        _write_json(folder / "recipe.json", description)
    if options.progress:
        _say(_headline(source, recipe, loaders, model, options))
    with seeded(seed, device):
        return _train(recipe, loaders, model, folder, options)


def _train(
    recipe: Recipe, loaders: Loaders, model: AlexNet, folder: Path | None, options: RunOptions
) -> Run:
    started = time.perf_counter()
    history: list[EpochRecord] = []
    best_accuracy, best_weights = -1.0, None
    for record, trained in _epochs(recipe, loaders, model, options):
        history.append(record)
        is_best = record.validation is None or record.validation.accuracy > best_accuracy
        if is_best:
            best_accuracy = (record.validation or record.train).accuracy
            best_weights = {k: v.detach().clone() for k, v in trained.state_dict().items()}
        if folder is not None:
            _save_epoch(folder, trained, record, is_best=is_best)
        if options.progress:
            _say(_epoch_line(record, recipe.epochs))
    assert best_weights is not None
    model.load_state_dict(best_weights)
    del best_weights
    model.eval()
    test = None
    if loaders.test is not None:
        test = _evaluate(model, loaders.test, options, views=recipe.views)
        _check_loss(test, "test")
    seconds = time.perf_counter() - started
    if folder is not None:
        images = sum(record.train.images for record in history)
        training_seconds = sum(record.train.seconds for record in history)
        result = {
            "test": test and test.to_dict(),
            "epochs": len(history),
            "seconds": seconds,
            "images_per_second": images / training_seconds,
            "versions": versions(),
        }
        _write_json(folder / "result.json", result)
    if options.progress and test is not None:
        _say(f"test: {test}; {_duration(seconds)} in all")
    return Run(tuple(history), test, model, folder)


def _epochs(
    recipe: Recipe, loaders: Loaders, model: AlexNet, options: RunOptions
) -> Iterator[tuple[EpochRecord, AlexNet]]:
    """Trains a model, yielding after each epoch its record and the model that it is about."""
    optimizer = recipe.build_optimizer(model)
    schedule = recipe.build_schedule(optimizer, recipe.epochs * len(loaders.train))
    plateau = recipe.build_plateau(optimizer)
    average = None
    if recipe.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    result: Any = model if average is None else average.module
    estimate = _Estimate(recipe, loaders) if options.progress else None
    # A module's compiled form is a module, whatever torch's annotation says.
    trained: nn.Module = torch.compile(model) if options.compile else model  # type: ignore[assignment]

    def after_step(totals: Totals) -> None:
        if average is not None:
            average.update_parameters(model)
        if estimate is not None:
            estimate(totals)

    for epoch in range(1, recipe.epochs + 1):
        loaders.train.set_epoch(epoch - 1)
        steps = train_steps(
            trained,
            loaders.train,
            optimizer,
            criterion=recipe.criterion,
            precision=options.precision,
            batch_scheduler=schedule,
            max_grad_norm=recipe.max_grad_norm,
        )
        try:
            metrics = run_steps(
                steps,
                loaders.train,
                f"epoch {epoch}/{recipe.epochs}",
                progress=options.progress,
                each=after_step,
            )
            _check_weights(model)
            validation = None
            if loaders.validation is not None:
                validation = _evaluate(result, loaders.validation, options)
                _check_loss(validation, "validation")
        except FloatingPointError as error:
            raise FloatingPointError(f"epoch {epoch}: {error}") from None
        record = EpochRecord(epoch, optimizer.param_groups[0]["lr"], metrics, validation)
        if plateau is not None and validation is not None:
            plateau.step(1 - validation.accuracy)
        yield record, result


def _evaluate(model: AlexNet, loader: Any, options: RunOptions, *, views: int = 1) -> EvalMetrics:
    # Without a terminal the epoch's line, which has these numbers, is enough.
    return evaluate(
        model,
        loader,
        precision=options.precision,
        views=views,
        progress=options.progress and sys.stderr.isatty(),
    )


def _check_weights(model: AlexNet) -> None:
    # The last step's loss is older than its weights.
    finite = torch.stack([weight.isfinite().all() for weight in model.parameters()])
    if not finite.all():
        raise FloatingPointError(
            "the last step made weights NaN or infinite: lower the learning rate, or clip with "
            "max_grad_norm"
        )


def _check_loss(metrics: EvalMetrics, part: str) -> None:
    if not math.isfinite(metrics.loss):
        raise FloatingPointError(
            f"the loss on the {part} images is not finite (NaN or infinite): lower the learning "
            "rate, or clip with max_grad_norm"
        )


def _save_epoch(folder: Path, model: AlexNet, record: EpochRecord, *, is_best: bool) -> None:
    metrics = record.to_dict()
    save_checkpoint(folder / "last.safetensors", model, metrics=metrics)
    if is_best:
        save_checkpoint(folder / "best.safetensors", model, metrics=metrics)
    with (folder / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")


class _Estimate:
    """Says once, after some steps, how long the run will take and what would shorten it."""

    def __init__(self, recipe: Recipe, loaders: Loaders) -> None:
        # All work is counted in images trained on.
        train, validation, test = (
            0 if part is None else len(part.dataset) * share
            for part, share in zip(loaders, (1, _FORWARD_SHARE, _FORWARD_SHARE), strict=True)
        )
        self._work = recipe.epochs * (train + validation) + test
        self._epoch_work = train + validation
        self._epochs = recipe.epochs
        self._steps = 0
        self._finished_epochs = 0
        self._start: tuple[float, float] | None = None

    def __call__(self, totals: Totals) -> None:
        self._steps += 1
        if totals.steps == 1 and self._steps > 1:
            self._finished_epochs += 1
        done = self._finished_epochs * self._epoch_work + totals.images
        if self._steps == _SETTLING_STEPS:
            self._start = time.perf_counter(), done
        if self._steps == _ESTIMATE_STEPS and self._start is not None:
            # One wait for the device, so that the time is that of finished steps.
            totals.metrics()
            since, done_before = self._start
            rate = (done - done_before) / (time.perf_counter() - since)
            left = (self._work - done) / rate
            _say(
                f"about {_duration(left)} to go for {self._epochs} epochs at {rate:.0f} images/s; "
                "shorter with fewer images (--train-images, or overrides={'train_images': ...}), "
                "smaller ones (--image-size, 'image_size') or fewer epochs (--epochs)"
            )


def _new_folder(folder: Path) -> Path:
    """The folder, made and tried out: a run should not fail at its first checkpoint."""
    if (folder / "recipe.json").exists():
        raise FileExistsError(f"out is {str(folder)!r}, which holds a run already; name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"out is {str(folder)!r}, which cannot be written: {reason}") from error
    return folder


def _check_disk(folder: Path, model: AlexNet) -> None:
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    # best, last, and the one that is being written.
    needed, free = 3 * weights, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"out is {str(folder)!r}, where {free / 1e6:,.0f} MB are free; the checkpoints need "
            f"{needed / 1e6:,.0f} MB"
        )


def _check_loaders(loaders: Loaders, recipe: Recipe) -> None:
    contradictions = recipe.contradictions(loaders)
    for name, (found, expected) in contradictions.items():
        overrides = {name: value for name, (value, _) in contradictions.items()}
        raise ValueError(
            f"data has {name} {found!r}, but the recipe has {expected!r}; build the loaders with "
            f"the recipe's build_loaders, or pass overrides={overrides}"
        )


def _check_model(model: AlexNet, recipe: Recipe, loaders: Loaders) -> None:
    if not isinstance(model, AlexNet):
        raise TypeError(f"model is a {type(model).__name__}; expected an AlexNet")
    for name, found, expected in (
        ("architecture", model.architecture.name, recipe.architecture),
        ("image_size", model.image_size, recipe.size_of_images()),
        ("dropout", model.dropout, recipe.dropout),
        ("dropout_scaling", model.dropout_scaling, recipe.dropout_scaling),
        ("num_classes", model.num_classes, len(loaders.classes)),
    ):
        if found != expected:
            source = "data" if name == "num_classes" else "recipe"
            raise ValueError(f"model has {name} {found!r}, but the {source} has {expected!r}")


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(new, file)


def versions() -> dict[str, str]:
    """Versions of what computes, for results and bug reports."""
    packages = ("alexnet-lib", "torch", "torchvision", "numpy", "pillow", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _headline(
    source: str, recipe: Recipe, loaders: Loaders, model: AlexNet, options: RunOptions
) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    counts = ", ".join(
        f"{len(part.dataset):,} {name}"
        for name, part in zip(("training", "validation", "test"), loaders, strict=True)
        if part is not None
    )
    size = loaders.image_size
    return (
        f"AlexNet ({recipe.architecture}, {parameters:,} parameters) on {source}: {counts} images "
        f"of {size}x{size} pixels, {len(loaders.classes)} classes; recipe {recipe.name}, "
        f"{recipe.epochs} epochs; {options.device}, {options.precision}"
    )


def _epoch_line(record: EpochRecord, epochs: int) -> str:
    line = f"epoch {record.epoch}/{epochs}: training {record.train}"
    if record.validation is not None:
        validation = record.validation
        line += f"; validation loss {validation.loss:.4f}, accuracy {validation.accuracy:.1%}"
    return f"{line}; {_duration(record.train.seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _say(line: str) -> None:
    # Through tqdm, so that a bar that is being shown moves down instead of being torn.
    tqdm.write(line, file=sys.stderr)
