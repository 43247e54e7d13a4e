"""What several test modules need: pixels, folders, data sets, a CIFAR-10 of a few images."""

import hashlib
import pickle
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset
from torchvision.datasets import CIFAR10

from alexnet_lib.data import cifar10 as cifar10_module
from alexnet_lib.data.images import ImageTensors, WrappedDataset
from alexnet_lib.data.loaders import BatchLoader
from alexnet_lib.data.statistics import ColorComponents

EXIF_ORIENTATION = 0x0112

# Of no data set; for colour noise whose directions differ.
COMPONENTS = ColorComponents(
    (0.4, 0.1, 0.05), ((0.6, 0.8, 0.0), (0.0, 0.0, 1.0), (0.8, -0.6, 0.0)), 10
)

# Relative and absolute, for a few additions and one power.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def tolerance(device: torch.device, on_cpu: float, elsewhere: float) -> float:
    """For what a device computes and the test expects as another computation of the same gives it.

    A GPU adds in another order, which depends on the sizes of a batch, has other exponentials, and
    multiplies bfloat16 with other rounding.
    """
    return on_cpu if device.type == "cpu" else elsewhere


def network_tolerance(
    device: torch.device, rtol: float = 1e-5, atol: float = 1e-5
) -> dict[str, float]:
    """For logits and gradients of the order of 1, of a whole network in float32.

    A GPU chooses how it multiplies by the sizes of a batch, also by transforms (Winograd's) that
    lose two digits.
    """
    least = tolerance(device, 0.0, 1e-3)
    return {"rtol": max(rtol, least), "atol": max(atol, least)}


def repeated(device: torch.device) -> dict[str, float]:
    """For what is computed twice by the same steps: on the CPU to the bit.

    On a GPU, atomic additions come in another order each time.
    """
    return {"rtol": tolerance(device, 0.0, 1e-3), "atol": tolerance(device, 0.0, 1e-4)}


def needs(dtype: torch.dtype, device: torch.device) -> None:
    """Skips a test where a device has no such numbers."""
    if device.type == "mps" and dtype == torch.float64:
        pytest.skip("MPS has no float64")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A uint8 image (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_pixels(height: int, width: int) -> np.ndarray:
    """A uint8 image (height, width, 3) without fine detail, as most of a photo is."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(5 * x + 3 * y), np.cos(4 * x - 2 * y), np.sin(6 * x * y)]
    return np.uint8(127.5 + 120 * np.stack(waves, axis=-1))


def random_batch(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 images (count, 3, height, width)."""
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def of_dtype(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 images in another dtype, floating ones from 0 to 1."""
    return images if dtype == torch.uint8 else images.to(dtype) / 255


def first_channels(images: np.ndarray) -> torch.Tensor:
    """An array of images with its channels last as a tensor with them first."""
    return torch.from_numpy(images).movedim(-1, -3)


def in_memory(images: torch.Tensor, classes: int = 2) -> ImageTensors:
    """Images with labels that take turns."""
    labels = torch.arange(len(images)) % classes
    return ImageTensors(images, labels, tuple(map(str, range(classes))))


def read_lazily(images: torch.Tensor, classes: int = 2) -> WrappedDataset:
    """The same, read one by one."""
    labels = torch.arange(len(images)) % classes
    indices = torch.arange(len(images))
    source = TensorDataset(images, labels)
    return WrappedDataset(source, indices, labels, tuple(map(str, range(classes))))


def whole_pass(loader: BatchLoader) -> torch.Tensor:
    return torch.cat([images for images, _ in loader])


def assert_same_pass(loader: BatchLoader, other: BatchLoader) -> None:
    mine, others = (list(zip(*batches, strict=True)) for batches in (loader, other))
    assert torch.equal(torch.cat(mine[0]), torch.cat(others[0]))
    assert torch.equal(torch.cat(mine[1]), torch.cat(others[1]))


@dataclass(frozen=True)
class Fade:
    """An augmentation of a user, of the network's input: fades each image by its draw."""

    on: ClassVar[str] = "input"

    def draw(self, count, generator):
        return torch.rand(count, generator=generator)

    def apply(self, images, draws):
        assert images.device == draws.device
        return images * draws.to(images.dtype)[:, None, None, None]


def witness(target: str, seen: list):
    """An augmentation that changes nothing and notes what it is given."""

    @dataclass(frozen=True)
    class Witness:
        on: ClassVar[str] = target

        def draw(self, count, generator):
            return torch.arange(count)

        def apply(self, images, draws):
            seen.append((target, tuple(images.shape), images.dtype, draws.tolist()))
            return images

    return Witness()


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[EXIF_ORIENTATION] = orientation
    return data


def write_class_folders(
    root: Path,
    classes: Iterable[str] = ("cat", "dog"),
    *,
    count: int = 2,
    size: tuple[int, int] = (8, 8),
    seed: int = 0,
) -> Path:
    """``root/CLASS/0.png`` and so on, of (height, width) ``size``, no two of them alike."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = random_pixels(*size, seed=seed + 1000 * number + i)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


class Items(Dataset):
    """A data set of given items, some of them repeated."""

    def __init__(self, items: list, length: int | None = None) -> None:
        self.items = items
        self.length = len(items) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        return self.items[index % len(self.items)]


class FakeCifar10:
    """CIFAR-10's files with 4 images a batch, in the layout of the real ones.

    Making it tells torchvision and the library the sums and the size of its files, and takes
    every real address from them.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = folder / "source"
        batches = source / CIFAR10.base_folder
        batches.mkdir(parents=True)
        rng = np.random.default_rng(0)
        sums = {}
        self.images, self.labels = {}, {}
        for name in [file for file, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]:
            # A row is an image: all of its red, then its green, then its blue.
            rows = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            self.images[name] = rows.reshape(4, 3, 32, 32)
            self.labels[name] = rng.integers(0, 10, 4).tolist()
            sums[name] = _write(batches / name, {"data": rows, "labels": self.labels[name]})
        self.classes = tuple(f"class {i}" for i in range(10))
        meta = CIFAR10.meta["filename"]
        sums[meta] = _write(batches / meta, {"label_names": list(self.classes)})
        self.archive = source / CIFAR10.filename
        with tarfile.open(self.archive, "w:gz") as tar:
            tar.add(batches, CIFAR10.base_folder)
        self.batches = batches
        self.md5 = hashlib.md5(self.archive.read_bytes()).hexdigest()
        for part in ("train_list", "test_list"):
            known = [[name, sums[name]] for name, _ in getattr(CIFAR10, part)]
            monkeypatch.setattr(CIFAR10, part, known)
        monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[meta]})
        monkeypatch.setattr(CIFAR10, "tgz_md5", self.md5)
        # Nothing listens on port 9 of this machine.
        monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/own-host.tar.gz")
        monkeypatch.setattr(cifar10_module, "CIFAR10_MIRRORS", ())
        size = self.archive.stat().st_size
        monkeypatch.setattr(cifar10_module, "CIFAR10_ARCHIVE_BYTES", size)
        monkeypatch.delenv(cifar10_module.CIFAR10_URL_VARIABLE, raising=False)
        for proxy in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(proxy, raising=False)


def _write(file: Path, content: dict) -> str:
    file.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(file.read_bytes()).hexdigest()
