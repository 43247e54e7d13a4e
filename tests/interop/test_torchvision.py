"""The promises of `from_torchvision`: torchvision's weights, and what is refused as such."""

import re

import pytest
import torch
import torchvision
from torchvision.models import AlexNet_Weights

from alexnet_lib import AlexNet, from_torchvision


@pytest.fixture(scope="module")
def theirs():
    """torchvision's model with its random weights, in evaluation mode. Tests leave it alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.alexnet(num_classes=10).eval()


@pytest.fixture(scope="module")
def weights_file(theirs, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(theirs.state_dict(), file)
    return file


@pytest.fixture(scope="module", params=["state dict", "file", "file's name"])
def from_theirs(request, theirs, weights_file):
    """The library's model of torchvision's weights, however these are named."""
    weights = {
        "state dict": theirs.state_dict(),
        "file": weights_file,
        "file's name": str(weights_file),
    }[request.param]
    return from_torchvision(weights).eval()


def test_torchvisions_weights_give_torchvisions_outputs(from_theirs, theirs):
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(from_theirs(images), theirs(images))


def test_the_preprocessing_is_that_of_torchvisions_weights(from_theirs):
    preprocess = from_theirs.preprocess
    transforms = AlexNet_Weights.IMAGENET1K_V1.transforms()
    assert [preprocess.image_size] == transforms.crop_size
    assert [preprocess.resize] == transforms.resize_size
    assert list(preprocess.mean) == transforms.mean
    assert list(preprocess.std) == transforms.std
    assert (preprocess.scale, preprocess.edge) == (1.0, 0)


def test_weights_bring_no_names_of_classes(from_theirs):
    assert from_theirs.classes is None


def test_the_weights_are_copies_of_torchvisions(from_theirs, theirs):
    storages = [
        {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
        for model in (from_theirs, theirs)
    ]
    assert storages[0].isdisjoint(storages[1])


@pytest.fixture(scope="module")
def three_classes(theirs):
    return from_torchvision(theirs.state_dict(), 3, image_size=300, dropout=0.25, seed=1)


def test_for_other_classes_all_layers_but_the_last_are_torchvisions(three_classes, theirs):
    assert three_classes.num_classes == 3
    ours, known = three_classes.state_dict(), theirs.state_dict()
    for name, weight in zip(list(ours)[:-2], list(known.values())[:-2], strict=True):
        assert torch.equal(ours[name], weight), name


def test_a_new_last_layer_starts_as_kaimings_does(three_classes):
    expected = AlexNet(3, architecture="one_weird_trick", seed=1).classifier.fc8
    assert torch.equal(three_classes.classifier.fc8.weight, expected.weight)
    assert not three_classes.classifier.fc8.bias.any()


def test_size_and_dropout_are_as_asked(three_classes):
    assert (three_classes.image_size, three_classes.dropout) == (300, 0.25)
    assert three_classes.classifier.drop6.p == 0.25
    preprocess = three_classes.preprocess
    assert (preprocess.image_size, preprocess.resize) == (300, 300)


# Wrong input: each error says what came, what was expected, and what to do


@pytest.mark.bad_input
def test_a_file_of_weights_that_is_missing_is_named_with_where_to_get_it(tmp_path):
    file = tmp_path / "alexnet.pth"
    with pytest.raises(FileNotFoundError) as caught:
        from_torchvision(file)
    assert str(file) in str(caught.value)
    assert AlexNet_Weights.IMAGENET1K_V1.url in str(caught.value)


def without_a_bias(state):
    return {name: tensor for name, tensor in state.items() if name != "features.3.bias"}


def without_the_classifier(state):
    return {name: tensor for name, tensor in state.items() if "features" in name}


def of_grey_images(state):
    return {**state, "features.0.weight": state["features.0.weight"][:, :1]}


def of_another_shape(state):
    return {**state, "classifier.1.weight": state["classifier.1.weight"][:, 1:]}


def with_one_more(state):
    return {**state, "extra": torch.zeros(1)}


def with_a_word(state):
    return {**state, "features.0.weight": "conv1"}


PROBLEM = "weights do not fit the architecture 'one_weird_trick': "


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_bias, PROBLEM + "features.3 has no bias, and every layer of this network"),
        (
            without_the_classifier,
            PROBLEM + "nothing has the shape of fc6 (4096, 9216), fc7 (4096, 4096), "
            "fc8 (any, 4096). They are: features.0 (64, 3, 11, 11), features.3 (192, 64, 5, 5)",
        ),
        (
            of_grey_images,
            PROBLEM + "features.0.weight has shape (64, 1, 11, 11), expected (64, 3, 11, 11) for "
            "conv1; it is for images of 1 channel, not 3",
        ),
        (
            of_another_shape,
            PROBLEM + "classifier.1.weight has shape (4096, 9215), expected (4096, 9216) for fc6",
        ),
        (with_one_more, PROBLEM + "extra is no weight or bias of a layer"),
        (with_a_word, "weights['features.0.weight'] is a str; expected a tensor"),
    ],
)
def test_a_state_dict_that_is_not_torchvisions_is_told_why(spoil, message, theirs):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        from_torchvision(spoil(theirs.state_dict()))
    assert "None" not in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("weights", [3, None, ["features.0.weight"]], ids=str)
def test_weights_that_are_no_mapping_are_refused(weights):
    with pytest.raises(TypeError, match=r"^weights is a .*; expected a file or a state dict"):
        from_torchvision(weights)


@pytest.mark.bad_input
def test_a_file_that_holds_no_mapping_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "alexnet.pth")
    with pytest.raises(TypeError, match=r"^weights is a .*; expected a file or a state dict"):
        from_torchvision(tmp_path / "alexnet.pth")


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", ["AlexNet", "AlexNet_Weights"])
def test_torchvisions_model_and_enum_are_refused_with_what_to_pass(kind, theirs):
    weights = {"AlexNet": theirs, "AlexNet_Weights": AlexNet_Weights.DEFAULT}[kind]
    with pytest.raises(TypeError) as caught:
        from_torchvision(weights)
    assert str(caught.value) == (
        f"weights is a torchvision.models.alexnet.{kind}; expected a file or a state dict: "
        "pass model.state_dict(), or AlexNet_Weights.DEFAULT.get_state_dict()"
    )
