"""Plans a run that is to end within some minutes: measures its speed, and shortens its recipe."""

import copy
import functools
import gc
import itertools
import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet_lib import interrupts
from alexnet_lib.data.loaders import Batch, BatchLoader, Loaders
from alexnet_lib.data.sources import Parts
from alexnet_lib.devices import RunOptions, restored_generators
from alexnet_lib.network.architecture import Conv, layer_infos
from alexnet_lib.network.model import AlexNet
from alexnet_lib.text import format_duration
from alexnet_lib.training.loop import evaluate
from alexnet_lib.training.recipes import Recipe
from alexnet_lib.training.state import TrainingRun

# The speed of a run is that of so many steps, of which the first few are slower and are left out.
MEASURED_STEPS = 20
SETTLING_STEPS = 3
# Of an evaluation, after a first one.
_MEASURED_BATCHES = 4
# Each of the four measurements (validation, test, first steps, steps) ends after this share of the
# minutes, as soon as it has measured anything.
_MEASURING_SHARE = 0.02

# A run is expected to end within this share of its minutes. All epochs of the stored runs
# (`benchmarks/results/runs`) took up to 5 % longer than the first would predict, single ones 18 %;
# and writing states at the ends of epochs takes up to 2 %.
_SHARE = 0.9
# Fewer steps than these teach a network nothing.
_LEAST_STEPS = 10

# Of the time of a step, what does not depend on the size of the images, the update of the weights,
# is about this fraction of the time of the arithmetic. Batches of 64 on two CPU cores: 78 images/s
# of 227 pixels, 165 of 131.
_UPDATE_SHARE = 0.2

# The fields of a recipe that a plan lowers.
_LOWERED = ("epochs", "train_images")


class Writing(NamedTuple):
    """Seconds that writing takes: a file of weights, and a state; and from one state to the next.

    Without files, nothing is written.
    """

    weights: float = 0.0
    state: float = 0.0
    every: float = math.inf


class Speed(NamedTuple):
    """Seconds that the parts of a run take on this machine.

    ``first_steps`` is what the first steps take more than as many later ones; ``test_image`` is of
    an image in all views of the recipe.
    """

    step: float
    first_steps: float
    validation_image: float
    test_image: float


class Plan(NamedTuple):
    """A recipe that there is time for, and a line that says what it is."""

    recipe: Recipe
    line: str


def step_cost(model: AlexNet, image_size: int, full_size: int) -> float:
    """The time of a step on images of a size, divided by that on images of full size."""
    if image_size == full_size:
        return 1.0
    smaller, full = (
        layer_infos(model.architecture, size, model.num_classes) for size in (image_size, full_size)
    )
    products = sum(info.multiply_accumulates for info in full)
    # The layers after the feature maps take what these are interpolated to.
    saved = sum(
        info.multiply_accumulates - other.multiply_accumulates
        for info, other in zip(full, smaller, strict=True)
        if isinstance(info.layer, Conv)
    )
    return 1 - saved / ((1 + _UPDATE_SHARE) * products)


def measure_speed(
    recipe: Recipe,
    loaders: Loaders,
    model: AlexNet,
    *,
    seed: int,
    options: RunOptions,
    max_minutes: float,
) -> Speed:
    """The speed of a run, from its first steps and batches.

    A copy of the model is trained: model, loaders and global generators stay as they are.
    """
    limit = 60 * max_minutes * _MEASURING_SHARE
    with restored_generators(torch.device(options.device)):
        # First, since a recipe that diverges spoils the weights. Of the metrics nothing is kept.
        validation, test = (
            0.0 if loader is None else _seconds_of_image(model, loader, options, views, limit)
            for loader, views in ((loaders.validation, 1), (loaders.test, recipe.views))
        )
        recipe = recipe.overridden({"growth_fraction": 0.0})  # the speed at full size
        # A copy of a loader has an epoch, bad images and processes of its own.
        train = Loaders(replace(loaders.train), None, None)
        run = TrainingRun(recipe, train, copy.deepcopy(model), seed=seed, options=options)
        step, first_steps = _seconds_of_step(run, limit)
    del run, train
    gc.collect()  # the run is a cycle, with its weights, gradients and momentum
    return Speed(step, first_steps, validation, test)


def _seconds_of_step(run: TrainingRun, limit: float) -> tuple[float, float]:
    """The seconds of a step, and what the first steps take more."""
    most = min(MEASURED_STEPS, run.steps_in_all)
    settling = min(SETTLING_STEPS, most // 2)
    began = settled = time.perf_counter()
    taken = left_out = 0
    while taken < most:
        if run.epoch_read:
            run.finish_epoch()
        run.take_step()
        interrupts.check()
        taken += 1
        late = time.perf_counter() - settled > limit
        if not left_out and taken < most and (late or taken == settling):
            run.totals.check()  # waits for the device, so that the steps are finished
            left_out, settled = taken, time.perf_counter()
        elif late:
            break
    run.totals.check()
    step = (time.perf_counter() - settled) / (taken - left_out)
    return step, max(0.0, settled - began - left_out * step)


def _seconds_of_image(
    model: AlexNet, loader: BatchLoader, options: RunOptions, views: int, limit: float
) -> float:
    """The seconds of evaluating an image."""
    seconds = 0.0
    for batches in (1, _MEASURED_BATCHES):  # the first batch is slower
        began = time.perf_counter()
        metrics = evaluate(
            model,
            _Beginning(replace(loader), batches),
            precision=options.precision,
            views=views,
            progress=False,
        )
        seconds = (time.perf_counter() - began) / metrics.images
        if time.perf_counter() - began > limit:
            break
    return seconds


class _Beginning:
    """The first batches of a loader."""

    def __init__(self, loader: BatchLoader, batches: int) -> None:
        self.dataset = loader.dataset
        self._loader, self._batches = loader, batches

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(self._loader.batches(0), self._batches)

    def views(self, number: int) -> Iterator[tuple[Iterable[Tensor], Tensor]]:
        return itertools.islice(self._loader.views(number), self._batches)


def plan_run(
    recipe: Recipe,
    data: Parts | Loaders,
    loaders: Loaders,
    model: AlexNet,
    speed: Speed,
    writing: Writing,
    *,
    max_minutes: float,
    spent: float,
    preparing: float,
) -> Plan:
    """As many epochs of a recipe as there is time for; or one, of fewer images.

    Args:
        recipe: what is trained if there is time.
        data: what the loaders were prepared from; ``Loaders`` keep their images.
        loaders: those of the recipe.
        model: its network.
        speed: of its parts, at full size.
        writing: of its files.
        max_minutes: in which ``fit`` is to end.
        spent: the seconds since it began.
        preparing: the seconds that it takes to prepare loaders and network again.

    Raises:
        ValueError: the minutes do not suffice; the message says how many would.
    """
    train, validation, test = (0 if part is None else len(part.dataset) for part in loaders)
    held_out = 0.0  # the fraction of the images that becomes the validation part
    if isinstance(data, Parts) and data.validation is None:
        held_out = recipe.validation_fraction
        train, validation = train + validation, 0
    state = writing.state * (1 if writing.every <= speed.step else speed.step / writing.every)
    fixed = spent + speed.first_steps + test * speed.test_image + writing.state

    def steps(images: int) -> int:
        """Of an epoch."""
        batches = images / loaders.train.batch_size
        whole = math.floor(batches) if loaders.train.drop_last else math.ceil(batches)
        return math.ceil(whole / recipe.accumulation_steps)

    @functools.cache
    def cost(image_size: int) -> float:
        return step_cost(model, image_size, loaders.image_size)

    def seconds(epochs: int, images: int) -> float:
        """Of a run from the beginning of ``fit`` to its end."""
        split_off = round(held_out * images)
        at_full_size = (
            steps(images - split_off) * speed.step
            + (validation + split_off) * speed.validation_image
        )
        # The last and the best weights, and states.
        written = 2 * writing.weights + steps(images - split_off) * state
        sizes = recipe.overridden({"epochs": epochs}).image_sizes(loaders.image_size)
        all_epochs = sum(cost(size) * at_full_size + written for size in sizes)
        return fixed + all_epochs + (preparing if images < train else 0)

    available = 60 * max_minutes * _SHARE
    images, numbers = train, range(1, recipe.epochs + 1)
    epochs = bisect_right(numbers, available, key=lambda epochs: seconds(epochs, train))
    if not epochs:
        epochs, fewest = 1, train
        if isinstance(data, Parts):
            per_step = loaders.train.batch_size * recipe.accumulation_steps
            least = math.ceil(_LEAST_STEPS * per_step / (1 - held_out))
            fewest = min(train, max(len(loaders.classes), least))
        counts = range(fewest, train)
        fitting = bisect_right(counts, available, key=lambda images: seconds(1, images))
        if not fitting:
            share = _SHARE - 4 * _MEASURING_SHARE  # with more minutes, measuring takes longer
            needed = math.ceil(10 * seconds(1, fewest) / share / 60) / 10
            raise ValueError(
                f"max_minutes is {max_minutes:g}; expected at least {needed:g}, for one epoch of "
                f"{fewest:,} training images and the test on this machine, or smaller images "
                "(image_size)"
            )
        images = counts[fitting - 1]
    changes: dict[str, Any] = {"epochs": epochs}
    line = f"plan for {max_minutes:g} minutes: {epochs} of {recipe.epochs} epochs"
    if images < train:
        changes["train_images"] = images
        line += f", {images:,} of {train:,} training images"
    in_epoch = len(loaders.train.dataset)
    rate = in_epoch / (steps(in_epoch) * speed.step)
    most = "about" if recipe.early_stopping is None else "at most"
    line += f"; {rate:.0f} images/s, {most} {format_duration(seconds(epochs, images))} in all"
    return Plan(recipe.overridden(changes), line)


def planned_from(recipe: Recipe, max_minutes: float) -> dict[str, Any]:
    """What a plan was made from, as ``recipe.json`` has it beside the recipe of the plan."""
    return {"max_minutes": max_minutes, **{name: getattr(recipe, name) for name in _LOWERED}}


def stored_plan(recipe: Recipe, stored: Mapping[str, Any]) -> Recipe:
    """The recipe that a stored run has planned from this one; this one if it has not.

    ``stored`` is what its ``recipe.json`` holds.
    """
    former = stored.get("planned_from")
    if former is None or former != planned_from(recipe, former["max_minutes"]):
        return recipe
    lowered = Recipe.from_dict(stored["recipe"])
    return recipe.overridden({name: getattr(lowered, name) for name in _LOWERED})
