"""Muon for the filters of convolutions, SGD for everything else, as one optimiser."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from alexnet_lib.devices import multiplies_bfloat16

# Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: with this odd polynomial, five
# steps bring all singular values from 0.001 to 1 near 1 (to between 0.7 and 1.2).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_SMALLEST_NORM = 1e-7

_Map = Callable[[Tensor], Tensor]


class Muon(SGD):
    """SGD, except that the steps of convolutions' filters are orthogonalised (Jordan et al. 2024).

    For each group of a convolution, the filters are the rows of a matrix of
    ``in_channels / groups x height x width`` columns. The singular values of its momentum, which
    differ by orders of magnitude, are replaced by about 1, so that all directions are learned at
    the same speed. With more rows than columns, the step is multiplied by the root of their ratio.

    Args:
        params: groups of parameters. One with ``"filter_groups"`` holds weights ``(filters,
            in_channels / groups, height, width)`` of convolutions with that many groups; their
            ``"weight_decay"`` is apart from the momentum, as AdamW's: a step takes the fraction
            ``lr x weight_decay`` of them. The others are as in ``torch.optim.SGD``.
        settings: the arguments of ``torch.optim.SGD``.
    """

    def __init__(self, params: Iterable[dict[str, Any]], **settings: Any) -> None:
        super().__init__(params, **settings)
        for group in self.param_groups:
            if "filter_groups" in group:
                # The momentum is in the step that is handed to SGD, which adds the decay to it.
                group |= {"momentum": 0.0, "nesterov": False}
        self._momentum, self._nesterov = self.defaults["momentum"], self.defaults["nesterov"]
        # Of filters that are some of the rows of a matrix: to all rows, and back to these.
        self.parts: dict[nn.Parameter, tuple[_Map, _Map]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; it replaces the gradients of the filters by their orthogonalised momentum."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if groups := group.get("filter_groups"):
                for filters in group["params"]:
                    if filters.grad is not None:
                        self._orthogonalise(filters, groups)
        super().step()
        return loss

    def _orthogonalise(self, filters: nn.Parameter, groups: int) -> None:
        gradient, state = filters.grad, self.state[filters]
        assert gradient is not None
        former = state.setdefault("momentum_buffer", torch.zeros_like(filters))
        momentum = self._momentum * former + gradient
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:  # SGD leaves out such a step
            momentum = torch.where(found_inf > 0, former, momentum)
        former.copy_(momentum)
        if self._nesterov:
            momentum = gradient + self._momentum * momentum
        whole, own = self.parts.get(filters, (_unchanged, _unchanged))
        momentum = whole(momentum)
        matrices = momentum.reshape(groups, len(momentum) // groups, -1)
        rows, columns = matrices.shape[1:]
        step = orthogonalised(matrices) * max(1.0, rows / columns) ** 0.5
        gradient.copy_(own(step.view(momentum.shape)))


def _unchanged(momentum: Tensor) -> Tensor:
    return momentum


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices ``(batch, rows, columns)`` with their singular values replaced by about 1.

    Newton-Schulz iterations, in bfloat16 where the hardware multiplies it. Matrices of zeros stay.
    """
    fast = multiplies_bfloat16(matrices.device)
    x = matrices.to(torch.bfloat16) if fast else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + _SMALLEST_NORM)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        product = x @ x.mT
        # Three kernels where operators would start eight; on a GPU, starting them takes longest.
        polynomial = torch.baddbmm(product, product, product, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    result: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return result
