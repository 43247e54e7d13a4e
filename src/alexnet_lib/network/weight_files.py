"""What a file is that should hold weights, told from its bytes; and what a weight can be."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet_lib.checks import shown, type_name

SAFETENSORS = "a safetensors file"
PYTORCH = "a file of torch.save"

_SIGNATURES = (
    (0, b"version https://git-lfs", "a pointer of Git LFS in place of the file: run git lfs pull"),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", PYTORCH),  # the format before torch 1.6
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes its weights"),
    (0, b"\x93NUMPY", "an array of NumPy"),
    (0, b"MATLAB", "a MATLAB file"),
    (0, b"GGUF", "a GGUF file"),
    (4, b"TFL3", "a model of TensorFlow Lite"),
    (0, b"\x80", "a pickle that torch.save did not write"),
    (0, b"\x1f\x8b", "a gzip archive: unpack it first"),
    (0, b"BZh", "a bzip2 archive: unpack it first"),
    (0, b"\xfd7zXZ", "an xz archive: unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (0, b"Rar!", "a RAR archive: unpack it first"),
    (257, b"ustar", "a tar archive: unpack it first"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"%PDF", "a PDF document"),
)

# Of formats without a signature.
_SUFFIXES = {
    ".pb": "a graph of TensorFlow",
    ".onnx": "a model of ONNX",
    ".caffemodel": "weights of Caffe",
    ".index": "the index of a TensorFlow checkpoint",
    ".ckpt": "a checkpoint of TensorFlow",
}
# What zip files contain, the first that fits; "*.npy" is any file with this ending.
_ARCHIVES = (
    (
        {"data.pkl", "constants.pkl"},
        "an archive of TorchScript: its weights are torch.jit.load(file).state_dict()",
    ),
    ({"data.pkl"}, PYTORCH),
    (
        {"archive_version"},
        "a program of torch.export: its weights are torch.export.load(file).state_dict",
    ),
    ({"model.weights.h5"}, "a model of Keras"),
    ({"*.npy"}, "an archive of NumPy's arrays"),
)
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<?xml")

# Those that a network can compute with.
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def check_tensor(name: str, value: Any) -> None:
    """Raises a ``ValueError`` unless the value is a tensor of finite numbers, as a weight is."""
    problem = None
    if not isinstance(value, Tensor):
        problem = f"is a {type_name(value)}; expected a tensor"
    elif value.is_nested or value.layout is not torch.strided:
        problem = "is sparse or nested; expected a dense tensor"
    elif value.is_meta:
        problem = "is on the meta device and holds no values; expected a tensor with values"
    elif value.dtype not in _DTYPES:
        names = "float16, bfloat16, float32 or float64"
        problem = f"is of {value.dtype}; expected {names} (quantised weights cannot be used)"
    elif not _is_finite(value):
        problem = (
            "holds values that are NaN or infinite; expected numbers (the training had diverged)"
        )
    if problem:
        raise ValueError(f"{name} {problem}")


def _is_finite(tensor: Tensor) -> bool:
    # Much faster than isfinite(), and NaN is both the smallest and the largest value.
    extremes = torch.aminmax(tensor.detach()) if tensor.numel() else (torch.zeros(()),)
    return all(bool(extreme.isfinite()) for extreme in extremes)


def check_is_file(file: Path, argument: str, expected: str) -> None:
    """Raises an ``OSError`` in words unless the path is that of a file."""
    try:
        is_folder = file.is_dir()
    except OSError as error:  # no access, or too long a name
        name = f"{argument} is {shown(str(file))}"
        raise OSError(error.errno, f"{name}, which cannot be read: {error.strerror}") from None
    if is_folder:
        inside = sorted(f for f in file.iterdir() if f.suffix in {".safetensors", ".pth", ".pt"})
        if (file / "saved_model.pb").is_file():
            hint = " (it is a SavedModel of TensorFlow)"
        else:
            hint = f": pass for example {str(inside[0])!r}" if inside else ""
        raise IsADirectoryError(
            f"{argument} is {str(file)!r}, a folder; expected a file{hint or expected}"
        )
    if not file.is_file():
        raise FileNotFoundError(f"{argument} is {str(file)!r}: no such file{expected}")


def file_kind(file: Path) -> str:
    """The kind of a file: ``SAFETENSORS``, ``PYTORCH``, or another in words, with what to do."""
    with file.open("rb") as opened:
        head = opened.read(512)
    if not head:
        return "an empty file: the download or the disk failed"
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(file)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**30:
        return SAFETENSORS
    for offset, signature, kind in _SIGNATURES:
        if head[offset:].startswith(signature):
            return kind
    return _text_kind(head) or _SUFFIXES.get(
        file.suffix.lower(), "a damaged file, or of an unknown format"
    )


def _text_kind(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.lower().startswith(_MARKUP):
        return "a page of HTML or XML in place of the file: the download failed, or needs a login"
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        text = head[: error.start].decode() if error.start > len(head) - 4 else "\0"
    if text.isprintable() or not set(text) - {*map(chr, range(32, 127)), *"\t\r\n"}:
        return f"a text in place of the file, which begins with {text.strip()[:60]!r}"
    return None


def _zip_kind(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            names |= {"*" + name[name.rfind(".") :] for name in names if "." in name}
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return "a damaged or cut zip file, as of torch.save: download or save it again"
    return next((kind for needed, kind in _ARCHIVES if needed <= names), "a zip archive: unpack it")
