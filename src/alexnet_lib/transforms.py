"""From images of any kind to normalised batches, on the device that holds them.

``Preprocess`` is the fixed treatment, the same for a batch in training, a batch in testing and one
photo; an ``Augmentation`` is the random part, in training only. What is random is drawn for all
images of an epoch at once, in the order in which they come, so that an image's treatment does not
depend on the batch size or on who makes the batch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from PIL import Image, ImageOps
from torch import Tensor

from alexnet_lib import kernels

ImageFit = Literal["crop", "squash"]
ImageLike = Image.Image | np.ndarray | Tensor

VIEWS = (1, 2, 10)
"""Numbers of views of an image that an evaluation can average over."""


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
        edge: how many of the input's columns at the right and rows at the bottom are zeros instead
            of image. The released code's 224 pixels with rounding up are 227 with 3 of them.

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
    edge: int = 0

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("edge", 0), ("resize", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")
        if self.edge >= self.image_size:
            raise ValueError(
                f"edge is {self.edge}; expected less than image_size, {self.image_size}"
            )
        if self.resize < self.window:
            raise ValueError(
                f"resize is {self.resize}; expected at least {self.window}, what the network sees"
            )
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

    @property
    def window(self) -> int:
        """Side of the part of an image that the network sees: ``image_size - edge``, in pixels."""
        return self.image_size - self.edge

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
        corners: Int64[Tensor, "batch 2"] | None = None,
    ) -> Float[Tensor, "*batch 3 size size"]:
        """``__call__`` for tensors known to be uint8, or floating from 0 to 1, made in a dtype.

        Where a batch of small images on the CPU is enlarged, one compiled loop does all of it.

        Args:
            images: ``(3, H, W)`` or ``(N, 3, H, W)``.
            dtype: of the result; values are computed in float32.
            memory_format: of the result of a batch.
            corners: for each image of a batch, row and column of the upper left corner of what is
                cut out of the resized image, from 0 to ``resize - window``; None is the centre.

        Returns:
            ``(3, image_size, image_size)``, or a batch of them, on the device of ``images``.

        Raises:
            ValueError: a wrong rank or channel count, images without pixels, or corners that leave
                the resized image.
        """
        height, width = images.shape[-2:]
        if images.ndim not in {3, 4} or images.shape[-3] != 3 or 0 in (height, width):
            raise ValueError(
                f"images has shape {tuple(images.shape)}; expected (3, H, W) or (N, 3, H, W)"
            )
        if corners is not None:
            self._check_corners(corners, images)
        enlarges = max(height, width) <= self.resize
        keeps_shape = height == width or self.fit == "squash"
        if enlarges and keeps_shape and images.ndim == 4:
            if corners is None:
                middle = (self.resize - self.window) // 2
                places = torch.full((len(images), 2), middle, device=images.device)
            else:
                places = corners
            made = kernels.enlarge(
                images,
                places,
                resize=self.resize,
                window=self.window,
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
            made = self._cut(self.resized(self.normalized(_unit(images))), corners)
        else:
            made = self.normalized(self._cut(self.resized(images), corners))
        made = self._with_edge(made.to(dtype))
        return made.contiguous(memory_format=memory_format) if made.ndim == 4 else made

    def views(
        self, images: Float[Tensor, "batch 3 r r"], number: int
    ) -> Iterator[Float[Tensor, "batch 3 size size"]]:
        """Several views of the same images, each as the network's input (paper, section 4.1).

        Args:
            images: normalised and of ``resize`` x ``resize`` pixels.
            number: 1, the centre; 2, the centre and its mirror image; 10, the four corners and the
                centre, each also mirrored.

        Yields:
            One view of all images at a time.

        Raises:
            ValueError: another number; ten views of images that leave no room for them.
        """
        if number not in VIEWS:
            raise ValueError(f"views is {number!r}; expected one of {', '.join(map(str, VIEWS))}")
        room = self.resize - self.window
        if number == 10 and not room:
            raise ValueError(
                f"views is 10, but resize is {self.resize}, all of which the network sees; "
                "expected a larger resize than image_size: build the loaders with resize=256, for "
                "example"
            )
        middle = (room // 2, room // 2)
        corners = [(0, 0), (0, room), (room, 0), (room, room)] if number == 10 else []
        for top, left in (*corners, middle):
            view = images[..., top : top + self.window, left : left + self.window]
            yield self._with_edge(view)
            if number > 1:
                yield self._with_edge(view.flip(-1))

    def _check_corners(self, corners: Tensor, images: Tensor) -> None:
        expected = (len(images), 2)
        if images.ndim != 4 or tuple(corners.shape) != expected:
            raise ValueError(f"corners has shape {tuple(corners.shape)}; expected (batch, 2)")
        # On a GPU looking would mean waiting, and an index out of range is an error there anyway.
        if corners.device.type == "cpu" and corners.numel():
            low, high = (int(value) for value in torch.aminmax(corners))
            room = self.resize - self.window
            if low < 0 or high > room:
                raise ValueError(f"corners run from {low} to {high}; expected 0 to {room}")

    def _with_edge(self, images: Tensor) -> Tensor:
        return F.pad(images, (0, self.edge, 0, self.edge)) if self.edge else images

    def _cut(self, images: Tensor, corners: Tensor | None) -> Tensor:
        """What the network sees of images of ``resize`` x ``resize`` pixels."""
        if corners is None:
            return _center_crop(images, self.window)
        side = torch.arange(self.window, device=images.device)
        rows, columns = (corners[:, i, None].to(images.device) + side for i in (0, 1))
        channels = torch.arange(images.shape[1], device=images.device)
        place = torch.arange(len(images), device=images.device)
        return images[
            place[:, None, None, None],
            channels[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

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
    """A random change of each training image by itself.

    Attributes:
        on: ``"pixels"``: it changes images as they come, mostly small and uint8, before the resize
            where the data set's images are of one size, or else after it, then floating from 0 to
            1; ``"input"``: it changes the network's input, after crop and normalisation.
    """

    on: ClassVar[Literal["pixels", "input"]]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of ``count`` images: a CPU tensor with one row for each."""
        ...

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The changed images, ``(batch, 3, H, W)``, given their rows of ``draw``."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """A random mixture of each training image, and its label, with the next one of the epoch."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of ``count`` images: a CPU tensor with one row for each."""
        ...

    def mix(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch + 1, 3, H, W)`` images, each mixed with the next; the share each keeps."""
        ...


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors each image left to right with the given probability (paper, section 4.1).

    Args:
        probability: from 0 to 1; the paper's 1/2.

    Example:
        >>> import torch
        >>> from alexnet_lib.transforms import HorizontalFlip
        >>> flip = HorizontalFlip()
        >>> draws = flip.draw(4, torch.Generator().manual_seed(0))
        >>> flip.apply(torch.rand(4, 3, 8, 8), draws).shape
        torch.Size([4, 3, 8, 8])
    """

    on: ClassVar[Literal["pixels", "input"]] = "pixels"

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def draw(self, count: int, generator: torch.Generator) -> Bool[Tensor, " count"]:
        """Which images are mirrored."""
        return torch.rand(count, generator=generator) < self.probability

    def apply(
        self, images: Shaped[Tensor, "batch 3 h w"], draws: Bool[Tensor, " batch"]
    ) -> Shaped[Tensor, "batch 3 h w"]:
        """The images, some of them mirrored."""
        return torch.where(draws.to(images.device)[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class RandomCrop:
    """Cuts the network's window out of a random place of the resized image (paper, section 4.1).

    How far it moves is up to the loader: ``resize`` less what the network sees. The paper's 224 of
    256 pixels leave 33 x 33 places. The cut is made while images are enlarged, and costs nothing.

    Example:
        >>> import torch
        >>> from alexnet_lib.transforms import RandomCrop
        >>> crop = RandomCrop()
        >>> draws = crop.draw(4, torch.Generator().manual_seed(0))
        >>> crop.corners(draws, room=32).shape
        torch.Size([4, 2])
    """

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """Where each window lies, vertically and horizontally, from 0 to below 1."""
        return torch.rand(count, 2, generator=generator)

    def corners(self, draws: Float[Tensor, "batch 2"], room: int) -> Int64[Tensor, "batch 2"]:
        """Row and column of the windows' upper left corners, each from 0 to ``room``."""
        return (draws * (room + 1)).long()


@dataclass(frozen=True)
class ColorComponents:
    """Principal components of the colours of pixels, for values from 0 to 1, the largest first.

    ``directions[i]`` is the i-th unit vector (red, green, blue) and ``std[i]`` the standard
    deviation of the pixels along it, the square root of the covariance's eigenvalue. ``count`` is
    the number of images they were measured on.
    """

    std: tuple[float, float, float]
    directions: tuple[
        tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]
    ]
    count: int


@dataclass(frozen=True)
class ColorNoise:
    """Adds to each image one random colour along the principal components (paper, section 4.1).

    The colour is the sum over the components of a x (standard deviation) x (direction), where a is
    drawn anew for each image and component. The paper's text multiplies by the eigenvalue, which is
    a variance and would change with the unit of the pixels; the authors' code multiplies by what it
    calls ``color_stdevs``, and so does this. Values may leave the range from 0 to 1.

    Args:
        components: as ``compute_color_components`` measures them over the training set.
        strength: standard deviation of a, at least 0; the paper's 0.1.

    Example:
        >>> import torch
        >>> from alexnet_lib import compute_color_components
        >>> from alexnet_lib.transforms import ColorNoise
        >>> images = torch.rand(4, 3, 8, 8)
        >>> noise = ColorNoise(compute_color_components(images))
        >>> draws = noise.draw(4, torch.Generator().manual_seed(0))
        >>> noise.apply(images, draws).shape
        torch.Size([4, 3, 8, 8])
    """

    on: ClassVar[Literal["pixels", "input"]] = "pixels"

    components: ColorComponents
    strength: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength is {self.strength!r}; expected a finite number from 0")

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 3"]:
        """What is added to each image's red, green and blue."""
        std = torch.tensor(self.components.std) * self.strength
        directions = torch.tensor(self.components.directions)
        return torch.randn(count, 3, generator=generator) * std @ directions

    def apply(
        self, images: Shaped[Tensor, "batch 3 h w"], draws: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch 3 h w"]:
        """The images in other colours, float32."""
        return _unit(images) + draws.to(images.device)[:, :, None, None]


@dataclass(frozen=True)
class TrivialAugment:
    """One random operation of random strength on each image: Müller and Hutter, arXiv 2103.10158.

    torchvision's ``TrivialAugmentWide``, image by image, so it is for small images on the CPU: 128
    of CIFAR-10 take some 20 ms.

    Example:
        >>> import torch
        >>> from alexnet_lib.transforms import TrivialAugment
        >>> augment = TrivialAugment()
        >>> draws = augment.draw(4, torch.Generator().manual_seed(0))
        >>> augment.apply(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), draws).shape
        torch.Size([4, 3, 8, 8])
    """

    on: ClassVar[Literal["pixels", "input"]] = "pixels"

    def draw(self, count: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
        """A seed for each image."""
        return torch.randint(2**62, (count,), generator=generator)

    def apply(
        self, images: Shaped[Tensor, "batch 3 h w"], draws: Int64[Tensor, " batch"]
    ) -> Shaped[Tensor, "batch 3 h w"]:
        """The changed images, uint8."""
        from torchvision.transforms.v2 import TrivialAugmentWide

        augment = TrivialAugmentWide()
        if images.dtype != torch.uint8:
            images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        made = torch.empty_like(images)
        # torchvision draws from the global generator of the CPU, which is put back.
        with torch.random.fork_rng(devices=[]):
            for place, seed in enumerate(draws.tolist()):
                torch.default_generator.manual_seed(seed)
                made[place] = augment(images[place])
        return made


@dataclass(frozen=True)
class RandomErasing:
    """Erases a rectangle of each image with the given probability: Zhong et al., arXiv 1708.04896.

    What is erased becomes 0 in the network's input: the training set's mean.

    Args:
        probability: from 0 to 1.
        area: smallest and largest share of the image that is erased, before a side longer than the
            image's is cut.
        ratio: least and greatest height over width.

    Example:
        >>> import torch
        >>> from alexnet_lib.transforms import RandomErasing
        >>> erasing = RandomErasing(probability=1.0)
        >>> draws = erasing.draw(4, torch.Generator().manual_seed(0))
        >>> erased = erasing.apply(torch.ones(4, 3, 20, 20), draws)
        >>> sorted(set(erased.flatten().tolist()))
        [0.0, 1.0]
    """

    on: ClassVar[Literal["pixels", "input"]] = "input"

    # The defaults are the paper's for CIFAR-10, but for the area, which is torchvision's 0.02 to
    # 0.33 (the paper: to 0.4).
    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is {self.area!r}; expected two rising shares up to 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio!r}; expected two rising numbers above 0")

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 4"]:
        """Top, left, height and width of the rectangles, as shares of the image's side.

        Top and left are shares of the room that the rectangle leaves. Without a rectangle, height
        and width are 0.
        """
        erased, area, ratio, top, left = torch.rand(5, count, generator=generator)
        area = self.area[0] + area * (self.area[1] - self.area[0])
        low, high = map(math.log, self.ratio)
        ratio = (low + ratio * (high - low)).exp()
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)
        sides = sides * (erased < self.probability)[:, None]
        return torch.cat([top[:, None], left[:, None], sides], dim=1)

    def apply(
        self, images: Float[Tensor, "batch 3 h w"], draws: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch 3 h w"]:
        """The images, some of them with a rectangle of zeros."""
        size = torch.tensor(images.shape[-2:])
        sides = (draws[:, 2:] * size).round()
        starts = ((size - sides + 1) * draws[:, :2]).floor()
        erased = images.clone()
        # One by one: a mask of all images takes three times as long on the CPU.
        for image, start, side in zip(
            erased, starts.long().tolist(), sides.long().tolist(), strict=True
        ):
            (top, left), (height, width) = start, side
            image[:, top : top + height, left : left + width] = 0
        return erased


@dataclass(frozen=True)
class Mixup:
    """Mixes each image with the next, pixel by pixel: Zhang et al., arXiv 1710.09412.

    Args:
        alpha: the share that an image keeps is drawn from Beta(alpha, alpha); above 0.

    Example:
        >>> import torch
        >>> from alexnet_lib.transforms import Mixup
        >>> mixup = Mixup(alpha=0.2)
        >>> draws = mixup.draw(4, torch.Generator().manual_seed(0))
        >>> images, kept = mixup.mix(torch.rand(5, 3, 8, 8), draws)
        >>> images.shape, kept.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4]))
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
        """The share that each image keeps."""
        return _beta(self.alpha, count, generator)

    def mix(
        self, images: Shaped[Tensor, "one_more 3 h w"], draws: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch 3 h w"], Float[Tensor, " batch"]]:
        """All images but the last, mixed with the next one, float32; the share each keeps."""
        kept = draws.to(images.device)
        return torch.lerp(_unit(images[1:]), _unit(images[:-1]), kept[:, None, None, None]), kept


@dataclass(frozen=True)
class CutMix:
    """Pastes a rectangle of the next image into each: Yun et al., arXiv 1905.04899.

    Images are mixed before they are cropped: of a rectangle at the border, a ``RandomCrop`` may cut
    some away, which the labels' shares do not know.

    Args:
        alpha: the share that an image keeps is drawn from Beta(alpha, alpha); above 0. A rectangle
            that reaches over the edge is cut, and the share is that of the pixels kept.

    Example:
        >>> import torch
        >>> from alexnet_lib.transforms import CutMix
        >>> cutmix = CutMix()
        >>> draws = cutmix.draw(4, torch.Generator().manual_seed(0))
        >>> images, kept = cutmix.mix(torch.rand(5, 3, 8, 8), draws)
        >>> images.shape, kept.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4]))
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 3"]:
        """The centre of each rectangle, vertically and horizontally, and its side, from 0 to 1."""
        side = (1 - _beta(self.alpha, count, generator)).sqrt()
        return torch.cat([torch.rand(count, 2, generator=generator), side[:, None]], dim=1)

    def mix(
        self, images: Shaped[Tensor, "one_more 3 h w"], draws: Float[Tensor, "batch 3"]
    ) -> tuple[Shaped[Tensor, "batch 3 h w"], Float[Tensor, " batch"]]:
        """All images but the last, with a rectangle of the next one; the share each keeps."""
        size = torch.tensor(images.shape[-2:])
        centers, halves = draws[:, :2] * size, draws[:, 2:] * size / 2
        boxes = _boxes((centers - halves).round(), (centers + halves).round(), images[1:])
        kept = 1 - boxes.float().mean((1, 2, 3))
        return torch.where(boxes, images[1:], images[:-1]), kept


def _boxes(
    starts: Float[Tensor, "batch 2"],
    ends: Float[Tensor, "batch 2"],
    images: Shaped[Tensor, "batch 3 h w"],
) -> Bool[Tensor, "batch 1 h w"]:
    """Which pixels of images lie in their box, from ``starts`` to before ``ends``."""
    inside = []
    for axis, side in enumerate(images.shape[-2:]):
        place = torch.arange(side, device=images.device)
        start, end = (edges[:, axis, None].to(images.device) for edges in (starts, ends))
        inside.append((place >= start) & (place < end))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    # torch.distributions takes no generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability!r}; expected 0 to 1")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha!r}; expected a finite number above 0")
