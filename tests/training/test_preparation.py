"""The promises of what a run is made of: loaders of data and a recipe, and a network for them."""

import re

import pytest
import torch
from helpers import FakeCifar10, write_class_folders
from tiny import QUIET, SMALL, TINY, quiet, tiny_recipe
from torch.utils.data import TensorDataset

from alexnet_lib import AlexNet, prepare_loaders, prepare_model
from alexnet_lib.data.augmentation import ColorNoise, HorizontalFlip
from alexnet_lib.data.loaders import BatchLoader, Loaders
from alexnet_lib.data.shapes import SHAPES_CLASSES
from alexnet_lib.data.statistics import (
    IMAGENET_STATS,
    compute_channel_stats,
    compute_color_components,
)
from alexnet_lib.devices import Placement, RunOptions
from alexnet_lib.training.recipes import RECIPES, Recipe


def loaders_of(data="shapes", *, seed: int = 0, options: RunOptions = QUIET, **changes) -> Loaders:
    return prepare_loaders(data, tiny_recipe(**changes), seed=seed, options=options)


def model_of(recipe: Recipe, loaders: Loaders | None = None, **arguments) -> AlexNet:
    loaders = prepare_loaders("shapes", recipe, options=QUIET) if loaders is None else loaders
    return prepare_model(loaders, recipe, **{"options": QUIET, **arguments})


def pair(count: int = 40) -> tuple[TensorDataset, TensorDataset]:
    """Training and test images of four classes."""
    images = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 4
    return TensorDataset(images, labels), TensorDataset(images[:8], labels[:8])


# Loaders


def test_the_loaders_have_the_recipes_fields():
    loaders = loaders_of(batch_size=7, train_images=50, validation_fraction=0.2, seed=5)
    assert loaders.image_size == 12
    assert [part.batch_size for part in loaders] == [7, 7, 7]
    assert [part.shuffle for part in loaders] == [True, False, False]
    assert loaders.train.augmentation == (HorizontalFlip(),)
    assert loaders.train.seed == 5
    assert [len(part.dataset) for part in loaders] == [40, 10, 20]


def test_a_recipe_may_be_named():
    by_name, by_value = (
        prepare_loaders("shapes", recipe, options=QUIET) for recipe in ("paper", RECIPES["paper"])
    )
    assert by_name.preprocess == by_value.preprocess
    assert (by_name.preprocess.resize, by_name.preprocess.image_size) == (256, 227)
    assert by_name.train.augmentation == by_value.train.augmentation


def test_validation_and_test_images_are_not_augmented():
    loaders = loaders_of(random_crop=True, random_shift=0.2, color_noise=0.1)
    assert len(loaders.train.augmentation) == 4
    assert loaders.validation.augmentation == loaders.test.augmentation == ()


def test_color_noise_is_along_the_components_of_the_training_images():
    loaders = loaders_of(flip=False, color_noise=0.2)
    components = compute_color_components(loaders.train.dataset)
    assert loaders.train.augmentation == (ColorNoise(components, 0.2),)


# Test images as the network gets them, of the size that they are stored in.
def raw_and_input(device, **changes):
    loaders = loaders_of(image_size=32, batch_size=20, options=quiet(device), **changes)
    return loaders.test.dataset.images.cpu(), next(iter(loaders.test))[0].cpu(), loaders


def test_subtracting_the_mean_gives_raw_values_less_the_mean(device):
    raw, inputs, loaders = raw_and_input(device, preprocessing="subtract_mean")
    mean = 255 * torch.tensor(compute_channel_stats(loaders.train.dataset.images).mean)
    torch.testing.assert_close(inputs + mean[:, None, None], raw.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("stats", ["pixel", "per_image"])
def test_images_are_standardised_with_the_training_parts_statistics(device, stats):
    raw, inputs, loaders = raw_and_input(device, stats=stats)
    measured = compute_channel_stats(loaders.train.dataset.images, std=stats)
    mean, deviation = (torch.tensor(s)[:, None, None] for s in (measured.mean, measured.std))
    expected = (raw.float() / 255 - mean) / deviation
    torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-4)
    assert loaders.stats == measured


def test_imagenets_statistics_standardise_any_images():
    preprocess = loaders_of(stats="imagenet").preprocess
    assert (preprocess.mean, preprocess.std) == (IMAGENET_STATS.mean, IMAGENET_STATS.std)


def test_the_edge_of_every_input_is_zeros(device):
    for part in loaders_of(image_size=20, edge=3, options=quiet(device)):
        images, _ = next(iter(part))
        assert images.shape[-2:] == (20, 20)
        assert not images[..., 17:, :].any()
        assert not images[..., :, 17:].any()
        assert images[..., :17, :17].any((0, 1)).all()


def test_data_are_told_apart_by_what_is_in_the_folder(tmp_path, monkeypatch):
    cifar = FakeCifar10(tmp_path, monkeypatch)
    photos = write_class_folders(tmp_path / "photos", count=10)
    assert loaders_of("shapes").classes == SHAPES_CLASSES
    assert loaders_of(cifar.batches, validation_fraction=0.25).classes == cifar.classes
    assert loaders_of(photos).classes == ("cat", "dog")


@pytest.mark.parametrize("stats", ["pixel", "per_image"])
def test_cifar10_is_measured_as_any_other_data_set(stats, tmp_path, monkeypatch):
    cifar = FakeCifar10(tmp_path, monkeypatch)
    loaders = loaders_of(cifar.batches, validation_fraction=0.25, stats=stats)
    assert loaders.stats == compute_channel_stats(loaders.train.dataset, std=stats)
    assert loaders.stats.count == 15


def test_a_data_set_alone_is_split_and_a_pair_is_not():
    train, test = pair()
    assert [len(part.dataset) for part in loaders_of(train)] == [29, 3, 8]
    assert [len(part.dataset) for part in loaders_of((train, test))] == [36, 4, 8]


def test_any_data_set_is_treated_as_the_recipe_says():
    recipe = RECIPES["paper"].overridden({**SMALL, "train_images": None})
    loaders = prepare_loaders(pair(), recipe, options=QUIET)
    assert (loaders.preprocess.scale, loaders.preprocess.edge) == (255, recipe.edge)
    assert loaders.preprocess.mean == pytest.approx([127.5] * 3, rel=0.05)
    assert len(loaders.train.augmentation) == 3


PLACEMENTS = {
    ("float32", "contiguous"): (torch.float32, torch.contiguous_format),
    ("float32", "channels_last"): (torch.float32, torch.channels_last),
    ("bfloat16", "channels_last"): (torch.bfloat16, torch.channels_last),
}


@pytest.mark.parametrize(("precision", "memory_format"), PLACEMENTS)
def test_batches_are_made_in_the_dtype_and_memory_format_of_the_options(
    device, precision, memory_format
):
    options = RunOptions(str(device), precision, memory_format, progress=False)
    dtype, layout = PLACEMENTS[precision, memory_format]
    for part in loaders_of(options=options):
        assert part.placement == Placement(device, dtype, layout)
        images, labels = next(iter(part))
        assert images.device == labels.device == device
        assert images.dtype == dtype
        assert images.is_contiguous(memory_format=layout)


def test_the_number_of_workers_is_the_options(tmp_path):
    photos = write_class_folders(tmp_path / "photos", count=10)
    options = RunOptions("cpu", "float32", num_workers=3, progress=False)
    assert [part.num_workers for part in loaders_of(photos, options=options)] == [3, 3, 3]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_each_loader_is_made_once(recipe, monkeypatch):
    made, real = [], BatchLoader.__post_init__

    def count(loader):
        made.append(loader)
        real(loader)

    monkeypatch.setattr(BatchLoader, "__post_init__", count)
    # The tutorial has no validation part of its own, so it is given one.
    recipe = recipe.overridden({**SMALL, "validation_fraction": 0.1})
    loaders = prepare_loaders("shapes", recipe, options=QUIET)
    assert [id(loader) for loader in made] == [id(part) for part in loaders]


def test_loaders_that_are_given_are_used_as_they_are():
    loaders = loaders_of(image_size=20, flip=False)
    other = tiny_recipe(batch_size=3, random_shift=0.2)
    options = RunOptions("cpu", "bfloat16", "contiguous", progress=False)
    assert prepare_loaders(loaders, other, seed=9, options=options) is loaders


@pytest.mark.bad_input
def test_a_plateau_without_validation_images_is_refused():
    plateau = tiny_recipe(schedule="plateau", validation_fraction=0.001)  # rounded, no image
    without = loaders_of()._replace(validation=None)
    for data in ("shapes", without):
        with pytest.raises(ValueError, match=r"^data has no validation images, but .* 'plateau'"):
            prepare_loaders(data, plateau, options=QUIET)


def test_ten_views_that_given_loaders_cannot_show_are_refused_before_the_run():
    ten = tiny_recipe(resize_ratio=1.5, views=10)
    with pytest.raises(ValueError, match=r"^data has loaders whose resize is the size of the crop"):
        prepare_loaders(loaders_of(), ten, options=QUIET)
    assert prepare_loaders(loaders_of()._replace(test=None), ten, options=QUIET).test is None


@pytest.mark.bad_input
def test_a_recipe_that_is_not_known_is_named():
    with pytest.raises(ValueError, match=r"^recipe is 'plain'; expected a Recipe or one of 'mod"):
        prepare_loaders("shapes", "plain", options=QUIET)


# Networks


def test_the_model_has_the_recipes_fields_and_the_datas_classes():
    recipe = tiny_recipe(
        image_size=20, dropout=0.25, dropout_scaling="test", initialization="paper"
    )
    loaders = prepare_loaders(pair(), recipe, options=QUIET)
    model = model_of(recipe, loaders, seed=3)
    expected = AlexNet(4, architecture=TINY, image_size=20, initialization="paper", seed=3)
    assert (model.architecture, model.image_size) == (TINY, 20)
    assert (model.dropout, model.dropout_scaling) == (0.25, "test")
    assert model.classes == loaders.classes == ("0", "1", "2", "3")
    assert model.preprocess == loaders.preprocess
    assert torch.equal(model.features.conv1.weight, expected.features.conv1.weight)


def test_the_image_size_is_that_of_the_loaders():
    assert model_of(tiny_recipe(), loaders_of(image_size=20)).image_size == 20


def test_the_layers_that_a_recipe_freezes_are_not_trained():
    model = model_of(tiny_recipe(freeze=("conv1",)))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "classifier.fc2.weight",
        "classifier.fc2.bias",
    ]


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_weights_are_in_the_memory_format_of_the_options(device, memory_format):
    layout = getattr(torch, memory_format.replace("contiguous", "contiguous_format"))
    options = RunOptions(str(device), "float32", memory_format, progress=False)
    model = model_of(tiny_recipe(), options=options)
    assert model.features.conv1.weight.device == device
    assert model.features.conv1.weight.is_contiguous(memory_format=layout)


def test_a_model_that_is_given_is_used_as_it_is_and_learns_what_the_data_are():
    loaders = loaders_of()
    model = AlexNet(10, architecture=TINY, dropout=0.1, dropout_scaling="test", seed=1)
    weight = model.features.conv1.weight.detach().clone()
    used = model_of(tiny_recipe(dropout=0.9, freeze=("conv1",)), loaders, model=model)
    assert used is model
    assert (model.dropout, model.dropout_scaling) == (0.1, "test")
    assert torch.equal(model.features.conv1.weight, weight)
    assert not model.features.conv1.weight.requires_grad
    assert (model.classes, model.preprocess) == (loaders.classes, loaders.preprocess)


def test_a_model_that_takes_any_size_may_be_given_for_any_images():
    model = AlexNet(10, architecture="one_weird_trick", image_size=224)
    loaders = loaders_of(image_size=67)
    assert model_of(tiny_recipe(), loaders, model=model) is model


@pytest.mark.bad_input
def test_a_model_for_another_number_of_classes_is_refused():
    model = AlexNet(3, architecture=TINY)
    with pytest.raises(ValueError, match=r"^model has 3 classes; expected 10, those of data$"):
        model_of(tiny_recipe(), model=model)


@pytest.mark.bad_input
def test_a_model_for_another_image_size_is_refused():
    model = AlexNet(10, architecture=TINY, image_size=20)
    message = "model has image_size 20; expected 12, as data has: pass overrides={'image_size'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        model_of(tiny_recipe(), model=model)


@pytest.mark.bad_input
def test_a_model_that_is_no_alexnet_is_refused():
    with pytest.raises(TypeError, match=r"model is a torch\..*Linear; expected an alexnet_lib"):
        model_of(tiny_recipe(), model=torch.nn.Linear(1, 1))


@pytest.mark.bad_input
def test_weights_that_do_not_exist_are_named_with_where_to_get_them():
    recipe = Recipe("r", architecture="one_weird_trick", weights="nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"'nowhere\.pth'.*https://"):
        model_of(recipe)


# Classes and channels of a given model


@pytest.mark.bad_input
def test_a_model_with_the_classes_of_the_data_in_another_order_is_refused():
    model = AlexNet(10, architecture=TINY)
    model.classes = SHAPES_CLASSES[::-1]
    with pytest.raises(ValueError, match="model has the classes of data in another order") as error:
        model_of(tiny_recipe(), model=model)
    assert "classes=model.classes" in str(error.value)
    assert model.classes == SHAPES_CLASSES[::-1]
    # Of other data, the last layer learns new classes.
    model.classes = tuple(f"animal {i}" for i in range(10))
    assert model_of(tiny_recipe(), model=model).classes == SHAPES_CLASSES


@pytest.mark.bad_input
@pytest.mark.parametrize("channels", [1, 4])
def test_a_model_for_images_of_another_number_of_channels_is_refused(channels):
    model = AlexNet(10, architecture=TINY, in_channels=channels)
    message = f"model has in_channels {channels}, but the images of data have 3 channels"
    with pytest.raises(ValueError, match=message):
        model_of(tiny_recipe(), model=model)


@pytest.mark.bad_input
def test_torchvisions_weights_are_refused_for_grey_images():
    images = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(40) % 4)
    recipe = RECIPES["finetune"].overridden({"image_size": 67, "stats": "pixel"})
    loaders = prepare_loaders(data, recipe, options=QUIET)
    with pytest.raises(ValueError, match=r"weights is .*, but data has 1; expected overrides="):
        prepare_model(loaders, recipe, options=QUIET)


@pytest.mark.bad_input
def test_imagenets_statistics_are_refused_for_grey_images():
    images = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(40) % 4)
    with pytest.raises(ValueError, match="stats is 'imagenet', with the statistics of 3 channels"):
        loaders_of(data, stats="imagenet")


def test_the_loaders_have_the_recipes_and_the_options_new_fields(tmp_path):
    photos = write_class_folders(tmp_path / "photos", count=30, size=(100, 100))
    options = RunOptions(
        "cpu", "float32", progress=False, on_bad_image="skip", bad_image_limit=0.25
    )
    loaders = loaders_of(
        photos,
        options=options,
        drop_last=True,
        balance="sampler",
        channels=1,
        background="red",
        decode="full",
        stats_images=10,
        image_size=12,
    )
    assert [part.drop_last for part in loaders] == [True, False, False]
    assert [part.balanced for part in loaders] == [True, False, False]
    for part in loaders:
        assert (part.on_bad_image, part.bad_image_limit) == ("skip", 0.25)
        assert (part.dataset.channels, part.dataset.background) == (1, "red")
    assert (loaders.preprocess.background, loaders.preprocess.decode) == ("red", "full")
    assert loaders.stats.count == 10


def test_a_balanced_sampler_is_not_one_of_the_loss():
    assert [part.balanced for part in loaders_of(balance="loss")] == [False, False, False]


# Memory


def no_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_images_that_a_device_has_no_memory_for_say_how_many_they_are(monkeypatch):
    loaders = loaders_of(train_images=20)
    monkeypatch.setattr(torch.Tensor, "to", no_memory)
    expected = r"^memory does not suffice for the 18 images of data on cpu: lower train_images"
    with pytest.raises(MemoryError, match=expected):
        loaders.to("cpu")


def test_a_network_that_a_device_has_no_memory_for_is_said_to_be_it(monkeypatch):
    loaders = loaders_of()
    monkeypatch.setattr(torch.nn.Module, "to", no_memory)
    expected = r"^memory does not suffice for the model on cpu: choose another device, or a smaller"
    with pytest.raises(MemoryError, match=expected):
        model_of(tiny_recipe(), loaders)
