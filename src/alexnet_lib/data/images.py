"""Images as tensors, and sets of images: in memory, as files, or from other data sets."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from alexnet_lib.checks import check_integer, type_name
from alexnet_lib.data.decoding import FilePart, ImageError, pil_to_tensor, read_image
from alexnet_lib.data.paths import Paths

ImageLike = Image.Image | np.ndarray | Tensor

# Of red, green and blue in the luma of ITU-R 601, in units of 1 / 65536: as in Pillow's mode L.
_LUMA = (19595, 38470, 7471)

# More than any data set has; the names alone of a million classes take 100 MB.
MAX_CLASSES = 1_000_000
# Of an image; spectral cameras have some hundreds.
MAX_CHANNELS = 1024

_DTYPES = {torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64}

# The keys of items that are mappings, as in the data sets of Hugging Face.
IMAGE_KEYS = ("image", "img", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "target")


def image_to_tensor(
    image: ImageLike,
    argument: str = "image",
    channels: int | None = None,
    background: str = "white",
) -> Shaped[Tensor, "*batch c h w"]:
    """One image, or a batch of one size, as a tensor with its channels first.

    Arrays are ``(H, W)``, ``(H, W, C)`` or ``(N, H, W, C)``, tensors ``(H, W)``, ``(C, H, W)`` or
    ``(N, C, H, W)``: uint8 from 0 to 255, floating from 0 to 1, or uint16 from 0 to 65535, which
    becomes float32 from 0 to 1; the others keep their dtype and their memory. PIL images are
    converted as those of files (``read_image``).

    Args:
        image: the image.
        argument: its name in errors.
        channels: number of channels of the result. Grey images are repeated for 3, colour images
            become their luma for 1. None keeps the 1 or 3 of an array or tensor, and makes RGB of
            a PIL image.
        background: colour behind transparent pixels of a PIL image.

    Raises:
        TypeError: the image has another type.
        ValueError: a wrong rank, number of channels, dtype or range.
    """
    channels = check_integer("channels", channels, 1, MAX_CHANNELS, optional=True)
    if isinstance(image, Image.Image):
        return pil_to_tensor(image, argument, 3 if channels is None else channels, background)
    if isinstance(image, np.ndarray):
        kind, layout, channel_axis = "an array", "(H, W, {0}) or (N, H, W, {0})", -1
        tensor = _array_to_tensor(image, argument)
    elif isinstance(image, Tensor):
        kind, layout, channel_axis, tensor = "a tensor", "({0}, H, W) or (N, {0}, H, W)", -3, image
        check_dense(tensor, argument)
    else:
        raise TypeError(
            f"{argument} is a {type_name(image)}; expected a PIL image, an array or a tensor"
        )
    shape = tuple(tensor.shape)
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(channel_axis)
    allowed = {1, 3} if channels in {None, 1, 3} else {channels}
    number = tensor.shape[channel_axis] if tensor.ndim in {3, 4} else 0
    if number not in allowed or 0 in tensor.shape[-3:]:
        expected = layout.format("C") + f" with C = {' or '.join(map(str, sorted(allowed)))}"
        expected += ", or (H, W)" if 1 in allowed else ""
        if tensor.ndim in {3, 4} and tensor.shape[-4 - channel_axis] in allowed:
            expected += ": move the axis of the channels"
        elif channels is None and number:
            expected += ": for another number of channels, pass channels=C"
        raise ValueError(f"{argument} is {kind} of shape {shape}; expected {expected}")
    if tensor.dtype == torch.uint16:
        tensor = tensor.to(torch.float32) / 65535
    elif tensor.dtype not in _DTYPES:
        raise ValueError(_wrong_dtype(argument, tensor.dtype))
    if tensor.is_floating_point() and tensor.numel():
        low, high = (value.item() for value in torch.aminmax(tensor.detach()))
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{argument} has floats from {low:.4g} to {high:.4g}; expected 0 to 1: divide by "
                "the largest possible value first, and leave the normalisation to Preprocess (a "
                "DataLoader of normalised images is for train_one_epoch and evaluate)"
            )
    return with_channels(tensor.movedim(channel_axis, -3), channels or number, argument)


def as_list(values: Any) -> tuple[Any, ...] | list[Any] | None:
    """The values of a list, a tuple, an array or a tensor; None of anything else."""
    if isinstance(values, np.ndarray | Tensor):
        try:
            values = values.tolist()
        except (RuntimeError, TypeError):  # of no values: sparse tensors, the meta device
            return None
    return values if isinstance(values, tuple | list) else None


def check_dense(tensor: Tensor, argument: str) -> None:
    """Raises a ``ValueError`` unless a tensor has its values in memory, one after the other."""
    kinds = {"nested": tensor.is_nested, "meta": tensor.is_meta, "quantized": tensor.is_quantized}
    kinds["sparse"] = tensor.layout is not torch.strided
    if kind := next((name for name, true in kinds.items() if true), None):
        raise ValueError(f"{argument} is a {kind} tensor; expected a dense one, with its values")


def _array_to_tensor(array: np.ndarray, argument: str) -> Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # torch cannot share the memory of an array that is read-only, or has negative or odd strides.
    steps = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    shared = array.flags.writeable and steps
    try:
        return torch.from_numpy(array if shared else array.copy())
    except TypeError:  # strings and objects
        raise ValueError(_wrong_dtype(argument, array.dtype)) from None


def _wrong_dtype(argument: str, dtype: object) -> str:
    expected = "uint8 from 0 to 255, floats from 0 to 1, or uint16 from 0 to 65535"
    return f"{argument} has dtype {dtype}; expected {expected}"


def with_channels(
    images: Shaped[Tensor, "*batch c h w"], channels: int, argument: str = "images"
) -> Shaped[Tensor, "*batch c2 h w"]:
    """Images with 1 or 3 channels: grey is repeated, colour becomes its luma (ITU-R 601)."""
    present = images.shape[-3]
    if present == channels:
        return images
    if (present, channels) == (1, 3):
        return images.expand(*images.shape[:-3], 3, -1, -1)
    if (present, channels) != (3, 1):
        raise ValueError(f"{argument} has {present} channels; expected {channels}")
    red, green, blue = images.unbind(-3)
    if images.dtype == torch.uint8:  # exactly as Pillow rounds
        red, green, blue = red.int(), green.int(), blue.int()
        luma = (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 2**15) >> 16
    else:
        luma = (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]) / 2**16
    return luma.to(images.dtype).unsqueeze(-3)


def to_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 from 0 to 1, floating ones as float32."""
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.float()


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """Images with int64 ``labels`` from 0 to ``len(classes) - 1``, and the names of the classes.

    All images have ``channels`` channels.
    """

    labels: Tensor
    classes: tuple[str, ...]
    channels: int

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.image(index), int(self.labels[index])

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self):,} images, {self.channels} channels, "
            f"{len(self.classes)} classes)"
        )

    @abstractmethod
    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        """One image, uint8, or floating from 0 to 1."""

    @abstractmethod
    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageSet":
        """The images of these indices, in this order."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageTensors(ImageSet):
    """Images held in memory as one tensor."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:  # type: ignore[override]  # noqa: D102  (as above)
        return self.images.shape[1]

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:  # noqa: D102
        return self.images[index]

    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageTensors":  # noqa: D102
        return replace(self, images=self.images[indices], labels=self.labels[indices])


class EncodedImages(ImageSet):
    """Images on disk, decoded at each access; ``background`` is behind transparent pixels."""

    background: str

    @abstractmethod
    def source(self, index: int) -> Path | FilePart:
        """The file of an image, or the part of a file."""

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:  # noqa: D102
        source = self.source(index)
        return read_image(source, channels=self.channels, background=self.background)


@dataclass(frozen=True, eq=False, repr=False)
class ImageFiles(EncodedImages):
    """Image files. ``files`` may be any sequence of paths and is stored compactly."""

    files: Sequence[Path]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    channels: int = 3
    background: str = "white"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.files, Paths):
            object.__setattr__(self, "files", Paths(self.files))  # the class is frozen

    def source(self, index: int) -> Path:  # noqa: D102
        return self.files[index]

    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageFiles":  # noqa: D102
        assert isinstance(self.files, Paths)
        return replace(self, files=self.files.subset(indices), labels=self.labels[indices])


@dataclass(frozen=True, eq=False, repr=False)
class ImageShards(EncodedImages):
    """Images in tar files, each read at its place, in any order.

    Args:
        members: the names of the images, with the tar files as their folders.
        offsets: of the first byte of each image in its tar file.
        sizes: of the images, in bytes.
        versions: size and time of change (ns) of each tar file, by its path.
        labels: as in every ``ImageSet``, and so are the others.
        classes: names of the classes.
        channels: of the images.
        background: colour behind transparent pixels.
    """

    members: Paths
    offsets: Int64[Tensor, " n"]
    sizes: Int64[Tensor, " n"]
    versions: Mapping[str, tuple[int, int]]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    channels: int = 3
    background: str = "white"

    def source(self, index: int) -> FilePart:  # noqa: D102
        shard, name = self.members.pair(index)
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        return FilePart(Path(shard), name, offset, size, self.versions[shard])

    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageShards":  # noqa: D102
        return replace(
            self,
            members=self.members.subset(indices),
            offsets=self.offsets[indices],
            sizes=self.sizes[indices],
            labels=self.labels[indices],
        )


@dataclass(frozen=True, eq=False, repr=False)
class WrappedDataset(ImageSet):
    """The items ``indices`` of a user's map-style data set, read each time."""

    dataset: Dataset[Any]
    indices: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    channels: int = 3
    background: str = "white"

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:  # noqa: D102
        position = int(self.indices[index])
        image, _ = read_item(self.dataset, position)
        name = f"image {position} of the data set"
        tensor = image_to_tensor(image, name, self.channels, self.background)
        if tensor.ndim != 3:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected one image, no batch"
            )
        return tensor

    def subset(self, indices: Int64[Tensor, " n"]) -> "WrappedDataset":  # noqa: D102
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])


def image_and_label(item: Any) -> tuple[Any, Any] | None:
    """Image and label of a pair, or of a mapping with usual keys; None of anything else."""
    if isinstance(item, Mapping):
        found = [[item[key] for key in keys if key in item] for keys in (IMAGE_KEYS, LABEL_KEYS)]
        return (found[0][0], found[1][0]) if all(found) else None
    return (item[0], item[1]) if isinstance(item, tuple | list) and len(item) == 2 else None


def image_of(item: Any) -> Any:
    """The image of an item, or the images of a batch, that may have labels beside them."""
    if isinstance(item, Mapping):
        return next((item[key] for key in IMAGE_KEYS if key in item), item)
    return item[0] if isinstance(item, tuple | list) and item else item


def read_item(dataset: Any, index: int) -> tuple[Any, Any]:
    """Image and label of an item of a user's data set: a pair, or a mapping with usual keys."""
    try:
        item = dataset[index]
    except MemoryError as error:  # is not the item's fault
        raise MemoryError(f"item {index} of data: there is not enough memory to read it") from error
    except Exception as error:
        reason = f"{type_name(error)}: {error}"
        raise ImageError(f"item {index} of data cannot be read: {reason}") from error
    if (pair := image_and_label(item)) is not None:
        return pair
    if isinstance(item, Mapping):
        raise TypeError(
            f"item {index} of data has the keys {[*item]}; expected one of {IMAGE_KEYS} for the "
            f"image and one of {LABEL_KEYS} for the label: rename the columns"
        )
    length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    raise TypeError(
        f"item {index} of data is a {type_name(item)}{length}; expected a pair (image, label), "
        "or a mapping with 'image' and 'label'"
    )


def check_labels(labels: Int64[Tensor, " n"], classes: Sequence[object]) -> None:
    """Raises a ``ValueError`` unless every label is the number of a class."""
    if len(labels):
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= len(classes):
            raise ValueError(
                f"labels run from {low} to {high}; expected 0 to {len(classes) - 1}, "
                f"the numbers of the {len(classes)} classes"
            )
