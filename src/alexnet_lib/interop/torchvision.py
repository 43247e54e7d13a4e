"""torchvision's AlexNet: its weights in this library's network."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.statistics import IMAGENET_STATS
from alexnet_lib.network.model import AlexNet

# torchvision's `AlexNet_Weights.IMAGENET1K_V1`: its file, and the resize in its `transforms`.
_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_RESIZE = 256

# The layers of `torchvision.models.alexnet` that have weights, by their indices in its containers.
_INDICES = {"features": (0, 3, 6, 8, 10), "classifier": (1, 4, 6)}
_LAYERS = [f"{part}.{index}" for part, indices in _INDICES.items() for index in indices]
_NAMES = [f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")]


def from_torchvision(
    weights: str | os.PathLike[str] | Mapping[str, Tensor],
    num_classes: int | None = None,
    *,
    image_size: int | None = None,
    dropout: float = 0.5,
    seed: int | None = None,
) -> AlexNet:
    """The ``one_weird_trick`` network with the weights of ``torchvision.models.alexnet``.

    Args:
        weights: torchvision's state dict, or a file of it, which is read with
            ``weights_only=True``.
        num_classes: number of classes; where it differs from that of the weights, fc8 is
            initialised as with ``initialization="kaiming"``. None keeps the weights' number.
        image_size: as in ``AlexNet``.
        dropout: as in ``AlexNet``.
        seed: of a new fc8, as in ``AlexNet``.

    Returns:
        The model. Its ``preprocess`` is the one that torchvision's ImageNet weights were evaluated
        with.

    Raises:
        FileNotFoundError: there is no such file; the message says where to get it.
        ValueError: the weights are not a state dict of torchvision's AlexNet.
        TypeError: ``weights`` is neither a path nor a state dict.

    Example:
        >>> from torchvision.models import alexnet
        >>> from alexnet_lib import from_torchvision
        >>> model = from_torchvision(alexnet(num_classes=10).state_dict(), num_classes=2)
        >>> model.num_classes, model.architecture.name
        (2, 'one_weird_trick')
    """
    state = _checked(_read(weights) if isinstance(weights, str | os.PathLike) else weights)
    known = state["classifier.6.weight"].shape[0]
    num_classes = known if num_classes is None else num_classes
    keeps_last = num_classes == known
    # Only a new fc8 needs initial weights.
    with torch.device("meta") if keeps_last else nullcontext():
        model = AlexNet(
            num_classes,
            architecture="one_weird_trick",
            image_size=image_size,
            dropout=dropout,
            seed=seed,
        )
    if keeps_last:
        model.to_empty(device=torch.get_default_device())
    own = model.state_dict()
    # Both list their layers from the input to the output.
    renamed = dict(zip(own, state.values(), strict=True))
    if not keeps_last:
        renamed |= {name: own[name] for name in own if name.startswith("classifier.fc8.")}
    model.load_state_dict(renamed)
    resize, stats = max(_RESIZE, model.image_size), IMAGENET_STATS
    model.preprocess = Preprocess(resize, model.image_size, mean=stats.mean, std=stats.std)
    return model


def _read(path: str | os.PathLike[str]) -> Any:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"weights is {str(file)!r}, which is not a file; torchvision's ImageNet weights are at "
            f"{_URL}"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise ValueError(f"weights is {str(file)!r}, which torch cannot read") from error


def _checked(state: Any) -> dict[str, Tensor]:
    """The tensors of a state dict of torchvision's AlexNet, in the order of the layers."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"weights is a {type(state).__module__}.{type(state).__qualname__}; expected a file or "
            "a state dict: pass model.state_dict(), or AlexNet_Weights.DEFAULT.get_state_dict()"
        )
    problem = "weights is not a state dict of torchvision's AlexNet"
    with torch.device("meta"):
        own = AlexNet(architecture="one_weird_trick").state_dict()
    for name, tensor in zip(_NAMES, own.values(), strict=True):
        shape = tuple(getattr(state.get(name), "shape", ())) or None
        expected = tuple(tensor.shape)
        if name.startswith("classifier.6.") and shape is not None:
            expected = (shape[0], *expected[1:])  # any number of classes
        if shape != expected:
            raise ValueError(f"{problem}: {name} has shape {shape}, expected {expected}")
    if len(state) != len(_NAMES):
        raise ValueError(f"{problem}: it has {len(state)} tensors, expected {len(_NAMES)}")
    return {name: state[name] for name in _NAMES}
