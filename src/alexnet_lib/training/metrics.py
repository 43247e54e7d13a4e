"""Metrics of training and evaluation, and the sums that they are computed from."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NO_SHARES = (
    "labels are floating, but not all rows are shares of the classes (at least 0, with the sum 1), "
    "which cross entropy needs: for several labels or a regression, pass criterion=..."
)


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one pass of training.

    ``loss`` and ``accuracy`` (0 to 1) are means over the images as they were trained on, that is
    with dropout, augmentation and the weights of that step. ``accuracy`` is None where it has no
    meaning: the labels are neither classes nor their shares.
    """

    loss: float
    accuracy: float | None
    images: int
    seconds: float
    images_per_second: float

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}{_accuracy(self.accuracy)}, {self.images_per_second:.1f} images/s"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
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
    """One epoch of a run: its number from 1, the learning rate at its end, and its metrics."""

    epoch: int
    learning_rate: float
    train: EpochMetrics
    validation: EvalMetrics | None

    def to_dict(self) -> dict[str, Any]:
        """The line of ``history.jsonl``."""
        train, validation = self.train, self.validation
        return {
            "epoch": self.epoch,
            "learning_rate": self.learning_rate,
            "train": {
                "loss": train.loss,
                "accuracy": train.accuracy,
                "images_per_second": train.images_per_second,
            },
            "validation": validation and {"loss": validation.loss, "accuracy": validation.accuracy},
        }

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
        return cls(state["epoch"], state["learning_rate"], train, validation)


def _accuracy(value: float | None) -> str:
    return "" if value is None else f", accuracy {value:.1%}"


class Totals:
    """Sums over the images of a pass, kept on the device; ``compute`` waits for the device.

    With ``cross_entropy``, floating labels that are no shares of the classes are an error.
    """

    def __init__(self, device: torch.device, *, cross_entropy: bool = False) -> None:
        # Apple's MPS has no float64.
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.images = 0
        self.steps = 0
        self.has_accuracy = True
        self.loss = torch.zeros((), dtype=wide, device=device)
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.unfit = torch.zeros((), dtype=torch.int64, device=device)
        self.first_bad_step = torch.zeros((), dtype=torch.int64, device=device)
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
        bad = ~loss.isfinite() & (self.first_bad_step == 0)
        self.first_bad_step += bad * self.steps

    @property
    def seconds(self) -> float:
        """The time since the pass began."""
        return time.perf_counter() - self._started

    def accuracy(self) -> float | None:
        """The fraction of hits so far, or None; it waits for the device."""
        unfit = int(self.unfit)
        if unfit and self._cross_entropy:
            raise ValueError(NO_SHARES)
        return int(self.hits) / self.images if self.has_accuracy and not unfit else None

    def compute(self) -> EpochMetrics:
        """The means so far.

        Raises:
            FloatingPointError: a loss was not finite; the message names the step.
            ValueError: there were no images, or labels are no shares of the classes.
        """
        if step := int(self.first_bad_step):
            raise FloatingPointError(
                f"the loss of step {step} is not finite (NaN or infinite), so the weights since "
                "then are invalid: lower the learning rate, or clip with max_grad_norm"
            )
        if not self.images:
            raise ValueError("the epoch has no images; expected at least one")
        loss, accuracy, seconds = float(self.loss) / self.images, self.accuracy(), self.seconds
        return EpochMetrics(loss, accuracy, self.images, seconds, self.images / seconds)

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
_SUMS = ("loss", "hits", "unfit", "first_bad_step")
