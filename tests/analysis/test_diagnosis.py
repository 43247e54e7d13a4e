"""The promises of `diagnose`: what it finds, what it measures, and what it leaves alone."""

import json
import math
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tolerance
from hypothesis import given
from hypothesis import strategies as st
from tiny import QUIET, SMALL, TINY, quiet, use_tiny
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from alexnet_lib import (
    AlexNet,
    ChannelStats,
    build_loaders,
    diagnose,
    fit,
    interrupts,
    prepare_loaders,
    prepare_model,
)
from alexnet_lib.analysis import diagnosis as diagnosis_module
from alexnet_lib.analysis.diagnosis import Diagnosis, LayerDiagnosis
from alexnet_lib.data.loaders import Loaders
from alexnet_lib.devices import RunOptions
from alexnet_lib.training import fit as fit_module
from alexnet_lib.training.recipes import RECIPES, Recipe
from alexnet_lib.training.step import TrainingStep


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    use_tiny(monkeypatch)


def tiny_recipe(**changes) -> Recipe:
    small = {"architecture": "tiny", "batch_size": 16, "learning_rate": 0.02}
    return Recipe("mine", **{**small, **changes})


@pytest.fixture
def quick(device):
    """A diagnosis on the device."""

    def quick(data="shapes", *, model=None, steps=5, seed=0, **changes) -> Diagnosis:
        recipe, options = tiny_recipe(**changes), quiet(device)
        return diagnose(data, recipe=recipe, model=model, steps=steps, seed=seed, options=options)

    return quick


def tiny_model(**arguments) -> AlexNet:
    return AlexNet(10, architecture=TINY, seed=0, **arguments)


def colored(count: int = 1200, *, shuffled: bool = False) -> Loaders:
    """Images whose class is their mean colour, or whose labels have been permuted."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    colors = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])[labels]
    images = (colors[:, :, None, None] + torch.rand(count, 3, 12, 12, generator=generator)) / 2
    if shuffled:
        labels = labels[torch.randperm(count, generator=generator)]
    data = TensorDataset(images, labels)
    return build_loaders(data, test_fraction=0.0, image_size=12, batch_size=16)


def with_mean(loaders: Loaders, mean: tuple[float, ...]) -> Loaders:
    """The same loaders, subtracting this mean."""
    return Loaders(
        *(
            part and replace(part, preprocess=replace(part.preprocess, mean=mean))
            for part in loaders
        )
    )


def shapes(**changes) -> Loaders:
    return prepare_loaders("shapes", tiny_recipe(**changes), options=QUIET)


def first_batch(loaders: Loaders) -> tuple[Tensor, Tensor]:
    return next(iter(replace(loaders.train, augmentation=())))


def said(diagnosis: Diagnosis, pattern: str) -> bool:
    return any(re.search(pattern, finding) for finding in diagnosis.findings)


# What it finds.


@pytest.fixture(scope="module")
def tutorial(device) -> Diagnosis:
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        small = {"image_size": 67, "batch_size": 16}
        return diagnose(
            "shapes", recipe="tutorial", overrides=small, steps=3, options=quiet(device)
        )


def test_the_tutorials_rate_is_found_too_small(tutorial):
    assert said(tutorial, r"^the weights hardly change: .* raise learning_rate \(0\.0001\)$")


def test_the_tutorials_signal_is_found_to_fade(tutorial):
    assert said(
        tutorial, "^the differences between images shrink: .* at fc7, .*initialization='kaiming'"
    )


def test_a_try_that_stays_at_guessing_is_found(tutorial):
    assert said(tutorial, r"^after 3 steps on one batch the loss is .* nothing was learned$")


def test_raw_values_are_found_not_to_be_normalised(quick):
    assert said(quick(preprocessing="subtract_mean"), r"^the input is not normalised: .* is [56]\d")


def test_a_start_that_is_worse_than_guessing_is_found(quick):
    assert said(
        quick(preprocessing="subtract_mean"), "^the first loss is .*: the outputs start too"
    )


@pytest.mark.parametrize("initialization", ["paper", "released_code"])
def test_normalised_values_are_found_too_small_for_an_initialisation_for_raw_ones(
    quick, initialization
):
    diagnosis = quick(initialization=initialization)
    assert said(diagnosis, rf"^the input has .*'{initialization}' was made for values from 0 to")
    assert not said(
        quick(initialization=initialization, preprocessing="subtract_mean"), "^the input"
    )


@pytest.mark.parametrize("initialization", ["paper", "released_code"])
def test_dropout_scaled_in_training_is_found_too_large_for_the_papers_weights(
    quick, initialization
):
    paper = {"initialization": initialization, "preprocessing": "subtract_mean"}
    message = f"^the initialisation '{initialization}' was made for dropout that scales in the test"
    assert said(quick(**paper, dropout=0.5), message)
    assert not said(quick(**paper, dropout=0.5, dropout_scaling="test"), message)
    assert not said(quick(**paper, dropout=0.0), message)


def test_an_input_that_is_not_centred_is_found(quick):
    loaders = colored()
    shifted = tuple(mean - 2 * std for mean, std in zip(*moments(loaders), strict=True))
    assert said(
        quick(with_mean(loaders, shifted)), r"^the input is not centred: its mean is [12]\."
    )


def moments(loaders: Loaders) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return loaders.preprocess.mean, loaders.preprocess.std


def test_labels_that_do_not_belong_to_their_images_are_found(quick):
    diagnosis = quick(colored(shuffled=True))
    assert said(diagnosis, "^the labels may not belong to their images")
    assert diagnosis.label_accuracy < diagnosis.label_chance + 0.1


def test_labels_that_belong_to_their_images_are_not_found(quick):
    diagnosis = quick(colored())
    assert not said(diagnosis, "labels")
    assert diagnosis.label_accuracy > 0.9


def test_of_few_images_nothing_is_said_about_the_labels(quick):
    diagnosis = quick(colored(600, shuffled=True))
    assert not said(diagnosis, "labels")
    assert math.isnan(diagnosis.label_accuracy)
    assert math.isnan(diagnosis.label_chance)
    assert diagnosis.label_images == 0


def test_a_batch_of_one_class_is_found(quick):
    loaders = colored()
    of_class_0 = (loaders.train.dataset.labels == 0).nonzero()[:, 0]
    sorted_first = torch.cat([of_class_0, torch.arange(len(loaders.train.dataset))])
    data = loaders.train.dataset.subset(sorted_first)
    loaders = loaders._replace(train=replace(loaders.train, dataset=data, shuffle=False))
    assert said(quick(loaders), "^all images of the batch are of one class")
    assert not said(quick(colored()), "of one class")


def test_dead_units_are_found(quick):
    model = tiny_model()
    nn.init.constant_(model.features.conv1.bias, -1e6)
    assert said(quick(model=model), r"^units are dead at the start and .*: conv1 100%$")


def test_units_that_die_in_the_try_are_found(quick):
    # The first step makes every bias of conv1 negative: all inputs and weights are positive.
    loaders = with_mean(colored(), (0.0, 0.0, 0.0))
    model = AlexNet(4, architecture=TINY, seed=0, dropout=0.0)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    nn.init.zeros_(model.classifier.fc2.weight)
    nn.init.normal_(model.classifier.fc2.weight[0], mean=1.0, std=0.01)
    diagnosis = quick(loaders, model=model, learning_rate=50.0, warmup_fraction=0.0, steps=2)
    assert diagnosis.layers[0].dead == 0
    assert said(diagnosis, r"^units are dead after the steps and .*: conv1 100%$")


@pytest.mark.bad_input
def test_a_network_with_nothing_to_train_is_refused(quick):
    with pytest.raises(ValueError, match="all layers of the model are frozen"):
        quick(freeze=("conv1", "fc2"))


def test_the_layers_that_are_frozen_do_not_move(quick):
    conv1, fc2 = quick(freeze=("conv1",)).layers
    assert conv1.update == conv1.gradient == 0
    assert fc2.update > 0


HUGE = {"max_grad_norm": None, "warmup_fraction": 0.0, "steps": 10}


def test_a_loss_that_blows_up_is_found(quick):
    assert said(quick(learning_rate=1.0, **HUGE), r"^the loss diverged on one batch, to \d")


def test_a_loss_that_is_not_finite_is_found(quick):
    assert said(
        quick(learning_rate=1e10, **HUGE), "^the loss or a gradient became NaN or infinite on one"
    )


def test_a_first_step_that_is_large_against_the_weights_is_found(quick):
    assert said(quick(learning_rate=9.0), r"^the first step at .* \(9\) is large .*: conv1 \d+%")


def test_large_first_steps_of_a_last_layer_that_starts_small_are_right(quick):
    assert not said(quick(learning_rate=0.1), "^the first step")


def test_steps_that_are_lost_in_rounding_are_found(quick):
    assert said(quick(learning_rate=1e-30), r"^no weight changes: learning_rate \(1e-30\)")


def test_a_try_that_learns_too_little_is_found(quick):
    diagnosis = quick(learning_rate=0.05, steps=8)
    assert said(diagnosis, r"^after 8 steps .*under 1\.15")


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_nothing_is_found_in_a_healthy_run(quick, optimizer):
    rate = {"sgd": 0.005, "muon": 0.01}[optimizer]
    healthy = {"initialization": "torch", "max_grad_norm": None, "dropout": 0.0}
    healthy |= {"optimizer": optimizer, "learning_rate": rate, "warmup_fraction": 0.0}
    assert quick(colored(), steps=120, **healthy).findings == ()


@pytest.mark.slow
def test_the_default_recipe_at_a_small_size_has_none_of_the_grave_findings():
    small = {"image_size": 67, "batch_size": 16}
    diagnosis = diagnose("shapes", overrides=small, options=QUIET)
    # A large first loss or step may be; whatever else is found would be grave.
    assert [text for text in diagnosis.findings if not text.startswith("the first ")] == []
    assert diagnosis.accuracy > 0.9


# Networks that learn, and illnesses that are planted in them.


def convolutional(
    norm=nn.Identity, activation=nn.ReLU, head_norm=nn.Identity, channels: int = 3
) -> nn.Sequential:
    """Two convolutions and two fully connected layers for images of 12 pixels and four classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), norm(16), activation(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), norm(16), activation(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(144, 32), head_norm(32), activation(), nn.Dropout(0.5),
        nn.Linear(32, 4),
    )  # fmt: skip


def deep(norm, depth: int = 8) -> nn.Sequential:
    """As deep as AlexNet, with PyTorch's initialisation."""
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), norm(8), nn.ReLU())
        for channels in [3] + [8] * (depth - 1)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))


def vgg_with_batch_norm() -> nn.Module:
    from torchvision.models import vgg

    torch.manual_seed(0)
    model = vgg.VGG(vgg.make_layers([8, "M", 16, "M", 16, 16], batch_norm=True), num_classes=4)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(16, 32), nn.ReLU(True), nn.Linear(32, 4))
    return model


def resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4)
    # Without its two large blocks.
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(128, 4)
    return model


def mobilenet() -> nn.Module:
    from torchvision.models import MobileNetV2

    torch.manual_seed(0)
    blocks = [[1, 8, 1, 1], [2, 16, 1, 2], [2, 16, 1, 1]]
    return MobileNetV2(num_classes=4, width_mult=0.25, inverted_residual_setting=blocks)


def frozen() -> nn.Module:
    model = convolutional(nn.BatchNorm2d)
    model[0].requires_grad_(False)
    return model


def pretrained() -> nn.Module:
    model = convolutional(nn.BatchNorm2d)
    loaders = colored(64)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for images, labels in [*loaders.train] * 5:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


HEALTHY = {
    "plain": convolutional,
    "batch norm after each convolution": lambda: convolutional(nn.BatchNorm2d),
    "batch norm in the classifier": lambda: convolutional(nn.BatchNorm2d, head_norm=nn.BatchNorm1d),
    "group norm": lambda: convolutional(lambda n: nn.GroupNorm(4, n), head_norm=nn.LayerNorm),
    "eight layers with batch norm": lambda: deep(nn.BatchNorm2d),
    "GELU": lambda: convolutional(activation=nn.GELU),
    "SiLU": lambda: convolutional(activation=nn.SiLU),
    "tanh": lambda: convolutional(activation=nn.Tanh),
    "leaky ReLU": lambda: convolutional(activation=nn.LeakyReLU),
    "ELU": lambda: convolutional(activation=nn.ELU),
    "a linear classifier": lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 4)),
    "a pretrained start": pretrained,
    "a frozen layer": frozen,
    "VGG": vgg_with_batch_norm,
    "ResNet": resnet,
    "MobileNet": mobilenet,
}

LEARNS = {"learning_rate": 0.05, "warmup_fraction": 0.0, "steps": 40}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_in_a_network_that_learns(quick, name):
    diagnosis = quick(colored(64), model=HEALTHY[name](), **LEARNS)
    assert diagnosis.findings == ()
    assert diagnosis.accuracy > 0.9


def test_nothing_is_found_in_a_network_of_grey_images_that_learns(quick):
    loaders = colored(64)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    images = labels[:, None, None, None] / 4 + torch.rand(64, 1, 12, 12, generator=generator) / 4
    data = TensorDataset(images, labels)
    loaders = build_loaders(data, test_fraction=0.0, image_size=12, batch_size=16)
    model = convolutional(nn.BatchNorm2d, channels=1)
    assert quick(loaders, model=model, channels=1, **LEARNS).findings == ()


def altered(change, model: nn.Sequential | None = None) -> nn.Module:
    model = model or convolutional()
    with torch.no_grad():
        change(model)
    return model


def large_bias(model):
    model[0].bias.fill_(1e6)


def large_last_bias(model):
    model[-1].bias[0] = 1e6


def dead(model):
    for layer in (model[0], model[4], model[9]):
        layer.bias.fill_(-100.0)


def saturated(model):
    for layer in (model[0], model[4], model[9]):
        layer.weight.mul_(200.0)


def spoiled(model):
    model[4].weight[0] = math.nan


class Unconnected(nn.Module):
    """A network one layer of which is forgotten, or whose convolution is detached."""

    def __init__(self, *, detached: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.detached = detached
        self.conv = nn.Conv2d(3, 8, 3)
        self.hidden = nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images).relu().mean((2, 3))
        if self.detached:
            return self.last(self.hidden(values.detach()).relu())
        return self.last(values)


class Scaled(nn.Module):
    """Normalises with the statistics of photos, whatever comes."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.45) / 0.225


def raw() -> Loaders:
    """Images from 0 to 255."""
    loaders = colored(64)
    preprocess = replace(
        loaders.train.preprocess, scale=255.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    return Loaders(*(part and replace(part, preprocess=preprocess) for part in loaders))


def of_labels(labels: Tensor, images: Tensor | None = None, batch_size: int = 16) -> Loaders:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 12, 12, generator=generator) if images is None else images
    stats = ChannelStats((0.5,) * 3, (0.25,) * 3, 64)
    data = TensorDataset(images, labels)
    shape = {"image_size": 12, "batch_size": batch_size}
    return build_loaders(data, test_fraction=0.0, stats=stats, **shape)


LABELS = torch.arange(64) % 4
PAPER = {"initialization": "paper", "preprocessing": "subtract_mean"}

# Illness: what is diagnosed, and the first finding.
ILLNESSES = {
    "a small learning rate": (
        {"model": convolutional, "learning_rate": 1e-6},
        r"^the weights hardly change: .* raise learning_rate \(1e-06\)$",
    ),
    "a small learning rate with batch norm": (
        {"model": lambda: deep(nn.BatchNorm2d), "learning_rate": 1e-6},
        "^the weights hardly change: .* raise learning_rate",
    ),
    "a large learning rate": (
        {"model": convolutional, "learning_rate": 50.0, "max_grad_norm": None},
        "^the first step at the full learning rate .* is large",
    ),
    "PyTorch's initialisation in a deep network": (
        {"model": lambda: deep(nn.Identity), "learning_rate": 1e-4},
        "^the differences between images shrink: ",
    ),
    "nn.Dropout with the paper's weights": (
        {"data": lambda: "shapes", **PAPER, "dropout": 0.5},
        "^the initialisation 'paper' was made for dropout that scales in the test",
    ),
    "dead units": ({"model": lambda: altered(dead)}, "^units are dead at the start .*: 0 100%"),
    "saturated tanh": (
        {"model": lambda: altered(saturated, convolutional(activation=nn.Tanh)), "steps": 3},
        r"^units are saturated at the start and get no gradient: 0 \d+%",
    ),
    "shuffled labels": (
        {"data": lambda: colored(1200, shuffled=True), "model": convolutional},
        "^the labels may not belong to their images",
    ),
    "equal labels": (
        {"data": lambda: of_labels(torch.zeros(64, dtype=torch.long))},
        "^all training images are of one class",
    ),
    "constant images": (
        {"data": lambda: of_labels(LABELS, torch.full((64, 3, 12, 12), 0.5))},
        "^all pixels of all images are the same",
    ),
    "one image": (
        {"data": lambda: of_labels(LABELS, torch.rand(1, 3, 12, 12).expand(64, -1, -1, -1))},
        "^all images of the batch are the same",
    ),
    "images from 0 to 255": (
        {"data": raw, "model": convolutional},
        r"^the input is not normalised: its standard deviation is \d\d",
    ),
    "normalised twice": (
        {"model": lambda: nn.Sequential(Scaled(), convolutional())},
        "^the input is not normalised: its standard deviation is 4|^the input is not centred",
    ),
    "softmax before the loss": (
        {"model": lambda: nn.Sequential(convolutional(), nn.Softmax(1))},
        "^the model returns probabilities",
    ),
    "more outputs than classes": (
        {"model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 1000))},
        "^the model has 1000 outputs, but the data has 4 classes",
    ),
    "a layer that is not used": (
        {"model": lambda: Unconnected(detached=False)},
        "^no gradient gets to hidden: ",
    ),
    "a layer that is detached": (
        {"model": lambda: Unconnected(detached=True)},
        "^no gradient gets to conv: ",
    ),
    "NaN": (
        {"model": lambda: altered(spoiled)},
        "^the weight 4.weight is NaN or infinite before the first step$",
    ),
    "a huge bias": (
        {"model": lambda: altered(large_bias)},
        r"^the weight 0.bias has values up to 1e\+06",
    ),
    "a huge last bias": (
        {"model": lambda: altered(large_last_bias)},
        r"^the weight 13.bias has values up to 1e\+06",
    ),
}


@pytest.mark.parametrize("name", ILLNESSES)
def test_the_first_finding_is_the_illness(quick, name):
    planted, finding = ILLNESSES[name]
    diagnosis = planted_illness(quick, **planted)
    assert re.search(finding, diagnosis.findings[0]), diagnosis.findings
    assert_no_contradiction(diagnosis)


def planted_illness(quick, data=lambda: colored(64), model=lambda: None, **changes):
    return quick(data(), model=model(), **{"warmup_fraction": 0.0, "steps": 8, **changes})


# Of two findings that say the opposite, or of which one proves the other wrong, there is one.
CONTRADICTIONS = (
    ("raise learning_rate", "lower it|lower learning_rate"),
    ("NaN or infinite before", "lower|raise|dead|shrink"),
    ("initial weights are too small", "start too large|at the start and get no"),
    ("all pixels|images of the batch are the same", "not normalised|not centred|shrink|learned"),
    ("images are of one class", "learned|dead|shrink|hardly"),
    ("has fallen to", "dead|shrink|hardly|lower it|diverged|nothing was learned|start too large"),
    ("nothing was learned", "classified correctly|a healthy run"),
)


def assert_no_contradiction(diagnosis: Diagnosis) -> None:
    for one, other in CONTRADICTIONS:
        assert not (said(diagnosis, one) and said(diagnosis, other)), diagnosis.findings
    if diagnosis.accuracy >= 0.9 and math.isfinite(sum(diagnosis.losses)):
        assert not said(diagnosis, "dead|shrink|hardly|lower|diverged|learned|start too large|only")


@pytest.mark.parametrize(
    ("updates", "losses"), [((0.1, 1e-7, 1e-7), [1.39]), ((1e-7, 1e-7, 1e-7), [0.1, 2.0, 3.0])]
)
def test_the_rate_is_not_called_too_small_and_too_large(updates, losses):
    layers = [LayerDiagnosis("a", 1.0, 0.01, gradient=1.0, update=update) for update in updates]
    assert_no_contradiction(judged(layers, losses))


def test_weights_are_not_called_too_small_where_the_outputs_start_too_large():
    assert_no_contradiction(judged([LayerDiagnosis("a", 0.001, 0.001)] * 2, [5.0]))


def judged(layers: list[LayerDiagnosis], losses: list[float]) -> Diagnosis:
    seen = Diagnosis(
        "", 0.0, 1.0, 4, math.log(4), tuple(losses), 0.1, 1.0, 0.25, 0, tuple(layers), ()
    )
    model = diagnosis_module._Model("kaiming", 4, False, None, None, 0.0, 1.0, ())
    parts = diagnosis_module._start_findings, diagnosis_module._step_findings
    found = [*parts[0](seen, model), *parts[1](seen, tiny_recipe())]
    return replace(seen, findings=(*found, *diagnosis_module._course_findings(seen)))


sizes = st.sampled_from([0.0, 1e-7, 1e-4, 0.01, 0.1, 1.0, 10.0, 1e6, math.inf, math.nan])
shares = st.sampled_from([0.0, 0.1, 0.6, 1.0, math.nan])
measured_layers = st.lists(
    st.builds(LayerDiagnosis, st.just("a"), sizes, sizes, shares, sizes, sizes, shares, shares),
    min_size=1,
    max_size=4,
)
courses = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 1.3, 1.39, 2.0, 5.0, 1e6, math.nan]), min_size=1, max_size=6
)


@given(measured_layers, courses, st.sampled_from([0.0, 0.25, 0.7, 0.9, 1.0]), sizes, st.data())
def test_no_two_findings_contradict_whatever_is_measured(layers, losses, accuracy, std, data):
    initialization = data.draw(st.sampled_from([None, "kaiming", "paper"]))
    spoiled, huge = data.draw(st.tuples(*[st.sampled_from([None, "the weight a"])] * 2))
    model = diagnosis_module._Model(initialization, 4, False, spoiled, huge, 0.0, std, ())
    seen = Diagnosis(
        "", 0.0, std, 4, math.log(4), tuple(losses), accuracy, 1.0, 0.25, 0, tuple(layers), ()
    )
    images = torch.arange(96.0).reshape(8, 3, 2, 2) * data.draw(st.sampled_from([0, 1]))
    labels = torch.arange(8) % data.draw(st.sampled_from([1, 4]))
    findings = diagnosis_module._findings(
        seen, model, tiny_recipe(), images, labels, SimpleNamespace(labels=labels)
    )
    found = replace(seen, findings=tuple(findings))
    assert_no_contradiction(found)
    assert max(map(len, str(found).splitlines())) <= 80


@pytest.mark.bad_input
def test_a_module_with_nothing_to_train_is_refused(quick):
    with pytest.raises(ValueError, match="all layers of the model are frozen, so that no weight"):
        quick(colored(64), model=convolutional().requires_grad_(False))


def test_what_a_learned_batch_proves_wrong_is_not_said(quick):
    # Faint at the start, and yet learned.
    model = altered(lambda model: model[9].weight.mul_(0.01))
    short = quick(colored(64), model=model, **{**LEARNS, "steps": 1})
    assert said(short, "^the differences between images shrink")
    assert quick(colored(64), model=model, **{**LEARNS, "steps": 200}).findings == ()


def test_a_loss_that_only_falls_slowly_is_called_nothing_else(quick):
    slow = {**LEARNS, "learning_rate": 0.005, "momentum": 0.0, "steps": 40}
    diagnosis = quick(colored(64), model=deep(nn.BatchNorm2d), **slow)
    assert 0.3 < diagnosis.losses[-1] / diagnosis.chance_loss < 0.9
    (finding,) = diagnosis.findings
    assert finding.startswith("after 40 steps on one batch the loss has fallen to ")


def test_with_batch_norm_the_signal_is_that_of_training(quick):
    model = convolutional(nn.BatchNorm2d)
    images, _ = first_batch(loaders := colored(64))
    training = model[:2].train()(images)
    expected = training.var(0, unbiased=False).mean().sqrt().item()
    first = quick(loaders, model=model, steps=1).layers[0]
    assert first.signal == pytest.approx(expected, rel=1e-4)
    assert first.output == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
def test_a_measurement_leaves_the_running_statistics_as_they_are(error):
    model = convolutional(nn.BatchNorm2d, head_norm=nn.BatchNorm1d).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with suppress(RuntimeError), diagnosis_module._measuring(model):
        model(torch.rand(4, 3, 12, 12))
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
        if error:
            raise error
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.bad_input
def test_a_batch_too_small_for_batch_norm_is_named(quick):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"\(1, 3, 12, 12\), .*: Expected more than 1 value"):
        quick(of_labels(LABELS, batch_size=1), model=model)


# What it measures.


def test_a_layers_numbers_are_those_of_its_first_step(quick):
    plain = {"momentum": 0.0, "weight_decay": 0.0, "max_grad_norm": None, "label_smoothing": 0.0}
    model, loaders = tiny_model(dropout=0.0), shapes()
    images, labels = first_batch(loaders)
    output = model.features.conv1(images)
    weight = model.features.conv1.weight
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), weight)
    conv1 = quick(loaders, model=model, **plain, learning_rate=0.5).layers[0]
    assert conv1.name == "conv1"
    assert conv1.output == pytest.approx(output.square().mean().sqrt().item(), rel=1e-4)
    spread = output.var(0, unbiased=False).mean().sqrt().item()
    assert conv1.signal == pytest.approx(spread, rel=1e-4)
    assert conv1.gradient == pytest.approx(gradient.square().mean().sqrt().item(), rel=1e-3)
    step = (0.5 * gradient.norm() / weight.norm()).item()
    assert conv1.update == pytest.approx(step, rel=1e-3)


def test_a_relu_in_place_does_not_change_what_is_seen_before_it(quick):
    model, loaders = tiny_model(), shapes()
    expected = quick(loaders, model=model).layers
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    seen = quick(loaders, model=model).layers
    assert [(layer.output, layer.signal) for layer in seen] == [
        (layer.output, layer.signal) for layer in expected
    ]


def test_the_share_of_dead_units_is_counted(quick):
    model = tiny_model()
    with torch.no_grad():
        model.features.conv1.bias[0] = -1e6  # one of four channels
    assert quick(model=model).layers[0].dead == 0.25


def test_a_layer_without_relu_has_no_dead_units(quick):
    last = quick().layers[-1]
    assert last.name == "fc2"
    assert math.isnan(last.dead)
    assert math.isnan(last.dead_after)


def test_the_try_starts_at_the_loss_of_the_weights_it_is_given(quick):
    model, loaders = tiny_model(dropout=0.0), shapes()
    images, labels = first_batch(loaders)
    expected = F.cross_entropy(model(images), labels).item()
    diagnosis = quick(loaders, model=model)
    assert diagnosis.losses[0] == pytest.approx(expected, rel=1e-4)
    assert diagnosis.chance_loss == pytest.approx(math.log(10))


def test_the_losses_of_the_try_are_without_label_smoothing(quick):
    with_smoothing, without = quick(label_smoothing=0.5), quick(label_smoothing=0.0)
    assert with_smoothing.losses[0] == without.losses[0]


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_the_try_has_as_many_steps_as_are_asked_for(quick, steps):
    assert len(quick(steps=steps).losses) == steps


def test_the_input_is_the_first_batch_without_augmentation(device, quick):
    augmented = {"color_noise": 10.0, "random_crop": True, "resize_ratio": 1.5}
    found = quick(**augmented)
    images, _ = first_batch(shapes(**augmented))
    rel = tolerance(device, 1e-6, 1e-5)
    assert found.input_mean == pytest.approx(images.mean().item(), rel=rel)
    assert found.input_std == pytest.approx(images.std().item(), rel=rel)


def test_the_same_seed_gives_the_same_diagnosis(quick):
    first, again, other = quick(seed=1), quick(seed=1), quick(seed=2)
    assert str(first) == str(again) != str(other)


@pytest.mark.slow
def test_the_accuracy_is_that_on_the_batch_after_the_try(quick):
    assert quick(colored(), steps=60, dropout=0.0).accuracy == 1.0


def test_a_recipe_is_taken_by_its_name_and_changed_by_overrides():
    small = {"architecture": "tiny", "image_size": 12, "batch_size": 16}
    diagnosis = diagnose("shapes", recipe="paper", overrides=small, steps=1, options=QUIET)
    assert diagnosis.recipe == "paper"
    assert [layer.name for layer in diagnosis.layers] == ["conv1", "fc2"]


def sequential() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 10, 5), nn.Linear(5, 10)
    )


def test_any_modules_layers_are_named_as_torch_names_them(quick):
    diagnosis = quick(model=sequential())
    assert [layer.name for layer in diagnosis.layers] == ["0", "3", "4"]
    assert [math.isnan(layer.dead) for layer in diagnosis.layers] == [False, True, True]


# What it looks at is what `fit` trains.


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", ["modern", "paper"])
def test_the_doctor_looks_at_the_batches_and_the_network_that_fit_trains(
    device, recipe, precision, memory_format, monkeypatch
):
    seen, real = [], TrainingStep.train_on

    def look(step, batches, totals):
        batches = [*batches]
        images = batches[0].images
        weight = step.model.features.conv1.weight
        batch = (images.device, images.dtype, images.shape, images.stride(), step.precision)
        seen.append((*batch, weight.device, weight.dtype, weight.stride()))
        real(step, batches, totals)

    monkeypatch.setattr(TrainingStep, "train_on", look)
    options = RunOptions(str(device), precision, memory_format, progress=False)
    overrides = {**SMALL, "epochs": 1, "batch_size": 18}  # three whole batches
    diagnose("shapes", recipe=recipe, overrides=overrides, steps=2, options=options)
    diagnosed = seen.copy()
    seen.clear()
    fit("shapes", recipe=recipe, overrides=overrides, options=options)
    assert len(diagnosed) == len(seen) == 3
    assert {*diagnosed} == {*seen}
    assert seen[0][1] == getattr(torch, precision)


def test_the_doctor_and_fit_prepare_by_the_same_functions():
    for module in (diagnosis_module, fit_module):
        assert module.prepare_loaders is prepare_loaders
        assert module.prepare_model is prepare_model


# What it leaves alone.


@pytest.mark.parametrize("make", [tiny_model, sequential])
def test_the_model_keeps_its_weights(quick, make):
    model, expected = make(), make()
    quick(model=model, steps=3)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name]), name


@pytest.mark.parametrize("training", [False, True])
def test_the_model_keeps_its_mode(quick, training):
    model = tiny_model().train(training)
    model.features.conv1.train(not training)
    before = [module.training for module in model.modules()]
    quick(model=model)
    assert [module.training for module in model.modules()] == before


def test_the_model_keeps_its_gradients(quick):
    model = tiny_model()
    model.classifier.fc2.bias.grad = torch.ones(10)
    quick(model=model)
    assert torch.equal(model.classifier.fc2.bias.grad, torch.ones(10))
    assert model.features.conv1.weight.grad is None


def test_no_hook_is_left_on_the_model(quick):
    model = tiny_model()
    quick(model=model)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_global_random_states_are_left_as_they_were(quick):
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist()

    torch.manual_seed(7), np.random.seed(7)
    expected = draws()
    torch.manual_seed(7), np.random.seed(7)
    quick()
    assert draws() == expected


def test_the_loaders_that_are_given_are_left_at_their_epoch(quick):
    loaders = colored()
    expected = first_batch(colored())[0]
    quick(loaders)
    assert torch.equal(first_batch(loaders)[0], expected)


# How it is printed and kept.


def test_printed_it_has_a_row_for_each_layer_and_a_line_for_each_finding(tutorial):
    lines = str(tutorial).splitlines()
    rows = [line for line in lines if line.split()[0] in {layer.name for layer in tutorial.layers}]
    assert [row.split()[0] for row in rows] == [layer.name for layer in tutorial.layers]
    findings = re.sub("\n  ", " ", str(tutorial)).splitlines()[-len(tutorial.findings) :]
    assert findings == [f"- {finding}" for finding in tutorial.findings]


def test_printed_it_fits_a_terminal_of_80_columns(tutorial):
    layer = tutorial.layers[0]
    # As wide as numbers of float32 can be.
    widest = {"output": 1.23e38, "signal": 1.2e-38, "update": 1.2e-38, "dead": 1.0}
    long = replace(
        tutorial,
        recipe="long " * 40,
        losses=tuple(123456.789 for _ in range(40)),
        layers=(replace(layer, name="block.".join(map(str, range(20))), **widest),),
    )
    assert max(map(len, str(tutorial).splitlines())) <= 80
    assert max(map(len, str(long).splitlines())) <= 80
    assert "...6block.17block.18block.19" in str(long)


def test_the_reports_of_the_documentation_fit_80_columns():
    folder = Path(__file__).parents[2] / "benchmarks" / "results" / "doctor"
    reports = [file.read_text(encoding="utf-8") for file in folder.glob("*.txt")]
    assert len(reports) == 4
    assert max(len(line) for report in reports for line in report.splitlines()) <= 80


def test_in_a_notebook_it_is_short_or_the_report(tutorial):
    assert repr(tutorial) == (
        f"Diagnosis(recipe='tutorial', accuracy={tutorial.accuracy:.2f}, "
        f"findings={len(tutorial.findings)})"
    )
    html = replace(tutorial, recipe="<b>")._repr_html_()
    assert html.startswith("<pre>recipe &lt;b&gt;, 10 classes")


def test_printed_without_findings_it_says_so(tutorial):
    assert str(replace(tutorial, findings=())).splitlines()[-1] == "- nothing looks wrong"


@pytest.mark.parametrize("rate", [0.02, 1e10])
def test_as_a_dict_it_is_json_without_nan(quick, rate):
    diagnosis = quick(learning_rate=rate, **HUGE)
    data = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert data["layers"][1]["dead"] is None
    assert data["layers"][0]["name"] == "conv1"
    assert data["findings"] == list(diagnosis.findings)
    # The try ends at a step that is not finite.
    assert (data["losses"][-1] is None) == (rate > 1)
    assert len(data["losses"]) == 10 or rate > 1


# What it refuses.


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0; expected an integer from 1 to 100000"),
        ({"steps": 1.5}, "steps is 1.5; expected an integer from 1 to 100000"),
        ({"steps": 10**9}, "steps is 1000000000; expected an integer from 1 to 100000"),
        ({"seed": 2**63}, f"seed is {2**63}; expected an integer from 0 to {2**63 - 1}"),
        ({"recipe": "plain"}, "recipe is 'plain'; expected a Recipe or one of 'modern'"),
        ({"overrides": {"rate": 1}}, "overrides has ['rate']; expected names among"),
    ],
)
def test_an_argument_out_of_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        diagnose("shapes", **{"recipe": RECIPES["modern"], "options": QUIET, **arguments})


# Precision and unequal classes


def test_in_float16_the_first_step_is_one_that_does_not_overflow(device, monkeypatch):
    real = torch.amp.GradScaler.__init__

    def large(scaler, *arguments, **named):
        real(scaler, *arguments, init_scale=2.0**40, **named)

    monkeypatch.setattr(torch.amp.GradScaler, "__init__", large)
    options = RunOptions(str(device), "float16", progress=False)
    recipe = tiny_recipe(max_grad_norm=None)
    half = diagnose("shapes", recipe=recipe, steps=2, options=options)
    monkeypatch.undo()
    use_tiny(monkeypatch)
    exact = diagnose("shapes", recipe=recipe, steps=2, options=quiet(device))
    for found, expected in zip(half.layers, exact.layers, strict=True):
        assert found.update > 0
        assert found.gradient == pytest.approx(expected.gradient, rel=0.2)


def test_the_try_is_weighted_by_the_classes_as_the_training_is(quick, monkeypatch):
    seen, real = [], Recipe.criterion

    def criterion(recipe, logits, labels, class_weights=None):
        seen.append(class_weights is not None)
        return real(recipe, logits, labels, class_weights)

    monkeypatch.setattr(Recipe, "criterion", criterion)
    quick(balance="loss", steps=2)
    assert seen == [True] * 3


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"options": {}}, TypeError, "options is a dict; expected RunOptions"),
        ({"model": 3}, TypeError, r"model is a int; expected a torch\.nn\.Module"),
        ({"steps": 1.5}, ValueError, "steps is 1.5; expected an integer from 1 to 100000"),
        ({"seed": True}, ValueError, "seed is True; expected an integer from 0 to"),
    ],
)
def test_an_argument_of_another_kind_is_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        diagnose("shapes", **{"recipe": tiny_recipe(), "options": QUIET, **arguments})


# Networks that do not fit, and weights that are not numbers


def test_spoiled_weights_are_named(quick):
    model = tiny_model()
    nn.init.constant_(model.features.conv1.bias, math.nan)
    diagnosis = quick(model=model)
    assert diagnosis.findings[0] == (
        "the weight features.conv1.bias is NaN or infinite before the first step"
    )
    assert len(diagnosis.losses) == 1
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    assert "conv1" in str(diagnosis)


def test_a_gradient_that_is_not_finite_ends_the_try(quick, monkeypatch):
    real = Recipe.criterion

    def criterion(recipe, logits, labels, class_weights=None):
        logits.register_hook(lambda gradient: gradient * math.nan)
        return real(recipe, logits, labels, class_weights)

    monkeypatch.setattr(Recipe, "criterion", criterion)
    diagnosis = quick()
    assert len(diagnosis.losses) == 1
    assert math.isnan(diagnosis.losses[0])
    assert said(diagnosis, "^the loss or a gradient became NaN")


class Odd(nn.Module):
    """A module that gives this for a batch."""

    def __init__(self, output):
        super().__init__()
        self.output, self.layer = output, nn.Linear(3, 10)

    def forward(self, images):
        return self.output(self.layer(images.mean((2, 3))))


class Locked(nn.Module):
    def __deepcopy__(self, memory):
        raise TypeError("cannot pickle '_thread.lock' object")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (AlexNet(3, architecture=TINY), "model has 3 classes; expected 10, those of data"),
        (AlexNet(10, architecture=TINY, in_channels=1), "model has in_channels 1, but the images"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 10)), "model cannot compute images of shape"),
        (nn.Sequential(nn.Flatten(), nn.Linear(432, 3)), "model returns logits of shape (16, 3)"),
        (Odd(lambda x: x[:, None]), "model returns logits of shape (16, 1, 10); expected (16, 10)"),
        (Odd(lambda x: (x,)), "model returns a tuple; expected a tensor of logits"),
        (Odd(lambda x: x.mean()), "model returns a tensor of shape () for 16 images"),
        (nn.Flatten(), "model has no nn.Conv2d and no nn.Linear; expected a network with layers"),
        (Locked(), "model is a test_diagnosis.Locked that cannot be copied: cannot pickle"),
        (nn.Sequential(nn.Flatten(), nn.Linear(432, 10, device="meta")), "on the device 'meta'"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_in_words(quick, model, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        quick(model=model, steps=1)


def test_where_memory_does_not_suffice_the_batch_is_said(quick):
    model = Odd(lambda x: torch.empty(2**50))
    with pytest.raises(MemoryError, match="for a diagnosis of 16 images of 12x12 pixels: lower"):
        quick(model=model)


def test_a_signal_ends_the_try(quick, monkeypatch):
    seen = []

    def check():
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupts, "check", check)
    with pytest.raises(KeyboardInterrupt):
        quick(steps=1000)
