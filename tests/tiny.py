"""A network and data so small that a whole run takes a fraction of a second."""

from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from alexnet_lib.data import shapes as shapes_module
from alexnet_lib.devices import RunOptions
from alexnet_lib.network import architecture
from alexnet_lib.network.architecture import (
    Architecture,
    Conv,
    Dropout,
    Flatten,
    Linear,
    MaxPool,
    ReLU,
)
from alexnet_lib.training.recipes import Recipe

TINY = Architecture(
    "tiny",
    image_size=12,
    layers=(
        Conv("conv1", 4, kernel=3, stride=2),
        ReLU("relu1"),
        MaxPool("pool1"),
        Flatten("flatten"),
        Dropout("drop2"),
        Linear("fc2", None),
    ),
)

# What a recipe changes to train it.
TINY_OVERRIDES = MappingProxyType({"architecture": "tiny", "batch_size": 16, "learning_rate": 0.1})

# What makes any of the recipes one for it, whatever network it is about.
SMALL = MappingProxyType(
    {"architecture": "tiny", "image_size": 20, "weights": None, "freeze": (), "batch_size": 16}
)


def use_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``TINY`` known by its name, and the shapes 60 images for training and 20 for tests."""
    known = {**architecture.ARCHITECTURES, "tiny": TINY}
    monkeypatch.setattr(architecture, "ARCHITECTURES", known)
    monkeypatch.setattr(shapes_module, "SHAPES_TRAIN_IMAGES", 60)
    monkeypatch.setattr(shapes_module, "SHAPES_TEST_IMAGES", 20)


# How it is trained where a test is about something else.
QUIET = RunOptions(device="cpu", precision="float32", progress=False)


def quiet(device: torch.device) -> RunOptions:
    """The same on another device."""
    return replace(QUIET, device=str(device))


def tiny_recipe(**changes) -> Recipe:
    """A recipe for ``TINY``; an epoch on the shapes of ``use_tiny`` has four steps."""
    return Recipe("tiny run", **{**TINY_OVERRIDES, **changes})


class Noisy(Dataset):
    """Images that are others each time they are asked for."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return torch.rand(3, 12, 12), index % 10


def weights_of(model: nn.Module) -> Tensor:
    """All weights and biases in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
