"""One step of training: the loss, its gradient, and what is done where they are not finite."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from alexnet_lib.checks import (
    ABOVE_ZERO,
    check_choice,
    check_integer,
    check_number,
    type_name,
)
from alexnet_lib.devices import (
    DTYPES,
    Precision,
    memory_explained,
)
from alexnet_lib.kernels.linear import substituted
from alexnet_lib.training.batches import (
    Batch,
    are_classes,
    check_labels,
    labelled,
    no_shares,
)
from alexnet_lib.training.distributed import ALONE, Group
from alexnet_lib.training.metrics import (
    NONFINITE_LIMIT,
    Totals,
    plain_name,
)

Criterion = Callable[[Tensor, Tensor], Tensor]
OnNonfinite = Literal["stop", "skip"]

# More batches in a step than any data set has; a number beyond is a mistake.
MOST_ACCUMULATION_STEPS = 10**6

# A loss of float16 is scaled, and the scale is halved after each step whose gradients overflow. A
# gradient that overflows even at this scale is infinite itself.
_LEAST_SCALE = 1.0


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """A context with the precision and the fast functions that a model computes with."""
    autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32")
    with autocast, substituted(device):
        yield


@dataclass(frozen=True)
class TrainingStep:
    """A step of training; the fields are the arguments of ``train_one_epoch``, with its errors.

    A step whose loss or gradient is NaN or infinite changes no weight, no running statistic and no
    state of the optimiser. On the CPU, where reading a number costs nothing, it is an error at
    once; elsewhere the device leaves the step out, and ``Totals.check`` or ``Totals.compute``
    raises the error.

    In float16, gradients are scaled up in the backward pass, so that small ones are not lost, and a
    step whose gradients overflow changes nothing but the scale (``scaler``), and is no error.

    The processes of a ``group`` take a step together, each on its share of the batches. ``split``
    are the names of the parameters of which each process has its own rows. Gradients are summed in
    ``reduce_dtype``, or in their own.
    """

    model: nn.Module
    optimizer: Optimizer
    device: torch.device
    precision: Precision = "float32"
    criterion: Criterion = F.cross_entropy
    batch_scheduler: Any = None
    max_grad_norm: float | None = None
    accumulation_steps: int = 1
    on_nonfinite: OnNonfinite = "stop"
    group: Group = ALONE
    split: frozenset[str] = frozenset()
    reduce_dtype: torch.dtype | None = None
    scaler: GradScaler = field(init=False, repr=False)
    _trained: tuple[nn.Parameter, ...] = field(init=False, repr=False)
    _checked: Mapping[str, nn.Parameter] = field(init=False, repr=False)
    _statistics: tuple[Tensor, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)
        _check_scheduler(self.batch_scheduler, self.optimizer)
        self.group.check_model(self.model)
        norm, half = self.max_grad_norm, self.precision == "float16"
        trained, others = _parameters(self.model, self.optimizer)
        most = MOST_ACCUMULATION_STEPS
        if norm is not None:
            norm = check_number("max_grad_norm", norm, ABOVE_ZERO)
        values = {
            "max_grad_norm": norm,
            "accumulation_steps": check_integer(
                "accumulation_steps", self.accumulation_steps, 1, most
            ),
            "on_nonfinite": check_choice("on_nonfinite", self.on_nonfinite, ("stop", "skip")),
            "scaler": GradScaler(self.device.type, enabled=half),
            "_trained": tuple(trained.values()),
            "_checked": {**trained, **others},
            "_statistics": tuple(_running_statistics(self.model)),
        }
        for name, value in values.items():  # the class is frozen
            object.__setattr__(self, name, value)
        if half:
            _check_can_be_scaled(self._trained)
        if not _is_read(self.device) and _skips(self.optimizer, self.device):
            _prepare_for_skipping(self.optimizer)

    @property
    def cross_entropy(self) -> bool:
        """Whether the criterion is the default, for which the labels are checked."""
        return self.criterion is F.cross_entropy

    def __call__(self, images: Tensor, labels: Tensor, totals: Totals) -> Tensor:
        """Trains on a batch on the device, and adds it to the sums; returns as ``train_on``."""
        return self.train_on([labelled(images, labels, self.device)], totals)

    def train_on(self, batches: Iterable[Batch], totals: Totals) -> Tensor:
        """One step on batches of a device, as on one batch of all their images.

        Each is added to the sums. Without any, no step is taken. A step that is skipped advances
        the schedule, whose length is that of the run.

        Returns:
            A truth value on the device, without waiting for it: whether the weights were changed.
        """
        totals.allowed = NONFINITE_LIMIT if self.on_nonfinite == "skip" else 0
        totals.trained, totals.model = tuple(self._checked), self.model
        with (
            memory_explained("a step of training") as shapes,
            self.group.gradients_apart(self.model),
        ):
            return self._train_on(batches, totals, shapes)

    def _train_on(
        self, batches: Iterable[Batch], totals: Totals, shapes: list[Sequence[int]]
    ) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        images = first = 0
        mark, statistics = totals.mark(), [buffer.clone() for buffer in self._statistics]
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        for batch in batches:
            shapes.append(batch.images.shape)
            place = batch.place
            first = first or place.whole
            loss, hits, unfit = self._loss(batch)
            # The gradients are those of a mean over the first batch's number of images.
            weighted = loss if place.images == first else loss * (place.images / first)
            self.scaler.scale(weighted).backward()
            loss, hits, unfit = self.group.whole_batch(loss, hits, unfit, place)
            totals.add(loss, hits, place.whole, unfit, begins=not images)
            finite = finite & loss.detach().isfinite()
            images += place.whole
        if not images:
            return torch.zeros((), dtype=torch.bool, device=self.device)
        whole = (p for name, p in self._checked.items() if name not in self.split)
        self.group.sum_gradients(whole, self.reduce_dtype)
        gradients = _gradients(self._checked.values())
        if not any(i < len(self._trained) for i in gradients):
            raise ValueError(
                "the loss depends on none of the parameters that optimizer holds, so that no "
                "weight would change; expected an optimizer of the parameters that model uses"
            )
        if images != first:
            torch._foreach_mul_([*gradients.values()], first / images)
        self.scaler.unscale_(self.optimizer)
        if self.split and self.precision == "float16":  # overflows of all rows, not of these alone
            self.group.sum_(*self.scaler._found_inf_per_device(self.optimizer).values())
        fault = self._clip(gradients)
        taken = finite & (fault == 0)
        if self.precision == "float16":
            scale = self.scaler.scale(torch.ones((), device=self.device))
            fault = torch.where(scale > _LEAST_SCALE, 0, fault)
        fault = torch.where(finite, fault, 1)
        totals.end_step(mark, fault)
        for buffer, former in zip(self._statistics, statistics, strict=True):
            buffer.copy_(torch.where(fault > 0, former, buffer))
        self._step(taken)
        if _is_read(self.device):
            totals.check()
        return taken

    def _clip(self, gradients: Mapping[int, Tensor]) -> Tensor:
        """Scales gradients down to ``max_grad_norm``, and returns the fault that ``Totals`` takes.

        It is that of the last parameter, in the order of the model, whose gradient is not finite:
        the backward pass comes to it first.
        """
        clips, read = self.max_grad_norm is not None, _is_read(self.device)
        # Without a norm to clip by, large finite gradients are no fault, but the sum of their
        # squares may be infinite. The largest number takes ten times as long on the CPU (73 ms
        # and 7 ms for 62 million numbers).
        order = 2.0 if clips or read else math.inf
        norms = self._norms(gradients, order)
        broken = ~torch.stack(norms).isfinite()
        if read and not clips and bool(broken.any()):
            broken = ~torch.stack(self._norms(gradients, math.inf)).isfinite()
        if self.max_grad_norm is not None:
            total = torch.linalg.vector_norm(torch.stack(norms[: len(self._trained)]))
            nn.utils.clip_grads_with_norm_(self._trained, self.max_grad_norm, total)
        return (broken * torch.arange(2, len(broken) + 2, device=self.device)).amax()

    def _norms(self, gradients: Mapping[int, Tensor], order: float) -> list[Tensor]:
        """The norm of each gradient; 0 where there is none."""
        norms = [torch.zeros((), device=self.device)] * len(self._checked)
        found = torch._foreach_norm([*gradients.values()], order)
        for i, norm in zip(gradients, found, strict=True):
            norms[i] = norm.to(self.device)
        split = [i for i, name in enumerate(self._checked) if name in self.split]
        whole = self.group.whole_norms([norms[i] for i in split], order)
        for i, norm in zip(split, whole, strict=True):
            norms[i] = norm
        return norms

    def _step(self, taken: Tensor) -> None:
        """A step of the optimiser, unless it is to be skipped, and one of the schedule."""
        optimizer: Any = self.optimizer
        skipped = False
        if not _is_read(self.device) and _skips(optimizer, self.device):
            # As torch's GradScaler tells a fused optimiser to leave out a step.
            optimizer.grad_scale, optimizer.found_inf = None, (~taken).float()
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        elif taken:
            optimizer.step()
        else:
            skipped = True
        self.scaler.update()
        if self.batch_scheduler is not None:
            with warnings.catch_warnings() if skipped else nullcontext():
                if skipped:  # it may have been the first
                    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.batch_scheduler.step()

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The loss; and for each image whether it is a hit, and whether its label is unfit."""
        with arithmetic(self.precision, self.device), self.group.forward_pass(batch.place):
            logits = checked_logits(self.model(batch.images), len(batch.images))
            classes = logits.shape[1] if logits.ndim > 1 else 1
            check_labels(batch, logits, classes, cross_entropy=self.cross_entropy)
            loss = checked_loss(self.criterion(logits, batch.labels))
        if not loss.requires_grad:
            raise ValueError(
                "the loss does not depend on any weight that is trained; expected a criterion that "
                "computes with the logits, and a model that does not detach them"
            )
        if not are_classes(batch.labels, logits) or batch.shares is False:
            return loss, None, None
        classified = logits.detach().argmax(1)
        if batch.labels.ndim == 1:
            return loss, classified == batch.labels, None
        unfit = None if batch.shares else no_shares(batch.labels)
        return loss, classified == batch.labels.argmax(1), unfit


def checked_logits(logits: object, images: int) -> Tensor:
    """The output of a model for a number of images, if it is a tensor with a row for each."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"model returns a {type_name(logits)}; expected a tensor of logits: wrap the model in "
            "one whose forward returns that part of it, for example output.logits"
        )
    if not logits.ndim or len(logits) != images:
        raise ValueError(
            f"model returns a tensor of shape {tuple(logits.shape)} for {images} images; expected "
            f"one row for each, ({images}, classes)"
        )
    return logits


def checked_loss(loss: object) -> Tensor:
    """The result of a criterion, if it is a scalar."""
    if not isinstance(loss, Tensor) or loss.ndim:
        kind = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type_name(loss)}"
        raise ValueError(
            f"criterion returns {kind}; expected a scalar tensor, the mean over the batch "
            "(reduction='mean')"
        )
    return loss


def _is_read(device: torch.device) -> bool:
    """Whether reading a number from a device costs nothing."""
    return device.type == "cpu"


def _skips(optimizer: Any, device: torch.device) -> bool:
    """Whether an optimiser can leave out its next step if the device finds it not finite.

    torch's fused ones can, except on Apple's MPS, whose kernels ignore ``found_inf``, and except
    the first step of an SGD with dampening.
    """
    able = getattr(optimizer, "_step_supports_amp_scaling", False) and device.type != "mps"
    return able and not (isinstance(optimizer, SGD) and _dampens_first(optimizer))


def _dampens_first(optimizer: SGD) -> bool:
    """Whether a momentum that is dampened has yet to begin, with a gradient that is not."""
    return any(
        parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None
        for group in optimizer.param_groups
        if group["momentum"] and group["dampening"]
        for parameter in group["params"]
    )


def _parameters(
    model: nn.Module, optimizer: Any
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The parameters that an optimiser trains: those of the model, and others, by name."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = getattr(optimizer, "param_groups", None)
    held = {id(p): p for group in groups or () for p in group["params"]}
    trained = {plain_name(n): p for n, p in own.items() if groups is None or id(p) in held}
    if not trained:
        raise ValueError(
            f"optimizer holds {len(held)} parameters, none of them of the {len(own)} of model that "
            "are trained, so that no weight would change; expected an optimizer that was built "
            "with model.parameters() of this model, after its layers were replaced or frozen"
        )
    known = {id(p) for p in model.parameters()}
    others = (p for p in held.values() if id(p) not in known)
    return trained, {f"parameter {i} outside of model": p for i, p in enumerate(others)}


def _running_statistics(model: nn.Module) -> Iterator[Tensor]:
    """What batch normalisation changes in the forward pass of training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            yield from module.buffers(recurse=False)


def _gradients(parameters: Iterable[nn.Parameter]) -> dict[int, Tensor]:
    """The numbers of the gradients of those parameters that have one, by their place."""
    return {
        i: parameter.grad
        for i, parameter in enumerate(parameters)
        if parameter.grad is not None and parameter.grad.numel()
    }


def check_optimizer(optimizer: Any) -> None:
    """Raises a ``TypeError`` unless it takes steps from gradients alone."""
    step = getattr(optimizer, "step", None)
    if isinstance(optimizer, type) or not callable(step) or not hasattr(optimizer, "zero_grad"):
        raise TypeError(
            f"optimizer is a {type_name(optimizer)}; expected a torch.optim.Optimizer. The "
            "order is train_one_epoch(model, loader, optimizer, criterion=...)"
        )
    if _needs_closure(step):
        raise TypeError(
            f"optimizer is a {type_name(optimizer)}, whose step needs a closure that computes the "
            "loss several times; expected one that takes a step from the gradients, such as "
            "torch.optim.SGD"
        )


def _needs_closure(step: Callable[..., Any]) -> bool:
    try:
        closure = inspect.signature(step).parameters.get("closure")
    except (ValueError, TypeError):  # some callables do not tell their arguments
        return False
    return closure is not None and closure.default is inspect.Parameter.empty


def _check_scheduler(scheduler: Any, optimizer: Any) -> None:
    if scheduler is None:
        return
    if isinstance(scheduler, type) or not callable(getattr(scheduler, "step", None)):
        raise TypeError(
            f"batch_scheduler is a {type_name(scheduler)}; expected a learning-rate scheduler of "
            "torch, or None"
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "batch_scheduler is a ReduceLROnPlateau, which depends on a metric; expected a "
            "scheduler of steps: call its step(metric) after each epoch instead"
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            "batch_scheduler was built for another optimizer, whose learning rate it would change; "
            "expected one that was built with this optimizer"
        )


def _check_can_be_scaled(trained: Iterable[nn.Parameter]) -> None:
    if dtypes := {p.dtype for p in trained if p.dtype not in {torch.float32, torch.float64}}:
        raise ValueError(
            f"model has weights of {', '.join(sorted(map(str, dtypes)))}, but precision is "
            "'float16', which keeps them in float32; expected model.float()"
        )


def _prepare_for_skipping(optimizer: Any) -> None:
    # If its first step is left out, torch's fused SGD goes on with the uninitialised memory of its
    # momentum (seen in torch 2.14). From zeros, the first step is the same.
    # With dampening it is not, and is waited for (`_skips`).
    for group in optimizer.param_groups if isinstance(optimizer, SGD) else ():
        if group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
