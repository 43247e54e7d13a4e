"""The library's own loops for the CPU: compiled from ``cpu.c`` on first use, called by ctypes.

Compiling needs a C compiler (gcc or clang), but no headers of Python or torch, so one wheel serves
every system. The result is kept in the user's cache folder, by source, compiler and processor; each
process compares it with torch's operations on a few values before it uses it.

The loops run in torch's own threads, started through GNU OpenMP, which torch has loaded: the
process gets no second pool of threads. Where torch has another runtime, Python's threads are used.
"""

import contextlib
import ctypes
import functools
import itertools
import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_float
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn import Parameter

from alexnet_lib.kernels import compiling
from alexnet_lib.kernels.arguments import (
    Arguments,
    EnlargeArguments,
    LrnArguments,
    ShrinkArguments,
)
from alexnet_lib.kernels.compiling import KernelError

# Compiling pays from this many values on: it takes a third of a second and saves about a nanosecond
# for each value. A training step of 128 images at 227 pixels has 140 million.
_WORTH_COMPILING = 300_000_000

# As in torch: with fewer values, a second thread does not pay off.
_VALUES_A_THREAD = 32_768

# The loop adds one neighbour after another; torch's operations need a number of steps that grows
# with the logarithm of the size.
_LARGEST_SIZE = 64

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}

_lock = threading.Lock()
_values_seen = 0
_forked = False


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
    return _local_response_norm(kernels, x, grad, settings)


def _local_response_norm(
    kernels: ctypes.CDLL, x: Tensor, grad: Tensor | None, settings: LrnSettings
) -> Tensor | None:
    # A wider neighbourhood than this has no further channel.
    size = min(settings.size, 2 * (x.shape[1] // settings.groups) - 1)
    if size > _LARGEST_SIZE:
        return None
    memory_format = dense_format(x)
    x = x.contiguous(memory_format=memory_format)
    grad = None if grad is None else grad.contiguous(memory_format=memory_format)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    arguments = LrnArguments(
        x=x,
        grad=grad,
        out=out,
        batch=x.shape[0],
        channels=x.shape[1],
        pixels=x.shape[2:].numel(),
        groups=settings.groups,
        size=size,
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
    corners: Tensor | None,
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
    ``window - crop``, or None for the centre. The output is ``size`` pixels wide and high: the
    crop, and zeros to the right of it and below. None where there is no kernel: other dtypes or
    devices, images that ``takes`` refuses, or as long as compiling does not pay.
    """
    if images.dtype not in {torch.uint8, torch.float32} or dtype not in _DTYPES:
        return None
    # The loop has no backward pass.
    differentiable = images.requires_grad and torch.is_grad_enabled()
    if images.device.type != "cpu" or differentiable or not takes(images):
        return None
    kernels = load_when_worthwhile(math.prod(images.shape[:2]) * size**2)
    if kernels is None:
        return None
    arguments = (resize, crop, size, scale, mean, std, dtype, memory_format)
    return _enlarge(kernels, images, corners, *arguments)


def _enlarge(
    kernels: ctypes.CDLL,
    images: Tensor,
    corners: Tensor | None,
    resize: Resize,
    crop: int,
    size: int,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:
    count, channels, height, width = images.shape
    images = images.contiguous()
    if corners is None:
        corners = torch.full((count, 2), (resize.window - crop) // 2, device="cpu")
    corners = corners.to("cpu", torch.int32).contiguous()
    shape = (count, channels, size, size)
    out = torch.empty(shape, dtype=dtype, memory_format=memory_format, device="cpu")
    if not out.numel():
        return out
    if crop < size:
        out.zero_()
    means, stds = ((c_float * channels)(*values) for values in (mean, std))
    arguments = EnlargeArguments(
        images=images,
        corners=corners,
        mean=means,
        std=stds,
        out=out,
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
    # In torch, shrinking takes longer for each value than what the limit was measured with.
    values = 4 * math.prod(images.shape[:2]) * resize.window**2
    if (kernels := load_when_worthwhile(values)) is None:
        return None
    return _shrink(kernels, images, resize)


def _shrink(kernels: ctypes.CDLL, images: Tensor, resize: Resize) -> Tensor:
    shape = (*images.shape[:2], resize.window, resize.window)
    out = torch.empty(shape, dtype=torch.uint8, device="cpu")
    if not out.numel():
        return out
    names = ("count", "channels", "height", "width")
    strides = ("image_stride", "channel_stride", "row_stride", "column_stride")
    arguments = ShrinkArguments(
        images=images,
        out=out,
        **dict(zip(names, images.shape, strict=True)),
        **dict(zip(strides, images.stride(), strict=True)),
        resized_height=resize.height,
        resized_width=resize.width,
        top=resize.top,
        left=resize.left,
        window=resize.window,
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
        and x.data_ptr() % x.element_size() == 0  # of memory that another library has given
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
    if not _library.cache_info().currsize and not _is_cached():
        _values_seen += values
        if _values_seen < _WORTH_COMPILING:
            return None
    return load()


def _is_cached() -> bool:
    with contextlib.suppress(OSError, ValueError, KernelError):
        return compiling.cached_file(_file_prefix()) is not None
    return False


@functools.cache
def _file_prefix() -> str:
    return compiling.file_prefix(sorted(torch.cpu.get_capabilities().items()))


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        if not compiling.is_switched_on():
            return None
        kernels = compiling.library(_file_prefix())
        # In a thread of its own: there, none of the modes hold that the caller may have set, such
        # as autocast or another default device.
        with ThreadPoolExecutor(1) as pool:
            wrong = pool.submit(_wrong_entry, kernels).result()
        if wrong:
            compiling.forget(_file_prefix())
            raise KernelError(f"the compiled function {wrong!r} gives wrong results")
        return kernels
    except Exception as error:  # whatever it is, torch's own operations are right
        warnings.warn(
            "alexnet-lib could not compile its kernels, and computes with torch's own operations, "
            f"which takes longer: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _wrong_entry(kernels: ctypes.CDLL) -> str | None:
    """The name of an entry function whose results differ from torch's for a few values."""
    for name, is_right in (
        ("lrn", _lrn_is_right),
        ("enlarge", _enlarge_is_right),
        ("shrink", _shrink_is_right),
    ):
        if not is_right(kernels):
            return name
    return None


def _numbers(*shape: int) -> Tensor:
    """Numbers from -1 to 1, the same every time."""
    count = torch.arange(math.prod(shape), dtype=torch.float64, device="cpu")
    return (count * 7919 % 199 / 99 - 1).reshape(shape)


def _lrn_is_right(kernels: ctypes.CDLL) -> bool:
    # AlexNet's settings, which have loops of their own, and others; a width that no vector divides.
    for settings, shape in (
        (LrnSettings(5, 2.0, 0.75, 2.0, 2), (2, 12, 5, 9)),
        (LrnSettings(4, 2.0, 0.5, 1.0, 1), (2, 6, 3, 7)),
    ):
        for dtype, memory_format in itertools.product(
            _DTYPES, (torch.contiguous_format, torch.channels_last)
        ):
            x, grad = (
                (3 * numbers).to(dtype).contiguous(memory_format=memory_format)
                for numbers in _numbers(2, *shape)
            )
            wide = x.double().requires_grad_()
            # Simple operations only: for an average pool, torch would start all its threads.
            groups = wide.square().chunk(settings.groups, 1)
            around = (settings.size // 2, (settings.size - 1) // 2)
            padded = [F.pad(group, (0, 0, 0, 0, *around)) for group in groups]
            means = torch.cat([group.unfold(1, settings.size, 1).mean(-1) for group in padded], 1)
            y = wide * (settings.k + settings.alpha * means).pow(-settings.beta)
            # Of a sum: given gradients, torch imports sympy, which takes a third of a second.
            (gradient,) = torch.autograd.grad((y * grad).sum(), wide)
            for expected, given in ((y, None), (gradient, grad)):
                result = _local_response_norm(kernels, x, given, settings)
                if result is None or not _is_close(result, expected):
                    return False
    return True


def _enlarge_is_right(kernels: ctypes.CDLL) -> bool:
    images = (127 * (_numbers(2, 3, 5, 7) + 1)).to(torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 2.0)
    whole = F.interpolate(images.double() / 255, (9, 9), mode="bilinear")
    for channel, (center, deviation) in enumerate(zip(mean, std, strict=True)):
        whole[:, channel].sub_(center).div_(deviation)
    corners = torch.tensor([[0, 2], [1, 0]], device="cpu")
    expected = F.pad(torch.stack([whole[0, :, :7, 2:], whole[1, :, 1:8, :7]]), (0, 1, 0, 1))
    resize = Resize(9, 9, 0, 0, 9)
    for source, dtype, memory_format in itertools.product(
        (images, images.float() / 255), _DTYPES, (torch.contiguous_format, torch.channels_last)
    ):
        result = _enlarge(
            kernels, source, corners, resize, 7, 8, 1.0, mean, std, dtype, memory_format
        )
        if not _is_close(result, expected):
            return False
    return True


def _shrink_is_right(kernels: ctypes.CDLL) -> bool:
    images = (127 * (_numbers(2, 3, 19, 23) + 1)).to(torch.uint8)
    whole = F.interpolate(images.double(), (6, 8), mode="bilinear", antialias=True)
    exact = whole[..., 1:7]
    resize = Resize(6, 8, 0, 1, 6)
    return all(
        bool(((_shrink(kernels, same, resize) - exact).abs() < 0.501).all())
        for same in (images, images.contiguous(memory_format=torch.channels_last))
    )


def _is_close(result: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-4 if result.dtype == torch.float32 else 1e-2
    return torch.allclose(result.double(), expected, rtol=tolerance, atol=tolerance)


def _run(entry: Any, arguments: Arguments, values: int, most_threads: int | None = None) -> None:
    threads = min(torch.get_num_threads(), values // _VALUES_A_THREAD)
    threads = max(1, threads if most_threads is None else min(threads, most_threads))
    if threads == 1:
        entry(ctypes.byref(arguments))
    elif _forked:
        _run_in_python_threads(entry, ctypes.byref(arguments), threads)
    else:
        _run_in_threads()(entry, ctypes.byref(arguments), threads)
    if arguments.out_of_memory:
        raise MemoryError("not enough memory for the kernels' scratch space")
    if arguments.invalid:
        raise ValueError(f"the arguments of a kernel do not fit each other: {arguments.wrong()}")


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


def _after_fork() -> None:
    """In a forked process, GNU OpenMP waits for threads that it does not have any more."""
    global _forked, _lock
    _forked, _lock = True, threading.Lock()  # another thread may have held the lock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
