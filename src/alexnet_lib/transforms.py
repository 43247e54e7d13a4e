"""From images of any kind to normalised batches, on the device that holds them.

``Preprocess`` is the fixed treatment, the same for a batch in training, a batch in testing and one
photo; an ``Augmentation`` is the random part, in training only.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageOps
from torch import Tensor

from alexnet_lib import kernels

ImageFit = Literal["crop", "squash"]
ImageLike = Image.Image | np.ndarray | Tensor


def image_to_tensor(image: ImageLike, argument: str = "image") -> Shaped[Tensor, "*batch 3 h w"]:
    """One image or a batch of one size, as a tensor with its channels first.

    Args:
        image: a PIL image of any 8-bit kind (EXIF rotation is applied; grey, palette and RGBA
            become RGB, an alpha channel is dropped) or of 16-bit grey; an array ``(H, W, 3)`` or
            ``(N, H, W, 3)``; a tensor ``(3, H, W)`` or ``(N, 3, H, W)``. Arrays and tensors are
            uint8 from 0 to 255 or floating from 0 to 1.
        argument: what an error calls the image.

    Returns:
        uint8 from 0 to 255, or floating from 0 to 1 in the dtype it came in; a tensor's own
        memory, an array's too.

    Raises:
        ValueError: a wrong rank, channel count, dtype or range.
        TypeError: neither a PIL image nor an array nor a tensor.
    """
    if isinstance(image, Image.Image):
        return _pil_to_tensor(image, argument)
    if isinstance(image, np.ndarray):
        kind, layout, channels_at = "an array", "(H, W, 3) or (N, H, W, 3)", -1
        # torch has no type for a read-only or negatively strided array's memory.
        fits = image.flags.writeable and min(image.strides, default=0) >= 0
        tensor = torch.from_numpy(image if fits else image.copy())
    elif isinstance(image, Tensor):
        kind, layout, channels_at, tensor = "a tensor", "(3, H, W) or (N, 3, H, W)", -3, image
    else:
        raise TypeError(
            f"{argument} is a {type(image).__name__}; expected a PIL image, an array or a tensor"
        )
    shape = tuple(tensor.shape)
    if tensor.ndim not in {3, 4} or shape[channels_at] != 3 or 0 in shape[-3:]:
        raise ValueError(f"{argument} is {kind} of shape {shape}; expected {layout}")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ValueError(
            f"{argument} has dtype {tensor.dtype}; expected uint8 from 0 to 255 or floats from 0 "
            "to 1"
        )
    if tensor.is_floating_point() and tensor.numel():
        low, high = (value.item() for value in torch.aminmax(tensor.detach()))
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{argument} has floats from {low:.4g} to {high:.4g}; expected 0 to 1: divide by "
                "the largest possible value first, and leave the normalisation to Preprocess"
            )
    return tensor.movedim(-1, -3) if channels_at == -1 else tensor


def _pil_to_tensor(image: Image.Image, argument: str) -> Tensor:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion to RGB clips 16-bit grey at 255 instead of scaling it.
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        image = Image.fromarray(grey)
    elif image.mode in {"I", "F"}:
        raise ValueError(
            f"{argument} is a PIL image of mode {image.mode!r}, whose range is not defined; "
            "expected 8-bit or 16-bit"
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)


@dataclass(frozen=True)
class Preprocess:
    """What turns an image into the network's input, in training, in testing and for one photo.

    Resize, centre crop, then ``(scale * image - mean) / std`` with image values from 0 to 1. The
    resize is bilinear with antialiasing, torchvision's default.

    Args:
        resize: side, in pixels, of the square that an image is fitted to; at least ``image_size``.
        image_size: side, in pixels, of the centre crop that the network sees.
        fit: ``"crop"`` scales the shorter side to ``resize`` and cuts the rest off equally;
            ``"squash"`` forces both sides to it. The same for square images.
        scale: what an image value of 1 becomes before the mean is taken off: 1, or 255 for the
            raw values that the paper uses.
        mean: mean of each channel, in units of ``scale``.
        std: standard deviation of each channel, in units of ``scale``; above 0.

    Raises:
        ValueError: a field is out of its range.

    Example:
        >>> import numpy as np
        >>> from alexnet_lib import Preprocess
        >>> preprocess = Preprocess(resize=67, image_size=67, mean=(0.5,) * 3, std=(0.25,) * 3)
        >>> photo = np.full((480, 640, 3), 255, dtype=np.uint8)
        >>> preprocess(photo).shape, round(preprocess(photo).mean().item(), 3)
        (torch.Size([3, 67, 67]), 2.0)
    """

    resize: int = 227
    image_size: int = 227
    fit: ImageFit = "crop"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("image_size", "resize"):
            value, least = getattr(self, name), 1 if name == "image_size" else self.image_size
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")
        if self.fit not in {"crop", "squash"}:
            raise ValueError(f"image_fit is {self.fit!r}; expected 'crop' or 'squash'")
        if not 0 < self.scale < np.inf:
            raise ValueError(f"scale is {self.scale!r}; expected a finite number above 0")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if np.shape(value) != (3,) or not np.isfinite(value).all():
                raise ValueError(f"{name} is {value!r}; expected three finite numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}; expected three numbers above 0")

    def __call__(self, image: ImageLike) -> Float[Tensor, "*batch 3 size size"]:
        """The network's input for one image or for a batch of images of one size.

        Args:
            image: see ``image_to_tensor``: a PIL image, an array ``(H, W, 3)`` or
                ``(N, H, W, 3)``, or a tensor ``(3, H, W)`` or ``(N, 3, H, W)``; uint8, or
                floating from 0 to 1.

        Returns:
            float32 ``(3, image_size, image_size)``, or ``(N, 3, image_size, image_size)`` for a
            batch, on the image's device.

        Raises:
            ValueError: a wrong rank, channel count, dtype or range.
        """
        return self.network_input(image_to_tensor(image))

    def network_input(
        self,
        images: Shaped[Tensor, "*batch 3 h w"],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Float[Tensor, "*batch 3 size size"]:
        """``__call__`` for tensors known to be uint8, or floating from 0 to 1, made in a dtype.

        Where a batch of uint8 images on the CPU is enlarged, one compiled loop does all of it.

        Args:
            images: ``(3, H, W)`` or ``(N, 3, H, W)``.
            dtype: of the result; values are computed in float32.
            memory_format: of the result of a batch.

        Returns:
            ``(3, image_size, image_size)``, or a batch of them, on the device of ``images``.

        Raises:
            ValueError: a wrong rank or channel count, or images without pixels.
        """
        height, width = images.shape[-2:]
        if images.ndim not in {3, 4} or images.shape[-3] != 3 or 0 in (height, width):
            raise ValueError(
                f"images has shape {tuple(images.shape)}; expected (3, H, W) or (N, 3, H, W)"
            )
        enlarges = max(height, width) <= self.resize
        keeps_shape = height == width or self.fit == "squash"
        if enlarges and keeps_shape and images.ndim == 4:
            made = kernels.enlarge(
                images,
                resize=self.resize,
                size=self.image_size,
                scale=self.scale,
                mean=self.mean,
                std=self.std,
                dtype=dtype,
                memory_format=memory_format,
            )
            if made is not None:
                return made
        if enlarges:
            # Bilinear weights add up to 1, so the few pixels there are can be normalised first.
            made = self.center_cropped(self.resized(self.normalized(_unit(images))))
        else:
            made = self.normalized(self.center_cropped(self.resized(images)))
        made = made.to(dtype)
        return made.contiguous(memory_format=memory_format) if made.ndim == 4 else made

    def resized(self, images: Shaped[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 r r"]:
        """uint8 images, or floating ones from 0 to 1, as float32 ``resize`` x ``resize``."""
        unit = _unit(images)
        height, width = images.shape[-2:]
        if height == width == self.resize:
            return unit
        size = [self.resize, self.resize]
        if self.fit == "crop":
            ratio = self.resize / min(height, width)
            size = [max(self.resize, round(side * ratio)) for side in (height, width)]
        batch = unit if unit.ndim == 4 else unit[None]
        # Antialiasing changes nothing where an image grows, and costs more.
        shrinks = size[0] < height or size[1] < width
        resized = F.interpolate(batch, size, mode="bilinear", antialias=shrinks)
        resized = _center_crop(resized, self.resize)
        return resized if unit.ndim == 4 else resized[0]

    def center_cropped(
        self, images: Shaped[Tensor, "*batch 3 r r"]
    ) -> Shaped[Tensor, "*batch 3 size size"]:
        """The middle ``image_size`` x ``image_size`` of images."""
        return _center_crop(images, self.image_size)

    def normalized(self, images: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
        """``(scale * image - mean) / std`` of floating images from 0 to 1."""
        mean, std = (
            torch.tensor(value, dtype=images.dtype, device=images.device)[:, None, None]
            for value in (self.mean, self.std)
        )
        scaled = images if self.scale == 1 else images * self.scale
        return (scaled - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that JSON can hold; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocess":
        """The treatment that ``to_dict`` wrote.

        Raises:
            ValueError: the data does not describe one.
        """
        try:
            return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"data is not a Preprocess: {error!r}") from error


def _unit(images: Tensor) -> Tensor:
    """uint8 images as float32 from 0 to 1, floating ones as float32."""
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.float()


def _center_crop(images: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


@runtime_checkable
class Augmentation(Protocol):
    """A random change of training images.

    What is random is drawn for all images of an epoch at once, in the order in which they come;
    so a batch's images do not depend on the batch size or on who makes the batch.

    Attributes:
        commutes_with_resize: whether it may as well be applied before the resize, to images as the
            data set holds them, which are mostly smaller and often uint8.
    """

    commutes_with_resize: ClassVar[bool]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of ``count`` images: a CPU tensor with one row for each."""
        ...

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The changed images, ``(batch, 3, H, W)``, given their rows of ``draw``."""
        ...


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors each image left to right with the given probability (paper, section 4.1).

    Example:
        >>> import torch
        >>> from alexnet_lib.transforms import HorizontalFlip
        >>> flip = HorizontalFlip()
        >>> draws = flip.draw(4, torch.Generator().manual_seed(0))
        >>> flip.apply(torch.rand(4, 3, 8, 8), draws).shape
        torch.Size([4, 3, 8, 8])
    """

    commutes_with_resize: ClassVar[bool] = True

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability!r}; expected 0 to 1")

    def draw(self, count: int, generator: torch.Generator) -> Bool[Tensor, " count"]:
        """Which images are mirrored."""
        return torch.rand(count, generator=generator) < self.probability

    def apply(
        self, images: Shaped[Tensor, "batch 3 h w"], draws: Bool[Tensor, " batch"]
    ) -> Shaped[Tensor, "batch 3 h w"]:
        """The images, some of them mirrored."""
        return torch.where(draws.to(images.device)[:, None, None, None], images.flip(-1), images)
