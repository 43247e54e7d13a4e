"""One pass over a loader: training and evaluation of any model with any loader.

The loops wait for the device only to refresh the progress bar, every few seconds:
losses and hits are summed on the device. Means are over images, not over batches.
"""

import itertools
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from alexnet_lib.checks import (
    ABOVE_ZERO,
    as_integer,
    check_integer,
    check_number,
    length_of,
    type_name,
)
from alexnet_lib.devices import DTYPES, Precision, resolve_device, resolve_precision
from alexnet_lib.kernels.linear import substituted
from alexnet_lib.training.batches import (
    Batch,
    ClassMap,
    are_classes,
    check_labels,
    check_order,
    data_names,
    labelled,
    moved_batches,
    no_shares,
)
from alexnet_lib.training.metrics import EpochMetrics, EvalMetrics, Totals

Criterion = Callable[[Tensor, Tensor], Tensor]

_NO_IMAGES = "loader yields no images; expected at least one"

# Seconds between two readings of the sums on the device.
_REFRESH_SECONDS = 2.0


@runtime_checkable
class ViewLoader(Protocol):
    """A loader that can yield each image in several views."""

    def views(self, number: int) -> Iterable[tuple[Iterable[Tensor], Tensor]]:
        """For each batch, its views, and its labels."""
        ...


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """A context with the precision and the fast functions that a model computes with."""
    autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32")
    with autocast, substituted(device):
        yield


@dataclass(frozen=True)
class TrainingStep:
    """A step of training; the fields are the arguments of ``train_one_epoch``, with its errors.

    In float16, gradients are scaled up in the backward pass, so that small ones are not lost, and a
    step whose gradients overflow changes nothing but the scale (``scaler``).
    """

    model: nn.Module
    optimizer: Optimizer
    device: torch.device
    precision: Precision = "float32"
    criterion: Criterion = F.cross_entropy
    batch_scheduler: Any = None
    max_grad_norm: float | None = None
    accumulation_steps: int = 1
    scaler: GradScaler = field(init=False, repr=False)
    _trained: tuple[nn.Parameter, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        half = self.precision == "float16"
        object.__setattr__(self, "scaler", GradScaler(self.device.type, enabled=half))
        object.__setattr__(self, "_trained", _trained_parameters(self.model, self.optimizer))
        _check_scheduler(self.batch_scheduler, self.optimizer)
        if half:
            _prepare_for_scaling(self.optimizer, self._trained)

    @property
    def cross_entropy(self) -> bool:
        """Whether the criterion is the default, for which the labels are checked."""
        return self.criterion is F.cross_entropy

    def __call__(self, images: Tensor, labels: Tensor, totals: Totals) -> None:
        """Trains on a batch on the device, and adds it to the sums."""
        self.train_on([labelled(images, labels, self.device)], totals)

    def train_on(self, batches: Iterable[Batch], totals: Totals) -> None:
        """One step on batches of a device, as on one batch of all their images.

        Each is added to the sums. Without any, no step is taken.
        """
        self.optimizer.zero_grad(set_to_none=True)
        images = first = 0
        for batch in batches:
            count = len(batch.images)
            first = first or count
            loss, hits, unfit = self._loss(batch)
            # The gradients are those of a mean over the first batch's number of images.
            weighted = loss if count == first else loss * (count / first)
            self.scaler.scale(weighted).backward()
            totals.add(loss, hits, count, unfit, begins=not images)
            images += count
        if not images:
            return
        gradients = [p.grad for p in self._trained if p.grad is not None]
        if not gradients:
            raise ValueError(
                "the loss depends on none of the parameters that optimizer holds, so that no "
                "weight would change; expected an optimizer of the parameters that model uses"
            )
        if images != first:
            torch._foreach_mul_(gradients, first / images)
        self.scaler.unscale_(self.optimizer)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.batch_scheduler is not None:
            with warnings.catch_warnings():
                if self.precision == "float16":  # the optimiser may have left out its first step
                    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.batch_scheduler.step()

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The loss; and for each image whether it is a hit, and whether its label is unfit."""
        with arithmetic(self.precision, self.device):
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


def _trained_parameters(model: nn.Module, optimizer: Any) -> tuple[nn.Parameter, ...]:
    """The model's parameters that an optimiser trains."""
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = getattr(optimizer, "param_groups", None)
    held = {id(p) for group in groups or () for p in group["params"]}
    trained = tuple(p for p in own if groups is None or id(p) in held)
    if not trained:
        raise ValueError(
            f"optimizer holds {len(held)} parameters, none of them of the {len(own)} of model that "
            "are trained, so that no weight would change; expected an optimizer that was built "
            "with model.parameters() of this model, after its layers were replaced or frozen"
        )
    return trained


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


def _prepare_for_scaling(optimizer: Any, trained: Iterable[nn.Parameter]) -> None:
    if dtypes := {p.dtype for p in trained if p.dtype not in {torch.float32, torch.float64}}:
        raise ValueError(
            f"model has weights of {', '.join(sorted(map(str, dtypes)))}, but precision is "
            "'float16', which keeps them in float32; expected model.float()"
        )
    # If its first step overflows and is left out, torch's fused SGD goes on with the uninitialised
    # memory of its momentum (seen in torch 2.14). From zeros, the first step is the same.
    for group in optimizer.param_groups if isinstance(optimizer, SGD) else ():
        if group["fused"] and group["momentum"]:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)


class Progress:
    """A progress bar over steps that shows the metrics so far every few seconds."""

    def __init__(self, description: str, total: int | None, *, show: bool, done: int = 0) -> None:
        self._looked, self._done = time.perf_counter(), done
        self.bar = tqdm(
            desc=description,
            total=total,
            initial=done,
            disable=None if show else True,  # None hides it where there is no terminal
            leave=False,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, totals: Totals, done: int | None = None) -> None:
        """Counts a step; every few seconds it reads the sums and raises if a loss is not finite.

        ``done`` is the number of steps so far, where some were left out.
        """
        done = self._done + 1 if done is None else done
        self.bar.update(done - self._done)
        self._done = done
        if time.perf_counter() - self._looked > _REFRESH_SECONDS:
            self.bar.set_postfix_str(str(totals.compute()))
            self._looked = time.perf_counter()


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Any],
    optimizer: Optimizer,
    *,
    criterion: Criterion | None = None,
    device: torch.device | str | None = None,
    precision: str = "float32",
    batch_scheduler: Any = None,
    max_grad_norm: float | None = None,
    accumulation_steps: int = 1,
    progress: bool = True,
) -> EpochMetrics:
    """Trains a model on each batch of a loader once.

    Args:
        model: maps images to logits ``(batch, classes)``; it is put into training mode. With a
            criterion of another kind, to whatever that takes, a row for each image.
        loader: yields ``(images, labels)``, or mappings with ``"image"`` and ``"label"`` (also
            ``"img"``, ``"pixel_values"``, ``"labels"``); tensors, arrays or lists. Labels are
            integers of any dtype ``(batch,)`` from 0, or floating ``(batch, classes)``, the share
            of each class. Batches without images are passed over.
        optimizer: holds the model's parameters.
        criterion: maps logits and labels to the batch's mean loss; None is cross entropy.
        device: where to train; the model and the batches are moved there. None is the model's
            device, ``"auto"`` is ``default_device()``.
        precision: ``"float32"``, ``"bfloat16"`` (autocast), ``"float16"`` (autocast, with scaled
            gradients; the optimiser is best a fused one: for others torch waits in every step) or
            ``"auto"``, as in ``RunOptions``.
        batch_scheduler: a learning-rate scheduler that is stepped after every step, or None.
        max_grad_norm: larger gradients are scaled down to this norm; None leaves them alone.
        accumulation_steps: batches in a step, at least 1: the gradients are those of one batch of
            all their images. The last step of the epoch may have fewer.
        progress: show a bar; where there is no terminal, one line at the end.

    Returns:
        Mean loss and accuracy over the images, their number, and the time it took. The accuracy is
        None where it has no meaning: labels are neither classes nor their shares (at least 0, with
        the sum 1), or the model has fewer than two outputs.

    Raises:
        TypeError: ``optimizer`` is not an optimiser, ``batch_scheduler`` not a scheduler of steps.
        ValueError: the loader yields no images; a label is not a class of the model, or not one
            that cross entropy takes; the optimiser holds no parameter of the model; model or
            criterion return something else; model and data have the same classes in another order.
        FloatingPointError: a loss was NaN or infinite; the message names the step.

    Example:
        >>> import torch
        >>> from alexnet_lib import AlexNet, build_loaders, train_one_epoch
        >>> model = AlexNet(num_classes=10, image_size=67, seed=0)
        >>> loaders = build_loaders("shapes", image_size=67, train_images=40, batch_size=20)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        >>> train_one_epoch(model, loaders.train, optimizer, progress=False).images
        36
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type_name(model)}; expected a torch.nn.Module")
    if not hasattr(optimizer, "step") or not hasattr(optimizer, "zero_grad"):
        raise TypeError(
            f"optimizer is a {type_name(optimizer)}; expected a torch.optim.Optimizer. The "
            "order is train_one_epoch(model, loader, optimizer, criterion=...)"
        )
    if max_grad_norm is not None:
        max_grad_norm = check_number("max_grad_norm", max_grad_norm, ABOVE_ZERO)
    check_order(model, data_names(loader))
    on = _device_of(model, device)
    step = TrainingStep(
        model,
        optimizer,
        on,
        resolve_precision(precision, on),
        _checked_criterion(criterion),
        batch_scheduler,
        max_grad_norm,
        check_integer("accumulation_steps", accumulation_steps, 1),
    )
    model.train()
    totals = Totals(on, cross_entropy=step.cross_entropy)
    length = length_of(loader)
    steps = None if length is None else math.ceil(length / step.accumulation_steps)
    batches = moved_batches(loader, on)
    with Progress("training", steps, show=progress) as shown:
        for batch in batches:
            others = itertools.islice(batches, step.accumulation_steps - 1)
            step.train_on(itertools.chain([batch], others), totals)
            shown.advance(totals)
    if not totals.steps:
        raise ValueError(_NO_IMAGES)
    metrics = totals.compute()
    if progress and shown.bar.disable:
        print(f"training: {metrics}", file=sys.stderr)
    return metrics


def _checked_criterion(criterion: Criterion | None) -> Criterion:
    if criterion is None:
        return F.cross_entropy
    if isinstance(criterion, type) or not callable(criterion):
        raise TypeError(
            f"criterion is a {type_name(criterion)}; expected a function of logits and labels, for "
            "example nn.CrossEntropyLoss()"
        )
    return criterion


def _device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is None:
        parameter = next(model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device
    resolved = resolve_device(device)
    model.to(resolved)
    return resolved


# Not inference_mode, which is no faster here (0.226 s both, for 128 images at 227 pixels): tensors
# created in it cannot be trained with later: neither images that a data set keeps, nor
# parameters and tables that a model creates in its first pass.
@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    criterion: Criterion | None = None,
    device: torch.device | str | None = None,
    precision: str = "float32",
    topk: Sequence[int] = (1, 5),
    views: int = 1,
    progress: bool = True,
) -> EvalMetrics:
    """Loss, accuracies and confusion matrix of a model over all images of a loader.

    The model is evaluated in evaluation mode, and then put back into its former mode. With several
    views, class and loss are those of the mean of their softmax outputs (paper, section 4.1).

    Where model and data have names of classes (``model.classes``, ``loader.dataset.classes``),
    labels are mapped to the model's classes by name, so that data may have fewer classes, or have
    them in another order. Otherwise they are mapped by number.

    Args:
        model: maps images to logits ``(batch, classes)``, or to whatever the criterion takes.
        loader: yields batches as in ``train_one_epoch``.
        criterion: maps logits and labels to the batch's mean loss; None is cross entropy.
        device: where to evaluate; the model is moved there and stays there. None is the model's
            device, ``"auto"`` is ``default_device()``.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"`` (autocast), or ``"auto"``.
        topk: the k of the top-k accuracies, at least 1; those above the number of classes are
            ignored.
        views: 1; 2, each image and its mirror image; or 10, the four corners and the centre, also
            mirrored, which needs a loader of the library whose ``resize`` exceeds its image size.
        progress: show a bar; where there is no terminal, one line at the end.

    Returns:
        The metrics; accuracy and confusion are None where they have no meaning, as in
        ``train_one_epoch``.

    Raises:
        ValueError: the loader yields no images; data has a class that the model does not have; a
            label is not a class, or not one that cross entropy takes; model or criterion return
            something else; a k is below 1; an unknown number of views, or one that the loader
            cannot yield.

    Example:
        >>> from alexnet_lib import AlexNet, build_loaders, evaluate
        >>> loaders = build_loaders("shapes", image_size=67, train_images=200)
        >>> metrics = evaluate(AlexNet(10, image_size=67), loaders.validation, progress=False)
        >>> metrics.confusion.shape, metrics.images
        ((10, 10), 20)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type_name(model)}; expected a torch.nn.Module")
    ranks_shown = _checked_topk(topk)
    on = _device_of(model, device)
    resolved = resolve_precision(precision, on)
    criterion = _checked_criterion(criterion)
    cross_entropy = criterion is F.cross_entropy
    totals = Totals(on, cross_entropy=cross_entropy)
    confusion = ranks = classes = None
    with (
        evaluation_mode(model),
        Progress("evaluating", length_of(loader), show=progress) as shown,
    ):
        for batch_views, batch in _batches_of_views(loader, views, on):
            count = len(batch.labels)
            with arithmetic(resolved, on):
                outputs = [checked_logits(model(view), count) for view in batch_views]
                logits = _mean_of_views(outputs)
                if classes is None:
                    outputs_count = logits.shape[1] if logits.ndim == 2 else 0
                    classes = ClassMap(model, loader, outputs_count, on)
                labels = classes.numbered(batch, logits, cross_entropy=cross_entropy)
                loss = checked_loss(criterion(logits, labels))
            shown.bar.update()
            if not are_classes(labels, logits) or batch.shares is False:
                totals.add(loss, None, count)
                continue
            num_classes = logits.shape[1]
            if confusion is None or ranks is None:
                confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=on)
                ranks = torch.zeros(num_classes, dtype=torch.int64, device=on)
            unfit = None
            if labels.ndim == 2:
                unfit, labels = None if batch.shares else no_shares(labels), labels.argmax(1)
            order = logits.topk(min(max((1, *ranks_shown)), num_classes)).indices
            hits = order == labels[:, None]
            totals.add(loss, hits[:, 0], count, unfit)
            cells = labels * num_classes + order[:, 0]
            confusion.scatter_add_(0, cells, torch.ones_like(cells))
            ranks[: hits.shape[1]] += hits.sum(0)
    if not totals.images or classes is None:
        raise ValueError(_NO_IMAGES)
    accuracy = totals.accuracy()
    if accuracy is None and views > 1:
        raise ValueError(
            f"views is {views}, but the labels are not classes of the images, whose views "
            "could be averaged; expected 1"
        )
    accuracies, counts = {}, None
    if accuracy is not None and confusion is not None and ranks is not None:
        counts = confusion.view(len(ranks), -1).cpu().numpy()
        within = ranks.cumsum(0).tolist()
        accuracies = {k: within[k - 1] / totals.images for k in ranks_shown if k <= len(within)}
    metrics = EvalMetrics(
        loss=float(totals.loss) / totals.images,
        accuracy=accuracy,
        topk_accuracy=accuracies,
        confusion=counts,
        classes=() if counts is None else classes.outputs,
        images=totals.images,
        seconds=totals.seconds,
    )
    if progress and shown.bar.disable:
        print(f"evaluating: {metrics}", file=sys.stderr)
    return metrics


def _checked_topk(topk: Sequence[int]) -> list[int]:
    items = None if isinstance(topk, str) or not isinstance(topk, Iterable) else [*topk]
    numbers = [as_integer(k) for k in items or ()]
    if items is None or any(k is None or k < 1 for k in numbers):
        raise ValueError(f"topk is {topk!r}; expected a sequence of integers of at least 1")
    return [k for k in numbers if k is not None]


def _mean_of_views(outputs: list[Tensor]) -> Tensor:
    """The logits of the mean of the views' softmax outputs."""
    if len(outputs) == 1:
        return outputs[0]
    if outputs[0].ndim != 2 or outputs[0].shape[1] < 2:
        raise ValueError(
            f"views is {len(outputs)}, but model returns shape {tuple(outputs[0].shape)}; expected "
            "(batch, classes) with at least 2 classes, or views of 1"
        )
    shares = torch.stack([output.float().softmax(1) for output in outputs])
    return shares.mean(0).clamp(min=torch.finfo(torch.float32).tiny).log()


def _batches_of_views(
    loader: Any, number: int, device: torch.device
) -> Iterator[tuple[Iterable[Tensor], Batch]]:
    """The views of each batch, on the device, and the batch."""
    if number == 1:
        yield from (([batch.images], batch) for batch in moved_batches(loader, device))
    elif isinstance(loader, ViewLoader):
        for batch_views, labels in loader.views(number):
            if len(labels):
                yield (view.to(device) for view in batch_views), labelled(labels, labels, device)
    elif number == 2:
        for batch in moved_batches(loader, device):
            yield [batch.images, batch.images.flip(-1)], batch
    else:
        raise ValueError(
            f"views is {number!r}, but loader is a {type_name(loader)}; expected 1 or 2, or "
            "for 10 views a loader of the library (build_loaders builds one from any data set)"
        )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and each of its modules back into the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
