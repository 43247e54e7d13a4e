"""The library's own loops for the CPU: compiled from ``cpu.c`` on first use, called by ctypes.

Compiling takes a C compiler (gcc or clang) and a third of a second, and depends on nothing of
Python's or torch's, so one wheel serves every system. The result is kept in the user's cache
folder, by source, compiler and processor. Nothing is compiled until the work repays it: see
``library``.

The threads are torch's own: GNU OpenMP, which torch has loaded, is asked to run the loops, so the
process gets no second pool of threads. Where torch came with another runtime, Python threads do.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn import Parameter

SOURCE = Path(__file__).with_name("cpu.c")

SWITCH = "ALEXNET_LIB_KERNELS"
"""Environment variable that keeps the library from compiling and loading anything: ``off``."""

# As many values are put through torch's operations before compiling pays: a third of a second, at
# about a nanosecond a value saved. A training step of 128 images at 227 pixels has 140 million.
_WORTH_COMPILING = 300_000_000

# torch's own grain: fewer values are not worth a second thread.
_VALUES_A_THREAD = 32_768

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}

# The first set that the compiler takes; 512 bits, because gcc's default of 256 costs up to a third.
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_PROCESSOR_FLAGS = (("-march=native", "-mprefer-vector-width=512"), ("-mcpu=native",), ())

_lock = threading.Lock()
_values_seen = 0


class _Arguments(ctypes.Structure):
    """A structure of ``cpu.c``, made by field name; tensors stand for their addresses."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        for name, value in fields.items():
            setattr(self, name, value.data_ptr() if isinstance(value, Tensor) else value)


def _fields(**kinds: str) -> list[tuple[str, Any]]:
    types = {"pointers": ctypes.c_void_p, "integers": ctypes.c_int64, "floats": ctypes.c_float}
    return [(name, types[kind]) for kind, names in kinds.items() for name in names.split()]


class _LrnArguments(_Arguments):
    _fields_ = [
        *_fields(
            pointers="x grad out",
            integers="batch channels pixels groups size channels_last dtype",
            floats="k alpha_over_size beta",
        ),
        *_fields(integers="next_tile out_of_memory"),
    ]


class _EnlargeArguments(_Arguments):
    _fields_ = [
        *_fields(
            pointers="images corners out",
            integers="count height width resize window size floating channels_last dtype",
        ),
        ("scale", ctypes.c_float),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
        *_fields(integers="next_image out_of_memory"),
    ]


@dataclass(frozen=True)
class Window:
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


def local_response_norm(x: Tensor, grad: Tensor | None, window: Window) -> Tensor | None:
    """The output, or with ``grad``, that of the output, the gradient of ``x``.

    Args:
        x: ``(batch, channels, *)`` on the CPU.
        grad: of the shape and dtype of ``x``, or None.
        window: what of.

    Returns:
        As ``x``, in its memory format; None where there is no kernel: for another dtype, or
        before ``library`` has one.
    """
    if x.dtype not in _DTYPES or (kernels := library(x.numel())) is None:
        return None
    memory_format = dense_format(x)
    x = x.contiguous(memory_format=memory_format)
    grad = None if grad is None else grad.contiguous(memory_format=memory_format)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    arguments = _LrnArguments(
        x=x,
        grad=grad,
        out=out,
        batch=x.shape[0],
        channels=x.shape[1],
        pixels=x.shape[2:].numel(),
        groups=window.groups,
        size=window.size,
        channels_last=memory_format is torch.channels_last,
        dtype=_DTYPES[x.dtype],
        k=window.k,
        alpha_over_size=window.alpha / window.size,
        beta=window.beta,
    )
    _run(kernels.lrn, arguments, x.numel())
    return out


def enlarge(
    images: Tensor,
    corners: Tensor,
    *,
    resize: int,
    window: int,
    size: int,
    scale: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor | None:
    """Images enlarged bilinearly, cropped and normalised, in one pass.

    Args:
        images: ``(batch, 3, height, width)``, no side larger than ``resize`` or empty; uint8, or
            float32 from 0 to 1.
        corners: int64 ``(batch, 2)``: row and column of each window's upper left corner, from 0 to
            ``resize - window``.
        resize: side that both sides are enlarged to.
        window: side of what is cut out of that, at most ``resize``.
        size: side of the result, at least ``window``; what is more are zeros at the right and at
            the bottom.
        scale: what a value of 1 becomes before the mean is taken off.
        mean: of each channel.
        std: of each channel.
        dtype: of the result.
        memory_format: of the result.

    Returns:
        ``(batch, 3, size, size)``; None where there is no kernel: for another dtype or device, for
        images that are no plain memory, or before ``library`` has one.
    """
    if images.dtype not in {torch.uint8, torch.float32} or dtype not in _DTYPES:
        return None
    if images.device.type != "cpu" or not takes(images):
        return None
    if (kernels := library(len(images) * 3 * size**2)) is None:
        return None
    images = images.contiguous()
    corners = corners.to(torch.int32).contiguous()
    shape = (len(images), 3, size, size)
    out = torch.empty(shape, dtype=dtype, memory_format=memory_format, device="cpu")
    if window < size:
        out.zero_()
    triple = ctypes.c_float * 3
    arguments = _EnlargeArguments(
        images=images,
        corners=corners,
        out=out,
        count=len(images),
        height=images.shape[2],
        width=images.shape[3],
        resize=resize,
        window=window,
        size=size,
        floating=images.is_floating_point(),
        channels_last=memory_format is torch.channels_last,
        dtype=_DTYPES[dtype],
        scale=scale,
        mean=triple(*mean),
        std=triple(*std),
    )
    _run(kernels.enlarge, arguments, out.numel())
    return out


def takes(x: Tensor) -> bool:
    """Whether a tensor is plain memory: what is traced, mapped or differentiated forwards is not.

    Such tensors need torch's own operations.
    """
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


def library(values: int | None = None) -> ctypes.CDLL | None:
    """The compiled kernels, or None where there are none or compiling them does not pay yet.

    What an earlier process compiled is loaded at once. Otherwise the values put to work are
    counted, and the kernels compiled when torch's own operations have cost as much as compiling
    does: so the first images wait for no compiler, and a training run has the kernels after its
    first step. Where they cannot be had, one warning says why.

    Args:
        values: how many values are to be computed; None compiles now, if need be.
    """
    global _values_seen  # noqa: PLW0603
    if values is not None and _library.cache_info().currsize == 0:
        file = _cached_file()
        if file is None or not file.exists():
            _values_seen += values
            if _values_seen < _WORTH_COMPILING:
                return None
    with _lock:
        return _library()


@functools.cache
def _cached_file() -> Path | None:
    """Where the compiled kernels of this source, compiler and processor belong; None: nowhere."""
    compiler = _compiler()
    if compiler is None:
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
        if file.exists():
            with contextlib.suppress(OSError):  # a damaged file is replaced
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
            # Renamed into its place when complete: others may be doing the same.
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as beside:
                os.replace(shutil.copy(new, beside), file)
            return ctypes.CDLL(str(file))
        except OSError:
            return ctypes.CDLL(str(new))  # stays loaded when the file is gone


def _compile(new: Path) -> None:
    compiler = _compiler()
    assert compiler is not None
    for processor in _PROCESSOR_FLAGS:
        command = [*compiler, *_FLAGS, *processor, str(SOURCE), "-o", str(new), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return
    raise OSError(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")


def _compiler() -> tuple[str, ...] | None:
    if sys.platform == "win32":  # Microsoft's compiler does not take the source
        return None
    for command in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        if command and (found := shutil.which(command[0])):
            return (found, *command[1:])
    return None


def _cache_folder() -> Path:
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "alexnet-lib"
    try:
        home = Path.home()
    except RuntimeError:  # a user without one: each process compiles, see `_compiled`
        return Path(os.devnull) / "alexnet-lib"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "alexnet-lib"
    return home / ".cache" / "alexnet-lib"


def _run(entry: Any, arguments: Any, values: int) -> None:
    threads = max(1, min(torch.get_num_threads(), values // _VALUES_A_THREAD))
    if threads == 1:
        entry(ctypes.byref(arguments))
    else:
        _run_in_threads()(entry, ctypes.byref(arguments), threads)
    if arguments.out_of_memory:
        raise MemoryError("there was no memory for the kernels' scratch space")


@functools.cache
def _run_in_threads() -> Callable[[Any, Any, int], object]:
    """Runs an entry function in several threads at once: (entry, arguments, number of threads)."""
    # RTLD_NOLOAD finds a runtime that is in the process already, and loads none.
    mode = os.RTLD_NOLOAD | os.RTLD_LAZY
    shipped = (Path(torch.__file__).parent / "lib").glob("lib*omp*")
    for name in (*map(str, sorted(shipped)), "libgomp.so.1"):
        try:
            start = ctypes.CDLL(name, mode=mode).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return lambda entry, arguments, threads: start(entry, arguments, threads, 0)
    return _run_in_python_threads


def _run_in_python_threads(entry: Any, arguments: Any, threads: int) -> None:
    # ctypes gives up the interpreter's lock during a call.
    others = [threading.Thread(target=entry, args=(arguments,)) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    entry(arguments)
    for thread in others:
        thread.join()
