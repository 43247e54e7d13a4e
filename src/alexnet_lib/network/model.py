"""AlexNet: an architecture's table as a torch module, and its four initialisations.

Sources of the initialisations: the paper, section 5; the released code's layer definitions; He et
al., "Delving Deep into Rectifiers", arXiv 1502.01852, 2015.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import skip_init

from alexnet_lib.checks import (
    MOST_SIDE,
    PROBABILITY,
    as_integer,
    check_choice,
    check_integer,
    check_number,
    shown,
    type_name,
)
from alexnet_lib.devices import memory_explained
from alexnet_lib.network import architecture as tables
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
    """AlexNet of the paper, of teaching code, or of torchvision.

    Args:
        num_classes: number of classes, at least 1.
        architecture: ``"paper"`` (two towers, as groups of channels), ``"single_tower"`` (without
            groups, as in most teaching code), ``"one_weird_trick"``
            (``torchvision.models.alexnet``), or an ``Architecture``.
        image_size: side of the square images, in pixels; None is the architecture's own (227, 227,
            224). ``one_weird_trick`` takes images of any size from 63 on, whatever is given here.
        dropout: probability of dropping an activation before fc7 and fc8 (``paper``) or before fc6
            and fc7 (the other two, as in their originals), from 0 to 1; the paper's 0.5.
        dropout_scaling: ``"training"``: in training, kept activations are multiplied by
            1 / (1 - dropout), as by ``nn.Dropout``. ``"test"``: outside training, all are
            multiplied by 1 - dropout, as in the paper (section 4.2) and the released code; the next
            layers get half as much, which the paper's initial weights and learning rate are for.
            Its state dict holds 1 - dropout for each dropout (``keep_probability``), so that
            ``load_state_dict`` of a network that scales in another way refuses the weights.
        initialization: ``"kaiming"`` (He et al. 2015: normal with variance 2 / fan-in, zero
            biases, last layer N(0, 0.01)), which learns with ordinary normalised inputs;
            ``"released_code"`` (N(0, 0.01), but N(0, 0.03) in conv3 to conv5; biases 1 in conv2,
            conv4, conv5, fc6, fc7); ``"paper"`` (N(0, 0.01) everywhere, the same biases); or
            ``"torch"`` (the defaults of ``nn.Conv2d`` and ``nn.Linear``).
        in_channels: channels of the images: 3 for colour, 1 for grey, or another number of at least
            1 that the groups of conv1 divide.
        seed: for the weights, without torch's global generator; None draws from that. Of 64 bits.

    The layers have the usual names: ``features.conv1``, ``relu1``, ``norm1``, ``pool1``, ...,
    ``pool5``; ``avgpool`` (``one_weird_trick`` only, else None); ``flatten``; ``classifier.fc6``,
    ``relu6``, ``drop6``, ..., ``fc8``. No layer changes its input in place. Layers may be replaced.

    Attributes:
        architecture: the ``Architecture``, a table of layers.
        image_size: side of the images that it takes, in pixels; set it if you replace layers so
            that images of another size fit.
        classes: names of the classes, in the order of the outputs, or None.
        preprocess: the ``Preprocess`` for its images, or None. ``fit`` and ``load_checkpoint`` set
            both, and ``predict`` uses them.
        metrics: what ``save_checkpoint`` was given as ``metrics``, set by ``load_checkpoint``; or
            None.

    Raises:
        ValueError: an argument is unknown or out of its range; the image is too small.
        MemoryError: the weights need more memory than there is.

    Example:
        >>> from alexnet_lib import AlexNet
        >>> model = AlexNet(num_classes=10, image_size=67, seed=0)
        >>> model.features.conv2
        Conv2d(96, 256, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=2)
    """

    avgpool: nn.Module | None
    flatten: nn.Module
    classifier: nn.Sequential

    def __init__(
        self,
        num_classes: int = tables.DEFAULT_CLASSES,
        *,
        architecture: str | tables.Architecture = "paper",
        image_size: int | None = None,
        dropout: float = 0.5,
        dropout_scaling: DropoutScaling = "training",
        initialization: Initialization = "kaiming",
        in_channels: int = tables.IMAGE_CHANNELS,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        dropout = check_number("dropout", dropout, PROBABILITY)
        check_choice("dropout_scaling", dropout_scaling, get_args(DropoutScaling))
        check_choice("initialization", initialization, get_args(Initialization))
        self.architecture = tables.resolve_architecture(architecture)
        infos = tables.layer_infos(
            self.architecture, image_size, num_classes, in_channels=in_channels
        )
        self.image_size = infos[0].input_shape[1]
        self.dropout, self.dropout_scaling = dropout, dropout_scaling
        self.classes: tuple[str, ...] | None = None
        self.preprocess: Preprocess | None = None
        self.metrics: dict[str, Any] | None = None
        device = torch.get_default_device()
        generator = None
        seed = check_integer("seed", seed, -(2**63), 2**64 - 1, optional=True)
        if seed is not None and device.type != "meta":
            generator = torch.Generator(device).manual_seed(seed)
        part = self.features = nn.Sequential()
        self.avgpool = None
        for info in infos:
            name = info.layer.name
            with memory_explained("the weights of the network", "lower image_size or num_classes"):
                module = _module(info, dropout, dropout_scaling)
            match info.layer:
                case tables.AdaptiveAvgPool():
                    self.avgpool = module
                case tables.Flatten():
                    self.flatten = module
                    part = self.classifier = nn.Sequential()
                case layer:
                    if hasattr(part, name):
                        raise ValueError(
                            f"architecture has a layer {name!r}; expected another name: torch's "
                            "modules have an attribute of this one"
                        )
                    part.add_module(name, module)
                    if isinstance(layer, tables.Conv | tables.Linear):
                        _initialize(layer, module, initialization, generator)

    @property
    def num_classes(self) -> int:
        """The number of outputs, read from the last layer, which may have been replaced.

        A ``ValueError`` if that does not say it in an attribute ``out_features``.
        """
        return self._declared("classifier", "out_features", last=True)

    @property
    def in_channels(self) -> int:
        """The number of channels of the images, read from the first layer like ``num_classes``."""
        return self._declared("features", "in_channels", last=False)

    def _declared(self, part: str, attribute: str, *, last: bool) -> int:
        if size := _declared_size(getattr(self, part), attribute, last):
            return size
        raise ValueError(
            f"model.{part} does not say its {attribute}: its {'last' if last else 'first'} layer "
            f"with weights, if it has one, is without this attribute; give it one"
        )

    def freeze(self, *layers: str) -> None:
        """Excludes the weights and biases of these layers from training.

        Args:
            layers: names as in the architecture's table, for example ``"conv1", "fc6"``.

        Raises:
            ValueError: there is no such layer, or no longer.

        Example:
            >>> from alexnet_lib import AlexNet
            >>> model = AlexNet(10, image_size=67)
            >>> model.freeze("conv1", "conv2")
            >>> [name for name, p in model.named_parameters() if not p.requires_grad][:2]
            ['features.conv1.weight', 'features.conv1.bias']
        """
        known = [row.name for row in self.architecture.layers]
        unknown = [name for name in layers if not isinstance(name, str) or name not in known]
        if unknown:
            raise ValueError(
                f"layers has {shown(unknown)}; expected names among {', '.join(known)}"
            )
        parts = (self.features, self.classifier, self)
        for name in layers:
            # Of a layer that was replaced, whatever is there now.
            module = next((getattr(part, name) for part in parts if hasattr(part, name)), None)
            if not isinstance(module, nn.Module):
                raise ValueError(f"layers has {name!r}, which the model does not have any more")
            module.requires_grad_(False)

    @contextmanager
    def at_image_size(self, image_size: int) -> Iterator[None]:
        """A block in which the network takes images of another size.

        The last feature maps are interpolated to the size that fc6 is for (bilinear), unless the
        network has a pooling that does so. Epochs on smaller images take a part of the time, and
        prepare the weights for the last epochs on images of the network's own size.

        Args:
            image_size: side of the images in the block, in pixels.

        Raises:
            ValueError: the image is too small, or not an integer.

        Example:
            >>> import torch
            >>> from alexnet_lib import AlexNet
            >>> model = AlexNet(10)
            >>> with model.at_image_size(131):
            ...     print(model(torch.zeros(2, 3, 131, 131)).shape)
            torch.Size([2, 10])
        """
        own, pooling = self.image_size, self.avgpool
        if image_size == own:
            yield
            return
        smallest = self.architecture.smallest_image_size
        size = check_integer("image_size", image_size, smallest, MOST_SIDE)
        try:
            if pooling is None:
                infos = tables.layer_infos(self.architecture, own)
                grid = next(x.input_shape[1:] for x in infos if isinstance(x.layer, tables.Flatten))
                self.avgpool = nn.Upsample(grid, mode="bilinear")
            self.image_size = size
            yield
        finally:
            self.image_size = own
            if pooling is None:
                del self.avgpool  # not among the modules, as before
            self.avgpool = pooling

    def forward(self, images: Tensor) -> Tensor:
        """The logits of a batch of images.

        Args:
            images: ``(batch, in_channels, image_size, image_size)``, of the parameters' floating
                dtype (under autocast, any), normalised as in training.

        Returns:
            ``(batch, num_classes)``, before the softmax.

        Raises:
            ValueError: a wrong rank, channel count, size or dtype. The channels and the dtype are
                checked as long as the first layer is a plain ``nn.Conv2d``; another one takes what
                it takes.
        """
        any_size, size = self.architecture.takes_any_size, self.image_size
        if any_size:
            size = min(size, self.architecture.smallest_image_size)
        channels = dtype = device = None
        first = next(self.features.children(), None)
        # Not asked of what users put there: wrapped, parametrised, quantised or sharded layers.
        if type(first) is nn.Conv2d:
            channels = first.in_channels
            # A traced graph can be converted, and a hook can change what the layer computes with.
            if not (isinstance(images, torch.fx.Proxy) or first._forward_pre_hooks):
                dtype, device = first.weight.dtype, first.weight.device
        x = self.features(_checked_images(images, size, any_size, channels, dtype, device))
        x = x if self.avgpool is None else self.avgpool(x)
        logits: Tensor = self.classifier(self.flatten(x))
        return logits


# Wrapped, so that symbolic tracing records the check as one call: conditions on shapes in
# `forward` cannot be traced.
@torch.fx.wrap
def _checked_images(
    images: Tensor,
    size: int,
    larger: bool,
    channels: int | None,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> Tensor:
    """The images; ``channels``, ``dtype`` or ``device`` of None is not known, and not checked."""
    expected = f"(batch, {channels or 'channels'}, {size}, {size})" + " or larger" * larger
    if not isinstance(images, Tensor):
        kind = type_name(images)
        raise ValueError(f"images is a {kind}; expected a floating tensor {expected}")
    if images.is_nested or images.layout is not torch.strided:
        layout = "nested" if images.is_nested else images.layout
        raise ValueError(f"images is a {layout} tensor; expected a dense one {expected}")
    shape, actual = tuple(images.shape), images.dtype
    problem, hint = None, ""
    if images.ndim == 3:
        problem = f"shape {shape}, a single image without its batch dimension"
        hint = ": pass images[None]"
    elif images.ndim != 4 or (channels and shape[1] != channels):
        problem = f"shape {shape}"
        if images.ndim == 4 and shape[3] == channels:
            hint = ": pass images.permute(0, 3, 1, 2)"
        elif images.ndim == 4 and shape[2] >= size <= shape[3]:
            hint = f", or a model built with AlexNet(in_channels={shape[1]})"
    elif (shape[2] < size or shape[3] < size) if larger else shape[2:] != (size, size):
        problem = f"shape {shape}"
        hint = ": resize the images, or build the model with AlexNet(image_size=...)"
    elif channels and not (images.is_floating_point() or images.is_quantized):
        problem = f"dtype {actual}"
        expected = f"{dtype or 'a floating dtype'}, normalised as in training"
        hint = " (Preprocess does it)"
    elif dtype not in {None, actual} and not torch.is_autocast_enabled(images.device.type):
        problem, expected = f"dtype {actual}", f"{dtype}, as the parameters have"
        hint = f": pass images.to({dtype}), or convert the model"
    elif device not in {None, images.device}:
        problem, expected = f"device {images.device}", f"{device}, as the parameters have"
        hint = f": pass images.to({str(device)!r}), or move the model"
    if problem:
        raise ValueError(f"images has {problem}; expected {expected}{hint}")
    return images


def _declared_size(module: nn.Module, attribute: str, last: bool) -> int | None:
    """A layer's attribute, of the first or last layer below a module that has weights.

    0 if that layer does not have it; None if no layer has weights.
    """
    size = as_integer(getattr(module, attribute, None))
    if size is not None:
        return size
    children = [*module.children()]
    for child in reversed(children) if last else children:
        if (size := _declared_size(child, attribute, last)) is not None:
            return size
    return 0 if module._parameters else None


# bfloat16 rounds 0.7 to 0.699.
SAME_PROBABILITY = 0.005


class PaperDropout(nn.Dropout):
    """The paper's dropout: no scaling in training, multiplication by 1 - p in evaluation.

    That is ``nn.Dropout``, which scales in training, times 1 - p in both modes. The weights of the
    next layer are those for this scale. So a state dict holds 1 - p as ``keep_probability``, and a
    network with ``nn.Dropout`` or another p refuses it.
    """

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.register_buffer("keep_probability", torch.tensor(1.0 - p))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *rest: Any
    ) -> None:
        name = f"{prefix}keep_probability"
        stored = state_dict.get(name)
        if stored is not None and stored.ndim == 0:
            kept = stored.item()
            if abs(kept - (1 - self.p)) > SAME_PROBABILITY:
                rest[-1].append(
                    f"{name} is {kept:.2g}, of a network with dropout={1 - kept:.2g}; "
                    f"expected {1 - self.p:.2g}, that of dropout={self.p:.2g}"
                )
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)

    def forward(self, input: Tensor) -> Tensor:
        """The activations for the next layer."""
        return super().forward(input) * (1 - self.p)


def _module(info: tables.LayerInfo, dropout: float, dropout_scaling: DropoutScaling) -> nn.Module:
    """The torch module of one row of the table, its weights not yet initialised."""
    device, channels = torch.get_default_device(), info.input_shape[0]
    match info.layer:
        case tables.Conv(_, count, kernel, stride, padding, groups):
            sizes = channels, count, kernel, stride, padding
            module: nn.Module = skip_init(nn.Conv2d, *sizes, groups=groups, device=device)
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
            module = (PaperDropout if dropout_scaling == "test" else nn.Dropout)(dropout)
    return module


@torch.no_grad()
def _initialize(
    layer: tables.Conv | tables.Linear, module: Any, scheme: str, generator: torch.Generator | None
) -> None:
    """Sets the weights and biases of a convolution or a linear layer."""
    weight, bias = module.weight, module.bias
    match scheme:
        case "kaiming":
            if isinstance(layer, tables.Linear) and layer.features is None:
                nn.init.normal_(weight, std=KAIMING_LAST_STD, generator=generator)
            else:
                nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(bias)
        case "torch":
            # As in nn.Conv2d.reset_parameters, which takes no generator.
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(bias, -bound, bound, generator=generator)
        case "released_code" | "paper":
            std = PAPER_STD if scheme == "paper" else layer.code_std
            nn.init.normal_(weight, std=std, generator=generator)
            nn.init.constant_(bias, layer.initial_bias)
