"""The built-in synthetic data set ``shapes``: ten kinds of figures, generated when needed.

A linear model cannot classify them: a figure is as often brighter as darker than its background,
all figures of one scale have the same area, and position, rotation and colours are independent of
the class. Only edges and their arrangement distinguish the classes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alexnet_lib.data.images import ImageTensors

_Floats = npt.NDArray[Any]  # float32
_Bytes = npt.NDArray[np.uint8]
_Labels = npt.NDArray[np.int64]


def _box(x: _Floats, y: _Floats, half_width: float, half_height: float) -> Any:
    return np.maximum(abs(x) - half_width, abs(y) - half_height)


def _star(x: _Floats, y: _Floats) -> _Floats:
    # Folded into one tenth of the plane, the outline is a single segment, from the notch at
    # (0.67, 0) to the tip at radius 1.595 and 36 degrees.
    tenth = np.pi / 5
    angle = abs(np.arctan2(y, x) % (2 * tenth) - tenth)
    radius = np.hypot(x, y)
    return 0.834 * (radius * np.cos(angle) - 0.67) - 0.552 * (radius * np.sin(angle))


# A figure maps coordinates to a signed distance from its outline, negative inside, which must be
# exact only near the outline, where anti-aliasing needs it. The minimum of two is their union, the
# maximum their intersection. The constants give every figure the area of the unit disc within 1 %,
# so that the mean colour is independent of the class, and keep it within _REACH of the origin.
_REACH = 1.78
_FIGURES: dict[str, Callable[[_Floats, _Floats], _Floats]] = {
    "bar": lambda x, y: _box(x, y, 1.536, 0.511),
    "bowtie": lambda x, y: np.maximum(abs(x) - 1.253, 0.7071 * (abs(y) - abs(x))),
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1.42, 1.12 - np.hypot(x - 0.7, y)),
    "cross": lambda x, y: np.minimum(_box(x, y, 1.189, 0.396), _box(x, y, 0.396, 1.189)),
    "ell": lambda x, y: np.minimum(_box(x + 0.808, y, 0.392, 1.2), _box(x, y + 0.808, 1.2, 0.392)),
    "ring": lambda x, y: abs(np.hypot(x, y) - 1) - 0.25,
    "square": lambda x, y: _box(x, y, 0.886, 0.886),
    "star": _star,
    "triangle": lambda x, y: np.maximum(-y, 0.866 * abs(x) + 0.5 * y) - 0.7775,
}

SHAPES_CLASSES: tuple[str, ...] = tuple(_FIGURES)
SHAPES_TRAIN_IMAGES = 6_000
SHAPES_TEST_IMAGES = 2_000
_BLOCK = 256  # images at a time, to bound the working memory: 3 MB in float32 for 32 x 32 pixels


def draw_shapes(count: int, seed: int, *, size: int = 32) -> tuple[_Bytes, _Labels]:
    """``count`` images of one figure each, and their labels, determined by the arguments.

    Images are uint8 ``(count, size, size, 3)``, labels int64 ``(count,)``, indices of
    ``SHAPES_CLASSES`` in random order, whose counts differ by at most one.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(SHAPES_CLASSES))
    images = np.empty((count, size, size, 3), np.uint8)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        images[block] = _draw_block(labels[block], rng, size)
    return images, labels


def _draw_block(labels: _Labels, rng: np.random.Generator, size: int) -> _Bytes:
    def uniform(low: float, high: float, channels: int = 1) -> _Floats:
        return rng.uniform(low, high, (len(labels), 1, 1, channels)).astype(np.float32)

    # Every array is (image, row, column, channel), of length 1 where it does not vary.
    columns = np.arange(size, dtype=np.float32)[:, None] - (size - 1) / 2
    rows = columns[:, None]
    scale = uniform(0.21 * size, 0.27 * size)
    # The whole figure stays inside the image, for any rotation.
    margin = size / 2 - _REACH * scale
    x = columns - margin * uniform(-1.0, 1.0)
    y = rows - margin * uniform(-1.0, 1.0)
    angle = uniform(0.0, 2 * np.pi)
    u = (np.cos(angle) * x + np.sin(angle) * y) / scale
    v = (np.cos(angle) * y - np.sin(angle) * x) / scale

    distance = np.empty_like(u)
    for label, figure in enumerate(_FIGURES.values()):
        selected = labels == label
        distance[selected] = figure(u[selected], v[selected])
    # The fraction of each pixel that the figure covers, if its outline is straight there.
    coverage = np.clip(0.5 - distance * scale, 0, 1)

    dark = uniform(0.05, 0.35, channels=3)
    light = dark + uniform(0.25, 0.65, channels=3)
    dark_figure = uniform(0.0, 1.0) < 0.5
    background = np.where(dark_figure, light, dark)
    figure_color = np.where(dark_figure, dark, light)
    # Uneven lighting, so that a pixel's value alone does not separate figure and background.
    shade = (uniform(-0.1, 0.1) * columns + uniform(-0.1, 0.1) * rows) / (size / 2)
    image: _Floats = background + coverage * (figure_color - background) + shade
    image += 0.03 * rng.standard_normal(image.shape, dtype=np.float32)
    return (255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8)


def shapes(*, seed: int = 0) -> tuple[ImageTensors, ImageTensors]:
    """6,000 training and 2,000 test images of 32 x 32 pixels, drawn from different seeds."""

    def part(count: int, seed: int) -> ImageTensors:
        images, labels = draw_shapes(count, seed)
        pixels = torch.from_numpy(images).movedim(-1, 1).contiguous()
        return ImageTensors(pixels, torch.from_numpy(labels), SHAPES_CLASSES)

    return part(SHAPES_TRAIN_IMAGES, 2 * seed), part(SHAPES_TEST_IMAGES, 2 * seed + 1)
