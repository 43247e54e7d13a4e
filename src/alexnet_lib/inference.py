"""Prediction of the classes of images."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from alexnet_lib.checks import check_integer
from alexnet_lib.data.images import image_to_tensor, read_image
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.training.loop import evaluation_mode

# Photos are preprocessed and classified in batches of this size.
_BATCH = 32

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of one image, in order of probability.

    ``source`` is the image's path, or its index in the list; ``probabilities`` are from 0 to 1.
    """

    source: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def __str__(self) -> str:
        pairs = zip(self.classes, self.probabilities, strict=True)
        return f"{self.source}: " + ", ".join(f"{name} {value:.1%}" for name, value in pairs)


def predict(
    model: nn.Module,
    images: ImageSource | Iterable[Any],
    *,
    top: int = 5,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
) -> list[Prediction]:
    """The most likely classes of images, by softmax.

    Args:
        model: maps ``(batch, 3, size, size)`` to logits; used in evaluation mode on its own
            device, and then put back into its former mode.
        images: one image or a list of them: paths, PIL images, arrays ``(H, W, 3)``, tensors
            ``(3, H, W)`` (uint8, or floating from 0 to 1); a batch, ``(N, H, W, 3)`` as an array
            or ``(N, 3, H, W)`` as a tensor; or a loader, whose batches are taken as preprocessed.
        top: how many classes to return, at least 1; at most all of them.
        preprocess: for images, not for a loader; None is ``model.preprocess``.
        classes: names of the classes; None is ``model.classes``, else their numbers.

    Raises:
        ValueError: no ``preprocess`` is known; an image cannot be read (it is named) or is out of
            its range; the number of class names is wrong.
        TypeError: an item is not an image.

    Example:
        >>> import numpy as np
        >>> from alexnet_lib import AlexNet, Preprocess, predict
        >>> model = AlexNet(num_classes=2, image_size=67, seed=0)
        >>> photo = np.zeros((480, 640, 3), dtype=np.uint8)
        >>> treatment = Preprocess(resize=67, image_size=67)
        >>> prediction, = predict(model, photo, preprocess=treatment, classes=["cat", "dog"])
        >>> sorted(prediction.classes)
        ['cat', 'dog']
    """
    check_integer("top", top, 1)
    classes = getattr(model, "classes", None) if classes is None else tuple(map(str, classes))
    preprocess = getattr(model, "preprocess", None) if preprocess is None else preprocess
    parameter = next(model.parameters(), torch.empty(0))
    predictions: list[Prediction] = []
    with evaluation_mode(model), torch.inference_mode():
        for sources, batch in _batches(images, preprocess, parameter.device):
            logits = model(batch.to(parameter.device, parameter.dtype))
            if classes is not None and len(classes) != logits.shape[1]:
                raise ValueError(
                    f"classes has {len(classes)} names; expected the model's {logits.shape[1]}"
                )
            names = classes or tuple(map(str, range(logits.shape[1])))
            best = logits.float().softmax(1).topk(min(top, logits.shape[1]))
            predictions += [
                Prediction(source, tuple(names[label] for label in labels), tuple(probabilities))
                for source, labels, probabilities in zip(
                    sources, best.indices.tolist(), best.values.tolist(), strict=True
                )
            ]
    return predictions


def _batches(
    images: Any, preprocess: Preprocess | None, device: torch.device
) -> Iterator[tuple[list[str], Tensor]]:
    """Sources and network inputs, a few at a time."""
    if hasattr(images, "dataset"):  # a loader, the library's or torch's
        count = 0
        for item in images:
            batch = item if isinstance(item, Tensor) else item[0]
            yield [str(count + i) for i in range(len(batch))], batch
            count += len(batch)
        return
    if preprocess is None:
        raise ValueError(
            "preprocess is None and the model has none; expected the Preprocess that it was "
            "trained with (a model from load_checkpoint or fit has it)"
        )
    if isinstance(images, str | os.PathLike | Image.Image) or (
        isinstance(images, np.ndarray | Tensor) and images.ndim == 3
    ):
        images = [images]
    images = list(images)
    for start in range(0, len(images), _BATCH):
        sources, inputs = [], []
        for index, image in enumerate(images[start : start + _BATCH], start):
            path = isinstance(image, str | os.PathLike)
            source = os.fspath(image) if path else str(index)
            sources.append(source)
            pixels = read_image(Path(image)) if path else image_to_tensor(image, f"image {source}")
            if pixels.ndim != 3:
                raise ValueError(
                    f"image {source} has shape {tuple(pixels.shape)}, a batch in a list; expected "
                    "a list of single images, or one batch"
                )
            # The images of a list may be on different devices.
            inputs.append(preprocess(pixels).to(device))
        yield sources, torch.stack(inputs)
