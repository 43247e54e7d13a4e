"""The promises of `from_state_dict`: weights in the world's forms, and what cannot be read."""

import argparse
import copy
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision
from odd import wrong_messages
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from alexnet_lib import AlexNet, Architecture, from_state_dict, from_torchvision, save_checkpoint
from alexnet_lib.network.architecture import Conv, Flatten, Linear


class Tutorial(nn.Module):
    """The class of the usual blog post; ``prefix`` is what it calls its convolutions."""

    def __init__(self, num_classes=10, prefix="conv"):
        super().__init__()
        self.prefix = prefix
        lrn = lambda: nn.LocalResponseNorm(5, 1e-4, 0.75, 2)
        pool = lambda: nn.MaxPool2d(3, 2)
        convs = [
            nn.Sequential(nn.Conv2d(3, 96, 11, 4, 0), nn.ReLU(), lrn(), pool()),
            nn.Sequential(nn.Conv2d(96, 256, 5, 1, 2), nn.ReLU(), lrn(), pool()),
            nn.Sequential(nn.Conv2d(256, 384, 3, 1, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(384, 384, 3, 1, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(), pool()),
        ]
        for i, conv in enumerate(convs, 1):
            setattr(self, f"{prefix}{i}", conv)
        self.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(9216, 4096), nn.ReLU())
        self.fc1 = nn.Sequential(nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(4096, num_classes))

    def forward(self, x):
        for i in range(1, 6):
            x = getattr(self, f"{self.prefix}{i}")(x)
        return self.fc2(self.fc1(self.fc(x.flatten(1))))


@pytest.fixture(scope="module")
def tutorial():
    """The tutorial's model in evaluation mode. Tests leave it as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tutorial().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0))


def assert_same_outputs(ours, theirs, images):
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_the_tutorials_weights_give_the_tutorials_outputs(tutorial, images):
    names = list(tutorial.state_dict())
    assert names[0] == "conv1.0.weight"
    assert names[-4:] == ["fc1.1.weight", "fc1.1.bias", "fc2.0.weight", "fc2.0.bias"]
    model = from_state_dict(tutorial.state_dict())
    assert (model.architecture.name, model.num_classes) == ("single_tower", 10)
    assert (model.preprocess, model.classes) == (None, None)
    assert_same_outputs(model, tutorial, images)


def test_torchvisions_names_and_outputs(images):
    theirs = torchvision.models.alexnet(num_classes=10).eval()
    model = from_state_dict(theirs.state_dict(), architecture="one_weird_trick")
    assert_same_outputs(model, theirs, images)


# On a table so small that a case costs nothing; fc2 and fc3 have the same shape with 16 classes.
TINY = Architecture(
    "tiny",
    image_size=9,
    layers=(
        Conv("conv1", 8, kernel=3, groups=1),
        Conv("conv2", 4, kernel=3, groups=2),
        Flatten("flatten"),
        Linear("fc1", 16),
        Linear("fc2", 16),
        Linear("fc3", None),
    ),
)


def tiny(num_classes=5, **arguments):
    return AlexNet(num_classes, architecture=TINY, **{"seed": 0, **arguments})


def renamed(state, names):
    """The state with other names for its layers, in their order."""
    own = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    new = dict(zip(own, names, strict=True))
    return {
        f"{new[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor
        for name, tensor in state.items()
    }


def assert_same_weights(model, expected):
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


NAMES = {
    "own": [
        "features.conv1",
        "features.conv2",
        "classifier.fc1",
        "classifier.fc2",
        "classifier.fc3",
    ],
    "layer1.0": ["layer1.0", "layer2.0", "fc.1", "fc1.1", "fc2.0"],
    "indices": ["features.0", "features.3", "classifier.6", "classifier.9", "classifier.10"],
    "words": ["stem", "body", "hidden", "more", "out"],
}


@pytest.mark.parametrize("count", [5, 16], ids="{} classes".format)
@pytest.mark.parametrize("names", list(NAMES))
@pytest.mark.parametrize("order", ["as built", "sorted"])
def test_layers_are_found_whatever_they_are_called(names, order, count):
    expected = tiny(count)
    state = renamed(expected.state_dict(), NAMES[names])
    if order == "sorted":  # as safetensors does
        state = dict(sorted(state.items()))
    assert_same_weights(from_state_dict(state, architecture=TINY), expected)


def test_the_order_of_different_shapes_does_not_matter():
    expected = tiny()
    state = dict(reversed(renamed(expected.state_dict(), NAMES["layer1.0"]).items()))
    assert_same_weights(from_state_dict(state, architecture=TINY), expected)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: name.replace("features.", "features.module."),  # PyTorch's ImageNet example
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"model.{name}",
        lambda name: f"backbone.net.{name}",
        lambda name: f"_fsdp_wrapped_module.{name}",
    ],
)
def test_what_wrappers_add_to_names_is_ignored(rename):
    expected = tiny()
    state = {rename(name): tensor for name, tensor in expected.state_dict().items()}
    assert_same_weights(from_state_dict(state, architecture=TINY), expected)


def test_wrappers_themselves_and_averages_are_read():
    expected = tiny()
    for wrapped in (nn.DataParallel(expected), torch.compile(expected), AveragedModel(expected)):
        assert_same_weights(from_state_dict(wrapped.state_dict(), architecture=TINY), expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {
            "state_dict": state,
            "epoch": 3,
            "arch": "alexnet",
            "best_acc1": torch.tensor(56.5),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
        },
        lambda state: {"model": state, "ema": {k: v + 1 for k, v in state.items()}, "loss": 0.5},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
        lambda state: {"net": state, "acc": np.float64(91.5), "epoch": np.int64(3)},
        lambda state: {"weights": state},
        lambda state: {"alexnet": state, "epoch": 3},
        lambda state: {**state, "epoch": 3, "arch": "alexnet"},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_weights_in_a_training_checkpoint_are_found(wrap, legacy, tmp_path):
    expected = tiny()
    checkpoint, file = wrap(dict(expected.state_dict())), tmp_path / "checkpoint.pth.tar"
    torch.save(checkpoint, file, _use_new_zipfile_serialization=not legacy)
    for weights in (checkpoint, file, str(file)):
        assert_same_weights(from_state_dict(weights, architecture=TINY), expected)


def test_safetensors_and_checkpoints_of_this_library_are_read(tmp_path, monkeypatch):
    expected, file = tiny(), tmp_path / "model.safetensors"
    save_file(renamed(expected.state_dict(), NAMES["indices"]), file)
    with pytest.warns(UserWarning, match=re.escape(f"{file} has no checksum")):
        assert_same_weights(from_state_dict(file, architecture=TINY), expected)
    save_checkpoint(file, expected)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert_same_weights(from_state_dict("~/model.safetensors", architecture=TINY), expected)


def test_weights_that_were_trained_with_the_papers_dropout_are_known_as_such():
    trained = AlexNet(2, image_size=67, dropout=0.3, dropout_scaling="test", seed=1).eval()
    model = from_state_dict(
        trained.state_dict(), architecture="paper", image_size=67, dropout=0.3
    ).eval()
    images = torch.rand(2, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    assert model.dropout_scaling == "test"
    torch.testing.assert_close(model(images), trained(images), rtol=0, atol=0)
    wrong = r"^dropout is 0\.5, but weights are those of a network with dropout 0\.3 and .* 0\.3$"
    with pytest.raises(ValueError, match=wrong):
        from_state_dict(trained.state_dict(), architecture="paper", image_size=67)


def test_the_numbers_of_channels_and_classes_are_those_of_the_weights():
    expected = tiny(7, in_channels=2)
    model = from_state_dict(expected.state_dict(), architecture=TINY)
    assert (model.in_channels, model.num_classes) == (2, 7)
    assert_same_weights(model, expected)


def test_the_channels_of_a_first_layer_with_groups_are_counted():
    table = Architecture("grouped", 9, (Conv("conv1", 8, kernel=3, groups=4), *TINY.layers[1:]))
    expected = AlexNet(5, architecture=table, in_channels=8, seed=0)
    model = from_state_dict(expected.state_dict(), architecture=table)
    assert model.in_channels == 8
    assert_same_weights(model, expected)


def test_another_number_of_classes_starts_the_last_layer_anew():
    theirs, new = tiny(5), tiny(3, seed=1)
    model = from_state_dict(theirs.state_dict(), 3, architecture=TINY, seed=1, dropout=0.25)
    assert (model.num_classes, model.dropout) == (3, 0.25)
    assert torch.equal(model.classifier.fc3.weight, new.classifier.fc3.weight)
    assert torch.equal(model.classifier.fc2.weight, theirs.classifier.fc2.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floating_dtypes_are_converted(dtype):
    expected = tiny().to(dtype)
    model = from_state_dict(expected.state_dict(), architecture=TINY)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same_weights(model.to(dtype), expected)


def test_the_weights_are_copies():
    theirs = tiny()
    model = from_state_dict(theirs.state_dict(), architecture=TINY)
    before = copy.deepcopy(model)
    with torch.no_grad():
        theirs.features.conv1.weight.zero_()
    assert_same_weights(model, before)


# Weights of another network: the message says which, or what differs


def message_of(weights, error=ValueError, **arguments):
    with pytest.raises(error) as caught:
        from_state_dict(weights, **arguments)
    assert "None" not in str(caught.value)
    return str(caught.value)


def on_meta(build):
    with torch.device("meta"):
        return build().state_dict()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "guess"),
    [
        (torchvision.models.resnet18, "they look like those of a ResNet"),
        (torchvision.models.vgg11, "they look like those of a VGG network"),
        (
            torchvision.models.vgg11_bn,
            "batch normalisation, so it is another network; they look lik",
        ),
        (torchvision.models.squeezenet1_0, "they look like those of a SqueezeNet"),
        (torchvision.models.densenet121, "they look like those of a DenseNet"),
        (torchvision.models.mobilenet_v2, "they look like those of a MobileNet"),
        (torchvision.models.vit_b_32, "they look like those of a vision transformer"),
    ],
)
def test_other_networks_are_recognised(build, guess):
    assert guess in message_of(on_meta(build))
    with pytest.raises(ValueError, match=re.escape(guess)):
        from_torchvision(on_meta(build))


@pytest.mark.bad_input
@pytest.mark.parametrize("mine", ["paper", "single_tower", "one_weird_trick"])
@pytest.mark.parametrize("asked", ["paper", "single_tower", "one_weird_trick"])
def test_the_architecture_that_the_weights_are_of_is_named(mine, asked):
    state = on_meta(lambda: AlexNet(10, architecture=mine))
    message = message_of(state, architecture=asked)
    if mine == asked:
        assert "is on the meta device and holds no values" in message
    else:
        assert message == (
            f"weights do not fit the architecture {asked!r}: they are those of {mine!r}: "
            f"from_state_dict(weights, architecture={mine!r}) reads them"
        )


def spoiled(**changes):
    """A change of the tiny network's state: name with "__" for "." -> function of the tensor."""

    def spoil(state):
        for name, change in changes.items():
            key = name.replace("__", ".")
            new = change(state.pop(key, None))
            if new is not None:
                state[key] = new
        return state

    return spoil


CASES = {
    "no bias": (
        spoiled(features__conv1__bias=lambda x: None),
        "features.conv1 has no bias, and every layer of this network has one",
    ),
    "no layer": (
        spoiled(classifier__fc3__weight=lambda x: None, classifier__fc3__bias=lambda x: None),
        "nothing has the shape of fc3 (any, 16). They are: features.conv1 (8, 3, 3, 3), ",
    ),
    "one more layer": (
        spoiled(bn1__weight=lambda x: torch.ones(8), bn1__bias=lambda x: torch.ones(8)),
        "bn1 belong to no layer of it. They are: ",
    ),
    "batch normalisation": (
        spoiled(features__1__running_mean=lambda x: torch.ones(8)),
        "features.1.running_mean shows that it has batch normalisation, so it is another network",
    ),
    "pruned": (
        spoiled(features__conv1__weight_orig=lambda x: torch.ones(8)),
        "features.conv1.weight_orig shows that it is pruned: call torch.nn.utils.prune.remove",
    ),
    "adapters": (
        spoiled(classifier__fc2__lora_A__weight=lambda x: torch.ones(2, 16)),
        "has adapters (LoRA): merge them",
    ),
    "another size": (
        spoiled(classifier__fc1__weight=lambda x: torch.ones(16, 64)),
        "classifier.fc1.weight has shape (16, 64), expected (16, 100) for fc1; it may be for "
        "images of another size: pass image_size",
    ),
    "another bias": (
        spoiled(classifier__fc1__bias=lambda x: torch.ones(15)),
        "classifier.fc1.bias has shape (15,), expected (16,)",
    ),
    "bytes": (
        spoiled(features__conv1__weight=lambda x: x.to(torch.int8)),
        "weights['features.conv1.weight'] is of torch.int8; expected float16, ",
    ),
    "no values": (
        spoiled(features__conv1__weight=lambda x: x.to("meta")),
        "weights['features.conv1.weight'] is on the meta device and holds no values",
    ),
    "not finite": (
        spoiled(features__conv1__weight=lambda x: x * torch.nan),
        "weights['features.conv1.weight'] holds values that are NaN or infinite",
    ),
    "an array": (
        spoiled(features__conv1__weight=lambda x: x.numpy()),
        "weights['features.conv1.weight'] is a numpy.ndarray; expected a tensor",
    ),
    "nothing": (lambda state: {}, "there is no tensor among them"),
    "no weights": (lambda state: {"epoch": 3}, "there is no tensor among them"),
    "two networks": (
        lambda state: {"student": state, "teacher": state},
        "weights holds several state dicts, 'student', 'teacher'; expected one",
    ),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("case", list(CASES))
def test_what_does_not_fit_is_named_with_its_cause(case):
    spoil, message = CASES[case]
    assert message in message_of(spoil(dict(tiny().state_dict())), architecture=TINY)


@pytest.mark.bad_input
def test_channels_that_the_weights_are_not_for_are_refused():
    message = message_of(tiny(in_channels=1).state_dict(), architecture=TINY, in_channels=3)
    assert message.endswith("for conv1; it is for images of 1 channel, not 3")


@pytest.mark.bad_input
def test_parametrised_and_quantised_layers_are_told_what_to_do():
    model = tiny()
    nn.utils.parametrizations.weight_norm(model.features.conv1)
    assert "remove_parametrizations" in message_of(model.state_dict(), architecture=TINY)


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_told_what_to_do():
    quantized = torch.ao.quantization.quantize_dynamic(tiny(), {nn.Linear}, torch.qint8)
    assert "it is quantised" in message_of(quantized.state_dict(), architecture=TINY)


# Files that hold something else


@pytest.mark.bad_input
@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_model_is_named_and_not_unpickled(legacy, tmp_path):
    file = tmp_path / "model.pth"
    torch.save(Evil(), file, _use_new_zipfile_serialization=not legacy)
    message = message_of(file)
    assert f"weights is {str(file)!r}, a whole pickled model of the class " in message
    assert "test_state_dicts.Evil; expected a state dict" in message
    assert f"torch.save(torch.load({str(file)!r}, weights_only=False).state_dict(), " in message


class Evil(nn.Module):
    """A model that must not be unpickled."""

    def __setstate__(self, state):
        raise AssertionError("unpickled")


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_weights_are_left_out_and_not_unpickled(legacy, tmp_path):
    file, model = tmp_path / "model.pth", tiny()
    objects = {"args": argparse.Namespace(lr=0.1), "other": Evil(), "sets": {1, frozenset([2])}}
    checkpoint = {"args": Evil(), "state_dict": model.state_dict(), **objects}
    torch.save(checkpoint, file, _use_new_zipfile_serialization=not legacy)
    assert_same_weights(from_state_dict(file, architecture=TINY), model)


@pytest.mark.bad_input
@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_model_in_a_checkpoint_is_named(legacy, tmp_path):
    file = tmp_path / "model.pth"
    checkpoint = {"epoch": 3, "model": Evil()}
    torch.save(checkpoint, file, _use_new_zipfile_serialization=not legacy)
    message = message_of(file)
    assert message.startswith("weights['model'] is a whole pickled model of the class ")
    assert "torch.load(file, weights_only=False)['model'].state_dict(), 'weights.pth')" in message


@pytest.mark.bad_input
def test_a_whole_model_in_memory_is_told_what_to_pass():
    assert "pass model.state_dict()" in message_of(tiny(), TypeError)
    message = message_of({"model": tiny(), "epoch": 3}, TypeError)
    assert message.endswith("expected a state dict: pass weights['model'].state_dict()")


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
def test_archives_of_torch_that_are_no_state_dicts_are_named(tmp_path):
    model, file = nn.Linear(2, 2), tmp_path / "model.pt"
    torch.jit.trace(model, torch.ones(1, 2)).save(str(file))
    assert "an archive of TorchScript: its weights are torch.jit.load(file)" in message_of(file)
    exported = torch.export.export(model, (torch.ones(1, 2),))
    torch.export.save(exported, str(tmp_path / "model.pt2"))
    assert "a program of torch.export: " in message_of(tmp_path / "model.pt2")


@pytest.mark.bad_input
def test_files_of_numpy_and_pickle_are_named(tmp_path):
    np.save(tmp_path / "bvlc_alexnet.npy", np.ones(3))
    np.savez(tmp_path / "weights.npz", a=np.ones(3))
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"a": 1}))
    assert "an array of NumPy; expected a file of torch" in message_of(
        tmp_path / "bvlc_alexnet.npy"
    )
    assert "an archive of NumPy's arrays; expected" in message_of(tmp_path / "weights.npz")
    assert "a pickle that torch.save did not write" in message_of(tmp_path / "weights.pkl")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file: the download or the disk failed"),
        (b"\n\n<!DOCTYPE html>\n<html>Google Drive", "a page of HTML or XML in place of the file"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS in place of the file",
        ),
        (b"Entry not found", "a text in place of the file, which begins with 'Entry not found'"),
        ("Datei nicht verfügbar".encode(), "a text in place of the file, which begins with 'Datei"),
        (b"PK\x03\x04 broken", "a damaged or cut zip file, as of torch.save"),
        (b"\x89HDF\r\n\x1a\n\x00\x00", "an HDF5 file, as Keras writes its weights"),
        (b"\x0a\x01\x00\x12\xff\xfe", "a damaged file, or of an unknown format"),
    ],
)
def test_a_file_that_is_something_else_is_named(content, kind, tmp_path):
    file = tmp_path / "alexnet.pth"
    file.write_bytes(content)
    for read in (from_state_dict, from_torchvision):
        with pytest.raises(ValueError, match=re.escape(f"weights is {str(file)!r}, {kind}")):
            read(file)


@pytest.mark.bad_input
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_that_was_cut_is_named(form, tmp_path):
    file = tmp_path / "weights"
    if form == "safetensors":
        save_file(tiny().state_dict(), file)
    else:
        torch.save(tiny().state_dict(), file, _use_new_zipfile_serialization=form == "zip")
    whole = file.read_bytes()
    for length in (9, len(whole) // 10, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:length])
        message = message_of(file, architecture=TINY)
        assert str(file) in message
        assert "damaged" in message or "pickle" in message or "safetensors" in message


@pytest.mark.bad_input
def test_a_tensorflow_model_and_a_folder_are_named(tmp_path):
    (tmp_path / "frozen.pb").write_bytes(b"\x0a\x01\x00\x12\xff\xfe")
    assert "a graph of TensorFlow; expected" in message_of(tmp_path / "frozen.pb")
    (tmp_path / "saved_model.pb").touch()
    message = message_of(tmp_path, IsADirectoryError)
    assert message.endswith("a folder; expected a file (it is a SavedModel of TensorFlow)")
    assert "no such file" in message_of(tmp_path / "none.pth", FileNotFoundError)


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
def test_odd_arguments_are_named_or_right():
    arguments = {
        "weights": tiny().state_dict(),
        "num_classes": 5,
        "architecture": TINY,
        "in_channels": 3,
        "image_size": 9,
        "dropout": 0.5,
        "seed": 0,
    }
    assert from_state_dict(**arguments).num_classes == 5
    errors = (ValueError, TypeError, OSError)
    assert not wrong_messages(from_state_dict, arguments, errors=errors)
    names = ["weights", "num_classes", "image_size", "dropout", "seed"]
    theirs = {name: arguments[name] for name in names[1:]} | {"weights": {}}
    wrong = wrong_messages(from_torchvision, theirs, ["weights"], errors)
    assert not wrong
