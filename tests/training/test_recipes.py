"""The promises of `Recipe` and `RunOptions`: fields in range, the schedule, what is built."""

import json
import math
import re
from dataclasses import MISSING, fields, replace

import pytest
import torch
import torch.nn.functional as F
from helpers import FakeCifar10, write_class_folders
from hypothesis import given
from hypothesis import strategies as st
from tiny import SMALL, TINY, TINY_OVERRIDES, use_tiny
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import TensorDataset

from alexnet_lib import AlexNet
from alexnet_lib.data.augmentation import (
    ColorNoise,
    CutMix,
    HorizontalFlip,
    Mixup,
    RandomCrop,
    RandomErasing,
    TrivialAugment,
)
from alexnet_lib.data.shapes import SHAPES_CLASSES
from alexnet_lib.data.statistics import (
    CIFAR10_STATS,
    CIFAR10_STATS_PER_IMAGE,
    IMAGENET_STATS,
    compute_channel_stats,
    compute_color_components,
)
from alexnet_lib.devices import RunOptions
from alexnet_lib.training.recipes import (
    DEMO_OVERRIDES,
    PAPER_RESIZE_RATIO,
    RECIPES,
    Recipe,
    stored_recipe,
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    use_tiny(monkeypatch)


def tiny(**changes) -> Recipe:
    return Recipe("r", **{"architecture": "tiny", **changes})


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


@given(steps=st.integers(2, 200), fraction=st.floats(0, 0.99), peak=st.floats(1e-4, 10))
def test_a_constant_rate_stays_where_the_warm_up_ends(steps, fraction, peak):
    recipe = Recipe("r", schedule="constant", warmup_fraction=fraction, learning_rate=peak)
    rates = learning_rates(recipe, steps)
    warmup = min(round(fraction * steps), steps - 1)
    assert rates[:warmup] == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])
    assert rates[warmup:] == pytest.approx([peak] * (steps + 1 - warmup))


@given(steps=st.integers(2, 200), fraction=st.floats(0, 0.99), peak=st.floats(1e-4, 10))
def test_before_the_first_plateau_the_rate_is_that_of_the_constant_schedule(steps, fraction, peak):
    plateau, constant = (
        Recipe("r", schedule=schedule, warmup_fraction=fraction, learning_rate=peak)
        for schedule in ("plateau", "constant")
    )
    assert learning_rates(plateau, steps) == pytest.approx(learning_rates(constant, steps))


def plateau_rates(recipe: Recipe, errors: list[float]) -> list[list[float]]:
    """Each group's rate after each epoch of one step, given the epochs' validation errors."""
    optimizer = recipe.build_optimizer(nn.Linear(1, 1))
    schedule = recipe.build_schedule(optimizer, len(errors))
    plateau = recipe.build_plateau(optimizer)
    rates = []
    for error in errors:
        optimizer.step()
        schedule.step()
        plateau.step(error)
        rates.append([group["lr"] for group in optimizer.param_groups])
    return [list(group) for group in zip(*rates, strict=True)]


PLATEAU = Recipe("r", schedule="plateau", warmup_fraction=0.0, learning_rate=0.02)


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_a_plateau_of_as_many_epochs_as_the_patience_divides_the_rate_by_ten(patience):
    recipe = replace(PLATEAU, plateau_patience=patience)
    rates, _ = plateau_rates(recipe, [0.5] + [0.5] * patience + [0.4, 0.4])
    assert rates[patience - 1 : patience + 2] == pytest.approx([0.02, 0.002, 0.002])


def test_while_the_error_improves_the_rate_stays():
    rates, _ = plateau_rates(replace(PLATEAU, plateau_patience=1), [0.5, 0.4999, 0.4998, 0.0])
    assert rates == pytest.approx([0.02] * 4)


def test_an_improvement_makes_the_patience_start_anew():
    recipe = replace(PLATEAU, plateau_patience=2)
    rates, _ = plateau_rates(recipe, [0.5, 0.6, 0.4, 0.4, 0.4])
    assert rates == pytest.approx([0.02] * 4 + [0.002])


def test_the_rate_is_divided_at_most_three_times():
    rates, _ = plateau_rates(replace(PLATEAU, plateau_patience=1), [0.5] * 9)
    assert rates == pytest.approx([0.02, 0.002, 0.0002] + [0.00002] * 6)


def test_plateaus_keep_the_ratio_of_the_biases_rate():
    recipe = replace(PLATEAU, plateau_patience=1, bias_rate_factor=3.0)
    weights, biases = plateau_rates(recipe, [0.5] * 9)
    assert biases == pytest.approx([3 * rate for rate in weights])


def test_a_warm_up_that_goes_on_does_not_undo_a_plateaus_division():
    recipe = replace(PLATEAU, plateau_patience=1, warmup_fraction=0.5)
    # Eight steps, of which four are the warm-up; the plateau comes in the second.
    rates, _ = plateau_rates(recipe, [0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01])
    assert rates[0] == pytest.approx(0.02 * 2 / 4)
    assert rates[1:] == pytest.approx([0.002 * 3 / 4] + [0.002] * 6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_other_schedules_have_no_plateau(schedule):
    recipe = Recipe("r", schedule=schedule)
    assert recipe.build_plateau(recipe.build_optimizer(nn.Linear(1, 1))) is None


def groups_of(recipe: Recipe, model: nn.Module) -> list[dict]:
    return recipe.build_optimizer(model).param_groups


@pytest.mark.parametrize("place", [0, 1], ids=["weights", "biases"])
def test_the_optimizer_has_the_recipes_numbers(place):
    recipe = Recipe("r", learning_rate=0.5, momentum=0.8, weight_decay=0.01)
    optimizer = recipe.build_optimizer(nn.Linear(1, 1))
    group = optimizer.param_groups[place]
    assert type(optimizer) is SGD
    assert group["lr"] == 0.5
    assert group["momentum"] == 0.8
    assert group["weight_decay"] == 0.01
    assert group["nesterov"]


def test_nesterovs_momentum_is_left_out_where_the_recipe_says_so():
    assert not groups_of(Recipe("r", nesterov=False), nn.Linear(1, 1))[0]["nesterov"]


def test_adamw_has_the_recipes_numbers():
    recipe = Recipe("r", optimizer="adamw", learning_rate=0.5, momentum=0.8, weight_decay=0.01)
    optimizer = recipe.build_optimizer(nn.Linear(1, 1))
    assert type(optimizer) is AdamW
    for group in optimizer.param_groups:
        assert group["lr"] == 0.5
        assert group["betas"] == (0.8, 0.999)
        assert group["weight_decay"] == 0.01


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_have_their_own_rate(optimizer):
    model = AlexNet(2, architecture=TINY)
    recipe = Recipe("r", optimizer=optimizer, learning_rate=0.25, bias_rate_factor=2.0)
    weights, biases = groups_of(recipe, model)
    assert (weights["lr"], biases["lr"]) == (0.25, 0.5)
    layers = [model.features.conv1, model.classifier.fc2]
    assert [id(p) for p in weights["params"]] == [id(layer.weight) for layer in layers]
    assert [id(p) for p in biases["params"]] == [id(layer.bias) for layer in layers]


@pytest.mark.parametrize(("decays", "expected"), [(True, 0.01), (False, 0.0)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_decay_where_the_recipe_says_so(optimizer, decays, expected):
    recipe = Recipe("r", optimizer=optimizer, weight_decay=0.01, decay_biases=decays)
    weights, biases = groups_of(recipe, nn.Linear(1, 1))
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.01, expected)


def test_frozen_weights_are_not_in_the_optimizer():
    model = tiny(freeze=("conv1",)).build_model(("a", "b"), seed=0)
    groups = groups_of(Recipe("r"), model)
    found = [p for group in groups for p in group["params"]]
    assert [id(p) for p in found] == [id(p) for p in model.classifier.fc2.parameters()]


def test_a_model_without_biases_has_one_group():
    (group,) = groups_of(Recipe("r"), nn.Linear(1, 1, bias=False))
    assert len(group["params"]) == 1


def test_momentum_0_is_plain_gradient_descent():
    layer = nn.Linear(1, 1)
    optimizer = Recipe("r", learning_rate=0.5, momentum=0.0, weight_decay=0.0).build_optimizer(
        layer
    )
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert torch.equal(layer.weight, before - 0.5)


@given(
    gradients=st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    start=st.floats(-2, 2),
    rate=st.floats(1e-4, 1),
)
def test_without_nesterov_the_update_is_the_papers(gradients, start, rate):
    layer = nn.Linear(1, 1, bias=False).double()
    recipe = replace(RECIPES["paper"], learning_rate=rate)
    optimizer = recipe.build_optimizer(layer)
    with torch.no_grad():
        layer.weight.fill_(start)
    w, v = start, 0.0
    for gradient in gradients:
        layer.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        v = 0.9 * v - 0.0005 * rate * w - rate * gradient
        w = w + v
        assert layer.weight.item() == pytest.approx(w, rel=1e-9, abs=1e-9)


def test_the_criterion_smooths_labels():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3)
    assert Recipe("r", label_smoothing=0.3).criterion(logits, labels) == expected


def test_the_model_has_the_recipes_fields_and_the_classes():
    recipe = Recipe(
        "r",
        architecture="tiny",
        image_size=20,
        dropout=0.25,
        dropout_scaling="test",
        initialization="paper",
    )
    model = recipe.build_model(("a", "b"), seed=3)
    expected = AlexNet(2, architecture=TINY, image_size=20, initialization="paper", seed=3)
    assert (model.architecture, model.image_size) == (TINY, 20)
    assert (model.dropout, model.dropout_scaling) == (0.25, "test")
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
    assert loaders.train.augmentation == (HorizontalFlip(),)
    assert loaders.train.seed == 5
    assert [len(part.dataset) for part in loaders] == [40, 10, 20]


def augmentation_of(**changes) -> tuple:
    recipe = tiny(**{"flip": False, **changes})
    return recipe.build_loaders("shapes", seed=0).train.augmentation


def test_without_augmentation_no_image_is_changed():
    assert augmentation_of() == ()


@pytest.mark.parametrize(
    ("field", "value", "augmentation"),
    [
        ("flip", True, HorizontalFlip()),
        ("random_crop", True, RandomCrop()),
        ("trivial_augment", True, TrivialAugment()),
        ("erasing", 0.3, RandomErasing(0.3)),
        ("mixup", 0.4, Mixup(0.4)),
        ("cutmix", 0.6, CutMix(0.6)),
    ],
)
def test_each_augmentation_has_its_field(field, value, augmentation):
    assert augmentation_of(**{field: value}) == (augmentation,)


def test_color_noise_is_along_the_components_of_the_training_images():
    loaders = tiny(flip=False, color_noise=0.2).build_loaders("shapes", seed=0)
    components = compute_color_components(loaders.train.dataset.images)
    assert loaders.train.augmentation == (ColorNoise(components, 0.2),)


def test_validation_and_test_images_are_not_augmented():
    loaders = tiny(random_crop=True, mixup=0.2, erasing=0.5).build_loaders("shapes", seed=0)
    assert loaders.validation.augmentation == loaders.test.augmentation == ()


# Test images as the network gets them, of the size that they are stored in.
def raw_and_input(**changes):
    loaders = tiny(image_size=32, batch_size=20, **changes).build_loaders("shapes", seed=0)
    return loaders.test.dataset.images, next(iter(loaders.test))[0], loaders


def test_mean_only_gives_raw_values_less_the_mean():
    raw, inputs, loaders = raw_and_input(normalization="mean_only")
    mean = 255 * torch.tensor(compute_channel_stats(loaders.train.dataset.images).mean)
    torch.testing.assert_close(inputs + mean[:, None, None], raw.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("normalization", "std"), [("pixel_std", "pixel"), ("per_image_std", "per_image")]
)
def test_images_are_normalised_with_the_training_sets_statistics(normalization, std):
    raw, inputs, loaders = raw_and_input(normalization=normalization)
    stats = compute_channel_stats(loaders.train.dataset.images, std=std)
    mean, deviation = (torch.tensor(s)[:, None, None] for s in (stats.mean, stats.std))
    expected = (raw.float() / 255 - mean) / deviation
    torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-4)


def test_imagenet_is_the_normalisation_with_imagenets_statistics():
    preprocess = tiny(normalization="imagenet").build_loaders("shapes", seed=0).preprocess
    assert (preprocess.mean, preprocess.std) == (IMAGENET_STATS.mean, IMAGENET_STATS.std)


def test_the_edge_of_every_input_is_zeros():
    loaders = tiny(image_size=20, edge=3).build_loaders("shapes", seed=0)
    for part in loaders:
        images, _ = next(iter(part))
        assert images.shape[-2:] == (20, 20)
        assert not images[..., 17:, :].any()
        assert not images[..., :, 17:].any()
        assert images[..., :17, :17].any((0, 1)).all()


def test_images_are_resized_by_the_ratio_to_what_the_network_sees():
    preprocess = (
        Recipe("r", resize_ratio=PAPER_RESIZE_RATIO, edge=3)
        .build_loaders("shapes", seed=0)
        .preprocess
    )
    assert (preprocess.resize, preprocess.window, preprocess.image_size) == (256, 224, 227)


def test_data_are_told_apart_by_what_is_in_the_folder(tmp_path, monkeypatch):
    recipe = Recipe("r", architecture="tiny", validation_fraction=0.25)
    cifar = FakeCifar10(tmp_path, monkeypatch)
    photos = write_class_folders(tmp_path / "photos", count=10)
    assert recipe.build_loaders("shapes", 0).classes == SHAPES_CLASSES
    assert recipe.build_loaders(cifar.batches, 0).classes == cifar.classes
    assert recipe.build_loaders(photos, 0).classes == ("cat", "dog")


def test_any_data_set_is_treated_as_the_recipe_says():
    images = torch.rand(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    train = TensorDataset(images, torch.arange(40) % 4)
    test = TensorDataset(images[:8], torch.arange(8) % 4)
    recipe = RECIPES["paper"].overridden({**SMALL, "train_images": None})
    loaders = recipe.build_loaders(train, 0, test=test)
    assert [len(part.dataset) for part in loaders] == [36, 4, 8]
    assert recipe.contradictions(loaders) == {}
    assert (loaders.preprocess.scale, loaders.preprocess.edge) == (255, recipe.edge)
    assert loaders.preprocess.mean == pytest.approx([127.5] * 3, rel=0.05)
    assert [len(part.dataset) for part in recipe.build_loaders(train, 0)] == [29, 3, 8]


@pytest.mark.bad_input
def test_test_images_beside_a_name_are_refused():
    test = TensorDataset(torch.rand(4, 3, 12, 12), torch.arange(4))
    with pytest.raises(ValueError, match=r"^test is given, but data is 'shapes'"):
        tiny().build_loaders("shapes", 0, test=test)


def test_cifar10_is_normalised_with_its_known_statistics_where_it_is_named(tmp_path, monkeypatch):
    cifar = FakeCifar10(tmp_path, monkeypatch)
    cifar.batches.parent.rename(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert tiny(validation_fraction=0.25).build_loaders("cifar10", 0).stats == CIFAR10_STATS


@pytest.mark.parametrize(
    ("normalization", "stats"),
    [
        ("pixel_std", CIFAR10_STATS),
        ("per_image_std", CIFAR10_STATS_PER_IMAGE),
        ("imagenet", IMAGENET_STATS),
    ],
)
def test_cifar10_is_normalised_as_the_recipe_says(normalization, stats, tmp_path, monkeypatch):
    cifar = FakeCifar10(tmp_path, monkeypatch)
    recipe = tiny(validation_fraction=0.25, normalization=normalization)
    assert recipe.build_loaders(cifar.batches, 0).stats == stats


# Loaders and recipes


@pytest.mark.parametrize("name", RECIPES)
def test_the_loaders_of_a_recipe_do_not_contradict_it(name):
    recipe = RECIPES[name].overridden(SMALL)
    assert recipe.contradictions(recipe.build_loaders("shapes", seed=0)) == {}


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("train_images", 50, {"train_images": (60, 50)}),
        ("batch_size", 8, {"batch_size": (128, 8)}),
        ("resize_ratio", 2.0, {"resize_ratio": (1.0, 2.0)}),
        ("normalization", "mean_only", {"normalization": ("pixel_std", "mean_only")}),
        ("edge", 2, {"edge": (0, 2)}),
        ("image_size", 20, {"image_size": (12, 20)}),
        ("flip", False, {"flip": (True, False)}),
        ("random_crop", True, {"random_crop": (False, True)}),
        ("color_noise", 0.2, {"color_noise": (0.0, 0.2)}),
        ("trivial_augment", True, {"trivial_augment": (False, True)}),
        ("erasing", 0.3, {"erasing": (0.0, 0.3)}),
        ("mixup", 0.4, {"mixup": (0.0, 0.4)}),
        ("cutmix", 0.4, {"cutmix": (0.0, 0.4)}),
    ],
)
def test_each_field_in_which_loaders_differ_is_named(field, value, named):
    other = tiny(**{field: value})
    assert other.contradictions(tiny().build_loaders("shapes", seed=0)) == named
    if field != "train_images":  # a recipe without a number takes any
        back = {name: (theirs, ours) for name, (ours, theirs) in named.items()}
        assert tiny().contradictions(other.build_loaders("shapes", seed=0)) == back


# Recipes as data


def through_json(recipe: Recipe) -> Recipe:
    return Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "freeze": st.sets(st.sampled_from(["conv1", "fc2"])).map(tuple),
            "weights": st.none() | st.text(),
            "image_size": st.none() | st.integers(12, 40),
            "edge": st.integers(0, 10),
            "normalization": st.sampled_from(["pixel_std", "mean_only"]),
            "train_images": st.none() | st.integers(1, 10),
            "color_noise": st.floats(0, 1),
            "optimizer": st.sampled_from(["sgd", "adamw"]),
            "learning_rate": st.floats(1e-8, 10),
            "max_grad_norm": st.none() | st.floats(0.1, 10),
            "ema_decay": st.none() | st.floats(0.1, 0.9),
            "views": st.sampled_from([1, 2]),
        },
    )
)
def test_a_recipe_is_plain_data_that_json_holds(changes):
    recipe = tiny(**changes)
    assert through_json(recipe) == recipe


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_is_plain_data_that_json_holds(recipe):
    assert through_json(recipe) == recipe
    assert through_json(recipe.overridden({"freeze": ("conv1", "conv2")})).freeze == (
        "conv1",
        "conv2",
    )


def test_a_stored_recipe_is_found_by_its_folder_and_by_its_file(tmp_path):
    recipe = tiny(freeze=("conv1",))
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({"recipe": recipe.to_dict(), "seed": 7}), encoding="utf-8")
    assert stored_recipe(tmp_path) == stored_recipe(file) == (recipe, 7)


def test_overriding_leaves_the_recipe_itself_alone():
    changed = RECIPES["modern"].overridden({"epochs": 9})
    assert changed.epochs == 9
    assert changed.batch_size == RECIPES["modern"].batch_size
    assert RECIPES["modern"].epochs != 9


def test_every_recipe_has_the_name_it_is_found_by():
    assert all(recipe.name == name for name, recipe in RECIPES.items())


def test_the_demo_changes_the_modern_recipe_within_its_ranges():
    assert DEMO_OVERRIDES.items() <= RECIPES["modern"].overridden(DEMO_OVERRIDES).to_dict().items()


def test_the_tutorial_is_the_blog_post_field_for_field():
    assert RECIPES["tutorial"].to_dict() == {
        "name": "tutorial",
        "architecture": "single_tower",
        "initialization": "torch",
        "weights": None,
        "freeze": [],
        "dropout": 0.5,
        "dropout_scaling": "training",
        "image_size": None,
        "resize_ratio": 1.0,
        "edge": 0,
        "normalization": "per_image_std",
        "train_images": None,
        "validation_fraction": 0.0,
        "flip": False,
        "random_crop": False,
        "color_noise": 0.0,
        "trivial_augment": False,
        "erasing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "batch_size": 128,
        "epochs": 10,
        "optimizer": "sgd",
        "learning_rate": 0.0001,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "plateau_patience": RECIPES["tutorial"].plateau_patience,  # without use
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0005,
        "decay_biases": True,
        "bias_rate_factor": 1.0,
        "label_smoothing": 0.0,
        "max_grad_norm": None,
        "ema_decay": None,
        "views": 1,
    }


def test_the_paper_is_the_papers_but_for_the_length_of_its_training():
    recipe = RECIPES["paper"]
    assert {
        "architecture": "paper",
        "initialization": "released_code",
        "weights": None,
        "dropout": 0.5,
        "dropout_scaling": "test",
        "normalization": "mean_only",
        "edge": 3,
        "flip": True,
        "random_crop": True,
        "color_noise": 0.1,
        "batch_size": 128,
        "optimizer": "sgd",
        "schedule": "plateau",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0005,
        "decay_biases": False,
        "bias_rate_factor": 2.0,
        "learning_rate": 0.01,
        "warmup_fraction": 0.0,
        "label_smoothing": 0.0,
        "max_grad_norm": None,
        "views": 10,
    }.items() <= {field.name: getattr(recipe, field.name) for field in fields(recipe)}.items()
    assert recipe.size_of_images() - recipe.edge == 224
    assert recipe.room() == 256 - 224


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dropout", 0.0),
        ("dropout", 1.0),
        ("freeze", ()),
        ("image_size", 67),
        ("resize_ratio", 1.0),
        ("edge", 226),
        ("erasing", 1.0),
        ("plateau_patience", 1),
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


OUT_OF_RANGE = [
    ("architecture", "vgg"),
    ("architecture", TINY),
    ("initialization", "zeros"),
    ("initialization", ["kaiming"]),
    ("weights", 3),
    ("weights", b"alexnet.pth"),
    ("freeze", "conv1"),
    ("freeze", ("conv1", "conv9")),
    ("freeze", ("relu1", 1)),
    ("freeze", None),
    ("dropout", -0.1),
    ("dropout", 1.1),
    ("dropout", None),
    ("dropout_scaling", "never"),
    ("dropout_scaling", None),
    ("image_size", 0),
    ("image_size", 66),
    ("image_size", 67.0),
    ("resize_ratio", 0.99),
    ("resize_ratio", math.inf),
    ("resize_ratio", None),
    ("edge", -1),
    ("edge", 3.0),
    ("edge", True),
    ("normalization", "std"),
    ("normalization", None),
    ("train_images", 0),
    ("train_images", 2.5),
    ("validation_fraction", -0.1),
    ("validation_fraction", 1),
    ("flip", 1),
    ("flip", "yes"),
    ("random_crop", None),
    ("color_noise", -0.1),
    ("color_noise", math.nan),
    ("color_noise", True),
    ("trivial_augment", 0),
    ("erasing", -0.1),
    ("erasing", 1.1),
    ("mixup", -0.1),
    ("mixup", math.inf),
    ("cutmix", -0.1),
    ("cutmix", None),
    ("batch_size", 0),
    ("batch_size", "64"),
    ("batch_size", True),
    ("epochs", 0),
    ("epochs", 1.5),
    ("optimizer", "adam"),
    ("optimizer", None),
    ("learning_rate", 0),
    ("learning_rate", -1),
    ("learning_rate", math.nan),
    ("learning_rate", math.inf),
    ("learning_rate", "fast"),
    ("schedule", "linear"),
    ("schedule", None),
    ("warmup_fraction", 1),
    ("warmup_fraction", -0.1),
    ("plateau_patience", 0),
    ("plateau_patience", 1.5),
    ("plateau_patience", None),
    ("momentum", 1),
    ("momentum", math.nan),
    ("nesterov", 0),
    ("weight_decay", -1e-4),
    ("weight_decay", math.inf),
    ("decay_biases", "no"),
    ("bias_rate_factor", 0),
    ("bias_rate_factor", None),
    ("label_smoothing", 1),
    ("label_smoothing", None),
    ("max_grad_norm", 0),
    ("max_grad_norm", math.inf),
    ("ema_decay", 0),
    ("ema_decay", 1),
    ("ema_decay", math.nan),
    ("views", 3),
    ("views", True),
    ("views", 1.0),
    ("views", "2"),
]
# A recipe may be called anything.
UNCHECKED = {"name"}


@pytest.mark.bad_input
@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
def test_a_field_out_of_its_range_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field} is .*expected"):
        Recipe("r", **{field: value})


def test_every_field_has_a_value_that_is_refused():
    assert {field for field, _ in OUT_OF_RANGE} | UNCHECKED == {f.name for f in fields(Recipe)}


def test_every_field_but_the_name_has_a_default():
    assert [f.name for f in fields(Recipe) if f.default is MISSING] == ["name"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 0.2, "cutmix": 1.0}, "mixup is 0.2 and cutmix is 1.0; expected one of them"),
        (
            {"schedule": "plateau", "validation_fraction": 0.0},
            "validation_fraction is 0, but the schedule 'plateau'",
        ),
        ({"views": 10}, "views is 10, but resize_ratio is 1.0"),
        (
            {"weights": "w.pth", "dropout_scaling": "test"},
            "dropout_scaling is 'test', but weights is 'w.pth'",
        ),
        ({"views": 10, "resize_ratio": 1.001}, "views is 10, but resize_ratio is 1.001"),
        ({"edge": 227}, "edge is 227; expected less than the image size, 227"),
        ({"edge": 67, "image_size": 67}, "edge is 67; expected less than the image size, 67"),
    ],
)
def test_fields_that_do_not_go_together_are_named(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Recipe("r", **changes)


@pytest.mark.bad_input
@pytest.mark.parametrize("missing", ["freeze", "name", "views"])
def test_data_without_one_of_the_fields_is_no_recipe(missing):
    data = Recipe("r").to_dict()
    del data[missing]
    with pytest.raises(ValueError, match=r"^data has .*expected a recipe's fields"):
        Recipe.from_dict(data)


@pytest.mark.bad_input
@pytest.mark.parametrize("data", [{**Recipe("r").to_dict(), "augmentation": "flip"}, [], None, {}])
def test_data_with_other_fields_is_no_recipe(data):
    with pytest.raises(ValueError, match=r"^data has .*expected a recipe's fields"):
        Recipe.from_dict(data)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "value"), [("epochs", "ten"), ("freeze", "conv1"), ("learning_rate", None)]
)
def test_data_with_a_value_out_of_its_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is"):
        Recipe.from_dict({**Recipe("r").to_dict(), field: value})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"recipe": {}, "seed": 0}',
        json.dumps({"recipe": Recipe("r").to_dict()}),
        json.dumps({"recipe": Recipe("r").to_dict(), "seed": None}),
        json.dumps({"recipe": Recipe("r").to_dict() | {"epochs": 0}, "seed": 0}),
    ],
    ids=["empty", "broken", "list", "nothing", "no fields", "no seed", "seed None", "epochs 0"],
)
def test_a_file_that_is_no_runs_recipe_is_named(text, tmp_path):
    (tmp_path / "recipe.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'recipe.json'} is not the")):
        stored_recipe(tmp_path)


@pytest.mark.bad_input
def test_a_run_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "recipe.json"))):
        stored_recipe(tmp_path)


@pytest.mark.bad_input
def test_weights_of_another_architecture_are_refused():
    with pytest.raises(ValueError, match=r"weights is 'w\.pth', but the architecture is 'tiny'"):
        tiny(weights="w.pth").build_model(("a", "b"), seed=0)


@pytest.mark.bad_input
def test_weights_that_do_not_exist_are_named_with_where_to_get_them():
    recipe = Recipe("r", architecture="one_weird_trick", weights="nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"'nowhere\.pth'.*https://"):
        recipe.build_model(("a", "b"), seed=0)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["learning_rat", "name"])
def test_an_unknown_override_is_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"\['{name}'\].*'learning_rate'"):
        RECIPES["modern"].overridden({name: 1})


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
