"""Whatever is passed: a documented exception that names the argument, or a right result."""

import math
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import COMPONENTS, in_memory, seeded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet_lib.data.augmentation import (
    ColorNoise,
    HorizontalFlip,
    RandomCrop,
    RandomShift,
    TrivialAugment,
)
from alexnet_lib.data.cifar10 import download_cifar10
from alexnet_lib.data.decoding import read_image
from alexnet_lib.data.downloads import download_file
from alexnet_lib.data.images import image_to_tensor
from alexnet_lib.data.loaders import (
    BatchLoader,
    Loaders,
    Treatment,
    build_cifar10_loaders,
    build_loaders,
)
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.statistics import (
    ChannelStats,
    ColorComponents,
    compute_channel_stats,
    compute_class_weights,
    compute_color_components,
)

pytestmark = [pytest.mark.bad_input, pytest.mark.filterwarnings("ignore")]

DOCUMENTED = (ValueError, TypeError, OSError, MemoryError)
# What Python and torch raise by themselves, and says nothing of an argument.
RAW = re.compile(
    r"object is not|unexpected keyword|must be (real|a) number|invalid combination|not supported "
    r"between|unsupported operand|cannot be interpreted|Exceeds the limit|expected a sequence"
)


class Stranger:
    """An object of nobody's library."""

    def __repr__(self) -> str:
        raise RuntimeError("has no text")


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


NUMBERS = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63), 2**64 - 40, 10**400, 10**5000),
    *(0.5, 1e-320, 1e308, -1e308, math.nan, math.inf, 1j, np.float32(0.5), np.int64(3)),
)
TENSORS = (
    *(torch.tensor(3), torch.tensor(0.5), torch.zeros(0), torch.zeros(3), torch.zeros(2, 3, 4, 4)),
    *(torch.full((3, 4, 4), math.nan), torch.zeros(3, 4, 4, dtype=torch.complex64)),
    *(torch.zeros(3, 4, 4, device="meta"), torch.zeros(3, 4, 4).to_sparse()),
    *(torch.zeros(2, 3, 4, 4, dtype=torch.bool), torch.zeros(2, 3, 4, 4, dtype=torch.int64)),
    *(torch.zeros(2, 3, 4, 4, device="meta"), torch.zeros(2, 3, 4, 4).to_sparse()),
    torch.zeros(3, 4, 4).to(torch.float8_e4m3fn),
    *(torch.zeros(3, 0, 4), torch.zeros(0, 3, 4, 4), torch.zeros(3, 4, 4, 4, 4), torch.ones(2, 2)),
)
ARRAYS = (
    *(np.array(3), np.zeros(0), np.zeros((4, 4, 3)), np.zeros((4, 4, 3), np.uint8)),
    *(np.zeros((4, 4, 3), complex), np.full((4, 4, 3), np.nan), np.zeros((4, 4, 3), object)),
    *(np.array(["a", "b"]), np.zeros((2, 2), "datetime64[s]"), np.zeros(3, [("x", "f4")])),
    *(np.zeros((4, 4, 3), [("a", "u1"), ("b", "f4")])["b"], np.zeros((4, 4, 3), np.longdouble)),
    *(np.zeros((4, 4, 3), ">f4"), np.zeros((8, 8, 3), np.uint8)[::-2], np.zeros((2, 3), np.uint16)),
)
OTHERS = (
    *("", "x", "ü" * 3000, "\0", "a\x1b[2J", b"", b"\xff", Path("a\0b"), Path("/dev/null")),
    *([], [1], [None], [[1, 2], [3]], (), (1, 2), (0.5, 0.5, 0.5), nested(2000), {}, {"a": 1}),
    *(set(), {1}, frozenset({2}), range(3), print, len, Stranger, Stranger(), NotImplemented, ...),
    *(Image.new("RGB", (4, 4)), Image.new("F", (4, 4)), torch.Generator(), torch.float32),
)
JUNK = (*NUMBERS, *TENSORS, *ARRAYS, *OTHERS)
indices = st.integers(0, len(JUNK) - 1)


def check(function, *arguments, **options):
    """Calls a function; an error has to be a documented one that says something of its own."""
    try:
        return function(*arguments, **options)
    except DOCUMENTED as error:
        text = str(error)
    assert text
    assert not RAW.search(text), text
    assert len(text) < 4000, text
    return None


def each(*names: str):
    return pytest.mark.parametrize("name", names)


def all_junk(function, name: str, **options) -> None:
    for value in JUNK:
        check(function, **{**options, name: value})


# Settings


@each(*(field.name for field in fields(Preprocess)))
def test_any_field_of_a_preprocess(name):
    image = np.zeros((4, 4, 3), np.uint8)
    for value in JUNK:
        preprocess = check(Preprocess, **{"resize": 4, "image_size": 4, name: value})
        if preprocess is not None:
            result = check(preprocess, image)
            assert result is None or result.isfinite().all()


@each(*(field.name for field in fields(Preprocess)), "unknown", "all")
def test_any_stored_preprocess(name):
    for value in JUNK:
        stored = Preprocess(4, 4).to_dict()
        check(Preprocess.from_dict, value if name == "all" else {**stored, name: value})
        check(Preprocess.from_dict, {k: v for k, v in stored.items() if k != name})
        check(Preprocess.from_dict, {**stored, 3: 4})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (HorizontalFlip, "probability"),
        (ColorNoise, "strength"),
        (RandomShift, "share"),
        (ColorNoise, "components"),
    ],
)
def test_any_argument_of_an_augmentation(kind, name):
    options = {"components": COMPONENTS} if kind is ColorNoise else {}
    for value in JUNK:
        made = check(kind, **{**options, name: value})
        if made is not None:
            draws = made.draw(5, seeded())
            assert torch.isfinite(draws.double()).all()


AUGMENTATIONS = (
    *(HorizontalFlip(), ColorNoise(COMPONENTS), TrivialAugment()),
    *(RandomCrop(), RandomShift()),
)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda value: type(value).__name__)
def test_any_draw_and_any_images(augmentation):
    images = torch.rand(3, 3, 8, 8)
    draws = augmentation.draw(3, seeded())
    apply = getattr(augmentation, "apply", None)
    for value in JUNK:
        check(augmentation.draw, value if value not in (2**31, 10**9) else 3, seeded()) if (
            isinstance(value, int)
        ) else check(augmentation.draw, value, seeded())
        check(augmentation.draw, 3, value)
        if apply is None:
            check(augmentation.corners, value, 5)
            check(augmentation.corners, draws, value)
        else:
            check(apply, value, draws)
            check(apply, images, value)


@each("mean", "std", "count")
def test_any_channel_statistics(name):
    all_junk(ChannelStats, name, **{"mean": (0.5,), "std": (0.5,), "count": 1})


@each("std", "directions", "count")
def test_any_color_components(name):
    all_junk(ColorComponents, name, **{"std": (0.5,), "directions": ((1.0,),), "count": 1})


# Images


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_any_image(channels):
    for value in JUNK:
        tensor = check(image_to_tensor, value, channels=channels)
        assert tensor is None or tensor.shape[-3] == (channels or tensor.shape[-3])
        check(image_to_tensor, np.zeros((4, 4, 3)), channels=value)
        if channels in {1, 3}:
            values = (0.5,) * channels
            result = check(Preprocess(4, 4, mean=values, std=values), value)
            assert result is None or result.isfinite().all()


@given(
    st.lists(st.integers(0, 5), max_size=5),
    st.sampled_from([torch.uint8, torch.float16, torch.float64, torch.int32, torch.bool]),
    st.integers(1, 9),
)
def test_any_shape_and_type_of_an_image(shape, dtype, side):
    image = torch.zeros(shape, dtype=dtype)
    for value in (image, image.numpy(), image.t() if image.ndim == 2 else image):
        check(Preprocess(side, side), value)
        check(compute_channel_stats, value, progress=False)


def test_any_image_file(tmp_path):
    for value in JUNK:
        check(read_image, value)
        check(read_image, tmp_path / "none.png", channels=value)
        check(read_image, tmp_path / "none.png", background=value)
        check(read_image, tmp_path / "none.png", side=value)


@pytest.mark.parametrize("function", [compute_channel_stats, compute_color_components])
def test_any_images_to_measure(function):
    for value in JUNK:
        check(function, value, progress=False)
        check(function, np.zeros((2, 4, 4, 3), np.uint8), channels=value, progress=False)
    if function is compute_channel_stats:
        all_junk(function, "std", images=np.zeros((2, 4, 4, 3), np.uint8))


def test_any_labels():
    for value in JUNK:
        weights = check(compute_class_weights, value)
        assert weights is None or weights.isfinite().all()
        check(compute_class_weights, [0, 1], value)
        check(compute_class_weights, [value])


# Loaders


DATA = in_memory(torch.zeros(12, 3, 4, 4, dtype=torch.uint8))


@each(*(field.name for field in fields(BatchLoader) if field.init and field.name != "num_workers"))
def test_any_argument_of_a_loader(name):
    for value in JUNK:
        options = {"dataset": DATA, "preprocess": Preprocess(4, 4), name: value}
        loader = check(BatchLoader, **options)
        if loader is not None:
            check(lambda: next(iter(loader)))  # noqa: B023


def test_any_number_of_workers_epoch_and_view():
    loader = BatchLoader(DATA, Preprocess(4, 4))
    for value in JUNK:
        check(BatchLoader, DATA, Preprocess(4, 4), num_workers=value)
        check(loader.set_epoch, value)
        loader.set_epoch(0)
        check(lambda: [*loader.batches(value)])  # noqa: B023
        check(lambda: [*loader.batches(0, value)])  # noqa: B023
        check(lambda: [[*views] for views, _ in loader.views(value)])  # noqa: B023


@each("device", "dtype", "memory_format")
def test_any_placement_of_loaders(name):
    loaders = Loaders(BatchLoader(DATA, Preprocess(4, 4)), None, None)
    all_junk(loaders.to, name, **({"device": "cpu"} if name != "device" else {}))


BUILD = (
    *("batch_size", "image_size", "resize", "image_fit", "stats", "augmentation", "classes"),
    *("validation_fraction", "test_fraction", "train_images", "parts", "channels", "background"),
    *("decode", "stats_images", "drop_last", "balanced", "on_bad_image", "bad_image_limit"),
    *("device", "num_workers", "seed"),
)
PAIRS = torch.utils.data.TensorDataset(
    torch.zeros(12, 3, 4, 4, dtype=torch.uint8).random_(generator=seeded()), torch.arange(12) % 2
)


@each(*BUILD)
def test_any_argument_of_build_loaders(name):
    all_junk(build_loaders, name, **{"data": PAIRS, "image_size": 4})


@each(*(name for name in BUILD if name not in {"parts", "channels", "background", "seed"}))
def test_any_argument_of_build_cifar10_loaders(name, tmp_path):
    if name in build_cifar10_loaders.__kwdefaults__:
        all_junk(build_cifar10_loaders, name, root=tmp_path, download=False)


def test_any_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in JUNK:
        check(build_loaders, value, image_size=4)
        check(build_loaders, (PAIRS, value), image_size=4)
        check(build_loaders, {"train": value}, image_size=4)
        check(build_loaders, {"train": PAIRS, "val": value}, image_size=4)
        check(build_loaders, [(value, 0), (value, 1)], image_size=4)
        check(build_loaders, [(np.zeros((4, 4, 3), np.uint8), value)] * 3, image_size=4)
        check(build_cifar10_loaders, value, download=False)
        if value is not True:
            check(build_cifar10_loaders, tmp_path / "none", download=value)


@each("preprocess", "augmentation")
@given(index=indices)
def test_any_treatment(name, index):
    treatment = Treatment(**{"preprocess": Preprocess(4, 4), name: JUNK[index]})
    check(BatchLoader, DATA, treatment.preprocess, augmentation=treatment.augmentation)


# Downloads


@each("urls", "path", "md5", "size", "timeout", "progress")
def test_any_argument_of_download_file(name, tmp_path):
    # Nothing listens on port 9 of this machine.
    options = {"urls": ["http://127.0.0.1:9/file"], "path": tmp_path / "file", "md5": "0" * 32}
    options |= {"progress": False}
    for value in JUNK:
        check(download_file, **{**options, name: value})
        if name == "urls":
            check(download_file, **{**options, name: [value]})
            for url in ("http://", "http://[", "http://127.0.0.1:x/", "http://ü\n/", "http://a b/"):
                check(download_file, **{**options, name: [url]})


def test_any_argument_of_download_cifar10(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for value in JUNK:
        if not isinstance(value, str | bytes | Path | bool):  # a folder, or a download
            check(download_cifar10, value)
            check(download_cifar10, tmp_path / "file" / "below", progress=value)
