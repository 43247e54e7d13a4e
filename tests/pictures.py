"""What the tests of figures need: a network of two towers, and what a call must not change."""

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from alexnet_lib import (
    LRN,
    AlexNet,
    Architecture,
    Conv,
    Dropout,
    Flatten,
    Linear,
    MaxPool,
    Preprocess,
    ReLU,
)

# As the paper's: conv2 sees its own tower, conv3 both.
TWO_TOWERS = Architecture(
    "two towers",
    image_size=20,
    layers=(
        Conv("conv1", 8, kernel=3, stride=2),
        ReLU("relu1"),
        LRN("norm1", groups=2),
        Conv("conv2", 12, kernel=3, padding=1, groups=2),
        ReLU("relu2"),
        Conv("conv3", 8, kernel=3, padding=1),
        ReLU("relu3"),
        MaxPool("pool3"),
        Flatten("flatten"),
        Linear("fc4", 16),
        ReLU("relu4"),
        Dropout("drop4"),
        Linear("fc5", None),
    ),
)
CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")


def two_towers(channels: int = 3, classes: int = 10, **arguments: Any) -> AlexNet:
    """With the names of its classes, and a preprocessing."""
    arguments = {"in_channels": channels, "seed": 0, **arguments}
    model = AlexNet(classes, architecture=TWO_TOWERS, **arguments)
    model.classes = CLASSES if classes == 10 else tuple(f"class {i}" for i in range(classes))
    model.preprocess = Preprocess(20, 20, mean=(0.4,) * channels, std=(0.2,) * channels)
    return model


def state_of(model: nn.Module) -> Any:
    """All that a look at a model must leave as it was."""
    of_modules = [
        (
            name,
            module.training,
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            list(module._backward_hooks),
        )
        for name, module in model.named_modules()
    ]
    of_parameters = [
        (
            name,
            str(parameter.device),
            parameter.requires_grad,
            parameter.detach().numpy().tobytes(),
            None if parameter.grad is None else parameter.grad.numpy().tobytes(),
        )
        for name, parameter in model.named_parameters()
    ]
    generators = (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state()[1].tobytes(),
    )
    return of_modules, of_parameters, generators, torch.is_grad_enabled()
