"""The promises of `save_checkpoint` and `load_checkpoint`: all comes back, nothing is lost."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import TINY
from torch import nn

from alexnet_lib import AlexNet, Preprocess, load_checkpoint, save_checkpoint
from alexnet_lib.network import checkpoints

PREPROCESS = Preprocess(14, 12, "squash", 255.0, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def tiny_model(**arguments) -> AlexNet:
    return AlexNet(**{"num_classes": 3, "architecture": TINY, "seed": 0, **arguments})


def saved(folder: Path, model: AlexNet | None = None, **arguments) -> Path:
    file = folder / "model.safetensors"
    save_checkpoint(file, tiny_model() if model is None else model, **arguments)
    return file


def metadata_of(file: Path) -> dict:
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["alexnet_lib"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_and_dtype_come_back(dtype, tmp_path):
    model = tiny_model().to(dtype)
    loaded = load_checkpoint(saved(tmp_path, model))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], weight)


def test_the_outputs_come_back(tmp_path):
    model, images = tiny_model().eval(), torch.rand(2, 3, 12, 12)
    assert torch.equal(load_checkpoint(saved(tmp_path, model))(images), model(images))


@pytest.mark.parametrize("architecture", ["paper", "single_tower", "one_weird_trick"])
def test_a_named_architecture_comes_back(architecture, tmp_path, monkeypatch):
    # The weights, hundreds of megabytes, are not what is looked at.
    monkeypatch.setattr(checkpoints, "_check_weights", lambda *arguments: None)
    monkeypatch.setattr(AlexNet, "load_state_dict", lambda *arguments, **options: None)
    monkeypatch.setattr(AlexNet, "to", lambda model, device: model)
    with torch.device("meta"):
        model = AlexNet(7, architecture=architecture, image_size=70)
    monkeypatch.setattr(AlexNet, "state_dict", lambda model: {})
    loaded = load_checkpoint(saved(tmp_path, model))
    assert loaded.architecture == model.architecture
    assert (loaded.num_classes, loaded.image_size) == (7, 70)


def test_an_architecture_of_ones_own_comes_back(tmp_path):
    loaded = load_checkpoint(saved(tmp_path, tiny_model(image_size=20, dropout=0.25)))
    assert loaded.architecture == TINY
    assert (loaded.image_size, loaded.dropout, loaded.classifier.drop2.p) == (20, 0.25, 0.25)


@pytest.mark.parametrize("scaling", ["training", "test"])
def test_a_models_dropout_comes_back_as_it_scales(scaling, tmp_path):
    model = tiny_model(dropout_scaling=scaling).eval()
    loaded = load_checkpoint(saved(tmp_path, model))
    assert loaded.dropout_scaling == scaling
    images = torch.rand(2, 3, model.image_size, model.image_size)
    assert torch.equal(loaded(images), model(images))


def test_classes_and_preprocessing_come_back(tmp_path):
    file = saved(tmp_path, classes=["a", "b", "c"], preprocess=PREPROCESS)
    loaded = load_checkpoint(file)
    assert loaded.classes == ("a", "b", "c")
    assert loaded.preprocess == PREPROCESS


def test_classes_and_preprocessing_are_the_models_own_where_none_are_given(tmp_path):
    model = tiny_model()
    model.classes, model.preprocess = ("ä", "b", "c"), PREPROCESS
    loaded = load_checkpoint(saved(tmp_path, model))
    assert (loaded.classes, loaded.preprocess) == (("ä", "b", "c"), PREPROCESS)


def test_a_model_that_knows_neither_classes_nor_preprocessing_comes_back_so(tmp_path):
    loaded = load_checkpoint(saved(tmp_path))
    assert (loaded.classes, loaded.preprocess) == (None, None)


def test_metrics_are_kept_in_the_file(tmp_path):
    assert metadata_of(saved(tmp_path, metrics={"accuracy": 0.5}))["metrics"] == {"accuracy": 0.5}


def test_a_model_that_is_loaded_is_in_evaluation_mode_and_can_be_trained(tmp_path):
    loaded = load_checkpoint(saved(tmp_path))
    assert not any(module.training for module in loaded.modules())
    assert all(weight.requires_grad and weight.is_leaf for weight in loaded.parameters())
    loaded(torch.rand(1, 3, 12, 12)).sum().backward()
    assert loaded.features.conv1.weight.grad is not None


def test_saving_changes_nothing_of_the_model(tmp_path):
    model = tiny_model()
    saved(tmp_path, model, classes=["a", "b", "c"], preprocess=PREPROCESS)
    assert model.training
    assert (model.classes, model.preprocess) == (None, None)


def test_safetensors_alone_reads_the_file(tmp_path):
    model = tiny_model()
    tensors = load_file(saved(tmp_path, model))
    assert tensors.keys() == model.state_dict().keys()
    assert torch.equal(tensors["classifier.fc2.bias"], model.classifier.fc2.bias)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    file = saved(tmp_path, classes=["a", "b", "c"])
    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    load_checkpoint(file)


def test_a_last_layer_for_other_classes_comes_back(tmp_path):
    model = tiny_model()
    model.classifier.fc2 = nn.Linear(model.classifier.fc2.in_features, 5)
    loaded = load_checkpoint(saved(tmp_path, model, classes="abcde"))
    assert loaded.num_classes == 5
    assert loaded.classes == tuple("abcde")
    assert torch.equal(loaded.classifier.fc2.weight, model.classifier.fc2.weight)


def test_an_earlier_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    saved(tmp_path)
    model = tiny_model(seed=1)
    file = saved(tmp_path, model)
    assert torch.equal(load_checkpoint(file).features.conv1.weight, model.features.conv1.weight)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_does_not_exist_is_made(tmp_path):
    assert load_checkpoint(saved(tmp_path / "new" / "folder")).num_classes == 3


def test_a_loaded_file_can_be_replaced_while_its_model_is_in_use(tmp_path):
    loaded = load_checkpoint(saved(tmp_path))
    before = loaded.features.conv1.weight.detach().clone()
    saved(tmp_path, tiny_model(seed=1))
    assert torch.equal(loaded.features.conv1.weight, before)


# What is refused.


@pytest.mark.bad_input
@pytest.mark.parametrize("error", [OSError("disk full"), SafetensorError("No space left")])
def test_a_write_that_fails_midway_leaves_the_old_file_and_no_litter(error, tmp_path, monkeypatch):
    def fail_midway(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise error

    file = saved(tmp_path)
    before = file.read_bytes()
    monkeypatch.setattr(checkpoints, "save_file", fail_midway)
    with pytest.raises(OSError, match=str(error)):
        saved(tmp_path, tiny_model(seed=1))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.bad_input
def test_an_ending_that_is_not_safetensors_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.pt'; expected a name that ends in \.safetensors"):
        save_checkpoint(tmp_path / "model.pt", tiny_model())


@pytest.mark.bad_input
def test_a_model_that_is_no_alexnet_is_refused(tmp_path):
    with pytest.raises(TypeError, match="model is a Linear; expected an AlexNet"):
        saved(tmp_path, nn.Linear(1, 1))


@pytest.mark.bad_input
def test_a_wrong_number_of_class_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match="classes has 2 names; expected the model's 3"):
        saved(tmp_path, classes=["a", "b"])


@pytest.mark.bad_input
def test_a_model_that_its_architecture_does_not_describe_is_refused(tmp_path):
    model = tiny_model()
    model.features.conv1 = nn.Conv2d(3, 4, 5, stride=2, padding=1)
    message = "features.conv1.weight has shape (4, 3, 5, 5), expected (4, 3, 3, 3)"
    with pytest.raises(ValueError, match=re.escape(message)):
        saved(tmp_path, model)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_a_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.bad_input
@pytest.mark.parametrize("keep", [0, 4, 50, -1])
def test_a_damaged_file_is_named(keep, tmp_path):
    file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_checkpoint(file)


@pytest.mark.bad_input
def test_a_file_that_is_no_safetensors_file_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    torch.save(tiny_model().state_dict(), file)
    with pytest.raises(
        ValueError, match=r"model\.safetensors is damaged or not a safetensors file"
    ):
        load_checkpoint(file)


@pytest.mark.bad_input
def test_a_safetensors_file_without_metadata_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(tiny_model().state_dict(), file)
    with pytest.raises(ValueError, match=r"model\.safetensors was not written by save_checkpoint"):
        load_checkpoint(file)


def rewrite(file: Path, tensors: dict, metadata: str) -> None:
    save_file(tensors, file, {"format": "pt", "alexnet_lib": metadata})


@pytest.mark.bad_input
def test_weights_of_other_shapes_are_named(tmp_path):
    file = saved(tmp_path)
    metadata = json.dumps(metadata_of(file))
    rewrite(file, dict(tiny_model(num_classes=4).state_dict()), metadata)
    message = "classifier.fc2.bias has shape (4,), expected (3,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_checkpoint(file)


@pytest.mark.bad_input
def test_missing_weights_are_named(tmp_path):
    file = saved(tmp_path)
    tensors = dict(tiny_model().state_dict())
    del tensors["features.conv1.bias"]
    rewrite(file, tensors, json.dumps(metadata_of(file)))
    with pytest.raises(ValueError, match=r"features\.conv1\.bias has shape None, expected \(4,\)"):
        load_checkpoint(file)


@pytest.mark.bad_input
@pytest.mark.parametrize("metadata", ["{", "{}", "[]", '{"architecture": {"layers": 3}}'])
def test_metadata_that_describe_no_model_are_refused_with_the_files_name(metadata, tmp_path):
    file = tmp_path / "model.safetensors"
    rewrite(file, dict(tiny_model().state_dict()), metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_checkpoint(file)


@pytest.mark.bad_input
def test_a_model_without_a_last_linear_layer_is_refused(tmp_path):
    model = tiny_model()
    model.classifier[-1] = torch.nn.Identity()
    with pytest.raises(ValueError, match="ends with Identity"):
        save_checkpoint(tmp_path / "model.safetensors", model)
