"""The library's own loops for the CPU: compiled from ``cpu.c`` on first use, called by ctypes.

Compiling needs a C compiler (gcc or clang), but no headers of Python or torch, so one wheel serves
every system. The result is kept in the user's cache folder, by source, compiler and processor.

The loops run in torch's own threads, started through GNU OpenMP, which torch has loaded: the
process gets no second pool of threads. Where torch has another runtime, Python's threads are used.
"""

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn import Parameter

from alexnet_lib.files import replacing

SOURCE = Path(__file__).with_name("cpu.c")

# Environment variable; "off" keeps the library from compiling and loading anything.
SWITCH = "ALEXNET_LIB_KERNELS"

# Compiling pays from this many values on: it takes a third of a second and saves about a nanosecond
# for each value. A training step of 128 images at 227 pixels has 140 million.
_WORTH_COMPILING = 300_000_000

# As in torch: with fewer values, a second thread does not pay off.
_VALUES_A_THREAD = 32_768

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}

# The first set the compiler accepts; 512 bits, because gcc's default of 256 costs up to a third.
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_PROCESSOR_FLAGS = (("-march=native", "-mprefer-vector-width=512"), ("-mcpu=native",), ())

_lock = threading.Lock()
_values_seen = 0


def _fields(*declarations: tuple[Any, str]) -> list[tuple[str, Any]]:
    """The fields of a structure of ``cpu.c``."""
    return [(name, kind) for kind, names in declarations for name in names.split()]


class _LrnArguments(ctypes.Structure):
    _fields_ = _fields(
        (c_void_p, "x grad out"),
        (c_int64, "batch channels pixels groups size channels_last dtype"),
        (c_float, "k alpha_over_size beta"),
        (c_int64, "next_tile out_of_memory"),
    )


class _EnlargeArguments(ctypes.Structure):
    _fields_ = _fields(
        (c_void_p, "images corners mean std out"),
        (c_int64, "count channels height width resized_height resized_width top left"),
        (c_int64, "window crop size floating channels_last dtype"),
        (c_float, "scale"),
        (c_int64, "next_image out_of_memory invalid"),
    )


class _ShrinkArguments(ctypes.Structure):
    _fields_ = _fields(
        (c_void_p, "images out"),
        (c_int64, "count channels height width"),
        (c_int64, "image_stride channel_stride row_stride column_stride"),
        (c_int64, "resized_height resized_width top left window"),
        (c_int64, "next_image out_of_memory invalid"),
    )


class Resize(NamedTuple):
    """A resize of which a square window is kept: height and width of the whole, the window's."""

    height: int
    width: int
    top: int
    left: int
    window: int


@dataclass(frozen=True)
class LrnSettings:
    """The arguments of ``LocalResponseNorm``."""

    size: int
    alpha: float
    beta: float
    k: float
    groups: int


def dense_format(x: Tensor) -> torch.memory_format:
    """The memory format of a tensor; contiguous for one of neither format."""
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def local_response_norm(x: Tensor, grad: Tensor | None, settings: LrnSettings) -> Tensor | None:
    """The output; or, given its gradient ``grad``, the gradient of ``x``.

    ``x`` and ``grad`` are ``(batch, channels, *)`` on the CPU; the result is in the memory format
    of ``x``. None where there is no kernel: other dtypes, or as long as compiling does not pay.
    """
    if x.dtype not in _DTYPES or (kernels := load_when_worthwhile(x.numel())) is None:
        return None
    memory_format = dense_format(x)
    x = x.contiguous(memory_format=memory_format)
    grad = None if grad is None else grad.contiguous(memory_format=memory_format)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    arguments = _LrnArguments(
        x=x.data_ptr(),
        grad=None if grad is None else grad.data_ptr(),
        out=out.data_ptr(),
        batch=x.shape[0],
        channels=x.shape[1],
        pixels=x.shape[2:].numel(),
        groups=settings.groups,
        size=settings.size,
        channels_last=memory_format is torch.channels_last,
        dtype=_DTYPES[x.dtype],
        k=settings.k,
        alpha_over_size=settings.alpha / settings.size,
        beta=settings.beta,
    )
    _run(kernels.lrn, arguments, x.numel())
    return out


def enlarge(
    images: Tensor,
    corners: Tensor,
    resize: Resize,
    *,
    crop: int,
    size: int,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor | None:
    """Images enlarged bilinearly, cropped and normalised, in one pass, as ``Preprocess`` defines.

    ``images`` are uint8 or float32 ``(batch, channels, height, width)``, with sides no larger than
    the resized ones; ``corners`` int64 ``(batch, 2)``, in the window of the resize, from 0 to
    ``window - crop``. The output is ``size`` pixels wide and high: the crop, and zeros to the right
    of it and below. None where there is no kernel: other dtypes or devices, images that ``takes``
    refuses, or as long as compiling does not pay.
    """
    if images.dtype not in {torch.uint8, torch.float32} or dtype not in _DTYPES:
        return None
    # The loop has no backward pass.
    differentiable = images.requires_grad and torch.is_grad_enabled()
    if images.device.type != "cpu" or differentiable or not takes(images):
        return None
    count, channels, height, width = images.shape
    if (kernels := load_when_worthwhile(count * channels * size**2)) is None:
        return None
    images = images.contiguous()
    corners = corners.to("cpu", torch.int32).contiguous()
    shape = (count, channels, size, size)
    out = torch.empty(shape, dtype=dtype, memory_format=memory_format, device="cpu")
    if crop < size:
        out.zero_()
    means, stds = ((c_float * channels)(*values) for values in (mean, std))
    arguments = _EnlargeArguments(
        images=images.data_ptr(),
        corners=corners.data_ptr(),
        mean=ctypes.addressof(means),
        std=ctypes.addressof(stds),
        out=out.data_ptr(),
        count=count,
        channels=channels,
        height=height,
        width=width,
        resized_height=resize.height,
        resized_width=resize.width,
        top=resize.top,
        left=resize.left,
        window=resize.window,
        crop=crop,
        size=size,
        floating=images.is_floating_point(),
        channels_last=memory_format is torch.channels_last,
        dtype=_DTYPES[dtype],
        scale=scale,
    )
    _run(kernels.enlarge, arguments, out.numel())
    return out


def shrink(images: Tensor, resize: Resize) -> Tensor | None:
    """The window of images that become smaller, bilinear with antialiasing, rounded to uint8.

    ``images`` are uint8 ``(batch, channels, height, width)`` with any strides. An image is computed
    in one thread. None where there is no kernel, as for ``enlarge``.
    """
    if images.dtype != torch.uint8 or images.device.type != "cpu" or not takes(images):
        return None
    shape = (*images.shape[:2], resize.window, resize.window)
    # In torch, shrinking takes longer for each value than what the limit was measured with.
    if (kernels := load_when_worthwhile(4 * math.prod(shape))) is None:
        return None
    out = torch.empty(shape, dtype=torch.uint8, device="cpu")
    arguments = _ShrinkArguments(
        images.data_ptr(), out.data_ptr(), *images.shape, *images.stride(), *resize
    )
    _run(kernels.shrink, arguments, out.numel(), most_threads=len(images))
    return out


def takes(x: Tensor) -> bool:
    """Whether kernels can read a tensor; if traced, mapped or dual, it needs torch's operations."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in {Tensor, Parameter}
        and x.layout is torch.strided
        and not (x.is_neg() or x._is_zerotensor())
        and not torch._C._get_tracing_state()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(x)  # of autograd.grad(is_grads_batched)
        and torch._C._len_torch_dispatch_stack() == 0
        and unpack_dual(x).tangent is None
    )


def load() -> ctypes.CDLL | None:
    """The kernels, compiled where they are not cached; None, with one warning, if that fails."""
    with _lock:
        return _library()


def load_when_worthwhile(values: int) -> ctypes.CDLL | None:
    """The kernels, or None as long as compiling them does not pay.

    Kernels in the cache folder are loaded at once. Otherwise the ``values`` to compute are added up
    over all calls, until torch's own operations have cost as much time as compiling: the first
    images do not wait for a compiler, and a training run has the kernels after its first steps.
    """
    global _values_seen  # noqa: PLW0603
    file = _cached_file()
    if not _library.cache_info().currsize and not (file and file.exists()):
        _values_seen += values
        if _values_seen < _WORTH_COMPILING:
            return None
    return load()


@functools.cache
def _cached_file() -> Path | None:
    """The file for the kernels of this source, compiler and processor; None without a compiler."""
    if (compiler := _compiler()) is None:
        return None
    processor = sorted(torch.cpu.get_capabilities().items())
    key = (SOURCE.read_bytes(), compiler, _FLAGS, _PROCESSOR_FLAGS, platform.machine(), processor)
    return _cache_folder() / f"kernels-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"


@functools.cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get(SWITCH) == "off":
        return None
    file = _cached_file()
    try:
        if file is None:
            raise OSError("there is no C compiler (cc, gcc or clang, or the variable CC)")
        with contextlib.suppress(OSError):  # a missing or damaged file is written again
            return ctypes.CDLL(str(file))
        return _compiled(file)
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(
            "alexnet-lib could not compile its kernels, and computes with torch's own operations, "
            f"which takes longer: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _compiled(file: Path) -> ctypes.CDLL:
    """Compiles the kernels, keeps them as ``file`` where that can be written, and loads them."""
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / file.name
        _compile(new)
        try:
            with replacing(file) as cached:
                shutil.copy(new, cached)
            return ctypes.CDLL(str(file))
        except OSError:
            return ctypes.CDLL(str(new))  # stays loaded when the file is deleted


def _compile(new: Path) -> None:
    compiler = _compiler() or ()
    for processor in _PROCESSOR_FLAGS:
        command = [*compiler, *_FLAGS, *processor, str(SOURCE), "-o", str(new), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return
    raise OSError(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")


def _compiler() -> tuple[str, ...] | None:
    if sys.platform == "win32":  # Microsoft's compiler does not accept the source
        return None
    for command in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        if command and (program := shutil.which(command[0])):
            return (program, *command[1:])
    return None


def _cache_folder() -> Path:
    below_home = "Library/Caches" if sys.platform == "darwin" else ".cache"
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / below_home)
    except RuntimeError:  # no home folder: nothing is kept, each process compiles
        caches = Path(os.devnull)
    return caches / "alexnet-lib"


def _run(entry: Any, arguments: Any, values: int, most_threads: int | None = None) -> None:
    threads = min(torch.get_num_threads(), values // _VALUES_A_THREAD)
    threads = max(1, threads if most_threads is None else min(threads, most_threads))
    if threads == 1:
        entry(ctypes.byref(arguments))
    else:
        _run_in_threads()(entry, ctypes.byref(arguments), threads)
    if arguments.out_of_memory:
        raise MemoryError("not enough memory for the kernels' scratch space")
    if getattr(arguments, "invalid", 0):
        raise ValueError("the kernels were given sizes or corners that do not fit each other")


@functools.cache
def _run_in_threads() -> Callable[[Any, Any, int], object]:
    """Runs an entry function in several threads at once: (entry, arguments, number of threads)."""
    # RTLD_NOLOAD opens a runtime only if the process has loaded it already.
    mode = os.RTLD_NOLOAD | os.RTLD_LAZY
    shipped = (Path(torch.__file__).parent / "lib").glob("lib*omp*")
    for name in (*map(str, sorted(shipped)), "libgomp.so.1"):
        with contextlib.suppress(OSError, AttributeError):
            start = ctypes.CDLL(name, mode=mode).GOMP_parallel
            return lambda entry, arguments, threads: start(entry, arguments, threads, 0)
    return _run_in_python_threads


def _run_in_python_threads(entry: Any, arguments: Any, threads: int) -> None:
    # ctypes releases the interpreter's lock during a call.
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(threads):
            pool.submit(entry, arguments)
