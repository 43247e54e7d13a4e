r"""Local response normalisation: torch.nn's interface, in every floating dtype, one pass each way.

With :math:`s_c = k + \frac{\alpha}{n} \sum_{j \in W(c)} x_j^2`, the sum over the neighbourhood
:math:`W(c)` of channel :math:`c`, the output is :math:`y_c = x_c s_c^{-\beta}`. With
:math:`g` the gradient of the output, that of the input is

.. math:: g_c s_c^{-\beta} - \frac{2 \alpha \beta}{n} x_c
          \sum_{j :\, c \in W(j)} g_j x_j s_j^{-\beta - 1},

so only :math:`x` is kept for the backward pass. ``kernels/cpu.py`` computes both on a CPU and
``kernels/gpu.py`` on a GPU; elsewhere, and for tracing, ``_output`` and ``_gradient`` compute the
formulas with torch's own operations.
"""

import functools
import warnings
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alexnet_lib.checks import AT_LEAST_ZERO, check_integer, check_number, type_name
from alexnet_lib.kernels import cpu
from alexnet_lib.kernels.cpu import LrnSettings

# No tensor has more channels. A neighbourhood wider than its group costs no more than all of it.
_MOST_CHANNELS = 2**31 - 1

_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

# Values: a few intermediate results of this size are a megabyte or two.
_BLOCK = 131_072

# Values: on a GPU, fewer are not worth Triton's compilation, which takes about a second. An image
# of 227 pixels has 290,400; a batch of 128 has more even at 67 pixels.
_WORTH_TRITON = 2**20

# Triton unrolls the loops over the neighbourhood: compiling takes seconds, and registers run out.
_LARGEST_TRITON_SIZE = 16


class LocalResponseNorm(nn.Module):
    r"""Divides each activation by a power of its neighbourhood's energy (paper, section 3.3).

    .. math:: b_c = a_c \Big/ \Big(k + \frac{\alpha}{n}
              \sum_{j = \max(0,\, c - \lfloor n/2 \rfloor)}
                  ^{\min(C - 1,\, c + \lfloor (n-1)/2 \rfloor)} a_j^2 \Big)^{\beta}

    **Two definitions of alpha.** The paper's formula multiplies the sum by alpha = 1e-4. The code
    that its authors released first divides alpha by the number n of channels (``layer.py``,
    ``NormLayerParser``), as do ``torch.nn.LocalResponseNorm``, Caffe and this module: alpha
    multiplies the *mean* square. The paper's formula is ``alpha=5e-4`` with ``size=5``.

    **Groups.** In the released code, the channels of one GPU are no neighbours of the other's, for
    example 47 and 48 of conv1: ``groups=2``. torch has no such argument.

    **Speed.** On a CPU a compiled loop makes one pass each way, when compiling it pays (see the
    page on speed); on a GPU a Triton kernel does. Only the input is kept for the backward pass.

    Args:
        size: number n of channels in a neighbourhood, its own included, from 1 to 2**31 - 1. It may
            be wider than the group; the sum is divided by n all the same.
        alpha: weight of the mean square, a finite number of at least 0.
        beta: exponent, a finite number of at least 0.
        k: additive constant, a finite number of at least 0; the paper's 2 (torch's own default is
            1). Where k is 0 and all of a neighbourhood too, the result is NaN, as torch's. None of
            the three can be learned: a tensor is refused.
        groups: number of groups of channels, from 1 to 2**31 - 1; a neighbourhood stays inside its
            group.

    The arguments are attributes, which can be replaced; the next forward pass checks them again.

    Shape:
        Input and output: float16, bfloat16, float32 or float64, dense, ``(batch, channels, *)``
        with one or more further dimensions and ``channels`` a multiple of ``groups``. The output
        has the input's dtype; squares are summed in float32 where that is wider.

    Raises:
        ValueError: an argument out of its range; an input of a wrong rank, dtype, layout or channel
            count.
        TypeError: an input that is no tensor.

    Example:
        >>> import torch
        >>> from alexnet_lib import LocalResponseNorm
        >>> LocalResponseNorm(groups=2)(torch.ones(1, 96, 2, 2, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """

    def __init__(
        self,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 2.0,
        *,
        groups: int = 1,
    ) -> None:
        super().__init__()
        settings = _settings(size, alpha, beta, k, groups)
        self.size, self.groups = settings.size, settings.groups
        self.alpha, self.beta, self.k = settings.alpha, settings.beta, settings.k

    def forward(self, x: Tensor) -> Tensor:
        """The normalised activations, in the shape and dtype of ``x``."""
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k, self.groups)

    def extra_repr(self) -> str:
        """The arguments, as ``print(model)`` shows them."""
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}{groups}"


def _settings(size: Any, alpha: Any, beta: Any, k: Any, groups: Any) -> LrnSettings:
    """The arguments as plain numbers; a ``ValueError`` names one that is none, or out of range."""
    constants = {"alpha": alpha, "beta": beta, "k": k}
    for name, value in {"size": size, "groups": groups, **constants}.items():
        if isinstance(value, Tensor):
            raise ValueError(
                f"{name} is a {type_name(value)}; expected a plain number, since LocalResponseNorm "
                f"does not learn it: pass {name}.item(), or use torch.nn.LocalResponseNorm"
            )
    return LrnSettings(
        size=check_integer("size", size, 1, _MOST_CHANNELS),
        groups=check_integer("groups", groups, 1, _MOST_CHANNELS),
        **{
            name: float(check_number(name, value, AT_LEAST_ZERO))
            for name, value in constants.items()
        },
    )


# Wrapped, so that symbolic tracing records one call instead of failing at its checks.
@torch.fx.wrap
def local_response_norm(
    x: Float[Tensor, "batch channels *rest"],
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
) -> Float[Tensor, "batch channels *rest"]:
    """``LocalResponseNorm`` as a function."""
    # Attributes of the module may have been replaced.
    settings = _settings(size, alpha, beta, k, groups)
    _check_input(x, settings.groups)
    if not settings.beta:
        return x.clone()  # divided by 1, also where the sum is 0, infinite or NaN
    y: Tensor = _LocalResponseNorm.apply(x, settings) if cpu.takes(x) else _output(x, settings)
    return y


def _check_input(x: Any, groups: int) -> None:
    expected = (
        "expected a dense tensor (batch, channels, ...) of at least 3 dimensions, float16, "
        "bfloat16, float32 or float64"
    )
    if not isinstance(x, Tensor):
        raise TypeError(f"the input of LocalResponseNorm is a {type_name(x)}; {expected}")
    if x.is_nested or x.layout is not torch.strided:
        came = ", nested" if x.is_nested else f" of layout {x.layout}"
        raise ValueError(f"the input of LocalResponseNorm is {x.dtype}{came}; {expected}")
    if x.ndim < 3 or x.dtype not in _DTYPES:
        came = f"{x.dtype} of shape {tuple(x.shape)}"
        raise ValueError(f"the input of LocalResponseNorm is {came}; {expected}")
    if x.shape[1] % groups:
        raise ValueError(
            f"the input of LocalResponseNorm has {x.shape[1]} channels, which {groups} groups do "
            "not divide"
        )


class _LocalResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: LrnSettings) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = settings
        return _computed(x, None, settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        # With create_graph=True the gradient must be differentiable.
        plain = cpu.takes(grad) and not torch.is_grad_enabled()
        compute = _computed if plain else _gradient
        return compute(x, grad, ctx.settings), None


@torch.no_grad()
def _computed(x: Tensor, grad: Tensor | None, settings: LrnSettings) -> Tensor:
    """The output; or, given its gradient ``grad``, the gradient of ``x``; by the fastest code."""
    on_cpu, out = x.device.type == "cpu", None
    if on_cpu:
        out = cpu.local_response_norm(x, grad, settings)
    elif (
        x.device.type == "cuda"
        and x.dtype != torch.float64
        and x.numel() >= _WORTH_TRITON
        and settings.size <= _LARGEST_TRITON_SIZE
        and (gpu := _gpu_kernels(x.device))
    ):
        out = gpu.local_response_norm(x, grad, settings)
    if out is not None:
        return out
    # On a CPU, few images at a time, so that the intermediate results stay in its cache.
    images = max(1, _BLOCK // max(1, x[:1].numel()) if on_cpu else len(x))
    out = torch.empty_like(x)
    for start in range(0, len(x), images):
        part = slice(start, start + images)
        out[part] = (
            _output(x[part], settings) if grad is None else _gradient(x[part], grad[part], settings)
        )
    return out


@functools.cache
def _gpu_kernels(device: torch.device) -> Any:
    """The module of the Triton kernel; None, with one warning, where Triton does not run."""
    try:
        from alexnet_lib.kernels import gpu

        one = torch.ones(1, 1, 1, device=device)
        gpu.local_response_norm(one, None, LrnSettings(1, 1.0, 1.0, 1.0, 1))
    except Exception as error:  # what Triton raises differs from system to system
        warnings.warn(
            "LocalResponseNorm computes with torch's own operations, which takes longer: Triton "
            f"does not run here ({type(error).__name__}: {error})",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return gpu


def _output(x: Tensor, settings: LrnSettings) -> Tensor:
    wide = _cast(x, torch.promote_types(x.dtype, torch.float32))
    return _cast(wide * _power(_scale(wide, settings), -settings.beta), x.dtype)


def _gradient(x: Tensor, grad: Tensor, settings: LrnSettings) -> Tensor:
    wide = _cast(x, torch.promote_types(x.dtype, torch.float32))
    scale = _scale(wide, settings)
    direct = grad * _power(scale, -settings.beta)
    ratios = wide * direct / scale
    # Over the channels whose neighbourhoods contain this one.
    sums = _neighbour_sums(ratios, settings, backward=True)
    factor = 2 * settings.alpha * settings.beta / settings.size
    return _cast(direct - factor * wide * sums, x.dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # `to` would write the dtype into a trace, which could not be converted to half precision.
    return x if x.dtype == dtype else x.to(dtype)


def _scale(x: Tensor, settings: LrnSettings) -> Tensor:
    sums = _neighbour_sums(x.square(), settings)
    return settings.k + settings.alpha / settings.size * sums


def _power(scale: Tensor, exponent: float) -> Tensor:
    if exponent == -0.75:  # several times as fast as pow
        root = scale.rsqrt()
        return root * root.sqrt()
    return scale.pow(exponent)


def _neighbour_sums(x: Tensor, settings: LrnSettings, *, backward: bool = False) -> Tensor:
    """The sum over each channel's neighbourhood, or over those whose neighbourhoods contain it."""
    channels = x.shape[1] // settings.groups
    # A wider neighbourhood has no further channel. Without channels, there are none to add.
    size = max(1, min(settings.size, 2 * channels - 1))
    below = (size - 1) // 2 if backward else size // 2
    grouped = x.reshape(x.shape[0], settings.groups, channels, *x.shape[2:])
    padded = F.pad(grouped, (0, 0) * (x.ndim - 2) + (below, size - 1 - below))
    # Sums of 1, 2, 4, ... neighbours, of which those of `size` consist: few steps for any size.
    length, start, sums, parts = 1, 0, padded, []
    while length <= size:
        if size & length:
            parts.append(sums.narrow(2, start, channels))
            start += length
        count = sums.shape[2] - length
        if 2 * length <= size:
            sums = sums.narrow(2, 0, count) + sums.narrow(2, length, count)
        length *= 2
    return functools.reduce(torch.add, parts).reshape(x.shape)
