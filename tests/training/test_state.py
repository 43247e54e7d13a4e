"""The promises of a run's state: whole, a copy, and enough to go on bit for bit elsewhere."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import continued
import pytest
import torch
from continued import OPTIONS, RUNS, State, begin, go_on, state_of
from helpers import network_tolerance, random_pixels, repeated
from PIL import Image
from tiny import Noisy, quiet, tiny_recipe, use_tiny, weights_of
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from alexnet_lib import prepare_loaders, prepare_model
from alexnet_lib.training import state as state_module
from alexnet_lib.training.state import TrainingRun

# In the middle of the second of four epochs, which have four steps each.
STOP = 5


@pytest.fixture
def run_of(device):
    """Builds runs on the device, before their first step."""

    def build(data="shapes", *, seed: int = 0, **changes) -> TrainingRun:
        recipe = tiny_recipe(**{"epochs": 2, **changes})
        options = quiet(device).resolved()
        loaders = prepare_loaders(data, recipe, seed=seed, options=options)
        model = prepare_model(loaders, recipe, seed=seed, options=options)
        return TrainingRun(recipe, loaders, model, seed=seed, options=options)

    return build


def comparable(data: Any, *, to_the_bit: bool) -> Any:
    """A state's plain data but for what the clock says, and measures that are not the same bits."""
    if isinstance(data, dict):
        times = {"seconds", "images_per_second"}
        return {
            name: comparable(value, to_the_bit=to_the_bit)
            for name, value in data.items()
            if name not in times
        }
    if isinstance(data, list | tuple):
        return [comparable(value, to_the_bit=to_the_bit) for value in data]
    return None if isinstance(data, float) and not to_the_bit else data


def assert_same(found: State, expected: State) -> None:
    """Two states agree but for the times: on the CPU bit for bit."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in expected[1].values())
    plain, same = (comparable(state[0], to_the_bit=on_cpu) for state in (found, expected))
    assert plain == same
    assert found[1].keys() == expected[1].keys()
    for name, tensor in expected[1].items():
        assert found[1][name].dtype == tensor.dtype, name
        one, other = found[1][name].cpu(), tensor.cpu()
        if on_cpu:
            assert torch.equal(one, other), name
        else:
            assert torch.allclose(one.double(), other.double(), **repeated(tensor.device)), name


def tensors_of(state: State, part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state[1].items() if name.startswith(f"/{part}/")}


# The average of the weights


@pytest.mark.parametrize("first", [True, False], ids=["first taken", "first skipped"])
def test_the_average_is_torchs_over_the_steps_that_were_taken(device, run_of, first):
    run = run_of(ema_decay=0.9)
    model, average = run.model, run.average
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for taken in (first, True, True, False, True):
        with torch.no_grad():
            for parameter in model.parameters() if taken else ():
                parameter += torch.randn_like(parameter)
        step_taken = torch.tensor(taken, device=device)
        state_module._update(average, average.module, model, 0.9, step_taken)
        if taken:
            expected.update_parameters(model)
        torch.testing.assert_close(average.state_dict(), expected.state_dict(), rtol=0, atol=0)


# Going on elsewhere


@pytest.fixture(scope="module")
def elsewhere(device, tmp_path_factory) -> Path:
    """A folder with the states of runs that were stopped here and ended in another process."""
    folder = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        for name in RUNS:
            continued.write(go_on(begin(name, device), STOP), folder, f"stopped {name}")
    tests = Path(continued.__file__).parent
    threads = str(torch.get_num_threads())
    command = [sys.executable, continued.__file__, str(folder), threads, str(device)]
    path = os.pathsep.join([str(tests), str(tests.parent), *filter(None, sys.path)])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_in_another_process_bit_for_bit(device, name, elsewhere):
    whole = go_on(begin(name, device))
    ended = continued.read(elsewhere, f"ended {name}")
    assert_same(ended, state_of(whole))
    # Not all of it is the same anyway: the part that was trained elsewhere has changed something.
    stopped = continued.read(elsewhere, f"stopped {name}")
    assert stopped[0]["epoch"] == 1
    assert stopped[0]["totals"]["steps"] == 1
    for layer in ("features.conv1.weight", "classifier.fc2.bias"):
        assert not torch.equal(stopped[1][f"/model/{layer}"], ended[1][f"/model/{layer}"])


@pytest.mark.parametrize("name", RUNS)
def test_an_epoch_that_was_finished_before_keeps_its_record_with_its_times(name, elsewhere):
    stopped, ended = (continued.read(elsewhere, f"{when} {name}") for when in ("stopped", "ended"))
    assert len(stopped[0]["history"]) == 1
    assert ended[0]["history"][0] == stopped[0]["history"][0]
    assert [record["epoch"] for record in ended[0]["history"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_plateau_and_the_best_epoch_are_remembered_elsewhere(options, elsewhere):
    stopped, ended = (
        continued.read(elsewhere, f"{when} sgd {options}") for when in ("stopped", "ended")
    )
    rates = [record["learning_rate"] for record in ended[0]["history"]]
    # Four of the six steps of the warm-up are done in the first epoch, and three divisions come.
    assert rates == pytest.approx([1e-4 * 5 / 6, 1e-4, 1e-5, 1e-6])
    assert ended[0]["best_epoch"] == 1
    best = tensors_of(ended, "best_weights")
    assert len(best) == 4
    assert best.keys() == tensors_of(stopped, "best_weights").keys()
    assert all(torch.equal(tensor, stopped[1][name]) for name, tensor in best.items())


@pytest.mark.parametrize("recipe", ["sgd", "muon"])
def test_what_the_optimiser_keeps_of_a_weight_is_in_the_weights_memory_format(
    device, recipe, elsewhere
):
    name = f"{recipe} bfloat16"
    run = begin(name, device)
    run.set_state(*continued.read(elsewhere, f"stopped {name}"))
    weight = run.model.features.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    kept = [tensor for tensor in run.optimizer.state[weight].values() if tensor.ndim == 4]
    assert [tensor.stride() for tensor in kept] == [weight.stride()]


# Going on here


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 7, 8], ids="after {} steps".format)
@pytest.mark.parametrize("finished", [False, True], ids=["", "epoch finished"])
@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "ema_decay": 0.5}], ids=str)
def test_a_run_goes_on_from_its_state_wherever_it_was_taken(run_of, steps, finished, changes):
    whole = go_on(run_of(**changes))
    stopped = go_on(run_of(**changes), steps)
    if finished and stopped.totals.steps == stopped.steps_in_epoch:
        stopped.finish_epoch()
    fresh = run_of(**changes)
    fresh.set_state(*state_of(stopped))
    assert fresh.steps_done == steps
    assert_same(state_of(go_on(fresh)), state_of(whole))


def test_a_run_without_validation_goes_on_from_its_state(run_of):
    changes = {"validation_fraction": 0.0}
    fresh, whole = run_of(**changes), go_on(run_of(**changes))
    fresh.set_state(*state_of(go_on(run_of(**changes), STOP)))
    assert fresh.history[0].validation is None
    assert_same(state_of(go_on(fresh)), state_of(whole))


def test_a_run_of_a_random_data_set_goes_on_from_its_state(run_of):
    fresh, whole = run_of(Noisy()), go_on(run_of(Noisy()))
    fresh.set_state(*state_of(go_on(run_of(Noisy()), STOP)))
    assert_same(state_of(go_on(fresh)), state_of(whole))


def test_a_run_that_is_under_way_is_set_back_to_a_state(run_of):
    run = run_of()
    state = state_of(go_on(run, 2))
    end = state_of(go_on(run))
    run.set_state(*state)
    assert (run.steps_done, run.history, run.best_weights) == (2, [], None)
    assert_same(state_of(go_on(run)), end)


@pytest.mark.parametrize("name", RUNS)
def test_a_state_that_was_set_is_not_changed_by_training_on(device, name):
    state = state_of(go_on(begin(name, device), STOP))
    before = copy.deepcopy(state)
    ends = []
    for _ in range(2):
        run = begin(name, device)
        run.set_state(*state)
        ends.append(state_of(go_on(run)))
    assert_same(state, before)
    assert_same(*ends)


@pytest.mark.parametrize("name", RUNS)
def test_taking_the_state_does_not_disturb_the_run(device, name):
    watched = begin(name, device)
    while not watched.finished:
        watched.state()
        go_on(watched, 1)
        watched.state()
        if watched.totals.steps == watched.steps_in_epoch:
            watched.finish_epoch()
    assert_same(state_of(watched), state_of(go_on(begin(name, device))))


def test_of_a_state_plain_data_and_tensors_belong_together(run_of):
    data, tensors = state_of(go_on(run_of(), STOP))

    def names(value) -> list[str]:
        if isinstance(value, dict):
            found = [name for item in value.values() for name in names(item)]
            return [*found, value["$tensor"]] if "$tensor" in value else found
        if isinstance(value, list | tuple):
            return [name for item in value for name in names(item)]
        return []

    assert sorted(names(data)) == sorted(tensors)


# The steps themselves


@pytest.mark.parametrize("draws", [1, 7])
def test_what_a_step_draws_does_not_depend_on_what_others_drew_before(device, run_of, draws):
    alone, disturbed = run_of(dropout=0.5), run_of(dropout=0.5)
    for _ in range(3):
        alone.take_step()
        torch.rand(draws)
        disturbed.take_step()
        torch.testing.assert_close(
            weights_of(alone.model), weights_of(disturbed.model), **repeated(device)
        )


def masks_of_steps(run: TrainingRun, steps: int) -> list[list[bool]]:
    """Which of the first image's activations dropout keeps in each step."""
    masks = []
    handle = run.model.classifier.drop2.register_forward_hook(
        lambda _, inputs, output: masks.append((output[0] != 0).tolist())
    )
    with torch.no_grad():
        run.model.features.conv1.bias.fill_(10.0)  # so that no ReLU gives 0
    for _ in range(steps):
        run.take_step()
    handle.remove()
    return masks


def test_dropout_is_drawn_by_the_seed_the_epoch_and_the_step(run_of):
    run, same, other = (run_of(seed=seed, epochs=2, learning_rate=1e-9) for seed in (1, 1, 2))
    first = masks_of_steps(run, 4)
    run.finish_epoch()
    second = masks_of_steps(run, 4)
    drawn = [*first, *second]
    assert all(drawn.count(mask) == 1 for mask in drawn)
    assert masks_of_steps(same, 4) == first
    assert not any(mask in drawn for mask in masks_of_steps(other, 4))


def test_steps_and_epochs_are_counted(run_of):
    run = run_of()
    seen = []
    while not run.finished:
        for _ in range(run.steps_in_epoch):
            run.take_step()
            seen.append(run.steps_done)
        run.finish_epoch()
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (run.steps_in_epoch, run.steps_in_all, run.epoch) == (4, 8, 2)


def test_the_best_weights_are_not_changed_by_training_on(run_of):
    run = go_on(run_of(epochs=3), 4)
    run.finish_epoch()
    before = {name: tensor.clone() for name, tensor in run.best_weights.items()}
    kept = run.best_weights
    go_on(run, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())


def test_a_float16_run_keeps_its_scale(device):
    run = go_on(begin("sgd float16", device), STOP)
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 512.0})
    fresh = begin("sgd float16", device)
    fresh.set_state(*state_of(run))
    assert fresh.scaler.get_scale() == 512.0
    assert_same(state_of(go_on(fresh)), state_of(go_on(run)))


# Steps of several batches


def test_steps_of_several_batches_are_steps_of_the_optimiser(run_of):
    run = run_of(batch_size=5, accumulation_steps=3)
    assert (run.steps_in_epoch, run.steps_in_all) == (4, 8)
    rates = []
    while not run.epoch_read:
        run.take_step()
        rates.append((run.totals.steps, run.batches_read, run.totals.images))
    assert rates == [(1, 3, 15), (2, 6, 30), (3, 9, 45), (4, 11, 54)]
    assert run.schedule.last_epoch == 4
    assert run.finish_epoch().train.images == 54


def test_steps_of_several_batches_are_those_of_one_larger_batch(device, run_of):
    several, one = (
        go_on(run_of(dropout=0.0, flip=False, epochs=1, **changes))
        for changes in ({"batch_size": 6, "accumulation_steps": 2}, {"batch_size": 12})
    )
    torch.testing.assert_close(
        weights_of(several.model), weights_of(one.model), **network_tolerance(device, 1e-6)
    )


# The end before the last epoch


def with_accuracies(monkeypatch, *accuracies: float) -> None:
    left = iter(accuracies)
    real = TrainingRun.evaluate

    def evaluate(run, model, part, **options):
        return replace(real(run, model, part, **options), accuracy=next(left))

    monkeypatch.setattr(TrainingRun, "evaluate", evaluate)


def test_a_run_ends_after_some_epochs_without_a_better_accuracy(run_of, monkeypatch):
    with_accuracies(monkeypatch, 0.1, 0.3, 0.3, 0.2, 0.9)
    run = go_on(run_of(epochs=5, early_stopping=2))
    assert (run.epoch, run.best_epoch, run.finished, run.stopped_early) == (4, 2, True, True)


def test_a_run_that_gets_better_is_not_ended(run_of, monkeypatch):
    with_accuracies(monkeypatch, 0.1, 0.1, 0.2)
    run = go_on(run_of(epochs=3, early_stopping=2))
    assert (run.epoch, run.finished, run.stopped_early) == (3, True, False)


def test_a_run_that_would_end_with_its_last_epoch_is_not_stopped_early(run_of, monkeypatch):
    with_accuracies(monkeypatch, 0.2, 0.1)
    run = go_on(run_of(epochs=2, early_stopping=1))
    assert (run.epoch, run.stopped_early) == (2, False)


def test_a_state_knows_how_long_no_epoch_was_better(run_of, monkeypatch):
    with_accuracies(monkeypatch, 0.3, 0.2, 0.2)
    run = run_of(epochs=5, early_stopping=2)
    while run.epoch < 2:
        go_on(run, 1)
        if run.epoch_read:
            run.finish_epoch()
    fresh = run_of(epochs=5, early_stopping=2)
    fresh.set_state(*state_of(run))
    assert go_on(fresh).epoch == 3


# Epochs on smaller images


# 12 pixels, two strides of the network less.
GROWING: dict[str, Any] = {"image_size": 20, "growth_fraction": 0.4, "start_size": 0.6}


def test_the_first_epochs_train_and_are_evaluated_on_smaller_images(run_of):
    run = run_of(epochs=5, **GROWING)
    seen: list[tuple[int, bool]] = []
    run.model.features.conv1.register_forward_pre_hook(
        lambda module, inputs: seen.append((inputs[0].shape[-1], run.model.training))
    )
    go_on(run)
    # 54 and 6 images, in batches of 16.
    epoch = [True] * 4 + [False]
    expected = [(size, training) for size in (12, 12, 20, 20, 20) for training in epoch]
    assert seen == expected
    assert [record.image_size for record in run.history] == [12, 12, 20, 20, 20]
    assert run.model.image_size == 20


def test_smaller_images_are_what_a_loader_of_their_size_yields(device, run_of, monkeypatch):
    run = run_of(epochs=2, random_crop=True, resize_ratio=1.5, flip=True, **GROWING)
    small = prepare_loaders(
        "shapes",
        tiny_recipe(random_crop=True, resize_ratio=1.5, flip=True, image_size=12),
        options=quiet(device),
    )
    seen: list[Tensor] = []
    run.model.features.conv1.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone())
    )
    go_on(run, 4)
    for images, (expected, _) in zip(seen, small.train.batches(0), strict=True):
        assert torch.equal(images, expected)


def test_the_best_epoch_is_one_on_images_of_full_size(run_of, monkeypatch):
    with_accuracies(monkeypatch, 0.8, 0.9, 0.2, 0.3, 0.1)
    run = run_of(epochs=5, **GROWING)
    best = []
    while not run.finished:
        go_on(run, 1)
        if run.epoch_read:
            run.finish_epoch()
            best.append(run.best_epoch)
    assert best == [1, 2, 3, 4, 4]


def test_early_stopping_does_not_count_epochs_on_smaller_images(run_of, monkeypatch):
    with_accuracies(monkeypatch, 0.9, 0.1, 0.1, 0.1, 0.1, 0.3, 0.2, 0.2, 0.9, 0.9)
    changes = {**GROWING, "growth_fraction": 0.5, "epochs": 10}
    run = run_of(early_stopping=2, **changes)
    assert run.image_sizes == [12, 12, 12, 16, 16, *[20] * 5]
    go_on(run)
    assert (run.epoch, run.best_epoch, run.stopped_early) == (8, 6, True)


def test_a_network_is_as_it_was_where_a_step_on_smaller_images_fails(run_of, monkeypatch):
    run = run_of(epochs=2, **GROWING)
    with monkeypatch.context() as patch:
        patch.setattr(run.model.classifier, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.take_step()
    assert (run.model.image_size, run.model.avgpool) == (20, None)


# Images that cannot be read


def photos(folder: Path, bad: Iterable[int] = ()) -> Path:
    """24 photos of two classes; some are broken."""
    for i in range(24):
        file = folder / ("cat", "dog")[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(100 + i, 120, seed=i)).save(file)
        if i in bad:
            file.write_bytes(file.read_bytes()[:300])
    return folder


def run_of_photos(folder: Path, device: torch.device, **changes) -> TrainingRun:
    recipe = tiny_recipe(**{"epochs": 2, "dropout": 0.5, "image_size": 12, **changes})
    options = replace(quiet(device), on_bad_image="skip", bad_image_limit=0.5).resolved()
    loaders = prepare_loaders(folder, recipe, options=options)
    model = prepare_model(loaders, recipe, options=options)
    return TrainingRun(recipe, loaders, model, seed=0, options=options)


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_an_epoch_without_its_bad_images_ends_and_goes_on_from_its_state(
    device, batch_size, accumulation_steps, tmp_path
):
    folder = photos(tmp_path, bad=(0, 3, 4, 9, 16))
    changes = {"batch_size": batch_size, "accumulation_steps": accumulation_steps}
    whole = run_of_photos(folder, device, **changes)
    files = whole.loaders.train.dataset.files
    good = [file for file in files if int(file.stem) not in {0, 3, 4, 9, 16}]
    assert len(good) < len(files)
    states = []
    while not whole.finished:
        states.append(state_of(whole))
        if whole.epoch_read:
            assert whole.totals.images == len(good)
            whole.finish_epoch()
        else:
            whole.take_step()
    assert {*whole.loaders.train.bad_images} == {str(f) for f in files if f not in good}
    for state in states[1 :: max(1, len(states) // 3)]:
        fresh = run_of_photos(folder, device, **changes)
        fresh.set_state(*state)
        assert_same(state_of(go_on(fresh)), state_of(whole))
