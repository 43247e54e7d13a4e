"""What a run writes to its folder, and what it reads there to go on after it was stopped."""

import copy
import functools
import hashlib
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from alexnet_lib.checks import ABOVE_ZERO, check_number
from alexnet_lib.data.images import (
    ImageFiles,
    ImageSet,
    ImageShards,
    ImageTensors,
    WrappedDataset,
)
from alexnet_lib.data.loaders import Loaders
from alexnet_lib.data.paths import Paths
from alexnet_lib.devices import RunOptions, versions
from alexnet_lib.files import (
    RunFolder,
    as_path,
    read_tensors,
    scratch,
    write_json,
    write_json_lines,
    write_tensors,
)
from alexnet_lib.kernels import cpu
from alexnet_lib.network.checkpoints import check_can_be_saved, save_checkpoint
from alexnet_lib.network.model import AlexNet
from alexnet_lib.training.metrics import nonfinite_weight
from alexnet_lib.training.planning import Writing, stored_plan
from alexnet_lib.training.recipes import Recipe, read_description
from alexnet_lib.training.state import TrainingRun

# At the end of an epoch the state is written unless that would take more than this share of the
# time: an epoch may take seconds, and so may writing the state of a large network.
_WRITING_SHARE = 0.02

# With others, a continued run has other rounding errors than an uninterrupted one.
_ARITHMETIC = ("device", "precision", "memory_format", "compile")
_MACHINE = ("processor", "onednn", "float32_products", "threads", "kernels")


class RunFiles:
    """The files of a run in progress; without a folder, nothing is written.

    As a context, it holds the folder's lock. ``begin`` comes first, then ``write_epoch`` after each
    epoch and ``write_state_when_due`` after each step, then ``finish`` or, if the run is
    interrupted, ``write_state``.

    Args:
        out: as in ``fit``, with its errors.
        resume: as in ``fit``.
        every: seconds from one state to the next.
        writes: whether this process writes; of several that compute the run, only one does. The
            others read what they need to go on.

    Attributes:
        planned_from: what the run was planned from (``planning.planned_from``), or None. It is that
            of the stored run, or set before ``begin``.
    """

    def __init__(self, out: Any, resume: Any, *, every: float, writes: bool = True) -> None:
        self.folder = _folder(out, resume)
        self._resume, self._every, self._writes = resume is not None, every, writes
        self._stored: dict[str, Any] | None = None
        self.planned_from: dict[str, Any] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "RunFiles":
        if self.folder is not None:
            with ExitStack() as stack:
                if self._writes:
                    stack.enter_context(self.folder)
                if self._resume and self.folder.holds_run:
                    self._stored = _unfinished(self.folder)
                    self.planned_from = self._stored.get("planned_from")
                self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def options(self, options: RunOptions) -> RunOptions:
        """The options, with what a stored run has computed with in place of ``"auto"``."""
        if self._stored is None:
            return options
        former = self._stored["options"]
        automatic = (name for name in _ARITHMETIC if getattr(options, name) == "auto")
        return replace(options, **{name: former[name] for name in automatic if name in former})

    @property
    def holds_run(self) -> bool:
        """Whether there is a run to be continued."""
        return self._stored is not None

    def recipe(self, recipe: Recipe, max_minutes: float | None) -> Recipe:
        """The recipe; where a stored run has planned what there is time for, that.

        If it did so for other minutes, a warning says that its plan stays.
        """
        if self.folder is None or self._stored is None or max_minutes is None:
            return recipe
        former = (self.planned_from or {}).get("max_minutes")
        if former != max_minutes:
            plan = "begun without it" if former is None else f"planned for {former:g} minutes"
            warnings.warn(
                f"max_minutes is {max_minutes:g}, but the run in {str(self.folder.path)!r} was "
                f"{plan}; its epochs and images stay as they are",
                stacklevel=3,
            )
        return stored_plan(recipe, self._stored)

    def writing(self, recipe: Recipe, model: AlexNet) -> Writing:
        """How long writing takes, measured with a file of weights that is removed again."""
        if self.folder is None:
            return Writing()
        self._check_can_write(recipe, model)
        with scratch(self.folder.last) as folder:
            began = time.perf_counter()
            save_checkpoint(folder / self.folder.last.name, model)
            seconds = time.perf_counter() - began
        return Writing(seconds, seconds * _weights_in_state(recipe), self._every)

    def _check_can_write(self, recipe: Recipe, model: AlexNet) -> None:
        assert self.folder is not None
        check_can_be_saved(model)  # now, not after an epoch
        files = self.folder.state.parent.glob("*.safetensors")
        there = sum(file.stat().st_size for file in files)
        self.folder.check_space(max(0, _most_bytes(recipe, model) - there))

    def begin(self, run: TrainingRun, *, source: str, given: Mapping[str, Any]) -> float:
        """Sets the run to the stored state, if there is one; the seconds that it has taken."""
        self._run, self._began = run, time.perf_counter()
        self._written, self._cost = self._began, 0.0
        folder = self.folder
        if folder is None and run.group.size == 1:
            return 0.0
        own = _description(run, source, given) | {"planned_from": self.planned_from}
        run.group.check_same(_of_all_processes(own))
        seconds = 0.0
        if folder is not None and self._writes:
            seconds = self._begin(folder, own)
        elif folder is not None and self._stored is not None and folder.state.exists():
            seconds = _read_state(folder, run)
            self._began -= seconds
        run.group.check_same({"the state of a run after so many steps:": run.steps_done})
        return seconds

    def _begin(self, folder: RunFolder, own: dict[str, Any]) -> float:
        run = self._run
        if self._stored is not None:
            _check_same_run(folder, self._stored, own)
        self._check_can_write(run.recipe, run.model)
        if self._stored is None or not folder.state.exists():
            if left := [f.name for f in (folder.history, folder.best, folder.last) if f.exists()]:
                raise FileNotFoundError(
                    f"the run in {str(folder.path)!r} cannot be continued: it has "
                    f"{', '.join(left)}, but no {folder.state.name}; choose another folder"
                )
            write_json(folder.recipe, own)
            return 0.0
        seconds = _read_state(folder, run)
        self._began -= seconds
        self._restore()
        return seconds

    @property
    def most_bytes(self) -> int:
        """What the files take at most: two states while one is written, best and last weights."""
        return _most_bytes(self._run.recipe, self._run.model)

    def write_state_when_due(self, *, epoch_ended: bool = False) -> None:
        """Writes the state if it is time."""
        waited = time.perf_counter() - self._written
        cheap = waited * _WRITING_SHARE >= self._cost
        due = waited >= self._every or (epoch_ended and (cheap or self._run.finished))
        if self._run.split and self.folder is not None:
            due = self._run.group.first(lambda: due)  # all take part
        if due:
            self.write_state()

    def write_state(self) -> None:
        """Writes all that the run needs to go on."""
        if self.folder is None:
            return
        if not self._writes:
            if self._run.split:
                self._run.state()  # gives the first process its part
            return
        self.folder.check()
        begins = time.perf_counter()
        self._run.totals.check()  # raises if a step was not finite
        data, tensors = self._run.state()
        if weight := nonfinite_weight(self._run.model):  # the update may have overflowed
            raise FloatingPointError(
                f"{weight}: lower the learning rate, or clip with max_grad_norm"
            )
        text = json.dumps({"run": data, "seconds": begins - self._began})
        write_tensors(self.folder.state, tensors, {"format": "pt", "state": text})
        self._written = time.perf_counter()
        self._cost = self._written - begins
        self._run.totals.leave_out(self._cost)

    def write_epoch(self) -> None:
        """Writes the weights of the epoch that has ended, and the history; first the state."""
        self.write_state_when_due(epoch_ended=True)
        if self.folder is not None and self._writes:
            self._write_weights()
            self._write_history()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result; the state is not needed any more."""
        if self.folder is not None and self._writes:
            self.folder.check()
            write_json(self.folder.result, result)
            self.folder.state.unlink(missing_ok=True)

    def _write_weights(self) -> None:
        run, folder = self._run, self.folder
        assert folder is not None
        folder.check()
        metrics = run.history[-1].to_dict()
        save_checkpoint(folder.last, run.result, metrics=metrics)
        if run.best_epoch == run.epoch:
            save_checkpoint(folder.best, run.result, metrics=metrics)

    def _write_history(self) -> None:
        assert self.folder is not None
        write_json_lines(self.folder.history, (r.to_dict() for r in self._run.history))

    def _restore(self) -> None:
        """Writes what a run in this state has written: it was stopped on the way, or later."""
        run, folder = self._run, self.folder
        if not run.history or folder is None:
            return
        if not run.batches_read:
            self._write_weights()
        assert run.best_weights is not None
        best = copy.deepcopy(run.result)
        best.load_state_dict(run.best_weights)
        save_checkpoint(folder.best, best, metrics=run.history[run.best_epoch - 1].to_dict())
        self._write_history()


def _most_bytes(recipe: Recipe, model: AlexNet) -> int:
    weights: int = sum(tensor.nbytes for tensor in model.state_dict().values())
    return weights * (2 * _weights_in_state(recipe) + 2)


def _weights_in_state(recipe: Recipe) -> int:
    """A state has the weights, the best ones, their average, and what the optimiser keeps."""
    return 2 + (recipe.ema_decay is not None) + (recipe.momentum > 0)


def _folder(out: Any, resume: Any) -> RunFolder | None:
    """The folder of the run that is to be begun or continued."""
    if resume is None:
        return None if out is None else RunFolder(out)
    if isinstance(resume, str) and resume == "auto":
        if out is None:
            raise ValueError("resume is 'auto', but out is None; expected the folder of the run")
        return RunFolder(out, resume=True)
    path = as_path(resume, "resume")
    if out is not None and as_path(out, "out").absolute() != path.absolute():
        raise ValueError(
            f"resume is {str(path)!r}, but out is {str(out)!r}; expected the same folder, or "
            "out=None"
        )
    if not (path / "recipe.json").is_file():
        raise FileNotFoundError(
            f"resume is {str(path)!r}, which holds no run; expected the folder of one, or 'auto' "
            "to begin a run where there is none"
        )
    return RunFolder(path, resume=True)


def _unfinished(folder: RunFolder) -> dict[str, Any]:
    """The description of the run in a folder, which is to be continued."""
    if folder.result.exists():
        folder.state.unlink(missing_ok=True)  # it may have been killed before that
        raise FileExistsError(
            f"the run in {str(folder.path)!r} is finished; its weights are in {folder.best}, and a "
            "new run can begin with them: fit(..., model=load_checkpoint(...))"
        )
    if not folder.recipe.exists():
        raise FileExistsError(
            f"out is {str(folder.path)!r}, which holds files of a run, but no recipe.json, and "
            "cannot be continued; choose another folder"
        )
    try:
        stored = read_description(folder.recipe)
        if not all(isinstance(stored[name], dict) for name in ("recipe", "options", "versions")):
            raise ValueError("it describes no run")
        if (former := stored.get("planned_from")) is not None:
            check_number("max_minutes", former["max_minutes"], ABOVE_ZERO)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder.recipe} is damaged: {error!r}") from error
    return dict(stored)


def _description(run: TrainingRun, source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All that determines a run, as JSON has it."""
    description = {
        "recipe": run.recipe.to_dict(),
        "data": source,
        "data_sha256": _digest(run.loaders),
        "classes": run.loaders.classes,
        "given": given,
        "seed": run.seed,
        "options": asdict(run.options),
        "processor": f"{torch.cpu.get_capabilities().get('cpu_name', platform.processor())}, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "onednn": torch.backends.mkldnn.enabled,
        "float32_products": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "processes": run.group.size,
        "kernels": run.options.device == "cpu" and cpu.load() is not None,
        "versions": versions(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(description))
    return plain


def _of_all_processes(description: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same in all processes of a run: paths, devices and processors may differ."""
    own = {"device", "num_workers", "progress"}
    return {
        **{name: description[name] for name in ("recipe", "seed", "classes", "given")},
        "data with the SHA-256": description["data_sha256"],
        "options": {k: v for k, v in description["options"].items() if k not in own},
    }


def _check_same_run(folder: RunFolder, stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises a ``ValueError`` if it is another run; warns if it computes in another way."""
    where = f"the run in {str(folder.path)!r}"
    for field, value in own["recipe"].items():
        if (former := stored["recipe"].get(field)) != value:
            raise ValueError(
                f"the recipe's {field} is {value!r}, but that of {where} is {former!r}; expected "
                "the same, or another folder for a new run"
            )
    for name, what in (
        ("seed", "seed"),
        ("classes", "the classes of data"),
        ("data_sha256", "the SHA-256 of the images and labels of data"),
        ("given", "what was given as model or Loaders"),
    ):
        if (former := stored.get(name)) != own[name]:
            raise ValueError(
                f"{what} is {own[name]}, but that of {where} is {former}; expected the same, or "
                "another folder for a new run"
            )
    pairs = [(name, stored["options"].get(name), own["options"][name]) for name in _ARITHMETIC]
    pairs += [(name, stored.get(name), own[name]) for name in _MACHINE]
    pairs += [("processes", stored.get("processes", 1), own["processes"])]  # once there was one
    for name, once in (("parallel", "data"), ("reduce_dtype", "same")):  # once all were so
        pairs += [(name, stored["options"].get(name, once), own["options"][name])]
    former = stored["versions"]
    pairs += [(name, former.get(name), number) for name, number in own["versions"].items()]
    if others := [f"{name} {now} instead of {was}" for name, was, now in pairs if now != was]:
        warnings.warn(
            f"{where} is continued with {', '.join(others)}; its weights will differ from those of "
            "an uninterrupted run, at first by rounding errors",
            stacklevel=4,
        )


def _read_state(folder: RunFolder, run: TrainingRun) -> float:
    """Sets a run to the state that was written; the seconds that it had taken."""
    tensors, metadata = read_tensors(folder.state)
    try:
        stored = json.loads(metadata["state"])
        run.set_state(stored["run"], tensors)
        seconds = float(stored["seconds"])
        if not math.isfinite(seconds):
            raise ValueError(f"seconds is {seconds}")
        return seconds
    # torch's are RuntimeErrors, of other shapes
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder.state} is not the state of this run: {error!r}") from error


def _digest(loaders: Loaders) -> str:
    """A SHA-256 of images and labels.

    Of image files and images in shards it has the names and sizes, and of data sets of users that
    read their items from elsewhere the labels alone: reading everything would take as long as an
    epoch.
    """
    digest = hashlib.sha256()
    for name, loader in loaders._asdict().items():
        digest.update(name.encode())
        if loader is not None:
            for part in _bytes_of(loader.dataset):
                digest.update(part)
    return digest.hexdigest()


def _bytes_of(data: Any) -> Iterator[Any]:
    if isinstance(data, ImageSet):
        yield from _raw(data.labels)
    if isinstance(data, ImageTensors):
        yield from _raw(data.images)
    elif isinstance(data, ImageFiles | ImageShards):
        paths = data.files if isinstance(data, ImageFiles) else data.members
        assert isinstance(paths, Paths)  # as which files are stored
        last_name = functools.cache(lambda folder: Path(folder).name)
        for index in range(len(paths)):
            folder, name = paths.pair(index)
            if isinstance(data, ImageFiles):
                size = os.stat(os.path.join(folder, name)).st_size
            else:
                size = int(data.sizes[index])
            yield os.fsencode(os.path.join(last_name(folder), name)) + f"\0{size}\0".encode()
    elif isinstance(data, WrappedDataset):
        yield from _raw(data.indices)
        yield from _bytes_of(data.dataset)
    elif isinstance(data, TensorDataset):
        for tensor in data.tensors:
            yield from _raw(tensor)
    else:
        try:
            pixels = data.data  # of torchvision's sets; of others it may be anything
        except Exception:
            return
        if isinstance(pixels, np.ndarray | Tensor) and not isinstance(pixels, np.memmap):
            yield from _raw(pixels)


def _raw(values: np.ndarray | Tensor) -> Iterator[Any]:
    """The bytes of an array or tensor of numbers; nothing of another one."""
    if isinstance(values, Tensor):
        if values.layout is not torch.strided or values.is_meta or values.is_quantized:
            return
        values = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if values.dtype.kind in "buif":
        yield np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
