"""Signals that ask the program to stop: they set a flag, which every long loop looks at.

Nothing is written in a handler, which may run in the middle of anything.
"""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_received: int | None = None
_handling: int | None = None  # the thread that handles signals
# Whether the processes of a run have told each other of the signal; None: there is only this one.
_agreed: bool | None = None
_local = threading.local()


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; ``number`` is that of the signal.

    ``run`` is what ``fit`` has so far; None before its first step.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number
        self.run: Any = None


def check() -> None:
    """Raises ``Interrupted`` if a signal asked the program to stop."""
    # As Python's own KeyboardInterrupt: other threads are the program's affair.
    postponed = getattr(_local, "postponed", False)
    here = threading.get_ident() == _handling if _agreed is None else _agreed
    if _received is not None and here and not postponed:
        raise Interrupted(_received)


def received() -> int:
    """The number of the signal that asked the program to stop, or 0."""
    return _received or 0


def agree(number: int) -> None:
    """In a block of ``together``, lets ``check`` raise for a signal to any process; 0 is none."""
    global _received, _agreed
    if number and _agreed is not None:
        _received, _agreed = _received or number, True


@contextmanager
def together() -> Iterator[None]:
    """Until the block ends, ``check`` raises nothing before ``agree``: all processes stop then."""
    global _agreed  # noqa: PLW0603
    _agreed = False
    try:
        yield
    finally:
        _agreed = None


@contextmanager
def postponed() -> Iterator[None]:
    """Until the block ends, ``check`` raises nothing."""
    _local.postponed = True
    try:
        yield
    finally:
        _local.postponed = False


@contextmanager
def handled(names: Iterable[str] = ("SIGINT",)) -> Iterator[None]:
    """Until the block ends, these signals set the flag; a second SIGINT stops at once.

    Signals that are ignored (``nohup``), that a program handles in its own way, or that the system
    does not have, stay as they are. Only the main thread can handle signals; elsewhere, and in a
    block within such a block, nothing changes.
    """
    global _received, _handling
    if _handling is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    former = {n: handler for n in numbers if (handler := signal.getsignal(n)) in usual}
    _handling, _received = threading.get_ident(), None
    try:
        for number in former:
            signal.signal(number, _receive)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        _handling, _received = None, None


def _receive(number: int, frame: FrameType | None) -> None:
    global _received  # noqa: PLW0603
    if _received is not None and number == signal.SIGINT:
        raise KeyboardInterrupt
    _received = number
