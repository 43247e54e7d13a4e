"""Named sets of hyper-parameters. A recipe, a data set and a seed determine a run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from alexnet_lib.architecture import Architecture, resolve_architecture
from alexnet_lib.channel_stats import CIFAR10_STATS
from alexnet_lib.datasets import is_cifar10_folder
from alexnet_lib.engine import default_device, resolve_device, resolve_precision
from alexnet_lib.loaders import (
    Loaders,
    build_cifar10_loaders,
    build_image_folder_loaders,
    build_shapes_loaders,
)
from alexnet_lib.model import AlexNet, Initialization
from alexnet_lib.transforms import HorizontalFlip

# Where torch has a fused SGD.
_FUSED_DEVICES = {"cpu", "cuda", "mps"}

MEMORY_FORMATS: Mapping[str, torch.memory_format] = MappingProxyType(
    {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
)


@dataclass(frozen=True)
class Recipe:
    """All that determines a run, but the data and the seed.

    Args:
        name: what the recipe is called.
        architecture: name of the network, a key of ``ARCHITECTURES``.
        initialization: as ``AlexNet``'s.
        dropout: probability, as ``AlexNet``'s.
        image_size: side of the images, in pixels; None is the architecture's own.
        train_images: use only so many of the training images; None uses all.
        validation_fraction: share of the training images kept for validation.
        augmentation: ``"flip"`` (mirrored left to right with probability 1/2) or ``"none"``.
        batch_size: images in a step.
        epochs: passes over the training images.
        learning_rate: at its peak; it rises linearly over the first ``warmup_fraction`` of the
            steps and falls to 0 along a cosine.
        warmup_fraction: from 0 to below 1.
        momentum: Nesterov's, from 0 (plain gradient descent) to below 1.
        weight_decay: of weights and biases alike, at least 0.
        label_smoothing: from 0 to below 1.
        max_grad_norm: gradients are scaled down to this norm; None leaves them alone.

    Raises:
        ValueError: a field is unknown or out of its range.

    Example:
        >>> from alexnet_lib import RECIPES
        >>> RECIPES["plain"].learning_rate
        0.03
    """

    name: str
    architecture: str = "paper"
    initialization: Initialization = "kaiming"
    dropout: float = 0.5
    image_size: int | None = None
    train_images: int | None = None
    validation_fraction: float = 0.1
    augmentation: Literal["flip", "none"] = "flip"
    batch_size: int = 128
    epochs: int = 4
    learning_rate: float = 0.03
    warmup_fraction: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0005
    label_smoothing: float = 0.1
    max_grad_norm: float | None = 5.0

    def __post_init__(self) -> None:
        if isinstance(self.architecture, Architecture):
            raise ValueError(
                f"architecture is the Architecture {self.architecture.name!r}; expected the name "
                "of one, so that a recipe stays plain data"
            )
        architecture = resolve_architecture(self.architecture)
        for name, choices in (
            ("augmentation", ("flip", "none")),
            ("initialization", get_args(Initialization)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}"
                )
        for name, least, optional in (
            ("batch_size", 1, False),
            ("epochs", 1, False),
            ("image_size", architecture.smallest_image_size, True),
            ("train_images", 1, True),
        ):
            value = getattr(self, name)
            if optional and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name} is {value!r}; expected an integer of at least {least}"
                    + optional * ", or None"
                )
        for name in ("warmup_fraction", "momentum", "label_smoothing", "validation_fraction"):
            value = getattr(self, name)
            if not (_is_finite(value) and 0 <= value < 1):
                raise ValueError(f"{name} is {value!r}; expected a number from 0 to below 1")
        if not (_is_finite(self.dropout) and 0 <= self.dropout <= 1):
            raise ValueError(f"dropout is {self.dropout!r}; expected a probability from 0 to 1")
        if not (_is_finite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate!r}; expected above 0")
        if not (_is_finite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay!r}; expected at least 0")
        norm = self.max_grad_norm
        if norm is not None and not (_is_finite(norm) and norm > 0):
            raise ValueError(f"max_grad_norm is {norm!r}; expected above 0, or None")

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
        """The fields as plain data that JSON can hold."""
        return asdict(self)

    def size_of_images(self) -> int:
        """``image_size``, or the architecture's own where it is None; in pixels."""
        return self.image_size or resolve_architecture(self.architecture).image_size

    def build_model(self, classes: tuple[str, ...], seed: int) -> AlexNet:
        """The network for these classes, its weights drawn from ``seed``."""
        model = AlexNet(
            len(classes),
            architecture=self.architecture,
            image_size=self.image_size,
            dropout=self.dropout,
            initialization=self.initialization,
            seed=seed,
        )
        model.classes = classes
        return model

    def build_loaders(
        self,
        data: str | Path,
        seed: int,
        *,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
    ) -> Loaders:
        """Loaders of a folder (CIFAR-10 or images), of ``"cifar10"`` or of ``"shapes"``.

        Args:
            data: ``"shapes"``; ``"cifar10"``, which is kept in the folder ``data`` and downloaded
                where it is missing; or a folder with CIFAR-10's files or with images.
            seed: of the parts, the order and the augmentation.
            device: where the batches are made.
            num_workers: processes that decode image files.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the data, or a field, cannot be used; the message says why.
        """
        arguments: dict[str, Any] = {
            "batch_size": self.batch_size,
            "image_size": self.size_of_images(),
            "augmentation": HorizontalFlip() if self.augmentation == "flip" else None,
            "validation_fraction": self.validation_fraction,
            "train_images": self.train_images,
            "device": device,
            "num_workers": num_workers,
            "seed": seed,
        }
        if data == "shapes":
            return build_shapes_loaders(**arguments)
        if data == "cifar10":
            return build_cifar10_loaders(stats=CIFAR10_STATS, **arguments)
        if is_cifar10_folder(data):
            return build_cifar10_loaders(data, download=False, **arguments)
        return build_image_folder_loaders(data, **arguments)

    def build_optimizer(self, model: nn.Module) -> SGD:
        """Stochastic gradient descent with the recipe's momentum and weight decay."""
        # One pass over the weights instead of one for each operation.
        fused = all(weight.device.type in _FUSED_DEVICES for weight in model.parameters())
        return SGD(
            model.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
            fused=fused,
        )

    def build_schedule(self, optimizer: SGD, steps: int) -> LambdaLR:
        """The learning rate over a run of ``steps`` steps: linear warm-up, then cosine to 0."""
        # At least one step is left to fall in.
        warmup = min(round(self.warmup_fraction * steps), steps - 1)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

        return LambdaLR(optimizer, factor)

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy with the recipe's label smoothing, the mean over the batch."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


RECIPES: Mapping[str, Recipe] = MappingProxyType({"plain": Recipe("plain")})
"""The recipes by name. ``"plain"``: what makes the paper's network learn, and nothing more."""

# What `alexnet-lib demo` changes in the plain recipe to learn the built-in set in a minute.
DEMO_OVERRIDES: Mapping[str, Any] = MappingProxyType(
    {"image_size": 67, "batch_size": 64, "epochs": 3, "learning_rate": 0.025}
)


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out, as opposed to what is trained.

    Args:
        device: ``"auto"`` (CUDA, then Apple's MPS, then the CPU) or a device's name.
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the hardware
            multiplies it.
        memory_format: ``"contiguous"``, ``"channels_last"``, or ``"auto"``: channels_last on CPUs,
            whose convolutions are faster in it, and for bfloat16 on CUDA, whose tensor cores are.
        compile: train through ``torch.compile``, which takes a minute or so at the start. On CPUs
            it has been slower than training without.
        num_workers: processes that decode image files; images held in memory need none.
        progress: say how the run goes, on the standard error stream.
    """

    device: str = "auto"
    precision: str = "auto"
    memory_format: str = "auto"
    compile: bool = False
    num_workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.memory_format not in {"auto", *MEMORY_FORMATS}:
            raise ValueError(
                f"memory_format is {self.memory_format!r}; expected 'auto', "
                f"{', '.join(map(repr, MEMORY_FORMATS))}"
            )

    def resolved(self) -> "RunOptions":
        """The same with ``"auto"`` replaced by what this machine offers.

        Raises:
            ValueError: there is no such device or precision.
        """
        # A silent run does not say which device was chosen either.
        silent = self.device == "auto" and not self.progress
        device = default_device() if silent else resolve_device(self.device)
        precision = resolve_precision(self.precision, device)
        memory_format = self.memory_format
        if memory_format == "auto":
            tensor_cores = device.type == "cuda" and precision == "bfloat16"
            faster = device.type == "cpu" or tensor_cores
            memory_format = "channels_last" if faster else "contiguous"
        return replace(
            self,
            device=str(device),
            precision=precision,
            memory_format=memory_format,
        )
