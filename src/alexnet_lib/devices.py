"""Where and how tensors are computed: device, precision, memory format, seeds."""

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def default_device() -> torch.device:
    """The best device there is: CUDA, then Apple's MPS, then the CPU.

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


@functools.cache
def _announced_default_device() -> torch.device:
    device = default_device()
    print(f"device: {device} (chosen automatically)", file=sys.stderr)
    return device


def resolve_device(device: torch.device | str) -> torch.device:
    """The device of this name; ``"auto"`` is ``default_device()``, said once.

    Raises:
        ValueError: there is no such device on this machine.
    """
    if device == "auto":
        return _announced_default_device()
    return checked_device(device, "'auto' or a device of this machine")


def checked_device(device: torch.device | str, expected: str) -> torch.device:
    """The device of this name; ``expected`` is what an error says could be passed.

    Raises:
        ValueError: there is no such device on this machine.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device is {str(device)!r}; expected {expected}: {reason}") from error
    return found


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


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """``"float32"`` or ``"bfloat16"``; ``"auto"`` takes the latter where hardware multiplies it.

    Raises:
        ValueError: the precision is unknown.
    """
    match precision:
        case "auto":
            return "bfloat16" if multiplies_bfloat16(device) else "float32"
        case "float32":
            return "float32"
        case "bfloat16":
            return "bfloat16"
    raise ValueError(f"precision is {precision!r}; expected 'float32', 'bfloat16' or 'auto'")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators of the CPU and of the device, and puts them back in the end.

    ``torch.manual_seed`` would seed those of all other devices too.
    """
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    where = [device] if device.type == "cuda" else []  # MPS has one device, and takes no argument
    states = torch.get_rng_state(), accelerator and accelerator.get_rng_state(*where)
    try:
        torch.default_generator.manual_seed(seed)
        if accelerator is not None:
            generator = torch.Generator(device).manual_seed(seed)
            accelerator.set_rng_state(generator.get_state(), *where)
        yield
    finally:
        torch.set_rng_state(states[0])
        if accelerator is not None:
            accelerator.set_rng_state(states[1], *where)


MEMORY_FORMATS: Mapping[str, torch.memory_format] = MappingProxyType(
    {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
)


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out, as opposed to what is trained.

    Args:
        device: ``"auto"`` (CUDA, then Apple's MPS, then the CPU) or a device's name.
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the hardware
            multiplies it.
        memory_format: ``"contiguous"``, ``"channels_last"``, or ``"auto"``: channels_last on CPUs,
            whose convolutions are faster in it, and for bfloat16 on CUDA, whose tensor cores are.
        compile: train through ``torch.compile``, which takes a minute or so at the start. On CPUs
            it has been slower than training without.
        num_workers: processes that decode image files; images held in memory need none.
        progress: say how the run goes, on the standard error stream.
    """

    device: str = "auto"
    precision: str = "auto"
    memory_format: str = "auto"
    compile: bool = False
    num_workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.memory_format not in {"auto", *MEMORY_FORMATS}:
            raise ValueError(
                f"memory_format is {self.memory_format!r}; expected 'auto', "
                f"{', '.join(map(repr, MEMORY_FORMATS))}"
            )

    def resolved(self) -> "RunOptions":
        """The same with ``"auto"`` replaced by what this machine offers.

        Raises:
            ValueError: there is no such device or precision.
        """
        # A silent run does not say which device was chosen either.
        silent = self.device == "auto" and not self.progress
        device = default_device() if silent else resolve_device(self.device)
        precision = resolve_precision(self.precision, device)
        memory_format = self.memory_format
        if memory_format == "auto":
            tensor_cores = device.type == "cuda" and precision == "bfloat16"
            faster = device.type == "cpu" or tensor_cores
            memory_format = "channels_last" if faster else "contiguous"
        return replace(
            self,
            device=str(device),
            precision=precision,
            memory_format=memory_format,
        )
