"""Local response normalisation: torch.nn's interface, in every floating dtype."""

import torch
import torch.fx
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LocalResponseNorm(nn.Module):
    r"""Divides each activation by a power of its neighbour channels' energy (paper, section 3.3).

    .. math:: b_c = a_c \Big/ \Big(k + \frac{\alpha}{n}
              \sum_{j = \max(0,\, c - \lfloor n/2 \rfloor)}
                  ^{\min(C - 1,\, c + \lfloor (n-1)/2 \rfloor)} a_j^2 \Big)^{\beta}

    **The two readings of alpha.** The paper's formula multiplies the sum by alpha = 1e-4. The code
    that its authors released divides alpha by the window size n first (``layer.py``,
    ``NormLayerParser``), and so do ``torch.nn.LocalResponseNorm``, Caffe and this module: alpha
    times the *mean* square. To follow the paper's text to the letter, pass ``alpha=5e-4`` with
    ``size=5``.

    **Groups.** The released code keeps its two GPUs' channels apart, so the window never reaches
    from channel 47 of conv1 to channel 48: ``groups=2``. torch has no such argument.

    Args:
        size: number n of neighbouring channels in the window, at least 1.
        alpha: weight of the mean square, before it is divided by ``size``.
        beta: exponent.
        k: additive constant; the paper's 2 (torch's own default is 1).
        groups: number of groups of channels, at least 1; the window stays inside each.

    Shape:
        Input and output: floating, ``(batch, channels, *)`` with any number of further dimensions
        and ``channels`` a multiple of ``groups``. The output has the input's dtype; squares are
        summed in float32 where that is the wider.

    Raises:
        ValueError: an argument out of its range; an input of the wrong rank, dtype or channel
            count.

    Example:
        >>> import torch
        >>> from alexnet_lib import LocalResponseNorm
        >>> norm = LocalResponseNorm(groups=2)
        >>> norm(torch.ones(1, 96, 2, 2, dtype=torch.bfloat16)).dtype
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
        for argument, value in (("size", size), ("groups", groups)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument} is {value!r}; expected an integer of at least 1")
        self.size, self.alpha, self.beta, self.k, self.groups = size, alpha, beta, k, groups

    def forward(self, x: Tensor) -> Tensor:
        """The normalised activations, in the shape and dtype of ``x``."""
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k, self.groups)

    def extra_repr(self) -> str:
        """The arguments, as ``print(model)`` shows them."""
        text = f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
        return text + (f", groups={self.groups}" if self.groups > 1 else "")


# Wrapped, so that symbolic tracing keeps the call whole instead of stumbling over its checks.
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
    if x.ndim < 3 or not x.is_floating_point():
        raise ValueError(
            f"the input of LocalResponseNorm is {x.dtype} of shape {tuple(x.shape)}; "
            "expected a floating tensor (batch, channels, ...) of at least 3 dimensions"
        )
    channels = x.shape[1]
    if channels % groups:
        raise ValueError(
            f"the input of LocalResponseNorm has {channels} channels, "
            f"which {groups} groups do not divide"
        )
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    squares = torch.unflatten(wide.square(), 1, (groups, channels // groups))
    # An even window reaches one channel further down than up, as torch's does.
    padded = F.pad(squares, (0, 0) * (x.ndim - 2) + (size // 2, (size - 1) // 2))
    window = padded.narrow(2, 0, channels // groups)
    for start in range(1, size):
        window = window + padded.narrow(2, start, channels // groups)
    scale = (k + alpha / size * window.flatten(1, 2)).pow(-beta)
    return (wide * scale).to(x.dtype)
