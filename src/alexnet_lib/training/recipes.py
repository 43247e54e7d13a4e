"""Named sets of hyper-parameters. A recipe, a data set and a seed determine a run."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau
from torch.utils.data import Dataset

from alexnet_lib.data.augmentation import (
    ColorNoise,
    CutMix,
    HorizontalFlip,
    Mixup,
    RandomCrop,
    RandomErasing,
    TrivialAugment,
)
from alexnet_lib.data.cifar10 import is_cifar10
from alexnet_lib.data.loaders import AnyAugmentation, Loaders, Stats, build_loaders, pixels_of
from alexnet_lib.data.preprocess import VIEWS
from alexnet_lib.data.sources import open_datasets, wrap_dataset
from alexnet_lib.data.statistics import (
    CIFAR10_STATS,
    CIFAR10_STATS_PER_IMAGE,
    IMAGENET_STATS,
    compute_color_components,
)
from alexnet_lib.interop.torchvision import from_torchvision
from alexnet_lib.network.architecture import Architecture, resolve_architecture
from alexnet_lib.network.model import AlexNet, DropoutScaling, Initialization

Normalization = Literal["pixel_std", "per_image_std", "mean_only", "imagenet"]

_CHOICES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "initialization": get_args(Initialization),
        "dropout_scaling": get_args(DropoutScaling),
        "normalization": get_args(Normalization),
        "optimizer": ("sgd", "adamw"),
        "schedule": ("cosine", "plateau", "constant"),
        "views": VIEWS,
        **dict.fromkeys(
            ("flip", "random_crop", "trivial_augment", "nesterov", "decay_biases"), (False, True)
        ),
    }
)

# The fields that augment, in the order in which an image meets them: the class, and which of its
# attributes the field's value is; None where the field says whether at all.
_AUGMENTATION: Mapping[str, tuple[type[Any], str | None]] = MappingProxyType(
    {
        "flip": (HorizontalFlip, None),
        "trivial_augment": (TrivialAugment, None),
        "color_noise": (ColorNoise, "strength"),
        "mixup": (Mixup, "alpha"),
        "cutmix": (CutMix, "alpha"),
        "random_crop": (RandomCrop, None),
        "erasing": (RandomErasing, "probability"),
    }
)

# Where torch has a fused SGD and AdamW.
_FUSED_DEVICES = {"cpu", "cuda", "mps"}

# 224 pixels are cut out of images of 256 (paper, section 4.1).
PAPER_RESIZE_RATIO = 256 / 224

# The paper divided the rate by ten, three times (section 5).
_PLATEAU_FACTOR = 0.1
_PLATEAU_DROPS = 3


@dataclass(frozen=True)
class Recipe:
    """All that determines a run, but the data and the seed.

    The defaults are what the recipes have in common.

    Args:
        name: what the recipe is called.
        architecture: name of the network, a key of ``ARCHITECTURES``.
        initialization: as ``AlexNet``'s.
        weights: file of torchvision's weights to start from (``from_torchvision``); None
            starts from ``initialization``.
        freeze: names of layers that keep the weights they start with, for example ``("conv1",)``.
        dropout: probability, as ``AlexNet``'s.
        dropout_scaling: ``"training"`` or ``"test"``, as ``AlexNet``'s.
        image_size: side of the network's input, in pixels; None is the architecture's own.
        resize_ratio: side that images are resized to before the crop, over the side that the
            network sees of them, at least 1; the paper's 256 / 224.
        edge: rows and columns of the input that are zeros, as ``Preprocess``'s.
        normalization: ``"pixel_std"``, by the training set's mean and standard deviation over all
            pixels; ``"per_image_std"``, by its mean and the mean of the images' own deviations, as
            in much teaching code; ``"mean_only"``, the paper's: values from 0 to 255 less the mean;
            ``"imagenet"``, by ImageNet's mean and standard deviation.
        train_images: use only so many of the training images; None uses all.
        validation_fraction: share of the training images kept for validation.
        flip: mirror half of the images.
        random_crop: cut out of a random place of the resized image, instead of its centre.
        color_noise: strength of ``ColorNoise``; 0 is none, the paper's 0.1.
        trivial_augment: one random operation on each image, ``TrivialAugment``.
        erasing: probability of ``RandomErasing``.
        mixup: alpha of ``Mixup``; 0 is none.
        cutmix: alpha of ``CutMix``; 0 is none. Not both.
        batch_size: images in a step.
        epochs: passes over the training images.
        optimizer: ``"sgd"`` or ``"adamw"``.
        learning_rate: at its highest; it rises linearly over the first ``warmup_fraction`` of the
            steps.
        schedule: what follows: ``"cosine"`` falls to 0 at the end of the run; ``"plateau"`` divides
            by ten, at most three times, whenever the validation error has not improved for
            ``plateau_patience`` epochs (paper, section 5); ``"constant"``.
        warmup_fraction: from 0 to below 1.
        plateau_patience: epochs, at least 1.
        momentum: of ``"sgd"``, from 0 (plain gradient descent) to below 1; the first beta of
            ``"adamw"``.
        nesterov: Nesterov's momentum, where there is momentum; of ``"sgd"``.
        weight_decay: at least 0.
        decay_biases: whether biases decay as weights do.
        bias_rate_factor: the biases' learning rate over the weights'; above 0.
        label_smoothing: from 0 to below 1.
        max_grad_norm: gradients are scaled down to this norm; None leaves them alone.
        ema_decay: evaluate and keep an exponential moving average of the weights, of which each
            step keeps this share; None keeps the weights themselves.
        views: of each test image at the end, as ``evaluate``'s.

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
    dropout: float = 0.5
    dropout_scaling: DropoutScaling = "training"
    image_size: int | None = None
    resize_ratio: float = 1.0
    edge: int = 0
    normalization: Normalization = "pixel_std"
    train_images: int | None = None
    validation_fraction: float = 0.1
    flip: bool = True
    random_crop: bool = False
    color_noise: float = 0.0
    trivial_augment: bool = False
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    batch_size: int = 128
    epochs: int = 10
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.03
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_fraction: float = 0.1
    plateau_patience: int = 3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0005
    decay_biases: bool = True
    bias_rate_factor: float = 1.0
    label_smoothing: float = 0.1
    max_grad_norm: float | None = 5.0
    ema_decay: float | None = None
    views: Literal[1, 2, 10] = 1

    def __post_init__(self) -> None:
        if isinstance(self.architecture, Architecture):
            raise ValueError(
                f"architecture is the Architecture {self.architecture.name!r}; expected the name "
                "of one, so that a recipe stays plain data"
            )
        self._check_words()
        self._check_integers()
        self._check_numbers()
        self._check_together()

    def _check_words(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known or type(value) not in map(type, known):
                raise ValueError(
                    f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}"
                )
        if self.weights is not None and not isinstance(self.weights, str):
            raise ValueError(f"weights is {self.weights!r}; expected the name of a file, or None")
        layers = [row.name for row in resolve_architecture(self.architecture).layers]
        if not isinstance(self.freeze, tuple) or any(name not in layers for name in self.freeze):
            raise ValueError(
                f"freeze is {self.freeze!r}; expected a tuple of names among {', '.join(layers)}"
            )

    def _check_integers(self) -> None:
        optional = {"image_size", "train_images"}
        for name, least in (
            ("batch_size", 1),
            ("epochs", 1),
            ("plateau_patience", 1),
            ("edge", 0),
            ("image_size", resolve_architecture(self.architecture).smallest_image_size),
            ("train_images", 1),
        ):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name} is {value!r}; expected an integer of at least {least}"
                    + (name in optional) * ", or None"
                )

    def _check_numbers(self) -> None:
        share, positive = "a number from 0 to below 1", "above 0"
        ranges: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
            ("warmup_fraction", share, lambda x: 0 <= x < 1),
            ("momentum", share, lambda x: 0 <= x < 1),
            ("label_smoothing", share, lambda x: 0 <= x < 1),
            ("validation_fraction", share, lambda x: 0 <= x < 1),
            ("dropout", "a probability from 0 to 1", lambda x: 0 <= x <= 1),
            ("erasing", "a probability from 0 to 1", lambda x: 0 <= x <= 1),
            ("resize_ratio", "at least 1", lambda x: x >= 1),
            ("learning_rate", positive, lambda x: x > 0),
            ("bias_rate_factor", positive, lambda x: x > 0),
            ("weight_decay", "at least 0", lambda x: x >= 0),
            ("color_noise", "at least 0", lambda x: x >= 0),
            ("mixup", "at least 0", lambda x: x >= 0),
            ("cutmix", "at least 0", lambda x: x >= 0),
            ("max_grad_norm", "above 0, or None", lambda x: x > 0),
            ("ema_decay", "a number between 0 and 1, or None", lambda x: 0 < x < 1),
        )
        for name, expected, fits in ranges:
            value = getattr(self, name)
            if value is None and expected.endswith("None"):
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and fits(value)):
                raise ValueError(f"{name} is {value!r}; expected {expected}")

    def _check_together(self) -> None:
        if self.edge >= self.size_of_images():
            raise ValueError(
                f"edge is {self.edge}; expected less than the image size, {self.size_of_images()}"
            )
        if self.views == 10 and not self.room():
            raise ValueError(
                f"views is 10, but resize_ratio is {self.resize_ratio}, so that the network sees "
                "all of an image; expected a larger one, or views of 1 or 2"
            )
        if self.weights is not None and self.dropout_scaling == "test":
            raise ValueError(
                f"dropout_scaling is 'test', but weights is {self.weights!r}: torchvision's, made "
                "for 'training'; expected that"
            )
        if self.mixup and self.cutmix:
            raise ValueError(
                f"mixup is {self.mixup} and cutmix is {self.cutmix}; expected one of them to be 0"
            )
        if self.schedule == "plateau" and not self.validation_fraction:
            raise ValueError(
                "validation_fraction is 0, but the schedule 'plateau' goes by the validation "
                "error; expected above 0"
            )

    def overridden(self, overrides: Mapping[str, Any]) -> "Recipe":
        """The recipe with some fields changed.

        Raises:
            ValueError: there is no such field, or a value is out of its range.
        """
        known = {field.name for field in fields(self)} - {"name"}
        if unknown := sorted(set(overrides) - known):
            raise ValueError(f"overrides has {unknown}; expected names among {sorted(known)}")
        return replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that JSON can hold; ``from_dict`` reads it back."""
        return {**asdict(self), "freeze": list(self.freeze)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recipe":
        """The recipe that ``to_dict`` wrote.

        Raises:
            ValueError: the data does not describe one.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(known):
            found = sorted(data) if isinstance(data, Mapping) else data
            raise ValueError(f"data has {found}; expected a recipe's fields, {sorted(known)}")
        return cls(**{**data, "freeze": tuple(data["freeze"])})

    def size_of_images(self) -> int:
        """``image_size``, or the architecture's own where it is None; in pixels."""
        return self.image_size or resolve_architecture(self.architecture).image_size

    def room(self) -> int:
        """By how many pixels the resized image is larger than what the network sees of it."""
        window = self.size_of_images() - self.edge
        return round(self.resize_ratio * window) - window

    def build_model(self, classes: tuple[str, ...], seed: int) -> AlexNet:
        """The network for these classes, its weights drawn from ``seed``.

        Raises:
            FileNotFoundError: there is no file ``weights``.
            ValueError: ``weights`` are not those of this architecture.
        """
        if self.weights is None:
            model = AlexNet(
                len(classes),
                architecture=self.architecture,
                image_size=self.image_size,
                dropout=self.dropout,
                dropout_scaling=self.dropout_scaling,
                initialization=self.initialization,
                seed=seed,
            )
        elif self.architecture != "one_weird_trick":
            raise ValueError(
                f"weights is {self.weights!r}, but the architecture is {self.architecture!r}; "
                "expected 'one_weird_trick', torchvision's"
            )
        else:
            model = from_torchvision(
                self.weights,
                len(classes),
                image_size=self.image_size,
                dropout=self.dropout,
                seed=seed,
            )
        model.freeze(*self.freeze)
        model.classes = classes
        return model

    def build_loaders(
        self,
        data: str | os.PathLike[str] | Dataset[Any],
        seed: int,
        *,
        test: Dataset[Any] | None = None,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
    ) -> Loaders:
        """Loaders of a folder (CIFAR-10 or images), ``"cifar10"``, ``"shapes"``, or any data set.

        Args:
            data: ``"shapes"``; ``"cifar10"``, which is kept in the folder ``data`` and downloaded
                where it is missing; a folder with CIFAR-10's files or with images; or a map-style
                data set of training images, as ``build_dataset_loaders`` takes it.
            seed: of the parts, the order and the augmentation.
            test: the test images that go with such a data set. Without test images, a fifth of all
                are kept for testing.
            device: where the batches are made.
            num_workers: processes that decode image files.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the data, or a field, cannot be used; the message says why.
        """
        cifar10 = False
        if isinstance(data, str | os.PathLike):
            if test is not None:
                raise ValueError(
                    f"test is given, but data is {data!r}; expected a data set as data"
                )
            cifar10 = data != "shapes" and is_cifar10(data)
            parts = open_datasets(data)
        else:
            images = wrap_dataset(data)
            parts = images, None, None if test is None else wrap_dataset(test, images.classes)
        per_image = self.normalization == "per_image_std"
        stats: Stats
        if self.normalization == "imagenet":
            stats = IMAGENET_STATS
        elif cifar10:
            stats = CIFAR10_STATS_PER_IMAGE if per_image else CIFAR10_STATS
        else:
            stats = "train_per_image" if per_image else "train"
        window = self.size_of_images() - self.edge
        loaders = build_loaders(
            parts,
            batch_size=self.batch_size,
            image_size=window,
            image_fit="crop",
            stats=stats,
            augmentation=None,
            validation_fraction=self.validation_fraction,
            test_fraction=0.2,
            train_images=self.train_images,
            resize=window + self.room(),
            device=device,
            num_workers=num_workers,
            seed=seed,
        )
        preprocess = replace(loaders.preprocess, image_size=self.size_of_images(), edge=self.edge)
        if self.normalization == "mean_only":
            red, green, blue = (255 * mean for mean in preprocess.mean)
            preprocess = replace(
                preprocess, scale=255.0, mean=(red, green, blue), std=(1.0, 1.0, 1.0)
            )
        train = replace(loaders.train, augmentation=self._augmentation(loaders))
        return loaders._replace(train=train).with_preprocess(preprocess)

    def _augmentation(self, loaders: Loaders) -> tuple[AnyAugmentation, ...]:
        chosen: list[AnyAugmentation] = []
        for name, (kind, attribute) in _AUGMENTATION.items():
            if value := getattr(self, name):
                arguments = {} if attribute is None else {attribute: value}
                if kind is ColorNoise:
                    pixels = pixels_of(loaders.train.dataset)
                    arguments["components"] = compute_color_components(pixels)
                chosen.append(kind(**arguments))
        return tuple(chosen)

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimiser of a model's weights and biases, but those that are frozen.

        Raises:
            ValueError: all are frozen.
        """
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not learning:
            raise ValueError("all layers of the model are frozen; expected some to be trained")
        # One pass over the weights instead of one for each operation.
        fused = all(p.device.type in _FUSED_DEVICES for p in learning.values())
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in learning.items() if not name.endswith("bias")]},
            {
                "params": [p for name, p in learning.items() if name.endswith("bias")],
                "lr": self.bias_rate_factor * self.learning_rate,
                "weight_decay": self.weight_decay if self.decay_biases else 0.0,
            },
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "adamw":
            return AdamW(
                groups,
                lr=self.learning_rate,
                betas=(self.momentum, 0.999),
                weight_decay=self.weight_decay,
                fused=fused,
            )
        return SGD(
            groups,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov and self.momentum > 0,
            fused=fused,
        )

    def build_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """The learning rate over a run of ``steps`` steps, stepped after each of them."""
        # At least one step is left after the warm-up.
        warmup = min(round(self.warmup_fraction * steps), steps - 1)
        if self.schedule == "plateau":
            # Of torch's schedulers, the kind that multiplies what it finds, so that the plateau's
            # divisions stay.
            return LinearLR(optimizer, 1 / max(warmup, 1), total_iters=max(warmup - 1, 1))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            if self.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

        return LambdaLR(optimizer, factor)

    def build_plateau(self, optimizer: Optimizer) -> ReduceLROnPlateau | None:
        """What divides the learning rate, given each epoch's validation error; or None."""
        if self.schedule != "plateau":
            return None
        return ReduceLROnPlateau(
            optimizer,
            factor=_PLATEAU_FACTOR,
            patience=self.plateau_patience - 1,
            threshold=0.0,
            # A warm-up that has begun keeps the full rate under another name.
            min_lr=[
                group.get("initial_lr", group["lr"]) * _PLATEAU_FACTOR**_PLATEAU_DROPS
                for group in optimizer.param_groups
            ],
            eps=0.0,
        )

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy with the recipe's label smoothing, the mean over the batch."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def contradictions(self, loaders: Loaders) -> dict[str, tuple[Any, Any]]:
        """The fields in which loaders differ from the recipe: what they have, and what it has."""
        images = len(loaders.train.dataset)
        if loaders.validation is not None:
            images += len(loaders.validation.dataset)
        preprocess = loaders.preprocess
        found: dict[str, Any] = {
            "train_images": images,
            "image_size": preprocess.image_size,
            "edge": preprocess.edge,
            "resize_ratio": preprocess.resize / preprocess.window,
            "normalization": "pixel_std" if preprocess.scale == 1 else "mean_only",
            "batch_size": loaders.train.batch_size,
        }
        for name, (kind, attribute) in _AUGMENTATION.items():
            given = [each for each in loaders.train.augmentation if isinstance(each, kind)]
            if attribute is None:
                found[name] = bool(given)
            else:
                found[name] = getattr(given[0], attribute) if given else 0.0
        expected = {name: getattr(self, name) for name in found}
        expected["train_images"] = self.train_images or images
        expected["image_size"] = self.size_of_images()
        # Of rounded sizes, and of what a preprocess does not tell, the recipe's word is taken.
        if preprocess.resize - preprocess.window == self.room():
            expected["resize_ratio"] = found["resize_ratio"]
        if "mean_only" not in (self.normalization, found["normalization"]):
            expected["normalization"] = found["normalization"]
        return {
            name: (value, expected[name])
            for name, value in found.items()
            if value != expected[name]
        }


def resolve_recipe(recipe: object, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe, or that of this name, with some fields changed.

    Raises:
        ValueError: there is no such recipe or field, or a value is out of its range.
    """
    if isinstance(recipe, str) and recipe in RECIPES:
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"recipe is {recipe!r}; expected a Recipe or one of {', '.join(map(repr, RECIPES))}"
        )
    return recipe.overridden(dict(overrides or {}))


def stored_recipe(path: str | os.PathLike[str]) -> tuple[Recipe, int]:
    """The recipe and the seed of a run, which repeat it.

    Args:
        path: the run's folder, or its ``recipe.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no run's recipe, or that of a run whose model or loaders ``fit``
            was given.
    """
    file = Path(path)
    file = file / "recipe.json" if file.is_dir() else file
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        recipe, seed = Recipe.from_dict(stored["recipe"]), int(stored["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not the recipe of a run: {error}") from error
    if given := stored.get("given"):
        raise ValueError(
            f"{file} is of a run whose {' and '.join(given)} fit was given; recipe and seed alone "
            "do not repeat it"
        )
    return recipe, seed


# The blog post's settings: all 50,000 images are trained on, and nothing is held back.
_TUTORIAL = Recipe(
    "tutorial",
    architecture="single_tower",
    initialization="torch",
    normalization="per_image_std",
    validation_fraction=0.0,
    flip=False,
    batch_size=128,
    epochs=10,
    learning_rate=0.0001,
    schedule="constant",
    warmup_fraction=0.0,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.0005,
    label_smoothing=0.0,
    max_grad_norm=None,
)

# Paper, sections 3 to 5; the biases' rate and decay, the weights' standard deviations and the edge:
# released code, layer definitions of network 145.
_PAPER = Recipe(
    "paper",
    initialization="released_code",
    dropout_scaling="test",
    resize_ratio=PAPER_RESIZE_RATIO,
    edge=3,
    normalization="mean_only",
    flip=True,
    random_crop=True,
    color_noise=0.1,
    batch_size=128,
    epochs=90,
    learning_rate=0.01,
    schedule="plateau",
    warmup_fraction=0.0,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.0005,
    decay_biases=False,
    bias_rate_factor=2.0,
    label_smoothing=0.0,
    max_grad_norm=None,
    views=10,
)

# What the search settled (`benchmarks/search.py`, docs/training.md).
_MODERN = Recipe(
    "modern",
    resize_ratio=PAPER_RESIZE_RATIO,
    random_crop=True,
    batch_size=64,
    epochs=10,
    learning_rate=0.02,
    warmup_fraction=0.1,
    label_smoothing=0.1,
    max_grad_norm=5.0,
)

_FINETUNE = Recipe(
    "finetune",
    architecture="one_weird_trick",
    weights="alexnet-owt-7be5be79.pth",
    freeze=("conv1",),
    normalization="imagenet",
    resize_ratio=PAPER_RESIZE_RATIO,
    random_crop=True,
    batch_size=64,
    epochs=4,
    learning_rate=0.002,
    warmup_fraction=0.1,
    label_smoothing=0.1,
    max_grad_norm=5.0,
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (_TUTORIAL, _PAPER, _MODERN, _FINETUNE)}
)

# What `alexnet-lib demo` changes in `modern` to learn the built-in set in a minute.
DEMO_OVERRIDES: Mapping[str, Any] = MappingProxyType(
    {"image_size": 67, "batch_size": 64, "epochs": 3, "learning_rate": 0.025}
)
