"""The promises of `Recipe`: fields in range, what happens to an image, recipes as data."""

import json
import math
import os
import re
import tempfile
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import in_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, TINY_OVERRIDES
from torch import nn

from alexnet_lib import Preprocess
from alexnet_lib.data.augmentation import (
    ColorNoise,
    HorizontalFlip,
    RandomCrop,
    RandomShift,
    TrivialAugment,
)
from alexnet_lib.data.loaders import Treatment
from alexnet_lib.data.statistics import IMAGENET_STATS, measure_pixels
from alexnet_lib.training.recipes import (
    DEMO_OVERRIDES,
    PAPER_RESIZE_RATIO,
    RECIPES,
    Recipe,
    stored_recipe,
)


def tiny(**changes) -> Recipe:
    return Recipe("r", **{"architecture": "tiny", **changes})


def test_the_criterion_smooths_labels():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3)
    assert Recipe("r", label_smoothing=0.3).criterion(logits, labels) == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_class_weights_multiply_the_losses_of_the_images_of_their_class(smoothing):
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    weights = torch.tensor([1.0, 0.5, 3.0])
    loss = nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing, reduction="sum")
    found = Recipe("r", label_smoothing=smoothing).criterion(logits, labels, weights)
    torch.testing.assert_close(found, loss(logits, labels) / 5)
    # Also of labels that are shares.
    shares = F.one_hot(labels, 3).float()
    torch.testing.assert_close(
        Recipe("r", label_smoothing=smoothing).criterion(logits, shares, weights), found
    )


def test_the_input_is_of_the_architectures_size_where_none_is_given():
    assert Recipe("r").input_size == 227
    assert Recipe("r", architecture="one_weird_trick").input_size == 224
    assert Recipe("r", image_size=67).input_size == 67


def test_the_network_sees_the_input_less_its_edge_of_an_image_resized_by_the_ratio():
    recipe = Recipe("r", resize_ratio=PAPER_RESIZE_RATIO, edge=3)
    assert (recipe.resize, recipe.crop_size, recipe.input_size) == (256, 224, 227)


# What happens to an image


PHOTOS = torch.randint(
    0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
MEASURED = measure_pixels(PHOTOS)


def treatment(**changes) -> Treatment:
    return tiny(**{"flip": False, **changes}).treatment(lambda: MEASURED)


@pytest.mark.parametrize("stats", ["pixel", "per_image"])
def test_images_are_standardised_with_the_statistics_of_the_training_images(stats):
    expected = MEASURED.channel_stats(stats)
    found = treatment(stats=stats)
    assert found.stats == expected
    assert found.preprocess == Preprocess(12, 12, mean=expected.mean, std=expected.std)


def test_imagenets_statistics_are_taken_without_measuring():
    def measure():
        raise AssertionError("images were read")

    found = tiny(stats="imagenet").treatment(measure)
    assert found.stats == IMAGENET_STATS
    assert found.preprocess == Preprocess(12, 12, mean=IMAGENET_STATS.mean, std=IMAGENET_STATS.std)


@pytest.mark.parametrize("stats", ["pixel", "per_image", "imagenet"])
def test_subtracting_the_mean_gives_raw_values_less_the_mean(stats):
    found = treatment(preprocessing="subtract_mean", stats=stats, image_size=20)
    mean = IMAGENET_STATS.mean if stats == "imagenet" else MEASURED.mean
    expected = Preprocess(20, 20, scale=255.0, mean=tuple(255 * part for part in mean))
    assert found.preprocess == expected


def test_the_size_of_the_resize_and_of_the_edge_are_the_recipes():
    found = treatment(image_size=20, edge=4, resize_ratio=1.25, stats="imagenet").preprocess
    assert (found.resize, found.image_size, found.edge) == (20, 20, 4)


def test_the_preprocessing_has_the_recipes_background_and_decoding():
    found = treatment(background="red", decode="full").preprocess
    assert (found.background, found.decode) == ("red", "full")


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("preprocessing", ["standardize", "subtract_mean"])
def test_images_of_other_channels_are_treated_with_statistics_of_as_many(preprocessing, count):
    images = PHOTOS[:, :1].repeat(1, count, 1, 1)
    measured = measure_pixels(images) if count in {1, 3} else measure_pixels(in_memory(images))
    recipe = tiny(preprocessing=preprocessing, color_noise=0.1)
    found = recipe.treatment(lambda: measured, channels=count)
    scale = 255 if preprocessing == "subtract_mean" else 1
    assert found.preprocess.channels == count
    assert found.preprocess.mean == pytest.approx([scale * part for part in measured.mean])


@pytest.mark.bad_input
@pytest.mark.parametrize("count", [1, 4])
def test_statistics_of_another_number_of_channels_are_refused(count):
    message = f"stats is 'imagenet', with the statistics of 3 channels, but the images have {count}"
    with pytest.raises(ValueError, match=message):
        tiny(stats="imagenet").treatment(lambda: MEASURED, channels=count)


def test_without_augmentation_no_image_is_changed():
    assert treatment().augmentation == ()


@pytest.mark.parametrize(
    ("field", "value", "augmentation"),
    [
        ("flip", True, HorizontalFlip()),
        ("random_crop", True, RandomCrop()),
        ("random_shift", 0.25, RandomShift(0.25)),
        ("trivial_augment", True, TrivialAugment()),
        ("color_noise", 0.2, ColorNoise(MEASURED.color_components, 0.2)),
    ],
)
def test_each_augmentation_has_its_field(field, value, augmentation):
    assert treatment(**{field: value}).augmentation == (augmentation,)


def test_images_are_mirrored_shifted_coloured_and_cropped_in_this_order():
    found = treatment(
        flip=True,
        random_shift=0.1,
        trivial_augment=True,
        color_noise=0.1,
        random_crop=True,
    )
    assert [type(augmentation) for augmentation in found.augmentation] == [
        HorizontalFlip,
        RandomShift,
        TrivialAugment,
        ColorNoise,
        RandomCrop,
    ]


@pytest.mark.bad_input
def test_images_without_contrast_cannot_be_standardised():
    grey = measure_pixels(torch.full((2, 3, 4, 4), 100, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^the training images have the standard deviations"):
        tiny().treatment(lambda: grey)
    assert tiny(preprocessing="subtract_mean").treatment(lambda: grey).stats.std == (0, 0, 0)


# Recipes as data


def through_json(recipe: Recipe) -> Recipe:
    return Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "freeze": st.sets(st.sampled_from(["conv1", "fc2"])).map(tuple),
            "image_size": st.none() | st.integers(12, 40),
            "edge": st.integers(0, 10),
            "preprocessing": st.sampled_from(["standardize", "subtract_mean"]),
            "stats": st.sampled_from(["pixel", "per_image", "imagenet"]),
            "train_images": st.none() | st.integers(1, 10),
            "color_noise": st.floats(0, 1),
            "optimizer": st.sampled_from(["sgd", "muon"]),
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


# The named recipes


def test_the_recipes_are_found_by_these_names():
    assert [*RECIPES] == ["modern", "paper", "tutorial", "finetune"]
    assert [recipe.name for recipe in RECIPES.values()] == [*RECIPES]


def test_the_demo_changes_the_modern_recipe_within_its_ranges():
    assert DEMO_OVERRIDES.items() <= RECIPES["modern"].overridden(DEMO_OVERRIDES).to_dict().items()


# Each field of each recipe: the settings are results, and none may change unnoticed. These are the
# same in all.
UNCHANGED = {
    "channels": None,
    "background": "white",
    "decode": "reduced",
    "stats_images": 2000,
    "drop_last": False,
    "balance": "none",
    "accumulation_steps": 1,
    "early_stopping": None,
    "start_size": 0.58,
    "filter_rate_factor": 0.5,
}
MODERN = {
    "name": "modern",
    "architecture": "paper",
    "initialization": "kaiming",
    "weights": None,
    "freeze": [],
    "dropout": 0.5,
    "dropout_scaling": "test",
    "image_size": None,
    "resize_ratio": 1.0,
    "edge": 0,
    "preprocessing": "standardize",
    "stats": "pixel",
    "train_images": None,
    "validation_fraction": 0.1,
    "flip": True,
    "random_crop": False,
    "random_shift": 0.125,
    "color_noise": 0.0,
    "trivial_augment": False,
    "batch_size": 128,
    "epochs": 16,
    "growth_fraction": 0.95,
    "optimizer": "muon",
    "learning_rate": 0.056,
    "filter_decay": 0.05,
    "schedule": "cosine",
    "warmup_fraction": 0.1,
    "plateau_patience": 3,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.0015,
    "decay_biases": True,
    "bias_rate_factor": 1.0,
    "label_smoothing": 0.1,
    "max_grad_norm": 5.0,
    "ema_decay": None,
    "views": 1,
}
FINETUNE = {
    "name": "finetune",
    "architecture": "one_weird_trick",
    "initialization": "kaiming",
    "weights": "alexnet-owt-7be5be79.pth",
    "freeze": ["conv1"],
    "dropout": 0.5,
    "dropout_scaling": "training",
    "image_size": None,
    "resize_ratio": 256 / 224,
    "edge": 0,
    "preprocessing": "standardize",
    "stats": "imagenet",
    "train_images": None,
    "validation_fraction": 0.1,
    "flip": True,
    "random_crop": True,
    "random_shift": 0.0,
    "color_noise": 0.0,
    "trivial_augment": False,
    "batch_size": 64,
    "epochs": 4,
    "growth_fraction": 0.0,
    "optimizer": "sgd",
    "learning_rate": 0.002,
    "filter_decay": 0.0,
    "schedule": "cosine",
    "warmup_fraction": 0.1,
    "plateau_patience": 3,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.0005,
    "decay_biases": True,
    "bias_rate_factor": 1.0,
    "label_smoothing": 0.1,
    "max_grad_norm": 5.0,
    "ema_decay": None,
    "views": 1,
}
# Paper, sections 3 to 5, and the released code's layer definitions.
PAPER = {
    "name": "paper",
    "architecture": "paper",
    "initialization": "released_code",
    "weights": None,
    "freeze": [],
    "dropout": 0.5,
    "dropout_scaling": "test",
    "image_size": None,
    "resize_ratio": 256 / 224,
    "edge": 3,
    "preprocessing": "subtract_mean",
    "stats": "pixel",
    "train_images": None,
    "validation_fraction": 0.1,
    "flip": True,
    "random_crop": True,
    "random_shift": 0.0,
    "color_noise": 0.1,
    "trivial_augment": False,
    "batch_size": 128,
    "epochs": 90,
    "growth_fraction": 0.0,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "filter_decay": 0.0,
    "schedule": "plateau",
    "warmup_fraction": 0.0,
    "plateau_patience": 3,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0005,
    "decay_biases": False,
    "bias_rate_factor": 2.0,
    "label_smoothing": 0.0,
    "max_grad_norm": None,
    "ema_decay": None,
    "views": 10,
}
# The blog post's.
TUTORIAL = {
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
    "preprocessing": "standardize",
    "stats": "per_image",
    "train_images": None,
    "validation_fraction": 0.0,
    "flip": False,
    "random_crop": False,
    "random_shift": 0.0,
    "color_noise": 0.0,
    "trivial_augment": False,
    "batch_size": 128,
    "epochs": 10,
    "growth_fraction": 0.0,
    "optimizer": "sgd",
    "learning_rate": 0.0001,
    "filter_decay": 0.0,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "plateau_patience": 3,
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


@pytest.mark.parametrize(
    "expected", [MODERN, PAPER, TUTORIAL, FINETUNE], ids=["modern", "paper", "tutorial", "finetune"]
)
def test_a_named_recipe_has_these_values_field_for_field(expected):
    assert RECIPES[expected["name"]].to_dict() == {**UNCHANGED, **expected}


def changed_from_the_defaults(name: str) -> dict:
    default = asdict(Recipe(name))
    return {
        field: value for field, value in asdict(RECIPES[name]).items() if value != default[field]
    }


def test_the_modern_recipe_differs_from_the_defaults_in_these_fields():
    assert changed_from_the_defaults("modern") == {
        "dropout_scaling": "test",
        "random_shift": 0.125,
        "epochs": 16,
        "growth_fraction": 0.95,
        "optimizer": "muon",
        "learning_rate": 0.056,
        "filter_decay": 0.05,
        "weight_decay": 0.0015,
    }


def test_the_finetune_recipe_differs_from_the_defaults_in_these_fields():
    assert changed_from_the_defaults("finetune") == {
        "architecture": "one_weird_trick",
        "weights": "alexnet-owt-7be5be79.pth",
        "freeze": ("conv1",),
        "resize_ratio": 256 / 224,
        "stats": "imagenet",
        "random_crop": True,
        "batch_size": 64,
        "epochs": 4,
        "learning_rate": 0.002,
    }


def test_the_papers_crops_are_224_pixels_out_of_256():
    paper = RECIPES["paper"]
    assert (paper.resize, paper.crop_size) == (256, 224)


# Fields and their ranges


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dropout", 0.0),
        ("dropout", 1.0),
        ("freeze", ()),
        ("image_size", 67),
        ("resize_ratio", 1.0),
        ("edge", 226),
        ("random_shift", 0.5),
        ("plateau_patience", 1),
        ("train_images", 1),
        ("validation_fraction", 0.0),
        ("warmup_fraction", 0.0),
        ("momentum", 0.0),
        ("weight_decay", 0.0),
        ("label_smoothing", 0.0),
        ("max_grad_norm", None),
        ("channels", 1),
        ("background", "#ff0000"),
        ("stats_images", None),
        ("stats_images", 1),
        ("early_stopping", 1),
        ("accumulation_steps", 1),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(field, value):
    assert getattr(Recipe("r", **{field: value}), field) == value


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -1, 0, 1, 2**63, 1e308]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=5,
)
JUNK = st.one_of(
    JSON,
    st.binary(),
    st.tuples(st.text()),
    st.sampled_from(
        [object(), np.zeros(2), np.float32(0.5), np.int64(3), torch.zeros(3), len, int]
    ),
)

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
    ("channels", 0),
    ("channels", 3.0),
    ("background", None),
    ("background", "whiteish"),
    ("decode", "fast"),
    ("stats_images", 0),
    ("stats_images", "all"),
    ("drop_last", 1),
    ("balance", None),
    ("balance", "classes"),
    ("accumulation_steps", 0),
    ("accumulation_steps", None),
    ("growth_fraction", 1),
    ("growth_fraction", -0.1),
    ("start_size", 0),
    ("start_size", 1.1),
    ("early_stopping", 0),
    ("early_stopping", 1.5),
    ("resize_ratio", 0.99),
    ("resize_ratio", math.inf),
    ("resize_ratio", None),
    ("edge", -1),
    ("edge", 3.0),
    ("edge", True),
    ("preprocessing", "normalize"),
    ("preprocessing", None),
    ("stats", "train"),
    ("stats", None),
    ("train_images", 0),
    ("train_images", 2.5),
    ("validation_fraction", -0.1),
    ("validation_fraction", 1),
    ("flip", 1),
    ("flip", "yes"),
    ("random_crop", None),
    ("random_shift", -0.1),
    ("random_shift", 0.51),
    ("random_shift", math.nan),
    ("color_noise", -0.1),
    ("color_noise", math.nan),
    ("color_noise", True),
    ("trivial_augment", 0),
    ("batch_size", 0),
    ("batch_size", "64"),
    ("batch_size", True),
    ("epochs", 0),
    ("epochs", 1.5),
    ("optimizer", "adam"),
    ("optimizer", "adamw"),
    ("optimizer", None),
    ("learning_rate", 0),
    ("learning_rate", -1),
    ("learning_rate", math.nan),
    ("learning_rate", math.inf),
    ("learning_rate", "fast"),
    ("filter_rate_factor", 0),
    ("filter_rate_factor", math.inf),
    ("filter_decay", -0.1),
    ("filter_decay", math.inf),
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
    ("image_size", 10**7),
    ("channels", 2**25),
    ("stats_images", 10**400),
    ("train_images", 10**400),
    ("accumulation_steps", 10**26),
    ("early_stopping", 10**400),
    ("resize_ratio", 1e9),
    ("resize_ratio", 1e308),
    ("edge", 10**400),
    ("color_noise", 1e308),
    ("batch_size", 10**400),
    ("epochs", 10**400),
    ("learning_rate", 1e308),
    ("learning_rate", 10**400),
    ("plateau_patience", 10**10),
    ("weight_decay", 1e39),
    ("bias_rate_factor", 1e39),
    ("max_grad_norm", 1e39),
    ("max_grad_norm", -1),
    ("max_grad_norm", math.nan),
    ("name", None),
    ("name", "a\x1b[31mb"),
    ("name", "r" * 101),
    ("views", 3),
    ("views", True),
    ("views", 1.0),
    ("views", "2"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
def test_a_field_out_of_its_range_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field} (is|has) .*expected"):
        Recipe(**{"name": "r", field: value})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rate": 0},
            "learning_rate is 0; expected a number above 0 that float32 can hold",
        ),
        (
            {"weight_decay": -1},
            "weight_decay is -1; expected a number of at least 0 that float32 can hold",
        ),
        ({"dropout": 2}, "dropout is 2; expected a probability from 0 to 1"),
        ({"momentum": 1}, "momentum is 1; expected a fraction from 0 to below 1"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer from 1 to 1000000"),
        ({"image_size": 0}, "image_size is 0; expected an integer from 1 to 16384, or None"),
        (
            {"max_grad_norm": 0},
            "max_grad_norm is 0; expected a number above 0 that float32 can hold, or None",
        ),
        ({"flip": 1}, "flip is 1; expected True or False"),
        ({"views": 3}, "views is 3; expected one of 1, 2, 10"),
        ({"freeze": "conv1"}, "freeze is 'conv1'; expected a tuple of strings"),
    ],
)
def test_an_error_says_what_came_and_what_was_expected(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Recipe("r", **changes)


def test_every_field_has_a_value_that_is_refused():
    assert {field for field, _ in OUT_OF_RANGE} == {f.name for f in fields(Recipe)}


def test_every_field_but_the_name_has_a_default():
    assert [f.name for f in fields(Recipe) if f.default is MISSING] == ["name"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule": "plateau", "validation_fraction": 0.0},
            "validation_fraction is 0, but the schedule 'plateau'",
        ),
        (
            {"early_stopping": 2, "validation_fraction": 0.0},
            "validation_fraction is 0, but the early_stopping of 2",
        ),
        (
            {"weights": "w.pth", "architecture": "one_weird_trick", "channels": 1},
            "channels is 1, but weights is 'w.pth', which is of images of 3 channels; expected 3",
        ),
        ({"stats": "imagenet", "channels": 4}, "channels is 4, but stats is 'imagenet'"),
        ({"views": 10}, "views is 10, but resize_ratio is 1.0"),
        (
            {"weights": "w.pth"},
            "architecture is 'paper', but weights is 'w.pth', which are torchvision's; expected "
            "'one_weird_trick'",
        ),
        (
            {
                "weights": "w.pth",
                "architecture": "one_weird_trick",
                "dropout_scaling": "test",
            },
            "dropout_scaling is 'test', but weights is 'w.pth'",
        ),
        ({"views": 10, "resize_ratio": 1.001}, "views is 10, but resize_ratio is 1.001"),
        (
            {"image_size": 2**14, "resize_ratio": 1.1},
            "resize_ratio is 1.1, so that images of 16384 pixels would be resized to more than",
        ),
        (
            {"learning_rate": 1e20, "filter_rate_factor": 1e20},
            "filter_rate_factor is 1e+20 and learning_rate is 1e+20; expected a product that",
        ),
        (
            {"learning_rate": 1e20, "bias_rate_factor": 1e20},
            "bias_rate_factor is 1e+20 and learning_rate is 1e+20; expected a product that",
        ),
        ({"edge": 227}, "edge is 227; expected less than the image size, 227"),
        ({"edge": 67, "image_size": 67}, "edge is 67; expected less than the image size, 67"),
    ],
)
def test_fields_that_do_not_go_together_are_named(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Recipe("r", **changes)


@pytest.mark.bad_input
def test_data_without_a_name_is_no_recipe():
    data = Recipe("r").to_dict()
    del data["name"]
    with pytest.raises(ValueError, match=r"^data has .*expected a recipe's fields"):
        Recipe.from_dict(data)


def test_fields_that_an_older_recipe_lacks_have_their_defaults():
    assert Recipe.from_dict({"name": "r", "epochs": 3}) == Recipe("r", epochs=3)


# Fields that older versions had, with the values at which they changed nothing.
REMOVED = {"erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}


def test_fields_that_only_older_versions_had_are_read_where_they_change_nothing():
    older = {**Recipe("r", epochs=3).to_dict(), **REMOVED}
    assert Recipe.from_dict(older) == Recipe("r", epochs=3)
    assert Recipe.from_dict({"name": "r", "mixup": 0.0}) == Recipe("r")


def test_an_older_file_with_the_fields_that_changed_nothing_is_read(tmp_path):
    text = json.dumps({"recipe": {**Recipe("r").to_dict(), **REMOVED}, "seed": 4})
    (tmp_path / "recipe.json").write_text(text, encoding="utf-8")
    assert stored_recipe(tmp_path) == (Recipe("r"), 4)


@pytest.mark.bad_input
@pytest.mark.parametrize("field", REMOVED)
@pytest.mark.parametrize("value", [0.5, None, "all"])
def test_a_field_that_only_older_versions_had_is_refused_at_another_value(field, value):
    with pytest.raises(ValueError, match=f"{field}.*which this version no longer has"):
        Recipe.from_dict({**Recipe("r").to_dict(), **REMOVED, field: value})


@pytest.mark.bad_input
def test_an_older_file_with_a_field_that_changed_something_is_named(tmp_path):
    text = json.dumps({"recipe": {**Recipe("r").to_dict(), "cutmix": 1.0}, "seed": 4})
    (tmp_path / "recipe.json").write_text(text, encoding="utf-8")
    file = re.escape(str(tmp_path / "recipe.json"))
    with pytest.raises(ValueError, match=f"^{file}.*which this version no longer has"):
        stored_recipe(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("field", REMOVED)
def test_fields_that_only_older_versions_had_are_no_overrides(field):
    with pytest.raises(ValueError, match=rf"^overrides has \['{field}'\]"):
        RECIPES["modern"].overridden({field: 0.0})


RUNS = Path(__file__).parents[2] / "benchmarks" / "results" / "runs"


@pytest.mark.parametrize("run", ["modern-sgd", "paper", "tutorial"])
def test_the_stored_runs_of_the_benchmarks_are_read(run):
    recipe, seed = stored_recipe(RUNS / run)
    assert (recipe.name, seed) == (run.removesuffix("-sgd"), 0)
    assert (recipe.accumulation_steps, recipe.balance) == (1, "none")


def test_the_path_of_a_stored_recipe_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    text = json.dumps({"recipe": Recipe("r").to_dict(), "seed": 4})
    (tmp_path / "recipe.json").write_text(text, encoding="utf-8")
    assert stored_recipe("~") == (Recipe("r"), 4)


@pytest.mark.bad_input
def test_overrides_that_are_no_mapping_are_refused():
    with pytest.raises(ValueError, match=r"^overrides is a list; expected a mapping"):
        RECIPES["modern"].overridden(["epochs"])


@pytest.mark.bad_input  # for the annotations
def test_numpys_numbers_are_stored_as_plain_ones():
    recipe = Recipe("r", epochs=np.int64(3), learning_rate=np.float32(0.5), views=np.int32(2))
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()
    kinds = [type(value) for value in (recipe.epochs, recipe.learning_rate, recipe.views)]
    assert kinds == [int, float, int]


@pytest.mark.bad_input
@pytest.mark.parametrize("data", [{**Recipe("r").to_dict(), "augmentation": "flip"}, [], None, {}])
def test_data_with_other_fields_is_no_recipe(data):
    with pytest.raises(ValueError, match=r"^data has .*expected a recipe's fields"):
        Recipe.from_dict(data)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", "ten"),
        ("freeze", "conv1"),
        ("freeze", None),
        ("learning_rate", None),
        ("optimizer", "adamw"),  # which older versions had
    ],
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
        json.dumps({"recipe": Recipe("r").to_dict() | {"new": 0}, "seed": 0}),
        json.dumps({"recipe": Recipe("r").to_dict(), "seed": 1e400}),
        json.dumps({"recipe": Recipe("r").to_dict(), "seed": True}),
        json.dumps({"recipe": Recipe("r").to_dict(), "seed": 2**63}),
        json.dumps({"recipe": Recipe("r").to_dict(), "seed": 0, "given": 5}),
        '{"recipe": {"name": "r", "epochs": ' + "9" * 5000 + '}, "seed": 0}',
        '{"recipe": {"name": "r", "learning_rate": NaN}, "seed": 0}',
        '{"recipe": {"name": "r", "epochs": 1, "epochs": 2}, "seed": 0}',
        "[" * 100_000 + "]" * 100_000,
        '{"recipe": ' * 100_000,
        '{"recipe": {"name": "r"}, "seed": 0}' + " " * 2**20,
        "5",
        "null",
        '"recipe"',
    ],
    ids=range(22),
)
def test_a_file_that_is_no_runs_recipe_is_named(text, tmp_path):
    (tmp_path / "recipe.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'recipe.json'} is not the")):
        stored_recipe(tmp_path)


@pytest.mark.bad_input
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs")
@pytest.mark.parametrize("kind", ["fifo", "device", "bytes", "folder"])
def test_what_is_no_text_in_a_recipes_place_is_named_at_once(kind, tmp_path):
    file = tmp_path / "recipe.json"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=re.escape(f"{file} is not the recipe of a run: ")):
        stored_recipe(tmp_path)


@pytest.mark.bad_input
@settings(max_examples=200)
@given(JSON, JSON)
def test_whatever_json_a_recipe_holds_one_error_names_the_file(recipe, seed):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(json.dumps({"recipe": recipe, "seed": seed}), encoding="utf-8")
        with pytest.raises(ValueError, match=f"^{re.escape(str(file))}"):
            stored_recipe(folder)


@pytest.mark.bad_input
@settings(max_examples=300)
@given(st.sampled_from([f.name for f in fields(Recipe)]), JUNK)
def test_any_value_of_a_field_is_taken_or_refused_by_its_name(field, value):
    recipe, message = None, ""
    try:
        recipe = Recipe(**{"name": "r", field: value})
    except ValueError as error:
        message = str(error)
    if recipe is None:
        assert field in message
    else:
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.bad_input
@pytest.mark.parametrize("overrides", [{1: 2}, {None: 1, "epochs": 2}, {("a",): 1, 2: 3}])
def test_overrides_whose_keys_are_no_names_are_refused(overrides):
    with pytest.raises(ValueError, match=r"^overrides has \["):
        RECIPES["modern"].overridden(overrides)


@pytest.mark.bad_input
def test_a_run_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "recipe.json"))):
        stored_recipe(tmp_path)


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


@pytest.mark.parametrize(
    ("changed", "image_size", "sizes"),
    [
        ({"epochs": 5}, 227, [131, 131, 163, 195, 227]),
        ({"epochs": 10}, 227, [131, 131, 131, 131, 163, 163, 195, 195, 227, 227]),
        ({"epochs": 2}, 227, [131, 227]),
        ({"epochs": 1}, 227, [227]),
        ({"epochs": 3, "growth_fraction": 0.0}, 227, [227, 227, 227]),
        ({"epochs": 3, "growth_fraction": 0.99}, 227, [131, 163, 227]),
        ({"epochs": 3, "start_size": 1.0}, 227, [227, 227, 227]),
        # No smaller than the network takes, 67 or 63 pixels.
        ({"epochs": 3}, 67, [67, 67, 67]),
        ({"epochs": 3, "start_size": 0.1}, 140, [76, 76, 140]),
        ({"epochs": 3, "start_size": 0.1, "architecture": "one_weird_trick"}, 100, [68, 68, 100]),
    ],
)
def test_images_grow_by_whole_strides_of_the_network(changed, image_size, sizes):
    recipe = Recipe("r", **{"growth_fraction": 0.8, **changed})
    assert recipe.image_sizes(image_size) == sizes


@given(
    growth=st.floats(0, 0.999),
    start=st.floats(0.001, 1),
    epochs=st.integers(1, 40),
    image_size=st.integers(67, 600),
)
def test_images_never_shrink_and_end_at_full_size(growth, start, epochs, image_size):
    recipe = Recipe("r", growth_fraction=growth, start_size=start, epochs=epochs)
    sizes = recipe.image_sizes(image_size)
    assert sizes == sorted(sizes)
    assert (len(sizes), sizes[-1]) == (epochs, image_size)
    assert sizes[0] >= 67
    assert not any((image_size - size) % 32 for size in sizes)
