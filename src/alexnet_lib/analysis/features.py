"""What a network computes on the way: outputs of layers, and where a class is seen (Grad-CAM).

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", arXiv 1610.02391, 2017.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alexnet_lib.checks import as_integer, shown, type_name
from alexnet_lib.data.images import as_list
from alexnet_lib.training.loop import check_has_weights, check_model, evaluation_mode
from alexnet_lib.training.step import checked_logits


def extract_features(
    model: nn.Module, images: Float[Tensor, "batch c h w"], *layers: str
) -> dict[str, Tensor]:
    """The outputs of some layers for a batch of images.

    The model is used in evaluation mode on its own device, and is afterwards as it was before.

    Args:
        model: any module that takes the images.
        images: as the model takes them, preprocessed; they are moved to its device and dtype.
        layers: names as in the table of layers, for example ``"relu7"``; of other models the names
            of ``named_modules()``, or the last part of one, if only one module has it.

    Returns:
        The output of each layer by its name, without gradients, on the model's device, in the order
        of ``layers``. Of fc7, the activations that the paper compares images by are ``"relu7"``.

    Raises:
        TypeError: ``model`` or ``images`` has another type.
        ValueError: there is no such layer, or the model does not use it, or its output is not one
            tensor; the model does not take the images.

    Example:
        >>> import torch
        >>> from alexnet_lib import AlexNet, extract_features
        >>> model = AlexNet(num_classes=10, image_size=67, seed=0)
        >>> features = extract_features(model, torch.zeros(2, 3, 67, 67), "conv5", "relu7")
        >>> {name: tuple(output.shape) for name, output in features.items()}
        {'conv5': (2, 256, 3, 3), 'relu7': (2, 4096)}
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            # A copy, because the next layer may work in place, as torchvision's ReLU does.
            outputs[name] = _checked_output(name, output).detach().clone()

        return hook

    batch = _checked_batch(model, images)
    with _hooked(model, {name: keep(name) for name in layers}), torch.no_grad():
        model(batch)
    return {name: _used(outputs, name) for name in layers}


def grad_cam(
    model: nn.Module,
    images: Float[Tensor, "batch c h w"],
    targets: int | Iterable[int] | Tensor | None = None,
    *,
    layer: str = "relu5",
) -> Float[Tensor, "batch h2 w2"]:
    r"""Grad-CAM: where in its images a network sees a class.

    .. math:: L = \max\left(0, \sum_k \alpha_k A^k\right), \qquad
        \alpha_k = \frac{1}{h\,w} \sum_{i,j} \frac{\partial y}{\partial A^k_{ij}}

    with the feature maps A of a layer and the logit y of the class. The model is used in evaluation
    mode on its own device, and is afterwards as it was before, its gradients too.

    Args:
        model: maps images to logits ``(batch, classes)``.
        images: as the model takes them, preprocessed; they are moved to its device and dtype.
        targets: the number of the class, one for all images or one for each; None is the likeliest
            of each image.
        layer: the layer whose maps are used, as in ``extract_features``; ``"relu5"`` has the maps
            of conv5 as the next layer reads them. Before the ReLU most values are negative, and the
            result is 0 for many images.

    Returns:
        A map for each image, float32, at least 0, of the size of the layer's maps (13x13 for relu5
        and images of 227 pixels), on the model's device.

    Raises:
        TypeError: ``model`` or ``images`` has another type.
        ValueError: there is no such layer, or its output is no feature maps; a target is not a
            class; the model does not take the images.

    Example:
        >>> import torch
        >>> from alexnet_lib import AlexNet, grad_cam
        >>> model = AlexNet(num_classes=10, image_size=131, seed=0)
        >>> grad_cam(model, torch.zeros(2, 3, 131, 131), targets=7).shape
        torch.Size([2, 7, 7])
    """
    maps: dict[str, Tensor] = {}

    def cut(_module: nn.Module, _arguments: Any, output: Any) -> Tensor:
        # Gradients end here, so that they reach no parameter and need none that is trained.
        maps[layer] = _checked_output(layer, output).detach().requires_grad_()
        # A copy, because the next layer may work in place.
        return maps[layer].clone()

    batch = _checked_batch(model, images)
    # The caller may be in a block without gradients.
    with torch.inference_mode(False), torch.enable_grad(), _hooked(model, {layer: cut}):
        logits = checked_logits(model(batch.clone()), len(batch))
        activations = _used(maps, layer)
        if activations.ndim != 4:
            raise ValueError(
                f"layer is {layer!r}, whose output has shape {tuple(activations.shape)}; expected "
                "a layer with feature maps, (batch, channels, height, width)"
            )
        classes = _checked_targets(targets, logits)
        score = logits.gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, activations)
    weights = gradient.float().mean((2, 3), keepdim=True)
    return (weights * activations.detach().float()).sum(1).relu()


def layer_names(model: nn.Module) -> dict[str, nn.Module]:
    """The modules by their names, and by the last parts of these that only one module has."""
    modules = {name: module for name, module in model.named_modules() if name}
    last = [name.rpartition(".")[2] for name in modules]
    short = {
        part: module
        for part, module in zip(last, modules.values(), strict=True)
        if last.count(part) == 1
    }
    return short | modules


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """A block in which the model is in evaluation mode, and its layers have hooks."""
    names = layer_names(model)
    if unknown := [name for name in hooks if not isinstance(name, str) or name not in names]:
        known = [n for n in names if "." not in n or n.rpartition(".")[2] not in names]
        raise ValueError(f"layers has {shown(unknown)}; expected names among {', '.join(known)}")
    with evaluation_mode(model), ExitStack() as stack:
        for name, hook in hooks.items():
            stack.callback(names[name].register_forward_hook(hook).remove)
        yield


def _checked_batch(model: nn.Module, images: object) -> Tensor:
    """The images in the model's dtype on its device."""
    check_model(model)
    check_has_weights(model)
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images is a {type_name(images)}; expected a batch that Preprocess or a loader has "
            "made, a tensor (batch, C, H, W)"
        )
    like = next((w for w in model.parameters() if w.is_floating_point()), images)
    return images.detach().to(like.device, like.dtype if images.is_floating_point() else None)


def _checked_output(name: str, output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(f"layer {name!r} returns a {type_name(output)}; expected one tensor")
    return output


def _used(outputs: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in outputs:
        raise ValueError(f"layers has {name!r}, which the model does not use; expected another one")
    return outputs[name]


def _checked_targets(targets: Any, logits: Tensor) -> Tensor:
    """The number of a class for each image."""
    count = len(logits)
    if logits.ndim != 2:
        raise ValueError(
            f"model returns logits of shape {tuple(logits.shape)}; expected (batch, classes)"
        )
    if targets is None:
        return logits.detach().argmax(1)
    number = as_integer(targets)
    values = as_list(targets) if number is None else [number] * count
    numbers = [as_integer(value) for value in values or ()]
    if len(numbers) != count or any(n is None or not 0 <= n < logits.shape[1] for n in numbers):
        raise ValueError(
            f"targets is {shown(targets)}; expected an integer from 0 to {logits.shape[1] - 1}, or "
            f"{count} of them, one for each image"
        )
    return torch.tensor(numbers, device=logits.device)
