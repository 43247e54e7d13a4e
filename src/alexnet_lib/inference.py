"""Prediction of the classes of images."""

import itertools
import os
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from alexnet_lib import interrupts
from alexnet_lib.checks import check_choice, check_integer, shown, type_name
from alexnet_lib.data.decoding import ImageError
from alexnet_lib.data.folders import Notes, files_below
from alexnet_lib.data.images import image_of, image_to_tensor
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.devices import memory_explained, thread_pool
from alexnet_lib.files import as_path
from alexnet_lib.text import printable
from alexnet_lib.training.batches import as_tensor, model_names, names_of
from alexnet_lib.training.loop import (
    check_has_weights,
    check_model,
    evaluation_mode,
    finite_softmax,
    nonfinite_reason,
)
from alexnet_lib.training.step import checked_logits

_LOWER = "predict smaller images or smaller batches of a loader, or use another device"

# Photos are preprocessed and classified in batches of this size.
_BATCH = 32

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, repr=False)
class Prediction:
    """The most likely classes of one image, in order of probability.

    ``source`` is the image's path, or its index in the list; ``probabilities`` are from 0 to 1.
    """

    source: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def __str__(self) -> str:
        pairs = zip(self.classes, self.probabilities, strict=True)
        line = f"{self.source}: " + ", ".join(f"{name} {value:.1%}" for name, value in pairs)
        return printable(line)  # the names may be a stranger's

    def __repr__(self) -> str:
        return f"Prediction({self})"


def predict(
    model: nn.Module,
    images: ImageSource | Iterable[Any],
    *,
    top: int = 5,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
) -> list[Prediction]:
    """The most likely classes of images, by softmax.

    Args:
        model: maps ``(batch, C, size, size)`` to logits ``(batch, classes)``; used in evaluation
            mode on its own device, and then put back into its former mode; when several threads use
            it, by the last of them.
        images: one image or any iterable of them: paths, also of folders, which stand for the image
            files in them; PIL images; arrays ``(H, W, C)`` or ``(H, W)``; tensors ``(C, H, W)`` or
            ``(H, W)`` (uint8, or floating from 0 to 1). A batch, ``(N, H, W, C)`` as an array or
            ``(N, C, H, W)`` as a tensor. Or a loader, whose batches are taken as preprocessed.
        top: how many classes to return, at least 1; at most all of them.
        preprocess: for images, not for a loader; None is ``model.preprocess``.
        classes: names of the classes; None is ``model.classes``, else their numbers.
        on_bad_image: ``"skip"`` leaves an image that cannot be read out of the result, with a
            warning that names it; ``"stop"`` raises its error.

    Returns:
        A prediction for each image, in their order.

    Raises:
        ValueError: no ``preprocess`` is known; an image cannot be read (it is named) or is out of
            its range; the number of class names is wrong; the model has no two classes.
        TypeError: an item is not an image; ``model`` or ``preprocess`` has another type.
        FloatingPointError: the outputs for an image, which is named, are NaN or infinite; the
            message says which weight is.
        MemoryError: memory does not suffice; the message says for which batch.

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
    check_choice("on_bad_image", on_bad_image, ("stop", "skip"))
    found = []
    # Closed at an error too, so that the model gets its modes back at once.
    with closing(answers(model, images, top=top, preprocess=preprocess, classes=classes)) as stream:
        for answer in stream:
            if isinstance(answer, Prediction):
                found.append(answer)
            elif on_bad_image == "stop":
                raise answer
            else:
                warnings.warn(f"{answer}; it is left out", stacklevel=2)
    return found


def answers(
    model: nn.Module,
    images: Any,
    *,
    top: int = 5,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
) -> Generator[Any, None, None]:
    """For each image a ``Prediction``, or the ``ImageError`` of one that cannot be read.

    They come as soon as their batch is computed. Arguments and other errors are those of
    ``predict``.
    """
    check_model(model)
    check_has_weights(model)
    top = check_integer("top", top, 1)
    owner = "classes"
    if classes is None:
        owner, classes = "model.classes", model_names(model)
    elif names_of(classes) is None:
        raise ValueError(f"classes is {shown(classes)}; expected a sequence of names")
    weights = itertools.chain(model.parameters(), model.buffers())
    like = next((w for w in weights if w.is_floating_point()), torch.empty(0))
    batches = (
        _loader_batches(images)
        if hasattr(images, "dataset") and not isinstance(images, Dataset)
        else _image_batches(images, known_preprocess(model, preprocess), like.device)
    )
    with evaluation_mode(model), closing(batches), memory_explained("prediction", _LOWER) as shapes:
        for sources, batch in batches:
            interrupts.check()
            results: Iterator[Any] = iter(())
            if len(batch):
                shapes.append(batch.shape)
                with torch.inference_mode():
                    logits = model(batch.to(like.device, like.dtype))
                    names, best, finite = _named_best(logits, len(batch), top, owner, classes)
                results = zip(
                    best.indices.tolist(), best.values.tolist(), finite.tolist(), strict=True
                )
            for source in sources:
                if isinstance(source, ImageError):
                    yield source
                    continue
                labels, probabilities, good = next(results)
                if not good:
                    raise FloatingPointError(
                        f"the outputs of model for image {source} are NaN or infinite: "
                        f"{nonfinite_reason(model)}"
                    )
                yield Prediction(source, tuple(names[i] for i in labels), tuple(probabilities))


def known_preprocess(model: nn.Module, preprocess: Preprocess | None = None) -> Preprocess:
    """The preprocessing, or that of the model; a ``ValueError`` if neither is known."""
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise TypeError(
            f"preprocess is a {type_name(preprocess)}; expected an alexnet_lib.Preprocess: for "
            "another treatment, pass a loader of treated images"
        )
    owners = (model, getattr(model, "module", None))  # the latter of DataParallel and the like
    own = (getattr(owner, "preprocess", None) for owner in owners)
    preprocess = preprocess or next((p for p in own if isinstance(p, Preprocess)), None)
    if preprocess is None:
        raise ValueError(
            "preprocess is None and the model has none; expected the Preprocess that it was "
            "trained with (a model from load_checkpoint or fit has it)"
        )
    return preprocess


def _named_best(
    logits: object, images: int, top: int, owner: str, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], Any, Tensor]:
    """The names of all classes; values and indices of each image's best; which are finite."""
    logits = checked_logits(logits, images)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"model returns logits of shape {tuple(logits.shape)}, whose softmax has no meaning; "
            "expected (batch, classes) with at least 2 classes"
        )
    count = logits.shape[1]
    names = range(count) if classes is None else classes
    if len(names) != count:
        raise ValueError(f"{owner} has {len(names)} names; expected the model's {count}")
    best = logits.float().softmax(1).topk(min(top, count))
    return tuple(map(str, names)), best, finite_softmax(logits)


def _loader_batches(loader: Iterable[Any]) -> Generator[tuple[list[Any], Tensor], None, None]:
    """Sources and network inputs of a loader, the library's or torch's."""
    count = 0
    for item in loader:
        batch = as_tensor("the images of loader", image_of(item))
        if batch.ndim != 4 or not batch.is_floating_point():
            raise ValueError(
                f"loader yields images of shape {tuple(batch.shape)} and {batch.dtype}; expected "
                "preprocessed ones, floating (batch, C, H, W)"
            )
        yield [str(count + i) for i in range(len(batch))], batch
        count += len(batch)


def _image_batches(
    images: Any, preprocess: Preprocess, device: torch.device
) -> Generator[tuple[list[Any], Tensor], None, None]:
    """Sources and network inputs, a few at a time; an ``ImageError`` is in place of a source.

    The files of the next batch are read, in threads, while the caller computes.
    """
    images = _sources(images)

    def started() -> list[tuple[str, Any]]:
        return [
            (source, pool.submit(preprocess.read, image) if isinstance(image, Path) else image)
            for source, image in itertools.islice(images, _BATCH)
        ]

    with thread_pool("alexnet-lib-predict") as pool:
        coming = deque([started(), started()])
        while batch := coming.popleft():
            sources: list[Any] = []
            inputs = []
            for source, image in batch:
                try:
                    pixels = _pixels(source, image, preprocess)
                except ImageError as error:
                    sources.append(error)
                    continue
                sources.append(source)
                # The images of a list may be on different devices.
                inputs.append(preprocess.network_input(pixels).to(device))
            yield sources, torch.stack(inputs) if inputs else torch.empty(0)
            coming.append(started())


def _sources(images: Any) -> Iterator[tuple[str, Any]]:
    """Path or index of each image, and its ``Path``, or else the image or its ``ImageError``."""
    one = isinstance(images, str | bytes | os.PathLike | Image.Image)
    if one or (isinstance(images, np.ndarray | Tensor) and images.ndim in {0, 2, 3}):
        images = [images]
    try:
        items = iter(images)
    except TypeError:
        raise TypeError(
            f"images is a {type_name(images)}; expected paths, PIL images, arrays, tensors, or a "
            "loader"
        ) from None
    for index, image in enumerate(items):
        if not isinstance(image, str | os.PathLike):
            yield str(index), image
            continue
        source = os.fsdecode(image)
        try:
            path = as_path(image, f"image {index}")
            files = [(source, path)]
            if path.is_dir():
                files = [(str(file), file) for file in _files_in(path)]
        except OSError as error:
            reason = error.strerror or error
            yield source, ImageError(f"{source} cannot be read as an image: {reason}")
        except ValueError as error:
            yield source, ImageError(str(error))
        else:
            yield from files


def _files_in(folder: Path) -> list[Path]:
    """The image files of a folder and of those below it; a warning names the other files."""
    notes = Notes()
    files = [Path(file) for file in files_below(str(folder), notes)]
    notes.warn(folder)
    if not files:
        raise ImageError(f"{folder} cannot be read as an image: it is a folder without image files")
    return files


def _pixels(source: str, image: Any, preprocess: Preprocess) -> Tensor:
    """The pixels of one image, ``(C, H, W)``."""
    if isinstance(image, ImageError):
        raise image
    if isinstance(image, Future):
        image = image.result()
        assert isinstance(image, Tensor)
        return image
    argument, background = f"image {source}", preprocess.background
    pixels = image_to_tensor(image, argument, preprocess.channels, background)
    if pixels.ndim != 3:
        raise ValueError(
            f"image {source} has shape {tuple(pixels.shape)}, a batch in a list; expected a list "
            "of single images, or one batch"
        )
    return pixels
