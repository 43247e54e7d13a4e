"""torchvision's AlexNet: its weights in this library's network."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.statistics import IMAGENET_STATS
from alexnet_lib.network.architecture import DEFAULT_CLASSES
from alexnet_lib.network.model import AlexNet

# torchvision's `AlexNet_Weights.IMAGENET1K_V1`: its file, and the resize in its `transforms`.
_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_RESIZE = 256

# The tensors of `torchvision.models.alexnet`, by their layers' indices in its containers.
_NAMES = [
    f"{container}.{index}.{kind}"
    for container, indices in {"features": (0, 3, 6, 8, 10), "classifier": (1, 4, 6)}.items()
    for index in indices
    for kind in ("weight", "bias")
]


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
        weights: torchvision's state dict, or a file of it (read with ``weights_only=True``).
        num_classes: number of classes; if it differs from that of the weights, fc8 is initialised
            as with ``initialization="kaiming"``. None keeps the number of the weights.
        image_size: as in ``AlexNet``.
        dropout: as in ``AlexNet``.
        seed: for a new fc8, as in ``AlexNet``.

    Returns:
        The model, with the ``preprocess`` that torchvision evaluates its ImageNet weights with.

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
    state = _read(weights) if isinstance(weights, str | os.PathLike) else weights
    if not isinstance(state, Mapping):
        raise TypeError(
            f"weights is a {type(state).__module__}.{type(state).__qualname__}; expected a file or "
            "a state dict: pass model.state_dict(), or AlexNet_Weights.DEFAULT.get_state_dict()"
        )
    build: Callable[..., AlexNet] = partial(
        AlexNet, architecture="one_weird_trick", image_size=image_size, dropout=dropout, seed=seed
    )
    shapes = {name: tuple(x.shape) for name, x in state.items() if isinstance(x, Tensor)}
    known, *_ = shapes.get("classifier.6.weight") or (DEFAULT_CLASSES,)
    with torch.device("meta"):
        model = build(known)
    problem = "weights is not a state dict of torchvision's AlexNet"
    for name, tensor in zip(_NAMES, model.state_dict().values(), strict=True):
        if shapes.get(name) != tensor.shape:
            shape, expected = shapes.get(name), tuple(tensor.shape)
            raise ValueError(f"{problem}: {name} has shape {shape}, expected {expected}")
    if len(state) != len(_NAMES):
        raise ValueError(f"{problem}: it has {len(state)} tensors, expected {len(_NAMES)}")
    keeps_last = num_classes in {None, known}
    # Only a new fc8 needs initial weights.
    if keeps_last:
        model.to_empty(device=torch.get_default_device())
    else:
        model = build(num_classes)
    # Both list their layers from the input to the output.
    names = zip(model.state_dict(), _NAMES, strict=True)
    kept = {own: state[name] for own, name in names if keeps_last or "fc8" not in own}
    model.load_state_dict(kept, strict=False)
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
