"""The promises of `fit`: what it computes, what it writes, and what it leaves alone."""

import itertools
import json
import os
import re
import signal
from collections import Counter, namedtuple
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from helpers import network_tolerance, random_pixels, repeated, tolerance, write_class_folders
from PIL import Image
from tiny import QUIET, SMALL, TINY, Noisy, quiet, tiny_recipe, weights_of
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from alexnet_lib import AlexNet, evaluate, load_checkpoint, prepare_loaders, prepare_model
from alexnet_lib.data import decoding
from alexnet_lib.data import images as images_module
from alexnet_lib.data import preprocess as preprocess_module
from alexnet_lib.data.augmentation import RandomShift
from alexnet_lib.data.loaders import BatchLoader, Loaders
from alexnet_lib.data.shapes import SHAPES_CLASSES
from alexnet_lib.devices import RunOptions, versions
from alexnet_lib.interrupts import Interrupted
from alexnet_lib.kernels import cpu
from alexnet_lib.training import fit as fit_module
from alexnet_lib.training import loop, run_files, state
from alexnet_lib.training.fit import Run, fit
from alexnet_lib.training.optimization import build_optimizer, build_schedule
from alexnet_lib.training.recipes import RECIPES, Recipe, stored_recipe
from alexnet_lib.training.state import TrainingRun
from alexnet_lib.training.step import TrainingStep

SPEAKING = replace(QUIET, progress=True)


def quick_fit(data="shapes", *, overrides=None, epochs: int | None = None, **arguments) -> Run:
    """Two epochs of four steps."""
    overrides = {**(overrides or {}), **({} if epochs is None else {"epochs": epochs})}
    arguments = {"recipe": tiny_recipe(epochs=2), "options": QUIET, **arguments}
    return fit(data, overrides=overrides, **arguments)


def loaders_of(data="shapes", *, seed: int = 0, **changes) -> Loaders:
    return prepare_loaders(data, tiny_recipe(**changes), seed=seed, options=QUIET)


def model_of(recipe: Recipe, loaders: Loaders, *, seed: int = 0) -> AlexNet:
    return prepare_model(loaders, recipe, seed=seed, options=QUIET)


def read_json(text: str):
    """JSON without the NaN and Infinity that Python adds to it."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def read_history(folder: Path) -> list[dict]:
    return [read_json(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def with_accuracies(monkeypatch: pytest.MonkeyPatch, *accuracies: float) -> list[BatchLoader]:
    """Makes the evaluations report these; the list fills with the loaders evaluated on."""
    seen, left = [], iter(accuracies)

    def evaluate_as_told(run, model, part, *, views=1, image_size=None):
        seen.append(getattr(run.loaders, part))
        return replace(evaluate(model, seen[-1], progress=False), accuracy=next(left))

    monkeypatch.setattr(TrainingRun, "evaluate", evaluate_as_told)
    return seen


def with_step(monkeypatch: pytest.MonkeyPatch, before) -> None:
    """Calls ``before(step, images, labels)`` before each step of training."""
    real = TrainingStep.train_on

    def train_on(step, batches, totals):
        batches = [*batches]
        before(step, batches[0].images, batches[0].labels)
        real(step, batches, totals)

    monkeypatch.setattr(TrainingStep, "train_on", train_on)


# What a run is made of


def photos(folder: Path) -> Path:
    """36 photos of different sizes, too large to be kept in memory, of two classes."""
    rng = np.random.default_rng(0)
    for i in range(36):
        file = folder / ("cat", "dog")[i % 2] / f"{i}.{('jpg', 'png')[i % 3 == 0]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = (int(side) for side in rng.integers(97, 140, 2))
        Image.fromarray(random_pixels(height, width, seed=i)).save(file)
    return folder


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_no_photo_is_decoded_twice_before_the_first_step(recipe, tmp_path, monkeypatch):
    recipe = recipe.overridden({**SMALL, "epochs": 1, "validation_fraction": 0.1})
    folder = photos(tmp_path / "photos")
    decoded: Counter[Path] = Counter()
    loaders_made, before_first_step = [], {}
    real_read, real_init, real_step = (
        decoding.read_image,
        BatchLoader.__post_init__,
        TrainingRun.take_step,
    )

    def read(file, **options):
        decoded[file] += 1
        return real_read(file, **options)

    def init(loader):
        loaders_made.append(loader)
        real_init(loader)

    def take_step(run):
        if not before_first_step:
            before_first_step.update(decoded=dict(decoded), loaders=[*loaders_made], run=run)
        real_step(run)

    for module in (images_module, preprocess_module):
        monkeypatch.setattr(module, "read_image", read)
    monkeypatch.setattr(BatchLoader, "__post_init__", init)
    monkeypatch.setattr(TrainingRun, "take_step", take_step)
    fit(folder, recipe=recipe, options=QUIET)
    parts = before_first_step["run"].loaders
    assert [len(part.dataset) for part in parts] == [26, 3, 7]
    # Each training image once, where something is measured; and of the others none.
    measured = recipe.stats != "imagenet" or recipe.color_noise > 0
    files = parts.train.dataset.files if measured else ()
    assert before_first_step["decoded"] == dict.fromkeys(files, 1)
    assert [id(loader) for loader in before_first_step["loaders"]] == [id(part) for part in parts]


def data_set(count: int = 60) -> TensorDataset:
    """Images of two classes."""
    images = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(count))
    return TensorDataset(images, torch.arange(count) % 2)


@pytest.mark.parametrize(
    ("make", "counts", "classes", "source"),
    [
        (lambda folder: "shapes", (54, 6, 20), 10, "shapes"),
        (lambda folder: write_class_folders(folder, count=20), (29, 3, 8), 2, None),
        (lambda folder: str(write_class_folders(folder, count=20)), (29, 3, 8), 2, None),
        (lambda folder: data_set(), (43, 5, 12), 2, "TensorDataset"),
        (lambda folder: (data_set(), data_set(10)), (54, 6, 10), 2, "tuple"),
        (lambda folder: loaders_of(), (54, 6, 20), 10, "Loaders"),
    ],
    ids=["shapes", "folder", "name of a folder", "data set", "pair", "loaders"],
)
def test_every_kind_of_data_is_trained_on(make, counts, classes, source, tmp_path):
    data = make(tmp_path / "photos")
    run = quick_fit(data, epochs=1, out=tmp_path / "run")
    record = run.history[0]
    assert (record.train.images, record.validation.images, run.test.images) == counts
    assert len(run.model.classes) == classes
    stored = read_json((tmp_path / "run" / "recipe.json").read_text())["data"]
    assert stored == (str(tmp_path / "photos") if source is None else source)


def test_loaders_that_are_given_are_used_as_they_are_and_recorded(tmp_path, monkeypatch):
    given = loaders_of(
        (data_set(), data_set(10)),
        seed=5,
        batch_size=9,
        image_size=20,
        flip=False,
        random_shift=0.5,
    )
    read, real = [], BatchLoader._numbered_batches

    def witness(loader, *arguments):
        read.append(loader)
        yield from real(loader, *arguments)

    monkeypatch.setattr(BatchLoader, "_numbered_batches", witness)
    run = quick_fit(given, out=tmp_path)
    train, validation, test = given
    assert [*map(id, read)] == [*map(id, (train, validation, train, validation, test))]
    assert run.model.image_size == 20
    stored = read_json((tmp_path / "recipe.json").read_text())
    preprocess = read_json(json.dumps(train.preprocess.to_dict()))
    assert stored["given"] == {
        "loaders": {
            "train": {
                "images": 54,
                "batch_size": 9,
                "preprocess": preprocess,
                "augmentation": [repr(RandomShift(0.5))],
                "shuffle": True,
                "drop_last": False,
                "balanced": False,
                "seed": 5,
            },
            "validation": {
                "images": 6,
                "batch_size": 9,
                "preprocess": preprocess,
                "augmentation": [],
                "shuffle": False,
                "drop_last": False,
                "balanced": False,
                "seed": 5,
            },
            "test": {
                "images": 10,
                "batch_size": 9,
                "preprocess": preprocess,
                "augmentation": [],
                "shuffle": False,
                "drop_last": False,
                "balanced": False,
                "seed": 5,
            },
        }
    }


def test_parts_that_given_loaders_lack_are_recorded_as_lacking(tmp_path):
    given = loaders_of()._replace(validation=None, test=None)
    run = quick_fit(given, out=tmp_path)
    stored = read_json((tmp_path / "recipe.json").read_text())["given"]["loaders"]
    assert (stored["validation"], stored["test"]) == (None, None)
    assert (run.history[0].validation, run.test) == (None, None)


def test_a_model_that_is_given_is_trained_and_recorded(tmp_path):
    model = AlexNet(10, architecture=TINY, dropout=0.25, dropout_scaling="test", seed=1)
    before = weights_of(model)
    run = quick_fit(model=model, out=tmp_path)
    assert run.model is model
    assert not torch.equal(weights_of(model), before)
    assert read_json((tmp_path / "recipe.json").read_text())["given"] == {
        "model": {
            "architecture": "tiny",
            "image_size": 12,
            "in_channels": 3,
            "dropout": 0.25,
            "dropout_scaling": "test",
            "frozen": [],
        }
    }


def test_a_model_in_evaluation_mode_is_trained_with_dropout(device, monkeypatch):
    modes: list[bool] = []
    with_step(monkeypatch, lambda step, images, labels: modes.append(step.model.training))
    quick_fit(model=AlexNet(10, architecture=TINY, seed=1).eval(), options=quiet(device))
    assert modes == [True] * 8


def test_a_model_that_is_given_goes_on_from_its_weights(device):
    model = quick_fit(options=quiet(device)).model
    before = weights_of(model)
    run = quick_fit(model=model, overrides={"learning_rate": 1e-9}, options=quiet(device))
    assert run.model is model
    assert 0 < (weights_of(model) - before).abs().max() < 1e-6


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_and_batches_are_as_the_options_say(device, memory_format, precision, monkeypatch):
    layout = getattr(torch, memory_format.replace("contiguous", "contiguous_format"))
    seen = []

    def look(step, images, labels):
        weight = step.model.features.conv1.weight
        seen.append(
            (
                images.dtype,
                images.is_contiguous(memory_format=layout),
                weight.dtype,
                weight.is_contiguous(memory_format=layout),
            )
        )

    with_step(monkeypatch, look)
    options = replace(quiet(device), memory_format=memory_format, precision=precision)
    quick_fit(options=options)
    assert seen == [(getattr(torch, precision), True, torch.float32, True)] * 8


@pytest.mark.parametrize("wanted", [False, True])
def test_a_model_is_compiled_where_the_options_say_so_and_its_own_weights_learn(
    wanted, monkeypatch
):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    run = quick_fit(options=replace(QUIET, compile=wanted))
    assert compiled == [run.model] * wanted


# What a run writes


FILES = ("recipe.json", "history.jsonl", "best.safetensors", "last.safetensors", "result.json")


def test_a_run_writes_its_five_files_and_nothing_else(device, tmp_path):
    run = quick_fit(out=tmp_path / "new" / "run", options=quiet(device))
    assert run.folder == tmp_path / "new" / "run"
    assert {file.name for file in run.folder.iterdir()} == {*FILES}


def test_recipe_json_holds_all_that_determines_the_run(tmp_path):
    options = replace(QUIET, device="auto", precision="auto", memory_format="auto")
    quick_fit(out=tmp_path, seed=3, options=options)
    stored = read_json((tmp_path / "recipe.json").read_text())
    assert stored == {
        "recipe": tiny_recipe(epochs=2).to_dict(),
        "planned_from": None,
        "data": "shapes",
        "given": {},
        "seed": 3,
        "options": asdict(options.resolved()),
        "threads": torch.get_num_threads(),
        "processes": 1,
        "kernels": cpu.load() is not None,
        "classes": [*SHAPES_CLASSES],
        "data_sha256": stored["data_sha256"],
        "processor": stored["processor"],
        "onednn": torch.backends.mkldnn.enabled,
        "float32_products": torch.get_float32_matmul_precision(),
        "versions": versions(),
    }
    assert "auto" not in stored["options"].values()


def test_history_jsonl_has_a_line_for_each_epoch(tmp_path):
    run = quick_fit(out=tmp_path)
    lines = read_history(tmp_path)
    assert lines == [record.to_dict() for record in run.history]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[0]) == {"epoch", "learning_rate", "image_size", "train", "validation"}
    assert set(lines[0]["train"]) == {"loss", "accuracy", "images_per_second"}
    assert set(lines[0]["validation"]) == {"loss", "accuracy"}


def test_result_json_holds_the_test_metrics_the_time_and_the_versions(tmp_path):
    run = quick_fit(out=tmp_path)
    result = read_json((tmp_path / "result.json").read_text())
    names = {"test", "epochs", "seconds", "images_per_second", "versions"}
    assert set(result) == names | {"stopped_early", "bad_images"}
    assert (result["stopped_early"], result["bad_images"]) == (False, {})
    assert result["test"] == run.test.to_dict()
    assert result["epochs"] == 2
    assert result["seconds"] > 0
    assert torch.__version__.startswith(result["versions"]["torch"])


def test_images_a_second_are_the_images_trained_on_over_the_seconds_of_training(
    clock, tmp_path, monkeypatch
):
    """Half a second for each step of the first epoch, a whole one for those of the second."""
    steps = 0

    def wait(step, images, labels):
        nonlocal steps
        clock.now += 0.5 if steps < 4 else 1.0
        steps += 1

    def slow(real):
        def call(*arguments, **named):
            clock.now += 100.0
            return real(*arguments, **named)

        return call

    with_step(monkeypatch, wait)
    # Neither evaluating nor writing is training.
    monkeypatch.setattr(TrainingRun, "evaluate", slow(TrainingRun.evaluate))
    monkeypatch.setattr(run_files, "save_checkpoint", slow(run_files.save_checkpoint))
    run = quick_fit(out=tmp_path)
    assert [record.train.seconds for record in run.history] == [2.0, 4.0]
    assert [record.train.images_per_second for record in run.history] == [54 / 2, 54 / 4]
    lines = read_history(tmp_path)
    assert [line["train"]["images_per_second"] for line in lines] == [27.0, 13.5]
    assert read_json((tmp_path / "result.json").read_text())["images_per_second"] == 108 / 6


def test_without_out_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert quick_fit().folder is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_but_holds_no_run_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert quick_fit(out=tmp_path).folder == tmp_path


def test_overrides_are_applied_and_stored(tmp_path):
    run = quick_fit(overrides={"image_size": 20, "dropout": 0.1, "epochs": 3}, out=tmp_path)
    stored = read_json((tmp_path / "recipe.json").read_text())["recipe"]
    assert (run.model.image_size, run.model.dropout, len(run.history)) == (20, 0.1, 3)
    assert (stored["image_size"], stored["dropout"], stored["epochs"]) == (20, 0.1, 3)


def with_fsync(monkeypatch: pytest.MonkeyPatch, folder: Path, call) -> None:
    """Calls ``call(name)`` with the name of a file in the folder that is flushed to disk."""
    real = os.fsync

    def fsync(number):
        flushed = os.fstat(number)
        for file in folder.rglob("*"):
            if file.is_file() and os.path.samestat(file.stat(), flushed):
                call(file.name)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)


def test_every_file_is_flushed_to_disk_whenever_it_is_written(tmp_path, monkeypatch):
    flushed: list[str] = []
    with_fsync(monkeypatch, tmp_path, flushed.append)
    with_accuracies(monkeypatch, 0.5, 0.1, 0.0)  # the first epoch is the best
    quick_fit(out=tmp_path)
    assert [name for name, _ in itertools.groupby(flushed)] == [
        "recipe.json",
        "state.safetensors",
        "last.safetensors",
        "best.safetensors",
        "history.jsonl",
        "state.safetensors",
        "last.safetensors",
        "history.jsonl",
        "result.json",
    ]


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "history.jsonl"])
def test_a_crash_while_a_file_is_written_leaves_that_of_the_last_epoch(name, tmp_path, monkeypatch):
    good: dict[str, bytes] = {}

    def look(step, images, labels):
        if not good and (tmp_path / "history.jsonl").exists():
            good.update({file.name: file.read_bytes() for file in tmp_path.iterdir()})

    def crash(flushed):
        if flushed == name and good:
            raise RuntimeError("the power went")

    with_step(monkeypatch, look)
    with_fsync(monkeypatch, tmp_path, crash)
    with_accuracies(monkeypatch, 0.1, 0.5, 0.0)
    with pytest.raises(RuntimeError, match="the power went"):
        quick_fit(out=tmp_path)
    assert {*good} == {*FILES, "state.safetensors", ".lock"} - {"result.json"}
    assert (tmp_path / name).read_bytes() == good[name]
    assert read_history(tmp_path) == [read_json(good["history.jsonl"].decode())]
    assert {file.name for file in tmp_path.iterdir()} == {*good} - {".lock"}


# What a run computes


def test_training_lowers_the_loss(device):
    history = quick_fit(
        epochs=8, overrides={"dropout": 0.0, "label_smoothing": 0.0}, options=quiet(device)
    ).history
    assert history[-1].train.loss < history[0].train.loss - 0.1


def assert_repeated(run: Run, other: Run) -> None:
    """Two runs by the same steps: on the CPU to the bit."""
    one, same = weights_of(run.model), weights_of(other.model)
    torch.testing.assert_close(one, same, **repeated(one.device))
    rel = repeated(one.device)["rtol"]
    assert losses_of(run) == pytest.approx(losses_of(other), rel=rel, abs=0)


def test_the_same_seed_gives_the_same_run(device):
    first, second = (
        quick_fit(seed=4, options=quiet(device)),
        quick_fit(seed=4, options=quiet(device)),
    )
    assert_repeated(first, second)
    for one, other in zip(first.history, second.history, strict=True):
        assert one.validation.to_dict()["confusion"] == other.validation.to_dict()["confusion"]


def test_another_seed_gives_another_run(device):
    first, second = (
        quick_fit(seed=4, options=quiet(device)),
        quick_fit(seed=5, options=quiet(device)),
    )
    assert not torch.equal(weights_of(first.model), weights_of(second.model))
    assert first.history[0].train.loss != second.history[0].train.loss


def test_dropout_is_drawn_from_the_seed():
    # The weights and the batches are the same in all three.
    loaders = loaders_of()
    runs = [
        quick_fit(loaders, model=model_of(tiny_recipe(), loaders), seed=seed) for seed in (0, 0, 1)
    ]
    losses = [run.history[0].train.loss for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_the_global_generators_are_left_as_they_were(tmp_path):
    def states():
        _, numbers, *position = np.random.get_state()
        return torch.get_rng_state().tolist(), numbers.tolist(), position

    before = states()
    for data in ("shapes", write_class_folders(tmp_path, count=20), Noisy()):
        quick_fit(data, overrides={"trivial_augment": True, "random_crop": True})
        assert states() == before


def test_the_same_seed_gives_the_same_run_of_a_random_data_set():
    first = quick_fit(Noisy(), seed=4)
    torch.rand(1)  # whatever is drawn in between
    second = quick_fit(Noisy(), seed=4)
    assert first.model.preprocess == second.model.preprocess
    assert torch.equal(weights_of(first.model), weights_of(second.model))
    assert first.test.loss == second.test.loss


@pytest.mark.bad_input
def test_the_global_generators_are_left_as_they_were_also_by_a_run_that_fails(monkeypatch):
    before = torch.get_rng_state()
    poison_step(monkeypatch, 3)
    with pytest.raises(FloatingPointError):
        quick_fit()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_handlers_of_signals_are_left_as_they_were():
    def handlers():
        return {number: signal.getsignal(number) for number in signal.valid_signals()}

    before = handlers()
    quick_fit()
    assert handlers() == before


def test_the_rate_has_fallen_to_0_at_the_end():
    history = quick_fit().history
    assert history[0].learning_rate > 0
    assert history[-1].learning_rate == pytest.approx(0, abs=1e-12)


def test_the_test_images_are_evaluated_once_and_last(monkeypatch):
    seen = with_accuracies(monkeypatch, 0.1, 0.2, 0.3, 0.4)
    quick_fit(epochs=3)
    assert [len(loader.dataset) for loader in seen] == [6, 6, 6, 20]


def test_the_model_that_is_returned_has_the_best_weights(device, tmp_path, monkeypatch):
    with_accuracies(monkeypatch, 0.2, 0.9, 0.1, 0.0)
    run = quick_fit(epochs=3, out=tmp_path, options=quiet(device))
    best = weights_of(load_checkpoint(tmp_path / "best.safetensors"))
    last = weights_of(load_checkpoint(tmp_path / "last.safetensors"))
    assert torch.equal(weights_of(run.model).cpu(), best)
    assert not torch.equal(best, last)


def test_of_equal_accuracies_the_first_is_the_best(monkeypatch):
    with_accuracies(monkeypatch, 0.5, 0.5, 0.0, 0.5, 0.1, 0.0)
    equal, falling = quick_fit(), quick_fit()
    assert torch.equal(weights_of(equal.model), weights_of(falling.model))


def test_the_test_metrics_are_those_of_the_model_that_is_returned(device):
    loaders = loaders_of()
    run = quick_fit(loaders, options=quiet(device))
    again = evaluate(run.model, loaders.test, progress=False)
    assert run.test.loss == pytest.approx(again.loss, rel=repeated(device)["rtol"], abs=0)
    assert run.test.accuracy == again.accuracy
    assert not run.model.training


def test_the_model_knows_its_classes_and_its_preprocessing(tmp_path):
    loaders = loaders_of()
    run = quick_fit(loaders, out=tmp_path)
    loaded = load_checkpoint(tmp_path / "best.safetensors")
    for model in (run.model, loaded):
        assert model.classes == loaders.classes
        assert model.preprocess == loaders.preprocess


def test_loaders_and_the_name_of_their_data_give_the_same_run(device):
    options = quiet(device)
    by_name, by_loaders = quick_fit(options=options), quick_fit(loaders_of(), options=options)
    assert_repeated(by_name, by_loaders)


def test_the_loaders_that_are_given_are_left_at_their_epoch():
    loaders = loaders_of()
    quick_fit(loaders)
    assert [part.epoch for part in loaders] == [0, 0, 0]
    fresh = next(iter(loaders_of().train))[0]
    assert torch.equal(next(iter(loaders.train))[0], fresh)


def test_without_a_validation_part_every_epoch_is_the_best_so_far(tmp_path, monkeypatch):
    saved, real = [], run_files.save_checkpoint

    def note(path, model, **named):
        saved.append(path.name)
        real(path, model, **named)

    monkeypatch.setattr(run_files, "save_checkpoint", note)
    run = quick_fit(overrides={"validation_fraction": 0.0}, out=tmp_path)
    assert saved == ["last.safetensors", "best.safetensors"] * 2
    assert [line["validation"] for line in read_history(tmp_path)] == [None, None]
    last = weights_of(load_checkpoint(tmp_path / "last.safetensors"))
    assert torch.equal(weights_of(run.model), last)


def test_without_test_images_the_test_is_none(tmp_path):
    run = quick_fit(loaders_of()._replace(test=None), out=tmp_path)
    assert run.test is None
    assert read_json((tmp_path / "result.json").read_text())["test"] is None


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_trains(device, recipe):
    run = quick_fit(recipe=recipe.overridden(SMALL), epochs=1, options=quiet(device))
    assert run.test.images == 20
    assert run.history[0].train.loss > 0


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_run_is_repeated_from_its_stored_recipe(device, recipe, tmp_path):
    more = {"random_shift": 0.2, "random_crop": True, "ema_decay": 0.5, "freeze": ("conv1",)}
    recipe = recipe.overridden({**SMALL, **more, "epochs": 2})
    options = quiet(device)
    first = fit("shapes", recipe=recipe, seed=3, out=tmp_path, options=options)
    stored, stored_seed = stored_recipe(tmp_path / "recipe.json")
    again = fit("shapes", recipe=stored, seed=stored_seed, options=options)
    assert_repeated(first, again)
    assert first.test.loss == pytest.approx(again.test.loss, rel=repeated(device)["rtol"], abs=0)


@pytest.mark.bad_input
@pytest.mark.parametrize("given", [("model",), ("loaders",), ("loaders", "model")])
def test_a_run_of_what_fit_was_given_is_not_repeated_from_its_folder(given, tmp_path):
    loaders = loaders_of(seed=5)
    quick_fit(
        loaders if "loaders" in given else "shapes",
        model=model_of(tiny_recipe(), loaders, seed=5) if "model" in given else None,
        out=tmp_path,
    )
    with pytest.raises(ValueError, match=f"fit was given the {' and '.join(given)} of this run"):
        stored_recipe(tmp_path)


def train_by_hand(recipe: Recipe, device: torch.device, after_step) -> AlexNet:
    """What ``fit`` does, without dropout and without validation."""
    cpu.load()  # compiled from the first step on, as in fit
    loaders = prepare_loaders("shapes", recipe, options=quiet(device))
    model = prepare_model(loaders, recipe, options=quiet(device)).train()
    optimizer = build_optimizer(recipe, model)
    schedule = build_schedule(recipe, optimizer, recipe.epochs * len(loaders.train))
    for epoch in range(recipe.epochs):
        loaders.train.set_epoch(epoch)
        for images, labels in loaders.train:
            optimizer.zero_grad()
            recipe.criterion(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            after_step(model)
    return model


BY_HAND = MappingProxyType({"dropout": 0.0, "validation_fraction": 0.0, "epochs": 2})


def test_the_weights_are_those_of_training_by_hand(device):
    recipe = tiny_recipe(**BY_HAND, max_grad_norm=0.5)
    expected = weights_of(train_by_hand(recipe, device, lambda model: None))
    run = quick_fit(recipe=recipe, options=quiet(device))
    torch.testing.assert_close(weights_of(run.model), expected, **network_tolerance(device, 1e-6))


def test_ema_decay_keeps_the_moving_average_of_the_weights(device, tmp_path):
    recipe = tiny_recipe(**BY_HAND, ema_decay=0.75)
    average = None

    def after_step(model):
        nonlocal average
        now = weights_of(model)
        average = now if average is None else 0.75 * average + 0.25 * now

    last = weights_of(train_by_hand(recipe, device, after_step))
    run = quick_fit(recipe=recipe, out=tmp_path, options=quiet(device))
    stored = load_checkpoint(tmp_path / "last.safetensors")
    torch.testing.assert_close(weights_of(run.model), average, **network_tolerance(device, 1e-6))
    assert torch.equal(weights_of(stored), weights_of(run.model).cpu())
    assert (average - last).abs().max() > 1e-3


def test_the_moving_average_is_what_validation_and_test_are_about(device, monkeypatch):
    seen, real = [], TrainingRun.evaluate

    def witness(run, model, part, **options):
        seen.append(weights_of(model))
        return real(run, model, part, **options)

    monkeypatch.setattr(TrainingRun, "evaluate", witness)
    run = quick_fit(overrides={"ema_decay": 0.75}, epochs=1, options=quiet(device))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], weights_of(run.model))


@pytest.mark.parametrize("views", [1, 2, 10])
def test_only_the_test_images_are_seen_in_several_views(device, views, monkeypatch):
    seen = []

    real = state.evaluate_together

    def witness(model, loader, *processes, **options):
        seen.append((len(loader.dataset), options["views"]))
        return real(model, loader, *processes, **options)

    monkeypatch.setattr(state, "evaluate_together", witness)
    loaders = loaders_of(resize_ratio=1.5)
    run = quick_fit(loaders, overrides={"views": views, "resize_ratio": 1.5}, options=quiet(device))
    assert seen == [(6, 1), (6, 1), (20, views)]
    again = evaluate(run.model, loaders.test, views=views, progress=False)
    assert run.test.loss == pytest.approx(again.loss, rel=repeated(device)["rtol"], abs=0)


def plateau_rates(monkeypatch, *accuracies: float, **changes) -> list[float]:
    recipe = {"schedule": "plateau", "warmup_fraction": 0.0, "plateau_patience": 2, **changes}
    with_accuracies(monkeypatch, *accuracies, 0.0)
    run = quick_fit(overrides={**recipe, "learning_rate": 0.01}, epochs=len(accuracies))
    return [record.learning_rate for record in run.history]


def test_a_plateau_of_the_validation_accuracy_divides_the_rate_by_ten(monkeypatch):
    rates = plateau_rates(monkeypatch, 0.5, 0.4, 0.5, 0.6, 0.1, 0.2, 0.3)
    assert rates == pytest.approx([0.01] * 3 + [0.001] * 3 + [0.0001])


def test_the_rate_stays_while_the_validation_accuracy_rises(monkeypatch):
    rates = plateau_rates(monkeypatch, 0.1, 0.2, 0.15, 0.3, 0.4)
    assert rates == pytest.approx([0.01] * 5)


def test_other_schedules_do_not_look_at_the_validation_accuracy(monkeypatch):
    rates = plateau_rates(monkeypatch, 0.5, 0.4, 0.3, 0.2, 0.1, schedule="constant")
    assert rates == pytest.approx([0.01] * 5)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_frozen_layers_keep_their_weights(device, ema_decay):
    recipe = tiny_recipe(freeze=("conv1",), ema_decay=ema_decay)
    run = quick_fit(recipe=recipe, options=quiet(device))
    start = model_of(recipe, loaders_of())
    for name, weight in run.model.state_dict().items():
        same = torch.equal(weight.cpu(), start.state_dict()[name])
        assert same == name.startswith("features.conv1.")


def test_layers_of_a_model_that_is_passed_are_frozen_too(device):
    model = AlexNet(10, architecture=TINY, seed=1)
    before = model.features.conv1.weight.detach().clone()
    run = quick_fit(recipe=tiny_recipe(freeze=("conv1",)), model=model, options=quiet(device))
    assert run.model is model
    assert torch.equal(model.features.conv1.weight.cpu(), before)


# What a run says


def test_without_progress_a_run_is_silent(capfd):
    quick_fit(options=RunOptions(progress=False), overrides={"batch_size": 2})
    assert capfd.readouterr() == ("", "")


def test_a_run_says_what_it_trains_each_epoch_and_the_test(capsys):
    run = quick_fit(options=SPEAKING)
    out, err = capsys.readouterr()
    assert not out
    lines = err.splitlines()
    assert len(lines) == 5
    parameters = 4 * (27 + 1) + 10 * (16 + 1)  # of conv1 and of fc2, which sees 4 x 2 x 2
    assert lines[:2] == [
        f"AlexNet (tiny, {parameters} parameters); recipe tiny run, 2 epochs; cpu, float32",
        "shapes: 54 training, 6 validation, 20 test images of 12x12, 10 classes",
    ]
    assert lines[2].startswith("epoch 1/2: loss")
    assert lines[3].startswith("epoch 2/2: loss")
    assert lines[4].startswith(f"test: {run.test}; ")
    assert lines[4].endswith(" s in all")
    assert max(map(len, lines)) <= 80


def test_a_run_of_one_epoch_has_one_epoch_not_epochs(capsys):
    quick_fit(options=SPEAKING, epochs=1)
    assert "recipe tiny run, 1 epoch; cpu" in capsys.readouterr().err


def test_the_line_of_an_epoch_has_both_parts_losses_and_accuracies(clock, monkeypatch, capsys):
    def wait(step, images, labels):
        clock.now += 0.5

    with_step(monkeypatch, wait)
    first, second = quick_fit(options=SPEAKING).history
    lines = capsys.readouterr().err.splitlines()
    for line, record in ((lines[2], first), (lines[3], second)):
        train, validation = record.train, record.validation
        assert line == (
            f"epoch {record.epoch}/2: "
            f"loss {train.loss:.4f}, accuracy {100 * train.accuracy:.1f}%; "
            f"validation {validation.loss:.4f}, {100 * validation.accuracy:.1f}%; 2 s"
        )


def test_the_line_of_an_epoch_without_validation_has_the_trainings_alone(clock, capsys):
    clock.now = 0.0
    ticks = iter(range(10_000))
    clock.perf_counter = lambda: float(next(ticks))
    run = quick_fit(options=SPEAKING, overrides={"validation_fraction": 0.0})
    train = run.history[0].train
    assert capsys.readouterr().err.splitlines()[2] == (
        f"epoch 1/2: loss {train.loss:.4f}, accuracy {100 * train.accuracy:.1f}%; "
        f"{train.seconds:.0f} s"
    )


def estimates(
    clock, monkeypatch, capsys, *, data="shapes", options=SPEAKING, **changes
) -> list[str]:
    """What a run says of its time where each step of training takes a second."""
    monkeypatch.setattr(fit_module, "time", clock)

    def wait(step, images, labels):
        clock.now += 1.0

    with_step(monkeypatch, wait)
    quick_fit(data, overrides=changes, options=options)
    return [line for line in capsys.readouterr().err.splitlines() if "to go" in line]


# After 20 steps. An image that is evaluated, in each of its views, is a third of one trained on.
@pytest.mark.parametrize(
    ("changes", "left", "speed"),
    [
        # 61 of 81 steps; three times 6 validation images and once 20 test images, two for a step.
        ({"batch_size": 2, "epochs": 3}, "67 s", 2),
        # 85 of 105 steps; 13 times 6 validation images and once 20 test images, eight for a step.
        ({"batch_size": 8, "epochs": 15}, "89 s", 8),
        # 1,060 of 1,080 steps; 40 times 6 validation images and once 20 test images.
        ({"batch_size": 2, "epochs": 40}, "18 min", 2),
        # A step of the first epoch, on 12 pixels, counts as 0.463 of another: of 9,388 products
        # 6,048 are saved, and a fifth of 9,388 is the update. 8 steps, and 59 of 2.16.
        (
            {
                "batch_size": 2,
                "epochs": 3,
                "image_size": 20,
                "growth_fraction": 0.34,
                "start_size": 0.6,
            },
            "2 min",
            2,
        ),
        # As the first, with ten views of each test image.
        ({"batch_size": 2, "epochs": 3, "views": 10, "resize_ratio": 1.5}, "2 min", 2),
    ],
)
def test_the_time_to_go_is_said_once_with_what_shortens_it(
    changes, left, speed, clock, monkeypatch, capsys
):
    assert estimates(clock, monkeypatch, capsys, **changes) == [
        f"about {left} to go at {speed} images/s; shorter with fewer images (--train-images, or "
        "overrides={'train_images': ...}), smaller ones (--image-size, 'image_size') or fewer "
        "epochs (--epochs, 'epochs')"
    ]


def test_the_speed_is_that_of_the_batches_of_given_loaders(clock, monkeypatch, capsys):
    (line,) = estimates(clock, monkeypatch, capsys, data=loaders_of(batch_size=2), epochs=3)
    assert line.startswith("about 67 s to go at 2 images/s; ")


def test_a_run_of_fewer_steps_a_short_and_a_silent_one_say_nothing_of_their_time(
    clock, monkeypatch, capsys
):
    assert estimates(clock, monkeypatch, capsys, batch_size=8, epochs=10) == []  # 53 s
    assert estimates(clock, monkeypatch, capsys, epochs=4) == []  # 16 steps
    assert estimates(clock, monkeypatch, capsys, options=QUIET, batch_size=2, epochs=3) == []


@pytest.mark.parametrize("progress", [True, False])
def test_a_run_shows_one_bar_over_all_its_steps(progress, monkeypatch):
    bars: list[dict] = []

    class Bar(tqdm):
        def __init__(self, *arguments, **named):
            self.seen = {**named, "steps": 0, "closed": False, "epochs": []}
            bars.append(self.seen)
            super().__init__(*arguments, **named)

        def update(self, n=1):
            self.seen["steps"] += n
            return super().update(n)

        def set_description_str(self, desc=None, refresh=True):
            self.seen["epochs"].append(desc)

        def close(self):
            self.seen["closed"] = True
            return super().close()

    monkeypatch.setattr(loop, "progress_bar", Bar)
    quick_fit(options=replace(QUIET, progress=progress))
    shown = [bar for bar in bars if bar["disable"] is not True]
    assert [bar["desc"] for bar in shown] == progress * ["epoch", *["evaluating"] * 3]
    for bar in shown[:1]:
        assert (bar["total"], bar["initial"], bar["leave"]) == (8, 0, False)
        assert (bar["steps"], bar["closed"], bar["epochs"]) == (8, True, ["epoch 1/2", "epoch 2/2"])


# What is left of a run that is interrupted


def interrupt(monkeypatch, *, after: int) -> None:
    """Makes a run end by a signal after so many steps."""
    real, steps = TrainingRun.take_step, itertools.count(1)

    def take_step(run):
        real(run)
        if next(steps) == after:
            raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(TrainingRun, "take_step", take_step)


@pytest.mark.parametrize("written", [True, False])
def test_an_interruption_has_the_run_so_far(written, tmp_path, monkeypatch, capsys):
    out = tmp_path if written else None
    whole = quick_fit(epochs=1, overrides={"schedule": "constant"})
    interrupt(monkeypatch, after=6)
    with pytest.raises(KeyboardInterrupt) as raised:
        quick_fit(overrides={"schedule": "constant"}, out=out, options=SPEAKING)
    run = raised.value.run
    assert [record.epoch for record in run.history] == [1]
    assert losses_of(run) == losses_of(whole)
    assert (run.test, run.folder) == (None, out)
    assert torch.equal(weights_of(run.model), weights_of(whole.model))
    assert not run.model.training
    assert run.model.classes == SHAPES_CLASSES
    assert ("the run so far is error.run" in capsys.readouterr().err) is not written


def test_before_the_first_epoch_is_finished_an_interruption_has_the_weights_of_that_step(
    monkeypatch,
):
    interrupt(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt) as raised:
        quick_fit()
    run = raised.value.run
    recipe = tiny_recipe(epochs=2)
    start = model_of(recipe, loaders_of())
    assert run.history == ()
    assert not torch.equal(weights_of(run.model), weights_of(start))


# Unequal classes, steps of several batches, an early end, images that cannot be read


def unequal() -> TensorDataset:
    """Images of two classes, of which the second has every sixth."""
    images = torch.rand(60, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, (torch.arange(60) % 6 == 0).long())


def losses_of(run: Run) -> list[float]:
    return [record.train.loss for record in run.history]


def test_the_loss_is_weighted_by_the_classes_of_the_training_images_alone(monkeypatch):
    seen, real = [], Recipe.criterion

    def criterion(recipe, logits, labels, class_weights=None):
        seen.append(class_weights)
        return real(recipe, logits, labels, class_weights)

    monkeypatch.setattr(Recipe, "criterion", criterion)
    data = unequal()
    run = quick_fit((data, data), overrides={"balance": "loss"}, epochs=1)
    counts = torch.tensor([45, 9])  # of the 54 training images
    for weights in seen:
        torch.testing.assert_close(weights, 54 / (2.0 * counts))
    assert len(seen) == 4  # the steps; validation and test count each image alike
    plain = evaluate(run.model, loaders_of((data, data)).test, progress=False)
    assert run.test.loss == pytest.approx(plain.loss)


def test_the_balanced_sampler_draws_the_training_images_alone(monkeypatch):
    seen = []
    with_step(monkeypatch, lambda step, images, labels: seen.append(labels.clone()))
    data = unequal()
    run = quick_fit((data, data), overrides={"balance": "sampler"}, epochs=20)
    drawn = torch.cat(seen)
    assert len(drawn) == 20 * 54
    assert drawn.float().mean() == pytest.approx(0.5, abs=0.08)
    assert run.test.confusion.sum(1).tolist() == [50, 10]


def test_the_last_smaller_batch_is_dropped_of_the_training_images_alone():
    run = quick_fit(overrides={"drop_last": True}, epochs=1)
    assert (run.history[0].train.images, run.history[0].validation.images) == (48, 6)
    assert run.test.images == 20


def test_a_run_in_steps_of_several_batches_is_that_of_a_larger_batch(device):
    changes = {"dropout": 0.0, "flip": False}
    several = quick_fit(
        overrides={**changes, "batch_size": 6, "accumulation_steps": 2}, options=quiet(device)
    )
    one = quick_fit(overrides={**changes, "batch_size": 12}, options=quiet(device))
    torch.testing.assert_close(
        weights_of(several.model), weights_of(one.model), **network_tolerance(device, 1e-6)
    )
    assert losses_of(several) == pytest.approx(losses_of(one), rel=tolerance(device, 1e-5, 1e-4))


def test_a_run_that_is_ended_early_says_so(monkeypatch, tmp_path, capsys):
    with_accuracies(monkeypatch, 0.3, 0.2, 0.1, 0.5)
    run = quick_fit(overrides={"early_stopping": 2}, epochs=9, out=tmp_path, options=SPEAKING)
    assert len(run.history) == 3
    result = read_json((tmp_path / "result.json").read_text())
    assert (result["epochs"], result["stopped_early"]) == (3, True)
    said = capsys.readouterr().err
    assert "stopped after epoch 3 of 9: no better validation accuracy since epoch 1" in said


@pytest.mark.bad_input
def test_early_stopping_without_validation_images_is_refused():
    for data in (loaders_of()._replace(validation=None), "shapes"):
        overrides = {"early_stopping": 1, "validation_fraction": 0.001}
        with pytest.raises(ValueError, match=r"^data has no validation images, but .* early_sto"):
            quick_fit(data, overrides=overrides)


def broken(folder: Path, *numbers: int) -> Path:
    """The photos, some of them broken."""
    photos(folder)
    for number in numbers:
        (file,) = folder.rglob(f"{number}.*")
        file.write_bytes(file.read_bytes()[:200])
    return folder


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_images_that_cannot_be_read_are_skipped_counted_and_named(tmp_path, capsys):
    folder = broken(tmp_path / "photos", 4, 9, 11, 20)
    options = replace(SPEAKING, on_bad_image="skip", bad_image_limit=0.5)
    overrides = {"image_size": 12, "batch_size": 4}
    run = quick_fit(folder, overrides=overrides, options=options, out=tmp_path / "run")
    bad = {str(next(folder.rglob(f"{number}.*"))) for number in (4, 9, 11, 20)}
    result = read_json((tmp_path / "run" / "result.json").read_text())
    assert {*result["bad_images"]} == bad
    assert all(result["bad_images"].values())
    parts = (run.history[-1].train, run.history[-1].validation, run.test)
    assert sum(part.images for part in parts) == 32
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "were skipped" in line]
    assert line.startswith("4 images could not be read and were skipped: ")
    assert all(name in line for name in bad)


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_an_image_that_cannot_be_read_ends_a_run_unless_it_is_to_be_skipped(tmp_path):
    folder = broken(tmp_path / "photos", 4, 9)
    few = replace(QUIET, on_bad_image="skip", bad_image_limit=0)
    for options in (QUIET, few):
        with pytest.raises(ValueError, match=r"(4|9)\.(png|jpg)"):
            quick_fit(folder, overrides={"image_size": 12}, options=options)


# Classes and parts, channels, float16


def test_classes_and_parts_are_chosen_by_name(tmp_path):
    photos(tmp_path / "mine")
    photos(tmp_path / "yours")
    run = quick_fit(
        tmp_path,
        overrides={"image_size": 12},
        epochs=1,
        classes=("dog", "cat"),
        parts={"train": "mine", "test": "yours"},
    )
    assert run.model.classes == ("dog", "cat")
    assert (run.history[0].train.images, run.test.images) == (32, 36)


@pytest.mark.bad_input
@pytest.mark.parametrize("given", [{"classes": ("a", "b")}, {"parts": {}}])
def test_classes_and_parts_of_loaders_that_are_open_already_are_refused(given):
    (name,) = given
    with pytest.raises(ValueError, match=f"^{name} is given, but data is Loaders"):
        quick_fit(loaders_of(), **given)


@pytest.mark.parametrize("preprocessing", ["standardize", "subtract_mean"])
def test_grey_images_train_a_network_of_one_channel(device, preprocessing):
    images = torch.rand(60, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(60) % 2)
    run = quick_fit(
        (data, data), overrides={"preprocessing": preprocessing}, epochs=1, options=quiet(device)
    )
    assert run.model.in_channels == run.model.preprocess.channels == 1
    color = quick_fit((data, data), overrides={"channels": 3}, epochs=1, options=quiet(device))
    assert color.model.in_channels == 3


def test_a_float16_run_learns_and_repeats_itself(device, tmp_path):
    options = replace(quiet(device), precision="float16")
    overrides = {"learning_rate": 0.02}
    run, again = (quick_fit(overrides=overrides, options=options, epochs=3) for _ in range(2))
    exact = quick_fit(overrides=overrides, epochs=3, options=quiet(device))
    assert_repeated(run, again)
    assert losses_of(run) == pytest.approx(losses_of(exact), rel=0.02)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


@pytest.mark.bad_input  # for the annotations
@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3)])
def test_numpys_numbers_are_seeds(number, tmp_path):
    run = quick_fit(seed=number, out=tmp_path, epochs=1)
    assert read_json((tmp_path / "recipe.json").read_text())["seed"] == 3
    assert torch.equal(weights_of(run.model), weights_of(quick_fit(seed=3, epochs=1).model))


# What a run refuses


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected an integer from 1 to 1000000"),
        ({"recipe": "plain"}, "recipe is 'plain'; expected a Recipe or one of 'modern'"),
        ({"recipe": {"epochs": 1}}, "recipe is {'epochs': 1}; expected a Recipe or one of"),
        (
            {"overrides": {"epoch": 1}},
            "overrides has ['epoch']; expected fields of Recipe; did you mean 'epochs'",
        ),
        ({"seed": -1}, "seed is -1; expected an integer from 0"),
        ({"seed": True}, "seed is True; expected an integer from 0"),
        ({"seed": 1.0}, "seed is 1.0; expected an integer from 0"),
        ({"seed": 2**70}, f"seed is {2**70}; expected an integer from 0"),
        ({"overrides": {"train_images": 61}}, "train_images is 61; expected 10"),
    ],
)
def test_an_argument_out_of_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        quick_fit(**arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize("data", [3, None, 1.5])
def test_data_of_another_kind_are_refused(data):
    message = f"data is a {type(data).__name__}; expected 'shapes', 'cifar10', a folder"
    with pytest.raises(TypeError, match=message):
        quick_fit(data)


@pytest.mark.bad_input
def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "photos"))):
        quick_fit(tmp_path / "photos")


@pytest.mark.bad_input
@pytest.mark.parametrize(("field", "value"), [("image_size", 20), ("num_classes", 3)])
def test_a_model_that_does_not_fit_the_data_is_refused_and_nothing_is_written(
    field, value, tmp_path
):
    model = AlexNet(**{"num_classes": 10, "architecture": TINY, field: value})
    with pytest.raises(ValueError, match=rf"^model has .*{value}.*; expected 1"):
        quick_fit(model=model, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_a_model_that_is_no_alexnet_is_refused():
    with pytest.raises(TypeError, match=r"model is a torch\..*Linear; expected an alexnet_lib"):
        quick_fit(model=torch.nn.Linear(1, 1))


@pytest.mark.bad_input
def test_a_plateau_without_validation_images_is_refused():
    loaders = loaders_of(schedule="plateau")._replace(validation=None)
    few = {"schedule": "plateau", "validation_fraction": 0.001}  # rounded, no image
    for data, overrides in ((loaders, {"schedule": "plateau"}), ("shapes", few)):
        with pytest.raises(ValueError, match=r"^data has no validation images, but .* 'plateau'"):
            quick_fit(data, overrides=overrides)


@pytest.mark.bad_input
def test_options_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="options is a dict; expected RunOptions"):
        quick_fit(options={"device": "cpu"})


@pytest.mark.bad_input
def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path):
    quick_fit(out=tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="holds a run already"):
        quick_fit(out=tmp_path, seed=1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.bad_input
def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"out is '.*run', which cannot be written"):
        quick_fit(out=tmp_path / "file" / "run")


@pytest.mark.bad_input
def test_too_little_disk_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10, 0, 10))
    with pytest.raises(OSError, match=r"where 0 MB are free; the checkpoints need"):
        quick_fit(out=tmp_path)
    assert not list(tmp_path.iterdir())


def poison_step(monkeypatch: pytest.MonkeyPatch, step: int, before=lambda: None) -> None:
    """Makes the loss of this step of the run, counted from 1, NaN."""
    steps, real = 0, Recipe.criterion

    def criterion(recipe, logits, labels):
        nonlocal steps
        steps += 1
        if steps == step:
            before()
            return real(recipe, logits, labels) * float("nan")
        return real(recipe, logits, labels)

    monkeypatch.setattr(Recipe, "criterion", criterion)


@pytest.mark.bad_input
def test_a_loss_that_is_not_finite_is_named_by_epoch_and_step(monkeypatch):
    poison_step(monkeypatch, 4 + 3)  # an epoch has four steps
    with pytest.raises(FloatingPointError, match="epoch 2: the loss of step 3 is not finite"):
        quick_fit()


@pytest.mark.bad_input
def test_a_loss_that_is_not_finite_leaves_the_files_of_the_last_good_epoch(tmp_path, monkeypatch):
    good = {}

    def look():
        good.update({file.name: file.read_bytes() for file in tmp_path.iterdir()})
        del good[".lock"]

    poison_step(monkeypatch, 5, look)
    with pytest.raises(FloatingPointError):
        quick_fit(out=tmp_path)
    assert {"best.safetensors", "last.safetensors", "history.jsonl"} <= set(good)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == good


@pytest.mark.bad_input
def test_weights_that_the_last_step_spoiled_are_not_written(device, tmp_path, monkeypatch):
    def take_step(run, real=TrainingRun.take_step):
        real(run)
        if run.steps_done == 4:  # a good loss and good gradients, but the update overflows
            next(run.model.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(TrainingRun, "take_step", take_step)
    with pytest.raises(FloatingPointError, match="epoch 1: the last step made weights NaN"):
        quick_fit(out=tmp_path, overrides={"validation_fraction": 0.0}, options=quiet(device))
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (6, "^epoch 1: the loss on the validation images is not finite"),
        (20, "^the loss on the test images is not finite"),
    ],
)
def test_an_evaluation_whose_loss_is_not_finite_is_named(part, message, monkeypatch):
    real = state.evaluate_together

    def spoiled(model, loader, *processes, **named):
        metrics = real(model, loader, *processes, **named)
        return replace(metrics, loss=float("nan")) if metrics.images == part else metrics

    monkeypatch.setattr(state, "evaluate_together", spoiled)
    with pytest.raises(FloatingPointError, match=message):
        quick_fit()


@pytest.mark.bad_input
def test_a_learning_rate_beyond_reason_ends_the_run(device):
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        quick_fit(overrides={"learning_rate": 1e12, "max_grad_norm": None}, options=quiet(device))


@pytest.mark.bad_input
def test_a_changed_network_that_cannot_be_saved_is_refused_before_the_first_epoch(tmp_path):
    model = AlexNet(10, architecture=TINY)
    model.features[1] = torch.nn.Tanh()
    with pytest.raises(ValueError, match="relu"):
        quick_fit("shapes", model=model, out=tmp_path / "run")
    assert not (tmp_path / "run" / "history.jsonl").exists()
