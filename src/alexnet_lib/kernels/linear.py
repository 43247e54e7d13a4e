"""Faster linear layers in float32 on AMD's processors; models keep torch's own layers.

torch multiplies float32 matrices by Intel's MKL, which uses half the vector width of AMD's
processors. oneDNN, which torch has for its convolutions, uses all of it and is about twice as fast
(``benchmarks/``, matrix products).
"""

import functools
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from alexnet_lib.kernels import cpu

# Smaller weights are multiplied in well under a millisecond by both.
_LARGE_WEIGHT = 2**20


def substituted(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which oneDNN computes a model's linear layers, if that is faster."""
    return _Substitutes() if device.type == "cpu" and _mkl_is_slow() else nullcontext()


class _Substitutes(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and not kwargs and _takes(*args):
            return _Linear.apply(*(*args, None)[:3])
        return func(*args, **kwargs or {})


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        x.ndim == 2
        and len(x) > 0
        and weight.numel() >= _LARGE_WEIGHT
        and not torch.is_autocast_enabled("cpu")
        and all(
            tensor.dtype == torch.float32 and tensor.device.type == "cpu" and cpu.takes(tensor)
            for tensor in (x, weight, bias)
            if tensor is not None
        )
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # With create_graph=True the gradient must be differentiable.
        product = F.linear if torch.is_grad_enabled() else _product
        needs = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if needs[0] else None,
            product(grad.t(), x.t()) if needs[1] else None,
            grad.sum(0) if needs[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` by oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@functools.cache
def _mkl_is_slow() -> bool:
    mkl, onednn = torch.backends.mkl.is_available(), torch.backends.mkldnn.is_available()
    if not (mkl and onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        processor = platform.processor()
    return "AuthenticAMD" in processor
