"""The promises of `save_checkpoint` and `load_checkpoint`: all comes back, nothing is lost."""

import json
import math
import random
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import needs
from odd import ODD, odd_id
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import TINY
from torch import nn
from torch.nn.utils import prune

from alexnet_lib import AlexNet, Preprocess, load_checkpoint, save_checkpoint
from alexnet_lib.files import write_tensors
from alexnet_lib.network import checkpoints
from alexnet_lib.network.architecture import (
    LRN,
    AdaptiveAvgPool,
    Architecture,
    Conv,
    Dropout,
    Flatten,
    Linear,
    MaxPool,
    ReLU,
)

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
def test_weights_and_dtype_come_back(device, dtype, tmp_path):
    needs(dtype, device)
    model = tiny_model().to(dtype).to(device)
    loaded = load_checkpoint(saved(tmp_path, model), device=device)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert loaded.state_dict()[name].device == device
        assert torch.equal(loaded.state_dict()[name], weight)


def test_the_outputs_come_back(device, tmp_path):
    model, images = tiny_model().eval().to(device), torch.rand(2, 3, 12, 12, device=device)
    loaded = load_checkpoint(saved(tmp_path, model), device=device)
    assert torch.equal(loaded(images), model(images))


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
def test_a_models_dropout_comes_back_as_it_scales(device, scaling, tmp_path):
    model = tiny_model(dropout_scaling=scaling).eval().to(device)
    loaded = load_checkpoint(saved(tmp_path, model), device=device)
    assert loaded.dropout_scaling == scaling
    images = torch.rand(2, 3, model.image_size, model.image_size, device=device)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.filterwarnings("ignore:.* has no checksum")
def test_older_files_do_not_hold_how_much_dropout_keeps(tmp_path):
    model = tiny_model(dropout=0.25, dropout_scaling="test").eval()
    file = saved(tmp_path, model)
    with safe_open(file, framework="pt") as opened:
        texts = {"alexnet_lib": opened.metadata()["alexnet_lib"]}
    weights = load_file(file)
    del weights["classifier.drop2.keep_probability"]
    save_file(weights, file, texts)
    loaded = load_checkpoint(file)
    assert loaded.classifier.drop2.keep_probability == 0.75
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
        (torch.tensor([0.5, 1.5]), [0.5, 1.5]),
        ((1, 2), [1, 2]),
        ({5: np.float64(0.5)}, {"5": 0.5}),
        (2**64 - 1, 2**64 - 1),
        ({np.int64(5): None}, {"5": None}),
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


@pytest.mark.bad_input
def test_a_file_of_an_earlier_version_is_of_colour_images(tmp_path):
    file = saved(tmp_path)
    metadata = metadata_of(file)
    del metadata["in_channels"]
    save_file(load_file(file), file, {"format": "pt", "alexnet_lib": json.dumps(metadata)})
    message = re.escape(f"{file} has no checksum")
    with pytest.warns(UserWarning, match=message) as caught:
        assert load_checkpoint(file).in_channels == 3
    assert caught[0].filename == __file__


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


def test_a_model_that_is_loaded_is_in_evaluation_mode_and_can_be_trained(device, tmp_path):
    loaded = load_checkpoint(saved(tmp_path), device=device)
    assert not any(module.training for module in loaded.modules())
    assert all(weight.requires_grad and weight.is_leaf for weight in loaded.parameters())
    loaded(torch.rand(1, 3, 12, 12, device=device)).sum().backward()
    assert loaded.features.conv1.weight.grad is not None


def test_saving_changes_nothing_of_the_model(tmp_path):
    model = tiny_model()
    saved(tmp_path, model, classes=["a", "b", "c"], preprocess=PREPROCESS)
    assert model.training
    assert (model.classes, model.preprocess) == (None, None)


def test_safetensors_alone_reads_the_file(device, tmp_path):
    model = tiny_model().to(device)
    tensors = load_file(saved(tmp_path, model))
    assert tensors.keys() == model.state_dict().keys()
    assert torch.equal(tensors["classifier.fc2.bias"], model.classifier.fc2.bias.cpu())


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
    loaded = load_checkpoint(saved(tmp_path, model, classes=[*"abcde"]))
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


def test_a_loaded_file_can_be_replaced_while_its_model_is_in_use(device, tmp_path):
    loaded = load_checkpoint(saved(tmp_path), device=device)
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
    monkeypatch.setattr("safetensors.torch.save_file", fail_midway)
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


def test_the_folder_of_a_run_has_its_best_weights_or_else_the_latest(tmp_path):
    for name, classes in (("last", 2), ("best", 3)):
        save_checkpoint(tmp_path / f"{name}.safetensors", AlexNet(classes, architecture=TINY))
        assert load_checkpoint(tmp_path).num_classes == classes


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
    write_tensors(file, tiny_model().state_dict(), {})
    with pytest.raises(
        ValueError, match=r"model\.safetensors was not written by save_checkpoint.*from_state_dict"
    ):
        load_checkpoint(file)


def rewrite(file: Path, tensors: dict, metadata: str) -> None:
    write_tensors(file, tensors, {"format": "pt", "alexnet_lib": metadata})


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


# Integrity


def flips_found(folder: Path, count: int) -> None:
    file, draw = saved(folder, metrics={"accuracy": 0.5}), random.Random(0)
    whole = file.read_bytes()
    for place in draw.choices(range(len(whole)), k=count):
        data = bytearray(whole)
        data[place] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            load_checkpoint(file)


def cuts_found(folder: Path, count: int) -> None:
    file, draw = saved(folder, metrics={"accuracy": 0.5}), random.Random(0)
    whole = file.read_bytes()
    for length in draw.choices(range(len(whole)), k=count):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(str(file))):
            load_checkpoint(file)


@pytest.mark.bad_input
def test_a_thousand_flipped_bits_are_found_each(tmp_path):
    flips_found(tmp_path, 1000)


@pytest.mark.bad_input
def test_a_thousand_cuts_are_found_each(tmp_path):
    cuts_found(tmp_path, 1000)


@pytest.mark.bad_input
def test_a_flipped_bit_of_each_byte_of_the_header_is_found(tmp_path):
    file = saved(tmp_path)
    whole = file.read_bytes()
    for place in range(8 + int.from_bytes(whole[:8], "little")):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        file.write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            load_checkpoint(file)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.bad_input
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(value, dtype, tmp_path):
    model = tiny_model().to(dtype)
    file = saved(tmp_path, model)
    metadata, before = json.dumps(metadata_of(file)), file.read_bytes()
    with torch.no_grad():
        model.classifier.fc2.weight[1, 2] = value
    message = r"classifier\.fc2\.weight holds values that are NaN or infinite"
    with pytest.raises(ValueError, match=message):
        saved(tmp_path, model)
    assert file.read_bytes() == before
    rewrite(file, dict(model.state_dict()), metadata)
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} .*{message}"):
        load_checkpoint(file)


# Strangers' files: all that the metadata can say is read against one schema.

JUNK = [
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**53, 2**63, 2**64, 10**12, 0.0, -0.5, 1.5, 1e308),
    *(
        "",
        "text",
        "paper",
        "3",
        "x\x1b[31mred",
        "\0",
        "a" * 10_000,
        [],
        {},
        [[]],
        [0],
        ["a"],
        [None],
    ),
    *({"a": 1}, [1e308] * 3, [0, 0, 0], [-1.0, 1, 1], [0.5] * 100),
]


def described() -> dict:
    """Metadata with every kind of layer."""
    layers = (
        Conv("conv1", 4, kernel=3, groups=1),
        ReLU("relu1"),
        LRN("norm1", groups=2),
        MaxPool("pool1"),
        AdaptiveAvgPool("avgpool", 2),
        Flatten("flatten"),
        Dropout("drop2"),
        Linear("fc2", None),
    )
    return {
        "architecture": Architecture("own", 12, layers).to_dict(),
        "num_classes": 3,
        "image_size": 12,
        "dropout": 0.5,
        "dropout_scaling": "training",
        "in_channels": 3,
        "classes": ["a", "b", "c"],
        "preprocess": PREPROCESS.to_dict(),
        "metrics": {"accuracy": 0.5},
    }


def places(value, path=()):
    """The path of each value in nested data, itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list | tuple):
            yield from places(item, (*path, key))


def changed(metadata: dict, path: tuple, change) -> str:
    """The JSON of the metadata with ``change(container, key)`` at a path."""
    copied = json.loads(json.dumps(metadata))
    container = copied
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return json.dumps(copied)


PLACES = [*places(described())]


@pytest.mark.bad_input
@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_every_value_of_the_metadata_is_right_or_named(path):
    def replace(new):
        def change(container, key):
            container[key] = new

        return change

    def rename(container, key):
        container["unknown"] = container.pop(key)

    known = changed(described(), path, lambda container, key: None)
    assert checkpoints._read(known).num_classes == 3
    field = (
        "classes"
        if path == ("num_classes",)
        else next(str(key) for key in reversed(path) if isinstance(key, str))
    )
    changes = [replace(new) for new in JUNK]
    if isinstance(path[-1], str):
        changes += [lambda container, key: container.pop(key), rename]
    for change in changes:
        text = changed(described(), path, change)
        try:
            model = checkpoints._read(text)
        except ValueError as error:
            message = str(error)
            assert len(message) < 1000
            assert message.isprintable()
            assert field in message or path[0] in message or "'unknown'" in message
        else:
            assert isinstance(model, AlexNet)
            assert all(weight.is_meta for weight in model.parameters())


HOSTILE = {
    "100,000 lists": "[" * 100_000 + "]" * 100_000,
    "100,000 objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "lists in an argument": json.dumps({"dropout": 0})[:-2] + "[" * 900 + "]" * 900 + "}",
    "an integer of many digits": '{"dropout": 1' + "0" * 5000 + "}",
    "an integer of some digits": '{"dropout": 1' + "0" * 30 + "}",
    "NaN": '{"dropout": NaN}',
    "infinity": '{"dropout": -Infinity}',
    "a number too large": '{"dropout": 1e999}',
    "a repeated key": '{"dropout": 0.5, "dropout": 0.5}',
    "half a character": '{"dropout": "\\ud800"}',
    "nothing": "",
    "a number": "3",
    "null": "null",
    "a list": "[]",
    "cut": '{"dropout": 0.5',
    "more than one value": "{} {}",
    "no value": '{"dropout": }',
}


@pytest.mark.bad_input
@pytest.mark.parametrize("case", list(HOSTILE))
def test_metadata_that_is_no_plain_json_is_refused(case, tmp_path):
    file = tmp_path / "model.safetensors"
    rewrite(file, dict(tiny_model().state_dict()), HOSTILE[case])
    with pytest.raises(ValueError, match=r"was not written by save_checkpoint: (its )?") as caught:
        load_checkpoint(file)
    assert len(str(caught.value)) < 1000


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("100,000 lists", "its metadata nests deeper than"),
        ("an integer of many digits", "its metadata has an integer of 5001 digits"),
        ("NaN", "its metadata has NaN, which is no number of JSON"),
        ("a number too large", "its metadata['dropout'] is inf; expected a finite number"),
        ("a repeated key", "its metadata has the key 'dropout' twice"),
        ("a list", "its metadata is []; expected an object of JSON"),
        ("cut", "its metadata is no JSON"),
    ],
)
def test_the_error_says_what_is_wrong_with_the_metadata(case, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        checkpoints._read(HOSTILE[case])


@pytest.mark.bad_input
@pytest.mark.parametrize(("key", "value"), [("later", 1), ("image_size", None)])
def test_an_unknown_key_and_a_null_size_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        checkpoints._read(json.dumps({**described(), key: value}))


@pytest.mark.bad_input
def test_names_that_do_not_fit_the_model_are_found_before_the_training():
    model = tiny_model()
    model.classes = ("a",)
    with pytest.raises(ValueError, match="classes has 1 names; expected the model's 3"):
        checkpoints.check_can_be_saved(model)


@pytest.mark.bad_input
def test_a_million_layers_are_refused_before_one_is_built():
    metadata = described()
    metadata["architecture"]["layers"] = [{"kind": "ReLU", "name": "x"}] * 200_000
    with pytest.raises(ValueError, match="expected a list of at most 1000"):
        checkpoints._read(json.dumps(metadata))


@pytest.mark.bad_input
def test_metadata_of_too_many_characters_is_refused(monkeypatch):
    monkeypatch.setattr(checkpoints, "_LONGEST_TEXT", 100)
    with pytest.raises(
        ValueError, match=r"its metadata has [\d,]+ characters; expected at most 100"
    ):
        checkpoints._read(json.dumps(described()))
    with pytest.raises(ValueError, match=r"metrics and classes have .* characters as JSON"):
        save_checkpoint("model.safetensors", tiny_model())


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [{"num_classes": 10**7}, {"image_size": 5000}])
def test_a_network_larger_than_its_file_takes_no_memory(size, tmp_path):
    file = saved(tmp_path)
    metadata = {**metadata_of(file), **size}
    rewrite(file, dict(tiny_model().state_dict()), json.dumps(metadata))
    with pytest.raises(ValueError, match=r"classifier\.fc2\.(bias|weight) has shape \(3,"):
        load_checkpoint(file)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensor: tensor.to(torch.int32), "is of torch.int32; expected float16"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is of torch.float8_e4m3fn; expected"),
        (lambda tensor: tensor.to(torch.complex64), "is of torch.complex64; expected float16"),
        (lambda tensor: tensor.to(torch.bool), "is of torch.bool; expected float16"),
        (
            lambda tensor: tensor.to(torch.float64),
            "they are of torch.float32 and torch.float64; expected one dtype",
        ),
    ],
)
def test_weights_of_another_dtype_are_named(change, problem, tmp_path):
    file = saved(tmp_path)
    tensors = dict(tiny_model().state_dict())
    tensors["classifier.fc2.weight"] = change(tensors["classifier.fc2.weight"])
    rewrite(file, tensors, json.dumps(metadata_of(file)))
    with pytest.raises(ValueError, match=re.escape(problem)):
        load_checkpoint(file)
    model = tiny_model()
    model.classifier.fc2.weight = nn.Parameter(tensors["classifier.fc2.weight"], False)
    with pytest.raises(ValueError, match=re.escape(problem)):
        saved(tmp_path / "new", model)


# Names of classes


@pytest.mark.parametrize(
    "names",
    [
        ["Golden Retriever", "crème brûlée", "Ångström"],
        ["猫", "犬", "鳥"],
        ["👍", "👩\u200d🔬", "قطة"],
        ["crane", "crane", "a\tb"],
        ["", " ", "x\x1b[31m"],
        ["of bytes \udce9", "b", "c"],
    ],
    ids=["accents", "CJK", "emoji", "repeated", "controls", "bytes of a file system"],
)
def test_all_names_of_classes_come_back(names, tmp_path):
    assert load_checkpoint(saved(tmp_path, classes=names)).classes == tuple(names)


# NumPy's strings, which the run with type checks refuses; they are stored as plain ones.
@pytest.mark.bad_input
def test_an_array_of_names_comes_back():
    names = checkpoints._names(np.array(["cat", "dog"]), 2)
    assert names == ("cat", "dog")
    assert {type(name) for name in names} == {str}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("scale", 1e308), ("scale", 0), ("std", [0, 1, 1]), ("std", [1e-300, 1, 1])),
        *(("mean", [1e308, 0, 0]), ("mean", []), ("resize", 2**62), ("image_size", 2**62)),
        *(("edge", 12), ("background", "no colour"), ("decode", "fast"), ("unknown", 1)),
    ],
)
def test_a_preprocess_that_means_nothing_is_named(field, value):
    metadata = described()
    metadata["preprocess"][field] = value
    with pytest.raises(ValueError, match=f"preprocess: .*{field}"):
        checkpoints._read(json.dumps(metadata))


# Arguments

MODEL = tiny_model()
MORE = [
    *(np.array(["a", "b", "c"]), np.array([object()] * 3), MODEL, PREPROCESS, "abc"),
    *(["a", "b"], ["a", "b", None], ["a", "b", 3], ["a", "b", b"c"], ["a", "b", "\ud800"]),
    *({"a": 1, "b": 2, "c": 3}, {"a", "b", "c"}, nn.LazyLinear(3)),
]
VALUES = [*ODD, *MORE]


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("argument", ["path", "model", "classes", "preprocess", "metrics"])
@pytest.mark.parametrize("index", range(len(VALUES)), ids=lambda i: f"{i}-{odd_id(VALUES[i])}")
def test_odd_arguments_are_named_or_right(argument, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"path": tmp_path / "model.safetensors", "model": MODEL, argument: VALUES[index]}
    message = None
    try:
        save_checkpoint(**arguments)
    except (TypeError, ValueError) as error:
        message = str(error)
    if message is None:
        assert load_checkpoint(arguments["path"]).num_classes == 3
    else:
        assert message.startswith(argument)
        assert len(message) < 1000
        assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("argument", ["path", "device"])
@pytest.mark.parametrize("index", range(len(VALUES)), ids=lambda i: f"{i}-{odd_id(VALUES[i])}")
def test_odd_arguments_of_loading_are_named(argument, index, tmp_path):
    arguments = {"path": saved(tmp_path), argument: VALUES[index]}
    if argument == "device" and isinstance(VALUES[index], torch.device):
        assert load_checkpoint(**arguments).num_classes == 3
        return
    with pytest.raises((TypeError, ValueError, OSError)) as caught:
        load_checkpoint(**arguments)
    assert argument in str(caught.value) or isinstance(caught.value, OSError)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name", ["folder.safetensors", "file.txt/new.safetensors", "x" * 300 + ".safetensors"]
)
def test_a_place_that_cannot_be_written_is_named(name, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(OSError, match=re.escape(name[:20])):
        save_checkpoint(tmp_path / name, tiny_model())
    assert {path.name for path in tmp_path.iterdir()} == {"folder.safetensors", "file.txt"}


def circular():
    value: list = []
    value.append(value)
    return value


def doubled():
    value: list = []
    for _ in range(40):
        value = [value, value]
    return value


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ({"a": math.nan}, "metrics['a'] is nan; expected a finite number of at most 64 bits"),
        ({"a": [1, {"b": -math.inf}]}, "metrics['a'][1]['b'] is -inf; expected a finite number"),
        ({"a": np.array([1, np.inf])}, "metrics['a'][1] is inf; expected a finite number"),
        ({"a": torch.tensor(math.nan)}, "metrics['a'] is nan; expected a finite number"),
        ({"a": 2**64}, "metrics['a'] is 18446744073709551616; expected a finite number"),
        ({"a": -(10**5000)}, "metrics['a'] is a int; expected a finite number"),
        ({"a": 1j}, "metrics['a'] is a complex; expected numbers, texts, lists and mappings"),
        ({"a": b"text"}, "metrics['a'] is a bytes; expected numbers, texts, lists"),
        ({"a": {1, 2}}, "metrics['a'] is a set; expected numbers, texts, lists"),
        ({"a": np.array(1j)}, "metrics['a'] is a numpy.ndarray; expected numbers"),
        ({"a": torch.zeros(2, device="meta")}, "metrics['a'] is a torch.Tensor; expected numbers"),
        ({"a": np.array("2026-01-01", "M8")}, "metrics['a'] is a numpy.ndarray; expected numbers"),
        ({1: 2, "1": 3}, "metrics['1'] is a second key of this text; expected one"),
        ({(1, 2): 3}, "metrics[(1, 2)] is a key of another type; expected texts or integers"),
        ({None: 3}, "metrics[None] is a key of another type; expected texts or integers"),
        ({"a": "\ud800"}, "metrics['a'] is '\\ud800'; expected a text of Unicode"),
        ({"\ud800": 1}, "metrics['\\ud800'] is '\\ud800'; expected a text of Unicode"),
        (
            {"a": circular()},
            "metrics['a'][0][0][0][0] nests deeper than 50 levels, or holds itself",
        ),
        ({"a": doubled()}, "is beyond the first 1,000 values; expected fewer"),
        ({"a": np.zeros(1001)}, "metrics['a'] has 1,001 values; expected at most 1,000"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_metrics_that_json_cannot_hold_are_refused(metrics, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_MOST_VALUES", 1000)
    with pytest.raises(ValueError, match=re.escape(problem)):
        saved(tmp_path, metrics=metrics)
    assert not list(tmp_path.iterdir())


# Models in odd states


def test_layers_that_share_a_weight_are_stored_one_by_one(tmp_path):
    layers = (
        Conv("conv1", 3, kernel=3, padding=1),
        Conv("conv2", 3, kernel=3, padding=1),
        Flatten("flatten"),
        Linear("fc", None),
    )
    model = tiny_model(architecture=Architecture("tied", 8, layers))
    model.features.conv2.weight = model.features.conv1.weight
    flat = torch.arange(6.0)
    model.features.conv1.bias.data, model.features.conv2.bias.data = flat[:3], flat[3:]
    loaded = load_checkpoint(saved(tmp_path, model))
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda model: model.to("meta"), "is on the meta device and holds no values"),
        (lambda model: setattr(model, "architecture", None), "model.architecture is None; expect"),
        (lambda model: setattr(model, "image_size", 3), "image_size is 3; the architecture"),
        (lambda model: setattr(model, "dropout", None), "dropout is None; expected a probability"),
        (lambda model: setattr(model, "classes", ("a",)), "classes has 1 names; expected"),
        (
            lambda model: setattr(model.classifier, "fc2", nn.LazyLinear(3)),
            "model has LazyLinear(in_features=0, out_features=3, bias=True) as classifier.fc2",
        ),
    ],
)
def test_a_model_in_an_odd_state_is_refused_in_words(change, problem, tmp_path):
    model = tiny_model()
    change(model)
    with pytest.raises(ValueError, match=re.escape(problem)):
        saved(tmp_path, model)
    assert not list(tmp_path.iterdir())
