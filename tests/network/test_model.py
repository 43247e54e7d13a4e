"""The promises of `AlexNet`: equality with the originals, initialisation, and torch's tools."""

import copy
import functools
import math
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision
from helpers import needs, network_tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from odd import ODD, wrong_messages
from torch import nn
from torch.ao.quantization import (
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    quantize_fx,
)
from torch.func import functional_call
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor

from alexnet_lib import ARCHITECTURES, AlexNet, Architecture
from alexnet_lib.network import model as model_module
from alexnet_lib.network.architecture import LRN, Conv, Dropout, Flatten, Linear, MaxPool

NAMES = list(ARCHITECTURES)
INITIALIZATIONS = ["kaiming", "released_code", "paper", "torch"]

# For what does not depend on the table: a network that costs nothing.
TINY = Architecture(
    "tiny",
    image_size=9,
    layers=(
        Conv("conv1", 8, kernel=3, initial_bias=1.0),
        MaxPool("pool1"),
        Flatten("flatten"),
        Linear("fc2", 16),
        Linear("fc3", None),
    ),
)


def random_images(count, size, dtype=torch.float32, device="cpu"):
    needs(dtype, torch.device(device))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator).to(dtype).to(device)


def leaves(model):
    """Each layer's module by the layer's name."""
    return {
        name.rpartition(".")[2]: module
        for name, module in model.named_modules()
        if not list(module.children())
    }


@pytest.fixture(scope="module")
def smallest_on_cpu():
    """An architecture at its smallest size, in evaluation mode. Tests leave it as it is."""

    @functools.cache
    def build(name):
        size = ARCHITECTURES[name].smallest_image_size
        return AlexNet(10, architecture=name, image_size=size, seed=0).eval()

    return build


@pytest.fixture(scope="module")
def smallest(device, smallest_on_cpu):
    """The same on the device."""
    if device.type == "cpu":
        return smallest_on_cpu
    return functools.cache(lambda name: copy.deepcopy(smallest_on_cpu(name)).to(device))


@pytest.fixture(scope="module", params=NAMES)
def small(request, smallest):
    return smallest(request.param)


@pytest.fixture(scope="module")
def paper(smallest):
    return smallest("paper")


@pytest.fixture(scope="module")
def paper_on_cpu(smallest_on_cpu):
    return smallest_on_cpu("paper")


# Equality with the originals


class Tutorial(nn.Module):
    """The single-tower model that tutorials write."""

    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            nn.ReLU(),
            nn.LocalResponseNorm(5, 1e-4, 0.75, 2),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(96, 256, 5, padding=2),
            nn.ReLU(),
            nn.LocalResponseNorm(5, 1e-4, 0.75, 2),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(9216, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x):
        return self.classifier(self.features(x).view(-1, 9216))


ORIGINALS = {
    "single_tower": Tutorial,
    "one_weird_trick": lambda num_classes: torchvision.models.alexnet(num_classes=num_classes),
}


@pytest.fixture(scope="module", params=list(ORIGINALS))
def pair(request, device):
    """The library's model and the original, of the same tensors."""
    ours = AlexNet(10, architecture=request.param, seed=0).to(device)
    with torch.device("meta"):
        theirs = ORIGINALS[request.param](10)
    weights = dict(zip(theirs.state_dict(), ours.parameters(), strict=True))
    theirs.load_state_dict(weights, assign=True)
    return ours, theirs


def test_in_evaluation_the_logits_are_the_originals_at_every_size_that_both_take(device, pair):
    ours, theirs = (model.eval() for model in pair)
    sizes = [(227, 227)]
    if ours.architecture.takes_any_size:
        sizes += [(63, 63), (224, 224), (100, 131)]
    for size in sizes:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.inference_mode():
            torch.testing.assert_close(ours(images), theirs(images), **network_tolerance(device))


def test_in_training_the_logits_are_the_originals_given_the_same_dropout_masks(device, pair):
    ours, theirs = (model.train() for model in pair)
    images = random_images(2, ours.image_size, device=device)
    logits = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        with torch.no_grad():
            logits.append(model(images))
    torch.testing.assert_close(*logits, **network_tolerance(device))


def test_in_training_the_gradients_are_the_originals(device, pair):
    # In float32 a rounding error can pick another maximum in a pooling window, which moves a
    # whole gradient; in float64 that takes a tie of 15 digits.
    images = random_images(1, pair[0].image_size, torch.float64, device=device)
    weights = [p.detach().double().requires_grad_() for p in pair[0].parameters()]
    labels = torch.tensor([3], device=device)
    gradients = []
    for model in pair:
        names = [name for name, _ in model.named_parameters()]
        torch.manual_seed(1)
        logits = functional_call(model.train(), dict(zip(names, weights, strict=True)), (images,))
        loss = nn.functional.cross_entropy(logits, labels)
        gradients.append(torch.autograd.grad(loss, weights))
    for mine, their in zip(*gradients, strict=True):
        norm = their.norm()
        assert norm > 0
        assert (mine - their).norm() <= 1e-5 * norm


def test_with_the_same_global_seed_torch_initialises_as_torchvision():
    torch.manual_seed(0)
    ours = AlexNet(10, architecture="one_weird_trick", initialization="torch")
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(num_classes=10)
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, their)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("paper", 60_965_224), ("single_tower", 62_378_344), ("one_weird_trick", 61_100_840)],
)
def test_the_model_has_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):
        model = AlexNet(architecture=name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_tutorials_model_for_ten_classes_has_58322314_parameters():
    with torch.device("meta"):
        model = AlexNet(10, architecture="single_tower")
    assert sum(p.numel() for p in model.parameters()) == 58_322_314


# Initialisation

WEIGHTED = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
BIASED = {"conv2", "conv4", "conv5", "fc6", "fc7"}


def stated_std(initialization, layer, fan_in):
    match initialization:
        case "kaiming":
            return 0.01 if layer == "fc8" else math.sqrt(2 / fan_in)
        case "released_code":
            return 0.03 if layer in {"conv3", "conv4", "conv5"} else 0.01
        case "paper":
            return 0.01
        case "torch":  # uniform within 1 / sqrt(fan_in)
            return 1 / math.sqrt(3 * fan_in)


@pytest.mark.parametrize(
    ("name", "initialization"),
    [
        *(("paper", initialization) for initialization in INITIALIZATIONS),
        # The one that each table states for itself.
        *((name, "released_code") for name in NAMES if name != "paper"),
    ],
)
def test_weights_and_biases_start_as_stated(name, initialization):
    size = ARCHITECTURES[name].smallest_image_size
    model = AlexNet(
        10, architecture=name, image_size=size, initialization=initialization, seed=0
    ).requires_grad_(False)
    modules = leaves(model)
    assert [layer for layer in modules if hasattr(modules[layer], "weight")] == WEIGHTED
    for layer in WEIGHTED:
        weight, bias = modules[layer].weight, modules[layer].bias
        fan_in = weight[0].numel()
        std = stated_std(initialization, layer, fan_in)
        # Six standard errors of a mean and of a normal sample's standard deviation.
        assert abs(weight.mean().item()) < 6 * std / math.sqrt(weight.numel())
        assert weight.std().item() == pytest.approx(std, rel=6 / math.sqrt(2 * weight.numel()))
        if initialization == "torch":
            bound = 1 / math.sqrt(fan_in)
            assert weight.abs().max() <= bound
            assert bound / 3 < bias.abs().max() <= bound
        else:
            # 68 % of a normal sample, 58 % of a uniform one lie within a standard deviation.
            within = (weight.abs() < std).count_nonzero().item() / weight.numel()
            assert within == pytest.approx(0.683, abs=0.03)
            starts_at_1 = initialization != "kaiming" and layer in BIASED
            assert torch.all(bias == (1.0 if starts_at_1 else 0.0))


def tiny_weights(initialization, seed, device):
    with device:
        model = AlexNet(10, architecture=TINY, initialization=initialization, seed=seed)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
def test_the_same_seed_gives_the_same_weights_and_another_one_others(device, initialization):
    weights = tiny_weights(initialization, seed=5, device=device)
    torch.manual_seed(99)
    assert torch.equal(tiny_weights(initialization, seed=5, device=device), weights)
    assert not torch.equal(tiny_weights(initialization, seed=6, device=device), weights)


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
def test_a_seed_leaves_the_global_generator_alone(device, initialization):
    before = torch.get_rng_state()
    tiny_weights(initialization, seed=5, device=device)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
def test_without_a_seed_the_weights_follow_the_global_generator(device, initialization):
    torch.manual_seed(0)
    first, second = (tiny_weights(initialization, seed=None, device=device) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(tiny_weights(initialization, seed=None, device=device), first)
    assert not torch.equal(first, second)


# Parts


def test_the_parts_of_paper_have_the_fields_names_in_order(paper_on_cpu):
    assert [name for name, _ in paper_on_cpu.named_children()] == [
        "features",
        "flatten",
        "classifier",
    ]
    assert [name for name, _ in paper_on_cpu.features.named_children()] == [
        *("conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2"),
        *("conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"),
    ]
    assert [name for name, _ in paper_on_cpu.classifier.named_children()] == [
        *("fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8")
    ]
    assert paper_on_cpu.avgpool is None


@pytest.mark.parametrize("name", ["single_tower", "one_weird_trick"])
def test_outside_paper_dropout_stands_before_fc6_and_fc7(name):
    with torch.device("meta"):
        model = AlexNet(architecture=name)
    assert [name for name, _ in model.classifier.named_children()] == [
        *("drop6", "fc6", "relu6", "drop7", "fc7", "relu7", "fc8")
    ]


def test_one_weird_trick_alone_has_an_adaptive_pool(small):
    expected = nn.AdaptiveAvgPool2d if small.architecture.name == "one_weird_trick" else type(None)
    assert type(small.avgpool) is expected


def test_dropout_has_the_given_probability():
    with torch.device("meta"):
        model = AlexNet(dropout=0.25)
    drops = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert drops == [0.25, 0.25]


# With what `dropout_scaling` is about.
DROPPING = Architecture(
    "dropping", image_size=9, layers=(*TINY.layers[:-1], Dropout("drop2"), Linear("fc3", None))
)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_scaled_in_the_test_what_dropout_keeps_is_left_as_it_is_in_training(device, p):
    model = AlexNet(10, architecture=DROPPING, dropout=p, dropout_scaling="test")
    drop = model.classifier.drop2
    activations = 1 + torch.rand(100, 100, generator=torch.Generator().manual_seed(0)).to(device)
    dropped = drop.train()(activations)
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, activations))
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.02)


def test_scaled_in_the_test_the_layer_behind_dropout_gets_less():
    seen = []
    for scaling in ("training", "test"):
        model = AlexNet(
            10, architecture=DROPPING, seed=0, dropout=0.25, dropout_scaling=scaling
        ).eval()
        model.classifier.fc3.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        model(random_images(2, 9))
    torch.testing.assert_close(seen[1], 0.75 * seen[0])


def test_num_classes_follows_a_replaced_last_layer():
    model = AlexNet(10, architecture=TINY)
    assert model.num_classes == 10
    model.classifier.fc3 = nn.Linear(16, 4)
    assert model.num_classes == 4


def test_the_second_towers_norm1_does_not_see_map_47(smallest):
    changed, unchanged = norm1_maps_with_and_without_a_change_of_map_47(smallest("paper"))
    assert torch.equal(changed[:, 48:], unchanged[:, 48:])
    assert not torch.equal(changed[:, 46], unchanged[:, 46])


def test_a_single_towers_norm1_of_map_48_sees_map_47(smallest):
    changed, unchanged = norm1_maps_with_and_without_a_change_of_map_47(smallest("single_tower"))
    assert not torch.equal(changed[:, 48], unchanged[:, 48])


@torch.no_grad()
def norm1_maps_with_and_without_a_change_of_map_47(model):
    features = model.features
    maps = features.conv1(random_images(1, 67, device=features.conv1.weight.device))
    changed = maps.clone()
    changed[:, 47] += 100
    return tuple(features.norm1(features.relu1(x)) for x in (changed, maps))


def test_the_two_towers_meet_at_conv3_and_no_earlier(device, paper):
    to_pool2, to_conv3 = paper.features[:8], paper.features[:9]
    other = copy.deepcopy(to_conv3).requires_grad_(False)
    other.conv1.weight[:48] += 1  # the first tower
    images = random_images(1, 67, device=device)
    with torch.no_grad():
        assert torch.equal(other[:8](images)[:, 128:], to_pool2(images)[:, 128:])
        assert not torch.equal(other[:8](images)[:, :128], to_pool2(images)[:, :128])
        assert not torch.equal(other(images)[:, 192:], to_conv3(images)[:, 192:])


@settings(max_examples=10)
@given(st.integers(0, 4), st.integers(0, 4))
def test_an_images_logits_do_not_depend_on_the_rest_of_the_batch(device, paper, before, after):
    images = random_images(1 + before + after, 67, device=device)
    with torch.inference_mode():
        together, alone = paper(images), paper(images[before : before + 1])
    torch.testing.assert_close(
        together[before : before + 1], alone, **network_tolerance(device, 1e-4)
    )


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_nothing_that_a_hook_holds_is_changed_in_place(device, small, training):
    model = copy.deepcopy(small).train(training)
    held = {}

    def hold(name, tensor):
        held[name] = (tensor, tensor.detach().clone())

    for name, module in leaves(model).items():
        module.register_forward_hook(lambda module, inputs, output, name=name: hold(name, output))
    images = random_images(2, model.image_size, device=device)
    hold("images", images)
    model(images).sum().backward()
    assert {"images", "conv1", "relu1", "fc8"} < set(held)
    for name, (tensor, as_it_was) in held.items():
        assert torch.equal(tensor, as_it_was), name


# Freezing


def learning(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_frozen_layers_do_not_learn_and_the_others_do():
    model = AlexNet(5, architecture=TINY)
    everything = learning(model)
    model.freeze("conv1", "fc3")
    frozen = {"features.conv1.weight", "features.conv1.bias"}
    frozen |= {"classifier.fc3.weight", "classifier.fc3.bias"}
    assert learning(model) == everything - frozen


def test_freezing_nothing_or_a_layer_without_weights_changes_nothing():
    model = AlexNet(5, architecture=TINY)
    everything = learning(model)
    model.freeze()
    model.freeze("pool1")
    assert learning(model) == everything


# torch's tools

# Tracing passes stand-ins for tensors, which the run with type checks would refuse.
traced = pytest.mark.bad_input


@traced
def test_fx_traces_it_and_the_trace_agrees(device, small):
    images = random_images(2, small.image_size, device=device)
    with torch.inference_mode():
        assert torch.equal(torch.fx.symbolic_trace(small)(images), small(images))


@traced
def test_torchvisions_feature_extractor_gives_named_layers(device, small):
    held = {}
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: held.update({name: output})
        )
        for name, module in small.named_modules()
        if name in {"features.pool1", "features.conv5", "classifier.relu7"}
    ]
    images = random_images(2, small.image_size, device=device)
    with torch.inference_mode():
        small(images)
        for handle in handles:
            handle.remove()
        extracted = create_feature_extractor(small, list(held))(images)
    assert len(held) == 3
    assert list(extracted) == list(held)
    for name, output in held.items():
        assert torch.equal(extracted[name], output)


@traced
def test_torchvisions_feature_extractor_gives_a_normalisation_layer(device, paper):
    images = random_images(1, 67, device=device)
    with torch.inference_mode():
        extracted = create_feature_extractor(paper, ["features.norm1"])(images)
        assert torch.equal(extracted["features.norm1"], paper.features[:3](images))


@traced
def test_export_takes_any_batch_size_and_agrees(device, small):
    size = small.image_size
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(
        small, (random_images(2, size, device=device),), dynamic_shapes=({0: batch},)
    ).module()
    with torch.inference_mode():
        for count in (1, 2, 5):
            images = random_images(count, size, device=device)
            torch.testing.assert_close(exported(images), small(images), **network_tolerance(device))


@traced
def test_compile_captures_it_as_one_graph_and_agrees(device, paper):
    images = random_images(2, 67, device=device)
    torch.compiler.reset()
    compiled = torch.compile(paper, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), paper(images), **network_tolerance(device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_floating_dtype_passes(device, paper, dtype):
    images = random_images(2, 67, dtype, device=device)
    model = copy.deepcopy(paper).to(dtype)
    with torch.inference_mode():
        logits = model(images)
        expected = paper(images.float())
    assert logits.dtype == dtype
    # The logits are of the order of 1: eight bits of bfloat16 through eleven layers leave this.
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_takes_images_of_its_own_dtype_and_of_the_parameters(device, paper, dtype):
    with torch.autocast(device.type, torch.bfloat16), torch.inference_mode():
        logits = paper(random_images(2, 67, dtype, device=device))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize("seed", [None, 0])
def test_on_the_meta_device_it_allocates_nothing(seed):
    with torch.device("meta"):
        model = AlexNet(seed=seed)
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.empty(3, 3, 227, 227, device="meta")).shape == (3, 1000)


def test_deepcopy_agrees_and_shares_no_weights(device, paper):
    images = random_images(1, 67, device=device)
    copied = copy.deepcopy(paper)
    with torch.inference_mode():
        assert torch.equal(copied(images), paper(images))
        copied.features.conv1.weight.zero_()
        assert not torch.equal(copied(images), paper(images))


def test_a_pruned_first_layer_survives_pickling(device, paper):
    model = copy.deepcopy(paper)
    prune.random_unstructured(model.features.conv1, "weight", 0.5)
    images = random_images(1, 67, device=device)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), model(images))


def test_pickle_keeps_weights_and_architecture():
    model = AlexNet(5, architecture=TINY, seed=0).eval()
    model.classes = tuple("abcde")
    unpickled = pickle.loads(pickle.dumps(model))
    images = random_images(2, 9)
    assert torch.equal(unpickled(images), model(images))
    assert unpickled.architecture == TINY
    assert unpickled.classes == model.classes


def test_an_empty_batch_gives_no_logits(device, small):
    size = small.image_size
    assert small(torch.zeros(0, 3, size, size, device=device)).shape == (0, 10)


def test_channels_last_images_agree(device, paper):
    images = random_images(2, 67, device=device)
    with torch.inference_mode():
        torch.testing.assert_close(
            paper(images.contiguous(memory_format=torch.channels_last)),
            paper(images),
            **network_tolerance(device, 1e-4),
        )


def test_a_state_dict_is_loaded_by_a_model_of_the_same_arguments():
    first, second = (AlexNet(5, architecture=TINY, seed=seed) for seed in (0, 1))
    second.load_state_dict(first.state_dict())
    images = random_images(1, 9)
    assert torch.equal(first(images), second(images))


# Channels


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_any_number_of_channels_pass(device, small, channels):
    size, name = small.image_size, small.architecture.name
    model = AlexNet(10, architecture=name, image_size=size, in_channels=channels, seed=0).eval()
    model.to(device)
    assert model.in_channels == channels
    with torch.inference_mode():
        assert model(torch.zeros(2, channels, size, size, device=device)).shape == (2, 10)
        # The message says the model's own number.
        with pytest.raises(ValueError, match=re.escape(f"expected (batch, {channels}, ")):
            model(torch.zeros(2, channels + 1, size, size, device=device))


def test_a_grey_model_is_the_colour_one_of_the_summed_weights():
    colour = AlexNet(10, architecture=TINY, seed=0)
    grey = AlexNet(10, architecture=TINY, in_channels=1, seed=0)
    weights = colour.state_dict()
    weights["features.conv1.weight"] = weights["features.conv1.weight"].sum(1, keepdim=True)
    grey.load_state_dict(weights)
    images = random_images(2, 9)[:, :1]
    torch.testing.assert_close(grey(images), colour(images.expand(2, 3, 9, 9)))


def test_groups_of_the_first_layer_divide_the_images_channels():
    layers = (Conv("conv1", 8, kernel=3, groups=4), *TINY.layers[1:])
    table = Architecture("depthwise", 9, layers)
    assert AlexNet(2, architecture=table, in_channels=8).in_channels == 8
    with pytest.raises(ValueError, match="conv1 has 4 groups, which do not divide its 3 input"):
        AlexNet(2, architecture=table)


# Layers that users replace, as they do for grey images, fine-tuning and compression


class Shifted(nn.Module):
    """A layer wrapped in a module that has no weight of its own, as adapters do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.layer(x) + self.shift


def grey_conv1():
    return nn.Conv2d(1, 96, 11, 4)


CONV1 = {
    "grey": grey_conv1,
    "in a Sequential": lambda: nn.Sequential(grey_conv1(), nn.BatchNorm2d(96)),
    "behind a grey to colour": lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 96, 11, 4)),
    "wrapped": lambda: Shifted(grey_conv1()),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(grey_conv1()),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(grey_conv1()),
    "pruned": lambda: prune.random_unstructured(grey_conv1(), "weight", 0.5),
    "without a bias": lambda: nn.Conv2d(1, 96, 11, 4, bias=False),
    "lazy": lambda: nn.LazyConv2d(96, 11, 4),
}


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("replacement", list(CONV1))
@traced
def test_a_conv1_put_in_by_hand_says_itself_what_it_takes(device, paper, replacement, by_name):
    model = copy.deepcopy(paper)
    torch.manual_seed(0)
    if by_name:
        model.features.conv1 = CONV1[replacement]()
    else:
        model.features[0] = CONV1[replacement]()
    model.to(device).eval()
    images = random_images(2, 67, device=device)[:, :1]
    with torch.no_grad():
        # What the layers compute one after the other.
        expected = model.classifier(model.flatten(model.features(images)))
        assert torch.equal(model(images), expected)
        assert model.in_channels == 1
        assert torch.equal(torch.fx.symbolic_trace(model)(images), expected)
        assert copy.deepcopy(model).in_channels == 1
    model.train()(images).sum().backward()
    assert all(p.grad is not None for p in model.features[0].parameters())


def test_a_first_layer_that_takes_bytes_is_given_them(device, paper):
    class Normalized(nn.Module):
        def forward(self, images):
            return images / 255

    model = copy.deepcopy(paper)
    model.features.conv1 = nn.Sequential(Normalized(), model.features.conv1)
    images = torch.randint(0, 256, (2, 3, 67, 67), dtype=torch.uint8, device=device)
    with torch.no_grad():
        assert torch.equal(model(images), paper(images / 255))


def test_a_hook_may_convert_the_first_layer_before_it_computes(device, paper):
    # Sharded and mixed training keep float32 weights and compute with others.
    model = copy.deepcopy(paper).requires_grad_(False)
    model.features[1:].bfloat16()
    model.classifier.bfloat16()
    model.features.conv1.register_forward_pre_hook(
        lambda module, inputs: module.bfloat16() and None
    )
    assert model(random_images(1, 67, torch.bfloat16, device=device)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "replacement", [nn.Identity, lambda: nn.BatchNorm2d(96), lambda: nn.GroupNorm(2, 96)]
)
def test_normalisation_layers_can_be_replaced(device, paper, replacement):
    model = copy.deepcopy(paper)
    model.features.norm1 = replacement().to(device)
    images = random_images(2, 67, device=device)
    expected = model.classifier(model.flatten(model.features(images)))
    assert torch.equal(model(images), expected)
    assert (model.in_channels, model.num_classes) == (3, 10)


class LowRank(nn.Module):
    """An adapter of low rank beside a linear layer, as LoRA writes it."""

    def __init__(self, layer):
        super().__init__()
        self.base = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


LAST = {
    "other classes": (lambda: nn.Linear(4096, 7), 7),
    "in a Sequential": (lambda: nn.Sequential(nn.Linear(4096, 20), nn.ReLU(), nn.Linear(20, 7)), 7),
    "with a softmax": (lambda: nn.Sequential(nn.Linear(4096, 7), nn.LogSoftmax(1)), 7),
    "an adapter": (lambda: LowRank(nn.Linear(4096, 7)), 7),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4096, 7)), 7),
    "none: fc7's features": (nn.Identity, 4096),
}


@pytest.mark.parametrize("replacement", list(LAST))
def test_the_number_of_classes_is_that_of_the_outputs(device, paper, replacement):
    build, count = LAST[replacement]
    model = copy.deepcopy(paper)
    model.classifier.fc8 = build().to(device)
    assert model.num_classes == count == model(random_images(1, 67, device=device)).shape[1]


@pytest.mark.parametrize(
    "classifier",
    [lambda: nn.Linear(256, 7), lambda: nn.Sequential(nn.Dropout(), LowRank(nn.Linear(256, 7)))],
)
def test_a_classifier_can_be_replaced_whole(device, paper, classifier):
    model = copy.deepcopy(paper)
    model.classifier = classifier().to(device)
    assert model.num_classes == 7 == model(random_images(1, 67, device=device)).shape[1]


def test_what_a_replaced_layer_does_not_say_is_an_error_with_what_to_do(device, paper):
    class Distances(nn.Module):
        """A head of prototypes."""

        def __init__(self):
            super().__init__()
            self.prototypes = nn.Parameter(torch.zeros(7, 4096))

        def forward(self, x):
            return torch.cdist(x, self.prototypes)

    model = copy.deepcopy(paper)
    model.classifier.fc8 = Distances().to(device)
    with pytest.raises(
        ValueError, match=r"model\.classifier does not say its out_features: its last"
    ):
        _ = model.num_classes
    model.classifier.fc8.out_features = 7
    assert model.num_classes == 7 == model(random_images(1, 67, device=device)).shape[1]
    model.features.conv1 = nn.Sequential(nn.BatchNorm2d(3), model.features.conv1)
    with pytest.raises(
        ValueError, match=r"model\.features does not say its in_channels: its first"
    ):
        _ = model.in_channels


def test_layers_for_images_of_another_size_need_only_the_size():
    # As advised for CIFAR-10: torchvision's network with a smaller kernel and stride.
    model = AlexNet(10, architecture="one_weird_trick", seed=0).eval()
    model.features.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1)
    model.image_size = 32
    with torch.inference_mode():
        assert model(random_images(2, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match=re.escape("expected (batch, 3, 32, 32) or larger")):
        model(random_images(2, 31))


def test_a_replaced_layer_is_frozen_with_all_that_it_holds(paper):
    model = copy.deepcopy(paper).requires_grad_(True)
    model.features.conv1 = nn.Sequential(nn.Conv2d(3, 3, 1), model.features.conv1)
    model.freeze("conv1")
    assert not any(p.requires_grad for p in model.features.conv1.parameters())
    assert all(p.requires_grad for p in model.features.conv2.parameters())
    model.classifier = nn.Linear(256, 7)
    with pytest.raises(
        ValueError, match="layers has 'fc8', which the model does not have any more"
    ):
        model.freeze("fc8")


# Quantisation (torch.ao: static, dynamic, by hand), fusing, copies on several devices


@traced
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_graph_mode_quantisation_agrees_to_its_eight_bits(smallest_on_cpu, name):
    small = smallest_on_cpu(name)
    images = random_images(4, small.image_size)
    # On a copy, because it leaves marks on the modules.
    model = copy.deepcopy(small)
    prepared = quantize_fx.prepare_fx(model, get_default_qconfig_mapping(), (images,))
    with torch.inference_mode():
        prepared(images)
        quantized = quantize_fx.convert_fx(prepared)
        expected = small(images)
        assert not isinstance(quantized.features.conv1, nn.Conv2d)
        assert (quantized(images) - expected).abs().max() < 0.05 * expected.abs().max()
    with pytest.raises(ValueError, match="images has shape"):
        quantized(images[:, :1])


@traced
@pytest.mark.filterwarnings("ignore")
def test_quantisation_aware_training_runs(paper_on_cpu):
    images = random_images(2, 67)
    model = copy.deepcopy(paper_on_cpu).train().requires_grad_(True)
    prepared = quantize_fx.prepare_qat_fx(model, get_default_qat_qconfig_mapping(), (images,))
    prepared(images).sum().backward()
    assert quantize_fx.convert_fx(prepared.eval())(images).shape == (2, 10)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_agrees_and_keeps_the_sizes(paper_on_cpu):
    quantized = torch.ao.quantization.quantize_dynamic(paper_on_cpu, {nn.Linear}, torch.qint8)
    images = random_images(2, 67)
    with torch.inference_mode():
        expected = paper_on_cpu(images)
        assert (quantized(images) - expected).abs().max() < 0.05 * expected.abs().max()
    assert (quantized.in_channels, quantized.num_classes) == (3, 10)


@traced
@pytest.mark.filterwarnings("ignore")
def test_eager_quantisation_gives_the_first_layer_quantised_images(paper_on_cpu):
    model = copy.deepcopy(paper_on_cpu)
    model.qconfig = torch.ao.quantization.get_default_qconfig()
    for name in ("norm1", "norm2"):  # computes in floating point
        norm = getattr(model.features, name)
        norm.qconfig = None
        parts = torch.ao.quantization.DeQuantStub(), norm, torch.ao.quantization.QuantStub()
        setattr(model.features, name, nn.Sequential(*parts))
    wrapped = torch.ao.quantization.QuantWrapper(model)
    wrapped.qconfig = model.qconfig
    images = random_images(4, 67)
    with torch.inference_mode():
        prepared = torch.ao.quantization.prepare(wrapped)
        prepared(images)
        quantized = torch.ao.quantization.convert(prepared)
        expected = paper_on_cpu(images)
        assert (quantized(images) - expected).abs().max() < 0.1 * expected.abs().max()
    assert (quantized.module.in_channels, quantized.module.num_classes) == (3, 10)


@pytest.mark.filterwarnings("ignore")
def test_convolution_and_relu_can_be_fused(device, paper):
    pairs = [[f"features.conv{i}", f"features.relu{i}"] for i in range(1, 6)]
    fused = torch.ao.quantization.fuse_modules(copy.deepcopy(paper), pairs)
    images = random_images(2, 67, device=device)
    with torch.inference_mode():
        assert torch.equal(fused(images), paper(images))
    assert fused.in_channels == 3


@traced
def test_convolution_and_batch_normalisation_can_be_fused(device, paper):
    model = copy.deepcopy(paper)
    model.features.relu1, model.features.norm1 = nn.BatchNorm2d(96).to(device), nn.ReLU()
    images = random_images(8, 67, device=device)
    model.train()(images)
    model.eval()
    with torch.inference_mode():
        fused = fuse(model)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        torch.testing.assert_close(
            fused(images), model(images), **network_tolerance(device, 1e-4, 1e-4)
        )


@traced
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_traces_can_be_converted_to_another_dtype(device, paper, dtype):
    images = random_images(2, 67, device=device)
    for trace in (torch.fx.symbolic_trace, lambda model: torch.jit.trace(model, images)):
        model = trace(copy.deepcopy(paper)).to(dtype)
        with torch.inference_mode():
            logits = model(images.to(dtype))
            torch.testing.assert_close(logits.float(), paper(images), rtol=0.05, atol=0.05)


@traced
@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # of pruning, by export
def test_a_replaced_first_layer_compiles_as_one_graph_and_exports(device, paper):
    images = random_images(2, 67, device=device)[:, :1]
    for build in ("in a Sequential", "weight_norm", "pruned"):
        model = copy.deepcopy(paper)
        model.features.conv1 = CONV1[build]()
        model.to(device).eval()
        with torch.inference_mode():
            expected = model(images)
            exported = torch.export.export(model, (images,)).module()
            torch.testing.assert_close(
                exported(images), expected, **network_tolerance(device, 1e-4)
            )
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), expected, **network_tolerance(device, 1e-4))


@traced
def test_export_takes_any_size_where_the_network_does(device):
    model = AlexNet(10, architecture="one_weird_trick", seed=0).eval()
    sides = {i: torch.export.Dim(f"side{i}", min=127, max=300) for i in (2, 3)}
    exported = torch.export.export(
        model, (torch.zeros(2, 3, 128, 160),), dynamic_shapes=({0: torch.export.Dim("n"), **sides},)
    ).module()
    images = torch.randn(3, 3, 130, 190, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(
            exported(images), model(images), **network_tolerance(device, 1e-4)
        )


def test_a_replica_on_another_device_has_weights_that_are_no_parameters(device, paper):
    # What DataParallel makes for each GPU.
    model = copy.deepcopy(paper)
    replica = model._replicate_for_data_parallel()
    replica.features = features = model.features._replicate_for_data_parallel()
    features.conv1 = conv1 = model.features.conv1._replicate_for_data_parallel()
    conv1.weight, conv1.bias = (p.detach() for p in model.features.conv1.parameters())
    assert not [*conv1.parameters()]
    images = random_images(2, 67, device=device)
    with torch.inference_mode():
        assert torch.equal(replica(images), paper(images))
        assert torch.equal(nn.DataParallel(paper)(images), paper(images))


@traced
def test_an_ensemble_is_computed_at_once_by_vmap():
    models = [AlexNet(5, architecture=TINY, seed=seed) for seed in (0, 1)]
    weights, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    images = random_images(2, 9)
    logits = torch.vmap(lambda *state: functional_call(skeleton, state, (images,)))(
        weights, buffers
    )
    torch.testing.assert_close(logits, torch.stack([model(images) for model in models]))


# Wrong input: each error says what came, what was expected, and what to do


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("images", "message"),
    [
        pytest.param(
            torch.zeros(3, 67, 67),
            "images has shape (3, 67, 67), a single image without its batch dimension; "
            "expected (batch, 3, 67, 67): pass images[None]",
            id="a single image",
        ),
        pytest.param(
            torch.zeros(2, 67, 67, 3),
            "images has shape (2, 67, 67, 3); expected (batch, 3, 67, 67): "
            "pass images.permute(0, 3, 1, 2)",
            id="channels last",
        ),
        pytest.param(
            torch.zeros(2, 1, 67, 67),
            "images has shape (2, 1, 67, 67); expected (batch, 3, 67, 67), "
            "or a model built with AlexNet(in_channels=1)",
            id="grey",
        ),
        pytest.param(
            torch.zeros(2, 1, 28, 28),
            "images has shape (2, 1, 28, 28); expected (batch, 3, 67, 67)",
            id="grey and small",
        ),
        pytest.param(
            torch.zeros(2, 67), "images has shape (2, 67); expected (batch, 3, 67, 67)", id="rank 2"
        ),
        *(
            pytest.param(
                torch.zeros(2, 3, *size),
                f"images has shape (2, 3, {size[0]}, {size[1]}); expected (batch, 3, 67, 67): "
                "resize the images, or build the model with AlexNet(image_size=...)",
                id=f"{size[0]}x{size[1]}",
            )
            for size in ((66, 66), (68, 68), (67, 227), (227, 67))
        ),
        pytest.param(
            torch.zeros(2, 3, 67, 67, dtype=torch.float64),
            "images has dtype torch.float64; expected torch.float32, as the parameters have: "
            "pass images.to(torch.float32), or convert the model",
            id="float64",
        ),
        pytest.param(
            torch.zeros(2, 3, 67, 67, dtype=torch.uint8),
            "images has dtype torch.uint8; expected torch.float32, normalised as in training "
            "(Preprocess does it)",
            id="uint8",
        ),
        pytest.param(
            torch.zeros(2, 3, 67, 67, device="meta"),
            "images has device meta; expected cpu, as the parameters have: "
            "pass images.to('cpu'), or move the model",
            id="another device",
        ),
        pytest.param(
            torch.zeros(2, 3, 67, 67).to_sparse(),
            "images is a torch.sparse_coo tensor; expected a dense one (batch, 3, 67, 67)",
            id="sparse",
        ),
        pytest.param(
            [[0.0]],
            "images is a list; expected a floating tensor (batch, 3, 67, 67)",
            id="list",
        ),
    ],
)
def test_wrong_images_are_told_what_is_expected(paper_on_cpu, images, message):
    with pytest.raises(ValueError, match="images") as caught:
        paper_on_cpu(images)
    assert str(caught.value) == message


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [(62, 63), (63, 62), (32, 32)], ids=str)
def test_one_weird_trick_refuses_images_below_63_pixels(size):
    with torch.device("meta"):
        model = AlexNet(architecture="one_weird_trick")
        images = torch.empty(2, 3, *size)
    with pytest.raises(ValueError, match="images") as caught:
        model(images)
    assert str(caught.value) == (
        f"images has shape {(2, 3, *size)}; expected (batch, 3, 63, 63) or larger: "
        "resize the images, or build the model with AlexNet(image_size=...)"
    )


@pytest.mark.bad_input
def test_uint8_images_are_refused_under_autocast_too(device, paper):
    images = torch.zeros(2, 3, 67, 67, dtype=torch.uint8, device=device)
    with (
        torch.autocast(device.type, torch.bfloat16),
        pytest.raises(ValueError, match=r"images has dtype torch\.uint8; expected torch\.float32"),
    ):
        paper(images)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"architecture": "alexnet"},
            "architecture is 'alexnet'; expected an Architecture or one of "
            "'paper', 'single_tower', 'one_weird_trick'",
        ),
        (
            {"architecture": TINY, "initialization": "xavier"},
            "initialization is 'xavier'; "
            "expected one of 'kaiming', 'released_code', 'paper', 'torch'",
        ),
        ({"dropout": 1.5}, "dropout is 1.5; expected a probability from 0 to 1"),
        ({"dropout": -0.1}, "dropout is -0.1; expected a probability from 0 to 1"),
        ({"dropout": math.nan}, "dropout is nan; expected a probability from 0 to 1"),
        (
            {"dropout_scaling": "never"},
            "dropout_scaling is 'never'; expected one of 'training', 'test'",
        ),
        ({"in_channels": 0}, "in_channels is 0; expected an integer from 1 to 16777216"),
        ({"image_size": 10**7}, "image_size is 10000000; expected at most 16384 pixels"),
        ({"in_channels": (3,)}, "in_channels is (3,); expected an integer from 1 to 16777216"),
        (
            {"seed": 0.5},
            f"seed is 0.5; expected an integer from {-(2**63)} to {2**64 - 1}, or None",
        ),
        ({"num_classes": 0}, "num_classes is 0; expected an integer from 1 to 16777216"),
        ({"num_classes": 10.0}, "num_classes is 10.0; expected an integer from 1 to 16777216"),
        (
            {"image_size": 66},
            "image_size is 66; the architecture 'paper' needs images of at least "
            "67x67 pixels (an integer)",
        ),
        (
            {"image_size": (227, 227)},
            "image_size is (227, 227); the architecture 'paper' needs images of at least "
            "67x67 pixels (an integer)",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_expected(arguments, message):
    with pytest.raises(ValueError, match=next(reversed(arguments))) as caught:
        AlexNet(**arguments)
    assert str(caught.value) == message


# NumPy's numbers, which the run with type checks refuses; they are stored as plain ones.
@pytest.mark.bad_input
def test_numpys_numbers_build_the_same_model():
    i = np.int64
    model = AlexNet(
        i(10),
        architecture=TINY,
        image_size=i(11),
        in_channels=i(1),
        dropout=np.float32(0.5),
        seed=i(3),
    )
    plain = AlexNet(10, architecture=TINY, image_size=11, in_channels=1, dropout=0.5, seed=3)
    assert type(model.image_size) is type(model.num_classes) is type(model.in_channels) is int
    assert type(model.dropout) is float
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert repr(model) == repr(plain)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["conv9", "features.conv1", "classifier", "", None, ["conv1"]])
def test_a_layer_that_does_not_exist_cannot_be_frozen(name):
    model = AlexNet(5, architecture=TINY)
    expected = re.escape(f"layers has {[name]}; expected names among conv1, pool1, flatten")
    with pytest.raises(ValueError, match=expected):
        model.freeze("conv1", name)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.bad_input
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**400, True, "0", math.nan], ids=repr)
def test_a_seed_that_torch_cannot_take_is_refused_on_every_device(device, seed):
    with torch.device(device), pytest.raises(ValueError, match=r"seed is .*; expected an integer"):
        AlexNet(5, architecture=TINY, seed=seed)


@pytest.mark.bad_input
def test_weights_larger_than_the_memory_are_a_memory_error(monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    monkeypatch.setattr(model_module, "skip_init", refuse)
    with pytest.raises(MemoryError, match=r"the weights of the network: lower image_size or num_c"):
        AlexNet(5, image_size=600)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["forward", "training", "append", "weight_", "_modules"])
def test_a_layer_cannot_have_the_name_of_an_attribute_of_torchs_modules(name):
    layers = (Conv(name, 4, kernel=3), Flatten("flatten"), Linear("fc", None))
    table = Architecture("own", 12, layers)
    if name == "weight_":
        assert AlexNet(5, architecture=table).features.weight_.out_channels == 4
        return
    with pytest.raises(ValueError, match=f"architecture has a layer '{name}'; expected another"):
        AlexNet(5, architecture=table)


@pytest.mark.bad_input
def test_groups_of_a_normalisation_divide_its_channels():
    rows = (Conv("conv1", 5, kernel=3), LRN("norm1", groups=2))
    table = Architecture("own", 12, (*rows, Flatten("flatten"), Linear("fc", None)))
    with pytest.raises(ValueError, match="norm1 has 2 groups, which do not divide its 5 channels"):
        AlexNet(5, architecture=table)


@pytest.mark.bad_input
def test_odd_arguments_of_the_constructor_are_named_or_right():
    arguments = {
        "num_classes": 5,
        "architecture": TINY,
        "image_size": 12,
        "dropout": 0.5,
        "dropout_scaling": "training",
        "initialization": "kaiming",
        "in_channels": 3,
        "seed": 0,
    }
    with torch.device("meta"):
        assert not wrong_messages(AlexNet, arguments)


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
def test_odd_arguments_of_its_methods_are_named():
    model = AlexNet(5, architecture=TINY)
    for value in ODD:
        with pytest.raises(ValueError, match="images"):
            model(value)
        with pytest.raises(ValueError, match="layers"):
            model.freeze(value)


def at_another_size(model: AlexNet, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    maps = nn.functional.interpolate(model.features(images), grid, mode="bilinear")
    return model.classifier(maps.flatten(1))


@pytest.mark.parametrize("size", [67, 80, 131])
def test_within_a_block_a_network_takes_images_of_another_size(device, size):
    model, images = AlexNet(3, image_size=99, seed=0).eval(), torch.rand(2, 3, size, size)
    model, images = model.to(device), images.to(device)
    with model.at_image_size(size):
        assert model.image_size == size
        logits = model(images)
    expected = at_another_size(model, images, (2, 2))
    torch.testing.assert_close(logits, expected, **network_tolerance(device, 1e-6))
    with model.at_image_size(99):
        assert model.avgpool is None
    assert (model.image_size, model.avgpool) == (99, None)
    assert "avgpool" not in dict(model.named_children())


def test_a_network_that_pools_keeps_its_pooling_at_another_size(device):
    model = AlexNet(3, architecture="one_weird_trick", image_size=127, seed=0).eval().to(device)
    pooling, images = model.avgpool, torch.rand(2, 3, 95, 95, device=device)
    with model.at_image_size(95):
        assert model.avgpool is pooling
        logits = model(images)
    assert model.avgpool is pooling
    with pytest.raises(ValueError, match=r"expected .*127"):
        AlexNet(3, image_size=127)(images)
    expected = model.classifier(pooling(model.features(images)).flatten(1))
    torch.testing.assert_close(logits, expected, **network_tolerance(device, 1e-6))


def test_after_an_error_a_network_has_its_own_size():
    model = AlexNet(3, image_size=99)
    with pytest.raises(ValueError, match="images has shape"), model.at_image_size(67):
        model(torch.rand(1, 3, 99, 99))
    assert (model.image_size, model.avgpool) == (99, None)
    assert model(torch.rand(1, 3, 99, 99)).shape == (1, 3)


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [66, 0, None, 99.5])
def test_another_size_that_is_too_small_is_refused(size):
    model = AlexNet(3, image_size=99)
    with pytest.raises(ValueError, match=r"^image_size is "), model.at_image_size(size):
        pass
    assert model.image_size == 99


# Weights that were trained with one scaling compute something else with the other.


def test_a_state_dict_is_refused_by_a_network_with_another_scaling_of_dropout():
    scaled_in_test = AlexNet(2, architecture=DROPPING, dropout_scaling="test")
    scaled_in_training = AlexNet(2, architecture=DROPPING)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*keep_probability"):
        scaled_in_training.load_state_dict(scaled_in_test.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*keep_probability"):
        scaled_in_test.load_state_dict(scaled_in_training.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_state_dict_is_refused_by_a_network_with_another_probability(dtype):
    def network(dropout: float) -> AlexNet:
        return AlexNet(
            2, architecture=DROPPING, dropout=dropout, dropout_scaling="test", seed=1
        ).to(dtype)

    network(0.3).load_state_dict(network(0.3).state_dict())
    with pytest.raises(
        RuntimeError, match=r"is 0\.7, of a network with dropout=0\.3; expected 0\.5"
    ):
        network(0.5).load_state_dict(network(0.3).state_dict())
