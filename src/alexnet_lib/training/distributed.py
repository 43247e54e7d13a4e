"""One run on several processes: what they tell each other, and how the run ends for all of them.

Each process computes its share of every batch, and sums are those of all shares. The processes are
started by ``torchrun``, or joined by ``torch.distributed.init_process_group``; nothing below
training knows of them.
"""

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.overrides import TorchFunctionMode

from alexnet_lib import interrupts
from alexnet_lib.checks import type_name
from alexnet_lib.data.loaders import BatchLoader, Loaders
from alexnet_lib.devices import RunOptions, processes, versions

# A process that says nothing for so long, while others wait for it, ends the run: one that hangs,
# or whose machine is cut off. One that ends is noticed at once.
WAIT_SECONDS = 600.0
# How often a process shows that it lives where the others wait for as long as it does.
_LIFE_SECONDS = 5.0
# How long the processes that are left wait for the last words of the others.
LAST_WORDS_SECONDS = 5.0
_POLL_SECONDS = 0.05

# What torchrun sets for each of its processes.
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """The place of a share in its batch: images before it, in it, and in the whole batch.

    A share without images has one image of zeros, which counts nowhere. ``counts`` are the images
    of the shares of all processes, if there are several.
    """

    before: int
    images: int
    whole: int
    counts: tuple[int, ...] = ()


class ProcessError(RuntimeError):
    """Another process of the run has stopped; the message names it and the reason."""

    told = ""


class LostError(RuntimeError):
    """The connection to another process broke."""

    told = ""


class Group:
    """The processes that compute a run together, as one of them sees it; by itself, only that one.

    What tells, sums or gives anything is to be called by all processes, in the same order.

    Attributes:
        rank: the number of this process, from 0; the first one writes and speaks.
        size: how many processes there are.
        place: in a forward pass, the place of its batch.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.place = Place(0, 0, 0)
        self._control: Any = None
        self._store: Any = None
        self._blocks = 0
        self._names = [f"process {rank} of {size}" for rank in range(size)]

    def join(self) -> None:
        """Connects the processes, which must have the same versions."""
        store = dist.distributed_c10d._get_default_store()
        with _connected():
            number = store.add(f"alexnet_lib/{self.rank}", 1)
            self._store = dist.distributed_c10d.PrefixStore(f"alexnet_lib/{number}", store)
            # A group of its own: it takes tensors of the CPU whatever the other one is for, and its
            # end tells the others that this process has left.
            waiting = timedelta(seconds=WAIT_SECONDS)
            self._control = dist.new_group(backend="gloo", timeout=waiting)
        own = {"host": socket.gethostname(), "pid": os.getpid(), "versions": versions()}
        everyone = self.gather(own)
        self._names = [
            f"process {rank} of {self.size} ({other['host']}, process id {other['pid']})"
            for rank, other in enumerate(everyone)
        ]
        self.check_same({"versions": own["versions"]})

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def own(self, options: RunOptions) -> RunOptions:
        """The options of this process: its own GPU, of those of its machine; only one shows bars.

        The GPU is that of ``LOCAL_RANK``, which torchrun sets, or else the current one.
        """
        if self.size == 1:
            return options
        device = options.device
        if torch.cuda.is_available() and device.startswith(("auto", "cuda")):
            index = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
            if index >= (count := torch.cuda.device_count()):
                raise ValueError(
                    f"this is process {index} of its machine (LOCAL_RANK), counted from 0, which "
                    f"has {count} GPUs; expected a process for each (--nproc-per-node), or "
                    "device='cpu'"
                )
            torch.cuda.set_device(index)
            device = f"cuda:{index}"
        return replace(options, device=device, progress=options.progress and self.is_first)

    def shared(self, loaders: Loaders) -> Loaders:
        """The loaders of this process's share."""
        if loaders.train.share is not None:
            self.check_share(loaders.train.share)
        return loaders if self.size == 1 else loaders.share(self.rank, self.size)

    def check_share(self, share: tuple[int, int]) -> None:
        """Raises a ``ValueError`` unless a share of the batches is that of this process."""
        if share != (own := (self.rank, self.size)):
            raise ValueError(
                f"the loader has the share {share} of its batches, but this is process "
                f"{self.rank} of {self.size}; expected {own}, or a loader without a share"
            )

    # What is said: plain data, on the CPU.

    def gather(self, value: Any) -> list[Any]:
        """What each process hands over, as JSON has it, by rank."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value), "utf-8"), dtype=torch.uint8)
        lengths = [row[0] for row in self._rows([len(text)])]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(text)] = text
        texts = self._gathered(padded)
        return [
            json.loads(bytes(text[:length].numpy()))
            for text, length in zip(texts, lengths, strict=True)
        ]

    def first(self, function: Callable[[], Any]) -> Any:
        """What a function returns in the first process, as JSON has it; only that one calls it."""
        return self.gather(function() if self.is_first else None)[0]

    @contextmanager
    def unhurried(self, *, first_alone: bool = False) -> Iterator[None]:
        """A block in which the others wait for a process for as long as it lives; all end it.

        With ``first_alone``, the first process goes through it before the others enter it.
        """
        if self.size == 1:
            yield
            return
        self._blocks += 1
        block, ended = f"block {self._blocks}", threading.Event()

        def show_life() -> None:
            with suppress(RuntimeError):  # the store is gone, and with it those that wait
                while not ended.wait(_LIFE_SECONDS):
                    self._store.add(f"{block}/life {self.rank}", 1)

        thread = threading.Thread(target=show_life, name="alexnet-lib-life", daemon=True)
        thread.start()
        try:
            if first_alone and not self.is_first:
                self._await(block, 0)
            yield
            self._store.set(f"{block}/end {self.rank}", "")
            for rank in range(self.size):
                self._await(block, rank)
        finally:
            ended.set()
            thread.join()

    def _await(self, block: str, rank: int) -> None:
        """Waits until a process has ended a block; a ``LostError`` if it, or any other, is lost."""
        life, seen = 0, time.monotonic()
        with _connected():
            while not self._store.check([f"{block}/end {rank}"]):
                if (now := self._store.add(f"{block}/life {rank}", 0)) != life:
                    life, seen = now, time.monotonic()
                if time.monotonic() - seen > WAIT_SECONDS:
                    raise RuntimeError(f"{self._names[rank]} gives no sign of life")
                if self._store.check(["left"]):
                    raise RuntimeError("it has left")
                interrupts.check()
                time.sleep(_POLL_SECONDS)

    def check_same(self, description: Mapping[str, Any]) -> None:
        """A ``ValueError`` in all processes that names the first one with another description."""
        first, *others = self.gather(description)
        for rank, other in enumerate(others, 1):
            if (difference := _difference(first, other)) is not None:
                name, own, expected = difference
                raise ValueError(
                    f"{self._names[rank]} has {name} {own!r}, but process 0 has {expected!r}; "
                    "expected the same in all processes"
                )

    def check_seen(self, folder: Path | None) -> None:
        """A ``ValueError`` in all processes if one of them does not see the first one's folder."""
        if self.size == 1 or folder is None:
            return
        name = self.first(lambda: f".seen-{os.getpid()}-{time.time_ns()}")
        if self.is_first:
            (folder / name).touch()
        try:
            self.gather(None)
            seen = self.is_first or _poll((folder / name).exists)
            unseeing = [rank for rank, saw in enumerate(self.gather(seen)) if not saw]
        finally:
            if self.is_first:
                (folder / name).unlink()
        if unseeing:
            raise ValueError(
                f"out is {str(folder)!r}, which process 0 has, but {self._names[unseeing[0]]} does "
                "not see; expected a folder on a file system that all processes share"
            )

    def _rows(self, numbers: list[int]) -> list[list[int]]:
        return [row.tolist() for row in self._gathered(torch.tensor(numbers))]

    def _gathered(self, own: Tensor) -> list[Tensor]:
        rows = [torch.empty_like(own) for _ in range(self.size)]
        with _connected():
            dist.all_gather(rows, own, group=self._control)
        return rows

    # What is computed: the parts of a step and of an evaluation.

    def places(self, loader: Any) -> Callable[[int], Place]:
        """A function that says the place of each batch of a loader, from its number of images.

        The processes also tell each other which images cannot be read, and which signals came.
        """
        if self.size == 1:
            return lambda count: Place(0, count, count)
        told = {*loader.bad_images}

        def place(count: int) -> Place:
            bad = {name: why for name, why in loader.bad_images.items() if name not in told}
            rows = self._rows([count, len(bad), interrupts.received()])
            counts, new, signals = map(list, zip(*rows, strict=True))
            if any(new):
                for found in self.gather(bad):
                    loader.add_bad_images(found)
                told.update(loader.bad_images)
            interrupts.agree(max(signals))
            return Place(sum(counts[: self.rank]), count, sum(counts), tuple(counts))

        return place

    def stopping_together(self) -> AbstractContextManager[Any]:
        """A context in which a signal to any process stops all of them after the same step."""
        return interrupts.together() if self.size > 1 else nullcontext()

    def sum_(self, *tensors: Tensor) -> None:
        """Replaces tensors by their sums over all processes."""
        if self.size > 1:
            with _connected():
                for work in [self._summed(tensor) for tensor in tensors]:
                    work.wait()

    def _summed(self, tensor: Tensor) -> Any:
        return dist.all_reduce(tensor, group=self._group_for(tensor), async_op=True)

    def _group_for(self, tensor: Tensor) -> Any:
        # gloo's own group for the CPU; else the one that the processes have for their devices.
        return self._control if tensor.device.type == "cpu" else None

    def exchange(
        self, given: Sequence[Tensor], shapes: Sequence[Sequence[int]]
    ) -> Sequence[Tensor]:
        """Gives each process a tensor, in order, and returns those of each, of these shapes.

        All have one dtype and one device.
        """
        sent = torch.cat([tensor.reshape(-1) for tensor in given])
        counts = [math.prod(shape) for shape in shapes]
        received = sent.new_empty(sum(counts))
        sizes = [tensor.numel() for tensor in given]
        with _connected():
            dist.all_to_all_single(received, sent, counts, sizes, group=self._group_for(sent))
        parts = received.split(counts)
        return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]

    def whole_norms(self, norms: Sequence[Tensor], order: float) -> list[Tensor]:
        """The norms of tensors of which each process has a part, from those of the parts."""
        if self.size == 1 or not norms:
            return [*norms]
        rows = torch.zeros(self.size, len(norms), dtype=torch.float64, device=norms[0].device)
        rows[self.rank] = torch.stack([*norms])
        self.sum_(rows)
        return [*torch.linalg.vector_norm(rows, order, dim=0).to(norms[0].dtype)]

    def sum_gradients(
        self, parameters: Iterable[nn.Parameter], dtype: torch.dtype | None = None
    ) -> None:
        """Sums the gradients over all processes, in a dtype or in theirs; no gradient adds 0."""
        if self.size == 1:
            return
        parameters = [*parameters]
        has_one = torch.tensor([parameter.grad is not None for parameter in parameters]).long()
        self.sum_(has_one)
        for parameter, number in zip(parameters, has_one.tolist(), strict=True):
            if number and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        sent = [gradient.to(dtype or gradient.dtype) for gradient in gradients]
        self.sum_(*sent)
        for gradient, whole in zip(gradients, sent, strict=True):
            if whole is not gradient:
                gradient.copy_(whole)

    def whole_batch(
        self, loss: Tensor, hits: Tensor | None, unfit: Tensor | None, place: Place
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Mean loss, hits and unfit labels of a whole batch, from those of the shares."""
        if self.size == 1:
            return loss, hits, unfit
        own = loss.detach() * place.images
        counts = (own.new_zeros(1) if part is None else part for part in (hits, unfit))
        sums = torch.stack(
            [own.double(), *(part[: place.images].sum().double() for part in counts)]
        )
        self.sum_(sums)
        mean, hit_count, unfit_count = sums[0] / place.whole, *sums[1:].long()
        return mean, None if hits is None else hit_count, unfit_count

    def check_model(self, model: nn.Module) -> None:
        """Raises a ``ValueError`` if a layer would compute with a share in place of a batch."""
        for name, module in model.named_modules() if self.size > 1 else ():
            whole = isinstance(module, nn.SyncBatchNorm)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not whole:
                raise ValueError(
                    f"model has the batch normalisation {name}, whose statistics would be those of "
                    f"a share of the batch in each of {self.size} processes; expected a model "
                    "without, or nn.SyncBatchNorm.convert_sync_batchnorm(model)"
                )

    def gradients_apart(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which DistributedDataParallel leaves the gradients to ``sum_gradients``."""
        if self.size > 1 and isinstance(model, nn.parallel.DistributedDataParallel):
            context: AbstractContextManager[Any] = model.no_sync()
            return context
        return nullcontext()

    @contextmanager
    def forward_pass(self, place: Place) -> Iterator[None]:
        """A context in which a network computes a share of a batch.

        Dropout draws for the whole batch, and takes the rows of the share.
        """
        if self.size == 1:
            yield
            return
        self.place = place
        with _SharedDropout(place):
            yield

    def same_weights(self, model: nn.Module) -> None:
        """Gives a model the weights and buffers that it has in the first process."""
        if self.size == 1:
            return
        with torch.no_grad(), _connected():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), src=0, group=self._group_for(tensor))

    # The end.

    def close(self) -> None:
        """Leaves the others."""
        control, self._control = self._control, None
        if control is not None:
            with suppress(RuntimeError):
                dist.destroy_process_group(control)

    def leave(self, error: BaseException) -> str:
        """Tells the others why this process leaves, and hears why they do; what there is to say.

        It takes three times ``LAST_WORDS_SECONDS`` at most. Only one of the processes has something
        to say; but one that has lost another says it in any case, as an error.
        """
        lost = isinstance(error, LostError)
        own = None if lost else f"{type(error).__name__}: {error}"
        try:
            words, speaks = _within(3 * LAST_WORDS_SECONDS, lambda: self._last_words(own))
        # The first process held the store, and is gone or cannot be reached.
        except (RuntimeError, AttributeError):
            words, speaks = {**dict.fromkeys(range(1, self.size)), self.rank: own}, True
        reasons = sorted((rank, word) for rank, word in words.items() if word is not None)
        silent = [name for rank, name in enumerate(self._names) if rank not in words]
        if not silent and len({*words.values()}) == 1 and not lost:
            text = str(error) or type_name(error)  # the same in all processes
        elif reasons:
            text = f"{self._names[reasons[0][0]]} stopped: {reasons[0][1]}"
        elif silent:
            text = (
                f"{', '.join(silent)} gave no sign for {LAST_WORDS_SECONDS:g} s after the "
                "connection broke: killed, or hanging, or on a machine that cannot be reached"
            )
        else:
            text = f"the connection between the processes broke: {error.__cause__}"
        error.told = text if speaks else ""  # type: ignore[attr-defined]
        return text

    def _last_words(self, own: str | None) -> tuple[dict[int, str | None], bool]:
        """Why each process has left, None if it lost another; and whether this one is to speak.

        Processes that have not said it in time are left out.
        """
        self._store.set(f"left/{self.rank}", json.dumps(own))
        self._store.set("left", "")
        self.close()  # which wakes up those that wait for this process
        keys = {rank: f"left/{rank}" for rank in range(self.size)}
        _poll(lambda: self._store.check([*keys.values()]))
        said = {rank: key for rank, key in keys.items() if self._store.check([key])}
        words = {rank: json.loads(self._store.get(key)) for rank, key in said.items()}
        speaks = self._store.add("spoken", 1) == 1
        self._store.add("heard", 1)
        if self.is_first:  # it may hold the store, which the others still read
            _poll(lambda: self._store.add("heard", 0) >= len(words))
        return words, speaks


ALONE = Group()
WHOLE = ALONE.places(None)  # of batches that are no shares
_joined: Group | None = None


@contextmanager
def joined() -> Iterator[Group]:
    """The processes of a run, those of ``torchrun`` or of an initialised process group.

    If one of them leaves the block by an error, all of them do: the others by a ``ProcessError``
    that names it and the reason. What the command line is to say of it is the error's ``told``,
    which is empty in all processes but one. A block within the block is the same group.

    Raises:
        ValueError: some of torchrun's variables are missing; the processes have other versions.
        ProcessError: another process has left.
    """
    global _joined  # noqa: PLW0603
    if _joined is not None:
        yield _joined
        return
    begun = _begin()
    try:
        if processes() == 1:
            yield ALONE
            return
        group = Group(dist.get_rank(), processes())
        try:
            group.join()
            _joined = group
            yield group
            group.gather(None)  # none leaves while another still reads what it has sent
        except BaseException as error:
            text = group.leave(error)
            if not isinstance(error, LostError):
                raise
            other = ProcessError(text)
            other.told = error.told
            raise other from error
        finally:
            _joined = None
            group.close()
    finally:
        if begun:
            dist.destroy_process_group()


def current() -> Group:
    """The processes of the block of ``joined`` that this is in, or only this one."""
    return ALONE if _joined is None else _joined


def _begin() -> bool:
    """Joins the processes that torchrun has started, if it has and the program has not."""
    size = os.environ.get("WORLD_SIZE", "")
    if processes() > 1 or not size.isdecimal() or int(size) < 2:
        return False
    if missing := [name for name in _ENVIRONMENT if name not in os.environ]:
        raise ValueError(
            f"this is one of {size} processes (WORLD_SIZE), but {', '.join(missing)} is not set; "
            "expected torchrun, which sets all, or no WORLD_SIZE for a run on one process"
        )
    global _begun  # noqa: PLW0603
    _begun += 1
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    waiting = timedelta(seconds=WAIT_SECONDS)
    # torchrun keeps its store when it starts the processes again, or when they join again, and gloo
    # would take the addresses of those before for theirs (torch 2.14).
    store, rank, number = next(rendezvous("env://", timeout=waiting))
    attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} of {size}, {_begun}"
    store = dist.distributed_c10d.PrefixStore(attempt, store)
    with _connected():
        dist.init_process_group(backend, timeout=waiting, store=store, rank=rank, world_size=number)
    return True


_begun = 0  # how often this program has joined the processes of torchrun

# torch's group of all processes, and what was made for it.
_known: tuple[Any, Group] = None, ALONE


def group_of(loader: Any) -> Group:
    """The processes that compute together on the shares of a loader."""
    global _known  # noqa: PLW0603
    share = loader.share if isinstance(loader, BatchLoader) else None
    if share is None or share[1] == 1:
        return ALONE
    if _joined is not None:
        group = _joined
    elif processes() == 1:
        raise ValueError(
            f"loader has the share {share}, but this process is alone; expected "
            "torch.distributed.init_process_group() before, or a loader without a share"
        )
    else:
        world, group = _known
        if world is not dist.group.WORLD:
            group = Group(dist.get_rank(), processes())
            group.join()
            _known = dist.group.WORLD, group
    group.check_share(share)
    return group


def check_summed(model: nn.Module, loader: Any) -> None:
    """Raises a ``ValueError`` if several processes would train a model, each its own."""
    if processes() == 1 or getattr(loader, "share", None) is not None:
        return
    kinds = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    parallel = ("torch.nn.parallel.distributed", "torch.distributed")
    if any(kind.startswith(parallel) for kind in kinds):
        return
    if not any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise ValueError(
            f"this is one of {processes()} processes of torch.distributed, but nothing sums the "
            "gradients of model, so that each would train its own; expected "
            "torch.nn.parallel.DistributedDataParallel(model), or loaders of the library with "
            "loaders.share(rank, processes), whose gradients are summed"
        )


class _SharedDropout(TorchFunctionMode):
    """Dropout as in one process: the rows of a share, of what is drawn for a whole batch."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.dropout or not kwargs.get("training"):
            return func(*args, **kwargs)
        (x,), whole = args, self._place.whole
        ones = x.new_ones((whole, *x.shape[1:]))
        if x.ndim == 4 and not x.is_contiguous():
            ones = ones.contiguous(memory_format=torch.channels_last)
        first = min(self._place.before, whole - len(x))
        return x * func(ones, **{**kwargs, "inplace": False})[first : first + len(x)]


def _difference(first: Any, other: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The name and the two values of the first difference between plain data."""
    if isinstance(first, dict) and isinstance(other, dict):
        for key in {**first, **other}:
            inner = f"{name}.{key}" if name else str(key)
            found = _difference(first.get(key), other.get(key), inner)
            if found is not None:
                return found
        return None
    return None if first == other else (name, other, first)


@contextmanager
def _connected() -> Iterator[None]:
    """Turns what torch raises where a process is lost into ``LostError``."""
    try:
        yield
    except RuntimeError as error:
        raise LostError(f"another process has failed or was killed: {error}") from error


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """What a function returns; a ``RuntimeError`` if it takes longer, and goes on in its thread.

    A store whose machine is cut off would keep who asks it waiting for a quarter of an hour.
    """
    results: list[Any] = []

    def call() -> None:
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=call, name="alexnet-lib-last-words", daemon=True)
    thread.start()
    thread.join(seconds)
    (result,) = results or [RuntimeError("no answer")]
    if isinstance(result, Exception):
        raise result
    return result


def _poll(condition: Callable[[], bool]) -> bool:
    """Waits until a condition is true, but not for long; whether it is."""
    ends = time.monotonic() + LAST_WORDS_SECONDS
    while not (true := condition()) and time.monotonic() < ends:
        time.sleep(_POLL_SECONDS)
    return true
