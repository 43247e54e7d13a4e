"""The promises of `Recipe` and `RunOptions`: fields in range, the schedule, what is built."""

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import FakeCifar10, write_class_folders
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY, TINY_OVERRIDES, use_tiny
from torch import nn

from alexnet_lib import AlexNet
from alexnet_lib.channel_stats import CIFAR10_STATS
from alexnet_lib.recipes import DEMO_OVERRIDES, RECIPES, Recipe, RunOptions
from alexnet_lib.shapes import SHAPES_CLASSES
from alexnet_lib.transforms import HorizontalFlip


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    use_tiny(monkeypatch)


def learning_rates(recipe: Recipe, steps: int) -> list[float]:
    """The rate of each step, and that after the last."""
    optimizer = recipe.build_optimizer(nn.Linear(1, 1))
    schedule = recipe.build_schedule(optimizer, steps)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


schedules = {
    "steps": st.integers(1, 200),
    "fraction": st.floats(0, 0.99),
    "peak": st.floats(1e-4, 10),
}


@given(**schedules)
def test_the_rate_rises_linearly_to_the_learning_rate(steps, fraction, peak):
    rates = learning_rates(Recipe("r", warmup_fraction=fraction, learning_rate=peak), steps)
    warmup = min(round(fraction * steps), steps - 1)
    expected = [peak * (step + 1) / warmup for step in range(warmup)]
    assert rates[:warmup] == pytest.approx(expected)
    assert max(rates) == pytest.approx(peak)


@given(**schedules)
def test_the_rate_falls_along_a_cosine_to_0(steps, fraction, peak):
    rates = learning_rates(Recipe("r", warmup_fraction=fraction, learning_rate=peak), steps)
    falling = rates[min(round(fraction * steps), steps - 1) :]
    angles = [math.pi * i / (len(falling) - 1) for i in range(len(falling))]
    assert falling == pytest.approx([peak * (1 + math.cos(a)) / 2 for a in angles])
    assert falling[-1] == pytest.approx(0, abs=1e-12)


def test_the_optimizer_has_the_recipes_numbers():
    recipe = Recipe("r", learning_rate=0.5, momentum=0.8, weight_decay=0.01)
    group = recipe.build_optimizer(nn.Linear(1, 1)).param_groups[0]
    assert group["lr"] == 0.5
    assert group["momentum"] == 0.8
    assert group["weight_decay"] == 0.01
    assert group["nesterov"]


def test_momentum_0_is_plain_gradient_descent():
    layer = nn.Linear(1, 1)
    optimizer = Recipe("r", learning_rate=0.5, momentum=0.0, weight_decay=0.0).build_optimizer(
        layer
    )
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert torch.equal(layer.weight, before - 0.5)


def test_the_criterion_smooths_labels():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3)
    assert Recipe("r", label_smoothing=0.3).criterion(logits, labels) == expected


def test_the_model_has_the_recipes_fields_and_the_classes():
    recipe = Recipe("r", architecture="tiny", image_size=20, dropout=0.25, initialization="paper")
    model = recipe.build_model(("a", "b"), seed=3)
    expected = AlexNet(2, architecture=TINY, image_size=20, initialization="paper", seed=3)
    assert (model.architecture, model.image_size, model.dropout) == (TINY, 20, 0.25)
    assert model.classes == ("a", "b")
    assert torch.equal(model.features.conv1.weight, expected.features.conv1.weight)


def test_the_image_size_is_the_architectures_where_none_is_given():
    assert Recipe("r").size_of_images() == 227
    assert Recipe("r", architecture="one_weird_trick").size_of_images() == 224
    assert Recipe("r", image_size=67).size_of_images() == 67


def test_the_loaders_have_the_recipes_fields():
    recipe = Recipe(
        "r", architecture="tiny", batch_size=7, train_images=50, validation_fraction=0.2
    )
    loaders = recipe.build_loaders("shapes", seed=5)
    assert loaders.image_size == 12
    assert loaders.train.batch_size == 7
    assert loaders.train.augmentation == HorizontalFlip()
    assert loaders.train.seed == 5
    assert [len(part.dataset) for part in loaders] == [40, 10, 20]


def test_augmentation_none_changes_no_image():
    recipe = Recipe("r", architecture="tiny", augmentation="none")
    assert recipe.build_loaders("shapes", seed=0).train.augmentation is None


def test_data_are_told_apart_by_what_is_in_the_folder(tmp_path, monkeypatch):
    recipe = Recipe("r", architecture="tiny", validation_fraction=0.25)
    cifar = FakeCifar10(tmp_path, monkeypatch)
    photos = write_class_folders(tmp_path / "photos", count=10)
    assert recipe.build_loaders("shapes", 0).classes == SHAPES_CLASSES
    assert recipe.build_loaders(cifar.batches, 0).classes == cifar.classes
    assert recipe.build_loaders(photos, 0).classes == ("cat", "dog")


def test_cifar10_is_normalised_with_its_known_statistics_where_it_is_named(tmp_path, monkeypatch):
    cifar = FakeCifar10(tmp_path, monkeypatch)
    cifar.batches.parent.rename(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe("r", architecture="tiny", validation_fraction=0.25)
    assert recipe.build_loaders("cifar10", 0).stats == CIFAR10_STATS


def test_a_recipe_is_plain_data_that_json_holds():
    recipe = RECIPES["plain"].overridden(DEMO_OVERRIDES)
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_overriding_leaves_the_recipe_itself_alone():
    changed = RECIPES["plain"].overridden({"epochs": 9})
    assert changed.epochs == 9
    assert changed.batch_size == RECIPES["plain"].batch_size
    assert RECIPES["plain"].epochs != 9


def test_every_recipe_has_the_name_it_is_found_by():
    assert all(recipe.name == name for name, recipe in RECIPES.items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dropout", 0.0),
        ("dropout", 1.0),
        ("image_size", 67),
        ("train_images", 1),
        ("validation_fraction", 0.0),
        ("warmup_fraction", 0.0),
        ("momentum", 0.0),
        ("weight_decay", 0.0),
        ("label_smoothing", 0.0),
        ("max_grad_norm", None),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(field, value):
    assert getattr(Recipe("r", **{field: value}), field) == value


def test_options_resolve_auto_to_what_the_machine_offers():
    options = RunOptions(progress=False).resolved()
    assert options.device in {"cpu", "cuda", "mps"}
    assert options.precision in {"float32", "bfloat16"}
    assert options.memory_format in {"contiguous", "channels_last"}


def test_options_that_are_named_stay():
    options = RunOptions(device="cpu", precision="bfloat16", memory_format="contiguous")
    assert options.resolved() == options


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "vgg"),
        ("architecture", TINY),
        ("initialization", "zeros"),
        ("augmentation", "mixup"),
        ("dropout", -0.1),
        ("dropout", 1.1),
        ("image_size", 0),
        ("image_size", 66),
        ("image_size", 67.0),
        ("train_images", 0),
        ("train_images", 2.5),
        ("validation_fraction", -0.1),
        ("validation_fraction", 1),
        ("batch_size", 0),
        ("batch_size", "64"),
        ("batch_size", True),
        ("epochs", 0),
        ("epochs", 1.5),
        ("learning_rate", 0),
        ("learning_rate", -1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", "fast"),
        ("warmup_fraction", 1),
        ("warmup_fraction", -0.1),
        ("momentum", 1),
        ("momentum", math.nan),
        ("weight_decay", -1e-4),
        ("weight_decay", math.inf),
        ("label_smoothing", 1),
        ("label_smoothing", None),
        ("max_grad_norm", 0),
        ("max_grad_norm", math.inf),
    ],
)
def test_a_field_out_of_its_range_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field} is .*expected"):
        Recipe("r", **{field: value})


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["learning_rat", "name"])
def test_an_unknown_override_is_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"\['{name}'\].*'learning_rate'"):
        RECIPES["plain"].overridden({name: 1})


@pytest.mark.bad_input
def test_the_images_must_be_large_enough_for_the_recipes_architecture():
    Recipe("r", **{**TINY_OVERRIDES, "image_size": 12})
    with pytest.raises(ValueError, match=re.escape("image_size is 12; expected")):
        Recipe("r", image_size=12)


@pytest.mark.bad_input
@pytest.mark.parametrize(("field", "value"), [("device", "gpu"), ("precision", "int8")])
def test_an_unknown_device_or_precision_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is '{value}'"):
        RunOptions(**{field: value}).resolved()
