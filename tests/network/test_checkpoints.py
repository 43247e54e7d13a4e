"""The promises of `save_checkpoint` and `load_checkpoint`: all comes back, nothing is lost."""

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import TINY
from torch import nn
from torch.nn.utils import prune

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


def test_metrics_are_kept_in_the_file_and_come_back(tmp_path):
    metrics = {
        "accuracy": 0.5,
        "epoch": 3,
        "top": {"5": None},
        "per_class": [0.5, 1.0],
        "name": "ä",
    }
    file = saved(tmp_path, metrics=metrics)
    assert metadata_of(file)["metrics"] == metrics
    assert load_checkpoint(file).metrics == metrics


def test_a_model_without_metrics_comes_back_without(tmp_path):
    assert tiny_model().metrics is None
    assert load_checkpoint(saved(tmp_path)).metrics is None


def test_metrics_of_an_earlier_training_are_not_kept(tmp_path):
    loaded = load_checkpoint(saved(tmp_path, metrics={"accuracy": 0.5}))
    assert load_checkpoint(saved(tmp_path, loaded)).metrics is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor(0.5), 0.5),
        (np.array([[1, 2]]), [[1, 2]]),
        (torch.tensor([0.5, float("nan")]), [0.5, None]),
        ((1, 2), [1, 2]),
        ({5: np.float64(0.5)}, {"5": 0.5}),
        (float("nan"), None),
        (np.float32("inf"), None),
        (Fraction(1, 2), 0.5),
    ],
    ids=str,
)
def test_metrics_are_stored_as_json_has_them(given, kept, tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    file = saved(tmp_path, metrics={"it": given})
    with safe_open(file, framework="pt") as opened:
        json.loads(opened.metadata()["alexnet_lib"], parse_constant=refuse)
    assert load_checkpoint(file).metrics == {"it": kept}
    assert type(load_checkpoint(file).metrics["it"]) is type(kept)


@pytest.mark.bad_input
def test_metrics_that_json_cannot_hold_are_named(tmp_path):
    expected = re.escape("metrics['a'][1] is a torch.nn.modules.linear.Linear; expected numbers")
    with pytest.raises(ValueError, match=expected):
        saved(tmp_path, metrics={"a": [1, nn.Linear(1, 1)]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_number_of_channels_comes_back(by_hand, tmp_path):
    model = tiny_model() if by_hand else tiny_model(in_channels=1)
    if by_hand:
        model.features.conv1 = nn.Conv2d(1, 4, 3, stride=2)
    loaded = load_checkpoint(saved(tmp_path, model))
    assert loaded.in_channels == 1
    images = torch.rand(2, 1, 12, 12)
    assert torch.equal(loaded(images), model.eval()(images))


def test_a_file_of_an_earlier_version_is_of_colour_images(tmp_path):
    file = saved(tmp_path)
    metadata = metadata_of(file)
    del metadata["in_channels"]
    rewrite(file, load_file(file), json.dumps(metadata))
    assert load_checkpoint(file).in_channels == 3


@pytest.mark.bad_input
def test_numpys_numbers_in_the_model_come_back_as_plain_ones(tmp_path):
    model = tiny_model(dropout=np.float32(0.5), image_size=np.int64(14), num_classes=np.int8(3))
    loaded = load_checkpoint(saved(tmp_path, model))
    assert (loaded.dropout, loaded.image_size, loaded.num_classes) == (0.5, 14, 3)


def test_a_path_below_the_home_folder_is_found(tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    save_checkpoint("~/model.safetensors", tiny_model())
    assert (tmp_path / "model.safetensors").is_file()
    assert load_checkpoint("~/model.safetensors").num_classes == 3


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
    with pytest.raises(TypeError, match=r"model is a torch\.\S+\.Linear; expected an alexnet_lib"):
        saved(tmp_path, nn.Linear(1, 1))


@pytest.mark.bad_input
def test_a_wrong_number_of_class_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match="classes has 2 names; expected the model's 3"):
        saved(tmp_path, classes=["a", "b"])


@pytest.mark.bad_input
def test_a_model_that_its_architecture_does_not_describe_is_refused(tmp_path):
    model = tiny_model()
    model.features.conv1 = nn.Conv2d(3, 4, 5, stride=2, padding=1)
    message = (
        "model has Conv2d(3, 4, kernel_size=(5, 5), stride=(2, 2), padding=(1, 1)) as "
        "features.conv1, where the architecture 'tiny' has "
        "Conv2d(3, 4, kernel_size=(3, 3), stride=(2, 2)); "
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        saved(tmp_path, model)
    assert not list(tmp_path.iterdir())


def without_pool(model):
    model.features.pool1 = nn.Identity()


def with_batch_norm(model):
    model.features.add_module("bn1", nn.BatchNorm2d(4))


def with_another_activation(model):
    model.features.relu1 = nn.GELU()


def with_a_wrapped_layer(model):
    model.features.conv1 = nn.Sequential(model.features.conv1)


def with_a_layer_of_norm(model):
    nn.utils.parametrizations.weight_norm(model.features.conv1)


def pruned(model):
    prune.random_unstructured(model.features.conv1, "weight", 0.5)


def with_a_padding(model):
    model.features.conv1.padding = (1, 1)


def with_another_dropout(model):
    model.classifier.drop2.p = 0.1


def with_a_classifier_of_its_own(model):
    model.classifier = nn.Linear(16, 3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without_pool,
            "model has Identity() as features.pool1, where the architecture 'tiny' has M",
        ),
        (with_batch_norm, "model has features.bn1, BatchNorm2d(4, "),
        (with_another_activation, "model has GELU(approximate='none') as features.relu1, where"),
        (
            with_a_wrapped_layer,
            "model has a torch.nn.modules.container.Sequential as features.conv1",
        ),
        (with_a_layer_of_norm, "model has a torch.nn.utils.parametrize.ParametrizedConv2d as feat"),
        (pruned, "features.conv1.weight is missing"),
        (
            with_a_padding,
            "stride=(2, 2), padding=(1, 1)) as features.conv1, where the architecture",
        ),
        (with_another_dropout, "model has Dropout(p=0.1) as classifier.drop2, where the architect"),
        (
            with_a_classifier_of_its_own,
            "has Linear(in_features=16, out_features=3, bias=True) as c",
        ),
    ],
)
def test_a_changed_layer_is_named_and_not_saved_as_the_old_one(change, message, tmp_path):
    model = tiny_model()
    change(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        saved(tmp_path, model)
    assert not list(tmp_path.iterdir())


def test_a_layer_that_overwrites_its_input_is_the_same_layer(tmp_path):
    model = tiny_model()
    model.features.relu1 = nn.ReLU(inplace=True)
    assert load_checkpoint(saved(tmp_path, model)).num_classes == 3


@pytest.mark.bad_input
def test_a_folder_is_told_which_file_in_it(tmp_path):
    file = saved(tmp_path)
    with pytest.raises(IsADirectoryError, match=re.escape("a folder; expected a file: pass for ")):
        load_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(
        IsADirectoryError, match=r"a folder; expected a file; expected a \.safetensors"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("path", [3, None, ["a"]])
def test_what_is_no_path_is_named(path):
    with pytest.raises(TypeError, match=r"path is a \w+; expected a path"):
        load_checkpoint(path)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "a page of HTML or XML in place of the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b'{"error": "not found"}', "a text in place of the file, which begins with '{\"err"),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file, as Keras writes"),
        (b"PK\x03\x04 broken", "a damaged or cut zip file"),
        (b"\x1f\x8b\x08" + bytes(9), "a gzip archive: unpack it first"),
        (bytes(range(128, 256)), "a pickle that torch.save did not write"),
        (bytes(range(240, 256)), "a damaged file, or of an unknown format"),
        (b"", "an empty file"),
    ],
)
def test_a_file_of_another_kind_is_named(content, kind, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"path is {str(file)!r}, {kind}")):
        load_checkpoint(file)


@pytest.mark.bad_input
def test_a_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors': no such file"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.bad_input
@pytest.mark.parametrize("keep", [0, 4, 50, -1])
def test_a_damaged_file_is_named(keep, tmp_path):
    file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors.*(damaged|empty)"):
        load_checkpoint(file)


@pytest.mark.bad_input
def test_a_file_that_is_no_safetensors_file_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    torch.save(tiny_model().state_dict(), file)
    with pytest.raises(ValueError, match=r"model\.safetensors', a file of torch\.save, not of"):
        load_checkpoint(file)


@pytest.mark.bad_input
def test_a_safetensors_file_without_metadata_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(tiny_model().state_dict(), file)
    with pytest.raises(
        ValueError, match=r"model\.safetensors was not written by save_checkpoint.*from_state_dict"
    ):
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
    with pytest.raises(ValueError, match=r"features\.conv1\.bias is missing"):
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
    with pytest.raises(ValueError, match="does not say its out_features"):
        save_checkpoint(tmp_path / "model.safetensors", model)
