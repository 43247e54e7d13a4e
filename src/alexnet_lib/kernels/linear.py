"""Faster forms of torch's functions, put in their place from outside while a model runs.

A model stays what it is, with torch's own layers; where ``substituted`` is active, its calls come
here first. So far there is one such function, for one kind of processor.

**Linear layers in float32 on AMD's processors.** torch multiplies float32 matrices by Intel's MKL,
which uses half the vector width there. oneDNN, which torch has for its convolutions, uses all of
it, and is about twice as fast (``benchmarks/``, matrix products).
"""

import functools
import platform
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from alexnet_lib.kernels import cpu

# Smaller weights are multiplied in well under a millisecond by either.
_LARGE_WEIGHT = 2**20


def substituted(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which what a model calls is replaced where a faster form is known."""
    if device.type == "cpu" and _mkl_is_slow():
        return _Substitutes()
    return nullcontext()


class _Substitutes(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _takes(*args):
            x, weight, bias = (*args, None)[:3]
            return _Linear.apply(x, weight, bias)
        return func(*args, **kwargs or {})


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    return (
        x.ndim == 2
        and len(x) > 0
        and weight.numel() >= _LARGE_WEIGHT
        and all(tensor.dtype == torch.float32 for tensor in tensors)
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and all(map(cpu.takes, tensors))
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # With create_graph=True the gradient is to be differentiated in its turn.
        product = F.linear if torch.is_grad_enabled() else _product
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if for_x else None,
            product(grad.t(), x.t()) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` by oneDNN."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


@functools.cache
def _mkl_is_slow() -> bool:
    has_onednn = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    return has_onednn and torch.backends.mkl.is_available() and "AuthenticAMD" in _processor()


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
