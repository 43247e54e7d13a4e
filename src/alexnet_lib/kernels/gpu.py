"""Local response normalisation on a GPU: one Triton kernel, forward and backward.

Formula and derivative: ``network/normalization.py``. Imported only where there is a GPU and Triton.

A lane computes a run of successive channels at one place. It loads their values, and those to
either side that they depend on, once, and computes the power of each scale once; the sums are of
registers. Where channels are adjacent in memory, a run is as wide as one load.
"""

# A function of Triton is typed where it is called.
# mypy: disable-error-code="no-untyped-def, assignment, misc, var-annotated"

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from alexnet_lib.kernels.cpu import LrnSettings, dense_format

_LANES = 128

# Bytes of the widest load of a thread.
_WIDEST_LOAD = 16

# Channels of a run where they are not adjacent: each run loads its neighbours again, and longer
# ones need more registers.
_RUN = 8

# From so many values on, the places of the last lanes do not fit 32 bits.
_MANY = 2**31 - 2**20


@triton.jit
def _are_in_group(channel, group):
    return (channel >= 0) & (channel < group)


@triton.jit  # type: ignore[untyped-decorator]
def _columns(
    source,
    at,
    channel,
    inside,
    group,
    stride,
    first: constexpr,
    last: constexpr,
    run: constexpr,
    adjacent: constexpr,
):
    """The values of a lane's channels from ``first`` to ``last``; 0 for those that are none."""
    columns = ()
    if adjacent:
        for i in tl.static_range(first // run, last // run + 1):
            present = inside & _are_in_group(channel + i * run, group)
            places = (at + i * run)[:, None] + tl.arange(0, run)[None, :]
            parts = _parts(tl.load(source + places, mask=present[:, None], other=0.0), run)
            for j in tl.static_range(run):
                if i * run + j >= first and i * run + j <= last:
                    columns += (parts[j].to(tl.float32),)
    else:
        for i in tl.static_range(first, last + 1):
            present = inside & _are_in_group(channel + i, group)
            value = tl.load(source + at + i * stride, mask=present, other=0.0)
            columns += (value.to(tl.float32),)
    return columns


@triton.jit  # type: ignore[untyped-decorator]
def _parts(tile, run: constexpr):
    """The columns of a tile ``(lanes, run)``, of which each thread holds whole rows."""
    lanes: constexpr = tile.shape[0]
    parts = (tile,)
    for i in tl.static_range(run):
        if 2**i < run:
            halves = ()
            for j in tl.static_range(2**i):
                pairs = tl.reshape(parts[j], (lanes, 2, run // 2 ** (i + 1)))
                halves += tl.split(tl.permute(pairs, (0, 2, 1)))
            parts = halves
    columns = ()
    for j in tl.static_range(run):
        columns += (tl.reshape(parts[j], (lanes,)),)
    return columns


@triton.jit  # type: ignore[untyped-decorator]
def _tile(columns, run: constexpr):
    """The tile ``(lanes, run)`` of columns."""
    lanes: constexpr = columns[0].shape[0]
    parts = ()
    for j in tl.static_range(run):
        parts += (tl.reshape(columns[j], (lanes, 1)),)
    for i in tl.static_range(run):
        if 2**i < run:
            joined = ()
            for j in tl.static_range(run // 2 ** (i + 1)):
                pair = tl.permute(tl.join(parts[2 * j], parts[2 * j + 1]), (0, 2, 1))
                joined += (tl.reshape(pair, (lanes, 2 ** (i + 1))),)
            parts = joined
    return parts[0]


@triton.jit  # type: ignore[untyped-decorator]
def _powers(scale, beta, three_quarters: constexpr):
    """``scale**-beta`` and ``scale**(-beta - 1)``."""
    if three_quarters:
        root = tl.rsqrt(scale)
        power = root * tl.sqrt(root)
        return power, power * root * root
    else:
        logarithm = tl.log2(scale)
        return tl.exp2(-beta * logarithm), tl.exp2((-beta - 1) * logarithm)


# The last batch of an epoch has another number of lanes, which need not be compiled for.
@triton.jit(do_not_specialize=["lanes"])  # type: ignore[untyped-decorator]
def _lrn(
    x,
    grad,
    out,
    lanes,
    stride,
    k,
    alpha_over_size,
    beta,
    three_quarters: constexpr,
    size: constexpr,
    group: constexpr,
    run: constexpr,
    adjacent: constexpr,
    many: constexpr,
    block: constexpr,
):
    """One run of channels for each lane; ``stride`` is from a channel to the next."""
    index: constexpr = tl.int64 if many else tl.int32
    lane = tl.program_id(0).to(index) * block + tl.arange(0, block)
    inside = lane < lanes
    runs: constexpr = group // run
    channel = (lane // stride) % runs * run
    at = (lane // stride // runs * group + channel) * stride + lane % stride
    # A neighbourhood has so many channels to either side.
    below: constexpr = size // 2
    above: constexpr = (size - 1) // 2
    # Channels whose neighbourhoods contain one of the run.
    first: constexpr = 0 if grad is None else -above
    last: constexpr = run - 1 if grad is None else run - 1 + below
    values = _columns(
        x, at, channel, inside, group, stride, first - below, last + above, run, adjacent
    )
    if grad is not None:
        grads = _columns(grad, at, channel, inside, group, stride, first, last, run, adjacent)
    directs, ratios = (), ()
    for i in tl.static_range(last + 1 - first):
        energy = values[i] * values[i]
        for j in tl.static_range(1, size):
            energy += values[i + j] * values[i + j]
        power, less = _powers(k + alpha_over_size * energy, beta, three_quarters)
        if grad is None:
            directs += (values[i + below] * power,)
        else:
            directs += (grads[i] * power,)
            present = _are_in_group(channel + (first + i), group)
            ratios += (tl.where(present, grads[i] * (values[i + below] * less), 0.0),)
    results = ()
    for i in tl.static_range(run):
        result = directs[i - first]
        if grad is not None:
            total = ratios[i]
            for j in tl.static_range(1, size):
                total += ratios[i + j]
            result -= 2 * alpha_over_size * beta * values[i - first + below] * total
        results += (result.to(out.dtype.element_ty),)
    if adjacent:
        places = at[:, None] + tl.arange(0, run)[None, :]
        tl.store(out + places, _tile(results, run), mask=inside[:, None])
    else:
        for i in tl.static_range(run):
            tl.store(out + at + i * stride, results[i], mask=inside)


def local_response_norm(x: Tensor, grad: Tensor | None, settings: LrnSettings) -> Tensor:
    """As ``cpu.local_response_norm``, for float32, bfloat16 and float16 on a GPU."""
    memory_format = dense_format(x)
    x = x.contiguous(memory_format=memory_format)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    stride = 1 if memory_format is torch.channels_last else x.shape[2:].numel()
    group = x.shape[1] // settings.groups
    run = math.gcd(group, _WIDEST_LOAD // x.element_size() if stride == 1 else _RUN)
    lanes = x.numel() // run
    kernel: Any = _lrn
    with torch.cuda.device_of(x):  # the current device is the one that Triton runs on
        kernel[(triton.cdiv(lanes, _LANES),)](
            x,
            None if grad is None else grad.contiguous(memory_format=memory_format),
            out,
            lanes,
            stride,
            settings.k,
            settings.alpha / settings.size,
            settings.beta,
            settings.beta == 0.75,
            settings.size,
            group,
            run,
            stride == 1,
            x.numel() >= _MANY,
            _LANES,
        )
    return out
