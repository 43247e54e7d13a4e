"""One pass over a loader: training and evaluation of any model with any loader.

The loops wait for the device only to refresh the progress bar, every few seconds:
losses and hits are summed on the device. Means are over images, not over batches.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from alexnet_lib.devices import Precision, resolve_device, resolve_precision
from alexnet_lib.kernels.linear import substituted
from alexnet_lib.training.metrics import EpochMetrics, EvalMetrics, Totals

Criterion = Callable[[Tensor, Tensor], Tensor]

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
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with autocast, substituted(device):
        yield


@dataclass(frozen=True)
class TrainingStep:
    """A step of training on one batch; the fields are the arguments of ``train_one_epoch``."""

    model: nn.Module
    optimizer: Optimizer
    device: torch.device
    precision: Precision = "float32"
    criterion: Criterion = F.cross_entropy
    batch_scheduler: Any = None
    max_grad_norm: float | None = None

    def __call__(self, images: Tensor, labels: Tensor, totals: Totals) -> None:
        """Trains on a batch on the device, and adds it to the sums."""
        self.optimizer.zero_grad(set_to_none=True)
        with arithmetic(self.precision, self.device):
            logits = self.model(images)
            _check_labels(labels, logits, shares=True)
            loss = self.criterion(logits, labels)
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        if self.batch_scheduler is not None:
            self.batch_scheduler.step()
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        totals.add(loss, logits.detach().argmax(1) == classes, len(labels))


class Progress:
    """A progress bar over steps that shows the metrics so far every few seconds."""

    def __init__(self, description: str, total: int | None, *, show: bool, done: int = 0) -> None:
        self._looked = time.perf_counter()
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

    def advance(self, totals: Totals) -> None:
        """Counts a step; every few seconds it reads the sums and raises if a loss is not finite."""
        self.bar.update()
        if time.perf_counter() - self._looked > _REFRESH_SECONDS:
            self.bar.set_postfix_str(str(totals.compute()))
            self._looked = time.perf_counter()


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    optimizer: Optimizer,
    *,
    criterion: Criterion | None = None,
    device: torch.device | str | None = None,
    precision: str = "float32",
    batch_scheduler: Any = None,
    max_grad_norm: float | None = None,
    progress: bool = True,
) -> EpochMetrics:
    """Trains a model on each batch of a loader once.

    Args:
        model: maps images to logits ``(batch, classes)``; it is put into training mode.
        loader: yields ``(images, labels)``, labels int64 ``(batch,)`` from 0.
        optimizer: holds the model's parameters.
        criterion: maps logits and labels to the batch's mean loss; None is cross entropy.
        device: where to train; the model and the batches are moved there. None is the model's
            device, ``"auto"`` is ``default_device()``.
        precision: ``"float32"``, ``"bfloat16"`` (autocast) or ``"auto"``, as in ``RunOptions``.
        batch_scheduler: a learning-rate scheduler that is stepped after every batch, or None.
        max_grad_norm: larger gradients are scaled down to this norm; None leaves them alone.
        progress: show a bar; where there is no terminal, one line at the end.

    Returns:
        Mean loss and accuracy over the images, their number, and the time it took.

    Raises:
        TypeError: ``optimizer`` is not an optimiser.
        ValueError: the loader is empty; a label is not a class of the model.
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
    if not hasattr(optimizer, "step") or not hasattr(optimizer, "zero_grad"):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer. The "
            "order is train_one_epoch(model, loader, optimizer, criterion=...)"
        )
    on = _device_of(model, device)
    step = TrainingStep(
        model,
        optimizer,
        on,
        resolve_precision(precision, on),
        criterion or F.cross_entropy,
        batch_scheduler,
        max_grad_norm,
    )
    model.train()
    totals = Totals(on)
    with Progress("training", _length(loader), show=progress) as shown:
        for images, labels in moved_batches(loader, on):
            step(images, labels, totals)
            shown.advance(totals)
    if not totals.steps:
        raise ValueError("loader yields no batches; expected at least one")
    metrics = totals.compute()
    if progress and shown.bar.disable:
        print(f"training: {metrics}", file=sys.stderr)
    return metrics


def moved_batches(
    loader: Iterable[Sequence[Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of any loader, on a device."""
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"loader yields a {type(batch).__name__}; expected pairs (images, labels)"
            )
        images, labels = batch
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _check_labels(labels: Tensor, logits: Tensor, *, shares: bool) -> None:
    if labels.ndim == 2 and shares:
        if labels.shape != logits.shape or not labels.is_floating_point():
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected int64 "
                f"(batch,), or the share of each class, floating {tuple(logits.shape)}"
            )
        return
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected int64 (batch,)")
    # On a GPU this check would wait for the device; the library's loaders have done it already.
    if labels.device.type == "cpu" and len(labels):
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(
                f"labels run from {low} to {high}, but the model has {logits.shape[1]} classes; "
                f"expected 0 to {logits.shape[1] - 1}"
            )


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
    loader: Iterable[Sequence[Tensor]],
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

    Args:
        model: maps images to logits ``(batch, classes)``.
        loader: yields ``(images, labels)``, labels int64 ``(batch,)`` from 0.
        criterion: maps logits and labels to the batch's mean loss; None is cross entropy.
        device: where to evaluate; the model is moved there and stays there. None is the model's
            device, ``"auto"`` is ``default_device()``.
        precision: ``"float32"``, ``"bfloat16"`` (autocast) or ``"auto"``.
        topk: the k of the top-k accuracies, at least 1; those above the number of classes are
            ignored.
        views: 1; 2, each image and its mirror image; or 10, the four corners and the centre, also
            mirrored, which needs a loader of the library whose ``resize`` exceeds its image size.
        progress: show a bar; where there is no terminal, one line at the end.

    Raises:
        ValueError: the loader is empty; a label is not a class of the model; a k is below 1;
            an unknown number of views, or one that the loader cannot yield.

    Example:
        >>> from alexnet_lib import AlexNet, build_loaders, evaluate
        >>> loaders = build_loaders("shapes", image_size=67, train_images=200)
        >>> metrics = evaluate(AlexNet(10, image_size=67), loaders.validation, progress=False)
        >>> metrics.confusion.shape, metrics.images
        ((10, 10), 20)
    """
    if isinstance(topk, int) or any(not isinstance(k, int) or k < 1 for k in topk):
        raise ValueError(f"topk is {topk!r}; expected a sequence of integers of at least 1")
    on = _device_of(model, device)
    resolved = resolve_precision(precision, on)
    criterion = criterion or F.cross_entropy
    totals = Totals(on)
    confusion = ranks = None
    with evaluation_mode(model), Progress("evaluating", _length(loader), show=progress) as shown:
        for batch_views, labels in _batches_of_views(loader, views, on):
            with arithmetic(resolved, on):
                outputs = [model(view) for view in batch_views]
                logits = outputs[0]
                if len(outputs) > 1:
                    shares = torch.stack([output.float().softmax(1) for output in outputs])
                    logits = shares.mean(0).clamp(min=torch.finfo(torch.float32).tiny).log()
                _check_labels(labels, logits, shares=False)
                loss = criterion(logits, labels)
            num_classes = logits.shape[1]
            if confusion is None or ranks is None:
                confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=on)
                ranks = torch.zeros(num_classes, dtype=torch.int64, device=on)
            order = logits.topk(min(max((1, *topk)), num_classes)).indices
            hits = order == labels[:, None]
            totals.add(loss, hits[:, 0], len(labels))
            cells = labels * num_classes + order[:, 0]
            confusion.scatter_add_(0, cells, torch.ones_like(cells))
            ranks[: hits.shape[1]] += hits.sum(0)
            shown.bar.update()
    if confusion is None or ranks is None:
        raise ValueError("loader yields no batches; expected at least one")
    num_classes = len(ranks)
    hits_within = ranks.cumsum(0).tolist()
    metrics = EvalMetrics(
        loss=float(totals.loss) / totals.images,
        accuracy=hits_within[0] / totals.images,
        topk_accuracy={k: hits_within[k - 1] / totals.images for k in topk if k <= num_classes},
        confusion=confusion.view(num_classes, num_classes).cpu().numpy(),
        classes=_class_names(model, loader, num_classes),
        images=totals.images,
        seconds=totals.seconds,
    )
    if progress and shown.bar.disable:
        print(f"evaluating: {metrics}", file=sys.stderr)
    return metrics


def _batches_of_views(
    loader: Any, number: int, device: torch.device
) -> Iterator[tuple[Iterable[Tensor], Tensor]]:
    """The views of each batch, on the device, and its labels."""
    if number == 1:
        yield from (([images], labels) for images, labels in moved_batches(loader, device))
    elif isinstance(loader, ViewLoader):
        for batch_views, labels in loader.views(number):
            yield (view.to(device) for view in batch_views), labels.to(device)
    elif number == 2:
        for images, labels in moved_batches(loader, device):
            yield [images, images.flip(-1)], labels
    else:
        raise ValueError(
            f"views is {number!r}, but loader is a {type(loader).__name__}; expected 1 or 2, or "
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


def _length(loader: Any) -> int | None:
    return len(loader) if hasattr(loader, "__len__") else None


def _class_names(model: Any, loader: Any, num_classes: int) -> tuple[str, ...]:
    """The model's names, else those of the loader's data set, else the numbers."""
    for owner in (model, getattr(loader, "dataset", None)):
        names = getattr(owner, "classes", None)
        if names is not None and len(names) == num_classes:
            return tuple(map(str, names))
    return tuple(map(str, range(num_classes)))
