"""fit: trains a network on data with a recipe, and writes its history and its files."""

import itertools
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alexnet_lib import interrupts
from alexnet_lib.checks import ABOVE_ZERO, AT_LEAST_ZERO, as_integer, check_number, type_name
from alexnet_lib.data.loaders import Loaders
from alexnet_lib.data.sources import Data
from alexnet_lib.devices import RunOptions, restored_generators, versions
from alexnet_lib.kernels import cpu
from alexnet_lib.network.model import AlexNet
from alexnet_lib.text import format_duration, format_table, html_table, printable, say
from alexnet_lib.training.distributed import Group, joined
from alexnet_lib.training.loggers import Logger, RunLog
from alexnet_lib.training.loop import Progress
from alexnet_lib.training.metrics import EpochRecord, EvalMetrics, stuck_note
from alexnet_lib.training.parallel import check_processes
from alexnet_lib.training.planning import (
    MEASURED_STEPS,
    SETTLING_STEPS,
    measure_speed,
    plan_run,
    planned_from,
    step_cost,
)
from alexnet_lib.training.preparation import open_data, prepare_loaders, prepare_model
from alexnet_lib.training.recipes import Recipe, resolve_recipe
from alexnet_lib.training.run_files import RunFiles
from alexnet_lib.training.state import TrainingRun

# Evaluating an image takes about this fraction of training on it (a backward pass costs as much as
# two forward ones).
_FORWARD_SHARE = 1 / 3
_running = threading.RLock()
# Less than this needs no line of its own.
_LONG_SECONDS = 60
# File names in the line about the images that could not be read.
_NAMES_SHOWN = 20


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """The result of ``fit``.

    ``history`` has a record for each epoch; ``test`` holds the metrics on the test images, or None
    where there are none; ``model`` has the weights of the best validation accuracy (of the last
    epoch where there is no validation part), its ``classes`` and ``preprocess``; ``folder`` is
    where the files are, or None.
    """

    history: tuple[EpochRecord, ...]
    test: EvalMetrics | None
    model: AlexNet
    folder: Path | None

    def __repr__(self) -> str:
        epochs = "1 epoch" if len(self.history) == 1 else f"{len(self.history)} epochs"
        test = "no test images" if self.test is None else f"test: {self.test}"
        folder = "" if self.folder is None else f", in {self.folder}"
        return f"Run({epochs}, {test}{folder})"

    def __str__(self) -> str:
        return "\n".join([repr(self), *format_table(self._rows(), right=range(8))])

    def _repr_html_(self) -> str:
        return html_table(self._rows(), repr(self))

    def _rows(self) -> list[tuple[str, ...]]:
        header = "epoch", "learning rate", "pixels"
        metrics = "training loss", "accuracy", "validation loss", "accuracy", "images/s"
        return [(*header, *metrics), *(record.cells() for record in self.history)]


def fit(
    data: Data | Loaders,
    *,
    recipe: str | Recipe = "modern",
    overrides: Mapping[str, Any] | None = None,
    classes: Iterable[str] | None = None,
    parts: Mapping[str, str] | None = None,
    model: AlexNet | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 300.0,
    max_minutes: float | None = None,
    loggers: Iterable[Logger] = (),
    options: RunOptions = RunOptions(),  # noqa: B008  (frozen)
) -> Run:
    """Trains a network, evaluates it on the test images once, and writes the results.

    With ``out``, the folder holds ``recipe.json`` (all that determines the run, and what is known
    of a given model or ``Loaders``), ``history.jsonl`` (a line for each epoch),
    ``best.safetensors`` (weights of the best validation accuracy), ``last.safetensors`` (weights
    after the last finished epoch) and, at the end, ``result.json``, which also names the image
    files that were skipped (``bad_images``). Until then, ``state.safetensors`` is all that a
    stopped run needs to go on (``resume``): it ends with the weights of an uninterrupted run, bit
    for bit, on the same machine with the same versions, number of threads and kernels.

    The processes of ``torchrun``, or of an initialised ``torch.distributed``, compute one run
    together: each calls ``fit`` with the same arguments, and gets the same result, that of one
    process but for rounding. The first one writes and prints. If one fails, all end.

    SIGINT (Ctrl-C, or the stop of a notebook's cell) ends the step, writes the state and raises
    ``KeyboardInterrupt``; a second one stops at once. The first one's error has the run so far as
    its ``run``: a ``Run`` without test metrics, with the best weights so far (before the first
    epoch's end, the latest); in a notebook it is ``sys.last_value.run``. Signals are handled in the
    main thread only, and only until ``fit`` ends.

    Args:
        data: ``"shapes"``; ``"cifar10"``, kept in the folder ``data`` and downloaded where it is
            missing; a folder with CIFAR-10 or with images; a data set of training images, or a pair
            of them, training and test images, as in ``build_loaders``. Or ``Loaders``, which are
            used as they are, whatever the recipe and the options say of images.
        recipe: a name among ``RECIPES``, or a ``Recipe``.
        overrides: fields of the recipe to change, by name, for example ``{"epochs": 3}``.
        classes: names of the classes of a data set; for folders and tables, which classes to use
            and in what order. None uses those of ``data``.
        parts: the names of the folders of the parts, for example ``{"train": "a", "test": "b"}``;
            ``{}``: there are none, every folder is a class. None knows the usual names.
        model: a network to start from, used as it is; the recipe's layers ``freeze`` are frozen
            from now on. None builds the recipe's.
        seed: for the weights, the split, the order, the augmentation and dropout, unless a given
            model or ``Loaders`` determine them. torch's global generators are not changed.
        out: a folder to write to, that holds no run yet; None writes nothing.
        resume: ``"auto"`` continues the run in ``out`` if there is one, and begins it otherwise; a
            folder continues the run in it. Data, recipe and seed must be those of that run;
            options that are ``"auto"`` are what it has computed with. None begins a run.
        checkpoint_every: seconds from one state to the next, at least 0. It is also written at the
            end of an epoch, unless that would take more than 2 % of the time.
        max_minutes: the run is planned to end well within so many minutes, above 0. Before the
            first step, its speed is measured; then it has as many of the recipe's ``epochs`` as
            there is time for, or one epoch of fewer ``train_images``. ``recipe.json`` has the
            recipe as planned, which repeats the run. A resumed run keeps its plan. A run that
            becomes slower is not cut. None, which several processes need: all epochs.
        loggers: what is told the recipe and the metrics while the run goes on, for example a
            ``TensorBoardLogger``; see ``Logger``. One that fails before the first step ends the
            run with its error; one that fails later is a warning and is called no more.
        options: device, precision and the like.

    Raises:
        TypeError: ``data``, ``model`` or one of ``loggers`` has another type.
        ValueError: an argument is out of its range, the model does not fit the data, or
            ``max_minutes`` are too few for this machine; the processes of a run have other
            arguments, data or versions, or do not see the same ``out``.
        FileExistsError: ``out`` holds a run already, or the run to be continued is finished.
        FileNotFoundError: ``resume`` holds no run.
        BlockingIOError: another run is writing to ``out``.
        OSError: ``out`` cannot be written, or the disk has too little space for the checkpoints.
        KeyboardInterrupt: SIGINT.
        RuntimeError: ``fit`` is running in another thread; another process of the run has failed:
            the message says which, and why.
        FloatingPointError: a loss or a weight became NaN or infinite; the message names the epoch
            (and the step of a training loss), and the files keep the last good weights.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from alexnet_lib import RunOptions, fit
        >>> data = TensorDataset(torch.rand(60, 3, 8, 8), torch.arange(60) % 2)
        >>> small = {"image_size": 67, "batch_size": 32, "epochs": 1}
        >>> run = fit((data, data), overrides=small, options=RunOptions(progress=False))
        >>> run.history[0].train.images, run.history[0].validation.images, run.test.images
        (54, 6, 60)
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        group = stack.enter_context(joined())  # first: an error is one of all processes
        recipe = resolve_recipe(recipe, overrides)
        seed = _checked_seed(seed)
        if not isinstance(options, RunOptions):
            raise TypeError(f"options is a {type_name(options)}; expected RunOptions")
        check_processes(options, group)
        checkpoint_every = check_number("checkpoint_every", checkpoint_every, AT_LEAST_ZERO)
        if max_minutes is not None:
            max_minutes = _checked_minutes(max_minutes, group)
        log = RunLog(loggers if group.is_first else ())
        if not _running.acquire(blocking=False):
            raise RuntimeError(
                "fit is running in another thread of this process; expected one at a time, since "
                "both would draw from torch's global generator: use processes"
            )
        stack.callback(_running.release)
        stack.enter_context(interrupts.handled())
        files = RunFiles(out, resume, every=checkpoint_every, writes=group.is_first)
        with group.unhurried(first_alone=True):
            stack.enter_context(files)
        group.check_seen(None if files.folder is None else files.folder.path)
        options = group.own(files.options(options)).resolved()
        device = torch.device(options.device)
        if device.type == "cpu":
            # Compiled now, so that all steps of all runs of a seed are computed by the same code.
            cpu.load()
        stack.enter_context(restored_generators(device))  # from which reading a data set may draw
        run, source = _prepare(
            data,
            files.recipe(recipe, max_minutes),
            classes=classes,
            parts=parts,
            model=model,
            seed=seed,
            options=options,
            files=files,
            max_minutes=max_minutes,
            started=started,
            group=group,
        )
        started -= files.begin(run, source=source, given=_describe(data, model))
        stack.enter_context(log).begin(run, _hyperparameters(run, source))
        if options.progress and files.folder is not None:
            say(_beginning(run, files))
        try:
            with group.stopping_together():
                _train(run, files, log, started)
                if (test := _test(run)) is not None:
                    log.test(run, test)
        except interrupts.Interrupted as interruption:
            if not run.finished:  # else the state is written already
                files.write_state()
            run.gather_weights()
            _restore_best(run)
            interruption.run = _as_result(run, files, None)
            if options.progress:
                say(_interruption(run, files))
            raise
        result = _result(run, test, time.perf_counter() - started)
        files.finish(result)
    if options.progress:
        _say_result(result, test)
    return _as_result(run, files, test)


def _say_result(result: Mapping[str, Any], test: EvalMetrics | None) -> None:
    if bad_images := result["bad_images"]:
        names = ", ".join(map(printable, itertools.islice(bad_images, _NAMES_SHOWN)))
        more = "" if len(bad_images) <= _NAMES_SHOWN else ", ..."
        say(f"{len(bad_images)} images could not be read and were skipped: {names}{more}")
    if test is not None:
        say(f"test: {test}; {format_duration(result['seconds'])} in all")


def _checked_seed(seed: object) -> int:
    number = as_integer(seed)
    if number is None or not 0 <= number < 2**63:
        raise ValueError(f"seed is {seed!r}; expected an integer from 0 to below 2**63")
    return number


def _checked_minutes(max_minutes: float, group: Group) -> float:
    max_minutes = check_number("max_minutes", max_minutes, ABOVE_ZERO)
    if group.size > 1:
        raise ValueError(
            f"max_minutes is {max_minutes:g}, but this is one of {group.size} processes, whose "
            "speed is not measured yet; expected None: set epochs or train_images"
        )
    return max_minutes


def _prepare(
    data: Data | Loaders,
    recipe: Recipe,
    *,
    classes: Iterable[str] | None,
    parts: Mapping[str, str] | None,
    model: AlexNet | None,
    seed: int,
    options: RunOptions,
    files: RunFiles,
    max_minutes: float | None,
    started: float,
    group: Group,
) -> tuple[TrainingRun, str]:
    """A run before its first step, planned if it is to be; and the name of its data."""
    with group.unhurried(first_alone=True):  # which may download the data
        opened = open_data(data, recipe, classes=classes, parts=parts, options=options)
    began = time.perf_counter()
    with group.unhurried():
        loaders = prepare_loaders(opened, recipe, seed=seed, options=options)
        network = prepare_model(loaders, recipe, model=model, seed=seed, options=options)
    preparing = time.perf_counter() - began
    source = os.fspath(data) if isinstance(data, str | os.PathLike) else type(data).__name__
    if options.progress:
        say(_headline(source, recipe, loaders, network, options))
    if max_minutes is not None and not files.holds_run:
        files.planned_from = planned_from(recipe, max_minutes)
        speed = measure_speed(
            recipe, loaders, network, seed=seed, options=options, max_minutes=max_minutes
        )
        plan = plan_run(
            recipe,
            opened,
            loaders,
            network,
            speed,
            files.writing(recipe, network),
            max_minutes=max_minutes,
            spent=time.perf_counter() - started,
            preparing=preparing,
        )
        if options.progress:
            say(plan.line)
        if plan.recipe.train_images != recipe.train_images:
            loaders = prepare_loaders(opened, plan.recipe, seed=seed, options=options)
            network = prepare_model(loaders, plan.recipe, model=model, seed=seed, options=options)
        recipe = plan.recipe
    own = group.shared(loaders)
    return TrainingRun(recipe, own, network, seed=seed, options=options, group=group), source


def _restore_best(run: TrainingRun) -> None:
    """Gives the model the best weights, if an epoch is finished."""
    if run.best_weights is not None:
        run.model.load_state_dict(run.best_weights)
    run.model.eval()


def _as_result(run: TrainingRun, files: RunFiles, test: EvalMetrics | None) -> Run:
    folder = None if files.folder is None else files.folder.path
    return Run(tuple(run.history), test, run.model, folder)


def _test(run: TrainingRun) -> EvalMetrics | None:
    """Evaluates the best weights on the test images, if there are any."""
    _restore_best(run)
    if run.loaders.test is None:
        return None
    return run.evaluate(run.model, "test", views=run.recipe.views)


def _result(run: TrainingRun, test: EvalMetrics | None, seconds: float) -> dict[str, Any]:
    """What ``result.json`` holds."""
    images = sum(record.train.images for record in run.history)
    bad = (loader.bad_images for loader in run.loaders if loader is not None)
    return {
        "test": test and test.to_dict(),
        "epochs": len(run.history),
        "stopped_early": run.stopped_early,
        "bad_images": dict(itertools.chain.from_iterable(files.items() for files in bad)),
        "seconds": seconds,
        "images_per_second": images / sum(record.train.seconds for record in run.history),
        "versions": versions(),
    }


def _hyperparameters(run: TrainingRun, source: str) -> dict[str, Any]:
    """What loggers are told before the first step."""
    options = {"device": run.options.device, "precision": run.options.precision}
    return {"data": source, "seed": run.seed, **options, **run.recipe.to_dict()}


def _beginning(run: TrainingRun, files: RunFiles) -> str:
    """Where the run is written, and from where it goes on."""
    assert files.folder is not None
    line = f"written to {files.folder.path}, at most {files.most_bytes / 1e6:,.0f} MB"
    if run.steps_done:
        line += f"; goes on after {run.steps_done:,} of {run.steps_in_all:,} steps"
    return line


def _interruption(run: TrainingRun, files: RunFiles) -> str:
    """What is done, and what is left of it."""
    line = f"stopped after {run.steps_done:,} of {run.steps_in_all:,} steps"
    if files.folder is None:
        return (
            f"{line}; nothing was written, since out is None: the run so far is error.run of the "
            "KeyboardInterrupt (in a notebook sys.last_value.run)"
        )
    kept = "the state" + " and the best weights so far" * (run.best_weights is not None)
    return f"{line}; {files.folder.path} has {kept} (in Python, resume=... goes on)"


def _train(run: TrainingRun, files: RunFiles, log: RunLog, started: float) -> None:
    """Trains for the remaining epochs, and writes each of them."""
    progress, plan = run.options.progress, files.planned_from
    ends = math.inf if plan is None else started + 60 * plan["max_minutes"]
    with Progress("epoch", run.steps_in_all, show=progress, done=run.steps_done) as shown:
        first, settled = run.steps_done, time.perf_counter()
        while not run.finished:
            shown.describe(f"epoch {run.epoch + 1}/{run.recipe.epochs}")
            try:
                while not run.epoch_read:
                    done = run.steps_done
                    run.take_step()
                    interrupts.check()
                    files.write_state_when_due()
                    if run.steps_done == done:
                        continue  # the last batches of the epoch have no images
                    shown.advance(run.totals, run.steps_done)
                    log.step(run)
                    steps = run.steps_done - first
                    if steps == SETTLING_STEPS:
                        settled = time.perf_counter()
                    elif steps == MEASURED_STEPS and progress:
                        run.totals.check()  # waits for the device, so that the steps are finished
                        seconds = (time.perf_counter() - settled) / (steps - SETTLING_STEPS)
                        if (line := _estimate(run, seconds)) is not None:
                            say(line)
                notes = [run.totals.skipped_note()]
                record = run.finish_epoch()
            except FloatingPointError as error:
                raise FloatingPointError(f"epoch {run.epoch + 1}: {error}") from None
            files.write_epoch()
            log.epoch(run, record)
            if progress:
                say(_epoch_line(record, run.recipe.epochs))
                notes.append(stuck_note(record, len(run.loaders.classes)))
                seconds = _seconds_left(
                    run, record.train.seconds / run.steps_in_epoch, record.image_size
                )
                late = time.perf_counter() + seconds - ends
                if late > 0 and not run.finished:
                    after = format_duration(late)
                    notes.append(f"slower than planned: it ends about {after} late, and is not cut")
                    ends = math.inf  # it is said once
                for note in filter(None, notes):
                    say(note)
            interrupts.check()
        if run.stopped_early and progress:
            say(
                f"stopped after epoch {run.epoch} of {run.recipe.epochs}: no better validation "
                f"accuracy since epoch {run.best_epoch}"
            )


def _seconds_left(run: TrainingRun, seconds_per_step: float, image_size: int) -> float:
    """How long the rest of the run will take, given the time of a step on images of a size."""
    per_step = run.loaders.train.batch_size * run.recipe.accumulation_steps
    validation, test = (
        0.0 if part is None else _FORWARD_SHARE * len(part.dataset) / per_step
        for part in run.loaders[1:]
    )
    # In steps on images of full size.
    left = run.image_sizes[run.epoch :]
    costs = [step_cost(run.model, size, run.loaders.image_size) for size in left]
    steps_left = sum(costs) * (run.steps_in_epoch + validation) + run.recipe.views * test
    steps_left -= sum(costs[:1]) * run.totals.steps
    return steps_left * seconds_per_step / step_cost(run.model, image_size, run.loaders.image_size)


def _estimate(run: TrainingRun, seconds_per_step: float) -> str | None:
    """How long the rest of the run will take, and what would shorten it; None if it is short."""
    seconds = _seconds_left(run, seconds_per_step, run.image_size)
    if seconds < _LONG_SECONDS:
        return None
    most = "at most" if run.recipe.early_stopping is not None else "about"
    per_step = run.loaders.train.batch_size * run.recipe.accumulation_steps
    return (
        f"{most} {format_duration(seconds)} to go at {per_step / seconds_per_step:.0f} images/s; "
        "shorter with fewer images (--train-images, or overrides={'train_images': ...}), smaller "
        "ones (--image-size, 'image_size') or fewer epochs (--epochs, 'epochs')"
    )


def _describe(data: Data | Loaders, model: AlexNet | None) -> dict[str, Any]:
    """What is known of a given model or ``Loaders``, which the recipe does not determine."""
    given: dict[str, Any] = {}
    if isinstance(data, Loaders):
        given["loaders"] = {
            name: loader
            and {
                "images": len(loader.dataset),
                "batch_size": loader.batch_size,
                "preprocess": loader.preprocess.to_dict(),
                "augmentation": [*map(repr, loader.augmentation)],
                "shuffle": loader.shuffle,
                "drop_last": loader.drop_last,
                "balanced": loader.balanced,
                "seed": loader.seed,
            }
            for name, loader in data._asdict().items()
        }
    if isinstance(model, AlexNet):
        fields = ("image_size", "in_channels", "dropout", "dropout_scaling")
        given["model"] = {name: getattr(model, name) for name in fields}
        given["model"]["architecture"] = model.architecture.name
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        given["model"]["frozen"] = frozen
    return given


def _headline(
    source: str, recipe: Recipe, loaders: Loaders, model: AlexNet, options: RunOptions
) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    counts = ", ".join(
        f"{len(loader.dataset):,} {'training' if name == 'train' else name}"
        for name, loader in loaders._asdict().items()
        if loader is not None
    )
    size = loaders.image_size
    first = recipe.image_sizes(size)[0]
    growth = f", growing from {first}x{first}" * (first < size)
    return (
        f"AlexNet ({model.architecture.name}, {parameters:,} parameters); recipe {recipe.name}, "
        f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}; {options.device}, "
        f"{options.precision}\n{source}: {counts} images of {size}x{size}{growth}, "
        f"{len(loaders.classes)} classes"
    )


def _epoch_line(record: EpochRecord, epochs: int) -> str:
    """The metrics of an epoch, training first, in at most 80 columns."""
    train, validation = record.train, record.validation
    line = f"epoch {record.epoch}/{epochs}: loss {train.loss:.4f}"
    if train.accuracy is not None:
        line += f", accuracy {train.accuracy:.1%}"
    if validation is not None:
        line += f"; validation {validation.loss:.4f}, {validation.accuracy:.1%}"
    return f"{line}; {format_duration(train.seconds)}"
