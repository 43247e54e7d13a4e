"""The optimiser, the learning-rate schedule and the training step of a recipe."""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau

from alexnet_lib.checks import check_integer
from alexnet_lib.data.images import ImageSet
from alexnet_lib.data.statistics import compute_class_weights
from alexnet_lib.devices import DTYPES, RunOptions, resolve_precision
from alexnet_lib.training.distributed import ALONE, Group
from alexnet_lib.training.muon import Muon
from alexnet_lib.training.recipes import Recipe
from alexnet_lib.training.step import TrainingStep

# Where torch has a fused SGD.
_FUSED_DEVICES = {"cpu", "cuda", "mps"}

# The paper divided the rate by ten, three times (section 5).
_PLATEAU_FACTOR = 0.1
_PLATEAU_DROPS = 3


def build_optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The optimiser of a recipe for a model's weights and biases, except those that are frozen.

    Raises:
        ValueError: all are frozen.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("all layers of the model are frozen; expected some to be trained")
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    filter_groups = {
        id(module.weight): module.groups for module in convolutions if recipe.optimizer == "muon"
    }
    plain = {name: p for name, p in trained.items() if id(p) not in filter_groups}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in plain.items() if not name.endswith("bias")]},
        {
            "params": [p for name, p in plain.items() if name.endswith("bias")],
            "lr": recipe.bias_rate_factor * recipe.learning_rate,
            "weight_decay": recipe.weight_decay if recipe.decay_biases else 0.0,
        },
        *(
            {
                "params": [p],
                "lr": recipe.filter_rate_factor * recipe.learning_rate,
                "weight_decay": recipe.filter_decay,
                "filter_groups": filter_groups[id(p)],
            }
            for p in trained.values()
            if id(p) in filter_groups
        ),
    ]
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "nesterov": recipe.nesterov and recipe.momentum > 0,
        # One pass over the weights instead of one for each operation.
        "fused": all(p.device.type in _FUSED_DEVICES for p in trained.values()),
    }
    return Muon(groups, **settings) if recipe.optimizer == "muon" else SGD(groups, **settings)


def build_schedule(recipe: Recipe, optimizer: Optimizer, steps: int) -> LRScheduler:
    """The learning rate of a recipe over a run of ``steps`` steps, stepped after each of them."""
    steps = check_integer("steps", steps, 1, 2**63 - 1)
    # At least one step is left after the warm-up.
    warmup = min(round(recipe.warmup_fraction * steps), steps - 1)
    if recipe.schedule == "plateau":
        # Of torch's schedulers, the kind that multiplies the current rate, so that the divisions of
        # the plateau stay.
        return LinearLR(optimizer, 1 / max(warmup, 1), total_iters=max(warmup - 1, 1))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if recipe.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    return LambdaLR(optimizer, factor)


def build_plateau(recipe: Recipe, optimizer: Optimizer) -> ReduceLROnPlateau | None:
    """The scheduler that divides the learning rate when the validation error stalls, or None."""
    if recipe.schedule != "plateau":
        return None
    return ReduceLROnPlateau(
        optimizer,
        factor=_PLATEAU_FACTOR,
        patience=recipe.plateau_patience - 1,
        threshold=0.0,
        # During a warm-up, the full rate is in `initial_lr`.
        min_lr=[
            group.get("initial_lr", group["lr"]) * _PLATEAU_FACTOR**_PLATEAU_DROPS
            for group in optimizer.param_groups
        ],
        eps=0.0,
    )


def build_step(
    recipe: Recipe,
    model: nn.Module,
    options: RunOptions,
    *,
    steps: int | None = None,
    class_weights: Tensor | None = None,
    group: Group = ALONE,
    split: frozenset[str] = frozenset(),
) -> TrainingStep:
    """The training step of a recipe; its learning rate follows the schedule of a run of ``steps``.

    Without ``steps``, the learning rate is constant at its peak. ``options`` must be resolved;
    ``class_weights`` are those of ``balanced_weights``, ``group`` the processes of the run,
    ``split`` the names of the parameters of which each has its own rows.
    """
    optimizer = build_optimizer(recipe, model)
    device = torch.device(options.device)
    # The compiled form of a module is a module, whatever torch's annotation says.
    trained: nn.Module = torch.compile(model) if options.compile else model  # type: ignore[assignment]
    criterion = recipe.criterion
    if class_weights is not None:
        criterion = functools.partial(criterion, class_weights=class_weights)
    return TrainingStep(
        trained,
        optimizer,
        device,
        resolve_precision(options.precision, device),
        criterion,
        None if steps is None else build_schedule(recipe, optimizer, steps),
        recipe.max_grad_norm,
        recipe.accumulation_steps,
        options.on_nonfinite,  # type: ignore[arg-type]  # one of the two
        group,
        split,
        DTYPES.get(options.reduce_dtype),
    )


def balanced_weights(recipe: Recipe, data: ImageSet, device: torch.device) -> Tensor | None:
    """The weights of the classes in the loss of a recipe, from its training images, or None."""
    if recipe.balance != "loss":
        return None
    return compute_class_weights(data.labels, len(data.classes)).to(device)
