"""The promises of a run's files: what is continued, what is refused, and what is said about it."""

import json
import os
import re
import shutil
import threading
import warnings
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from helpers import random_pixels, write_class_folders
from PIL import Image
from processes import PHOTO, assert_same_result
from tiny import QUIET, TINY, tiny_recipe, use_tiny
from torch.utils.data import Dataset, TensorDataset

from alexnet_lib import AlexNet, load_checkpoint, prepare_loaders, stored_recipe
from alexnet_lib.files import RunFolder, read_tensors
from alexnet_lib.interrupts import Interrupted
from alexnet_lib.kernels import cpu
from alexnet_lib.training import fit as fit_module
from alexnet_lib.training import run_files
from alexnet_lib.training.fit import fit
from alexnet_lib.training.planning import Speed, Writing
from alexnet_lib.training.run_files import RunFiles
from alexnet_lib.training.state import TrainingRun
from alexnet_lib.training.step import TrainingStep

EPOCHS = 3
SPEAKING = replace(QUIET, progress=True)


def train(data="shapes", *, out: Path | None, recipe: dict | None = None, **arguments):
    changes = {"epochs": EPOCHS, "dropout": 0.5, **(recipe or {})}
    arguments = {"options": QUIET, "checkpoint_every": 0.0, **arguments}
    return fit(data, recipe=tiny_recipe(**changes), out=out, **arguments)


def stopped(monkeypatch, *, data="shapes", out: Path, after: int = 6, **arguments) -> Path:
    """A run that a signal stops after so many steps."""
    with monkeypatch.context() as patch:
        real, steps = TrainingRun.take_step, 0

        def take_step(run):
            nonlocal steps
            real(run)
            steps += 1
            if steps == after:
                raise Interrupted(15)

        patch.setattr(TrainingRun, "take_step", take_step)
        with pytest.raises(Interrupted):
            train(data, out=out, **arguments)
    assert (out / "state.safetensors").exists()
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that was not stopped; no test changes it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        train(out=folder)
    return folder


# What is continued


@pytest.mark.parametrize("after", range(1, 4 * EPOCHS + 1))
def test_a_run_that_is_stopped_after_any_step_ends_as_if_it_had_not_been(
    after, whole, tmp_path, monkeypatch
):
    run = stopped(monkeypatch, out=tmp_path / "run", after=after)
    train(out=run, resume="auto")
    assert_same_result(run, whole)


def test_a_run_can_be_stopped_again_and_again(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    for _ in range(2 * EPOCHS):
        stopped(monkeypatch, out=run, after=2, resume="auto")
    train(out=None, resume=run)
    assert_same_result(run, whole)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_run_that_is_stopped_while_it_is_evaluated_goes_on(part, whole, tmp_path, monkeypatch):
    run, real = tmp_path / "run", TrainingRun.evaluate

    def evaluate(self, model, on, **named):
        if on == part:
            raise Interrupted(2)
        return real(self, model, on, **named)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "evaluate", evaluate)
        with pytest.raises(Interrupted):
            train(out=run, checkpoint_every=300.0)
    train(out=run, resume="auto")
    assert_same_result(run, whole)


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors", "history.jsonl"])
@pytest.mark.parametrize("epoch", [1, EPOCHS])
def test_files_that_are_behind_the_state_are_written_when_it_goes_on(
    name, epoch, whole, tmp_path, monkeypatch
):
    run, real, written = tmp_path / "run", os.replace, 0

    def replace_file(source, target):
        nonlocal written
        written += Path(target).name == name
        if written == epoch:
            raise RuntimeError("the power went")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_file)
        try:
            train(out=run)
        except RuntimeError:
            pass
        else:  # the best epoch was an earlier one
            assert name == "best.safetensors"
            return
    monkeypatch.setattr(os, "replace", real)
    train(out=run, resume="auto")
    assert_same_result(run, whole)


def test_files_that_are_ahead_of_the_state_are_written_again(whole, tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run", after=5)
    state = (run / "state.safetensors").read_bytes()
    stopped(monkeypatch, out=run, after=6, resume="auto")
    assert len((run / "history.jsonl").read_text().splitlines()) == 2
    (run / "state.safetensors").write_bytes(state)
    (run / "best.safetensors").write_bytes(b"of a later epoch")
    stopped(monkeypatch, out=run, after=1, resume="auto")
    assert len((run / "history.jsonl").read_text().splitlines()) == 1
    assert load_checkpoint(run / "best.safetensors").metrics["epoch"] == 1
    train(out=run, resume="auto")
    assert_same_result(run, whole)


def test_auto_begins_a_run_where_there_is_none(whole, tmp_path):
    train(out=tmp_path / "run", resume="auto")
    assert_same_result(tmp_path / "run", whole)


def test_a_run_that_was_stopped_before_its_first_state_begins_anew(whole, tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run")
    for name in RunFolder.FILES:
        if name != "recipe.json":
            (run / name).unlink(missing_ok=True)
    train(out=run, resume="auto")
    assert_same_result(run, whole)


def test_images_that_could_not_be_read_are_remembered(tmp_path, monkeypatch):
    photos = write_class_folders(tmp_path / "photos", count=24, size=PHOTO)
    file = sorted(photos.rglob("*.png"))[0]
    file.write_bytes(file.read_bytes()[:300])
    options = replace(QUIET, on_bad_image="skip")
    results = []
    for name, stops in (("whole", ()), ("run", (1, 2, 2))):
        arguments = {"out": tmp_path / name, "resume": "auto", "options": options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image cannot be read
            for after in stops:
                stopped(monkeypatch, data=photos, after=after, **arguments)
            train(photos, **arguments)
        results.append(json.loads((tmp_path / name / "result.json").read_text())["bad_images"])
    assert results[0] == results[1] != {}
    assert_same_result(tmp_path / "run", tmp_path / "whole")


def test_the_seconds_of_all_parts_of_a_run_are_counted(tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run")
    tensors, metadata = read_tensors(run / "state.safetensors")
    state = json.loads(metadata["state"]) | {"seconds": 5000.0}
    run_files.write_tensors(run / "state.safetensors", tensors, {"state": json.dumps(state)})
    train(out=run, resume="auto")
    assert 5000 < json.loads((run / "result.json").read_text())["seconds"] < 6000


def test_options_that_are_auto_are_those_that_the_run_has_computed_with(tmp_path, monkeypatch):
    options = replace(QUIET, precision="bfloat16", memory_format="channels_last")
    run = stopped(monkeypatch, out=tmp_path / "run", options=options)
    train(out=run, resume="auto", options=replace(options, precision="auto", memory_format="auto"))
    stored = json.loads((run / "recipe.json").read_text())["options"]
    assert (stored["precision"], stored["memory_format"]) == ("bfloat16", "channels_last")


# With a plan

MINUTES = 27.0  # three epochs of four steps of 100 s take 20 of them, a fourth is too much
ASKED = MappingProxyType({"recipe": {"epochs": 9}, "max_minutes": MINUTES})


def with_plan(monkeypatch) -> list[dict]:
    """A step takes 100 seconds; the list fills with what was measured for."""
    measured: list[dict] = []

    def measure(*arguments, **named) -> Speed:
        measured.append(named)
        return Speed(step=100.0, first_steps=0.0, validation_image=0.0, test_image=0.0)

    monkeypatch.setattr(fit_module, "measure_speed", measure)
    monkeypatch.setattr(RunFiles, "writing", lambda *_: Writing())
    return measured


@pytest.mark.parametrize("after", [1, 4, 7])
@pytest.mark.parametrize("by", ["auto", "folder"])
def test_a_planned_run_keeps_its_plan_when_it_goes_on(after, by, whole, tmp_path, monkeypatch):
    measured = with_plan(monkeypatch)
    run = stopped(monkeypatch, out=tmp_path / "run", after=after, **ASKED)
    stored = (run / "recipe.json").read_bytes()
    where = {"out": run, "resume": "auto"} if by == "auto" else {"out": None, "resume": run}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(**where, **ASKED)
    assert len(measured) == 1
    assert (run / "recipe.json").read_bytes() == stored
    assert_same_result(run, whole)


def test_a_run_that_was_planned_with_fewer_images_goes_on_with_them(tmp_path, monkeypatch):
    measured = with_plan(monkeypatch)
    asked = {"recipe": {"epochs": 9, "batch_size": 2}, "max_minutes": MINUTES}
    run = stopped(monkeypatch, out=tmp_path / "run", after=2, **asked)
    train(out=run, resume="auto", **asked)
    assert len(measured) == 1
    stored, _ = stored_recipe(run)
    assert stored.epochs == 1
    assert stored.train_images < 40
    fit("shapes", recipe=stored, out=tmp_path / "whole", options=QUIET)
    assert_same_result(run, tmp_path / "whole")


def test_a_planned_run_goes_on_by_its_own_recipe_too(whole, tmp_path, monkeypatch):
    measured = with_plan(monkeypatch)
    run = stopped(monkeypatch, out=tmp_path / "run", after=2, **ASKED)
    stopped(monkeypatch, out=run, after=2, resume="auto", max_minutes=MINUTES)
    train(out=run, resume="auto")
    assert len(measured) == 1
    assert_same_result(run, whole)


def test_a_planned_run_that_was_stopped_before_its_first_state_begins_with_its_plan(
    whole, tmp_path, monkeypatch
):
    measured = with_plan(monkeypatch)
    run = stopped(monkeypatch, out=tmp_path / "run", after=2, **ASKED)
    (run / "state.safetensors").unlink()
    train(out=run, resume="auto", **ASKED)
    assert len(measured) == 1
    assert_same_result(run, whole)


@pytest.mark.parametrize(
    ("begun", "words"),
    [(ASKED, "planned for 27 minutes"), ({"recipe": {"epochs": 3}}, "begun without it")],
)
def test_other_minutes_change_nothing_and_a_warning_says_so(
    begun, words, whole, tmp_path, monkeypatch
):
    with_plan(monkeypatch)
    run = stopped(monkeypatch, out=tmp_path / "run", after=2, **begun)
    words = rf"^max_minutes is 7, but the run in '.*run' was {words}; its epochs and images stay"
    with pytest.warns(UserWarning, match=words):
        train(out=run, resume="auto", recipe=begun["recipe"], max_minutes=7)
    assert_same_result(run, whole)


@pytest.mark.bad_input
@pytest.mark.parametrize("changes", [{"recipe": {"epochs": 9}}, {**ASKED, "recipe": {"epochs": 8}}])
def test_a_plan_of_another_recipe_is_not_continued(changes, tmp_path, monkeypatch):
    with_plan(monkeypatch)
    run = stopped(monkeypatch, out=tmp_path / "run", after=2, **ASKED)
    words = r"^the recipe's epochs is [89], but that of the run in .* is 3; expected the same"
    with pytest.raises(ValueError, match=words):
        train(out=run, resume="auto", **changes)


# When it is written


def test_the_state_is_written_every_so_many_seconds_and_at_an_epochs_end(tmp_path, monkeypatch):
    now, cost = 0.0, 0.1
    written: list[tuple[int, int]] = []

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now

    def take_step(run, real=TrainingRun.take_step):
        nonlocal now
        real(run)
        now += 10.0

    def write(file, tensors, metadata):
        nonlocal now
        now += cost
        state = json.loads(metadata["state"])["run"]
        written.append((state["epoch"], state["totals"]["steps"]))

    monkeypatch.setattr(run_files, "time", Clock)
    monkeypatch.setattr(TrainingRun, "take_step", take_step)
    monkeypatch.setattr(run_files, "write_tensors", write)
    train(out=tmp_path / "a", checkpoint_every=20.0)
    assert written == [(0, 2), (0, 4), (1, 2), (1, 4), (2, 2), (2, 4), (3, 0)]
    written.clear()
    train(out=tmp_path / "b", checkpoint_every=300.0)
    assert written == [(1, 0), (2, 0), (3, 0)]
    # It takes a tenth of an epoch: at the ends of epochs it is written at the end alone.
    written.clear()
    cost = 4.0
    train(out=tmp_path / "c", checkpoint_every=300.0)
    assert written == [(1, 0), (3, 0)]


def test_without_out_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(out=None)
    assert not [*tmp_path.iterdir()]


# What is refused


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": {"learning_rate": 0.2}}, "the recipe's learning_rate is 0.2, but that of the"),
        ({"recipe": {"epochs": 9}}, "the recipe's epochs is 9, but that of the run in {} is 3"),
        ({"seed": 1}, "seed is 1, but that of the run in {} is 0"),
    ],
)
def test_another_run_is_not_continued(changes, words, tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run")
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(ValueError, match=re.escape(words.format(repr(str(run))))):
        train(out=run, resume="auto", **changes)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def photos_with(folder: Path, change) -> Path:
    photos = write_class_folders(folder, count=12)
    change(photos)
    return photos


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda photos: sorted(photos.rglob("*.png"))[3].unlink(), "SHA-256 of the images"),
        (
            lambda photos: Image.fromarray(random_pixels(40, 40)).save(
                sorted(photos.rglob("*.png"))[3]
            ),
            "SHA-256 of the images",
        ),
        (
            lambda photos: next(photos.iterdir()).rename(photos / "another name"),
            "the classes of data",
        ),
    ],
)
def test_other_photos_are_refused(change, words, tmp_path, monkeypatch):
    photos = write_class_folders(tmp_path / "photos", count=12)
    run = stopped(monkeypatch, data=photos, out=tmp_path / "run", after=2)
    moved = photos.rename(tmp_path / "moved")  # that is no other data
    stopped(monkeypatch, data=moved, out=run, after=1, resume="auto")
    change(moved)
    with pytest.raises(ValueError, match=words):
        train(moved, out=run, resume="auto")


@pytest.mark.bad_input
def test_other_images_or_labels_in_memory_are_refused(tmp_path, monkeypatch):
    def data(spoil: int = 0) -> TensorDataset:
        images = torch.from_numpy(np.stack([random_pixels(12, 12, i) for i in range(40)]))
        labels = torch.arange(40) % 4
        if spoil == 1:
            images[7, 3, 3, 0] ^= 1
        if spoil == 2:
            labels[7] = (labels[7] + 1) % 4
        return TensorDataset(images.movedim(-1, 1), labels)

    run = stopped(monkeypatch, data=data(), out=tmp_path / "run", after=2)
    for spoil in (1, 2):
        with pytest.raises(ValueError, match="the SHA-256 of the images and labels of data is"):
            train(data(spoil), out=run, resume="auto")
    train(data(), out=run, resume="auto")


@pytest.mark.bad_input
def test_a_finished_run_is_not_continued(whole):
    with pytest.raises(
        FileExistsError, match=r"is finished; its weights are in .*best\.safetensors"
    ):
        train(out=whole, resume="auto")
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(out=whole)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("out", "resume", "error", "words"),
    [
        (None, "auto", ValueError, "resume is 'auto', but out is None"),
        ("a", "b", ValueError, "resume is 'b', but out is 'a'"),
        (None, "missing", FileNotFoundError, "resume is 'missing', which holds no run"),
        (None, 3, TypeError, "resume is a int; expected a path"),
        ("", None, ValueError, "out is ''; expected a path"),
        ("", "auto", ValueError, "out is ''; expected a path"),
    ],
)
def test_what_cannot_be_resumed_is_named(out, resume, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=f"^{re.escape(words)}"):
        train(out=out, resume=resume)


@pytest.mark.bad_input
@pytest.mark.parametrize("every", [-1, float("nan"), float("inf"), "often", None])
def test_an_interval_that_is_no_number_of_seconds_is_refused(every):
    with pytest.raises(ValueError, match=r"^checkpoint_every is "):
        train(out=None, checkpoint_every=every)


@pytest.mark.bad_input
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"recipe": 3}', b"[" * 100_000, b"\xff"])
def test_a_damaged_description_is_named(content, tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run")
    (run / "recipe.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe\.json is damaged"):
        train(out=run, resume="auto")


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [3, "x", [], {}, {"max_minutes": "x"}, {"max_minutes": 0}])
def test_a_damaged_plan_is_named(value, tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run")
    stored = json.loads((run / "recipe.json").read_text()) | {"planned_from": value}
    (run / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"recipe\.json is damaged"):
        train(out=run, resume="auto", max_minutes=3)


@pytest.mark.bad_input
def test_a_damaged_state_is_named(tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run")
    content = bytearray((run / "state.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "state.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
        train(out=run, resume="auto")


@pytest.mark.bad_input
def test_files_without_a_description_are_left_alone(tmp_path):
    (tmp_path / "history.jsonl").write_text("mine")
    for resume in (None, "auto"):
        with pytest.raises(FileExistsError):
            train(out=tmp_path, resume=resume)
    assert (tmp_path / "history.jsonl").read_text() == "mine"


def test_what_else_is_computed_with_is_said(tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run")
    stored = json.loads((run / "recipe.json").read_text())
    stored["threads"] += 1
    stored["processor"] = "another"
    stored["kernels"] = not stored["kernels"]
    stored["versions"]["torch"] = "1.0"
    (run / "recipe.json").write_text(json.dumps(stored))
    words = (
        r"is continued with processor .*threads .* instead of .*kernels .*torch .* instead of 1\.0"
    )
    with pytest.warns(UserWarning, match=words):
        train(out=run, resume="auto")


def test_two_runs_do_not_write_to_one_folder(tmp_path, monkeypatch):
    errors = []

    def second(self, *arguments, real=TrainingStep.train_on, **named):
        if not errors:
            with pytest.raises(BlockingIOError, match="to which another run is writing") as raised:
                train(out=tmp_path / "run", resume="auto")
            errors.append(raised)
        return real(self, *arguments, **named)

    monkeypatch.setattr(TrainingStep, "train_on", second)
    train(out=tmp_path / "run")
    assert errors


@pytest.mark.bad_input
def test_a_folder_that_is_removed_during_the_run_is_an_error(tmp_path, monkeypatch):
    def remove(run, real=TrainingRun.take_step):
        real(run)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    monkeypatch.setattr(TrainingRun, "take_step", remove)
    with pytest.raises(FileNotFoundError, match="was removed or replaced during the run"):
        train(out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
def test_the_disk_must_have_space_for_two_states_and_the_weights(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed: list[int] = []

    def begin(self, run, *arguments, real=RunFiles.begin, **named):
        self._run = run
        needed.append(self.most_bytes)
        return real(self, run, *arguments, **named)

    monkeypatch.setattr(RunFiles, "begin", begin)
    train(out=tmp_path / "first")
    sizes = [
        (tmp_path / "first" / f"{name}.safetensors").stat().st_size for name in ("best", "last")
    ]
    assert needed[0] < sum(sizes) * 4
    for free, fits in ((needed[0], True), (needed[0] - 1, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: usage(1, 0, free))
        if fits:
            train(out=tmp_path / "second")
        else:
            with pytest.raises(OSError, match="the checkpoints need"):
                train(out=tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.bad_input
def test_one_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one of 2 processes"):
        train(out=tmp_path / "run")
    assert not [*tmp_path.iterdir()]
    monkeypatch.setenv("WORLD_SIZE", "1")
    train(out=None)


class Named(Dataset):
    """A data set with an attribute of its own called ``data``."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.full((3, 12, 12), index / 20), index % 4


@pytest.mark.parametrize(
    "data",
    [
        np.array(["a.jpg", "b.jpg"]),
        np.array([{"a": 1}, None]),
        np.arange(6)[::-1],
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.tensor(3),
    ],
)
def test_what_a_data_set_calls_its_data_may_be_anything(data, tmp_path):
    train(Named(data), out=tmp_path / "run", recipe={"epochs": 1})


@pytest.mark.bad_input
@pytest.mark.parametrize("change", ["shuffle", "drop_last", "frozen"])
def test_other_loaders_and_models_are_refused(change, tmp_path, monkeypatch):
    def given(change: str = "") -> dict:
        loaders = prepare_loaders("shapes", tiny_recipe(), options=QUIET)
        changes = {"shuffle": {"shuffle": False}, "drop_last": {"drop_last": True}}.get(change, {})
        model = AlexNet(10, architecture=TINY, seed=0)
        if change == "frozen":
            model.freeze("conv1")
        return {
            "data": loaders._replace(train=replace(loaders.train, **changes)),
            "model": model,
        }

    run = stopped(monkeypatch, out=tmp_path / "run", **given())
    stopped(monkeypatch, out=run, resume="auto", after=1, **given())
    with pytest.raises(ValueError, match="what was given as model or Loaders is"):
        train(out=run, resume="auto", **given(change))


@pytest.mark.bad_input
def test_a_run_whose_state_is_gone_does_not_begin_anew_over_its_files(tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run")
    (run / "state.safetensors").unlink()
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(FileNotFoundError, match=r"cannot be continued: it has history\.jsonl"):
        train(out=run, resume="auto")
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change",
    [
        {"best_epoch": 99},
        {"best_epoch": 0},
        {"epoch": 10**9},
        {"epoch": -5},
        {"batches_read": -1},
        {"batches_read": 99},
        {"history": []},
        {"totals": None},
        {"loaders": [None, None, None]},
        {"model": {}},
    ],
)
def test_a_state_that_can_be_of_no_run_is_named(change, tmp_path, monkeypatch):
    run = stopped(monkeypatch, out=tmp_path / "run")
    tensors, metadata = read_tensors(run / "state.safetensors")
    state = json.loads(metadata["state"])
    state["run"] |= change
    run_files.write_tensors(run / "state.safetensors", tensors, {"state": json.dumps(state)})
    with pytest.raises(ValueError, match=r"state\.safetensors is not the state of this run"):
        train(out=run, resume="auto")


@pytest.mark.bad_input
def test_two_runs_in_threads_would_draw_from_one_generator(monkeypatch):
    errors = []

    def second():
        with pytest.raises(RuntimeError, match="fit is running in another thread") as raised:
            train(out=None)
        errors.append(raised)

    def take_step(run, real=TrainingRun.take_step):
        if not errors:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        real(run)

    monkeypatch.setattr(TrainingRun, "take_step", take_step)
    train(out=None)
    assert len(errors) == 1
    train(out=None)  # it is free again


def test_a_data_set_that_changes_the_working_directory_does_not_move_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Moving(Named):
        def __getitem__(self, index):
            os.chdir("/")
            return super().__getitem__(index)

    train(Moving(None), out="run", recipe={"epochs": 1})
    assert (tmp_path / "run" / "result.json").exists()


# What is said


def test_it_is_said_what_is_written_and_how_to_go_on(tmp_path, monkeypatch, capsys):
    run = stopped(monkeypatch, out=tmp_path / "run", options=SPEAKING, after=6)
    err = capsys.readouterr().err
    assert re.search(rf"^written to {re.escape(str(run))}, at most \d+ MB$", err, re.MULTILINE)
    assert f"stopped after 6 of 12 steps; {run} has the state and the best weights so far" in err
    stopped(monkeypatch, out=run, options=SPEAKING, after=1, resume="auto")
    assert "; goes on after 6 of 12 steps\n" in capsys.readouterr().err


def test_kernels_are_stored(tmp_path):
    train(out=tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert stored["kernels"] == (cpu.load() is not None)
    assert stored["threads"] == torch.get_num_threads()
