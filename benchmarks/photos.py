"""Photos for the block "photos" of bench.py, and torchvision's way of loading them."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from alexnet_lib import BatchLoader, HorizontalFlip, Preprocess, RandomCrop
from alexnet_lib.data.images import ImageFiles, ImageSet

RESIZE, CROP, BATCH = 256, 227, 64
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def write_photos(root: Path, count: int, width: int, height: int) -> None:
    """JPEG files of quality 90, 4:2:0, in five classes: smooth, with some detail and with noise.

    One of 500x375 has 60 kB. All are functions of their numbers.
    """
    for number in range(count):
        folder = root / f"class {number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        pixels = rng.normal(0, 6, (height, width, 3))
        for rows, columns, share in ((12, 16, 0.75), (height // 6, width // 6, 0.2)):
            colours = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
            image = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
            pixels += share * np.asarray(image, dtype=np.float32)
        photo = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        photo.save(folder / f"{number}.jpg", quality=90, subsampling="4:2:0")


def torchvisions(root: Path, workers: int) -> DataLoader:
    """ImageFolder and the transforms of torchvision's references."""
    steps = transforms.Compose(
        [
            transforms.Resize(RESIZE),
            transforms.RandomCrop(CROP),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    folder = ImageFolder(os.fspath(root), steps)
    return DataLoader(
        folder, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def ours(images: ImageSet, workers: int, decode: str = "full") -> BatchLoader:
    """The same images through the library's loader."""
    preprocess = Preprocess(RESIZE, CROP, mean=MEAN, std=STD, decode=decode)  # type: ignore[arg-type]
    augmentation = (RandomCrop(), HorizontalFlip())
    return BatchLoader(
        images, preprocess, BATCH, shuffle=True, augmentation=augmentation, num_workers=workers
    )


def differences(images: ImageFiles, count: int = 20) -> dict[str, float]:
    """How far pixels of photos decoded at reduced scale are from those of a full decode, of 255."""
    reduced, full = Preprocess(RESIZE, CROP), Preprocess(RESIZE, CROP, decode="full")
    apart = torch.stack(
        [(reduced.read(file).int() - full.read(file).int()).abs() for file in images.files[:count]]
    ).float()
    return {
        "mean": apart.mean().item(),
        "99th percentile": float(np.percentile(apart.numpy(), 99)),
        "largest": apart.max().item(),
    }
