"""torchvision's AlexNet: its weights in this library's network."""

import os
from collections.abc import Mapping
from typing import Any

from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.statistics import IMAGENET_STATS
from alexnet_lib.interop.state_dicts import load_layers, read_state_dict
from alexnet_lib.network.architecture import IMAGE_CHANNELS, ONE_WEIRD_TRICK
from alexnet_lib.network.model import AlexNet

# torchvision's `AlexNet_Weights.IMAGENET1K_V1`: its file, and the resize in its `transforms`.
_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_RESIZE = 256


def from_torchvision(
    weights: str | os.PathLike[str] | Mapping[str, Any],
    num_classes: int | None = None,
    *,
    image_size: int | None = None,
    dropout: float = 0.5,
    seed: int | None = None,
) -> AlexNet:
    """The ``one_weird_trick`` network with the weights of ``torchvision.models.alexnet``.

    For weights of other networks, of grey images, or without torchvision's preprocessing, there is
    ``from_state_dict``.

    Args:
        weights: torchvision's state dict, or a file or a training checkpoint of it, as in
            ``from_state_dict``. They are for colour images.
        num_classes: number of classes; if it differs from that of the weights, fc8 is initialised
            as with ``initialization="kaiming"``. None keeps the number of the weights.
        image_size: as in ``AlexNet``.
        dropout: as in ``AlexNet``.
        seed: for a new fc8, as in ``AlexNet``.

    Returns:
        The model, with the ``preprocess`` that torchvision evaluates its ImageNet weights with.

    Raises:
        FileNotFoundError: there is no such file; the message says where to get it.
        ValueError: the file cannot be read, or the weights are not those of torchvision's AlexNet.
        TypeError: ``weights`` is neither a path nor a state dict.

    Example:
        >>> from torchvision.models import alexnet
        >>> from alexnet_lib import from_torchvision
        >>> model = from_torchvision(alexnet(num_classes=10).state_dict(), num_classes=2)
        >>> model.num_classes, model.architecture.name
        (2, 'one_weird_trick')
    """
    state = read_state_dict(
        weights,
        missing=f"; torchvision's ImageNet weights are at {_URL}",
        hint="pass model.state_dict(), or AlexNet_Weights.DEFAULT.get_state_dict()",
    )
    model = load_layers(
        state,
        num_classes,
        architecture=ONE_WEIRD_TRICK,
        in_channels=IMAGE_CHANNELS,
        image_size=image_size,
        dropout=dropout,
        seed=seed,
    )
    resize, stats = max(_RESIZE, model.image_size), IMAGENET_STATS
    model.preprocess = Preprocess(resize, model.image_size, mean=stats.mean, std=stats.std)
    return model
