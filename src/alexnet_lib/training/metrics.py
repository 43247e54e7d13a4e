"""Metrics of training and evaluation, and the sums that they are computed from."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alexnet_lib.text import html_table, printable

NO_SHARES = (
    "labels are floating, but not all rows are shares of the classes (at least 0, with the sum 1), "
    "which cross entropy needs: for several labels or a regression, pass criterion=..."
)

# Steps of an epoch that may be skipped because a loss or a gradient is not finite. A healthy run
# has none; one whose weights are spoiled would skip every step to its end.
NONFINITE_LIMIT = 10

# A training loss this near to that of guessing, as a fraction of it, is reported. The first epoch
# of healthy runs on CIFAR-10 came to 0.74 to 0.81 of it; those of the tutorial's recipe, which
# learns nothing, to 1.0000 (`benchmarks/results/runs`).
_STUCK = 0.01


@dataclass(frozen=True, repr=False)
class EpochMetrics:
    """Metrics of one pass of training.

    ``loss`` and ``accuracy`` (0 to 1) are means over the images as they were trained on, that is
    with dropout, augmentation and the weights of that step. ``accuracy`` is None where it has no
    meaning: the labels are neither classes nor their shares. ``skipped_steps`` are those that were
    left out because their loss or a gradient was not finite; their images count nowhere.
    """

    loss: float
    accuracy: float | None
    images: int
    seconds: float
    images_per_second: float
    skipped_steps: int = 0

    def __str__(self) -> str:
        skipped = f", {self.skipped_steps} steps skipped" if self.skipped_steps else ""
        return (
            f"loss {self.loss:.4f}{_accuracy(self.accuracy)}, {self.images_per_second:.1f} "
            f"images/s{skipped}"
        )

    def __repr__(self) -> str:
        return f"EpochMetrics({self})"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False, repr=False)
class EvalMetrics:
    """Metrics of an evaluation; accuracies are fractions from 0 to 1.

    ``topk_accuracy`` maps k to the fraction of images whose class is among the k most likely.
    ``confusion[i, j]`` counts the images of class i that were classified as class j. ``classes``
    names the classes.

    Where an accuracy has no meaning, because the labels are neither classes nor their shares, it is
    None, and so are ``confusion`` and ``per_class_accuracy``; the others are empty.
    """

    loss: float
    accuracy: float | None
    topk_accuracy: dict[int, float]
    confusion: np.ndarray | None
    classes: tuple[str, ...]
    images: int
    seconds: float

    @property
    def per_class_accuracy(self) -> np.ndarray | None:
        """The accuracy on the images of each class; NaN for a class without images."""
        if self.confusion is None:
            return None
        with np.errstate(invalid="ignore"):
            return np.asarray(self.confusion.diagonal() / self.confusion.sum(1))

    def __str__(self) -> str:
        others = "".join(f", top-{k} {a:.1%}" for k, a in self.topk_accuracy.items() if k > 1)
        return f"loss {self.loss:.4f}{_accuracy(self.accuracy)}{others} ({self.images:,} images)"

    def __repr__(self) -> str:
        return f"EvalMetrics({self})"

    def _repr_html_(self) -> str:
        return html_table([("class", "accuracy", ""), *self.class_lines()], str(self))

    def class_lines(self) -> list[tuple[str, str, str]]:
        """For each class its name, its accuracy and its most frequent confusion, as text."""
        if self.confusion is None or self.per_class_accuracy is None:
            return []
        lines, names = [], [*map(printable, self.classes)]
        for i, (name, accuracy) in enumerate(zip(names, self.per_class_accuracy, strict=True)):
            mistakes = self.confusion[i].copy()
            mistakes[i] = 0
            worst = int(mistakes.argmax())
            confused = f"most often confused with {names[worst]} ({mistakes[worst]})"
            share = "no images" if math.isnan(accuracy) else f"{accuracy:.1%}"
            lines.append((name, share, confused if mistakes.any() else ""))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that JSON can hold (None for a class without images)."""
        of_classes = self.per_class_accuracy
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "topk_accuracy": {str(k): value for k, value in self.topk_accuracy.items()},
            "per_class_accuracy": None
            if of_classes is None
            else {
                name: None if math.isnan(value) else value
                for name, value in zip(self.classes, of_classes.tolist(), strict=True)
            },
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "images": self.images,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a run: its number from 1, the learning rate at its end, and its metrics.

    ``image_size`` is the side of its images in pixels, of training and validation.
    """

    epoch: int
    learning_rate: float
    train: EpochMetrics
    validation: EvalMetrics | None
    image_size: int

    def to_dict(self) -> dict[str, Any]:
        """The line of ``history.jsonl``."""
        train, validation = self.train, self.validation
        return {
            "epoch": self.epoch,
            "learning_rate": self.learning_rate,
            "image_size": self.image_size,
            "train": {
                "loss": train.loss,
                "accuracy": train.accuracy,
                "images_per_second": train.images_per_second,
                **({"skipped_steps": train.skipped_steps} if train.skipped_steps else {}),
            },
            "validation": validation and {"loss": validation.loss, "accuracy": validation.accuracy},
        }

    def cells(self) -> tuple[str, ...]:
        """The line of the table of a ``Run``."""
        return (
            str(self.epoch),
            f"{self.learning_rate:.3g}",
            str(self.image_size),
            *_loss_and_accuracy(self.train),
            *(("", "") if self.validation is None else _loss_and_accuracy(self.validation)),
            f"{self.train.images_per_second:.1f}",
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "EpochRecord":
        """The record that a run's state holds as ``asdict`` gives it."""
        validation = state["validation"]
        if validation is not None:
            confusion = validation["confusion"]
            confusion = None if confusion is None else confusion.numpy()
            names = tuple(validation["classes"])
            validation = EvalMetrics(**{**validation, "confusion": confusion, "classes": names})
        train = EpochMetrics(**state["train"])
        rate, image_size = state["learning_rate"], state["image_size"]
        return cls(state["epoch"], rate, train, validation, image_size)


def _loss_and_accuracy(metrics: EpochMetrics | EvalMetrics) -> tuple[str, str]:
    accuracy = "" if metrics.accuracy is None else f"{metrics.accuracy:.1%}"
    return f"{metrics.loss:.4f}", accuracy


def _accuracy(value: float | None) -> str:
    return "" if value is None else f", accuracy {value:.1%}"


def stuck_note(record: EpochRecord, classes: int) -> str | None:
    """A line for an epoch whose training loss is that of guessing, ln(classes); else None."""
    if classes < 2:
        return None
    chance = math.log(classes)
    if abs(record.train.loss - chance) > _STUCK * chance:
        return None
    return (
        f"the training loss of epoch {record.epoch} is {record.train.loss:.4f}, that of guessing "
        f"among {classes} classes ({chance:.4f}): nothing was learned; `alexnet-lib doctor` with "
        "the same data and recipe (in Python diagnose) looks for the reason"
    )


def nonfinite_weight(model: nn.Module) -> str | None:
    """For example ``"the weight features.conv1.weight is NaN or infinite"``; None if all are good.

    It waits for the device.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            return f"the weight {plain_name(name)} is NaN or infinite"
    for name, buffer in model.named_buffers():
        if bool(buffer.isnan().any()):  # infinite ones may be masks
            return f"the buffer {plain_name(name)} is NaN"
    return None


def plain_name(name: str) -> str:
    """The name of a parameter without what ``torch.compile`` and ``DataParallel`` put before it."""
    return name.removeprefix("_orig_mod.").removeprefix("module.")


class Totals:
    """Sums over the images of a pass, kept on the device; ``compute`` waits for the device.

    With ``cross_entropy``, floating labels that are no shares of the classes are an error.

    Attributes:
        allowed: how many steps may be skipped.
        trained: the names of the parameters that the faults of ``end_step`` stand for.
        model: looked at for weights that are not finite when there is an error to explain.
    """

    def __init__(self, device: torch.device, *, cross_entropy: bool = False) -> None:
        # Apple's MPS has no float64.
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.images = 0
        self.steps = 0
        self.has_accuracy = True
        self.loss = torch.zeros((), dtype=wide, device=device)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        self.hits, self.unfit = zero.clone(), zero.clone()
        self.skipped, self.skipped_images = zero.clone(), zero.clone()
        self.first_bad_step, self.first_fault = zero.clone(), zero.clone()
        self.allowed = 0
        self.trained: tuple[str, ...] = ()
        self.model: nn.Module | None = None
        self._cross_entropy = cross_entropy
        self._started = time.perf_counter()

    @torch.no_grad()
    def add(
        self,
        loss: Tensor,
        hits: Tensor | None,
        images: int,
        unfit: Tensor | None = None,
        *,
        begins: bool = True,
    ) -> None:
        """Adds a batch.

        Args:
            loss: its mean loss.
            hits: for each image, whether it was classified correctly; None has no meaning.
            images: their number.
            unfit: for each image, whether its label is no share of the classes; None: it is one.
            begins: whether it is the first batch of a step.
        """
        self.steps += begins
        self.images += images
        self.loss += loss.detach() * images
        if hits is None:
            self.has_accuracy = False
        else:
            self.hits += hits.sum()
        if unfit is not None:
            self.unfit += unfit.sum()

    def mark(self) -> tuple[int, Tensor, Tensor]:
        """What ``end_step`` goes back to if the step that now begins is skipped."""
        return self.images, self.loss.clone(), self.hits.clone()

    @torch.no_grad()
    def end_step(self, mark: tuple[int, Tensor, Tensor], fault: Tensor) -> None:
        """Ends a step; if it has a fault, its images count in no mean.

        Args:
            mark: that of its begin.
            fault: on the device: 0 for none, 1 if a loss was not finite, 2 and more for the
                gradient of the first parameter of ``trained``, the second, ....
        """
        images, loss, hits = mark
        skipped = fault > 0
        self.loss = torch.where(skipped, loss, self.loss)
        self.hits = torch.where(skipped, hits, self.hits)
        first = skipped & (self.skipped == 0)
        self.first_bad_step += first * self.steps
        self.first_fault += first * fault
        self.skipped += skipped
        self.skipped_images += skipped * (self.images - images)

    @property
    def seconds(self) -> float:
        """The time since the pass began."""
        return time.perf_counter() - self._started

    def leave_out(self, seconds: float) -> None:
        """Takes time off that was spent on something else than training."""
        self._started += seconds

    def accuracy(self) -> float | None:
        """The fraction of hits so far, or None; it waits for the device."""
        unfit = int(self.unfit)
        if unfit and self._cross_entropy:
            raise ValueError(NO_SHARES)
        if not self.has_accuracy or unfit:
            return None
        return int(self.hits) / (self.images - int(self.skipped_images))

    def check(self) -> None:
        """Raises a ``FloatingPointError`` if more steps than allowed were skipped."""
        skipped = int(self.skipped)
        if skipped <= self.allowed:
            return
        fault = int(self.first_fault)
        what = "loss of" if fault < 2 else f"gradient of {self.trained[fault - 2]} in"
        error = f"the {what} step {int(self.first_bad_step)} is not finite (NaN or infinite)"
        if self.allowed:
            error = f"{skipped} steps were skipped, at most {self.allowed} may be: first, {error}"
        weight = None if self.model is None else nonfinite_weight(self.model)
        reason = "" if weight is None else f", and {weight}"
        raise FloatingPointError(
            f"{error}{reason}; it did not change the weights: lower the learning rate, or clip "
            "with max_grad_norm"
        )

    def skipped_note(self) -> str | None:
        """A line about the skipped steps, or None; it waits for the device."""
        if not (skipped := int(self.skipped)):
            return None
        fault = int(self.first_fault)
        what = "the loss" if fault < 2 else f"the gradient of {self.trained[fault - 2]}"
        return (
            f"{skipped} of {self.steps} steps were skipped, since a loss or a gradient was NaN or "
            f"infinite: first step {int(self.first_bad_step)}, {what}"
        )

    def compute(self) -> EpochMetrics:
        """The means so far.

        Raises:
            FloatingPointError: more steps than ``allowed`` were skipped, or all of them; the
                message names the first and its layer.
            ValueError: there were no images, or labels are no shares of the classes.
        """
        if not self.images:
            raise ValueError("the epoch has no images; expected at least one")
        if int(self.unfit) and self._cross_entropy:  # what makes the loss NaN too
            raise ValueError(NO_SHARES)
        self.check()
        images = self.images - int(self.skipped_images)
        if not images:
            raise FloatingPointError(f"no step could be taken: {self.skipped_note()}")
        accuracy, seconds = self.accuracy(), self.seconds
        return EpochMetrics(
            float(self.loss) / images,
            accuracy,
            images,
            seconds,
            images / seconds,
            int(self.skipped),
        )

    def state(self) -> dict[str, Any]:
        """The sums as plain data and tensors, which ``set_state`` takes."""
        return {name: getattr(self, name) for name in (*_COUNTS, "seconds", *_SUMS)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from the sums of ``state``."""
        for name in _COUNTS:
            setattr(self, name, state[name])
        self._started = time.perf_counter() - state["seconds"]
        for name in _SUMS:
            getattr(self, name).copy_(state[name])


_COUNTS = ("images", "steps", "has_accuracy")
_SUMS = (
    "loss",
    "hits",
    "unfit",
    "skipped",
    "skipped_images",
    "first_bad_step",
    "first_fault",
)
