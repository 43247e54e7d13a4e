"""Where and how tensors are computed: device, precision, memory format, seeds."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch

from alexnet_lib.checks import PROBABILITY, at_least, check_choice, check_fields, check_integer

Precision = Literal["float32", "bfloat16", "float16"]

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
MEMORY_FORMATS: Mapping[str, torch.memory_format] = MappingProxyType(
    {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
)


def default_device() -> torch.device:
    """The best available device: CUDA, then Apple's MPS, then the CPU.

    Example:
        >>> from alexnet_lib import default_device
        >>> default_device().type in {"cuda", "mps", "cpu"}
        True
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_device(device: torch.device | str) -> torch.device:
    """The device of this name; ``"auto"`` is ``default_device()``."""
    if device == "auto":
        return default_device()
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device is {str(device)!r}; expected 'auto' or a device of this machine: {reason}"
        ) from error
    return resolved


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16, rather than emulating it, which is far slower.

    AVX-512 BF16 or AMX on a CPU; compute capability 8.0 or newer on CUDA. (On processors without,
    bfloat16 has been reported 44 to 499 times slower: pytorch/pytorch issue 146508.)
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def multiplies_float16(device: torch.device) -> bool:
    """Whether the hardware multiplies float16 far faster than float32.

    Compute capability 7.0 or newer on CUDA: Volta and Turing (V100, T4) have it without bfloat16.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """The precision of this name.

    ``"auto"`` is bfloat16 where the hardware multiplies it, else float16 where the hardware is made
    for that, else float32.
    """
    check_choice("precision", precision, ("auto", *DTYPES))
    if precision == "auto":
        if multiplies_bfloat16(device):
            return "bfloat16"
        return "float16" if multiplies_float16(device) else "float32"
    return precision  # type: ignore[return-value]  # a key of DTYPES


@dataclass(frozen=True)
class Placement:
    """Device, dtype and memory format of batches of images."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format


@dataclass(frozen=True)
class RunOptions:
    """How a run is computed and shown; what is trained is in the recipe.

    Args:
        device: ``"auto"`` (CUDA, then Apple's MPS, then the CPU) or a device or its name.
        precision: ``"float32"``, ``"bfloat16"``, ``"float16"`` (with scaled gradients), or
            ``"auto"``: bfloat16 where the hardware multiplies it, float16 on older CUDA devices
            that are made for it (compute capability 7.0 and 7.5), else float32.
        memory_format: ``"contiguous"``, ``"channels_last"``, or ``"auto"``: channels_last on CPUs,
            where convolutions are faster in it, and for bfloat16 and float16 on CUDA, where tensor
            cores are.
        compile: train through ``torch.compile``, which takes about a minute at the start. On CPUs
            it has been slower than training without.
        num_workers: processes that decode image files, at least 0; images held in memory need
            none.
        progress: show a progress bar, and a line for each epoch, on the standard error stream.
        on_bad_image: what to do with an image file that cannot be read: ``"stop"``, an error that
            names it; or ``"skip"``, go on without it, and name it at the end.
        bad_image_limit: the fraction of the images of a part, from 0 to 1, that may be left out.

    Raises:
        ValueError: a field is out of its range.
    """

    device: str = "auto"
    precision: str = "auto"
    memory_format: str = "auto"
    compile: bool = False
    num_workers: Annotated[int, at_least(0)] = 0
    progress: bool = True
    on_bad_image: str = "stop"
    bad_image_limit: Annotated[float, PROBABILITY] = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        check_fields(self)
        check_choice("memory_format", self.memory_format, ("auto", *MEMORY_FORMATS))
        check_choice("precision", self.precision, ("auto", *DTYPES))
        check_choice("on_bad_image", self.on_bad_image, ("stop", "skip"))

    def resolved(self) -> "RunOptions":
        """The same with ``"auto"`` replaced by the choice for this machine."""
        device = resolve_device(self.device)
        precision = resolve_precision(self.precision, device)
        memory_format = self.memory_format
        if memory_format == "auto":
            faster = device.type == "cpu" or (device.type == "cuda" and precision != "float32")
            memory_format = "channels_last" if faster else "contiguous"
        return replace(self, device=str(device), precision=precision, memory_format=memory_format)

    @property
    def placement(self) -> Placement:
        """The placement of a run's batches; for resolved options."""
        return Placement(
            torch.device(self.device), DTYPES[self.precision], MEMORY_FORMATS[self.memory_format]
        )


def derived_seed(seed: int, *numbers: int) -> int:
    """One seed for each sequence of numbers, for example an epoch and a step."""
    seed = check_integer("seed", seed, 0)
    state = np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator_for(seed: int, *numbers: int) -> torch.Generator:
    """A generator with a derived seed."""
    return torch.Generator().manual_seed(derived_seed(seed, *numbers))


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's generators of the CPU and of this device.

    ``torch.manual_seed`` would seed those of all other devices too.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        state = torch.Generator(device).manual_seed(seed).get_state()
        torch.get_device_module(device).set_rng_state(state, *_index(device))


@contextmanager
def restored_generators(device: torch.device) -> Iterator[None]:
    """Restores torch's generators of the CPU and of this device when the block ends."""
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    state = torch.get_rng_state()
    accelerator_state = accelerator and accelerator.get_rng_state(*_index(device))
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if accelerator is not None:
            accelerator.set_rng_state(accelerator_state, *_index(device))


def _index(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []  # MPS has one device, and takes no argument


def versions() -> dict[str, str]:
    """Versions of Python and of the packages, for results and bug reports."""
    packages = ("alexnet-lib", "torch", "torchvision", "numpy", "pillow", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
