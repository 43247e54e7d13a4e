"""Where and how tensors are computed: device, precision, memory format, seeds."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch

from alexnet_lib import __version__
from alexnet_lib.checks import (
    PROBABILITY,
    between,
    check_choice,
    check_fields,
    check_integer,
    shown,
    type_name,
)

Precision = Literal["float32", "bfloat16", "float16"]

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
# More processes than a machine has cores for; a million of them would end it.
MOST_WORKERS = 1024

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
    if isinstance(device, str) and device == "auto":
        return default_device()
    name = str(device) if isinstance(device, torch.device) else device
    if not isinstance(name, str):
        raise ValueError(f"device is {shown(name)}; expected 'auto', a torch.device or its name")
    try:
        resolved = torch.device(name)
        torch.zeros(1, device=resolved).item()  # which the meta device cannot
    except Exception as error:  # of as many types as there are devices
        reason = _first_line(error) or type_name(error)
        if reason.startswith("Expected one of"):  # all kinds that torch knows of
            reason = "'cpu', 'cuda' (an NVIDIA or AMD GPU), 'mps' (Apple's)"
        raise ValueError(
            f"device is {shown(name)}; expected 'auto' or a device of this machine: {reason}"
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
    precision = check_choice("precision", precision, ("auto", *DTYPES))
    if precision == "auto":
        if not isinstance(device, torch.device):
            device = resolve_device(device)
        if multiplies_bfloat16(device):
            return "bfloat16"
        return "float16" if multiplies_float16(device) else "float32"
    return precision  # type: ignore[return-value]  # a key of DTYPES


# What the errors of a device that has no memory left have in common: the CPU's allocator on Linux,
# macOS and Windows; C++'s own; Apple's MPS; oneDNN; cuBLAS and cuDNN. torch's for CUDA have a type.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
    "could not create a memory object",
    "STATUS_ALLOC_FAILED",
)
_LOWER = (
    "lower batch_size (with as much more accumulation_steps, a step has as many images) or "
    "image_size, or set precision to 'bfloat16'"
)


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory does not suffice."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(text in _first_line(error) for text in _NO_MEMORY)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


class NoMemoryError(MemoryError, torch.OutOfMemoryError):
    """Memory does not suffice, and the message says for what.

    On a GPU, torch raises the second of the two types, on which programs go on with less.
    """


@contextmanager
def memory_explained(task: str, lower: str = _LOWER) -> Iterator[list[Sequence[int]]]:
    """Turns what devices raise where memory does not suffice into ``NoMemoryError``.

    It says the task, the last of the shapes of images that the block adds to the list, and what to
    lower.
    """
    shapes: list[Sequence[int]] = []
    try:
        yield shapes
    except NoMemoryError:  # of a block within the block
        raise
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = _first_line(error)
        raise NoMemoryError(
            f"memory does not suffice for {task}{_batch(shapes)}: {lower}"
            + (f" ({reason})" if reason else "")
        ) from error


def model_explained(device: torch.device) -> AbstractContextManager[Any]:
    """``memory_explained`` for the move of a model to a device."""
    return memory_explained(f"the model on {device}", "choose another device, or a smaller model")


def _batch(shapes: Sequence[Sequence[int]]) -> str:
    if not shapes:
        return ""
    count, *image = shapes[-1]
    size = f"{image[-1]}x{image[-2]} pixels" if len(image) == 3 else f"shape {tuple(image)}"
    return f" of {count} images of {size}"


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
        progress: print a line for each epoch on the standard error stream (in a notebook below the
            cell), and show a progress bar where there is a terminal or a notebook.
        on_bad_image: what to do with an image file that cannot be read: ``"stop"``, an error that
            names it; or ``"skip"``, go on without it, and name it at the end.
        bad_image_limit: the fraction of the images of a part, from 0 to 1, that may be left out.
        on_nonfinite: what to do with a training step whose loss or gradient is NaN or infinite:
            ``"stop"``, an error that names it; or ``"skip"``, go on without it, at most ten times
            in an epoch. The weights stay as they were in both.
        parallel: how several processes divide a step; the numbers are the same but for rounding.
            ``"data"``: each has a share of the images. ``"hybrid"``: each has a share of the images
            in the convolutions, and a part of the outputs of each fully connected layer.
            ``"towers"``: each of exactly two has one tower of all images, as in the paper.
        reduce_dtype: the dtype in which several processes sum their gradients. ``"same"`` is that
            of the gradients; ``"bfloat16"`` sends half as much and rounds them to 8 bits.

    Raises:
        ValueError: a field is out of its range.
    """

    device: str = "auto"
    precision: str = "auto"
    memory_format: str = "auto"
    compile: bool = False
    num_workers: Annotated[int, between(0, MOST_WORKERS)] = 0
    progress: bool = True
    on_bad_image: str = "stop"
    bad_image_limit: Annotated[float, PROBABILITY] = 0.1
    on_nonfinite: str = "stop"
    parallel: str = "data"
    reduce_dtype: str = "same"

    def __post_init__(self) -> None:
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        check_fields(self)
        check_choice("memory_format", self.memory_format, ("auto", *MEMORY_FORMATS))
        check_choice("precision", self.precision, ("auto", *DTYPES))
        check_choice("on_bad_image", self.on_bad_image, ("stop", "skip"))
        check_choice("on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        check_choice("parallel", self.parallel, ("data", "hybrid", "towers"))
        check_choice("reduce_dtype", self.reduce_dtype, ("same", "bfloat16"))

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


@contextmanager
def thread_pool(name: str, threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads for a block of a generator, as many as torch computes with; none is left after it.

    If the generator is closed in the block, they end soon instead. One that nobody closes is closed
    by the garbage collector, in any thread, also in one of these, and while it holds a lock that
    their end needs.
    """
    pool, closed = ThreadPoolExecutor(threads or max(1, torch.get_num_threads()), name), False
    try:
        yield pool
    except GeneratorExit:
        closed = True
        raise
    finally:
        pool.shutdown(wait=not closed, cancel_futures=True)


def processes() -> int:
    """How many processes compute together (``torch.distributed``); 1 where none were joined."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


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
    packages = ("torch", "torchvision", "numpy", "pillow", "safetensors")
    return {
        "python": platform.python_version(),
        "alexnet-lib": __version__,  # which need not be installed, but may lie on the path
        **{name: version(name) for name in packages},
    }
