"""The built-in synthetic data set ``shapes``: ten kinds of figure, drawn on the spot.

A linear model cannot solve it: a figure is as often brighter as darker than its background, all
figures of one scale have the same area, and position, rotation and colours say nothing about the
class.  Telling the classes apart takes edges, and how they are arranged.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from alexnet_lib.data.images import ImageTensors

_Floats = npt.NDArray[np.float32]


def _radius(x: _Floats, y: _Floats) -> _Floats:
    return np.hypot(x, y)


def _both(a: _Floats, b: _Floats) -> _Floats:
    return np.maximum(a, b)


def _either(a: _Floats, b: _Floats) -> _Floats:
    return np.minimum(a, b)


def _box(x: _Floats, y: _Floats, half_width: float, half_height: float) -> _Floats:
    return _both(abs(x) - half_width, abs(y) - half_height)


# A figure maps coordinates to a signed distance from its outline, negative inside; it need be
# exact only near the outline, where anti-aliasing reads it.  The constants give every figure the
# area of the unit disc within 1 %, so that mean colour betrays no class, and keep it within
# _REACH of the origin.
_REACH = 1.78


def _bar(x: _Floats, y: _Floats) -> _Floats:
    return _box(x, y, 1.536, 0.511)


def _bowtie(x: _Floats, y: _Floats) -> _Floats:
    return _both(abs(x) - 1.253, 0.7071 * (abs(y) - abs(x)))


def _circle(x: _Floats, y: _Floats) -> _Floats:
    return _radius(x, y) - 1


def _crescent(x: _Floats, y: _Floats) -> _Floats:
    return _both(_radius(x, y) - 1.42, 1.12 - _radius(x - 0.7, y))


def _cross(x: _Floats, y: _Floats) -> _Floats:
    return _either(_box(x, y, 1.189, 0.396), _box(x, y, 0.396, 1.189))


def _ell(x: _Floats, y: _Floats) -> _Floats:
    return _either(_box(x + 0.808, y, 0.392, 1.2), _box(x, y + 0.808, 1.2, 0.392))


def _ring(x: _Floats, y: _Floats) -> _Floats:
    return abs(_radius(x, y) - 1) - 0.25


def _square(x: _Floats, y: _Floats) -> _Floats:
    return _box(x, y, 0.886, 0.886)


def _star(x: _Floats, y: _Floats) -> _Floats:
    # Folded into one tenth of the plane, the outline is a single segment, from the notch at
    # (0.67, 0) to the tip at radius 1.595 and 36 degrees.
    tenth = np.pi / 5
    angle = abs(np.arctan2(y, x) % (2 * tenth) - tenth)
    across = _radius(x, y) * np.cos(angle)
    along = _radius(x, y) * np.sin(angle)
    return 0.834 * (across - 0.67) - 0.552 * along


def _triangle(x: _Floats, y: _Floats) -> _Floats:
    return _both(-y, 0.866 * abs(x) + 0.5 * y) - 0.7775


_FIGURES: dict[str, Callable[[_Floats, _Floats], _Floats]] = {
    "bar": _bar,
    "bowtie": _bowtie,
    "circle": _circle,
    "crescent": _crescent,
    "cross": _cross,
    "ell": _ell,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}

SHAPES_CLASSES: tuple[str, ...] = tuple(_FIGURES)

# Bounds the working memory: 256 images of 32 x 32 make an array of 3 MB in float32.
_BLOCK = 256


def draw_shapes(
    count: int, seed: int, *, size: int = 32
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw ``count`` images of one figure each.

    Returns ``(images, labels)``: images uint8 of shape (count, size, size, 3), RGB, 0 to 255;
    labels int64 of shape (count,), indices into `SHAPES_CLASSES`, each class equally often up to
    one, in random order.  The same arguments give the same arrays.

    >>> images, labels = draw_shapes(20, seed=0)
    >>> images.shape, images.dtype, np.bincount(labels).tolist()
    ((20, 32, 32, 3), dtype('uint8'), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(SHAPES_CLASSES))
    images = np.empty((count, size, size, 3), np.uint8)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        images[block] = _draw_block(labels[block], rng, size)
    return images, labels


def _draw_block(
    labels: npt.NDArray[np.int64], rng: np.random.Generator, size: int
) -> npt.NDArray[np.uint8]:
    def uniform(low: float, high: float, channels: int = 1) -> _Floats:
        return rng.uniform(low, high, (len(labels), 1, 1, channels)).astype(np.float32)

    # Every array is (image, row, column, channel), of length 1 where it does not vary.
    columns = np.arange(size, dtype=np.float32)[:, None] - (size - 1) / 2
    rows = columns[:, None]
    scale = uniform(0.21 * size, 0.27 * size)
    # The whole figure stays inside the frame, whatever its rotation.
    room = size / 2 - _REACH * scale
    x = columns - room * uniform(-1.0, 1.0)
    y = rows - room * uniform(-1.0, 1.0)
    turn = uniform(0.0, 2 * np.pi)
    u = (np.cos(turn) * x + np.sin(turn) * y) / scale
    v = (np.cos(turn) * y - np.sin(turn) * x) / scale

    distance = np.empty_like(u)
    for label, figure in enumerate(_FIGURES.values()):
        chosen = labels == label
        distance[chosen] = figure(u[chosen], v[chosen])
    # The share of each pixel that the figure covers, its outline taken as straight there.
    coverage = np.clip(0.5 - distance * scale, 0, 1)

    dark = uniform(0.05, 0.35, channels=3)
    light = dark + uniform(0.25, 0.65, channels=3)
    swap = uniform(0.0, 1.0) < 0.5
    ground, ink = np.where(swap, light, dark), np.where(swap, dark, light)
    # Uneven lighting, so that a pixel's value alone does not tell figure from background.
    shade = (uniform(-0.1, 0.1) * columns + uniform(-0.1, 0.1) * rows) / (size / 2)
    image: _Floats = ground + coverage * (ink - ground) + shade
    image += 0.03 * rng.standard_normal(image.shape, dtype=np.float32)
    return (255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8)


# The built-in set's fixed parts; the two are drawn from different seeds.
SHAPES_TRAIN_IMAGES = 6_000
SHAPES_TEST_IMAGES = 2_000


def shapes(*, seed: int = 0) -> tuple[ImageTensors, ImageTensors]:
    """The built-in synthetic set: ten kinds of coloured figures, 32x32, for training and testing.

    The images are drawn on the spot (see ``alexnet_lib.shapes``), so that the library runs with no
    network and no files: 6,000 for training and 2,000 for testing.
    """
    sets = []
    for count, part in ((SHAPES_TRAIN_IMAGES, 0), (SHAPES_TEST_IMAGES, 1)):
        images, labels = draw_shapes(count, seed=2 * seed + part)
        pixels = torch.from_numpy(images).movedim(-1, 1).contiguous()
        sets.append(ImageTensors(pixels, torch.from_numpy(labels), SHAPES_CLASSES))
    return sets[0], sets[1]
