"""Local response normalisation on a GPU: one Triton kernel, forward and backward.

Formula and derivative: ``network/normalization.py``. Imported only where there is a GPU and Triton.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from alexnet_lib.kernels.cpu import LrnSettings, dense_format

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _scale(x, i, channel, inside, stride, group, k, alpha_over_size, size: constexpr):
    """K plus the weighted energy of the neighbourhood of the value at index i."""
    energy = tl.zeros(i.shape, tl.float32)
    for j in tl.static_range(size):
        neighbour = channel + (j - size // 2)
        present = inside & (neighbour >= 0) & (neighbour < group)
        value = tl.load(x + i + (j - size // 2) * stride, mask=present, other=0.0).to(tl.float32)
        energy += value * value
    return k + alpha_over_size * energy


@triton.jit  # type: ignore[untyped-decorator]
def _lrn(
    x, grad, out, count, stride, group, k, alpha_over_size, beta, size: constexpr, block: constexpr
):
    """One value for each lane, in the order of memory; ``stride`` is from a channel to the next."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = i < count
    channel = (i // stride) % group
    value = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    scale = _scale(x, i, channel, inside, stride, group, k, alpha_over_size, size)
    power = tl.exp2(-beta * tl.log2(scale))
    if grad is None:
        result = value * power
    else:
        total = tl.zeros(i.shape, tl.float32)
        # Over the channels whose neighbourhoods contain this one.
        for j in tl.static_range(size):
            other = channel + (j - (size - 1) // 2)
            at = i + (j - (size - 1) // 2) * stride
            present = inside & (other >= 0) & (other < group)
            other_scale = _scale(x, at, other, present, stride, group, k, alpha_over_size, size)
            ratio = tl.exp2((-beta - 1) * tl.log2(other_scale))
            ratio *= tl.load(x + at, mask=present, other=0.0).to(tl.float32)
            ratio *= tl.load(grad + at, mask=present, other=0.0).to(tl.float32)
            total += tl.where(present, ratio, 0.0)
        direct = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32) * power
        result = direct - 2 * alpha_over_size * beta * value * total
    tl.store(out + i, result.to(out.dtype.element_ty), mask=inside)


def local_response_norm(x: Tensor, grad: Tensor | None, settings: LrnSettings) -> Tensor:
    """As ``cpu.local_response_norm``, for float32, bfloat16 and float16 on a GPU."""
    memory_format = dense_format(x)
    x = x.contiguous(memory_format=memory_format)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    kernel: Any = _lrn
    with torch.cuda.device_of(x):  # the current device is the one that Triton runs on
        kernel[(triton.cdiv(x.numel(), _BLOCK),)](
            x,
            None if grad is None else grad.contiguous(memory_format=memory_format),
            out,
            x.numel(),
            1 if memory_format is torch.channels_last else x.shape[2:].numel(),
            x.shape[1] // settings.groups,
            settings.k,
            settings.alpha / settings.size,
            settings.beta,
            settings.size,
            _BLOCK,
        )
    return out
