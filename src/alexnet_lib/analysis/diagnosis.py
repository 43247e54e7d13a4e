"""Diagnosis of a network that does not learn: one step in detail, then steps on one batch.

The checks and the messages are based on the ways in which AlexNet fails: see the
page "Why AlexNet does not train" of the documentation.
"""

import copy
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from html import escape
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

# Bounds of what is reported as wrong; the page "Why AlexNet does not train" of the documentation
# says what each was measured on.
_FAINT_SIGNAL = 0.05  # at the last layer but one, over the input's, or 1 where that is larger
_LARGE_START = 1.3  # first loss over that of guessing
_DEAD = 0.5  # share of a layer's units, or of its values where they saturate
_SATURATED = 0.99  # of the range of tanh or of the logistic function: 2 % of the slope is left
_SMALL_UPDATE, _LARGE_UPDATE = 1e-5, 0.03  # of a step, over the weights
_LEARNED = 0.5  # share of the guessing loss that a batch should be brought down to
_BELOW = 0.9  # share of the guessing loss, below which a loss is not that of guessing
_FITTED = 0.9  # accuracy on the batch, from which it is learned whatever the loss
_USUAL_STD = (0.3, 3.0)  # of the network's input
_RAW_STD = 20.0  # of values from 0 to 255, at least
_SAME = 1e-5  # difference between values that are called the same, over their size
_HUGE_WEIGHT = 1000.0
_UNLIKELY = 0.01  # probability of what is reported although it may be chance

_WIDTH = 80  # columns of the report
_MOST_NAME = 28  # columns of a layer's name in the table
_MOST_NAMED = 6  # layers that a finding lists

_MOST_STEPS = 100_000  # of a try on one batch; more take days

# The labels are checked with a linear classifier on tiny images.
_PROBE_IMAGES, _PROBE_SIDE, _PROBE_LEAST = 2000, 8, 1000
_PROBE_RIDGE = 0.01
_PROBE_COMMONEST = 0.5  # largest fraction of one class for a meaningful check
_PROBE_DEVIATIONS = 3.0

# What is between a layer with weights and its activation.
_NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class LayerDiagnosis:
    """A layer with weights, at the first step and after the steps on one batch.

    ``output`` is the root mean square of what it computes, after the normalisation that follows it
    (``nn.BatchNorm2d`` and the like), and before the activation; ``signal`` the part that differs
    between images: the standard deviation over the batch, root mean square over the units. Both are
    measured without dropout, and batch normalisation uses the batch's own statistics, as in
    training. ``dead`` is the fraction of units whose ReLU gives 0 for every image of the batch at
    every position, ``dead_after`` the same after the steps; NaN where no ReLU follows.
    ``saturated`` is the fraction of values in the outer hundredth of the range of the tanh or
    sigmoid that follows, where they pass hardly any gradient; NaN where none follows. ``gradient``
    is the root mean square of the weights' gradient, after any clipping; ``update`` the norm of the
    first step at the full learning rate over that of the weights.
    """

    name: str
    output: float
    signal: float
    dead: float = math.nan
    gradient: float = math.nan
    update: float = math.nan
    dead_after: float = math.nan
    saturated: float = math.nan


@dataclass(frozen=True)
class Diagnosis:
    """The result of ``diagnose``; it prints as a table and the findings, in 80 columns.

    ``losses`` are the cross entropies of the steps on one batch, ``accuracy`` that of the network
    on it after these, without dropout and with the batch's own statistics in batch normalisation;
    ``chance_loss`` is ln(classes). ``label_accuracy`` is that
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
        rows = [
            ("", "", "", "dead", "", "step/", "dead"),
            ("", "output", "signal", "units", "gradient", "weight", "later"),
        ]
        for layer in self.layers:
            dead, later = (
                "" if math.isnan(share) else f"{share:.0%}"
                for share in (layer.dead, layer.dead_after)
            )
            sizes = f"{layer.output:.3g}", f"{layer.signal:.2g}"
            rates = f"{layer.gradient:.1e}", f"{layer.update:.1e}"
            name = layer.name
            if len(name) > _MOST_NAME:  # its end tells it from others
                name = f"...{name[3 - _MOST_NAME :]}"
            rows.append((name, *sizes, dead, *rates, later))
        marks = sorted({0, *(len(self.losses) * i // 8 for i in range(1, 8)), len(self.losses) - 1})
        course = ", ".join(f"{self.losses[i]:.2f}" for i in marks)
        findings = self.findings or ("nothing looks wrong",)
        return "\n".join(
            [
                *_wrapped(
                    f"recipe {self.recipe}, {self.classes} classes: guessing gives a loss of "
                    f"{self.chance_loss:.3f}"
                ),
                f"input: mean {self.input_mean:.2f}, standard deviation {self.input_std:.2f}",
                *format_table(rows, right=range(1, 7)),
                *_wrapped(
                    f"one batch, {len(self.losses)} steps: loss {course}; then accuracy "
                    f"{self.accuracy:.0%}"
                ),
                *(line for finding in findings for line in _wrapped(f"- {finding}")),
            ]
        )

    def __repr__(self) -> str:
        return (
            f"Diagnosis(recipe={self.recipe!r}, accuracy={self.accuracy:.2f}, "
            f"findings={len(self.findings)})"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that JSON can hold (None for NaN and infinity)."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [*map(plain, value)]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {name: plain(value) for name, value in asdict(self).items()}


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


@dataclass
class _Pass:
    """The layers with weights by name, in the order of a pass, and what the first of them gets."""

    layers: dict[str, LayerDiagnosis] = field(default_factory=dict)
    input: Tensor | None = None


@dataclass(frozen=True)
class _Model:
    """What ``diagnose`` knows about the network beside the layers' numbers.

    ``initialization`` is the recipe's, or None where that is not the network's; ``outputs`` the
    number of its logits; ``probabilities`` whether these are probabilities; ``huge`` and
    ``spoiled`` say which weight is too large or not finite; ``input_mean`` and ``input_std`` are
    those of what the first layer with weights gets, where a normalisation is part of the network;
    ``unused`` names the layers whose weights are trained and get no gradient.
    """

    initialization: str | None
    outputs: int
    probabilities: bool
    spoiled: str | None
    huge: str | None
    input_mean: float
    input_std: float
    unused: tuple[str, ...]


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
    training, schedule included, on that batch alone: a healthy recipe lowers its loss quickly. If
    it classifies the batch correctly at the end, what would predict that it cannot (a faint signal,
    dead units, a large or small step) is not reported.

    Optimiser and loss are those of the recipe. Where a loop of your own does not learn with a model
    in which nothing looks wrong, the reason is in the loop.

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
        outputs = _check_fit(network, images, len(loaders.classes))
        spoiled, huge = nonfinite_weight(network), _huge_weight(network)
        weights = balanced_weights(recipe, loaders.train.dataset, device)
        before = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        with restored_generators(device):
            seed_generators(seed, device)
            seen, unused = _first_step(network, images, labels, recipe, options, weights)
            network.load_state_dict(before)
            repeated = itertools.repeat((images, labels))
            losses = step_losses(network, repeated, steps, recipe, options, weights)
        with _watched(network) as after:
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
            replace(layer, dead_after=after.layers.get(name, layer).dead)
            for name, layer in seen.layers.items()
        ),
        findings=(),
    )
    given = images if seen.input is None or seen.input.shape != images.shape else seen.input
    given = given.float()
    known = _Model(
        recipe.initialization if model is None or isinstance(model, AlexNet) else None,
        outputs.shape[1],
        _are_probabilities(outputs),
        spoiled,
        huge,
        given.mean().item(),
        given.std().item(),
        unused,
    )
    findings = _findings(diagnosis, known, recipe, images, labels, loaders.train.dataset)
    return replace(diagnosis, findings=tuple(findings))


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
    parameters = [*network.parameters()]
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            "all layers of the model are frozen, so that no weight would change; expected at least "
            "one parameter with requires_grad"
        )
    placement = options.placement
    return network.to(placement.device, memory_format=placement.memory_format)  # type: ignore[call-overload,no-any-return]


def _check_fit(network: nn.Module, images: Tensor, classes: int) -> Tensor:
    """A network's logits of the images, or a ``ValueError`` where they do not fit the classes."""
    try:
        with _watched(network) as seen:
            output = network(images.float())
    except (RuntimeError, IndexError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"model cannot compute images of shape {tuple(images.shape)}, which data has: {error}"
        ) from error
    logits = checked_logits(output, len(images))
    if logits.ndim != 2 or logits.shape[1] < classes:
        raise ValueError(
            f"model returns logits of shape {tuple(logits.shape)}; expected "
            f"({len(images)}, {classes}), for the classes of data"
        )
    if not seen.layers:
        raise ValueError(
            "model has no nn.Conv2d and no nn.Linear; expected a network with layers to look at"
        )
    return logits


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients, but with batch normalisation as in training.

    Fresh running statistics would make it nearly the identity. They stay as they are.
    """
    normalizing = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    buffers = [buffer for module in normalizing for buffer in module.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    with torch.no_grad(), evaluation_mode(model):
        try:
            for module in normalizing:
                module.training = True
            yield
        finally:
            for buffer, former in zip(buffers, kept, strict=True):
                buffer.copy_(former)


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Pass]:
    """A block in which a model computes as for a measurement, and what its layers compute there."""
    seen = _Pass()

    def measured(layer: LayerDiagnosis, output: object) -> LayerDiagnosis:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return layer
        # Computed now, since an in-place ReLU would change the output.
        values = output.detach().float()
        signal = values.var(0, unbiased=False).mean().sqrt().item()
        return replace(layer, output=values.square().mean().sqrt().item(), signal=signal)

    def look(name: str, inputs: tuple[Any, ...], output: object) -> None:
        if not seen.layers and inputs and isinstance(inputs[0], Tensor):
            seen.input = inputs[0].detach()
        seen.layers[name] = measured(LayerDiagnosis(name, math.nan, math.nan), output)

    def look_after(module: nn.Module, output: Tensor) -> None:
        last = next(reversed(seen.layers.values()), None)
        if last is None or not (math.isnan(last.dead) and math.isnan(last.saturated)):
            return
        if isinstance(module, _NORMALIZATIONS):
            last = measured(last, output)
        elif isinstance(module, nn.ReLU | nn.ReLU6):
            units = output.detach().transpose(0, 1).flatten(1)
            last = replace(last, dead=(units == 0).all(1).float().mean().item())
        else:
            values = output.detach().float()
            values = values.abs() if isinstance(module, nn.Tanh) else (2 * values - 1).abs()
            last = replace(last, saturated=(values > _SATURATED).float().mean().item())
        seen.layers[last.name] = last

    handles = []
    for name, module in _named_modules(model):
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(
                module.register_forward_hook(
                    lambda _, inputs, output, name=name: look(name, inputs, output)
                )
            )
        elif isinstance(module, (*_NORMALIZATIONS, nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid)):
            handles.append(
                module.register_forward_hook(lambda module, _, output: look_after(module, output))
            )
    try:
        with _measuring(model):
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
) -> tuple[_Pass, tuple[str, ...]]:
    """What a pass shows, with the gradients of a step, and the layers that get none."""
    weights = {
        name: module.weight
        for name, module in _named_modules(model)
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    # Without dropout, whose masks would look like differences between the images.
    with _watched(model) as seen:
        model(images.float())
    model.train()
    step = build_step(recipe, model, options, class_weights=class_weights)
    scale = math.inf
    with suppress(FloatingPointError):  # the layers tell
        while step.scaler.get_scale() < scale:  # in float16, a step that overflows is left out
            scale = step.scaler.get_scale()
            step(images, labels, Totals(images.device))
    for name, layer in seen.layers.items():
        weight = weights[name]
        gradient = torch.zeros(()) if weight.grad is None else weight.grad
        size = gradient.square().mean().sqrt().item()
        change = ((weight.detach() - before[name]).norm() / before[name].norm()).item()
        seen.layers[name] = replace(layer, gradient=size, update=change)
    unused = (
        name for name, weight in weights.items() if weight.requires_grad and weight.grad is None
    )
    return seen, tuple(unused)


def _huge_weight(model: nn.Module) -> str | None:
    for name, weight in model.named_parameters():
        if weight.numel() and (most := weight.detach().abs().max().item()) > _HUGE_WEIGHT:
            return f"the weight {name} has values up to {most:.3g} before the first step"
    return None


def _are_probabilities(outputs: Tensor) -> bool:
    sums = outputs.float().sum(1)
    return bool((outputs >= 0).all() and ((sums - 1).abs() < 0.001).all())


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


def _findings(
    seen: Diagnosis,
    model: _Model,
    recipe: Recipe,
    images: Tensor,
    labels: Tensor,
    data: ImageSet,
) -> Iterator[str]:
    """Causes before their consequences.

    What the try proves wrong is not said: a batch that is learned has signals and steps enough.
    """
    if model.spoiled:
        yield f"{model.spoiled} before the first step"  # from which all else follows
        return
    yield from _model_findings(seen, model)
    yield from _label_findings(seen, labels, data)
    if same := _same_images(seen, images):
        yield same
        return
    yield from _input_findings(seen, model, recipe)
    if len(labels.unique()) == 1 or _learned(seen, labels):
        return
    if _falls(seen):
        yield (
            f"after {len(seen.losses)} steps on one batch the loss has fallen to "
            f"{_end(seen.losses):.2f}, and {seen.accuracy:.0%} are classified correctly: try more "
            f"steps (a batch is learned under {_LEARNED * seen.chance_loss:.2f}, or from "
            f"{_FITTED:.0%})"
        )
        return
    yield from _start_findings(seen, model)
    yield from _step_findings(seen, recipe)
    yield from _course_findings(seen)


def _learned(seen: Diagnosis, labels: Tensor) -> bool:
    """Whether the batch is classified correctly, for the most part and beyond guessing."""
    commonest = labels.bincount().max().item() / len(labels)
    if not all(map(math.isfinite, seen.losses)) or seen.accuracy < (1 + commonest) / 2:
        return False
    return seen.accuracy >= _FITTED or _end(seen.losses) <= _LEARNED * seen.chance_loss


def _falls(seen: Diagnosis) -> bool:
    """Whether the loss falls below guessing without having risen: training is only slow."""
    losses, chance = seen.losses, seen.chance_loss
    if not all(map(math.isfinite, losses)):
        return False
    lowest, highest = min(losses[0], chance), max(losses[0], chance)
    return _end(losses) < _BELOW * lowest and max(losses) < _LARGE_START * highest


def _end(losses: tuple[float, ...]) -> float:
    return sum(losses[-3:]) / len(losses[-3:])


def _listed(names: Iterable[str]) -> str:
    names = [*names]
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _model_findings(seen: Diagnosis, model: _Model) -> Iterator[str]:
    if model.huge:
        yield f"{model.huge}, so that it outweighs all others"
    if model.probabilities:
        yield (
            "the model returns probabilities, but the loss (cross entropy) takes logits and "
            "computes the softmax itself: remove the softmax at the model's end"
        )
    if model.outputs > seen.classes:
        yield (
            f"the model has {model.outputs} outputs, but the data has {seen.classes} classes: "
            f"expected a last layer of {seen.classes}"
        )
    if model.unused:
        yield (
            f"no gradient gets to {_listed(model.unused)}: not used in the forward pass, or "
            "detached from the loss"
        )


def _same_images(seen: Diagnosis, images: Tensor) -> str | None:
    images = images.float()
    least = _SAME * max(images.abs().max().item(), _SAME)
    if images.std(unbiased=False).item() < least:
        return (
            f"all pixels of all images are the same, {seen.input_mean:.3g}: nothing to learn from"
        )
    if len(images) > 1 and (images - images[:1]).abs().max().item() < least:
        return "all images of the batch are the same: nothing to learn from"
    return None


def _input_findings(seen: Diagnosis, model: _Model, recipe: Recipe) -> Iterator[str]:
    low, high = _USUAL_STD
    own = model.initialization
    scaled_for_raw = own in {"paper", "released_code"}
    mean, std = model.input_mean, model.input_std
    if scaled_for_raw and std < _RAW_STD:
        yield (
            f"the input has standard deviation {std:.2f}, and the initialisation {own!r} was made "
            "for values from 0 to 255 less their mean (about 63): set preprocessing to "
            "'subtract_mean', or initialization to 'kaiming'"
        )
    elif not scaled_for_raw and not low <= std <= high:
        expects = f"the initialisation {own!r} expects" if own else "expected"
        yield (
            f"the input is not normalised: its standard deviation is {std:.3g}, {expects} about 1"
        )
    elif not scaled_for_raw and abs(mean) > 1:
        yield f"the input is not centred: its mean is {mean:.2f}, expected about 0"
    if scaled_for_raw and recipe.dropout and recipe.dropout_scaling == "training":
        yield (
            f"the initialisation {own!r} was made for dropout that scales in the test; scaled in "
            "training, the next layers get more: set dropout_scaling to 'test'"
        )


def _label_findings(seen: Diagnosis, labels: Tensor, data: ImageSet) -> Iterator[str]:
    if len(labels.unique()) == 1:
        if len(data.labels.unique()) == 1:
            yield "all training images are of one class: expected at least two"
        elif seen.classes ** (1 - len(labels)) < _UNLIKELY:
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


def _start_findings(seen: Diagnosis, model: _Model) -> Iterator[str]:
    chance = math.log(model.outputs)
    if large := seen.losses[0] > _LARGE_START * chance:
        yield (
            f"the first loss is {seen.losses[0]:.2f}, where guessing gives {chance:.2f}: the "
            "outputs start too large, and the first steps will be too"
        )
    inactive = False
    for what, name in (("dead", "dead"), ("saturated", "saturated")):
        fractions = {layer.name: getattr(layer, name) for layer in seen.layers}
        if many := [f"{layer} {value:.0%}" for layer, value in fractions.items() if value > _DEAD]:
            inactive = True
            yield f"units are {what} at the start and get no gradient: {_listed(many)}"
    last = seen.layers[max(len(seen.layers) - 2, 0)]
    faint = _FAINT_SIGNAL * min(seen.input_std, 1.0)
    if not inactive and last.signal < faint:
        cause = (
            "the initial weights are too small for the depth (initialization='kaiming' is for that)"
            if last.output < _USUAL_STD[0] and not large
            else f"the biases outweigh it in the output of {last.name}, {last.output:.2g}"
        )
        yield (
            f"the differences between images shrink: {seen.input_std:.2g} at the input, "
            f"{last.signal:.1g} at {last.name}, so that all images get nearly the same output: "
            f"{cause}"
        )


def _step_findings(seen: Diagnosis, recipe: Recipe) -> Iterator[str]:
    moving = [layer for layer in seen.layers if layer.gradient > 0]
    if not moving:
        return
    if not any(layer.update > 0 for layer in moving):
        yield f"no weight changes: learning_rate ({recipe.learning_rate:g}) is too small"
        return
    # Not the last layer: it often starts small, and then large first steps are right.
    updates = {layer.name: layer.update for layer in seen.layers[:-1]}
    fast = [f"{name} {value:.0%}" for name, value in updates.items() if value > _LARGE_UPDATE]
    middle = sorted(layer.update for layer in moving)[len(moving) // 2]
    if fast:
        yield (
            f"the first step at the full learning rate ({recipe.learning_rate:g}) is large against "
            f"the weights: {_listed(fast)}: lower it, warm up, or clip gradients"
        )
    elif middle < _SMALL_UPDATE and not _diverged(seen):
        yield (
            f"the weights hardly change: a step changes them by {middle:.0e} of their size, so one "
            f"per cent takes some {0.01 / middle:,.0f} such steps: raise learning_rate "
            f"({recipe.learning_rate:g})"
        )


def _diverged(seen: Diagnosis) -> bool:
    return max(seen.losses) > 2 * max(seen.losses[0], seen.chance_loss)


def _course_findings(seen: Diagnosis) -> Iterator[str]:
    losses, chance = seen.losses, seen.chance_loss
    if not all(map(math.isfinite, losses)):
        yield (
            "the loss or a gradient became NaN or infinite on one batch: lower learning_rate, or "
            "clip gradients"
        )
        return
    if _diverged(seen):
        yield (
            f"the loss diverged on one batch, to {max(losses):.3g}: lower learning_rate, warm up, "
            "or clip gradients (max_grad_norm)"
        )
    died = [layer for layer in seen.layers if layer.dead_after > _DEAD and not layer.dead > _DEAD]
    if dead := [f"{layer.name} {layer.dead_after:.0%}" for layer in died]:
        yield f"units are dead after the steps and get no gradient: {_listed(dead)}"
    end = _end(losses)
    after = f"after {len(losses)} steps on one batch"
    if abs(end - chance) < (1 - _BELOW) * chance and seen.accuracy < _LEARNED:
        yield (
            f"{after} the loss is {end:.2f}, still that of guessing ({chance:.2f}): nothing was "
            "learned"
        )
    elif end > _LEARNED * chance:
        yield (
            f"{after} the loss is {end:.2f}; a healthy run brings it under {_LEARNED * chance:.2f}"
        )
    else:
        yield f"{after} only {seen.accuracy:.0%} of it are classified correctly"
