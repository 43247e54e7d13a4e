"""One pass over a loader: training and evaluation of any model with any loader.

The loops wait for the device only to refresh the progress bar, every few seconds:
losses and hits are summed on the device. Means are over images, not over batches.
"""

import itertools
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet_lib import interrupts
from alexnet_lib.checks import (
    as_integer,
    check_choice,
    length_of,
    shown,
    type_name,
)
from alexnet_lib.devices import (
    Precision,
    memory_explained,
    model_explained,
    resolve_device,
    resolve_precision,
)
from alexnet_lib.text import progress_bar
from alexnet_lib.training.batches import (
    Batch,
    ClassMap,
    are_classes,
    check_order,
    data_names,
    labelled,
    moved_batches,
    no_shares,
    placed,
)
from alexnet_lib.training.distributed import Group, Place, check_summed, group_of
from alexnet_lib.training.metrics import (
    EpochMetrics,
    EvalMetrics,
    Totals,
    nonfinite_weight,
)
from alexnet_lib.training.step import (
    Criterion,
    OnNonfinite,
    TrainingStep,
    arithmetic,
    check_optimizer,
    checked_logits,
    checked_loss,
)

_NO_IMAGES = "loader yields no images; expected at least one"

# Seconds between two readings of the sums on the device.
_REFRESH_SECONDS = 2.0

# Sums of products with weights beyond this overflow float32 within a few layers.
_LARGE_WEIGHT = 1e9

# tqdm's own bars leave 80 columns no space for metrics.
_BAR = "{desc} |{bar}| {remaining} left{postfix}"
_ENDLESS_BAR = "{desc}: {n_fmt} steps in {elapsed}{postfix}"
# What they take with the shortest bar, besides the description and the metrics.
_BAR_COLUMNS = len(" |..| 1:00:00 left, ")

_MOST_RANKS = 1000  # in `topk`

# Of an evaluation, which has no steps.
_LOWER = "lower the batch size of the loader or its image size, or set precision to 'bfloat16'"


@runtime_checkable
class ViewLoader(Protocol):
    """A loader that can yield each image in several views."""

    def views(self, number: int) -> Iterable[tuple[Iterable[Tensor], Tensor]]:
        """For each batch, its views, and its labels."""
        ...


class Progress:
    """A progress bar over steps that shows the metrics so far every few seconds."""

    def __init__(self, description: str, total: int | None, *, show: bool, done: int = 0) -> None:
        self._looked, self._done = time.perf_counter(), done
        shape = _ENDLESS_BAR if total is None else _BAR
        options = {"desc": description, "total": total, "initial": done, "leave": False}
        self._bar: Any = None
        with suppress(Exception):
            # None hides it where there is no terminal.
            self._bar = progress_bar(disable=None if show else True, bar_format=shape, **options)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(Exception):
            self._bar.close()

    def describe(self, description: str) -> None:
        """Changes what stands before the bar."""
        with suppress(Exception):  # a bar that fails does not end what it shows
            self._bar.set_description_str(description, refresh=False)

    def update(self, count: int = 1) -> None:
        """Counts steps."""
        with suppress(Exception):
            self._bar.update(count)

    def advance(self, totals: Totals, done: int | None = None) -> None:
        """Counts a step; every few seconds it reads the sums, with the errors of ``compute``.

        ``done`` is the number of steps so far, where some were left out.
        """
        done = self._done + 1 if done is None else done
        self.update(done - self._done)
        self._done = done
        if time.perf_counter() - self._looked > _REFRESH_SECONDS:
            totals.check()
            if int(totals.skipped_images) < totals.images:
                line = str(totals.compute())
                with suppress(Exception):
                    self._bar.set_postfix_str(_fitting(line, self._bar.ncols, self._bar.desc))
            self._looked = time.perf_counter()


def _fitting(line: str, columns: int | None, description: str) -> str:
    """As many of the metrics in a line as leave the bar some columns of the terminal."""
    parts = line.split(", ")
    space = math.inf if columns is None else columns - len(description) - _BAR_COLUMNS
    while parts and len(", ".join(parts)) > space:
        parts.pop()
    return ", ".join(parts)


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
    on_nonfinite: OnNonfinite = "stop",
    progress: bool = True,
) -> EpochMetrics:
    """Trains a model on each batch of a loader once.

    With a share of the library's loaders (``loaders.share``), the processes of
    ``torch.distributed`` train together, as one process would on the whole batches: the model is
    that of the first one, gradients are summed over all images, and the metrics are those of all.
    ``DistributedDataParallel`` is not needed, and changes nothing.

    Args:
        model: maps images to logits ``(batch, classes)``; it is put into training mode. With a
            criterion of another kind, to whatever that takes, a row for each image.
        loader: yields ``(images, labels)``, or mappings with ``"image"`` and ``"label"`` (also
            ``"img"``, ``"pixel_values"``, ``"labels"``); tensors, arrays or lists. Labels are
            integers of any dtype ``(batch,)`` from 0, or floating ``(batch, classes)``, the share
            of each class. Batches without images are passed over.
        optimizer: holds the model's parameters.
        criterion: maps logits and labels to the batch's mean loss; None is cross entropy. With
            shares or ``accumulation_steps``, the loss of the whole batch is the mean of theirs over
            the images. One that divides by something else, as a ``nn.CrossEntropyLoss`` does with
            weights of classes or ``ignore_index``, is another one then: divide its sum by
            ``len(labels)``.
        device: where to train; the model and the batches are moved there. None is the model's
            device, ``"auto"`` is ``default_device()``.
        precision: ``"float32"``, ``"bfloat16"`` (autocast), ``"float16"`` (autocast, with scaled
            gradients) or ``"auto"``, as in ``RunOptions``.
        batch_scheduler: a learning-rate scheduler that is stepped after every step, also one that
            is skipped, or None.
        max_grad_norm: larger gradients are scaled down to this norm, above 0; None leaves them
            alone.
        accumulation_steps: batches in a step, at least 1: the gradients are those of one batch of
            all their images. The last step of the epoch may have fewer.
        on_nonfinite: what to do with a step whose loss or gradient is NaN or infinite (in float16,
            whose loss is): ``"stop"``, an error; or ``"skip"``, go on without it, at most ten
            times, with a warning at the end. The weights and the optimiser stay as they were in
            both. On CUDA, this is free with a fused optimiser (``fused=True``); for others, and on
            Apple's MPS, every step waits for the device.
        progress: show a bar while it lasts, where there is a terminal or a notebook.

    Returns:
        Mean loss and accuracy over the images, their number, and the time it took. The accuracy is
        None where it has no meaning: labels are neither classes nor their shares (at least 0, with
        the sum 1), or the model has fewer than two outputs.

    Raises:
        TypeError: ``optimizer`` is not an optimiser, or one whose step needs a closure;
            ``batch_scheduler`` is not a scheduler of steps; ``loader`` cannot be iterated.
        ValueError: an argument is out of its range; the loader yields no images; a label is not a
            class of the model, or not one that cross entropy takes; the optimiser holds no
            parameter of the model; model or criterion return something else; model and data have
            the same classes in another order; this is one of several processes, and nothing sums
            their gradients.
        FloatingPointError: a loss or a gradient was NaN or infinite; the message names the step and
            the layer. It comes at once on the CPU, else within seconds.
        MemoryError: memory does not suffice; the message says for which batch.

    Example:
        >>> import torch
        >>> from alexnet_lib import AlexNet, build_loaders, train_one_epoch
        >>> model = AlexNet(num_classes=10, image_size=67, seed=0)
        >>> loaders = build_loaders("shapes", image_size=67, train_images=40, batch_size=20)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        >>> train_one_epoch(model, loaders.train, optimizer, progress=False).images
        36
    """
    check_model(model)
    check_optimizer(optimizer)
    check_choice("progress", progress, (True, False))
    check_order(model, data_names(loader))
    check_summed(model, loader)
    on, group = _device_of(model, device), group_of(loader)
    group.same_weights(model)
    step = TrainingStep(
        model,
        optimizer,
        on,
        resolve_precision(precision, on),
        _checked_criterion(criterion),
        batch_scheduler,
        max_grad_norm,
        accumulation_steps,
        on_nonfinite,
        group,
    )
    model.train()
    totals = Totals(on, cross_entropy=step.cross_entropy)
    length = length_of(loader)
    steps = None if length is None else math.ceil(length / step.accumulation_steps)
    batches = moved_batches(loader, on, group.places(loader))
    with Progress("training", steps, show=progress) as bar:
        for batch in batches:
            others = itertools.islice(batches, step.accumulation_steps - 1)
            step.train_on(itertools.chain([batch], others), totals)
            bar.advance(totals)
            interrupts.check()
    if not totals.steps:
        raise ValueError(_NO_IMAGES)
    metrics = totals.compute()
    if (note := totals.skipped_note()) is not None:
        warnings.warn(note, stacklevel=2)
    return metrics


def check_model(model: object) -> None:
    """Raises a ``TypeError`` unless it is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type_name(model)}; expected a torch.nn.Module")


def check_has_weights(model: nn.Module) -> None:
    """Raises a ``ValueError`` if weights are on the meta device."""
    if any(tensor.is_meta for tensor in itertools.chain(model.parameters(), model.buffers())):
        raise ValueError(
            "model is on the device 'meta', which holds no numbers; expected one with weights"
        )


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
    check_has_weights(model)
    if device is None:
        first = next(itertools.chain(model.parameters(), model.buffers()), None)
        return torch.device("cpu") if first is None else first.device
    resolved = resolve_device(device)
    with model_explained(resolved):
        model.to(resolved)
    return resolved


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

    The model is evaluated in evaluation mode, and then put back into its former mode; when several
    threads evaluate it or predict with it, by the last of them (a thread that trains it at the same
    time is not kept apart from these). With several views, class and loss are those of the mean of
    their softmax outputs (paper, section 4.1).

    Where model and data have names of classes (``model.classes``, ``loader.dataset.classes``),
    labels are mapped to the model's classes by name, so that data may have fewer classes, or have
    them in another order. Otherwise they are mapped by number.

    With a share of the library's loaders (``loaders.share``), the processes of
    ``torch.distributed`` evaluate together: each calls this function, and gets the metrics of all
    images, each of which counts once.

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
        progress: show a bar while it lasts, where there is a terminal or a notebook.

    Returns:
        The metrics; accuracy and confusion are None where they have no meaning, as in
        ``train_one_epoch``.

    Raises:
        ValueError: the loader yields no images; data has a class that the model does not have; a
            label is not a class, or not one that cross entropy takes; model or criterion return
            something else; a k is below 1; an unknown number of views, or one that the loader
            cannot yield.
        FloatingPointError: outputs or losses are NaN or infinite; the message says of how many
            images, and which weight is.
        MemoryError: memory does not suffice; the message says for which batch.

    Example:
        >>> from alexnet_lib import AlexNet, build_loaders, evaluate
        >>> loaders = build_loaders("shapes", image_size=67, train_images=200)
        >>> metrics = evaluate(AlexNet(10, image_size=67), loaders.validation, progress=False)
        >>> metrics.confusion.shape, metrics.images
        ((10, 10), 20)
    """
    group = group_of(loader)
    return evaluate_together(
        model,
        loader,
        group,
        group.places(loader),
        criterion=criterion,
        device=device,
        precision=precision,
        topk=topk,
        views=views,
        progress=progress,
    )


# Not inference_mode, which is no faster here (0.226 s both, for 128 images at 227 pixels): tensors
# created in it cannot be trained with later: neither images that a data set keeps, nor
# parameters and tables that a model creates in its first pass.
@torch.no_grad()
def evaluate_together(
    model: nn.Module,
    loader: Iterable[Any],
    group: Group,
    place: Callable[[int], Place],
    *,
    criterion: Criterion | None = None,
    device: torch.device | str | None = None,
    precision: str = "float32",
    topk: Sequence[int] = (1, 5),
    views: int = 1,
    progress: bool = True,
) -> EvalMetrics:
    """``evaluate`` for any iterable of shares of batches, whose places in these are given."""
    check_model(model)
    check_choice("progress", progress, (True, False))
    if (number := as_integer(views)) is None:
        raise ValueError(f"views is {shown(views)}; expected 1, 2 or 10")
    ranks_shown = _checked_topk(topk)
    on = _device_of(model, device)
    resolved = resolve_precision(precision, on)
    criterion = _checked_criterion(criterion)
    cross_entropy = criterion is F.cross_entropy
    totals, counts = Totals(on, cross_entropy=cross_entropy), _Counts(on, max((1, *ranks_shown)))
    classes = None
    with (
        evaluation_mode(model),
        memory_explained("evaluation", _LOWER) as shapes,
        Progress("evaluating", length_of(loader), show=progress) as bar,
    ):
        for batch_views, batch in _batches_of_views(loader, number, on, place):
            interrupts.check()
            count = len(batch.labels)
            outputs = []
            with arithmetic(resolved, on):
                for view in batch_views:
                    shapes.append(view.shape)
                    outputs.append(checked_logits(model(view), count))
                logits = _mean_of_views(outputs)
                if classes is None:
                    outputs_count = logits.shape[1] if logits.ndim == 2 else 0
                    classes = ClassMap(model, loader, outputs_count, on)
                labels = classes.numbered(batch, logits, cross_entropy=cross_entropy)
                loss = checked_loss(criterion(logits, labels))
            bar.update()
            classified = are_classes(labels, logits) and batch.shares is not False
            here = batch.place
            logits, labels = logits[: here.images], labels[: here.images]
            counts.add_faults(logits, loss, here, classified=classified)
            hits = unfit = None
            if classified and labels.ndim == 2:
                unfit, labels = None if batch.shares else no_shares(labels), labels.argmax(1)
            if classified:
                hits = counts.add(logits, labels)
            loss, hits, unfit = group.whole_batch(loss, hits, unfit, here)
            totals.add(loss, hits, here.whole, unfit)
    counts.sum_over(group)
    if not totals.images or classes is None:
        raise ValueError(_NO_IMAGES)
    accuracy = totals.accuracy()
    if accuracy is None and number > 1:
        raise ValueError(
            f"views is {number}, but the labels are not classes of the images, whose views "
            "could be averaged; expected 1"
        )
    counts.check(model, resolved)
    confusion, within = (None, []) if accuracy is None else counts.read()
    metrics = EvalMetrics(
        loss=float(totals.loss) / totals.images,
        accuracy=accuracy,
        topk_accuracy={k: within[k - 1] / totals.images for k in ranks_shown if k <= len(within)},
        confusion=confusion,
        classes=() if confusion is None else classes.outputs,
        images=totals.images,
        seconds=totals.seconds,
    )
    return metrics


class _Counts:
    """What an evaluation counts on the device: confusions, ranks, and what is not finite."""

    def __init__(self, device: torch.device, most: int) -> None:
        self._most = most
        self._confusion = self._ranks = torch.empty(0)
        self._images = 0
        self._bad = torch.zeros((), dtype=torch.int64, device=device)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Counts a batch whose labels are classes: for each image, whether it is a hit."""
        classes = logits.shape[1]
        if not len(self._ranks):
            self._confusion = torch.zeros(classes**2, dtype=torch.int64, device=logits.device)
            self._ranks = torch.zeros(classes, dtype=torch.int64, device=logits.device)
        order = logits.topk(min(self._most, classes)).indices
        hits = order == labels[:, None]
        cells = labels * classes + order[:, 0]
        self._confusion.scatter_add_(0, cells, torch.ones_like(cells))
        self._ranks[: hits.shape[1]] += hits.sum(0)
        return hits[:, 0]

    def read(self) -> tuple[np.ndarray, list[int]]:
        """The confusion matrix, and the number of images whose class is within each rank."""
        return self._confusion.view(len(self._ranks), -1).cpu().numpy(), self._ranks.cumsum(
            0
        ).tolist()

    def sum_over(self, group: Group) -> None:
        """Counts what all processes have counted."""
        if group.size == 1:  # nothing is read from the device
            return
        if len(self._ranks):
            group.sum_(self._confusion, self._ranks)
        group.sum_(self._bad)
        firsts = [first for first in group.gather(int(self._first_bad)) if first >= 0]
        self._first_bad.fill_(min(firsts, default=-1))

    def add_faults(self, logits: Tensor, loss: Tensor, place: Place, *, classified: bool) -> None:
        """Counts the images of a batch whose outputs, or whose loss, are not finite."""
        if not place.images:
            self._images += place.whole
            return
        bad = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if classified:  # else what an infinite output means is up to the criterion
            bad = ~finite_softmax(logits)
        bad = bad | ~(loss.isfinite() | bad.any())
        first = self._images + place.before + bad.int().argmax()
        self._first_bad = torch.where((self._first_bad < 0) & bad.any(), first, self._first_bad)
        self._bad += bad.sum()
        self._images += place.whole

    def check(self, model: nn.Module, precision: Precision) -> None:
        """Raises a ``FloatingPointError`` if any were not finite; it waits for the device."""
        if count := int(self._bad):
            raise FloatingPointError(
                f"the outputs of model or their losses are NaN or infinite for {count} of "
                f"{self._images} images, the first of them image {int(self._first_bad)}: "
                f"{nonfinite_reason(model, precision)}"
            )


def finite_softmax(logits: Tensor) -> Tensor:
    """For each row of logits, whether its softmax has a meaning."""
    return logits.float().logsumexp(1).isfinite()


def nonfinite_reason(model: nn.Module, precision: Precision = "float32") -> str:
    """Why outputs are not finite, as far as the weights and the precision tell."""
    if (weight := nonfinite_weight(model)) is not None:
        return f"{weight}; expected weights of a run that did not diverge"
    half = precision == "float16" or any(p.dtype == torch.float16 for p in model.parameters())
    if half:
        return (
            "numbers above 65504 are infinite in float16; expected precision 'bfloat16' or "
            "'float32'"
        )
    largest = max(
        (float(p.detach().abs().max()) for p in model.parameters() if p.numel()), default=0
    )
    if largest > _LARGE_WEIGHT:
        return (
            f"weights are as large as {largest:.1e}; expected weights of a run that did not diverge"
        )
    return "the weights are finite; expected images without NaN or infinite values"


def _checked_topk(topk: Sequence[int]) -> list[int]:
    length = None if isinstance(topk, str) else length_of(topk)
    items = None if length is None or length > _MOST_RANKS else [*topk]
    numbers = [as_integer(k) for k in items or ()]
    if items is None or any(k is None or k < 1 for k in numbers):
        raise ValueError(f"topk is {shown(topk)}; expected a sequence of integers of at least 1")
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
    loader: Any, number: int, device: torch.device, place: Callable[[int], Place]
) -> Iterator[tuple[Iterable[Tensor], Batch]]:
    """The views of each batch, on the device, and the batch."""
    if number == 1:
        yield from (([batch.images], batch) for batch in moved_batches(loader, device, place))
    elif isinstance(loader, ViewLoader):
        for batch_views, labels in loader.views(number):
            here = place(len(labels))
            if here.whole:
                views = (placed(view.to(device), labels, here)[0] for view in batch_views)
                yield views, labelled(*placed(labels, labels, here), device, here)
    elif number == 2:
        for batch in moved_batches(loader, device, place):
            yield [batch.images, batch.images.flip(-1)], batch
    else:
        raise ValueError(
            f"views is {number!r}, but loader is a {type_name(loader)}; expected 1 or 2, or "
            "for 10 views a loader of the library (build_loaders builds one from any data set)"
        )


# The modules that are being evaluated, by their id: how often, and the mode that they had before.
_evaluated: dict[int, tuple[int, bool]] = {}
# One that a thread may take twice: a generator that is given up may end anywhere.
_evaluated_lock = threading.RLock()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and each of its modules back into the mode it had.

    Where several blocks do so at the same time, in threads too, the last one puts it back.
    """
    modules = [*model.modules()]
    with _evaluated_lock:
        for module in modules:
            users, mode = _evaluated.get(id(module), (0, module.training))
            _evaluated[id(module)] = users + 1, mode
    try:
        model.eval()
        yield
    finally:
        with _evaluated_lock:
            for module in modules:
                users, mode = _evaluated.pop(id(module))
                if users > 1:
                    _evaluated[id(module)] = users - 1, mode
                else:
                    module.training = mode
