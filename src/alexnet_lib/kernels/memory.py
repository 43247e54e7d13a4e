"""Memory of a training step's activations, kept for the next step."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keeps freed memory in the process, so that training steps reuse it.

    By default glibc returns a freed large block to the operating system at once, so each training
    step has page faults for all its activations: over a gigabyte with 128 images of 227 pixels.
    This makes glibc keep large blocks (``M_MMAP_MAX`` 0) and its heap (``M_TRIM_THRESHOLD`` -1).
    The table of benchmarks has the measured gain.

    It holds for the whole process and **cannot be undone**: the process keeps as much memory as it
    has ever used. Memory that threads other than the main one allocate may still be returned. The
    command line calls this function (unless ``--no-keep-memory`` is given); the rest of the library
    never does.

    Returns:
        Whether the settings were changed: True on Linux with glibc, else False.

    Example:
        >>> from alexnet_lib import keep_freed_memory
        >>> keep_freed_memory()  # doctest: +SKIP
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    # Other C libraries for Linux (musl) have no such function, or one that does nothing.
    glibc = hasattr(libc, "gnu_get_libc_version")
    return glibc and bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1))
