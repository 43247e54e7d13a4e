"""What a pass of training or evaluation gives, and the sums it is made of."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochMetrics:
    """What one pass of training gave.

    ``loss`` and ``accuracy`` (0 to 1) are means over the images as they were trained on, so with
    dropout, augmentation and the weights of their moment.
    """

    loss: float
    accuracy: float
    images: int
    seconds: float
    images_per_second: float

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}, accuracy {self.accuracy:.1%}, "
            f"{self.images_per_second:.1f} images/s"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class EvalMetrics:
    """What an evaluation gave; accuracies are shares from 0 to 1.

    ``topk_accuracy`` maps k to the share of images whose class is among the k likeliest.
    ``confusion[i, j]`` counts the images of class i taken for class j. ``per_class_accuracy`` is
    NaN for a class without images. ``classes`` names the classes.
    """

    loss: float
    accuracy: float
    topk_accuracy: dict[int, float]
    per_class_accuracy: np.ndarray
    confusion: np.ndarray
    classes: tuple[str, ...]
    images: int
    seconds: float

    def __str__(self) -> str:
        others = "".join(f", top-{k} {a:.1%}" for k, a in self.topk_accuracy.items() if k > 1)
        return (
            f"loss {self.loss:.4f}, accuracy {self.accuracy:.1%}{others} ({self.images:,} images)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that JSON can hold (None for a class without images)."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "topk_accuracy": {str(k): value for k, value in self.topk_accuracy.items()},
            "per_class_accuracy": {
                name: None if math.isnan(value) else value
                for name, value in zip(self.classes, self.per_class_accuracy.tolist(), strict=True)
            },
            "confusion": self.confusion.tolist(),
            "images": self.images,
            "seconds": self.seconds,
        }


class Totals:
    """Sums over the images of a pass, kept on the device; reading one waits for the device."""

    def __init__(self, device: torch.device) -> None:
        # Apple's MPS has no float64.
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.images = 0
        self.steps = 0
        self._loss = torch.zeros((), dtype=wide, device=device)
        self._hits = torch.zeros((), dtype=torch.int64, device=device)
        self._first_bad_step = torch.zeros((), dtype=torch.int64, device=device)
        self._started = time.perf_counter()

    @torch.no_grad()
    def add(self, loss: Tensor, hits: Tensor, images: int) -> None:
        """Adds a batch: its mean loss, and for each image whether it was recognised."""
        self.steps += 1
        self.images += images
        self._loss += loss.detach() * images
        self._hits += hits.sum()
        bad = ~loss.isfinite() & (self._first_bad_step == 0)
        self._first_bad_step += bad * self.steps

    def seconds(self) -> float:
        """The time since the pass began."""
        return time.perf_counter() - self._started

    def mean_loss(self) -> float:
        """The mean over the images so far, finite or not."""
        return float(self._loss) / self.images

    def metrics(self) -> EpochMetrics:
        """The means so far.

        Raises:
            FloatingPointError: a loss was not finite; the message names the step.
        """
        step = int(self._first_bad_step)
        if step:
            raise FloatingPointError(
                f"the loss of step {step} is not finite (NaN or infinite), so the weights since "
                "then are worthless: lower the learning rate, or clip with max_grad_norm"
            )
        loss, accuracy = self.mean_loss(), int(self._hits) / self.images
        seconds = self.seconds()
        return EpochMetrics(loss, accuracy, self.images, seconds, self.images / seconds)
