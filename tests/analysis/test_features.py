"""The promises of `extract_features` and `grad_cam`: what they compute and leave alone."""

import pytest
import torch
from helpers import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import TWO_TOWERS, state_of, two_towers
from torch import Tensor, nn

from alexnet_lib import AlexNet, extract_features, grad_cam


def images(count: int = 3, size: int = 20, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, size, size, generator=seeded(1))


class Pooled(nn.Module):
    """A convolution, the mean of each map, and a linear layer, whose Grad-CAM is known."""

    def __init__(self, channels: int, classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(1, channels, 3)
            self.fc = nn.Linear(channels, classes)
        self.unused = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def test_features_are_the_outputs_of_the_layers():
    model = two_towers().eval()
    features = extract_features(model, images(), "relu2", "features.conv1", "fc5")
    expected = images()
    for name, module in model.features.named_children():
        expected = module(expected)
        if name == "conv1":
            assert torch.equal(features["features.conv1"], expected)
        if name == "relu2":
            assert torch.equal(features["relu2"], expected)
    assert torch.equal(features["fc5"], model(images()))
    assert list(features) == ["relu2", "features.conv1", "fc5"]
    assert not any(output.requires_grad or output.is_inference() for output in features.values())


def test_features_are_those_before_a_layer_that_works_in_place():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    output = extract_features(model, images(), "0")["0"]
    assert torch.equal(output, model[0](images()))
    assert (output < 0).any()


def test_features_are_those_of_evaluation_mode_in_the_models_dtype():
    model = two_towers(dropout=0.9).train().double()
    first, second = (extract_features(model, images(), "fc5")["fc5"] for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float64


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), st.integers(4, 7), st.integers(4, 7)
)
def test_grad_cam_of_mean_maps_and_a_linear_layer_is_known(channels, classes, seed, high, wide):
    model = Pooled(channels, classes, seed)
    batch = torch.randn(2, 1, high, wide, generator=seeded(seed))
    maps = extract_features(model, batch, "conv")["conv"]
    for target in range(classes):
        weights = model.fc.weight[target].detach() / maps[0, 0].numel()
        expected = torch.einsum("k,bkhw->bhw", weights, maps).relu()
        computed = grad_cam(model, batch, target, layer="conv")
        torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", ["conv1", "relu3", "conv3", "pool3"])
def test_grad_cam_is_that_of_captum(layer):
    attr = pytest.importorskip("captum.attr")
    model = two_towers().eval()
    oracle = attr.LayerGradCam(model, model.get_submodule(f"features.{layer}"))
    expected = oracle.attribute(images(), torch.tensor([0, 3, 9]), relu_attributions=True)[:, 0]
    computed = grad_cam(model, images(), [0, 3, 9], layer=layer)
    torch.testing.assert_close(computed, expected.detach(), rtol=0, atol=1e-5)
    assert computed.max() > 1e-4


def test_grad_cam_takes_one_class_or_one_for_each_image_or_the_likeliest():
    model = two_towers().eval()

    def cam(targets):
        return grad_cam(model, images(), targets, layer="relu3")

    assert torch.equal(cam(4), cam([4, 4, 4]))
    assert torch.equal(cam(torch.tensor([1, 2, 3]))[1], cam(2)[1])
    assert torch.equal(cam(None), cam(model(images()).argmax(1)))
    assert not torch.equal(cam(1), cam(2))


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_grad_cam_works_where_gradients_are_off_and_weights_are_frozen(block):
    model = two_towers()
    expected = grad_cam(model, images(), 1, layer="relu3")
    model.requires_grad_(False)
    with block():
        batch = images()
        assert torch.equal(grad_cam(model, batch, 1, layer="relu3"), expected)


def test_grad_cam_works_before_a_layer_that_works_in_place():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 18**2, 5)
    )
    assert grad_cam(model, images(), 1, layer="0").shape == (3, 18, 18)


CALLS = {
    "extract_features": lambda model, batch: extract_features(model, batch, "relu3", "fc5"),
    "grad_cam": lambda model, batch: grad_cam(model, batch, layer="relu3"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_model_is_afterwards_as_it_was(name):
    model = two_towers().train()
    model.features.conv2.eval()
    model.freeze("conv1")
    model(images()).sum().backward()
    before = state_of(model)
    CALLS[name](model, images())
    assert state_of(model) == before


@pytest.mark.parametrize("name", CALLS)
def test_the_model_is_as_it_was_after_an_error_in_it(name):
    model = two_towers().train()
    before = state_of(model)
    with pytest.raises(ValueError, match="images has shape"):
        CALLS[name](model, images(size=9))
    assert state_of(model) == before


@pytest.mark.bad_input
def test_what_is_no_layer_no_class_or_no_image_is_named():
    model = two_towers()
    with pytest.raises(ValueError, match=r"layers has \['fc9'\]; .* conv3, .*, fc5$"):
        extract_features(model, images(), "conv1", "fc9")
    with pytest.raises(ValueError, match="layers has 'unused', which the model does not use"):
        extract_features(Pooled(2, 2, 0), images(channels=1), "unused")
    with pytest.raises(TypeError, match="images is a list; expected a batch"):
        extract_features(model, [1], "conv1")
    with pytest.raises(TypeError, match="model is a str"):
        extract_features("alexnet", images(), "conv1")
    with pytest.raises(ValueError, match=r"layer 'lstm' returns a tuple; expected one tensor"):
        extract_features(nn.Sequential(_named(lstm=nn.LSTM(4, 3))), torch.rand(2, 5, 4), "lstm")
    for targets in (10, -1, [1, 2], [1, 2, 10], "cat", 1.5, True):
        with pytest.raises(ValueError, match=r"targets is .*; expected an integer from 0 to 9, or"):
            grad_cam(model, images(), targets, layer="relu3")
    with pytest.raises(ValueError, match=r"layer is 'fc4', whose output has shape \(3, 16\)"):
        grad_cam(model, images(), 1, layer="fc4")


def _named(**modules: nn.Module) -> nn.Module:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in modules.items():
                self.add_module(name, module)

        def forward(self, x):
            for module in self.children():
                x = module(x)
            return x

    return Holder()


def test_layers_are_found_by_the_last_part_of_their_names_where_only_one_has_it():
    twice = _named(a=_named(conv=nn.Conv2d(3, 3, 1)), b=_named(conv=nn.Conv2d(3, 3, 1)))
    with pytest.raises(
        ValueError, match=r"layers has \['conv'\]; expected names among a, b, a.conv, b.conv$"
    ):
        extract_features(twice, images(), "conv")
    assert set(extract_features(twice, images(), "b.conv")) == {"b.conv"}
    wrapped = nn.DataParallel(AlexNet(10, architecture=TWO_TOWERS))
    assert extract_features(wrapped.cpu(), images(), "conv1")["conv1"].shape == (3, 8, 9, 9)
