"""Reading images that are not in memory: in threads, or in worker processes.

Image files are read ahead while the caller computes. An image that cannot be read comes back as
data, a ``Failure``, so that the caller decides what to do, and the message is the same from a
worker process. What is read does not depend on the number of threads or processes.
"""

import atexit
import functools
import math
import multiprocessing.util
import os
import random
import signal
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from alexnet_lib import interrupts
from alexnet_lib.checks import type_name
from alexnet_lib.data.decoding import ImageError
from alexnet_lib.data.images import EncodedImages, ImageSet, WrappedDataset
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.devices import memory_explained, thread_pool
from alexnet_lib.text import printable

# Index and seed of each image of a batch.
Request = list[tuple[int, int]]

# Batches that threads read beyond the one in use. A worker process has two waiting.
_AHEAD = 2
# Images that a thread takes at a time: few, so that a pass that is broken off ends soon.
_IMAGES_A_TASK = 4


class Requests:
    """The requests of the batches of a pass, each made when it is asked for.

    Those of all images of a pass at once would take some 130 bytes for each.
    """

    def __init__(self, order: Tensor, seeds: Tensor, batches: Sequence[slice]) -> None:
        self._order, self._seeds, self._batches = order, seeds, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Request]:
        for batch in self._batches:
            yield [*zip(self._order[batch].tolist(), self._seeds[batch].tolist(), strict=True)]


@dataclass(frozen=True)
class Failure:
    """An image that cannot be read: its file or item, and the error."""

    name: str
    error: Exception

    @property
    def reason(self) -> str:
        """The error in words, without the name of the image."""
        text = str(self.error) or type_name(self.error)
        for verb in ("cannot be read as an image: ", "cannot be read: "):
            text = text.removeprefix(f"{printable(self.name)} {verb}")
        return text

    @property
    def is_of_the_image(self) -> bool:
        """Whether the image is to blame, and not the machine, as for want of memory."""
        return isinstance(self.error, ValueError | TypeError)

    def throw(self) -> NoReturn:
        """Raises the error, and keeps no reference to it.

        With one, error, traceback and loader would be a cycle, which Python frees late and in any
        order, and torch waits five seconds for each process of a loader that is freed like that.
        """
        error = self.error
        object.__setattr__(self, "error", None)  # the class is frozen
        try:
            raise error
        finally:
            del error

    def portable(self, *, traced: bool) -> "Failure":
        """The same with an error that can travel between processes, whatever was raised."""
        error = self.error
        kinds = (ImageError, ValueError, TypeError, MemoryError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), None)
        text = str(error) if kind else f"{self.name} cannot be read: {type_name(error)}: {error}"
        trace = "".join(traceback.format_exception(error)) if traced else ""
        return _FailureInWorker(self.name, (kind or RuntimeError)(text), trace)


@dataclass(frozen=True)
class _FailureInWorker(Failure):
    """A failure with its traceback as text, which is not lost on the way."""

    trace: str

    def __post_init__(self) -> None:
        self.error.__cause__ = _WorkerTraceback(self.trace) if self.trace else None

    def __reduce__(self) -> Any:
        return type(self), (self.name, self.error, self.trace)


class _WorkerTraceback(Exception):  # noqa: N818  (it is a text to be shown, and no error)
    """What happened in a worker process: shown as the cause of the error."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


class RawBatch(NamedTuple):
    """The images of a batch before augmentation, uint8 or floating from 0 to 1.

    ``images`` is one tensor of all if they are alike, else a list; ``kept`` are their positions in
    the request, without those of the ``failures``.
    """

    images: Tensor | list[Tensor]
    kept: list[int]
    failures: list[Failure]


@dataclass(frozen=True, eq=False)
class ImageReader:
    """Reads images of a set one by one, resized if that makes them smaller.

    ``pin_memory``: batches are put into memory from which a GPU copies without being waited for.
    """

    dataset: ImageSet
    preprocess: Preprocess
    pin_memory: bool = False

    def read(self, index: int, seed: int) -> Tensor | Failure:
        """An image, or why it cannot be read; random data sets draw from the seed."""
        data = self.dataset
        try:
            if isinstance(data, EncodedImages):
                return self.preprocess.read(data.source(index))
            with seeded_generators(seed):
                return self.preprocess.shrunk(data.image(index))
        except Exception as error:
            return Failure(self._name(index), error)

    def _name(self, index: int) -> str:
        if isinstance(self.dataset, EncodedImages):
            return str(self.dataset.source(index))
        own = isinstance(self.dataset, WrappedDataset)
        return f"item {int(self.dataset.indices[index]) if own else index} of data"  # type: ignore[attr-defined]

    def read_batch(self, request: Request) -> RawBatch:
        """A batch, read in this thread."""
        batch = _BatchInProgress(self, len(request))
        batch.read(self, request, 0)
        return batch.finished()


class _BatchInProgress:
    """The images of a batch while they are read, by several threads.

    Photos, which are resized to one size, go into one tensor at once: nothing is stacked later.
    """

    def __init__(self, reader: ImageReader, count: int) -> None:
        side = reader.preprocess.resize
        shape = (count, reader.dataset.channels, side, side)
        task = f"{count} images of {side}x{side} pixels"
        # Threads do not inherit the inference mode of the caller, and could not write.
        with memory_explained(task, "lower batch_size or resize"), torch.inference_mode(False):
            if get_worker_info() is None:
                self._together = torch.empty(
                    shape, dtype=torch.uint8, device="cpu", pin_memory=reader.pin_memory
                )
            else:  # shared memory is not copied on the way to the main process
                storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
                empty = torch.tensor([], dtype=torch.uint8, device="cpu")
                self._together = empty.set_(storage).view(shape)
        # None stands for an image that is in its place in the common tensor.
        self._results: list[Tensor | Failure | None] = [None] * count

    def read(self, reader: ImageReader, part: Request, first: int) -> None:
        """Reads some of the images; ``first`` is the position of the first of them."""
        for position, (index, seed) in enumerate(part, first):
            result = reader.read(index, seed)
            place = self._together[position]
            if isinstance(result, Failure) or not _alike(result, place):
                self._results[position] = result
            else:
                place.copy_(result)

    def finished(self) -> RawBatch:
        """The batch, when all of its images are read."""
        failures = [result for result in self._results if isinstance(result, Failure)]
        kept = [i for i, result in enumerate(self._results) if not isinstance(result, Failure)]
        apart = {i: result for i, result in enumerate(self._results) if isinstance(result, Tensor)}
        images: Tensor | list[Tensor]
        if apart:
            images = [apart.get(i, self._together[i]) for i in kept]
            if all(_alike(image, images[0]) for image in images):
                images = torch.stack(images)
        else:
            images = self._together[kept] if failures else self._together
        return RawBatch(images, kept, failures)


def _alike(image: Tensor, other: Tensor) -> bool:
    return image.shape == other.shape and image.dtype == other.dtype


def read_in_threads(
    reader: ImageReader, requests: Iterable[Request]
) -> Generator[RawBatch, None, None]:
    """The batches, read ahead in as many threads as torch computes with.

    No thread is left when the iterator is exhausted; if it is closed before, they end soon.
    """

    def started(request: Request) -> tuple[_BatchInProgress, list[Future[None]]]:
        batch = _BatchInProgress(reader, len(request))
        step = _IMAGES_A_TASK
        parts = ((request[i : i + step], i) for i in range(0, len(request), step))
        return batch, [pool.submit(batch.read, reader, *part) for part in parts]

    with thread_pool("alexnet-lib-reader") as pool:
        coming = map(started, requests)
        running = deque(islice(coming, _AHEAD))
        while running:
            batch, tasks = running.popleft()
            for task in tasks:
                while wait([task], _CHECK_SECONDS).not_done:
                    interrupts.check()
                task.result()
            running.extend(islice(coming, 1))
            yield batch.finished()


class _Pass:
    """The requests of the pass in progress, for torch, which asks at the start of each pass."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


class Workers:
    """Processes that read batches, for one pass at a time; they go on living for the next pass.

    They ignore the signals that ask a program to stop, which a terminal or a batch system sends to
    all of its processes: the main process ends them, or they end soon after it.
    """

    def __init__(self, reader: ImageReader, number: int) -> None:
        self._pass = _Pass()
        self._loader = DataLoader(
            _WorkerBatches(reader),
            batch_size=None,
            sampler=self._pass,
            num_workers=number,
            collate_fn=_unchanged,
            persistent_workers=True,
            pin_memory=reader.pin_memory,
            generator=torch.Generator(),  # instead of the global one
            worker_init_fn=_prepare_process,
        )
        self._processes: list[Any] = []
        # Freed in a cycle, torch would wait five seconds for each process before it ends it.
        weakref.finalize(self, _kill, self._processes).atexit = False

    def read(self, requests: Requests) -> Generator[RawBatch, None, None]:
        """The batches; a ``RuntimeError`` if a process ends or is stopped.

        The next pass then starts new ones.
        """
        if self._dead() or self._stopped():
            self.close()
        self._pass.requests = requests
        batches = self._start()
        # A process that is stopped can leave whoever receives its batch waiting for ever.
        with thread_pool("alexnet-lib-receiver", 1) as receiver:
            for _ in range(len(requests)):
                yield self._next(receiver, batches)
        # Says to torch that the pass is complete.
        next(batches, None)

    def _start(self) -> Any:
        """The iterator of torch over the batches; it starts the processes, or goes on with them."""
        if self._loader._iterator is not None:
            self._loader._iterator._timeout = 0
        # The folder of the processes' sockets is this process's, which removes it at its end; those
        # that a process makes for itself would stay when it is killed.
        multiprocessing.util.get_temp_dir()
        with _deferred_signals():  # until a new process ignores them
            batches: Any = iter(self._loader)
        batches._timeout = _CHECK_SECONDS
        self._processes[:] = batches._workers
        if batches._worker_pids_set:
            # Else torch raises an error for a dead process at whatever is computed just then.
            signal_handling._remove_worker_pids(id(batches))  # type: ignore[attr-defined]
            batches._worker_pids_set = False
        _living.add(self)
        _close_at_exit(os.getpid())
        return batches

    def _next(self, receiver: ThreadPoolExecutor, batches: Any) -> RawBatch:
        """The next batch, however long it takes, as long as there are processes that read it."""
        running = time.monotonic()
        batch = receiver.submit(next, batches)
        try:
            while True:
                wait([batch], _CHECK_SECONDS)
                error = batch.exception() if batch.done() else None
                if batch.done() and error is None:
                    return batch.result()  # type: ignore[no-any-return]
                late = error is None or str(error).startswith("DataLoader timed out")
                if not late:  # perhaps in the middle of a process's end
                    # A connection that is closed can have no other reason.
                    closed = isinstance(error, EOFError | ConnectionError)
                    seconds = _END_SECONDS if closed else _CHECK_SECONDS
                    ended = {process.sentinel: process for process in self._processes}
                    for sentinel in connection.wait([*ended], seconds):
                        ended[sentinel].join(_END_SECONDS)  # it is closed before the end
                if not self._stopped():
                    running = time.monotonic()
                # A disk may be slow; but nobody waits for a process that does not run.
                stopped = time.monotonic() - running >= _STOPPED_SECONDS
                problem = self._dead_in_words() or (self._stopped_in_words() if stopped else "")
                if problem:
                    raise RuntimeError(f"{problem}. The next pass starts new ones") from None
                if error is not None:
                    if not late:
                        raise error
                    batch = receiver.submit(next, batches)
                interrupts.check()
        except BaseException:
            _kill(self._processes)
            wait([batch])
            self.close()
            raise

    def _dead_in_words(self) -> str:
        if not (dead := self._dead()):
            return ""
        codes = ", ".join(str(process.exitcode) for process in dead)
        return (
            f"{len(dead)} of the {len(self._processes)} processes that read images ended in the "
            f"middle of the work, with exit code {codes} (a negative one is a signal; -9 is often "
            "the system's, for want of memory): try a smaller batch_size or num_workers"
        )

    def _stopped_in_words(self) -> str:
        if not (stopped := self._stopped()):
            return ""
        return (
            f"{len(stopped)} of the {len(self._processes)} processes that read images have been "
            f"stopped for {_STOPPED_SECONDS} s, by a signal (SIGSTOP) or a debugger, and are ended"
        )

    def close(self) -> None:
        """Ends the processes; the next pass starts others."""
        # They only read, so nothing is lost; and one that is stopped or busy ends like this too.
        _kill(self._processes)
        self._processes.clear()
        if (iterator := self._loader._iterator) is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None

    def _dead(self) -> list[Any]:
        return [process for process in self._processes if not process.is_alive()]

    def _stopped(self) -> list[Any]:
        return [process for process in self._processes if _is_stopped(process)]


# So often it is looked whether the processes are still there.
_CHECK_SECONDS = 1
# More than it takes to stop and continue a job in a shell, or to look at it with a debugger.
_STOPPED_SECONDS = 10
# More than a process takes to end, on a busy machine, after its connections are closed.
_END_SECONDS = 10

_living: "weakref.WeakSet[Workers]" = weakref.WeakSet()


@functools.cache
def _close_at_exit(parent: int) -> None:
    """Ends all processes before torch and multiprocessing wait for them, in reverse order."""

    def close() -> None:
        if os.getpid() == parent:
            for workers in list(_living):
                workers.close()

    atexit.register(close)
    # What runs at the end of a process that multiprocessing has started.
    multiprocessing.util.Finalize(None, close, exitpriority=100)


_SIGNALS = {getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)}


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Signals that ask a program to stop come after the block, where the system can do that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _prepare_process(worker: int) -> None:
    """A process ignores signals that ask a program to stop, and ends at once with the program."""
    threading.Thread(target=_end_with_program, daemon=True).start()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_with_program() -> None:
    # torch looks at the process that has forked this one: with the start method "forkserver", which
    # is Python 3.14's, that one waits for this one in turn, and both would be left.
    program = multiprocessing.parent_process()
    assert program is not None
    connection.wait([program.sentinel])
    os._exit(1)


def _kill(processes: list[Any]) -> None:
    for process in processes:
        if process._parent_pid == os.getpid():
            with suppress(ValueError):  # it is closed already
                process.kill()


def _is_stopped(process: Any) -> bool:
    """Whether a process is stopped by a signal or a debugger; only Linux says so."""
    try:
        state = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] in {"T", "t"}


@dataclass(frozen=True, eq=False)
class _WorkerBatches(Dataset[RawBatch]):
    """What a worker process does: batches by their requests."""

    reader: ImageReader

    def __getitem__(self, request: Request) -> RawBatch:
        batch = self.reader.read_batch(request)
        # The way through a decoder helps nobody; that through a user's code does.
        traced = not isinstance(self.reader.dataset, EncodedImages)
        failures = [failure.portable(traced=traced) for failure in batch.failures]
        return batch._replace(failures=failures)


def _unchanged(batch: Any) -> Any:
    return batch


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seeds the CPU's global generators, which a data set may use, and restores them afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
