"""Local response normalisation on a GPU: one Triton kernel, forward and backward.

Formula and derivative: ``normalization.py``. Imported only where there is a GPU and Triton.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alexnet_lib.kernels.cpu import Window, dense_format

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _scale(x, i, channel, inside, stride, group, k, alpha_over_size, SIZE: tl.constexpr):  # noqa: N803
    """The sum k plus the weighted energy of the window around a channel of a group, at place i."""
    energy = tl.zeros(i.shape, tl.float32)
    for j in tl.static_range(SIZE):
        neighbour = channel + (j - SIZE // 2)
        present = inside & (neighbour >= 0) & (neighbour < group)
        value = tl.load(x + i + (j - SIZE // 2) * stride, mask=present, other=0.0).to(tl.float32)
        energy += value * value
    return k + alpha_over_size * energy


@triton.jit  # type: ignore[untyped-decorator]
def _lrn(
    x,
    grad,
    out,
    count,
    stride,
    group,
    k,
    alpha_over_size,
    beta,
    SIZE: tl.constexpr,  # noqa: N803
    BACKWARD: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """One value a lane, in the order of memory; ``stride`` leads from a channel to the next."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    channel = (i // stride) % group
    value = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    scale = _scale(x, i, channel, inside, stride, group, k, alpha_over_size, SIZE)
    power = tl.exp2(-beta * tl.log2(scale))
    if BACKWARD:
        total = tl.zeros(i.shape, tl.float32)
        # From the channels whose windows hold this one.
        for j in tl.static_range(SIZE):
            neighbour = channel + (j - (SIZE - 1) // 2)
            there = i + (j - (SIZE - 1) // 2) * stride
            present = inside & (neighbour >= 0) & (neighbour < group)
            theirs = _scale(x, there, neighbour, present, stride, group, k, alpha_over_size, SIZE)
            ratio = tl.exp2((-beta - 1) * tl.log2(theirs))
            ratio *= tl.load(x + there, mask=present, other=0.0).to(tl.float32)
            ratio *= tl.load(grad + there, mask=present, other=0.0).to(tl.float32)
            total += tl.where(present, ratio, 0.0)
        direct = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32) * power
        result = direct - 2 * alpha_over_size * beta * value * total
    else:
        result = value * power
    tl.store(out + i, result.to(out.dtype.element_ty), mask=inside)


def local_response_norm(x: Tensor, grad: Tensor | None, window: Window) -> Tensor:
    """The output, or with ``grad``, that of the output, the gradient of ``x``.

    The arguments are those of ``kernels.local_response_norm``; ``x`` is float32, bfloat16 or
    float16, ``(batch, channels, *)``.
    """
    memory_format = dense_format(x)
    x = x.contiguous(memory_format=memory_format)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    kernel: Any = _lrn
    with torch.cuda.device_of(x):  # where Triton starts it
        kernel[(triton.cdiv(x.numel(), _BLOCK),)](
            x,
            x if grad is None else grad.contiguous(memory_format=memory_format),
            out,
            x.numel(),
            1 if memory_format is torch.channels_last else x.shape[2:].numel(),
            x.shape[1] // window.groups,
            window.k,
            window.alpha / window.size,
            window.beta,
            SIZE=window.size,
            BACKWARD=grad is not None,
            BLOCK=_BLOCK,
        )
    return out
