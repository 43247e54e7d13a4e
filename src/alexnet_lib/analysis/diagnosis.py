"""Diagnosis of a network that does not learn: one step in detail, then steps on one batch.

The checks and the messages are based on the ways in which AlexNet fails: see the
page "Why AlexNet does not train" of the documentation.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_lib import interrupts
from alexnet_lib.checks import check_integer, type_name
from alexnet_lib.data.images import ImageSet
from alexnet_lib.data.loaders import Loaders
from alexnet_lib.data.sources import Data
from alexnet_lib.devices import (
    RunOptions,
    memory_explained,
    out_of_memory,
    restored_generators,
    seed_generators,
)
from alexnet_lib.network.model import AlexNet
from alexnet_lib.text import format_table
from alexnet_lib.training.batches import moved_batches
from alexnet_lib.training.loop import check_has_weights, check_model, evaluation_mode
from alexnet_lib.training.metrics import Totals, nonfinite_weight
from alexnet_lib.training.optimization import balanced_weights, build_step
from alexnet_lib.training.preparation import prepare_loaders, prepare_model
from alexnet_lib.training.recipes import Recipe, resolve_recipe
from alexnet_lib.training.step import checked_logits

# Bounds of what is reported as wrong. Healthy runs of this network stay well inside: see the tables
# of the documentation's page.
_FAINT_SIGNAL = 0.05  # at the last layer but one, over the input's, or 1 where that is larger
_LARGE_START = 1.3  # first loss over that of guessing
_DEAD = 0.5  # share of a layer's units
_SMALL_UPDATE, _LARGE_UPDATE = 1e-5, 0.03  # of a step, over the weights
_LEARNED = 0.5  # share of the guessing loss that a batch should be brought down to
_USUAL_STD = (0.3, 3.0)  # of the network's input
_RAW_STD = 20.0  # of values from 0 to 255, at least

_MOST_STEPS = 100_000  # of a try on one batch; more take days

# The labels are checked with a linear classifier on tiny images.
_PROBE_IMAGES, _PROBE_SIDE, _PROBE_LEAST = 2000, 8, 1000
_PROBE_RIDGE = 0.01
_PROBE_COMMONEST = 0.5  # largest fraction of one class for a meaningful check
_PROBE_DEVIATIONS = 3.0


@dataclass(frozen=True)
class LayerDiagnosis:
    """A layer with weights, at the first step and after the steps on one batch.

    ``output`` is the root mean square of what it computes without dropout, before the ReLU;
    ``signal`` the part that differs between images: the standard deviation over the batch, root
    mean square over the units. ``dead`` is the fraction of units whose ReLU gives 0 for every image
    of the batch at every position, ``dead_after`` the same after the steps; NaN where no ReLU
    follows. ``gradient`` is the root mean square of the weights' gradient, after any clipping;
    ``update`` the norm of the first step at the full learning rate over that of the weights.
    """

    name: str
    output: float
    signal: float
    dead: float = math.nan
    gradient: float = math.nan
    update: float = math.nan
    dead_after: float = math.nan


@dataclass(frozen=True)
class Diagnosis:
    """The result of ``diagnose``; it prints as a table and the findings.

    ``losses`` are the cross entropies of the steps on one batch, ``accuracy`` that of the network
    on it after these, without dropout; ``chance_loss`` is ln(classes). ``label_accuracy`` is that
    of a linear classifier on tiny versions of ``label_images`` training images, which it was not
    fitted to, and ``label_chance`` the accuracy if its predictions were independent of the
    labels; where there are too few images, or most are of one class, NaN and 0.
    """

    recipe: str
    input_mean: float
    input_std: float
    classes: int
    chance_loss: float
    losses: tuple[float, ...]
    accuracy: float
    label_accuracy: float
    label_chance: float
    label_images: int
    layers: tuple[LayerDiagnosis, ...]
    findings: tuple[str, ...]

    def __str__(self) -> str:
        rows = [("", "output", "signal", "dead units", "gradient", "step/weight", "dead later")]
        for layer in self.layers:
            dead, later = (
                "" if math.isnan(share) else f"{share:.0%}"
                for share in (layer.dead, layer.dead_after)
            )
            sizes = f"{layer.output:.3g}", f"{layer.signal:.2g}"
            rates = f"{layer.gradient:.1e}", f"{layer.update:.1e}"
            rows.append((layer.name, *sizes, dead, *rates, later))
        marks = sorted({0, *(len(self.losses) * i // 8 for i in range(1, 8)), len(self.losses) - 1})
        course = ", ".join(f"{self.losses[i]:.2f}" for i in marks)
        findings = self.findings or ("nothing looks wrong",)
        return "\n".join(
            [
                f"recipe {self.recipe}, {self.classes} classes: guessing gives a loss of "
                f"{self.chance_loss:.3f}",
                f"input: mean {self.input_mean:.2f}, standard deviation {self.input_std:.2f}",
                *format_table(rows, right=range(1, 7)),
                f"one batch, {len(self.losses)} steps: loss {course}; then accuracy "
                f"{self.accuracy:.0%}",
                *(f"- {finding}" for finding in findings),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that JSON can hold (None for NaN and infinity)."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [*map(plain, value)]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {name: plain(value) for name, value in asdict(self).items()}


def diagnose(
    data: Data | Loaders,
    *,
    recipe: str | Recipe = "modern",
    overrides: Mapping[str, Any] | None = None,
    classes: Iterable[str] | None = None,
    parts: Mapping[str, str] | None = None,
    model: nn.Module | None = None,
    steps: int = 40,
    seed: int = 0,
    options: RunOptions = RunOptions(),  # noqa: B008  (frozen)
) -> Diagnosis:
    """Examines one training step of a recipe, trains on one batch, and reports what looks wrong.

    The batch is the first of the training images, without augmentation. The try is the recipe's
    training, schedule included, on that batch alone: a healthy recipe lowers its loss quickly.

    Args:
        data: as in ``fit``.
        recipe: as in ``fit``.
        overrides: as in ``fit``.
        classes: as in ``fit``, and so are ``parts``.
        parts: the folders of the parts.
        model: a network of any kind, which is not changed; None builds the recipe's.
        steps: training steps on the batch, from 1 to 100,000; the try ends at a loss or a gradient
            that is not finite.
        seed: as in ``fit``.
        options: device and precision.

    Raises:
        TypeError: ``data``, ``model`` or ``options`` has another type.
        ValueError: an argument is out of its range, or the model does not fit the data.
        MemoryError: memory does not suffice; the message says for which batch.

    Example:
        >>> from alexnet_lib import RunOptions, diagnose
        >>> small = {"image_size": 67, "batch_size": 16, "train_images": 40}
        >>> quiet = RunOptions(progress=False)
        >>> diagnosis = diagnose("shapes", overrides=small, steps=2, options=quiet)
        >>> [layer.name for layer in diagnosis.layers][:2], len(diagnosis.losses)
        (['conv1', 'conv2'], 2)
    """
    steps = check_integer("steps", steps, 1, _MOST_STEPS)
    seed = check_integer("seed", seed, 0, 2**63 - 1)  # as torch's generators
    if not isinstance(options, RunOptions):
        raise TypeError(f"options is a {type_name(options)}; expected RunOptions")
    if model is not None:
        check_model(model)
    recipe = resolve_recipe(recipe, overrides)
    options = options.resolved()
    loaders = prepare_loaders(
        data, recipe, classes=classes, parts=parts, seed=seed, options=options
    )
    with memory_explained("a diagnosis") as shapes:
        network = _network(model, loaders, recipe, seed, options)
        device = torch.device(options.device)
        first = next(moved_batches(replace(loaders.train, augmentation=()), device), None)
        if first is None:
            raise ValueError("data has no image that can be read; expected some to train on")
        images, labels = first.images, first.labels
        shapes.append(images.shape)
        _check_fit(network, images, len(loaders.classes))
        spoiled = nonfinite_weight(network)
        weights = balanced_weights(recipe, loaders.train.dataset, device)
        before = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        with restored_generators(device):
            seed_generators(seed, device)
            layers = _first_step(network, images, labels, recipe, options, weights)
            network.load_state_dict(before)
            repeated = itertools.repeat((images, labels))
            losses = step_losses(network, repeated, steps, recipe, options, weights)
        with torch.no_grad(), evaluation_mode(network), _watched(network) as seen:
            accuracy = (network(images.float()).argmax(1) == labels).float().mean().item()
    label_accuracy, label_chance, label_images = _labels_probe(loaders.train.dataset, seed)
    diagnosis = Diagnosis(
        recipe=recipe.name,
        input_mean=images.float().mean().item(),
        input_std=images.float().std().item(),
        classes=len(loaders.classes),
        chance_loss=math.log(len(loaders.classes)),
        losses=tuple(losses),
        accuracy=accuracy,
        label_accuracy=label_accuracy,
        label_chance=label_chance,
        label_images=label_images,
        layers=tuple(
            replace(layer, dead_after=seen.get(layer.name, layer).dead) for layer in layers
        ),
        findings=(),
    )
    findings = [] if spoiled is None else [f"{spoiled} before the first step"]
    return replace(diagnosis, findings=(*findings, *_findings(diagnosis, recipe, labels)))


def _network(
    model: nn.Module | None, loaders: Loaders, recipe: Recipe, seed: int, options: RunOptions
) -> nn.Module:
    """A copy of a given network, or that of the recipe, as ``fit`` trains it."""
    try:
        network = copy.deepcopy(model)
    except Exception as error:  # whatever a stranger's module raises
        raise ValueError(f"model is a {type_name(model)} that cannot be copied: {error}") from error
    if network is None or isinstance(network, AlexNet):
        return prepare_model(loaders, recipe, model=network, seed=seed, options=options)
    check_has_weights(network)
    placement = options.placement
    return network.to(placement.device, memory_format=placement.memory_format)  # type: ignore[call-overload,no-any-return]


def _check_fit(network: nn.Module, images: Tensor, classes: int) -> None:
    """Raises a ``ValueError`` unless a network gives logits of the classes for the images."""
    try:
        with torch.no_grad(), evaluation_mode(network), _watched(network) as seen:
            logits = checked_logits(network(images.float()), len(images))
    except (RuntimeError, IndexError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"model cannot compute images of shape {tuple(images.shape)}, which data has: {error}"
        ) from error
    if logits.ndim != 2 or logits.shape[1] < classes:
        raise ValueError(
            f"model returns logits of shape {tuple(logits.shape)}; expected "
            f"({len(images)}, {classes}), for the classes of data"
        )
    if not seen:
        raise ValueError(
            "model has no nn.Conv2d and no nn.Linear; expected a network with layers to look at"
        )


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, LayerDiagnosis]]:
    """What a model's layers compute in a pass, by their names, in the order of the pass."""
    seen: dict[str, LayerDiagnosis] = {}

    def look(name: str, output: Tensor) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        # Computed now, since an in-place ReLU would change the output.
        values = output.detach().float()
        signal = values.var(0, unbiased=False).mean().sqrt().item()
        seen[name] = LayerDiagnosis(name, values.square().mean().sqrt().item(), signal)

    def look_after_relu(output: Tensor) -> None:
        if seen and math.isnan((last := [*seen.values()][-1]).dead):
            units = output.detach().transpose(0, 1).flatten(1)
            dead = (units == 0).all(1).float().mean().item()
            seen[last.name] = replace(last, dead=dead)

    handles = []
    for name, module in _named_modules(model):
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(
                module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
            )
        elif isinstance(module, nn.ReLU):
            handles.append(module.register_forward_hook(lambda _, __, out: look_after_relu(out)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A model's modules: an AlexNet's by their layers' names, another's by their paths."""
    for path, module in model.named_modules():
        yield path.rpartition(".")[2] if isinstance(model, AlexNet) else path, module


def _first_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    options: RunOptions,
    class_weights: Tensor | None,
) -> list[LayerDiagnosis]:
    weights = {
        name: module.weight
        for name, module in _named_modules(model)
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    # Without dropout, whose masks would look like differences between the images.
    with torch.no_grad(), evaluation_mode(model), _watched(model) as seen:
        model(images.float())
    model.train()
    step = build_step(recipe, model, options, class_weights=class_weights)
    scale = math.inf
    with suppress(FloatingPointError):  # the layers tell
        while step.scaler.get_scale() < scale:  # in float16, a step that overflows is left out
            scale = step.scaler.get_scale()
            step(images, labels, Totals(images.device))
    layers = []
    for name, layer in seen.items():
        weight = weights[name]
        gradient = torch.zeros(()) if weight.grad is None else weight.grad
        size = gradient.square().mean().sqrt().item()
        change = ((weight.detach() - before[name]).norm() / before[name].norm()).item()
        layers.append(replace(layer, gradient=size, update=change))
    return layers


def step_losses(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    recipe: Recipe,
    options: RunOptions,
    class_weights: Tensor | None = None,
) -> list[float]:
    """Trains a model on ``steps`` batches by a recipe: the cross entropy of each step.

    It ends at a step whose loss or gradient is not finite, with a last loss of NaN.
    """
    losses: list[Tensor] = []

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        losses.append(F.cross_entropy(logits.detach().float(), labels))
        return recipe.criterion(logits, labels, class_weights)

    built = build_step(recipe, model, options, steps=steps)
    step = replace(built, criterion=criterion, on_nonfinite="stop")
    model.train()
    totals = Totals(step.device)
    try:
        for images, labels in itertools.islice(batches, steps):
            interrupts.check()
            step(images, labels, totals)
        totals.check()
    except FloatingPointError:
        return [*map(float, losses[:-1]), math.nan]
    return [*map(float, losses)]


def _labels_probe(data: ImageSet, seed: int) -> tuple[float, float, int]:
    """Held-out accuracy of a linear classifier, that of guessing, and the number of images."""
    count = min(len(data), _PROBE_IMAGES)
    if count < _PROBE_LEAST:
        return math.nan, math.nan, 0
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    sample = data.subset(order.to(data.labels.device))
    # One at a time: files may be large.
    tiny = []
    for i in range(count):
        interrupts.check()
        image = sample.image(i)[None].float().cpu()
        tiny.append(F.adaptive_avg_pool2d(image, _PROBE_SIDE).flatten(1))
    features = torch.cat(tiny).double()
    if not features.isfinite().all():
        return math.nan, math.nan, 0
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    features = torch.cat([features, torch.ones(count, 1, dtype=torch.float64)], dim=1)
    labels = sample.labels.cpu()
    half = count // 2
    fitted, targets = features[:half], F.one_hot(labels[:half], len(data.classes)).double()
    ridge = _PROBE_RIDGE * half * torch.eye(features.shape[1], dtype=torch.float64)
    coefficients = torch.linalg.solve(fitted.T @ fitted + ridge, fitted.T @ targets)
    guesses, truth = (features[half:] @ coefficients).argmax(1), labels[half:]
    guessed, true = (
        labels.bincount(minlength=len(data.classes)).double() / len(truth)
        for labels in (guesses, truth)
    )
    if true.max() > _PROBE_COMMONEST:
        return math.nan, math.nan, 0
    return (guesses == truth).double().mean().item(), (guessed @ true).item(), len(truth)


def _findings(seen: Diagnosis, recipe: Recipe, labels: Tensor) -> Iterator[str]:
    low, high = _USUAL_STD
    scaled_for_raw = recipe.initialization in {"paper", "released_code"}
    if scaled_for_raw and seen.input_std < _RAW_STD:
        yield (
            f"the input has standard deviation {seen.input_std:.2f}, and the initialisation "
            f"{recipe.initialization!r} was made for values from 0 to 255 less their mean (about "
            "63): set preprocessing to 'subtract_mean', or initialization to 'kaiming'"
        )
    elif not scaled_for_raw and not low <= seen.input_std <= high:
        yield (
            f"the input is not normalised: its standard deviation is {seen.input_std:.3g}, and "
            f"the initialisation {recipe.initialization!r} expects about 1"
        )
    elif not scaled_for_raw and abs(seen.input_mean) > 1:
        yield f"the input is not centred: its mean is {seen.input_mean:.2f}, expected about 0"
    if scaled_for_raw and recipe.dropout and recipe.dropout_scaling == "training":
        yield (
            f"the initialisation {recipe.initialization!r} was made for dropout that scales in the "
            "test; scaled in training, the next layers get more: set dropout_scaling to 'test'"
        )
    yield from _label_findings(seen, labels)
    yield from _signal_findings(seen)
    yield from _update_findings(seen, recipe)
    yield from _course_findings(seen.losses, seen.chance_loss)


def _label_findings(seen: Diagnosis, labels: Tensor) -> Iterator[str]:
    if len(labels.unique()) == 1:
        yield "all images of the batch are of one class: are the training images shuffled?"
    guess, count = seen.label_chance, seen.label_images
    if not count:
        return
    spread = math.sqrt(guess * (1 - guess) / count)
    if seen.label_accuracy < guess + _PROBE_DEVIATIONS * spread:
        yield (
            "the labels may not belong to their images: a linear classifier on tiny versions of "
            f"the images classifies {seen.label_accuracy:.1%} correctly, guessing {guess:.1%}"
        )


def _signal_findings(seen: Diagnosis) -> Iterator[str]:
    layers = seen.layers
    if seen.losses[0] > _LARGE_START * seen.chance_loss:
        yield (
            f"the first loss is {seen.losses[0]:.2f}, where guessing gives "
            f"{seen.chance_loss:.2f}: the outputs start too large, and the first steps will be too"
        )
    last = layers[max(len(layers) - 2, 0)]
    if last.signal < _FAINT_SIGNAL * min(seen.input_std, 1.0):
        yield (
            f"the differences between images shrink: {seen.input_std:.2g} at the input, "
            f"{last.signal:.1g} at {last.name}, so that all images get nearly the same output: "
            "the initial weights are too small for the depth (initialization 'kaiming')"
        )
    for when, name in (("at the start", "dead"), ("after the steps", "dead_after")):
        fractions = {layer.name: getattr(layer, name) for layer in layers}
        dead = [f"{layer} {value:.0%}" for layer, value in fractions.items() if value > _DEAD]
        if dead:
            yield f"units are dead {when} and get no gradient: {', '.join(dead)}"


def _update_findings(seen: Diagnosis, recipe: Recipe) -> Iterator[str]:
    moving = [layer for layer in seen.layers if layer.update > 0]
    if not moving:
        yield f"no weight changes: learning_rate ({recipe.learning_rate:g}) is too small"
        return
    middle = sorted(layer.update for layer in moving)[len(moving) // 2]
    if middle < _SMALL_UPDATE:
        yield (
            f"the weights hardly change: a step changes them by {middle:.0e} of their size, so one "
            f"per cent takes some {0.01 / middle:,.0f} such steps: raise learning_rate "
            f"({recipe.learning_rate:g})"
        )
    # Not the last layer: it often starts small, and then large first steps are right.
    updates = {layer.name: layer.update for layer in seen.layers[:-1]}
    if fast := [f"{name} {value:.0%}" for name, value in updates.items() if value > _LARGE_UPDATE]:
        yield (
            f"the first step at the full learning rate ({recipe.learning_rate:g}) is large against "
            f"the weights: {', '.join(fast)}: lower it, warm up, or clip gradients"
        )


def _course_findings(losses: tuple[float, ...], chance: float) -> Iterator[str]:
    if not all(map(math.isfinite, losses)):
        yield (
            "the loss or a gradient became NaN or infinite on one batch: lower learning_rate, or "
            "clip gradients"
        )
        return
    end = sum(losses[-3:]) / len(losses[-3:])
    if max(losses) > 2 * max(losses[0], chance):
        yield (
            f"the loss diverged on one batch, to {max(losses):.3g}: lower learning_rate, warm up, "
            "or clip gradients (max_grad_norm)"
        )
    if abs(end - chance) < 0.1 * chance:
        yield (
            f"after {len(losses)} steps on one batch the loss is {end:.2f}, still that of guessing "
            f"({chance:.2f}): nothing was learned"
        )
    elif end > _LEARNED * chance:
        yield (
            f"after {len(losses)} steps on one batch the loss is {end:.2f}; a healthy run brings "
            f"it under {_LEARNED * chance:.2f}"
        )
