"""Pictures of images and of what a network makes of them, drawn with matplotlib."""

import math
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from alexnet_lib.analysis.features import extract_features, grad_cam
from alexnet_lib.analysis.figures import pixels_of
from alexnet_lib.checks import as_integer, check_integer, shown, type_name
from alexnet_lib.data.images import image_and_label, image_of
from alexnet_lib.data.loaders import BatchLoader
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.sources import Data, open_parts
from alexnet_lib.files import as_path
from alexnet_lib.inference import known_preprocess, predict
from alexnet_lib.training.batches import as_tensor, model_names, names_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BATCH = 64  # images that are computed at once
_FEATURES_IN_ROW = 256
_TILE = 64  # side of the examples of classes, in pixels
_COLUMNS = 3  # of predictions


def plot_predictions(
    model: nn.Module,
    images: Any,
    *,
    top: int = 5,
    count: int = 6,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    axes: "Axes | None" = None,
) -> "Figure":
    """Images as the network sees them, and their likeliest classes with bars (paper, figure 4).

    Below an image stands its class, if it is given. The bar of that class has another colour, and
    its name is bold.

    Args:
        model: as in ``predict``.
        images: an iterable of images as in ``predict`` (a path stands for a file), or of pairs
            (image, class), as a data set yields them, where the class is its number or name.
        top: classes for each image, at least 1.
        count: how many images to show at most, the first ones.
        preprocess: None is ``model.preprocess``.
        classes: names of the classes; None is ``model.classes``, else their numbers.
        axes: where to draw; None is a new figure.

    Raises:
        TypeError, ValueError, FloatingPointError: as in ``predict``; a class is unknown.

    Example:
        >>> import torch
        >>> from alexnet_lib import AlexNet, Preprocess, plot_predictions
        >>> model = AlexNet(num_classes=2, image_size=67, seed=0)
        >>> pairs = [(torch.zeros(3, 67, 67), "cat")]
        >>> figure = plot_predictions(
        ...     model, pairs, preprocess=Preprocess(67, 67), classes=["cat", "dog"]
        ... )
        >>> figure.alt_text[:44]
        '1 image with its likeliest classes. cat: cat'
    """
    treatment, names = known_preprocess(model, preprocess), _names(model, classes)
    items = _items(images, count)
    inputs = _inputs(items, treatment)
    predictions = predict(
        model, [image for image, _ in items], top=top, preprocess=treatment, classes=classes
    )
    labels = [_label(label, names) for _, label in items]
    shown_images = _shown(torch.stack(inputs), treatment)
    from alexnet_lib.analysis import canvas

    lines = [
        f"{label or f'image {number}'}: {p.classes[0]} {p.probabilities[0]:.0%}"
        for number, (label, p) in enumerate(zip(labels, predictions, strict=True), 1)
    ]
    alt_text = f"{_counted(len(items))} with {'its' if len(items) == 1 else 'their'} likeliest "
    alt_text += f"classes. {'; '.join(lines)}."
    columns = min(_COLUMNS, len(items))
    gap, line, points = 0.3, 0.23, canvas.SMALL
    width = canvas.WIDTH * columns / _COLUMNS
    side = (width - gap * (columns - 1)) / columns
    below = 0.27 * any(labels) + 0.05
    height = side + below + line * len(predictions[0].classes) + 0.15
    rows = math.ceil(len(items) / columns)
    from matplotlib.patches import Rectangle

    with canvas.inches_for(axes, rows * height, alt_text, width=width) as (drawn, factor):
        text: Any = {"fontsize": points * factor}
        for number, (pixels, label, prediction) in enumerate(
            zip(shown_images, labels, predictions, strict=True)
        ):
            row, column = divmod(number, columns)
            x, y = column * (side + gap), row * height
            drawn.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=(x, x + side, y + side, y))
            y += side
            if label is not None:
                name = canvas.shortened(label, side, canvas.FONT)
                size = canvas.FONT * factor
                drawn.text(x + side / 2, y + 0.05, name, fontsize=size, ha="center", va="top")
            y += below
            for name, share in zip(prediction.classes, prediction.probabilities, strict=True):
                right = label is not None and name == label
                color, weight = (canvas.ORANGE, "bold") if right else (canvas.BLUE, "normal")
                written = canvas.shortened(name, side - 0.4, points)
                drawn.text(x, y + 0.14, written, va="baseline", weight=weight, **text)
                drawn.text(
                    x + side,
                    y + 0.14,
                    f"{share:.0%}",
                    ha="right",
                    va="baseline",
                    weight=weight,
                    **text,
                )
                drawn.add_patch(Rectangle((x, y + 0.165), side, 0.035, color=canvas.INK, alpha=0.2))
                drawn.add_patch(Rectangle((x, y + 0.165), side * share, 0.035, color=color))
                y += line
        drawn.set(xlim=(0, width), ylim=(rows * height, 0))
    return canvas.root_of(drawn)


def plot_neighbors(
    model: nn.Module,
    queries: Any,
    images: Any,
    *,
    neighbors: int = 6,
    count: int = 5,
    layer: str = "relu7",
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    axes: "Axes | None" = None,
) -> "Figure":
    """Query images, and beside each the images whose features are nearest (paper, figure 4).

    The distance is the Euclidean one of a layer's outputs; the nearest image comes first. Below the
    images stand their classes, if they are given; those of the query's class are bold.

    Args:
        model: as in ``predict``.
        queries: images or pairs, as in ``plot_predictions``; a row for each.
        images: the images to search, of the same kinds; all of them are computed.
        neighbors: images beside each query, at least 1; at most as many as there are.
        count: how many queries to show at most, the first ones.
        layer: whose outputs are compared, as in ``extract_features``: ``"relu7"`` has the
            activations of fc7, as in the paper.
        preprocess: None is ``model.preprocess``.
        classes: names of the classes; None is ``model.classes``, else their numbers.
        axes: where to draw; None is a new figure.

    Raises:
        TypeError, ValueError: as in ``plot_predictions``; there is no such layer.

    Example:
        >>> import torch
        >>> from alexnet_lib import AlexNet, Preprocess, plot_neighbors
        >>> model = AlexNet(num_classes=2, image_size=67, seed=0)
        >>> images = torch.rand(4, 3, 67, 67)
        >>> plot_neighbors(model, images[:1], images, preprocess=Preprocess(67, 67)).alt_text
        'The 4 images nearest to 1 image by the outputs of relu7.'
    """
    neighbors = check_integer("neighbors", neighbors, 1)
    treatment, names = known_preprocess(model, preprocess), _names(model, classes)
    wanted, found = _items(queries, count, "queries"), _items(images, None)
    wanted_inputs, found_inputs = _inputs(wanted, treatment, "query"), _inputs(found, treatment)

    def features(inputs: Sequence[Tensor]) -> Tensor:
        parts = [
            extract_features(model, torch.stack([*inputs[i : i + _BATCH]]), layer)[layer]
            for i in range(0, len(inputs), _BATCH)
        ]
        return torch.cat(parts).flatten(1).float()

    exact = "donot_use_mm_for_euclid_dist"  # of equal images, 0
    distances = torch.cdist(features(wanted_inputs), features(found_inputs), compute_mode=exact)
    neighbors = min(neighbors, len(found))
    nearest = distances.topk(neighbors, largest=False).indices.tolist()
    tiles: list[Tensor] = []
    captions: list[str] = []
    bold = set()
    for query, indices in enumerate(nearest):
        own = _label(wanted[query][1], names)
        labels = [own, *(_label(found[index][1], names) for index in indices)]
        bold |= {len(tiles) + i for i, label in enumerate(labels) if label and label == own}
        tiles += [wanted_inputs[query], *(found_inputs[index] for index in indices)]
        captions += [label or "" for label in labels]
    from alexnet_lib.analysis import canvas

    alt_text = f"The {neighbors} images nearest to {'each of ' * (len(wanted) > 1)}"
    alt_text += f"{_counted(len(wanted))} by the outputs of {layer}."
    block = canvas.Tiles(
        _shown(torch.stack(tiles), treatment),
        1 + neighbors,
        captions=captions if any(captions) else (),
        bold=bold,
        lead=0.15,
    )
    return canvas.draw_tiles(axes, [block], alt_text)


def plot_feature_maps(
    model: nn.Module,
    image: Any,
    *,
    layers: Iterable[str] | None = None,
    maps: int = 8,
    preprocess: Preprocess | None = None,
    axes: "Axes | None" = None,
) -> "Figure":
    """What each layer makes of one image: its strongest feature maps.

    Of each layer, the maps with the highest mean are shown, in the order of their numbers, which
    stand below. Dark is the lowest value of a map and bright its highest. The outputs of a fully
    connected layer are a strip, row by row.

    Args:
        model: a network.
        image: one image, as in ``predict``.
        layers: names, as in ``extract_features``; None are all ReLU and pooling layers, and the
            last fully connected one.
        maps: how many maps of a layer to show, at least 1; at most as many as it has.
        preprocess: None is ``model.preprocess``.
        axes: where to draw; None is a new figure.

    Raises:
        TypeError, ValueError: as in ``plot_predictions``; there is no such layer, or its output is
            neither feature maps nor features.

    Example:
        >>> import torch
        >>> from alexnet_lib import AlexNet, Preprocess, plot_feature_maps
        >>> model = AlexNet(num_classes=2, image_size=67, seed=0)
        >>> image, treatment = torch.rand(3, 67, 67), Preprocess(67, 67)
        >>> plot_feature_maps(model, image, layers=["relu1"], preprocess=treatment).alt_text
        'An image and its feature maps: 8 of 96 of relu1, 15x15.'
    """
    maps = check_integer("maps", maps, 1)
    treatment = known_preprocess(model, preprocess)
    batch = torch.stack(_inputs(_items(image, 1), treatment))
    chosen = _drawn_layers(model) if layers is None else [*layers]
    outputs = extract_features(model, batch, *chosen)
    from alexnet_lib.analysis import canvas

    (pixels,) = _shown(batch, treatment)
    side = "x".join(map(str, pixels.shape[:2]))
    blocks = [canvas.Tiles([pixels], maps, f"image, {side}")]
    told = []
    for name, output in outputs.items():
        values = output[0].float().cpu()
        if values.ndim == 1 or values.shape[1:] == (1, 1):
            values = values.flatten()
            rows = math.ceil(len(values) / _FEATURES_IN_ROW)
            row = math.ceil(len(values) / rows)
            strip = F.pad(_unit(values), (0, rows * row - len(values)), value=torch.nan)
            strip = strip.view(rows, row)
            # At least so high that it is seen.
            tall = strip.repeat_interleave(math.ceil(row / 24 / rows), 0)
            blocks.append(canvas.Tiles([_colored(tall)], 1, f"{name}: {len(values):,} features"))
            told.append(f"{len(values):,} features of {name}")
            continue
        if values.ndim != 3:
            raise ValueError(
                f"layer {name!r} has outputs of shape {tuple(output.shape)}; expected feature "
                "maps, (batch, channels, height, width), or features, (batch, features)"
            )
        number = min(maps, len(values))
        strongest = values.mean((1, 2)).topk(number).indices.sort().values.tolist()
        size = "x".join(map(str, values.shape[1:]))
        title = f"{name}: {number} of {len(values)} maps, {size}"
        tiles = [_colored(_unit(values[index])) for index in strongest]
        captions = [str(index + 1) for index in strongest]
        blocks.append(canvas.Tiles(tiles, maps, title, captions))
        told.append(f"{number} of {len(values)} of {name}, {size}")
    return canvas.draw_tiles(axes, blocks, f"An image and its feature maps: {'; '.join(told)}.")


def _drawn_layers(model: nn.Module) -> list[str]:
    kinds = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # The last part of a name, where only one layer has it.
    short = [name.rpartition(".")[2] for name in (*names, *last[-1:])]
    unique = len(set(short)) == len(short) and not any(name.isdigit() for name in short)
    return short if unique else [*names, *last[-1:]]


def plot_batch(
    batch: Any,
    *,
    count: int = 16,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    axes: "Axes | None" = None,
) -> "Figure":
    """A batch as the network sees it, augmented, with the normalisation taken back.

    Below an image stands its class; where images were mixed, the two with the largest weights.

    Args:
        batch: a loader, of which the first batch of its next pass is shown, which changes nothing;
            or a batch: images, or images and labels.
        count: how many images to show at most, the first ones.
        preprocess: with which the images were normalised; None is the loader's.
        classes: names of the classes; None is the loader's, else their numbers.
        axes: where to draw; None is a new figure.

    Raises:
        TypeError: an argument has another type.
        ValueError: ``preprocess`` is missing, or has other channels; a label is no class.

    Example:
        >>> from alexnet_lib import build_loaders, plot_batch
        >>> loaders = build_loaders("shapes", image_size=67, train_images=40)
        >>> plot_batch(loaders.train, count=2).alt_text
        'The first 2 images of a batch, as the network sees them: square, ring.'
    """
    count = check_integer("count", count, 1)
    if isinstance(batch, BatchLoader):
        preprocess = preprocess or batch.preprocess
        classes = batch.dataset.classes if classes is None else classes
        batch = next(iter(batch.batches(batch.epoch)))
    images, labels = image_and_label(batch) or (batch, None)
    images = as_tensor("the images of batch", image_of(images))[:count]
    if not isinstance(preprocess, Preprocess):
        raise TypeError(
            f"preprocess is a {type_name(preprocess)}; expected the Preprocess that the images of "
            "batch were normalised with"
        )
    if images.ndim != 4 or len(images) == 0 or images.shape[1] != preprocess.channels:
        raise ValueError(
            f"batch has images of shape {tuple(images.shape)}; expected (batch, "
            f"{preprocess.channels}, height, width)"
        )
    names = names_of(classes)
    captions = () if labels is None else [_mixed(label, names) for label in labels[:count]]
    from alexnet_lib.analysis import canvas

    alt_text = f"The first {_counted(len(images))} of a batch, as the network sees them"
    alt_text += f": {', '.join(captions)}." if captions else "."
    tiles = _shown(images, preprocess)
    block = canvas.Tiles(tiles, min(4, len(tiles)), captions=captions, gap=0.1)
    return canvas.draw_tiles(axes, [block], alt_text)


def _mixed(label: Any, names: tuple[str, ...] | None) -> str:
    """The class of a label, or the two largest shares of a row of weights."""
    if isinstance(label, Tensor) and label.ndim == 1:
        shares, numbers = label.float().topk(min(2, len(label)))
        pairs = [(s, n) for s, n in zip(shares.tolist(), numbers.tolist(), strict=True) if s > 0]
        if len(pairs) > 1:
            return ", ".join(f"{_label(n, names)} {share:.0%}" for share, n in pairs)
        label = numbers[0]
    return str(_label(label, names))


def plot_examples(
    data: Data, *, count: int = 8, classes: Iterable[str] | None = None, axes: "Axes | None" = None
) -> "Figure":
    """Training images of each class, a row for each, the first ones of a data set.

    Args:
        data: as in ``build_loaders``.
        count: images of each class, at least 1; at most as many as it has.
        classes: as in ``build_loaders``.
        axes: where to draw; None is a new figure.

    Raises:
        TypeError, ValueError, FileNotFoundError: as in ``build_loaders``.

    Example:
        >>> from alexnet_lib import plot_examples
        >>> plot_examples("shapes", count=3).alt_text[:57]
        'Images of 10 classes, a row for each: bar, bowtie, circle'
    """
    count = check_integer("count", count, 1)
    images = open_parts(data, classes=classes).train
    channels = images.channels
    treatment = Preprocess(_TILE, _TILE, mean=(0.0,) * channels, std=(1.0,) * channels)
    from alexnet_lib.analysis import canvas

    labels, names = images.labels.cpu(), images.classes
    alt_text = f"Images of {len(names)} classes, a row for each: {', '.join(names)}."
    # The names stand to the left, as wide as the longest needs.
    written = [canvas.shortened(name, 1.3, canvas.SMALL) for name in names]
    left = 0.1 + max(canvas.width_of(name, canvas.SMALL) for name in written)
    gap = 0.04
    side = (canvas.WIDTH - left) / count - gap
    with canvas.inches_for(axes, len(names) * (side + gap), alt_text) as (drawn, factor):
        for row, name in enumerate(written):
            y = row * (side + gap)
            text: Any = {"fontsize": canvas.SMALL * factor, "ha": "right", "va": "center"}
            drawn.text(left - 0.1, y + side / 2, name, **text)
            for column, index in enumerate((labels == row).nonzero()[:count, 0].tolist()):
                x = left + column * (side + gap)
                pixels = pixels_of(treatment(images.image(index)))
                extent = (x, x + side, y + side, y)
                drawn.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=extent)
        drawn.set(xlim=(0, canvas.WIDTH), ylim=(len(names) * (side + gap), 0))
    return canvas.root_of(drawn)


def plot_grad_cam(
    model: nn.Module,
    images: Any,
    *,
    target: int | str | None = None,
    layer: str = "relu5",
    count: int = 6,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    axes: "Axes | None" = None,
) -> "Figure":
    """Images, and beside each where the network sees a class in it (Grad-CAM).

    The map of ``grad_cam`` lies over the image in grey, enlarged (bilinear) and divided by its
    highest value: bright is where the class is seen. Below the image stands its class, if it is
    given, below the map the class that it is for, and the probability of this class. All is dark
    where no feature map speaks for the class.

    Args:
        model: as in ``predict``.
        images: images or pairs, as in ``plot_predictions``.
        target: number or name of the class; None is the likeliest of each image.
        layer: as in ``grad_cam``.
        count: how many images to show at most, the first ones.
        preprocess: None is ``model.preprocess``.
        classes: names of the classes; None is ``model.classes``, else their numbers.
        axes: where to draw; None is a new figure.

    Raises:
        TypeError, ValueError: as in ``plot_predictions``; there is no such class or layer.

    Example:
        >>> import torch
        >>> from alexnet_lib import AlexNet, Preprocess, plot_grad_cam
        >>> model = AlexNet(num_classes=2, image_size=131, seed=0)
        >>> images, treatment = torch.rand(2, 3, 131, 131), Preprocess(131, 131)
        >>> plot_grad_cam(model, images, target=1, preprocess=treatment).alt_text
        'Where a network sees classes in 2 images (Grad-CAM of relu5): 1, 1.'
    """
    treatment, names = known_preprocess(model, preprocess), _names(model, classes)
    items = _items(images, count)
    batch = torch.stack(_inputs(items, treatment))
    predictions = predict(
        model, [image for image, _ in items], top=10**6, preprocess=treatment, classes=classes
    )
    names = names or tuple(map(str, range(len(predictions[0].classes))))
    chosen = [prediction.classes[0] for prediction in predictions]
    if target is not None:
        name = _label(target, names)
        if name not in names:
            raise ValueError(f"target is {shown(target)}; expected a class: {shown(names)}")
        chosen = [name] * len(items)
    numbers = [names.index(name) for name in chosen]
    seen = grad_cam(model, batch, numbers, layer=layer).cpu()
    seen = seen / seen.amax((1, 2), keepdim=True).clamp(min=1e-30)
    seen = F.interpolate(seen[:, None], batch.shape[-2:], mode="bilinear")[:, 0]
    from alexnet_lib.analysis import canvas

    tiles, captions = [], []
    from matplotlib import colormaps

    for pixels, heat, (_, label), name, prediction in zip(
        _shown(batch, treatment), seen.numpy(), items, chosen, predictions, strict=True
    ):
        grey = pixels.mean(-1) if pixels.ndim == 3 else pixels
        color = colormaps["inferno"](heat)[..., :3]
        tiles += [pixels, 0.35 * grey[..., None] + 0.65 * color]
        share = dict(zip(prediction.classes, prediction.probabilities, strict=True))[name]
        captions += [_label(label, names) or "", f"{name} {share:.0%}"]
    alt_text = f"Where a network sees classes in {_counted(len(items))} (Grad-CAM of {layer}): "
    alt_text += f"{', '.join(chosen)}."
    columns = 4 if len(items) > 1 else 2
    block = canvas.Tiles(tiles, columns, captions=captions, gap=0.1)
    return canvas.draw_tiles(axes, [block], alt_text)


def _names(model: nn.Module, classes: Sequence[str] | None) -> tuple[str, ...] | None:
    return model_names(model) if classes is None else names_of(classes)


def _items(images: Any, count: int | None, argument: str = "images") -> list[tuple[Any, Any]]:
    """The first images with their labels, or None for those without."""
    if count is not None:
        count = check_integer("count", count, 1)
    one = isinstance(images, str | os.PathLike | Image.Image)
    if one or (isinstance(images, np.ndarray | Tensor) and images.ndim in {2, 3}):
        images = [images]
    elif isinstance(images, tuple) and len(images) == 2 and as_integer(images[1]) is not None:
        images = [images]  # one item of a data set
    if not isinstance(images, Iterable) and not hasattr(images, "__getitem__"):
        raise TypeError(
            f"{argument} is a {type_name(images)}; expected images, or pairs (image, class)"
        )
    # Of a data set that has a length, but whose items never end.
    length = len(images) if hasattr(images, "__len__") else None
    items = [
        image_and_label(item) or (image_of(item), None)
        for item in islice(images, length if count is None else count)
    ]
    if not items:
        raise ValueError(f"{argument} is empty; expected at least one image")
    return items


def _inputs(
    items: Sequence[tuple[Any, Any]], preprocess: Preprocess, name: str = "image"
) -> list[Tensor]:
    """The network's inputs for images, on the CPU."""
    inputs = []
    for number, (image, _) in enumerate(items):
        if isinstance(image, str | os.PathLike):
            network_input = preprocess.network_input(preprocess.read(as_path(image, name)))
        else:
            network_input = preprocess(image)
        if network_input.ndim != 3:
            raise ValueError(
                f"{name} {number} is a batch of {len(network_input)} images; expected single images"
            )
        inputs.append(network_input.cpu())
    return inputs


def _shown(batch: Tensor, preprocess: Preprocess) -> list[np.ndarray]:
    return [pixels_of(image) for image in preprocess.denormalized(batch.float())]


def _label(label: Any, names: tuple[str, ...] | None) -> str | None:
    """The name of a class that is given by its number or name; None where it is not given."""
    if label is None or isinstance(label, str):
        return label
    number = as_integer(label)
    if number is None or (names is not None and not 0 <= number < len(names)):
        expected = "a number" if names is None else f"a number from 0 to {len(names) - 1}"
        raise ValueError(f"a class is {shown(label)}; expected {expected}, or a name")
    return str(number) if names is None else names[number]


def _unit(values: Tensor) -> Tensor:
    """Values from 0, the lowest, to 1, the highest; 0 where all are the same."""
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp(min=1e-30)


def _colored(values: Tensor) -> np.ndarray:
    from matplotlib import colormaps

    colors = colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    return np.asarray(colors(np.ma.masked_invalid(values.numpy())))


def _counted(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"
