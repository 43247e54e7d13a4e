"""Prepares loaders and a network for a run, from data and a recipe."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from alexnet_lib.checks import type_name
from alexnet_lib.data.loaders import Loaders, assemble_loaders
from alexnet_lib.data.shards import expanded
from alexnet_lib.data.sources import BUILT_IN, Data, Parts, open_parts
from alexnet_lib.devices import RunOptions, model_explained
from alexnet_lib.files import as_path
from alexnet_lib.interop.torchvision import from_torchvision
from alexnet_lib.network.model import AlexNet
from alexnet_lib.training.batches import check_order
from alexnet_lib.training.recipes import Recipe, resolve_recipe


def prepare_loaders(
    data: Data | Loaders,
    recipe: str | Recipe = "modern",
    *,
    classes: Iterable[str] | None = None,
    parts: Mapping[str, str] | None = None,
    seed: int = 0,
    options: RunOptions = RunOptions(),  # noqa: B008  (frozen)
) -> Loaders:
    """The loaders of a run: its images, with the preprocessing and augmentation of a recipe.

    Args:
        data: as in ``fit``, with its errors. ``Loaders`` are returned as they are.
        recipe: as in ``fit``.
        classes: as in ``fit``, and so are ``parts``.
        parts: the folders of the parts.
        seed: for the split, the order and the augmentation.
        options: device, dtype and memory format of the batches; processes that decode files; what
            to do with files that cannot be read.

    Example:
        >>> from alexnet_lib import prepare_loaders
        >>> loaders = prepare_loaders("shapes", "paper")
        >>> loaders.preprocess.resize, loaders.preprocess.image_size
        (256, 227)
    """
    recipe = resolve_recipe(recipe)
    opened = open_data(data, recipe, classes=classes, parts=parts, options=options)
    if isinstance(opened, Loaders):
        loaders = opened
    else:
        options = options.resolved()
        loaders = assemble_loaders(
            opened,
            functools.partial(recipe.treatment, channels=opened.train.channels),
            train_images=recipe.train_images,
            validation_fraction=recipe.validation_fraction,
            batch_size=recipe.batch_size,
            seed=seed,
            num_workers=options.num_workers,
            placement=options.placement,
            drop_last=recipe.drop_last,
            balanced=recipe.balance == "sampler",
            stats_images=recipe.stats_images,
            **_bad_images(options),
        )
    if recipe.needs_validation and loaders.validation is None:
        raise ValueError(
            f"data has no validation images, but the recipe's {recipe.needs_validation} depends on "
            "them"
        )
    if recipe.views == 10 and loaders.test is not None and not loaders.test.preprocess.margin:
        # At once, since the views are needed only after the last epoch.
        raise ValueError(
            "data has loaders whose resize is the size of the crop, but the recipe's views is 10; "
            "expected a larger resize, or overrides={'views': 1}"
        )
    return loaders


def open_data(
    data: Data | Loaders,
    recipe: Recipe,
    *,
    classes: Iterable[str] | None,
    parts: Mapping[str, str] | None,
    options: RunOptions,
) -> Parts | Loaders:
    """The first step of ``prepare_loaders``, which takes its result in place of ``data``."""
    if not isinstance(data, Loaders):
        return open_parts(
            data,
            classes=classes,
            parts=parts,
            channels=recipe.channels,
            background=recipe.background,
            **_bad_images(options),
        )
    for name, value in (("classes", classes), ("parts", parts)):
        if value is not None:
            raise ValueError(
                f"{name} is given, but data is Loaders, which are opened already; expected "
                f"{name}=None, or data that is still to be opened"
            )
    return data


def data_of_run(data: str, classes: tuple[str, ...]) -> tuple[str, tuple[str, ...] | None]:
    """The data of a run and the classes to open it with, from what its ``recipe.json`` has.

    A ``FileNotFoundError`` says that they are not there.
    """
    if data in BUILT_IN:
        return data, None
    path = as_path(data, "data")
    if not expanded(path)[0].exists():
        raise FileNotFoundError(f"{data}, on which the run was trained: no such file or folder")
    from alexnet_lib.data.cifar10 import is_cifar10  # loads torchvision

    return data, None if is_cifar10(path) else classes


def _bad_images(options: RunOptions) -> dict[str, Any]:
    return {"on_bad_image": options.on_bad_image, "bad_image_limit": options.bad_image_limit}


def prepare_model(
    loaders: Loaders,
    recipe: str | Recipe = "modern",
    *,
    model: AlexNet | None = None,
    seed: int = 0,
    options: RunOptions = RunOptions(),  # noqa: B008  (frozen)
) -> AlexNet:
    """The network of a run, on its device, with the frozen layers of a recipe.

    Args:
        loaders: the loaders of the run; the network gets their classes and preprocessing.
        recipe: as in ``fit``.
        model: a network to start from; None builds that of the recipe.
        seed: for the initial weights.
        options: device and memory format.

    Raises:
        FileNotFoundError: there is no file with the recipe's ``weights``.
        TypeError: the model is not an ``AlexNet``.
        ValueError: the model does not fit the loaders; the message says why.
        MemoryError: the device has too little memory for it.

    Example:
        >>> from alexnet_lib import prepare_loaders, prepare_model
        >>> loaders = prepare_loaders("shapes")
        >>> prepare_model(loaders).classes[:3]
        ('bar', 'bowtie', 'circle')
    """
    recipe = resolve_recipe(recipe)
    channels = loaders.preprocess.channels
    if model is None:
        arguments: Any = {"image_size": loaders.image_size, "dropout": recipe.dropout, "seed": seed}
        if recipe.weights is not None:
            if channels != 3:
                raise ValueError(
                    f"weights is {recipe.weights!r}, which are of images of 3 channels, but data "
                    f"has {channels}; expected overrides={{'channels': 3}}"
                )
            model = from_torchvision(recipe.weights, len(loaders.classes), **arguments)
        else:
            model = AlexNet(
                len(loaders.classes),
                architecture=recipe.architecture,
                dropout_scaling=recipe.dropout_scaling,
                initialization=recipe.initialization,
                in_channels=channels,
                **arguments,
            )
    if not isinstance(model, AlexNet):
        wrapped = isinstance(getattr(model, "module", None), AlexNet)
        raise TypeError(
            f"model is a {type_name(model)}; expected an alexnet_lib.AlexNet"
            + ": pass model.module, which fit trains on several processes too" * wrapped
        )
    if model.num_classes != len(loaders.classes):
        raise ValueError(
            f"model has {model.num_classes} classes; expected {len(loaders.classes)}, those of data"
        )
    check_order(model, loaders.classes)
    if model.in_channels != channels:
        raise ValueError(
            f"model has in_channels {model.in_channels}, but the images of data have {channels} "
            f"channels; expected overrides={{'channels': {model.in_channels}}}, or a model with "
            f"in_channels={channels}"
        )
    if model.image_size != loaders.image_size and not model.architecture.takes_any_size:
        raise ValueError(
            f"model has image_size {model.image_size}; expected {loaders.image_size}, as data has: "
            "pass overrides={'image_size': ...}"
        )
    model.freeze(*recipe.freeze)
    model.classes, model.preprocess = loaders.classes, loaders.preprocess
    placement = options.resolved().placement
    with model_explained(placement.device):
        return model.to(placement.device, memory_format=placement.memory_format)  # type: ignore[call-overload,no-any-return]
