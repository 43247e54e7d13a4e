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

from alexnet_lib.checks import check_integer, check_number, type_name
from alexnet_lib.kernels import cpu
from alexnet_lib.kernels.cpu import LrnSettings
from alexnet_lib.network.architecture import FINITE

# Values: a few intermediate results of this size are a megabyte or two.
_BLOCK = 131_072

# Values: on a GPU, fewer are not worth Triton's compilation, which takes about a second.
_WORTH_TRITON = 2**22

# Triton unrolls the loop over the neighbourhood, two nested ones in the backward pass.
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
        size: number n of channels in a neighbourhood, its own included, at least 1.
        alpha: weight of the mean square, a finite number.
        beta: exponent, a finite number.
        k: additive constant, a finite number; the paper's 2 (torch's own default is 1). None of the
            three can be learned: a tensor is refused.
        groups: number of groups of channels, at least 1; a neighbourhood stays inside its group.

    Shape:
        Input and output: floating, ``(batch, channels, *)`` with one or more further dimensions and
        ``channels`` a multiple of ``groups``. The output has the input's dtype; squares are summed
        in float32 where that is wider.

    Raises:
        ValueError: an argument out of its range; an input of a wrong rank, dtype or channel count.

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
        _refuse_tensors(size=size, alpha=alpha, beta=beta, k=k, groups=groups)
        self.size, self.groups = check_integer("size", size, 1), check_integer("groups", groups, 1)
        self.alpha = check_number("alpha", alpha, FINITE)
        self.beta = check_number("beta", beta, FINITE)
        self.k = check_number("k", k, FINITE)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised activations, in the shape and dtype of ``x``."""
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k, self.groups)

    def extra_repr(self) -> str:
        """The arguments, as ``print(model)`` shows them."""
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}{groups}"


def _refuse_tensors(**numbers: object) -> None:
    for name, value in numbers.items():
        if isinstance(value, Tensor):
            raise ValueError(
                f"{name} is a {type_name(value)}; expected a plain number, since LocalResponseNorm "
                f"does not learn it: pass {name}.item(), or use torch.nn.LocalResponseNorm"
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
    # A module's attribute may have been replaced by a parameter, which would get no gradient.
    _refuse_tensors(alpha=alpha, beta=beta, k=k)
    if x.ndim < 3 or not x.is_floating_point():
        raise ValueError(
            f"the input of LocalResponseNorm is {x.dtype} of shape {tuple(x.shape)}; "
            "expected a floating tensor (batch, channels, ...) of at least 3 dimensions"
        )
    if x.shape[1] % groups:
        raise ValueError(
            f"the input of LocalResponseNorm has {x.shape[1]} channels, which {groups} groups do "
            "not divide"
        )
    settings = LrnSettings(size, alpha, beta, k, groups)
    y: Tensor = _LocalResponseNorm.apply(x, settings) if cpu.takes(x) else _output(x, settings)
    return y


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
    sums = _neighbour_sums(ratios, settings, (settings.size - 1) // 2)
    factor = 2 * settings.alpha * settings.beta / settings.size
    return _cast(direct - factor * wide * sums, x.dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # `to` would write the dtype into a trace, which could not be converted to half precision.
    return x if x.dtype == dtype else x.to(dtype)


def _scale(x: Tensor, settings: LrnSettings) -> Tensor:
    sums = _neighbour_sums(x.square(), settings, settings.size // 2)
    return settings.k + settings.alpha / settings.size * sums


def _power(scale: Tensor, exponent: float) -> Tensor:
    if exponent == -0.75:  # several times as fast as pow
        root = scale.rsqrt()
        return root * root.sqrt()
    return scale.pow(exponent)


def _neighbour_sums(x: Tensor, settings: LrnSettings, below: int) -> Tensor:
    """For each channel, the sum over ``size`` channels, of which the first ``below`` precede it."""
    channels = x.shape[1] // settings.groups
    grouped = x.reshape(x.shape[0], settings.groups, channels, *x.shape[2:])
    padded = F.pad(grouped, (0, 0) * (x.ndim - 2) + (below, settings.size - 1 - below))
    sums = padded.narrow(2, 0, channels)
    for start in range(1, settings.size):
        sums = sums + padded.narrow(2, start, channels)
    return sums.reshape(x.shape)
