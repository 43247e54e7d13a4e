"""The promises of `fit`: what it computes, what it writes, and what it leaves alone."""

import json
import re
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import write_class_folders
from tiny import SMALL, TINY, TINY_OVERRIDES, use_tiny

from alexnet_lib import AlexNet, Preprocess, devices, evaluate, load_checkpoint
from alexnet_lib.data.images import ImageTensors
from alexnet_lib.data.loaders import BatchLoader, Loaders
from alexnet_lib.devices import RunOptions
from alexnet_lib.kernels import cpu as kernels
from alexnet_lib.training import fit as training
from alexnet_lib.training import loop as engine
from alexnet_lib.training.fit import Run, fit
from alexnet_lib.training.recipes import RECIPES, Recipe, stored_recipe

QUIET = RunOptions(device="cpu", precision="float32", progress=False)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    use_tiny(monkeypatch)


def tiny_recipe(**changes) -> Recipe:
    return Recipe("tiny run", **{**TINY_OVERRIDES, **changes})


def quick_fit(data="shapes", **arguments) -> Run:
    """Two epochs of four steps."""
    return fit(data, **{"recipe": tiny_recipe(), "epochs": 2, "options": QUIET, **arguments})


def build_loaders(**changes) -> Loaders:
    return tiny_recipe(**changes).build_loaders("shapes", seed=0)


def weights_of(model: AlexNet) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def read_json(text: str):
    """JSON without the NaN and Infinity that Python adds to it."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def read_history(folder: Path) -> list[dict]:
    return [read_json(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def with_accuracies(monkeypatch: pytest.MonkeyPatch, *accuracies: float) -> list:
    """Makes the evaluations report these; the list fills with the loaders evaluated on."""
    seen, left = [], iter(accuracies)

    def evaluate_as_told(model, loader, options, *, views=1):
        seen.append(loader)
        metrics = evaluate(model, loader, progress=False)
        return replace(metrics, accuracy=next(left))

    monkeypatch.setattr(training, "_evaluate", evaluate_as_told)
    return seen


# What a run writes.


def test_a_run_writes_its_five_files_and_nothing_else(tmp_path):
    run = quick_fit(out=tmp_path / "new" / "run")
    assert run.folder == tmp_path / "new" / "run"
    assert {file.name for file in run.folder.iterdir()} == {
        "recipe.json",
        "history.jsonl",
        "best.safetensors",
        "last.safetensors",
        "result.json",
    }


def test_recipe_json_holds_all_that_determines_the_run(tmp_path):
    options = replace(QUIET, device="auto", precision="auto", memory_format="auto")
    quick_fit(out=tmp_path, seed=3, options=options)
    stored = read_json((tmp_path / "recipe.json").read_text())
    assert stored == {
        "recipe": tiny_recipe(epochs=2).to_dict(),
        "data": "shapes",
        "given": [],
        "seed": 3,
        "options": asdict(options.resolved()),
        "threads": torch.get_num_threads(),
        "kernels": kernels.library() is not None,
    }
    assert "auto" not in stored["options"].values()


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_weights_and_batches_are_in_the_memory_format_of_the_options(memory_format, monkeypatch):
    wanted = getattr(torch, memory_format.replace("contiguous", "contiguous_format"))
    seen = []

    def witness(model, loader, *arguments, **options):
        seen.append(next(iter(loader))[0].is_contiguous(memory_format=wanted))
        return engine.train_steps(model, loader, *arguments, **options)

    monkeypatch.setattr(training, "train_steps", witness)
    run = quick_fit(options=replace(QUIET, memory_format=memory_format))
    assert seen == [True, True]
    assert run.model.features.conv1.weight.is_contiguous(memory_format=wanted)


def test_bfloat16_training_gets_bfloat16_batches(monkeypatch):
    seen = []

    def witness(model, loader, *arguments, **options):
        seen.append(next(iter(loader))[0].dtype)
        return engine.train_steps(model, loader, *arguments, **options)

    monkeypatch.setattr(training, "train_steps", witness)
    quick_fit(options=replace(QUIET, precision="bfloat16"))
    assert seen == [torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("wanted", [False, True])
def test_a_model_is_compiled_where_the_options_say_so_and_its_own_weights_learn(
    wanted, monkeypatch
):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    run = quick_fit(options=replace(QUIET, compile=wanted))
    assert compiled == [run.model] * wanted


def test_history_jsonl_has_a_line_for_each_epoch(tmp_path):
    run = quick_fit(out=tmp_path)
    lines = read_history(tmp_path)
    assert lines == [record.to_dict() for record in run.history]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[0]) == {"epoch", "learning_rate", "train", "validation"}
    assert set(lines[0]["train"]) == {"loss", "accuracy", "images_per_second"}
    assert set(lines[0]["validation"]) == {"loss", "accuracy"}


def test_result_json_holds_the_test_metrics_the_time_and_the_versions(tmp_path):
    run = quick_fit(out=tmp_path)
    result = read_json((tmp_path / "result.json").read_text())
    assert set(result) == {"test", "epochs", "seconds", "images_per_second", "versions"}
    assert result["test"] == run.test.to_dict()
    assert result["epochs"] == 2
    assert result["seconds"] > 0
    assert result["images_per_second"] > 0
    assert torch.__version__.startswith(result["versions"]["torch"])


def test_without_out_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert quick_fit().folder is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_but_holds_no_run_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert quick_fit(out=tmp_path).folder == tmp_path


def test_overrides_and_epochs_are_applied_and_stored(tmp_path):
    run = quick_fit(overrides={"image_size": 20, "dropout": 0.1}, epochs=3, out=tmp_path)
    stored = read_json((tmp_path / "recipe.json").read_text())["recipe"]
    assert (run.model.image_size, run.model.dropout, len(run.history)) == (20, 0.1, 3)
    assert (stored["image_size"], stored["dropout"], stored["epochs"]) == (20, 0.1, 3)


def test_a_folder_of_images_is_stored_by_its_path(tmp_path):
    photos = write_class_folders(tmp_path / "photos", count=12)
    run = quick_fit(photos, out=tmp_path / "run")
    assert read_json((tmp_path / "run" / "recipe.json").read_text())["data"] == str(photos)
    assert run.model.classes == ("cat", "dog")


# What a run computes.


def test_training_lowers_the_loss():
    history = quick_fit(epochs=8, overrides={"dropout": 0.0, "label_smoothing": 0.0}).history
    assert history[-1].train.loss < history[0].train.loss - 0.1


def test_the_same_seed_gives_the_same_run():
    first, second = quick_fit(seed=4), quick_fit(seed=4)
    assert torch.equal(weights_of(first.model), weights_of(second.model))
    for one, other in zip(first.history, second.history, strict=True):
        assert one.train.loss == other.train.loss
        assert one.validation.to_dict()["confusion"] == other.validation.to_dict()["confusion"]


def test_another_seed_gives_another_run():
    first, second = quick_fit(seed=4), quick_fit(seed=5)
    assert not torch.equal(weights_of(first.model), weights_of(second.model))
    assert first.history[0].train.loss != second.history[0].train.loss


def test_dropout_is_drawn_from_the_seed():
    # The weights and the batches are the same in all three.
    loaders = build_loaders()
    runs = [
        quick_fit(loaders, model=tiny_recipe().build_model(loaders.classes, seed=0), seed=seed)
        for seed in (0, 0, 1)
    ]
    losses = [run.history[0].train.loss for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_the_global_random_states_are_left_as_they_were():
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist()

    torch.manual_seed(7), np.random.seed(7)
    expected = draws()
    torch.manual_seed(7), np.random.seed(7)
    quick_fit()
    assert draws() == expected


def test_the_rate_has_fallen_to_0_at_the_end():
    history = quick_fit().history
    assert history[0].learning_rate > 0
    assert history[-1].learning_rate == pytest.approx(0, abs=1e-12)


def test_the_test_images_are_evaluated_once_and_last(monkeypatch):
    seen = with_accuracies(monkeypatch, 0.1, 0.2, 0.3, 0.4)
    quick_fit(build_loaders(), epochs=3)
    assert [len(loader.dataset) for loader in seen] == [6, 6, 6, 20]


def test_the_model_that_is_returned_has_the_best_weights(tmp_path, monkeypatch):
    with_accuracies(monkeypatch, 0.2, 0.9, 0.1, 0.0)
    run = quick_fit(epochs=3, out=tmp_path)
    best = weights_of(load_checkpoint(tmp_path / "best.safetensors"))
    last = weights_of(load_checkpoint(tmp_path / "last.safetensors"))
    assert torch.equal(weights_of(run.model), best)
    assert not torch.equal(best, last)


def test_of_equal_accuracies_the_first_is_the_best(monkeypatch):
    with_accuracies(monkeypatch, 0.5, 0.5, 0.0, 0.5, 0.1, 0.0)
    equal, falling = quick_fit(), quick_fit()
    assert torch.equal(weights_of(equal.model), weights_of(falling.model))


def test_the_test_metrics_are_those_of_the_model_that_is_returned(monkeypatch):
    loaders = build_loaders()
    run = quick_fit(loaders)
    again = evaluate(run.model, loaders.test, progress=False)
    assert (run.test.loss, run.test.accuracy) == (again.loss, again.accuracy)
    assert not run.model.training


def test_the_model_knows_its_classes_and_its_preprocessing(tmp_path):
    loaders = build_loaders()
    run = quick_fit(loaders, out=tmp_path)
    loaded = load_checkpoint(tmp_path / "best.safetensors")
    for model in (run.model, loaded):
        assert model.classes == loaders.classes
        assert model.preprocess == loaders.preprocess


def test_loaders_and_the_name_of_their_data_give_the_same_run():
    by_name, by_loaders = quick_fit(), quick_fit(build_loaders())
    assert torch.equal(weights_of(by_name.model), weights_of(by_loaders.model))


def test_the_loaders_that_are_given_are_left_at_their_epoch():
    loaders = build_loaders()
    quick_fit(loaders)
    fresh = next(iter(build_loaders().train))[0]
    assert torch.equal(next(iter(loaders.train))[0], fresh)


def test_a_model_that_is_given_goes_on_training():
    model = quick_fit().model
    before = weights_of(model)
    run = quick_fit(model=model, overrides={"learning_rate": 1e-9})
    assert run.model is model
    assert 0 < (weights_of(model) - before).abs().max() < 1e-6


def test_without_a_validation_part_every_epoch_is_the_best_so_far(tmp_path, monkeypatch):
    saved, save, run_steps = [], training._save_epoch, training.run_steps
    training_accuracies = iter([0.9, 0.1])

    def falling(*arguments, **options):
        return replace(run_steps(*arguments, **options), accuracy=next(training_accuracies))

    def note(folder, model, record, *, is_best):
        saved.append(is_best)
        save(folder, model, record, is_best=is_best)

    monkeypatch.setattr(training, "run_steps", falling)
    monkeypatch.setattr(training, "_save_epoch", note)
    run = quick_fit(overrides={"validation_fraction": 0.0}, out=tmp_path)
    assert saved == [True, True]
    assert [line["validation"] for line in read_history(tmp_path)] == [None, None]
    last = weights_of(load_checkpoint(tmp_path / "last.safetensors"))
    assert torch.equal(weights_of(run.model), last)


def test_without_test_images_the_test_is_none(tmp_path):
    run = quick_fit(build_loaders()._replace(test=None), out=tmp_path)
    assert run.test is None
    assert read_json((tmp_path / "result.json").read_text())["test"] is None


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_trains(recipe):
    run = quick_fit(recipe=recipe.overridden(SMALL), epochs=1)
    assert run.test.images == 20
    assert run.history[0].train.loss > 0


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_run_is_repeated_from_its_stored_recipe(recipe, tmp_path):
    more = {"erasing": 0.5, "random_crop": True, "ema_decay": 0.5, "freeze": ("conv1",)}
    first = quick_fit(recipe=recipe.overridden({**SMALL, **more}), seed=3, out=tmp_path)
    stored, stored_seed = stored_recipe(tmp_path / "recipe.json")
    again = fit("shapes", recipe=stored, seed=stored_seed, options=QUIET)
    assert torch.equal(weights_of(first.model), weights_of(again.model))
    for one, other in zip(first.history, again.history, strict=True):
        assert one.train.loss == other.train.loss
    assert first.test.loss == again.test.loss


@pytest.mark.parametrize("given", [("model",), ("loaders",), ("model", "loaders")])
def test_a_run_of_what_fit_was_given_is_not_repeated_from_its_folder(given, tmp_path):
    recipe = tiny_recipe(epochs=1)
    loaders = recipe.build_loaders("shapes", seed=5)
    quick_fit(
        loaders if "loaders" in given else "shapes",
        recipe=recipe,
        model=recipe.build_model(loaders.classes, seed=5) if "model" in given else None,
        out=tmp_path,
    )
    with pytest.raises(ValueError, match=rf"of a run whose {' and '.join(given)} fit was given"):
        stored_recipe(tmp_path)


def train_by_hand(recipe: Recipe, seed: int, after_step) -> AlexNet:
    """What ``fit`` does, without dropout and without validation."""
    loaders = recipe.build_loaders("shapes", seed)
    model = recipe.build_model(loaders.classes, seed)
    optimizer = recipe.build_optimizer(model)
    schedule = recipe.build_schedule(optimizer, recipe.epochs * len(loaders.train))
    for epoch in range(recipe.epochs):
        loaders.train.set_epoch(epoch)
        for _ in engine.train_steps(
            model,
            loaders.train,
            optimizer,
            criterion=recipe.criterion,
            batch_scheduler=schedule,
            max_grad_norm=recipe.max_grad_norm,
        ):
            after_step(model)
    return model


BY_HAND = MappingProxyType({"dropout": 0.0, "validation_fraction": 0.0, "epochs": 2})


def test_the_weights_are_those_of_training_by_hand():
    recipe = tiny_recipe(**BY_HAND)
    expected = weights_of(train_by_hand(recipe, 0, lambda model: None))
    torch.testing.assert_close(weights_of(quick_fit(recipe=recipe).model), expected)


def test_ema_decay_keeps_the_moving_average_of_the_weights(tmp_path):
    recipe = tiny_recipe(**BY_HAND, ema_decay=0.75)
    average = None

    def after_step(model):
        nonlocal average
        now = weights_of(model)
        average = now if average is None else 0.75 * average + 0.25 * now

    last = weights_of(train_by_hand(recipe, 0, after_step))
    run = quick_fit(recipe=recipe, out=tmp_path)
    stored = load_checkpoint(tmp_path / "last.safetensors")
    torch.testing.assert_close(weights_of(run.model), average)
    assert torch.equal(weights_of(stored), weights_of(run.model))
    assert (average - last).abs().max() > 1e-3


def test_the_moving_average_is_what_validation_and_test_are_about(monkeypatch):
    seen, real = [], training._evaluate

    def witness(model, loader, options, *, views=1):
        seen.append(weights_of(model))
        return real(model, loader, options, views=views)

    monkeypatch.setattr(training, "_evaluate", witness)
    run = quick_fit(overrides={"ema_decay": 0.75}, epochs=1)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], weights_of(run.model))


@pytest.mark.parametrize("views", [1, 2, 10])
def test_only_the_test_images_are_seen_in_several_views(views, monkeypatch):
    seen = []

    def witness(model, loader, **options):
        seen.append((len(loader.dataset), options["views"]))
        return evaluate(model, loader, **options)

    monkeypatch.setattr(training, "evaluate", witness)
    loaders = build_loaders(resize_ratio=1.5)
    run = quick_fit(loaders, overrides={"views": views, "resize_ratio": 1.5})
    assert seen == [(6, 1), (6, 1), (20, views)]
    assert run.test.loss == evaluate(run.model, loaders.test, views=views, progress=False).loss


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
def test_frozen_layers_keep_their_weights(ema_decay):
    recipe = tiny_recipe(freeze=("conv1",), ema_decay=ema_decay)
    run = quick_fit(recipe=recipe)
    start = recipe.build_model(run.model.classes, seed=0)
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, start.state_dict()[name]) == name.startswith("features.conv1.")


def test_layers_of_a_model_that_is_passed_are_frozen_too():
    model = AlexNet(10, architecture=TINY, seed=1)
    before = model.features.conv1.weight.detach().clone()
    run = quick_fit(recipe=tiny_recipe(freeze=("conv1",)), model=model)
    assert run.model is model
    assert torch.equal(model.features.conv1.weight, before)


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_mixed_images_lower_the_loss_on_unmixed_ones(field):
    overrides = {field: 1.0, "dropout": 0.0, "flip": False, "label_smoothing": 0.0}
    run = quick_fit(overrides=overrides, epochs=12)
    start = tiny_recipe().build_model(run.model.classes, seed=0)
    unmixed = replace(build_loaders(flip=False).train, augmentation=())
    before, after = (evaluate(m, unmixed, progress=False).loss for m in (start, run.model))
    assert after < before - 0.1


# What a run says.


def test_without_progress_a_run_is_silent(capfd):
    devices._announced_default_device.cache_clear()
    quick_fit(options=RunOptions(progress=False))
    assert capfd.readouterr() == ("", "")


def test_a_run_says_what_it_trains_each_epoch_and_the_test(capsys):
    quick_fit(options=replace(QUIET, progress=True))
    out, err = capsys.readouterr()
    assert not out
    lines = err.splitlines()
    assert len(lines) == 4
    assert "54 training, 6 validation, 20 test images of 12x12 pixels, 10 classes" in lines[0]
    assert lines[1].startswith("epoch 1/2: training loss")
    assert lines[2].startswith("epoch 2/2: training loss")
    assert lines[3].startswith("test: loss")


def test_the_time_to_go_is_said_once_with_what_shortens_it(capsys):
    quick_fit(overrides={"batch_size": 2}, epochs=3, options=replace(QUIET, progress=True))
    said = [line for line in capsys.readouterr().err.splitlines() if "to go" in line]
    assert len(said) == 1
    assert "--train-images" in said[0]
    assert "--image-size" in said[0]


@pytest.mark.parametrize("steps", [8, 50])
def test_the_time_to_go_does_not_depend_on_the_length_of_an_epoch(steps, monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now))
    # 4,000 images at 10 a second; 20 steps of 10 images are done when it is said.
    recipe = Recipe("r", batch_size=10, epochs=400 // steps)
    labels = torch.zeros(10 * steps, dtype=torch.int64)
    images = ImageTensors(torch.zeros(10 * steps, 3, 1, 1, dtype=torch.uint8), labels, ("a",))
    loader = BatchLoader(images, Preprocess(1, 1))
    estimate = training._Estimate(recipe, Loaders(loader, None, None))
    for step in range(20):
        now += 1.0
        if step % steps == 0:
            totals = engine.Totals(torch.device("cpu"))
        totals.add(torch.zeros(()), torch.zeros(10, dtype=torch.bool), 10)
        estimate(totals)
    assert capsys.readouterr().err.startswith("about 6 min to go for ")


# What a run refuses.


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected an integer of at least 1"),
        ({"recipe": "plain"}, "recipe is 'plain'; expected a Recipe or one of 'tutorial'"),
        ({"recipe": {"epochs": 1}}, "recipe is {'epochs': 1}; expected a Recipe or one of"),
        ({"overrides": {"epoch": 1}}, "overrides has ['epoch']; expected names among"),
        ({"seed": -1}, "seed is -1; expected an integer from 0"),
        ({"seed": 2**70}, f"seed is {2**70}; expected an integer from 0"),
        ({"overrides": {"train_images": 61}}, "train_images is 61; expected 10"),
    ],
)
def test_an_argument_out_of_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        quick_fit(**arguments)


@pytest.mark.bad_input
def test_data_that_is_neither_a_name_nor_loaders_is_refused():
    with pytest.raises(TypeError, match="data is a list; expected 'shapes', 'cifar10', a folder"):
        quick_fit([1, 2])


@pytest.mark.bad_input
def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "photos"))):
        quick_fit(tmp_path / "photos")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 20),
        ("dropout", 0.25),
        ("dropout_scaling", "test"),
        ("architecture", "paper"),
        ("num_classes", 3),
    ],
)
def test_a_model_that_contradicts_the_recipe_or_the_data_is_refused(field, value):
    arguments = {"num_classes": 10, "architecture": TINY, field: value}
    model = AlexNet(**arguments)
    with pytest.raises(ValueError, match=rf"^model has {field} {value!r}, but the .* has"):
        quick_fit(model=model)


@pytest.mark.bad_input
def test_a_model_that_is_no_alexnet_is_refused():
    with pytest.raises(TypeError, match="model is a Linear; expected an AlexNet"):
        quick_fit(model=torch.nn.Linear(1, 1))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "value"), [("image_size", 20), ("batch_size", 8), ("flip", False), ("cutmix", 1.0)]
)
def test_loaders_that_contradict_the_recipe_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"^data has {field} {value!r}, but the recipe has"):
        quick_fit(build_loaders(**{field: value}))


@pytest.mark.bad_input
def test_a_plateau_without_validation_images_is_refused():
    loaders = build_loaders(schedule="plateau")._replace(validation=None)
    few = {"schedule": "plateau", "validation_fraction": 0.001}  # rounded, no image
    for data, overrides in ((loaders, {"schedule": "plateau"}), ("shapes", few)):
        with pytest.raises(ValueError, match=r"^data has no validation images, but .* 'plateau'"):
            quick_fit(data, overrides=overrides)


@pytest.mark.bad_input
def test_options_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="options is a dict; expected RunOptions"):
        quick_fit(options={"device": "cpu"})


@pytest.mark.bad_input
def test_a_number_of_training_images_that_the_loaders_do_not_have_is_refused():
    with pytest.raises(ValueError, match=r"^data has train_images 60, but the recipe has 50"):
        quick_fit(build_loaders(), overrides={"train_images": 50})


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
    monkeypatch.setattr(training.shutil, "disk_usage", lambda folder: usage(10, 0, 10))
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

    poison_step(monkeypatch, 5, look)
    with pytest.raises(FloatingPointError):
        quick_fit(out=tmp_path)
    assert {"best.safetensors", "last.safetensors", "history.jsonl"} <= set(good)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == good


@pytest.mark.bad_input
def test_weights_that_the_last_step_spoiled_are_not_written(tmp_path, monkeypatch):
    steps, real = 0, Recipe.criterion

    def criterion(recipe, logits, labels):
        nonlocal steps
        steps += 1
        if steps == 4:  # a good loss with a bad gradient
            logits.register_hook(lambda gradient: gradient * float("nan"))
        return real(recipe, logits, labels)

    monkeypatch.setattr(Recipe, "criterion", criterion)
    with pytest.raises(FloatingPointError, match="epoch 1: the last step made weights NaN"):
        quick_fit(out=tmp_path, overrides={"validation_fraction": 0.0})
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.bad_input
@pytest.mark.parametrize(("part", "message"), [(6, "epoch 1: .* validation"), (20, "on the test")])
def test_an_evaluation_whose_loss_is_not_finite_is_named(part, message, monkeypatch):
    real = training._evaluate

    def spoiled(model, loader, options, *, views=1):
        metrics = real(model, loader, options, views=views)
        return replace(metrics, loss=float("nan")) if metrics.images == part else metrics

    monkeypatch.setattr(training, "_evaluate", spoiled)
    with pytest.raises(FloatingPointError, match=message):
        quick_fit()


@pytest.mark.bad_input
def test_a_learning_rate_beyond_reason_ends_the_run():
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        quick_fit(overrides={"learning_rate": 1e12, "max_grad_norm": None})
