"""The promises of a run that is planned to end within some minutes."""

import itertools
import json
import math
import multiprocessing
import weakref
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import write_class_folders
from processes import PHOTO
from tiny import QUIET, Noisy, tiny_recipe, weights_of
from torch.utils.data import TensorDataset

from alexnet_lib import prepare_loaders, prepare_model, stored_recipe
from alexnet_lib.data.loaders import Loaders
from alexnet_lib.training import fit as fit_module
from alexnet_lib.training import planning
from alexnet_lib.training.fit import Run, fit
from alexnet_lib.training.planning import Plan, Speed, Writing, measure_speed, plan_run
from alexnet_lib.training.preparation import open_data
from alexnet_lib.training.run_files import RunFiles
from alexnet_lib.training.state import TrainingRun

SPEAKING = replace(QUIET, progress=True)

# In an epoch of the shapes of `use_tiny`, in batches of 16: 4 steps and 6 validation images.
SPEED = Speed(step=1.0, first_steps=2.0, validation_image=0.5, test_image=0.25)
EPOCH = 4 * 1.0 + 6 * 0.5
ONCE = 2.0 + 20 * 0.25


def planned(
    minutes: float,
    *,
    data="shapes",
    speed: Speed = SPEED,
    writing: Writing = Writing(),  # noqa: B008  (immutable)
    spent: float = 0.0,
    preparing: float = 0.0,
    given: bool = False,
    **changes,
) -> Plan:
    """The plan of a run of ten epochs."""
    recipe = tiny_recipe(**{"epochs": 10, **changes})
    opened = open_data(data, recipe, classes=None, parts=None, options=QUIET)
    loaders = prepare_loaders(opened, recipe, options=QUIET)
    return plan_run(
        recipe,
        loaders if given else opened,
        loaders,
        prepare_model(loaders, recipe, options=QUIET),
        speed,
        writing,
        max_minutes=minutes,
        spent=spent,
        preparing=preparing,
    )


def minutes_for(seconds: float) -> float:
    """The minutes that just suffice for a run of so many seconds."""
    return seconds / 60 / 0.9 * (1 + 1e-9)


def lowered(plan: Plan) -> tuple[int, int | None]:
    return plan.recipe.epochs, plan.recipe.train_images


# What is planned


@pytest.mark.parametrize("epochs", [1, 2, 7, 9, 10])
def test_there_are_as_many_epochs_as_end_within_nine_tenths_of_the_minutes(epochs):
    seconds = 30 + ONCE + epochs * EPOCH
    assert lowered(planned(minutes_for(seconds), spent=30.0)) == (epochs, None)
    if epochs > 1:
        assert lowered(planned(minutes_for(seconds - 0.01), spent=30.0)) == (epochs - 1, None)


@pytest.mark.parametrize("minutes", [5, 1e308])
def test_there_are_no_more_epochs_than_the_recipes(minutes):
    assert lowered(planned(minutes)) == (10, None)


def test_epochs_on_smaller_images_are_counted_by_their_arithmetic():
    changes = {"image_size": 20, "growth_fraction": 0.5, "start_size": 0.6}
    # Of 10 epochs 3 on 12 pixels and 2 on 16; of 4 epochs 2 on 12. Of 9,388 products 640 are the
    # linear layer's, and a fifth of all is the update.
    small, middle = ((products + 640 + 0.2 * 9388) / (1.2 * 9388) for products in (2700, 5292))
    for epochs, cost in ((10, 3 * small + 2 * middle + 5), (4, 2 * small + 2)):
        minutes = (cost * EPOCH + ONCE) / 0.9 / 60
        assert planned(minutes * 1.0001, **changes).recipe.epochs == epochs
        assert planned(minutes * 0.9999, **changes).recipe.epochs == epochs - 1


def test_nothing_else_of_the_recipe_is_changed():
    plan = planned(minutes_for(ONCE + 3 * EPOCH), schedule="plateau", color_noise=0.2)
    expected = tiny_recipe(epochs=3, schedule="plateau", color_noise=0.2)
    assert plan.recipe == expected


@pytest.mark.parametrize(
    ("writing", "state"),
    [
        (Writing(weights=3.0, state=9.0, every=math.inf), 0.0),
        (Writing(weights=3.0, state=9.0, every=2.0), 4.5),  # after every second step
        (Writing(weights=3.0, state=9.0, every=0.25), 9.0),  # after each step
        (Writing(weights=3.0, state=9.0, every=0.0), 9.0),
    ],
)
def test_writing_the_files_is_counted(writing, state):
    # The last and the best weights in each epoch, states on the way, and one at the end.
    seconds = ONCE + 4 * (EPOCH + 4 * state + 2 * 3.0) + 9.0
    assert lowered(planned(minutes_for(seconds), writing=writing)) == (4, None)
    assert lowered(planned(minutes_for(seconds - 0.01), writing=writing)) == (3, None)


def test_a_step_of_several_batches_is_one_step():
    speed = SPEED._replace(validation_image=0.0)
    changes = {"batch_size": 8, "accumulation_steps": 3}  # 7 batches
    seconds = ONCE + 5 * 3
    assert lowered(planned(minutes_for(seconds), speed=speed, **changes)) == (5, None)
    assert lowered(planned(minutes_for(seconds - 0.01), speed=speed, **changes)) == (4, None)


# An epoch of 54 images in batches of 2 takes 27 seconds.
SMALL = {"batch_size": 2}
NO_EVALUATION = SPEED._replace(validation_image=0.0)


@pytest.mark.parametrize("preparing", [0.0, 3.0])
@pytest.mark.parametrize("changes", [{}, {"drop_last": True}, {"validation_fraction": 0.3}])
def test_where_no_epoch_fits_there_is_one_of_as_many_images_as_fit(changes, preparing):
    changes = {**SMALL, **changes}
    for steps in range(11, 18):
        minutes = minutes_for(ONCE + preparing + steps)
        plan = planned(minutes, speed=NO_EVALUATION, preparing=preparing, **changes)
        epochs, images = lowered(plan)
        assert epochs == 1
        assert images is not None
        counts = [len(prepared(count, changes).train) for count in (images, images + 1)]
        assert counts[0] == steps < counts[1]


def prepared(images: int, changes) -> Loaders:
    return prepare_loaders("shapes", tiny_recipe(train_images=images, **changes), options=QUIET)


def three_parts(classes: int = 2) -> dict[str, TensorDataset]:
    parts = {"train": 60, "validation": 8, "test": 10}
    return {
        name: TensorDataset(torch.rand(count, 3, 12, 12), torch.arange(count) % classes)
        for name, count in parts.items()
    }


def test_a_validation_part_that_data_has_keeps_its_images():
    speed = SPEED._replace(test_image=0.0)
    minutes = minutes_for(2.0 + 20 + 8 * 0.5)
    assert lowered(planned(minutes, data=three_parts(), speed=speed, **SMALL)) == (1, 40)


def test_the_number_of_images_that_the_recipe_has_is_lowered_further():
    # 40 images, 4 of which are for validation, are 18 steps.
    changes = {**SMALL, "train_images": 40}
    assert lowered(planned(minutes_for(ONCE + 18), speed=NO_EVALUATION, **changes)) == (1, 40)
    assert lowered(planned(minutes_for(ONCE + 17), speed=NO_EVALUATION, **changes)) == (1, 38)


def test_a_plan_is_said_in_one_line():
    epochs = planned(minutes_for(ONCE + 7 * EPOCH + 60), spent=60.0)
    assert epochs.line == (
        f"plan for {minutes_for(ONCE + 7 * EPOCH + 60):g} minutes: 7 of 10 epochs; 14 images/s, "
        "about 2 min in all"
    )
    minutes = minutes_for(ONCE + 12)
    images = planned(minutes, speed=NO_EVALUATION, early_stopping=3, **SMALL)
    assert images.line == (
        f"plan for {minutes:g} minutes: 1 of 10 epochs, 27 of 60 training images; 2 images/s, "
        "at most 19 s in all"
    )


# Minutes that do not suffice


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "needed", "images"),
    [
        # Ten steps of two images, and a tenth more for validation.
        (SMALL, ONCE + 11, 23),
        ({"batch_size": 3, "accumulation_steps": 2, "validation_fraction": 0.0}, ONCE + 10, 60),
        # All there are, in fewer steps.
        ({}, ONCE + 4, 60),
        # As many as there are classes, at least.
        ({"batch_size": 1, "data": three_parts(20)}, 2.0 + 10 * 0.25 + 20, 20),
        ({**SMALL, "given": True}, ONCE + 27, 54),
    ],
)
def test_minutes_that_do_not_suffice_are_refused_with_those_that_would(changes, needed, images):
    with pytest.raises(ValueError, match=r"^max_minutes is 0\.01; expected at least ") as error:
        planned(0.01, speed=NO_EVALUATION, spent=600.0, **changes)
    words = str(error.value).split()
    expected = (600 + needed) / 60 / 0.82  # of which up to 8 % are for measuring
    assert float(words[6].rstrip(",")) == math.ceil(10 * expected) / 10
    assert f"for one epoch of {images} training images and the test" in str(error.value)
    planned(float(words[6].rstrip(",")), speed=NO_EVALUATION, spent=600.0, **changes)


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "50", True, [50]])
def test_minutes_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=r"^max_minutes is .*; expected a finite number above 0$"):
        fit("shapes", recipe=tiny_recipe(), max_minutes=value, options=QUIET)


@pytest.mark.bad_input
def test_too_few_minutes_leave_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match=r"^max_minutes is 1e-06; expected at least 0\.\d"):
        fit("shapes", recipe=tiny_recipe(), max_minutes=1e-6, out=tmp_path / "a", options=QUIET)
    assert not list(tmp_path.iterdir())


# How the speed is measured


def measured(clock, monkeypatch, *, minutes: float = 1000, first=(5.0, 3.0, 2.0), **changes):
    """The speed of a run, and its steps, where a step takes a second; the first ones take longer.

    A validation or test image takes a hundredth of a second for each view.
    """
    durations = itertools.chain(first, itertools.repeat(1.0))
    real_step, real_evaluate = TrainingRun.take_step, planning.evaluate
    steps = 0

    def take_step(run):
        nonlocal steps
        real_step(run)
        steps += 1
        clock.now += next(durations)

    def evaluate(model, loader, *, views, **named):
        metrics = real_evaluate(model, loader, views=views, **named)
        clock.now += metrics.images * views / 100
        return metrics

    monkeypatch.setattr(planning, "time", clock)
    monkeypatch.setattr(TrainingRun, "take_step", take_step)
    monkeypatch.setattr(planning, "evaluate", evaluate)
    recipe = tiny_recipe(**changes)
    loaders = prepare_loaders("shapes", recipe, options=QUIET)
    model = prepare_model(loaders, recipe, options=QUIET)
    speed = measure_speed(recipe, loaders, model, seed=0, options=QUIET, max_minutes=minutes)
    return speed, steps


@pytest.mark.parametrize(
    ("changes", "steps", "speed"),
    [
        # Three steps are left out, which take seven seconds more.
        ({"batch_size": 2}, 20, (1.0, 7.0)),
        # Over the ends of epochs.
        ({"epochs": 10}, 20, (1.0, 7.0)),
        # No more steps than the run has; of few steps, half is left out, and of one, none.
        ({"epochs": 2}, 8, (1.0, 7.0)),
        ({"epochs": 1}, 4, (1.5, 5.0)),
        ({"epochs": 1, "batch_size": 60}, 1, (5.0, 0.0)),
        # It ends when a fiftieth of the minutes is over, here 7.2 s: after 5 + 3 of the first
        # steps, and after 2 + 1 + 1 + 1 + 1 + 1 + 1 of the others.
        ({"batch_size": 2, "minutes": 6}, 9, (8 / 7, 8 - 2 * 8 / 7)),
        ({"batch_size": 2, "minutes": 1e-6}, 2, (3.0, 2.0)),
    ],
)
def test_the_seconds_of_a_step_are_those_of_the_first_without_the_very_first(
    changes, steps, speed, clock, monkeypatch
):
    found, taken = measured(clock, monkeypatch, **changes)
    assert taken == steps
    assert found[:2] == pytest.approx(speed)


@pytest.mark.parametrize("views", [1, 2, 10])
def test_the_test_is_measured_in_its_views(views, clock, monkeypatch):
    found, _ = measured(clock, monkeypatch, views=views, resize_ratio=1.5)
    assert found.validation_image == pytest.approx(0.01)
    assert found.test_image == pytest.approx(views / 100)


def test_of_an_evaluation_a_few_batches_are_measured(clock, monkeypatch):
    seen, real = [], planning.evaluate

    def evaluate(model, loader, **named):
        metrics = real(model, loader, **named)
        seen.append(metrics.images)
        return metrics

    monkeypatch.setattr(planning, "evaluate", evaluate)
    measured(clock, monkeypatch, batch_size=2)
    assert seen == [2, 6, 2, 8]  # of 6 and 20
    seen.clear()
    measured(clock, monkeypatch, batch_size=2, minutes=1e-6)
    assert seen == [2, 2]


def test_parts_that_there_are_not_take_no_time():
    recipe = tiny_recipe()
    loaders = prepare_loaders("shapes", recipe, options=QUIET)._replace(validation=None, test=None)
    model = prepare_model(loaders, recipe, options=QUIET)
    speed = measure_speed(recipe, loaders, model, seed=0, options=QUIET, max_minutes=1)
    assert speed[2:] == (0.0, 0.0)


def test_measuring_leaves_the_loaders_and_the_model_as_they_were(tmp_path):
    recipe = tiny_recipe(dropout=0.5, resize_ratio=1.2, random_crop=True, freeze=("conv1",))
    photos = write_class_folders(tmp_path, count=24, size=PHOTO)
    for file in sorted(photos.rglob("*.png"))[:2]:
        file.write_bytes(file.read_bytes()[:300])
    options = replace(QUIET, num_workers=1, on_bad_image="skip", bad_image_limit=0.5)
    loaders = prepare_loaders(photos, recipe, options=options)
    model = prepare_model(loaders, recipe, options=options).eval()
    loaders.train.set_epoch(3)
    before, states = weights_of(model), [loader.state() for loader in loaders]
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist()
    with pytest.warns(UserWarning, match="cannot be read"):
        measure_speed(recipe, loaders, model, seed=0, options=options, max_minutes=1)
    assert torch.equal(weights_of(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert [loader.state() for loader in loaders] == states
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.random.get_state()[1].tolist() == generators[1]
    assert not multiprocessing.active_children()


def test_what_was_measured_with_is_freed(monkeypatch):
    made = []

    class Noted(TrainingRun):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            made.extend(map(weakref.ref, (self, self.model, self.optimizer)))

    monkeypatch.setattr(planning, "TrainingRun", Noted)
    recipe = tiny_recipe()
    loaders = prepare_loaders("shapes", recipe, options=QUIET)
    model = prepare_model(loaders, recipe, options=QUIET)
    measure_speed(recipe, loaders, model, seed=0, options=QUIET, max_minutes=1)
    assert [reference() for reference in made] == [None] * 3


# What a planned run computes

# Steps that take so long that what really takes time does not matter.
SLOW = Speed(step=100.0, first_steps=0.0, validation_image=0.0, test_image=0.0)


def with_speed(monkeypatch, speed: Speed = SLOW) -> list[Speed]:
    """Measures, and then says that the speed is this; the list fills with what was measured."""
    found: list[Speed] = []
    real_measure, real_writing = planning.measure_speed, RunFiles.writing

    def measure(*arguments, **named):
        found.append(real_measure(*arguments, **named))
        return speed

    def writing(files, recipe, model):
        real_writing(files, recipe, model)
        return Writing()

    monkeypatch.setattr(fit_module, "measure_speed", measure)
    monkeypatch.setattr(RunFiles, "writing", writing)
    return found


# Two epochs of 4 steps; 16 steps of two images.
TWO_EPOCHS, FEWER_IMAGES = 2 * 400 / 60 / 0.9 + 2, 16 * 100 / 60 / 0.9 + 1


def of_run(run: Run) -> list:
    """What a run has computed, without what the clock says."""
    return [
        *(asdict(replace(e.train, seconds=0, images_per_second=0)) for e in run.history),
        *((e.validation.loss, e.validation.accuracy, e.learning_rate) for e in run.history),
        (run.test.loss, run.test.accuracy),
    ]


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ("shapes", {"dropout": 0.5, "schedule": "plateau", "resize_ratio": 1.5, "views": 10}),
        (
            "shapes",
            {"color_noise": 0.1, "optimizer": "muon", "ema_decay": 0.7, "learning_rate": 0.01},
        ),
        ("shapes", {"balance": "sampler", "random_shift": 0.2, "early_stopping": 5}),
        ("noisy", {"dropout": 0.5}),
        ("files", {"resize_ratio": 1.2, "random_crop": True, "batch_size": 8}),
    ],
)
def test_a_planned_run_is_that_of_the_planned_recipe(data, changes, tmp_path, monkeypatch):
    options = replace(QUIET, num_workers=1 if data == "files" else 0)
    if data == "files":
        data = write_class_folders(tmp_path / "photos", count=24, size=PHOTO)
    recipe = tiny_recipe(**{"epochs": 9, "dropout": 0.5, "validation_fraction": 0.2, **changes})
    data = Noisy() if data == "noisy" else data
    measurements = with_speed(monkeypatch)
    arguments = {"recipe": recipe, "seed": 3, "options": options}
    planned = fit(data, max_minutes=TWO_EPOCHS, out=tmp_path / "planned", **arguments)
    assert len(measurements) == 1
    epochs = len(planned.history)
    assert 1 < epochs < 9
    plain = fit(data, overrides={"epochs": epochs}, **arguments)
    assert torch.equal(weights_of(planned.model), weights_of(plain.model))
    assert of_run(planned) == of_run(plain)
    stored, seed = stored_recipe(tmp_path / "planned")
    assert (stored, seed) == (recipe.overridden({"epochs": epochs}), 3)


def test_a_run_of_fewer_images_is_that_of_the_planned_recipe(tmp_path, monkeypatch):
    recipe = tiny_recipe(epochs=9, batch_size=2, dropout=0.5, color_noise=0.1)
    with_speed(monkeypatch)
    planned = fit(
        "shapes", recipe=recipe, max_minutes=FEWER_IMAGES, out=tmp_path / "a", options=QUIET
    )
    plain = fit(
        "shapes", recipe=recipe.overridden({"epochs": 1, "train_images": 36}), options=QUIET
    )
    assert torch.equal(weights_of(planned.model), weights_of(plain.model))
    assert planned.model.preprocess == plain.model.preprocess
    assert of_run(planned) == of_run(plain)
    description = json.loads((tmp_path / "a" / "recipe.json").read_text())
    assert description["planned_from"] == {
        "max_minutes": FEWER_IMAGES,
        "epochs": 9,
        "train_images": None,
    }
    again = fit("shapes", recipe=stored_recipe(tmp_path / "a")[0], options=QUIET)
    assert torch.equal(weights_of(again.model), weights_of(planned.model))


def test_a_given_model_and_given_loaders_are_planned_for_too(monkeypatch):
    recipe = tiny_recipe(epochs=9, dropout=0.5)
    with_speed(monkeypatch)
    runs = []
    for arguments in ({"max_minutes": TWO_EPOCHS}, {"overrides": {"epochs": 2}}):
        loaders = prepare_loaders("shapes", recipe, seed=5, options=QUIET)
        model = prepare_model(loaders, recipe, seed=5, options=QUIET)
        runs.append(fit(loaders, recipe=recipe, model=model, options=QUIET, **arguments))
        assert runs[-1].model is model
        assert [loader.epoch for loader in loaders] == [0, 0, 0]
    assert torch.equal(*(weights_of(run.model) for run in runs))


def test_the_rate_of_a_planned_run_has_fallen_to_0_at_its_end(monkeypatch):
    with_speed(monkeypatch)
    run = fit("shapes", recipe=tiny_recipe(epochs=9), max_minutes=TWO_EPOCHS, options=QUIET)
    assert run.history[-1].learning_rate == pytest.approx(0, abs=1e-12)


def test_the_global_generators_are_left_as_they_were():
    before = torch.get_rng_state()
    fit("shapes", recipe=tiny_recipe(epochs=1), max_minutes=10, options=QUIET)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("momentum", "state"), [(0.9, 8.0), (0.0, 6.0)])
def test_writing_is_measured_with_a_file_that_is_removed(
    momentum, state, tmp_path, clock, monkeypatch
):
    from alexnet_lib.training import run_files

    recipe = tiny_recipe(momentum=momentum, ema_decay=0.5)
    loaders = prepare_loaders("shapes", recipe, options=QUIET)
    model = prepare_model(loaders, recipe, options=QUIET)
    real = run_files.save_checkpoint

    def save(path, *arguments, **named):
        real(path, *arguments, **named)
        clock.now += 2.0

    monkeypatch.setattr(run_files, "time", clock)
    monkeypatch.setattr(run_files, "save_checkpoint", save)
    with RunFiles(tmp_path, None, every=30.0) as files:
        # A state has the weights, the best ones, their average, and what the momentum is of each.
        assert files.writing(recipe, model) == Writing(2.0, state, 30.0)
        assert {file.name for file in tmp_path.iterdir()} == {".lock"}
    with RunFiles(None, None, every=30.0) as files:
        assert files.writing(recipe, model) == Writing()


# What it says


def lines_of(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_the_plan_is_said_before_training(monkeypatch, capsys):
    with_speed(monkeypatch)
    recipe = tiny_recipe(epochs=9)
    fit("shapes", recipe=recipe, max_minutes=TWO_EPOCHS, options=SPEAKING)
    lines = lines_of(capsys)
    assert lines[0].endswith("recipe tiny run, 9 epochs; cpu, float32")
    assert lines[2].startswith(
        f"plan for {TWO_EPOCHS:g} minutes: 2 of 9 epochs; 0 images/s, about "
    )
    assert lines[3].startswith("epoch 1/2: ")
    fit("shapes", recipe=recipe, max_minutes=TWO_EPOCHS, options=QUIET)
    assert lines_of(capsys) == []


@pytest.mark.parametrize(("seconds", "late"), [(110.0, []), (140.0, ["5 min"])])
def test_a_run_that_becomes_slower_than_planned_says_so_once(
    seconds, late, clock, monkeypatch, capsys
):
    with_speed(monkeypatch)
    monkeypatch.setattr(fit_module, "time", clock)
    real = TrainingRun.take_step

    def take_step(run):
        real(run)
        is_measured = run.loaders.test is None
        clock.now += 0.001 if is_measured else seconds if run.epoch else 100.0

    monkeypatch.setattr(TrainingRun, "take_step", take_step)
    # Four epochs of four steps of 100 s are planned for 1,860 s.
    recipe = tiny_recipe(epochs=9, validation_fraction=0.0)
    fit("shapes", recipe=recipe, max_minutes=31, options=SPEAKING)
    lines = lines_of(capsys)
    assert sum(line.startswith("epoch ") for line in lines) == 4
    # 400 s for the first epoch, 12 steps for the others, and 0.42 steps for the test: 2,138 s.
    assert [line for line in lines if line.startswith("slower")] == [
        f"slower than planned: it ends about {duration} late, and is not cut" for duration in late
    ]
