"""Named sets of hyper-parameters. A recipe, the data and a seed determine a run."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor

from alexnet_lib.checks import (
    FRACTION,
    MOST_FLOAT,
    MOST_SIDE,
    PROBABILITY,
    Range,
    as_number,
    between,
    check_fields,
    check_integer,
    did_you_mean,
    nearest,
    shown,
    type_name,
)
from alexnet_lib.data import augmentation
from alexnet_lib.data.decoding import check_background
from alexnet_lib.data.loaders import MAX_BATCH_SIZE, Treatment
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.statistics import IMAGENET_STATS, PixelStatistics
from alexnet_lib.files import as_path
from alexnet_lib.network.architecture import (
    MOST_COUNT,
    Architecture,
    resolve_architecture,
)
from alexnet_lib.network.model import DropoutScaling, Initialization
from alexnet_lib.training.step import MOST_ACCUMULATION_STEPS

# 224 pixels are cropped out of images of 256 (paper, section 4.1).
PAPER_RESIZE_RATIO = 256 / 224

_BETWEEN = Range("a number above 0 and below 1", lambda x: 0 < x < 1)
_ABOVE_ZERO = Range("a number above 0 that float32 can hold", lambda x: 0 < x <= MOST_FLOAT)
_AT_LEAST_ZERO = Range(
    "a number of at least 0 that float32 can hold", lambda x: 0 <= x <= MOST_FLOAT
)
_SIZE = Range("a number above 0, at most 1", lambda x: 0 < x <= 1)
_SHIFT = Range("a number from 0 to 0.5", lambda x: 0 <= x <= 0.5)
_RATIO = Range("a finite number of at least 1", lambda x: x >= 1)

# More than anybody has or waits for; a number of any size would end in an error elsewhere.
_MOST_IMAGES = 2**40
_MOST_EPOCHS = 10**6
_MOST_SEED = 2**63 - 1  # as torch's generators
_IMAGES = between(1, _MOST_IMAGES)
_EPOCHS = between(1, _MOST_EPOCHS)
_LONGEST_NAME = 100

# What other libraries call some of the fields.
_SHORT_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "clipgradnorm": "max_grad_norm",
    "numepochs": "epochs",
    "maxepochs": "epochs",
}

# Fields of older versions, which are 0 where they change nothing.
_FORMER = ("erasing", "mixup", "cutmix")

# Bytes of a recipe.json, which has some thousand.
_LARGEST_FILE = 2**20


@dataclass(frozen=True)
class Recipe:
    """All that determines a run, except the data and the seed.

    The defaults are what the recipes have in common; a recipe lists where it differs.

    Args:
        name: what the recipe is called.
        architecture: name of the network, a key of ``ARCHITECTURES``.
        initialization: as in ``AlexNet``.
        weights: file of torchvision's weights to start from (``from_torchvision``); None starts
            from ``initialization``.
        freeze: names of layers that keep the weights they start with, for example ``("conv1",)``.
        dropout: probability, as in ``AlexNet``.
        dropout_scaling: ``"training"`` or ``"test"``, as in ``AlexNet``.
        image_size: side of the network's input, in pixels; None is the architecture's own.
        channels: of the images; None is 3 for photos, and what arrays and tensors have (1 or 3).
            Grey images are repeated for 3, colours become their luma for 1.
        background: colour behind transparent pixels, as in ``Preprocess``.
        decode: ``"reduced"`` or ``"full"``, as in ``Preprocess``.
        resize_ratio: side of the resized image, divided by the side of the crop,
            at least 1; the paper's 256 / 224.
        edge: rows and columns of the input that are zeros, as in ``Preprocess``.
        preprocessing: ``"standardize"``, values from 0 to 1 less the mean, divided by the standard
            deviation; or ``"subtract_mean"``, the paper's: values from 0 to 255 less the mean.
        stats: channel statistics of the training images: ``"pixel"``, with the standard deviation
            over all pixels; ``"per_image"``, with the mean of the per-image standard deviations,
            as in much teaching code. Or ``"imagenet"``, those of ImageNet.
        stats_images: number of training images in the sample that they are measured on, where the
            images are not in memory; None measures all.
        train_images: use only so many of the training images; None uses all.
        validation_fraction: fraction of the training images kept for validation.
        flip: mirror half of the images.
        random_crop: crop the resized image at a random position, instead of its centre.
        random_shift: the largest shift of ``RandomShift``, as a fraction of the side; 0 is none.
        color_noise: strength of ``ColorNoise``; 0 is none, the paper has 0.1.
        trivial_augment: one random operation on each image, ``TrivialAugment``.
        batch_size: images in a batch.
        drop_last: leave out the last training batch of an epoch if it is smaller.
        balance: against classes of unequal sizes: ``"loss"`` weights the cross entropy of a
            training image by ``compute_class_weights`` of its class; ``"sampler"`` draws the
            training images with replacement, each class equally often; ``"none"``. Validation and
            test images count alike in any case.
        accumulation_steps: batches in a step, at least 1; as one batch of all their images, in less
            memory. The last step of an epoch may have fewer.
        epochs: passes over the training images.
        growth_fraction: fraction of the epochs over which the images grow to their full size, from
            0, full size from the start, to below 1. Epochs on smaller images take less time.
        start_size: side of the first, smallest input, divided by ``image_size``; above 0, at most
            1.
        early_stopping: end the run after so many epochs without a better validation accuracy, at
            least 1; None trains for all ``epochs``.
        optimizer: ``"sgd"``; or ``"muon"``, which is Muon for the filters of the convolutions and
            SGD for the rest.
        learning_rate: the peak; it rises linearly over the first ``warmup_fraction`` of the
            steps.
        filter_rate_factor: learning rate of the filters of ``"muon"``, divided by that of the other
            weights; above 0.
        filter_decay: decay of the filters of ``"muon"``, apart from the momentum (Liu et al., arXiv
            2502.16982): a step takes the fraction learning rate x ``filter_decay`` of them; at
            least 0.
        schedule: what follows: ``"cosine"`` falls to 0 at the end of the run; ``"plateau"`` divides
            by ten, at most three times, whenever the validation error has not improved for
            ``plateau_patience`` epochs (paper, section 5); ``"constant"``.
        warmup_fraction: from 0 to below 1.
        plateau_patience: epochs, at least 1.
        momentum: from 0 (plain gradient descent) to below 1.
        nesterov: Nesterov's momentum, where there is momentum.
        weight_decay: at least 0; not of the filters of ``"muon"``.
        decay_biases: whether biases decay as weights do.
        bias_rate_factor: learning rate of the biases divided by that of the weights; above 0.
        label_smoothing: from 0 to below 1.
        max_grad_norm: gradients are scaled down to this norm; None leaves them alone.
        ema_decay: evaluate and save an exponential moving average of the weights, with this decay
            per step; None saves the weights themselves.
        views: number of views of each test image at the end, as in ``evaluate``.

    Raises:
        ValueError: a field is unknown or out of its range.

    Example:
        >>> from alexnet_lib import RECIPES
        >>> RECIPES["paper"].momentum
        0.9
    """

    name: str
    architecture: str = "paper"
    initialization: Initialization = "kaiming"
    weights: str | None = None
    freeze: tuple[str, ...] = ()
    dropout: Annotated[float, PROBABILITY] = 0.5
    dropout_scaling: DropoutScaling = "training"
    image_size: Annotated[int | None, between(1, MOST_SIDE)] = None
    channels: Annotated[int | None, between(1, MOST_COUNT)] = None
    background: str = "white"
    decode: Literal["reduced", "full"] = "reduced"
    resize_ratio: Annotated[float, _RATIO] = 1.0
    edge: Annotated[int, between(0, MOST_SIDE)] = 0
    preprocessing: Literal["standardize", "subtract_mean"] = "standardize"
    stats: Literal["pixel", "per_image", "imagenet"] = "pixel"
    stats_images: Annotated[int | None, _IMAGES] = 2000
    train_images: Annotated[int | None, _IMAGES] = None
    validation_fraction: Annotated[float, FRACTION] = 0.1
    flip: bool = True
    random_crop: bool = False
    random_shift: Annotated[float, _SHIFT] = 0.0
    color_noise: Annotated[float, _AT_LEAST_ZERO] = 0.0
    trivial_augment: bool = False
    batch_size: Annotated[int, between(1, MAX_BATCH_SIZE)] = 128
    drop_last: bool = False
    balance: Literal["none", "loss", "sampler"] = "none"
    accumulation_steps: Annotated[int, between(1, MOST_ACCUMULATION_STEPS)] = 1
    epochs: Annotated[int, _EPOCHS] = 10
    growth_fraction: Annotated[float, FRACTION] = 0.0
    start_size: Annotated[float, _SIZE] = 0.58
    early_stopping: Annotated[int | None, _EPOCHS] = None
    optimizer: Literal["sgd", "muon"] = "sgd"
    learning_rate: Annotated[float, _ABOVE_ZERO] = 0.03
    filter_rate_factor: Annotated[float, _ABOVE_ZERO] = 0.5
    filter_decay: Annotated[float, _AT_LEAST_ZERO] = 0.0
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_fraction: Annotated[float, FRACTION] = 0.1
    plateau_patience: Annotated[int, _EPOCHS] = 3
    momentum: Annotated[float, FRACTION] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, _AT_LEAST_ZERO] = 0.0005
    decay_biases: bool = True
    bias_rate_factor: Annotated[float, _ABOVE_ZERO] = 1.0
    label_smoothing: Annotated[float, FRACTION] = 0.1
    max_grad_norm: Annotated[float | None, _ABOVE_ZERO] = 5.0
    ema_decay: Annotated[float | None, _BETWEEN] = None
    views: Literal[1, 2, 10] = 1

    def __post_init__(self) -> None:
        if isinstance(self.architecture, Architecture):
            raise ValueError(
                f"architecture is the Architecture {self.architecture.name!r}; expected the name "
                "of one, so that a recipe stays plain data"
            )
        check_fields(self)
        if not self.name.isprintable() or len(self.name) > _LONGEST_NAME:
            raise ValueError(
                f"name is {shown(self.name)}; expected at most {_LONGEST_NAME} printable characters"
            )
        table = resolve_architecture(self.architecture)
        smallest = table.smallest_image_size
        check_integer("image_size", self.image_size, smallest, MOST_SIDE, optional=True)
        layers = [row.name for row in table.layers]
        if unknown := [name for name in self.freeze if name not in layers]:
            known = ", ".join(layers)
            raise ValueError(f"freeze has {shown(unknown)}; expected names among {known}")
        self._check_sizes()
        for factor in ("bias_rate_factor", "filter_rate_factor"):
            if getattr(self, factor) * self.learning_rate > MOST_FLOAT:
                raise ValueError(
                    f"{factor} is {getattr(self, factor):g} and learning_rate is "
                    f"{self.learning_rate:g}; expected a product that float32 can hold"
                )
        for name, expected in (
            ("architecture", "one_weird_trick"),
            ("dropout_scaling", "training"),
        ):
            if self.weights is not None and getattr(self, name) != expected:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but weights is {self.weights!r}, which "
                    f"are torchvision's; expected {expected!r}"
                )
        check_background(self.background)
        if self.channels not in {None, 3}:
            for name, value in (("weights", self.weights), ("stats", self.stats)):
                if value is not None and (name == "weights" or value == "imagenet"):
                    raise ValueError(
                        f"channels is {self.channels}, but {name} is {value!r}, which is of images "
                        "of 3 channels; expected 3 or None"
                    )
        if self.needs_validation and not self.validation_fraction:
            raise ValueError(
                f"validation_fraction is 0, but the {self.needs_validation} depends on the "
                "validation images; expected above 0"
            )

    def _check_sizes(self) -> None:
        if self.edge >= self.input_size:
            raise ValueError(
                f"edge is {self.edge}; expected less than the image size, {self.input_size}"
            )
        if self.resize_ratio * self.crop_size > MOST_SIDE:
            raise ValueError(
                f"resize_ratio is {self.resize_ratio:g}, so that images of {self.crop_size} pixels "
                f"would be resized to more than {MOST_SIDE}; expected a smaller one"
            )
        if self.views == 10 and self.resize == self.crop_size:
            raise ValueError(
                f"views is 10, but resize_ratio is {self.resize_ratio}, so that the network sees "
                "all of an image; expected a larger one, or views of 1 or 2"
            )

    def overridden(self, overrides: Mapping[str, Any]) -> "Recipe":
        """The recipe with some fields changed.

        Raises:
            ValueError: there is no such field, or a value is out of its range.
        """
        known = {field.name for field in fields(self)} - {"name"}
        if not isinstance(overrides, Mapping):
            raise ValueError(
                f"overrides is a {type_name(overrides)}; expected a mapping of fields, for example "
                "{'epochs': 3}"
            )
        if unknown := sorted({*overrides} - known, key=str):
            fields_meant = [nearest(name, known, _SHORT_NAMES) for name in unknown]
            hints = [
                repr(field) + f" for {name!r}" * (len(unknown) > 1)
                for name, field in zip(unknown, fields_meant, strict=True)
                if field is not None
            ]
            raise ValueError(
                f"overrides has {shown(unknown)}; expected "
                + (f"names among {sorted(known)}" if None in fields_meant else "fields of Recipe")
                + (f"; did you mean {', '.join(hints)}?" if hints else "")
            )
        return replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that JSON can hold; ``from_dict`` reads it back."""
        return {**asdict(self), "freeze": list(self.freeze)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recipe":
        """The recipe that ``to_dict`` wrote; other data is a ``ValueError``.

        Fields that an older version of the library did not write have their defaults. Those that
        this version no longer has are left out where they change nothing.
        """
        known = {field.name for field in fields(cls)}
        if isinstance(data, Mapping):
            former = {name: data[name] for name in _FORMER if name in data}
            if used := {name: value for name, value in former.items() if as_number(value) != 0}:
                raise ValueError(
                    f"data has {shown(used)}, which this version no longer has; expected a recipe "
                    "without"
                )
            data = {name: value for name, value in data.items() if name not in former}
        if not isinstance(data, Mapping) or not {"name"} <= set(data) <= known:
            present = sorted(map(str, data)) if isinstance(data, Mapping) else data
            raise ValueError(
                f"data has {shown(present)}; expected a recipe's fields, {sorted(known)}"
            )
        freeze = data.get("freeze", ())
        return cls(**{**data, "freeze": tuple(freeze) if isinstance(freeze, list) else freeze})

    @property
    def input_size(self) -> int:
        """``image_size``, or the architecture's own where it is None; in pixels."""
        return self.image_size or resolve_architecture(self.architecture).image_size

    @property
    def crop_size(self) -> int:
        """Side of the part of a resized image that the network sees, in pixels."""
        return self.input_size - self.edge

    @property
    def resize(self) -> int:
        """Side that images are resized to before the crop, in pixels."""
        return round(self.resize_ratio * self.crop_size)

    def image_sizes(self, image_size: int) -> list[int]:
        """Side of the input in each epoch, in pixels, for a network that takes ``image_size``.

        It grows with the square of the time, by whole strides of the network (32 pixels), so that
        every convolution and pooling fits as at full size. The last epoch has full size.
        """
        table = resolve_architecture(self.architecture)
        growing = min(self.growth_fraction * self.epochs, self.epochs - 1)
        sizes = []
        for epoch in range(self.epochs):
            missing = (1 - self.start_size) * (1 - (epoch / growing) ** 2 if epoch < growing else 0)
            size = image_size - round(missing * image_size / table.stride) * table.stride
            while size < max(table.smallest_image_size, self.edge + 1):
                size += table.stride
            sizes.append(min(size, image_size))
        return sizes

    @property
    def needs_validation(self) -> str:
        """The field that depends on the validation images, with its value; or nothing."""
        if self.schedule == "plateau":
            return "schedule 'plateau'"
        return "" if self.early_stopping is None else f"early_stopping of {self.early_stopping}"

    def treatment(
        self, measure: Callable[[], PixelStatistics], channels: int | None = None
    ) -> Treatment:
        """Preprocessing and augmentation.

        ``measure`` gives the training images' statistics; ``channels`` is the number of their
        channels, if known.
        """
        stats = IMAGENET_STATS if self.stats == "imagenet" else measure().channel_stats(self.stats)
        channels = channels or self.channels or len(stats.mean)
        if len(stats.mean) != channels:
            raise ValueError(
                f"stats is {self.stats!r}, with the statistics of {len(stats.mean)} channels, but "
                f"the images have {channels}; expected 'pixel', or channels of {len(stats.mean)}"
            )
        scale, mean, std = 1.0, stats.mean, stats.std
        if self.preprocessing == "subtract_mean":
            scale, mean, std = 255.0, tuple(255 * value for value in mean), (1.0,) * channels
        elif min(std) <= 0:
            raise ValueError(
                f"the training images have the standard deviations {std}; expected all above 0"
            )
        preprocess = Preprocess(
            self.resize,
            self.input_size,
            scale=scale,
            mean=mean,
            std=std,
            edge=self.edge,
            background=self.background,
            decode=self.decode,
        )
        # In the order in which they are applied.
        random: tuple[Any, ...] = (
            self.flip and augmentation.HorizontalFlip(),
            self.random_shift and augmentation.RandomShift(self.random_shift),
            self.trivial_augment and augmentation.TrivialAugment(),
            self.color_noise
            and augmentation.ColorNoise(measure().color_components, self.color_noise),
            self.random_crop and augmentation.RandomCrop(),
        )
        return Treatment(preprocess, tuple(filter(None, random)), stats)

    def criterion(
        self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Cross entropy with the recipe's label smoothing, the mean over the batch.

        ``class_weights`` ``(classes,)`` multiply the losses of the images of their class; the sum
        is divided by the number of images, so that a step on several batches is the same as on one.
        """
        if class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        total = F.cross_entropy(
            logits,
            labels,
            weight=class_weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / len(labels)


# The result of the search (`benchmarks/trials.py`, docs/training.md).
_MODERN = Recipe(
    "modern",
    dropout_scaling="test",
    random_shift=0.125,
    epochs=16,
    growth_fraction=0.95,
    optimizer="muon",
    learning_rate=0.056,
    filter_decay=0.05,
    weight_decay=0.0015,
)

# Paper, sections 3 to 5; the biases' rate and decay, the weights' standard deviations and the edge:
# released code, layer definitions of network 145.
_PAPER = Recipe(
    "paper",
    initialization="released_code",
    dropout_scaling="test",
    resize_ratio=PAPER_RESIZE_RATIO,
    edge=3,
    preprocessing="subtract_mean",
    random_crop=True,
    color_noise=0.1,
    epochs=90,
    learning_rate=0.01,
    schedule="plateau",
    warmup_fraction=0.0,
    nesterov=False,
    decay_biases=False,
    bias_rate_factor=2.0,
    label_smoothing=0.0,
    max_grad_norm=None,
    views=10,
)

# The blog post's settings: all 50,000 images are trained on, none is held out.
_TUTORIAL = Recipe(
    "tutorial",
    architecture="single_tower",
    initialization="torch",
    stats="per_image",
    validation_fraction=0.0,
    flip=False,
    learning_rate=0.0001,
    schedule="constant",
    warmup_fraction=0.0,
    nesterov=False,
    label_smoothing=0.0,
    max_grad_norm=None,
)

_FINETUNE = Recipe(
    "finetune",
    architecture="one_weird_trick",
    weights="alexnet-owt-7be5be79.pth",
    freeze=("conv1",),
    stats="imagenet",
    resize_ratio=PAPER_RESIZE_RATIO,
    random_crop=True,
    batch_size=64,
    epochs=4,
    learning_rate=0.002,
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (_MODERN, _PAPER, _TUTORIAL, _FINETUNE)}
)

# What `alexnet-lib demo` changes in `modern` to learn the built-in set in a minute.
DEMO_OVERRIDES: Mapping[str, Any] = MappingProxyType({"image_size": 67, "epochs": 3})


def resolve_recipe(recipe: object, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe, or the recipe of this name, with some fields changed."""
    if isinstance(recipe, str) and recipe in RECIPES:
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"recipe is {shown(recipe)}; expected a Recipe or one of "
            f"{', '.join(map(repr, RECIPES))}{did_you_mean(recipe, RECIPES)}"
        )
    return recipe.overridden({} if overrides is None else overrides)


def stored_recipe(path: str | os.PathLike[str]) -> tuple[Recipe, int]:
    """The recipe and the seed of a run, which repeat it.

    Args:
        path: the run's folder, or its ``recipe.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the recipe of a run, or ``fit`` was given the model or the
            loaders of that run.
    """
    file = as_path(path)
    try:
        file = file / "recipe.json" if file.is_dir() else file
        if not file.exists():
            raise FileNotFoundError(
                f"{file}: no such file; expected a run's folder or its recipe.json"
            )
        if not file.is_file():
            raise ValueError("it is no regular file")
        stored = read_description(file)
        recipe = Recipe.from_dict(stored["recipe"])
        seed = check_integer("seed", stored["seed"], 0, _MOST_SEED)
        given = [str(name) for name in stored.get("given") or ()]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file} is not the recipe of a run: {reason}") from error
    if given:
        raise ValueError(
            f"{file}: fit was given the {' and '.join(given)} of this run; recipe and seed "
            "alone do not repeat it"
        )
    return recipe, seed


def read_description(file: Path) -> Any:
    """What ``recipe.json`` of a run holds; a ``ValueError`` or ``RecursionError`` for no JSON."""
    with file.open("rb") as opened:
        content = opened.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"it has more than {_LARGEST_FILE:,} bytes")
    return json.loads(content.decode("utf-8"), object_pairs_hook=_without_twice)


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a field stands twice")
    return mapping
