"""Compiles ``cpu.c`` and keeps the result in the user's cache folder. No torch.

A file of the cache is code that every later process runs. It is loaded only if nobody but the user
can have written it, and if its bytes have the SHA-256 that its name gives: the system kills a
process that loads a library that was cut.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from alexnet_lib import interrupts

SOURCE = Path(__file__).with_name("cpu.c")

# Environment variable: "on", which is the default, or "off".
SWITCH = "ALEXNET_LIB_KERNELS"

# The first set the compiler accepts; 512 bits, because gcc's default of 256 costs up to a third.
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_PROCESSOR_FLAGS = (("-march=native", "-mprefer-vector-width=512"), ("-mcpu=native",), ())

# Seconds: compiling takes a third of one, on a busy machine a few. A compiler may also hang.
_TIMEOUT = 60.0

# Bytes: a library has some 60,000, messages a few thousand. A program that is no compiler may write
# without end.
_LARGEST_LIBRARY = 2**26
_LONGEST_MESSAGE = 2**20

_UNFINISHED = ".new-"

# Run in a process of its own. It needs none of the installed packages: Python starts in 20 ms.
_TRIAL = """
import sys
print("started", flush=True)
sys.path.insert(0, sys.argv[2])
import ctypes
from alexnet_lib.kernels.arguments import try_entries
try:
    library = ctypes.CDLL(sys.argv[1])
except OSError as error:
    sys.exit(f"cannot be loaded: {error}")
try_entries(library)
print("ended")
"""


class KernelError(Exception):
    """There can be no kernels here: no compiler, one that fails, or one whose code crashes."""


def is_switched_on() -> bool:
    """Whether kernels may be compiled and loaded; ``KernelError`` for a value with no meaning."""
    value = os.environ.get(SWITCH, "")
    if value.strip().lower() not in {"", "on", "off"}:
        raise KernelError(f"the variable {SWITCH} is {value!r}; expected 'on' or 'off'")
    return value.strip().lower() != "off"


def file_prefix(processor: object) -> str:
    """How the names of files begin for this source and compiler, and what ``processor`` names."""
    key = (SOURCE.read_bytes(), _compiler(), _FLAGS, _PROCESSOR_FLAGS, platform.machine())
    return f"kernels-{hashlib.sha256(repr((key, processor)).encode()).hexdigest()[:16]}-"


def cached_file(prefix: str) -> Path | None:
    """The file of the cache folder, not checked yet; None if there is none."""
    folder = _cache_folder()
    return next(iter(sorted(folder.glob(f"{prefix}*.so"))), None) if folder else None


def library(prefix: str) -> ctypes.CDLL:
    """The kernels of the cache folder; compiled where it has none that are sound.

    Of several processes one compiles, and the others wait for it. Where the folder cannot be used,
    each process compiles for itself.

    Raises:
        KernelError: there is no compiler, it fails, or its code crashes.
        OSError: a file cannot be written or loaded.
    """
    if kernels := _cached(prefix):
        return kernels
    with contextlib.ExitStack() as stack:
        cache = None
        with contextlib.suppress(OSError):
            cache = _make_cache_folder()
            stack.enter_context(_turn(cache))
        # Another process may have compiled meanwhile.
        if cache and (kernels := _cached(prefix)):
            return kernels
        scratch = tempfile.TemporaryDirectory(prefix="alexnet-lib-", ignore_cleanup_errors=True)
        temporary = Path(stack.enter_context(scratch))
        content = _compiled(temporary)
        if cache:
            _clear(cache, prefix)
            with contextlib.suppress(OSError):  # it is full, or must not hold programs
                return _load(_written(cache, prefix, content))
        return _load(_written(temporary, prefix, content))  # stays loaded when the file is deleted


def _cached(prefix: str) -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):  # a missing or damaged file is written again
        if file := cached_file(prefix):
            _check_owner(file.parent, os.lstat(file.parent), stat.S_ISDIR)
            return _load(file)
    return None


def forget(prefix: str) -> None:
    """Deletes what the cache folder has: its results are wrong."""
    with contextlib.suppress(OSError):
        _clear(_make_cache_folder(), prefix)


def _load(file: Path) -> ctypes.CDLL:
    """The library, if it is the user's own and complete; else an ``OSError``."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _check_owner(file, status, stat.S_ISREG)
        content = b"" if status.st_size > _LARGEST_LIBRARY else _read(descriptor, status.st_size)
        if hashlib.sha256(content).hexdigest() != file.stem.rpartition("-")[2]:
            raise OSError(errno.EINVAL, "is damaged", str(file))
        try:
            # The very file that was checked, whatever has its name by now. It stays open: another
            # file with the same number would be taken for this one.
            kernels = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
        except OSError:  # no /proc: nobody else can write the folder
            kernels = ctypes.CDLL(str(file))
    except BaseException:
        os.close(descriptor)
        raise
    kernels._name = str(file)
    return kernels


def _read(descriptor: int, size: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(size)


def _check_owner(path: Path, status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Raises an ``OSError`` unless nobody but the user can write the file or folder."""
    theirs = status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if theirs or not is_kind(status.st_mode):
        raise PermissionError(errno.EPERM, "is not the user's own", str(path))


def _cache_folder() -> Path | None:
    """The folder of kernels; None where the user has no home."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # to be ignored, the specification says
        try:
            home = Path.home()
        except RuntimeError:
            return None
        caches = home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return caches / "alexnet-lib" if caches.is_absolute() else None


def _make_cache_folder() -> Path:
    if (folder := _cache_folder()) is None:
        raise FileNotFoundError("there is no home folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _check_owner(folder, os.lstat(folder), stat.S_ISDIR)
    return folder


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Waits until no other process compiles; not longer than compiling may take."""
    import fcntl  # not on Windows

    descriptor, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + _TIMEOUT
    try:
        while time.monotonic() < deadline:
            interrupts.check()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:  # the file system has no locks
                break
        yield
    finally:
        with contextlib.suppress(OSError):
            # Closing is not enough if a child process has the folder open as well.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _clear(folder: Path, prefix: str) -> None:
    """Deletes damaged files, and what processes left that ended while they wrote."""
    for file in (*folder.glob(f"{prefix}*"), *folder.glob(f"{_UNFINISHED}*")):
        with contextlib.suppress(OSError):
            file.unlink()


def _written(folder: Path, prefix: str, content: bytes) -> Path:
    """The library as a file that only the user can write, after it was tried.

    It is not flushed to disk: a file that a power failure cut is found out by its checksum.
    """
    # With these rights from the start: a file system may refuse to change them.
    descriptor, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=folder)
    try:
        with open(descriptor, "wb") as out:
            out.write(content)
        _try(Path(name))
        file = folder / f"{prefix}{hashlib.sha256(content).hexdigest()}.so"
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return file


def _try(file: Path) -> None:
    """Runs the library in another process, which may crash: with the flags of ``CC``, anything can.

    Raises:
        KernelError: the process crashed.
        OSError: the library cannot be loaded.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return
    command = [sys.executable, "-S", "-E", "-c", _TRIAL, str(file), str(SOURCE.parents[2])]
    status, said = _run(command)
    lines = said.splitlines()
    if "started" not in lines:  # not a Python, but a program that has one built in
        return
    if lines[-1].startswith("cannot be loaded"):
        raise OSError(errno.ENOEXEC, lines[-1], str(file))
    if status or "ended" not in lines:
        raise KernelError(f"the compiled code crashes ({status}): {said[-500:]}")


def _compiled(folder: Path) -> bytes:
    """The bytes of the library, compiled in a folder."""
    new = folder / "kernels.so"
    for processor in _PROCESSOR_FLAGS:
        command = [*_compiler(), *_FLAGS, *processor, str(SOURCE), "-o", str(new), "-lm"]
        status, said = _run(command)
        if status == 0:
            break
    else:
        raise KernelError(f"{shlex.join(command)} ended with {status}: {said[-500:]}")
    try:
        with new.open("rb") as file:
            return file.read(_LARGEST_LIBRARY)
    except OSError as error:
        raise KernelError(f"{shlex.join(command)} wrote no library: {error}") from error


def _run(command: list[str]) -> tuple[int, str]:
    """The exit status of a program and what it printed; a ``KernelError`` if it does not end.

    What it prints goes to a file, as a pipe could be held open by a program that it has started.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        deadline = time.monotonic() + _TIMEOUT
        try:
            while process.poll() is None:
                interrupts.check()
                if time.monotonic() > deadline:
                    raise KernelError(f"{shlex.join(command)} did not end in {_TIMEOUT:g} seconds")
                if os.fstat(said.fileno()).st_size > _LONGEST_MESSAGE:
                    raise KernelError(f"{shlex.join(command)} prints without end")
                time.sleep(0.01)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
                process.wait()
        said.seek(0)
        text = said.read(_LONGEST_MESSAGE).decode(errors="replace")
    printable = (letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
    return process.returncode, "".join(printable).strip()


def _compiler() -> tuple[str, ...]:
    """The compiler's command, from the variable ``CC`` or by its name."""
    if sys.platform == "win32":
        raise KernelError("Microsoft's compiler does not accept the source")
    wanted = os.environ.get("CC", "")
    if not wanted.strip():
        for name in ("cc", "gcc", "clang"):
            if program := shutil.which(name):
                return (program,)
        raise KernelError("there is no C compiler (cc, gcc or clang, or the variable CC)")
    with contextlib.suppress(ValueError):  # quotes that do not match
        command = shlex.split(wanted)
        if command and command[0] and (program := shutil.which(command[0])):
            return (program, *command[1:])
    raise KernelError(f"the variable CC is {wanted!r}; expected the command of a C compiler")
