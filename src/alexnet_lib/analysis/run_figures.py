"""The figures of a run, written to its folder."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet_lib.analysis.figures import (
    plot_confusion_matrix,
    plot_kernels,
    plot_learning_curves,
)
from alexnet_lib.analysis.image_figures import (
    plot_batch,
    plot_feature_maps,
    plot_grad_cam,
    plot_neighbors,
    plot_predictions,
)
from alexnet_lib.data.images import ImageSet
from alexnet_lib.data.loaders import Loaders
from alexnet_lib.data.sources import Data
from alexnet_lib.devices import RunOptions, generator_for
from alexnet_lib.files import as_path, replacing
from alexnet_lib.network.architecture import Conv, ReLU
from alexnet_lib.network.checkpoints import load_checkpoint, weights_of_run
from alexnet_lib.network.model import AlexNet
from alexnet_lib.training.batches import ClassMap
from alexnet_lib.training.loop import evaluate
from alexnet_lib.training.metrics import EvalMetrics
from alexnet_lib.training.preparation import data_of_run, prepare_loaders
from alexnet_lib.training.recipes import Recipe, read_description

# Images among which the nearest are looked for.
_SEARCHED = 1000


def write_figures(
    run: str | os.PathLike[str],
    *,
    data: Data | Loaders | None = None,
    classes: Iterable[str] | None = None,
    parts: Mapping[str, str] | None = None,
    on_bad_image: str = "stop",
    progress: bool = False,
) -> list[Path]:
    """Writes the figures of a run to the folder ``figures`` in its folder.

    From the run alone: ``learning_curves.svg``, ``kernels.png`` and, of a finished run with test
    images, ``confusion_matrix.svg``. With its data also ``batch.png`` (training images, augmented)
    and, of the test images (else the validation images, else the training images),
    ``predictions.png``, ``grad_cam.png``, ``feature_maps.png`` and ``neighbors.png`` (among up to
    1,000 training images), and the confusion matrix where the run has none. Files of an earlier
    call are replaced.

    Args:
        run: the folder of a run, which may be in progress.
        data: as in ``fit``; None is the run's own, with its classes. Where that is not there, a
            warning says so, and the figures that need it are left out.
        classes: as in ``fit``. Data must not have others than the run.
        parts: as in ``fit``; a run does not keep them.
        on_bad_image: what to do with an image that cannot be read, as in ``RunOptions``.
        progress: show a bar where all images are evaluated.

    Returns:
        The files, in the order in which they were written.

    Raises:
        FileNotFoundError: the folder holds no run, or none with a finished epoch.
        ValueError: a file of the run is damaged; ``data`` does not fit the run.
        OSError: the folder cannot be written.

    Example:
        >>> from alexnet_lib import RunOptions, fit, write_figures
        >>> small = {"image_size": 67, "batch_size": 32, "epochs": 1, "train_images": 64}
        >>> quiet = RunOptions(progress=False)
        >>> run = fit("shapes", overrides=small, out="run", options=quiet)
        >>> [file.name for file in write_figures("run")][:3]
        ['learning_curves.svg', 'kernels.png', 'confusion_matrix.svg']
    """
    folder = as_path(run, "run")
    stored = _description(folder)
    file = weights_of_run(folder)
    if file is None:
        raise FileNotFoundError(
            f"{folder} has no weights; expected a run with at least one finished epoch"
        )
    model = load_checkpoint(file)
    test = _test_metrics(folder)
    options = RunOptions("cpu", "float32", progress=False, on_bad_image=on_bad_image)
    loaders = _loaders(stored, data, classes, parts, options)
    figures: dict[str, Callable[[], Any]] = {
        "learning_curves.svg": lambda: plot_learning_curves(folder)
    }
    if convolutions := _layers(model, Conv):
        figures["kernels.png"] = lambda: plot_kernels(model, layer=convolutions[0])
    if test is not None:
        figures["confusion_matrix.svg"] = lambda: plot_confusion_matrix(test)
    if loaders is not None:
        figures |= _figures_of_data(model, loaders, int(stored["seed"]))
        if test is None:
            part = loaders.test or loaders.validation or loaders.train
            figures["confusion_matrix.svg"] = lambda: plot_confusion_matrix(
                evaluate(model, part, progress=progress)
            )
    return [*_written(folder / "figures", figures)]


def _written(folder: Path, figures: Mapping[str, Callable[[], Any]]) -> Iterator[Path]:
    for name, draw in figures.items():
        file = folder / name
        with replacing(file) as new:
            draw().savefig(new)
        yield file


def _description(folder: Path) -> Any:
    file = folder / "recipe.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the folder of a run")
    try:
        stored = read_description(file)
        Recipe.from_dict(stored["recipe"])
        if not isinstance(stored["seed"], int) or not isinstance(stored["data"], str):
            raise ValueError("it describes no run")
        stored["classes"] = (*stored["classes"],)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not the recipe of a run: {error!r}") from error
    return stored


def _test_metrics(folder: Path) -> EvalMetrics | None:
    """The metrics on the test images, as ``result.json`` has them."""
    file = folder / "result.json"
    if not file.is_file():
        return None
    try:
        test = json.loads(file.read_text(encoding="utf-8"))["test"]
        if test is None or test["confusion"] is None:
            return None
        confusion = np.array(test["confusion"], dtype=np.int64)
        classes = tuple(test["per_class_accuracy"])
        if confusion.shape != (len(classes), len(classes)):
            raise ValueError(f"confusion has shape {confusion.shape}")
        loss, accuracy, images, seconds = (
            test[name] for name in ("loss", "accuracy", "images", "seconds")
        )
        return EvalMetrics(loss, accuracy, {}, confusion, classes, images, seconds)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not the result of a run: {error!r}") from error


def _loaders(
    stored: Any,
    data: Any,
    classes: Iterable[str] | None,
    parts: Mapping[str, str] | None,
    options: RunOptions,
) -> Loaders | None:
    """The loaders of a run; None where its own data is not there."""
    recipe, seed = Recipe.from_dict(stored["recipe"]), stored["seed"]
    if data is None:
        # Nothing is downloaded for a figure, and what was no path has only its type's name.
        source = "data" if stored["data"] == "cifar10" else stored["data"]
        try:
            data, own = data_of_run(source, stored["classes"])
        except FileNotFoundError:
            warnings.warn(
                f"the data of the run, {stored['data']}, cannot be opened, and the figures that "
                "need it are left out: give it as data (DATA)",
                stacklevel=3,
            )
            return None
        classes = own if classes is None else classes
    return prepare_loaders(data, recipe, classes=classes, parts=parts, seed=seed, options=options)


def _figures_of_data(model: AlexNet, loaders: Loaders, seed: int) -> dict[str, Callable[[], Any]]:
    known = ClassMap(model, loaders.train, model.num_classes, torch.device("cpu"))
    held_out = (loaders.test or loaders.validation or loaders.train).dataset
    # The first of a folder are all of one class.
    images = _drawn(held_out, 12, seed, known)
    figures: dict[str, Callable[[], Any]] = {
        "batch.png": lambda: plot_batch(loaders.train),
        "predictions.png": lambda: plot_predictions(model, images),
        "feature_maps.png": lambda: plot_feature_maps(model, images.image(0)),
    }
    rows = model.architecture.layers
    if convolutions := [i for i, row in enumerate(rows) if isinstance(row, Conv)]:
        last = convolutions[-1]
        # The maps as the next layer reads them.
        last += isinstance(rows[last + 1], ReLU)
        figures["grad_cam.png"] = lambda: plot_grad_cam(model, images, layer=rows[last].name)
    if hidden := _layers(model, ReLU):
        searched = _drawn(loaders.train.dataset, _SEARCHED, seed, known)
        figures["neighbors.png"] = lambda: plot_neighbors(model, images, searched, layer=hidden[-1])
    return figures


def _layers(model: AlexNet, kind: type) -> list[str]:
    return [row.name for row in model.architecture.layers if isinstance(row, kind)]


def _drawn(images: ImageSet, count: int, seed: int, known: ClassMap) -> ImageSet:
    """Some of the images, labelled with the model's classes."""
    order = torch.randperm(len(images), generator=generator_for(seed))
    drawn = images.subset(order[:count])
    if known.numbers is None:
        return drawn
    numbers = known.numbers[drawn.labels]
    return replace(drawn, labels=numbers, classes=known.outputs)  # type: ignore[type-var]
