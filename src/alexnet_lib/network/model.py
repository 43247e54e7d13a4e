"""AlexNet: an architecture's table as a torch module, and its four initialisations.

The numbers come from the tables in ``architecture.py``. Sources
of the initialisations: the paper, section 5; the released code's layer definitions; He et al.,
"Delving Deep into Rectifiers", arXiv 1502.01852, 2015.
"""

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import skip_init

from alexnet_lib.checks import PROBABILITY, check_choice, check_number
from alexnet_lib.network import architecture as tables
from alexnet_lib.network.architecture import (
    DEFAULT_CLASSES,
    Architecture,
    LayerInfo,
    layer_infos,
    resolve_architecture,
)
from alexnet_lib.network.normalization import LocalResponseNorm

if TYPE_CHECKING:
    from alexnet_lib.data.preprocess import Preprocess

Initialization = Literal["kaiming", "released_code", "paper", "torch"]
DropoutScaling = Literal["training", "test"]

# The paper's one standard deviation for every layer (section 5).
PAPER_STD = 0.01
# "kaiming" starts the last layer small, so that training begins at the loss of a uniform guess.
KAIMING_LAST_STD = 0.01


class AlexNet(nn.Module):
    """AlexNet as the paper, as teaching code, or as torchvision has it.

    Args:
        num_classes: number of classes, at least 1.
        architecture: ``"paper"`` (two towers, as groups of channels), ``"single_tower"`` (without
            groups, what most teaching code builds), ``"one_weird_trick"``
            (``torchvision.models.alexnet``), or an ``Architecture``.
        image_size: side of the square images, in pixels; None is the architecture's own (227, 227,
            224). ``one_weird_trick`` takes any size of at least 63 at call time.
        dropout: probability of dropping an activation in front of fc7 and fc8 (``paper``) or of
            fc6 and fc7 (the other two, as in their originals), from 0 to 1; the paper's 0.5.
        dropout_scaling: when activations are scaled to compensate for dropped ones.
            ``"training"``: what is kept is multiplied by 1 / (1 - dropout) in training, as by
            ``nn.Dropout``. ``"test"``: all are multiplied by 1 - dropout outside training, as in
            the paper (section 4.2) and the released code; the next layers get half as much, and
            the paper's initial weights and learning rate are for that.
        initialization: ``"kaiming"`` (He et al. 2015: normal with variance 2 / fan-in, zero
            biases, last layer N(0, 0.01)), which learns with ordinary normalised inputs;
            ``"released_code"`` (N(0, 0.01), but N(0, 0.03) in conv3 to conv5; biases 1 in conv2,
            conv4, conv5, fc6, fc7); ``"paper"`` (N(0, 0.01) everywhere, the same biases); or
            ``"torch"`` (what ``nn.Conv2d`` and ``nn.Linear`` do).
        seed: makes the weights repeatable without torch's global generator; None draws
            from the global generator.

    The layers have the usual names: ``features.conv1``, ``relu1``, ``norm1``, ``pool1``, ...,
    ``pool5``; ``avgpool`` (``one_weird_trick`` only, else None); ``flatten``; ``classifier.fc6``,
    ``relu6``, ``drop6``, ..., ``fc8``. No layer changes its input in place.

    Attributes:
        architecture: the ``Architecture``, a table of layers.
        image_size: side of the images it was built for, in pixels.
        classes: names of the classes, in the order of the outputs, or None.
        preprocess: the ``Preprocess`` that its images need, or None. ``fit`` and
            ``load_checkpoint`` set both, and ``predict`` uses them.

    Raises:
        ValueError: an argument is unknown or out of its range; the image is too small.

    Example:
        >>> import torch
        >>> from alexnet_lib import AlexNet
        >>> model = AlexNet(num_classes=10, image_size=67, seed=0)
        >>> model(torch.zeros(2, 3, 67, 67)).shape
        torch.Size([2, 10])
        >>> model.features.conv2
        Conv2d(96, 256, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=2)
    """

    avgpool: nn.Module | None
    flatten: nn.Module
    classifier: nn.Sequential

    def __init__(
        self,
        num_classes: int = DEFAULT_CLASSES,
        *,
        architecture: str | Architecture = "paper",
        image_size: int | None = None,
        dropout: float = 0.5,
        dropout_scaling: DropoutScaling = "training",
        initialization: Initialization = "kaiming",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_number("dropout", dropout, PROBABILITY)
        check_choice("dropout_scaling", dropout_scaling, get_args(DropoutScaling))
        check_choice("initialization", initialization, get_args(Initialization))
        self.architecture = resolve_architecture(architecture)
        self.image_size = self.architecture.image_size if image_size is None else image_size
        self.dropout, self.dropout_scaling = dropout, dropout_scaling
        self.classes: tuple[str, ...] | None = None
        self.preprocess: Preprocess | None = None
        self.avgpool = None
        part = self.features = nn.Sequential()
        generator = None
        for info in layer_infos(self.architecture, self.image_size, num_classes):
            row, module = info.layer, _module(info, dropout, dropout_scaling)
            if isinstance(row, tables.AdaptiveAvgPool):
                self.avgpool = module
            elif isinstance(row, tables.Flatten):
                self.flatten = module
                part = self.classifier = nn.Sequential()
            else:
                part.add_module(row.name, module)
            if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
                assert isinstance(row, tables.Conv | tables.Linear)
                if seed is not None and generator is None:
                    generator = torch.Generator(module.weight.device).manual_seed(seed)
                initialize(row, module, initialization, generator)

    @property
    def num_classes(self) -> int:
        """The number of outputs, read from the last layer, which may have been replaced."""
        return int(self.classifier[-1].out_features)  # type: ignore[arg-type]

    def freeze(self, *layers: str) -> None:
        """Freezes the weights and biases of these layers, for any later training.

        Args:
            layers: names as in the architecture's table, for example ``"conv1", "fc6"``.

        Raises:
            ValueError: there is no such layer.

        Example:
            >>> from alexnet_lib import AlexNet
            >>> model = AlexNet(10, image_size=67)
            >>> model.freeze("conv1", "conv2")
            >>> [name for name, p in model.named_parameters() if not p.requires_grad][:2]
            ['features.conv1.weight', 'features.conv1.bias']
        """
        modules = {name.rpartition(".")[2]: module for name, module in self.named_modules()}
        known = [row.name for row in self.architecture.layers]
        if unknown := [name for name in layers if name not in known]:
            raise ValueError(f"layers has {unknown}; expected names among {', '.join(known)}")
        for name in layers:
            modules[name].requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of a batch of images.

        Args:
            images: ``(batch, 3, image_size, image_size)``, of the parameters' floating dtype
                (under autocast, any), normalised as in training.

        Returns:
            ``(batch, num_classes)``, before the softmax.

        Raises:
            ValueError: a wrong rank, channel count, size or dtype.
        """
        any_size = self.architecture.takes_any_size
        least = self.architecture.smallest_image_size if any_size else self.image_size
        weight: Any = self.features[0].weight
        x = self.features(_checked_images(images, weight, least, any_size))
        if self.avgpool is not None:
            x = self.avgpool(x)
        logits: Tensor = self.classifier(self.flatten(x))
        return logits


# Wrapped, so that symbolic tracing keeps the check as one call; a condition on shapes written in
# `forward` would stop it.
@torch.fx.wrap
def _checked_images(images: Tensor, weight: Tensor, size: int, larger: bool) -> Tensor:
    expected = f"(batch, 3, {size}, {size})" + (" or larger" if larger else "")
    if not isinstance(images, Tensor):
        raise ValueError(
            f"images is a {type(images).__name__}; expected a floating tensor {expected}"
        )
    shape = tuple(images.shape)
    if images.ndim == 3:
        raise ValueError(
            f"images has shape {shape}, a single image without its batch dimension; "
            f"expected {expected}: pass images[None]"
        )
    if images.ndim != 4 or shape[1] != tables.IMAGE_CHANNELS:
        hint = ": pass images.permute(0, 3, 1, 2)" if images.ndim == 4 and shape[3] == 3 else ""
        raise ValueError(f"images has shape {shape}; expected {expected}{hint}")
    if min(shape[2:]) < size or (max(shape[2:]) > size and not larger):
        raise ValueError(
            f"images has shape {shape}; expected {expected}: resize the images, "
            "or build the model with AlexNet(image_size=...)"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images has dtype {images.dtype}; expected {weight.dtype}, normalised as in training "
            "(Preprocess does it)"
        )
    if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise ValueError(
            f"images has dtype {images.dtype}; expected {weight.dtype}, as the parameters have: "
            f"pass images.to({weight.dtype}), or convert the model"
        )
    return images


class PaperDropout(nn.Dropout):
    """The paper's dropout: no scaling in training, multiplication by 1 - p in evaluation.

    That is ``nn.Dropout``, which scales in training, times 1 - p in both modes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The activations as the next layer gets them."""
        return super().forward(input) * (1 - self.p)


def _module(info: LayerInfo, dropout: float, dropout_scaling: DropoutScaling) -> nn.Module:
    """The torch module of one row of the table, its weights not yet initialised."""
    device = torch.get_default_device()
    channels = info.input_shape[0]
    module: nn.Module
    match info.layer:
        case tables.Conv(_, out, kernel, stride, padding, groups):
            shape = (channels, out, kernel, stride, padding)
            module = skip_init(nn.Conv2d, *shape, groups=groups, device=device)
        case tables.Linear():
            module = skip_init(nn.Linear, channels, info.output_shape[0], device=device)
        case tables.ReLU():
            module = nn.ReLU()
        case tables.LRN(_, size, alpha, beta, k, groups):
            module = LocalResponseNorm(size, alpha, beta, k, groups=groups)
        case tables.MaxPool(_, kernel, stride):
            module = nn.MaxPool2d(kernel, stride)
        case tables.AdaptiveAvgPool(_, output_size):
            module = nn.AdaptiveAvgPool2d(output_size)
        case tables.Flatten():
            module = nn.Flatten()
        case tables.Dropout():
            module = PaperDropout(dropout) if dropout_scaling == "test" else nn.Dropout(dropout)
    return module


@torch.no_grad()
def initialize(
    row: tables.Conv | tables.Linear,
    module: nn.Conv2d | nn.Linear,
    initialization: Initialization,
    generator: torch.Generator | None,
) -> None:
    """Sets the weights and biases of the module of a row of the table."""
    weight, bias = module.weight, module.bias
    assert bias is not None
    last = isinstance(row, tables.Linear) and row.features is None
    match initialization:
        case "kaiming" if last:
            nn.init.normal_(weight, std=KAIMING_LAST_STD, generator=generator)
            nn.init.zeros_(bias)
        case "kaiming":
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(bias)
        case "released_code":
            nn.init.normal_(weight, std=row.code_std, generator=generator)
            nn.init.constant_(bias, row.initial_bias)
        case "paper":
            nn.init.normal_(weight, std=PAPER_STD, generator=generator)
            nn.init.constant_(bias, row.initial_bias)
        case "torch":
            # As in nn.Conv2d.reset_parameters, which takes no generator.
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(bias, -bound, bound, generator=generator)
