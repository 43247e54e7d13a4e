"""Training of a network of which each process has a part: what ``network/parallel.py`` describes.

One autograd function does all: what it gives the other processes in the forward pass, its gradient
brings back. The order of a step is thus that of the network, and the same in all processes.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet_lib.devices import RunOptions
from alexnet_lib.network.model import AlexNet
from alexnet_lib.network.normalization import LocalResponseNorm
from alexnet_lib.network.parallel import TOWERS, Parallel, SplitLayer, split_layers
from alexnet_lib.training.distributed import Group
from alexnet_lib.training.muon import Muon


class Split:
    """The split of a network over the processes of a group; of none of its layers in one process.

    Each process keeps the whole weights, and trains its rows of them in place. The others are those
    of the last ``gather``. Gradients and the state of the optimiser are those of its rows alone.

    Args:
        model: the network, on its device.
        options: ``parallel`` is the way, and ``compile`` is refused for all but ``"data"``.
        group: the processes.

    Raises:
        ValueError: network, options or number of processes do not allow it.
    """

    def __init__(self, model: AlexNet, options: RunOptions, group: Group) -> None:
        self._group = group
        self._layers: dict[str, SplitLayer] = {}
        parallel = cast(Parallel, options.parallel)
        check_processes(options, group)
        if parallel == "data" or group.size == 1:
            return
        if options.compile:
            raise ValueError(
                f"compile is True, and parallel {parallel!r}, whose exchange between processes is "
                "not compiled; expected compile=False, or parallel='data'"
            )
        self._layers = split_layers(model, parallel, group.size)

    def __bool__(self) -> bool:
        return bool(self._layers)

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the parameters of which each process has its own rows."""
        return frozenset(f"{name}.{kind}" for name in self._layers for kind in ("weight", "bias"))

    def network(self, model: AlexNet) -> AlexNet:
        """The network that maps this process's images to their logits, with its rows of a model.

        All processes compute it together. Its weights are views of the model's.
        """
        if not self._layers:
            return model
        network = copy.copy(model)
        network._modules = dict(model._modules)
        widths: tuple[int, ...] | None = None
        split = False  # whether each process has other features than the others
        for part in ("features", "classifier"):
            layers = nn.Sequential()
            for name, module in getattr(model, part).named_children():
                layer = self._layers.get(f"{part}.{name}")
                own = module
                if layer is not None:
                    own = self._rows(module, layer)
                    if layer.inputs == "images":
                        layers.add_module(f"images of {name}", _AllImages(self._group))
                    elif layer.inputs == "features":
                        layers.add_module(f"features of {name}", _AllFeatures(self._group, widths))
                    # Those of convolutions are equal, and flattened later.
                    widths = layer.rows if part == "classifier" else None
                    split = True
                elif split and isinstance(module, LocalResponseNorm):
                    own = copy.copy(module)
                    own.groups //= self._group.size
                elif split and isinstance(module, nn.Dropout):
                    own = _OwnDropout(self._group, module, widths)
                layers.add_module(name, own)
            setattr(network, part, layers)
        assert widths is not None
        network.classifier.add_module("images of this process", _OwnImages(self._group, widths))
        return network

    def _rows(self, module: nn.Module, layer: SplitLayer) -> nn.Module:
        """The rows of a layer that this process has, as views of its weights."""
        own, count = copy.copy(module), layer.rows[self._group.rank]
        own._parameters = {
            name: whole if whole is None else nn.Parameter(self._own(layer.rows, whole.detach()))
            for name, whole in module._parameters.items()
        }
        for rows, whole in zip(own.parameters(), module.parameters(), strict=True):
            rows.requires_grad_(whole.requires_grad)
        if isinstance(own, nn.Conv2d):
            own.out_channels = count
            if layer.inputs == "own":
                own.in_channels //= self._group.size
                own.groups //= self._group.size
        elif isinstance(own, nn.Linear):
            own.out_features = count
        return own

    def join_filters(self, optimizer: Optimizer, network: AlexNet) -> None:
        """Lets Muon see all filters of a convolution that are one matrix, in each process."""
        if isinstance(optimizer, Muon):
            for name, layer in self._layers.items():
                filters = network.get_parameter(f"{name}.weight")
                if filters.ndim == 4 and layer.inputs != "own":
                    rows = layer.rows
                    maps = partial(self._gathered, rows), partial(self._own, rows)
                    optimizer.parts[filters] = maps

    @torch.no_grad()
    def gather(self, model: AlexNet) -> None:
        """Gives a model the rows that the other processes have trained; all are to call it."""
        for name, parameter in model.named_parameters():
            if rows := self._rows_of(name):
                parameter.copy_(self._gathered(rows, self._own(rows, parameter)))

    def whole_state(self, optimizer: Optimizer, network: AlexNet) -> dict[str, Any]:
        """The state of the optimiser of a network of rows, as it is for whole ones.

        All processes are to call it; it is whole in the first one alone.
        """

        def gathered(rows: Sequence[int], own: Tensor) -> Tensor:
            return self._gathered(rows, own, first_alone=True)

        return self._mapped(optimizer.state_dict(), optimizer, network, gathered)

    def own_state(
        self, state: Mapping[str, Any], optimizer: Optimizer, network: AlexNet
    ) -> dict[str, Any]:
        """What ``whole_state`` has returned in the first process, for the rows of this one."""
        return self._mapped(state, optimizer, network, self._own)

    def _mapped(
        self,
        state: Mapping[str, Any],
        optimizer: Optimizer,
        network: AlexNet,
        function: Callable[[Sequence[int], Tensor], Tensor],
    ) -> dict[str, Any]:
        """The state of an optimiser, its tensors of layers that are split mapped by a function."""
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        buffers = {}
        for number, values in state["state"].items():
            # A parameter outside of the network has no name.
            rows = self._rows_of(names.get(id(held[number]), ""))
            buffers[number] = {
                key: function(rows, value)
                if rows and isinstance(value, Tensor) and value.ndim
                else value
                for key, value in values.items()
            }
        return {**state, "state": buffers}

    def _rows_of(self, parameter: str) -> tuple[int, ...]:
        """How many rows of a parameter each process has; empty where all have all."""
        layer = self._layers.get(parameter.rpartition(".")[0])
        return () if layer is None else layer.rows

    def _own(self, rows: Sequence[int], whole: Tensor) -> Tensor:
        """The rows of this process, as a view."""
        own: Tensor = whole.split([*rows])[self._group.rank]
        return own

    def _gathered(self, rows: Sequence[int], own: Tensor, *, first_alone: bool = False) -> Tensor:
        """All rows, in the first process alone or in all; else none."""
        receives = self._group.is_first or not first_alone
        shapes = [(count * receives, *own.shape[1:]) for count in rows]
        sent = [own] * self._group.size
        if first_alone:
            sent[1:] = [own[:0]] * (self._group.size - 1)
        return torch.cat([*self._group.exchange(sent, shapes)])


def check_processes(options: RunOptions, group: Group) -> None:
    """Raises a ``ValueError`` if so many processes cannot divide a step as the options say."""
    if options.parallel == "towers" and group.size != TOWERS:
        raise ValueError(
            f"parallel is 'towers', and the number of processes {group.size}; expected "
            f"{TOWERS} processes, one for each tower"
        )


class _Exchange(torch.autograd.Function):
    """Gives a tensor to each process, and takes one of each; gradients go the same ways back."""

    @staticmethod
    def forward(
        ctx: Any, group: Group, shapes: Sequence[Sequence[int]], *given: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.shapes = group, [tensor.shape for tensor in given]
        return tuple(group.exchange(given, shapes))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.group.exchange(gradients, ctx.shapes))


class _Exchanging(nn.Module):
    """A layer between two of which one or both are split."""

    def __init__(self, group: Group, widths: Sequence[int] | None = None) -> None:
        super().__init__()
        self._group, self._widths = group, widths

    def _exchanged(self, given: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        return [*_Exchange.apply(self._group, shapes, *given)]

    def _widths_of(self, x: Tensor) -> Sequence[int]:
        """How many features each process has, given those of this one."""
        return [x.shape[1]] * self._group.size if self._widths is None else self._widths


class _AllImages(_Exchanging):
    """Of the images of this process, those of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        place = self._group.place
        own = x[: place.images]  # without the one that stands for none
        shapes = [(count, *x.shape[1:]) for count in place.counts]
        return torch.cat(self._exchanged([own] * self._group.size, shapes))


class _AllFeatures(_Exchanging):
    """Of the features of this process, all."""

    def forward(self, x: Tensor) -> Tensor:
        shapes = [(len(x), width, *x.shape[2:]) for width in self._widths_of(x)]
        return torch.cat(self._exchanged([x] * self._group.size, shapes), 1)


class _OwnImages(_Exchanging):
    """Of the logits of this process for the whole batch, all logits for its images."""

    def forward(self, x: Tensor) -> Tensor:
        place = self._group.place
        shapes = [(place.images, width) for width in self._widths_of(x)]
        own = torch.cat(self._exchanged(x.split([*place.counts]), shapes), 1)
        return own if place.images else F.pad(own, (0, 0, 0, 1))  # for the one that stands for none


class _OwnDropout(_Exchanging):
    """Dropout of the features of this process, by the mask of all."""

    def __init__(self, group: Group, dropout: nn.Dropout, widths: Sequence[int] | None) -> None:
        super().__init__(group, widths)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        widths = [*self._widths_of(x)]
        factors = self.dropout(x.new_ones((len(x), sum(widths))))
        own: Tensor = factors.split(widths, 1)[self._group.rank]
        return x * own
