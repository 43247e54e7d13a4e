"""Several processes of torch.distributed on this machine, and what they train in tests."""

import json
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import begin
from tiny import QUIET, TINY, tiny_recipe, use_tiny, weights_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from alexnet_lib import (
    AlexNet,
    build_loaders,
    evaluate,
    fit,
    prepare_loaders,
    prepare_model,
    train_one_epoch,
)
from alexnet_lib.devices import RunOptions, versions
from alexnet_lib.training import distributed
from alexnet_lib.training.distributed import Group, joined
from alexnet_lib.training.state import TrainingRun

STEPS = 20
# What a step depends on as a whole. The 54 training images are batches of 16, 16, 16 and 6, or of 7
# and 5 at the end, or of 53 and 1.
RECIPES = MappingProxyType(
    {
        "plain": {"dropout": 0.0},
        "unequal": {"dropout": 0.0, "batch_size": 7},
        "one image": {"dropout": 0.5, "batch_size": 53, "accumulation_steps": 2},
        "dropout": {"dropout": 0.5, "dropout_scaling": "test", "balance": "sampler"},
        "clipped": {"dropout": 0.5, "max_grad_norm": 0.5, "ema_decay": 0.7},
        "muon": {"optimizer": "muon", "random_crop": True, "resize_ratio": 1.5},
        "accumulating": {
            "dropout": 0.5,
            "batch_size": 5,
            "accumulation_steps": 3,
            "random_shift": 0.2,
        },
    }
)


def in_processes(size: int, target: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What a function returns in each of several processes of a group, or the text of its error.

    It is called with the rank and the arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running = [begin(member, rank, size, target, folder, arguments) for rank in range(size)]
    for process in running:  # one may have been stopped, but not the first
        process.join(600 if process is running[0] else 60)
        if process.exitcode is None:
            process.kill()
    files = [folder / f"{rank}.json" for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def member(
    rank: int, size: int, target: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]
) -> None:
    """One of the processes; what the function returns is in a file."""
    torch.set_num_threads(1)
    os.chdir(folder)
    store = f"file://{folder.absolute() / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        try:
            result = target(rank, *arguments)
        except BaseException as error:
            if os.environ.get("SHOW"):
                traceback.print_exc()
            result = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.json").write_text(json.dumps(result))


def exact_run(group: Group, options: RunOptions = QUIET, **changes: Any) -> TrainingRun:
    """A run in float64."""
    recipe = tiny_recipe(epochs=STEPS, **changes)
    loaders = prepare_loaders("shapes", recipe, seed=3, options=QUIET)
    model = prepare_model(loaders, recipe, seed=3 + group.rank, options=QUIET)
    loaders = group.shared(loaders.to("cpu", torch.float64))
    return TrainingRun(recipe, loaders, model.double(), seed=3, options=options, group=group)


def steps_of(run: TrainingRun) -> dict[str, Any]:
    """Losses and whole gradients of each step, the metrics of each epoch, and this process's size.

    The size is that of its parameters, of which it may have a part.
    """
    losses, gradients, epochs = [], [], []
    former = 0.0, 0
    for _ in range(STEPS):
        if run.epoch_read:
            epochs.append(run.finish_epoch().to_dict())
            former = 0.0, 0
        run.take_step()
        loss, images = float(run.totals.loss), run.totals.images
        losses.append((loss - former[0]) / (images - former[1]))
        former = loss, images
        whole = []
        for name, parameter in run._network.named_parameters():
            if (grad := parameter.grad) is not None:
                rows = run.split._rows_of(name)
                whole.append(run.split._gathered(rows, grad) if rows else grad)
        gradients.append(torch.cat([grad.flatten() for grad in whole]).tolist())
    for epoch in epochs:
        epoch["train"].pop("images_per_second")
    size = sum(p.numel() for p in run._network.parameters())
    return {"losses": losses, "gradients": gradients, "epochs": epochs, "size": size}


def train_exactly(rank: int, size: int) -> dict[str, Any]:
    """The steps of each of the recipes, in one of several processes, or alone."""
    with joined() as group:
        assert (group.rank, group.size) == (rank, size)
        results = {name: steps_of(exact_run(group, **changes)) for name, changes in RECIPES.items()}
        options = replace(QUIET, reduce_dtype="bfloat16")
        return {**results, "rounded": steps_of(exact_run(group, options, **RECIPES["plain"]))}


def approximate(value: Any, error: float = 1e-9) -> Any:
    """What is equal to plain data of the same texts and integers, and of nearly these numbers."""
    if isinstance(value, dict):
        return {name: approximate(item, error) for name, item in value.items()}
    if isinstance(value, list):
        return [approximate(item, error) for item in value]
    return pytest.approx(value, rel=error, abs=error) if isinstance(value, float) else value


def assert_same_steps(own: dict[str, Any], other: dict[str, Any]) -> None:
    """The steps of a process are those of another one: losses, gradients and metrics."""
    for name, error in (("losses", 1e-9), ("gradients", 1e-10)):
        found, expected = torch.tensor(own[name]), torch.tensor(other[name])
        torch.testing.assert_close(found, expected, rtol=0, atol=error)
    assert own["epochs"] == approximate(other["epochs"])


def raised(function: Callable[[], Any]) -> str:
    """The text of the error that a call raises."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def joined_again(rank: int, port: int) -> list[float]:
    """Joins the other process twice, as ``fit`` of a program of torchrun does; one is late."""
    own = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    sums = []
    for number in range(2):
        with joined() as group:
            total = torch.tensor([float(number + rank)])
            group.sum_(total)
            sums.append(total.item())
        if rank == 0:
            time.sleep(2)
    return sums


def patiently(rank: int) -> dict[str, Any]:
    """What happens where a process takes longer, or dies, than others would wait elsewhere."""
    results: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "WAIT_SECONDS", 2.0)
        patch.setattr(distributed, "_LIFE_SECONDS", 0.2)
        with joined() as group:
            began = time.monotonic()
            with group.unhurried(first_alone=True):
                results["entered"] = time.monotonic() - began
                time.sleep(0 if rank else 5)
            results["left"] = time.monotonic() - began

        def fails() -> None:
            with joined() as group, group.unhurried():
                if rank:
                    raise OSError("no such data")

        results["error"] = raised(fails)

        patch.setattr(distributed, "_LIFE_SECONDS", 60.0)  # longer than others wait

        def hangs() -> None:
            with joined() as group, group.unhurried(first_alone=True):
                time.sleep(0 if rank else 6)

        results["hangs"] = raised(hangs)
    return results


def own_loop(rank: int, size: int) -> dict[str, Any]:
    """What the parts of the library do in a program that has joined its processes itself."""
    results: dict[str, Any] = {}
    whole = build_loaders("shapes", image_size=12, resize=14, batch_size=6, seed=1)
    loaders = whole.share(rank, size).to("cpu", torch.float64)

    def network() -> AlexNet:
        return AlexNet(10, architecture=TINY, seed=rank).double()

    def trained(model: nn.Module, batches: Any) -> dict[str, Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(7)
        loaders.train.set_epoch(0)
        metrics = train_one_epoch(model, batches, optimizer, max_grad_norm=1.0, progress=False)
        return {
            "loss": metrics.loss,
            "accuracy": metrics.accuracy,
            "images": metrics.images,
            "weights": weights_of(model).tolist(),
        }

    results["trained"] = trained(network(), loaders.train)
    model = AlexNet(10, architecture=TINY, seed=5).double()
    for views in (1, 2, 10):
        metrics = evaluate(model, loaders.test, views=views, progress=False)
        results[f"evaluated in {views} views"] = metrics.to_dict()
        results[f"evaluated in {views} views"].pop("seconds")
    # A model without weights that are finite, in which one process alone has a bad image.
    broken = replace(loaders.test, dataset=replace(loaders.test.dataset, images=_with_nan()))
    results["bad"] = raised(lambda: evaluate(model, broken, progress=False))
    if size == 1:
        return results
    results["not shared"] = raised(lambda: next(iter(whole.train)))
    results["another share"] = raised(lambda: evaluate(model, whole.share(0, 3).test))
    results["with DDP"] = trained(DistributedDataParallel(network()), loaders.train)
    batches = [(torch.rand(4, 3, 12, 12).double(), torch.arange(4))]
    results["own batches"] = raised(lambda: trained(network(), batches))
    results["own batches with DDP"] = trained(DistributedDataParallel(network()), batches)
    normalised = nn.Sequential(nn.BatchNorm2d(3), network()).double()
    results["normalised"] = raised(lambda: trained(normalised, loaders.train))
    if rank == 0:  # while the others do something else
        alone = evaluate(model, whole.share(0, 1).to("cpu", torch.float64).test, progress=False)
        results["alone"] = alone.to_dict()
        results["alone"].pop("seconds")
    return results


def _with_nan() -> torch.Tensor:
    images = torch.rand(20, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    images[17] = torch.nan
    return images


# What whole runs train on how.
FITS = MappingProxyType(
    {
        "all": {
            "epochs": 2,
            "dropout": 0.5,
            "balance": "loss",
            "random_shift": 0.2,
            "ema_decay": 0.7,
            "schedule": "plateau",
            "validation_fraction": 0.2,
        },
        "photos": {"epochs": 2, "batch_size": 2, "image_size": 12, "dropout": 0.5},
    }
)
SKIPPING = replace(QUIET, on_bad_image="skip", bad_image_limit=0.5)


def whole_runs(rank: int, photos: Path) -> dict[str, Any]:
    """What ``fit`` returns for each of these runs, in one of several processes or alone."""
    warnings.simplefilter("ignore")
    results = {}
    for name, changes in FITS.items():
        run = fit(
            photos if name == "photos" else "shapes",
            recipe=tiny_recipe(**changes),
            seed=3,
            out=name,
            options=SKIPPING,
        )
        history = [record.to_dict() for record in run.history]
        for record in history:
            record["train"].pop("images_per_second")
        assert run.test is not None
        results[name] = {
            "history": history,
            "test": run.test.to_dict() | {"seconds": 0},
            "weights": weights_of(run.model).tolist(),
            "folder": str(run.folder),
        }
    return results


def stopped_run(rank: int, step: int) -> str:
    """The error of a run in a folder ``run`` that is interrupted by a signal to process 1."""

    def take_step(run: TrainingRun) -> None:
        if rank == 1 and run.steps_done == step:
            os.kill(os.getpid(), signal.SIGINT)
        real(run)

    real = TrainingRun.take_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "take_step", take_step)
        try:
            fit("shapes", recipe=tiny_recipe(**FITS["all"]), seed=3, out="run", options=QUIET)
        except KeyboardInterrupt as stop:
            run = stop.run  # type: ignore[attr-defined]
            return f"{stop}, {len(run.history)} epochs in {run.folder}"
    return "not stopped"


def resumed_run(rank: int) -> None:
    """Goes on with the run in a folder ``run``."""
    warnings.simplefilter("ignore")  # it says that the number of processes is another
    recipe = tiny_recipe(**FITS["all"])
    fit("shapes", recipe=recipe, seed=3, resume="run", options=QUIET)


def failures(rank: int, cases: list[str]) -> dict[str, Any]:
    """For each case, the error of ``fit``, what the command line says of it, and the seconds."""
    results = {}
    for case in cases:
        began = time.monotonic()
        error = _failure(rank, case)
        seconds = time.monotonic() - began
        text = f"{type(error).__name__}: {error}"
        results[case] = {"error": text, "told": getattr(error, "told", None), "seconds": seconds}
        Path(f"{rank}.json").write_text(json.dumps(results))
    return results


def _failure(rank: int, case: str) -> BaseException | None:
    data: Any = "shapes"
    pixels = torch.Generator().manual_seed(rank)
    if case == "data":
        data = TensorDataset(torch.rand(60, 3, 12, 12, generator=pixels), torch.arange(60) % 10)
    out: str | None = None
    recipe = tiny_recipe(epochs=2, learning_rate=0.1 + (case == "recipe") * rank)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            if case == "version":
                patch.setattr(distributed, "versions", lambda: {**versions(), "torch": "1.0"})
            elif case == "folder":
                Path("elsewhere").mkdir()
                patch.chdir("elsewhere")
            elif case in {"exception", "kill", "stop"}:
                patch.setattr(TrainingRun, "take_step", _failing(TrainingRun.take_step, case))
        if case == "all":
            recipe = "unknown"  # type: ignore[assignment]
        elif case == "folder":
            out = "seen"
        elif case == "first":
            out = "used"
            if rank == 0:
                Path(out).mkdir()
                Path(out, "recipe.json").touch()
        elif case == "stop":
            patch.setattr(distributed, "WAIT_SECONDS", 30.0)
        try:
            fit(data, recipe=recipe, out=out, options=QUIET)
        except Exception as error:
            return error
    return None


def _failing(real: Callable[[TrainingRun], None], case: str) -> Callable[[TrainingRun], None]:
    def take_step(run: TrainingRun) -> None:
        if run.steps_done == 2:
            if case == "exception":
                raise OSError("the disk is gone")
            os.kill(os.getpid(), signal.SIGKILL if case == "kill" else signal.SIGSTOP)
        real(run)

    return take_step
