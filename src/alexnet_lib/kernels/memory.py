"""Keeping the memory of a step's activations for the next step."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keeps freed memory in the process, so that a training step need not ask for it again.

    By default glibc gives a large block back to the operating system as soon as it is freed, and
    every step of training faults its activations in again, page by page: at 227 pixels and batches
    of 128, over a gigabyte a step. This tells glibc to keep blocks (``M_MMAP_MAX`` 0) and never to
    shrink its heap (``M_TRIM_THRESHOLD`` -1). What that gains is in the table of benchmarks.

    It holds for the whole process and **cannot be undone**: the process keeps as much memory as it
    ever had in use. Memory allocated in other threads than the main one may not profit. The command
    line calls this by itself (``--no-keep-memory`` prevents it); from Python nothing in the library
    does but your own call.

    Returns:
        Whether there was anything to tell: True on Linux with glibc, else False.

    Example:
        >>> from alexnet_lib import keep_freed_memory
        >>> keep_freed_memory()  # doctest: +SKIP
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    # Other C libraries for Linux (musl) have no such function, or one that does nothing.
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))
