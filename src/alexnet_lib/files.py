"""The one way to write: atomic, flushed to disk, checked; and the folder of a run.

A reader finds either the old file or the complete new one, whenever the process or the machine
stops.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from alexnet_lib.checks import type_name

if TYPE_CHECKING:
    from torch import Tensor

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_CHUNK = 1 << 20  # bytes that are read at a time

# What a file system says that cannot flush; the disk's own errors are others.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}

# The keys of the checksum in the metadata of a safetensors file: a file that has lost the one still
# has the other.
_SHA256, _CHECKED = "sha256", "checked_by"
_DIGEST = re.compile(rb'(?<="sha256":")[0-9a-f]{64}(?=")')
_NO_DIGEST = "0" * 64
_LONGEST_HEADER = 100_000_000  # bytes, of safetensors' own reader


def as_path(path: object, name: str = "path") -> Path:
    """The path; ``~`` is the user's home folder. ``name`` is that of the argument in errors."""
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is a {type_name(path)}; expected a path") from None
    try:
        os.fsencode(text)
    except UnicodeError:
        text = ascii(text) + "\0"
    if not text or "\0" in text:
        raise ValueError(f"{name} is {text!r}; expected a path")
    if address := re.match(r"(https?|ftp|s3|gs|hf|file):([/\\]+)", text, re.IGNORECASE):
        if isinstance(path, os.PathLike) and address[2] in {"/", "\\"}:
            # A Path has folded the slashes that the user typed.
            slashes = "///" if address[1].lower() == "file" else "//"
            text = address[1] + ":" + slashes + text[address.end() :].replace("\\", "/")
        raise ValueError(f"{name} is {text!r}, an address; expected a path: download it first")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no such user
        raise ValueError(
            f"{name} is {text!r}, but there is no such home folder; expected a path without ~"
        ) from None


def as_text(name: str) -> str:
    """A name of the file system as text: UTF-8 where the locale cannot decode it (``LC_ALL=C``)."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # it has surrogates, which stand for bytes
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    return name


class Lock:
    """A lock on a file, which one process and one thread hold at a time.

    It ends with its process, however that ends. The file is removed when the block ends. Where the
    file system has no locks, it protects against the same process only.

    Raises:
        BlockingIOError: it is held.
    """

    _held: set[str] = set()  # noqa: RUF012  (shared: the system's locks do not part threads)

    def __init__(self, file: Path) -> None:
        self.file = file
        self._key = os.path.realpath(file)

    def __enter__(self) -> "Lock":
        if self._key in self._held:
            raise BlockingIOError(errno.EAGAIN, "is locked by this process", str(self.file))
        self._held.add(self._key)
        try:
            self._descriptor = self._locked()
        except BaseException:
            self._held.discard(self._key)
            raise
        return self

    def _locked(self) -> int:
        # A link that somebody put there is not followed.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        while True:
            if self.file.is_symlink():  # Windows has no such flag
                raise OSError(errno.ELOOP, "is a link; expected a file", str(self.file))
            descriptor = os.open(self.file, flags, 0o666)
            try:
                _lock(descriptor, self.file)
                # Another process may have removed the file before it was locked here.
                if os.path.samestat(os.fstat(descriptor), os.lstat(self.file)):
                    return descriptor
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    @property
    def is_there(self) -> bool:
        """Whether the file is still the one that is locked."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self.file))
        except OSError:
            return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.is_there:
            with suppress(OSError):  # Windows removes no open file
                self.file.unlink()
        os.close(self._descriptor)
        self._held.discard(self._key)


def _lock(descriptor: int, file: Path) -> None:
    """Locks an open file for this process; child processes do not inherit the lock."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES, errno.EDEADLK}:
            raise BlockingIOError(errno.EAGAIN, "is locked by another process", str(file)) from None


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to; when the block ends, it replaces ``file``.

    File and folder are flushed to disk. Where the block raises, ``file`` stays as it was. Errors of
    the system name ``file``. The folder is created where it does not exist. What an earlier process
    left that was killed while it wrote ``file`` is removed.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _clear_unfinished(file)
        with scratch(file) as folder:
            new = folder / file.name
            new.touch()
            mode = new.stat().st_mode
            yield new
            # Some writers create files that only their owner may read, whatever the umask allows.
            with suppress(OSError):  # of a file system without rights
                new.chmod(mode)
            flush(new)
            os.replace(new, file)
        flush(file.parent)
    except OSError as error:
        if error.errno is None or error.filename == str(file):
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


@contextmanager
def scratch(file: Path) -> Iterator[Path]:
    """A hidden folder beside a file, locked as long as this process uses it, and then removed.

    What a killed process leaves is removed by ``replacing`` the file.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{file.name}-", suffix=_SUFFIX, dir=file.parent))
        # Another process may take it for a left one in the moment before it is locked.
        with suppress(BlockingIOError, FileNotFoundError), Lock(folder / "lock"):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


_SUFFIX = ".tmp"


def _clear_unfinished(file: Path) -> None:
    """Removes what processes have left that were killed while they wrote a file."""
    prefix = f".{file.name}-"
    with suppress(OSError), os.scandir(file.parent) as entries:
        for entry in entries:
            name = entry.name
            if not name.startswith(prefix) or not name.endswith(_SUFFIX):
                continue
            if entry.is_dir(follow_symlinks=False):
                with suppress(OSError), Lock(Path(entry.path, "lock")):
                    shutil.rmtree(entry.path, ignore_errors=True)


def flush(path: Path) -> None:
    """Flushes a file or a folder to the disk, where the file system can."""
    if path.is_dir() and sys.platform == "win32":  # which cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Writes plain data as JSON."""
    with replacing(file) as new:
        new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_json_lines(file: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Writes plain data as lines of JSON."""
    with replacing(file) as new:
        new.write_text("".join(f"{json.dumps(value)}\n" for value in values), encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file whose metadata has the SHA-256 of all its bytes.

    For the sum, its own 64 digits are zeros. The file is read again and compared with the tensors
    before it replaces an older one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(file) as new:
        try:
            save_file(dense, new, {**metadata, _SHA256: _NO_DIGEST, _CHECKED: _SHA256})
        except SafetensorError as error:
            raise OSError(f"{file} cannot be written: {error}") from error
        with new.open("rb+") as opened:
            header = _header(opened)
            (digits,) = _DIGEST.finditer(header)
            opened.seek(digits.start())
            opened.write(_digest(header, _bytes_in_order(dense, header)))
        flush(new)
        if not _is_whole(new):
            raise OSError(errno.EIO, "the disk holds other bytes than were written", str(file))


def read_tensors(file: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, whose checksum is verified.

    A file without one is read with a warning. A ``ValueError`` names a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    whole = _is_whole(file)
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            if whole is False or (whole is None and _CHECKED in metadata):
                raise SafetensorError("its bytes are not those that were written")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or not a safetensors file: {error}") from error
    if whole is None:
        warnings.warn(
            f"{file} has no checksum, so that damage to its weights would not be seen; "
            "save_checkpoint writes one",
            stacklevel=3,
        )
    return tensors, {k: v for k, v in metadata.items() if k not in {_SHA256, _CHECKED}}


def _is_whole(file: Path) -> bool | None:
    """Whether a safetensors file has the bytes that were written; None: it has no checksum."""
    with file.open("rb") as opened:
        header = _header(opened)
        if not (digests := _DIGEST.findall(header)):
            return None
        return digests == [_digest(header, iter(lambda: opened.read(_CHUNK), b""))]


def _header(opened: BinaryIO) -> bytes:
    """The header of a safetensors file, from the first byte on."""
    length = opened.read(8)
    return length + opened.read(min(int.from_bytes(length, "little"), _LONGEST_HEADER))


def _bytes_in_order(tensors: Mapping[str, "Tensor"], header: bytes) -> Iterator[Any]:
    """The bytes of tensors in the order of a header."""
    import torch

    places = json.loads(header[8:])
    for name in sorted(tensors, key=lambda name: places[name]["data_offsets"]):
        yield tensors[name].reshape(-1).view(torch.uint8).numpy().data


def _digest(header: bytes, content: Iterable[Any]) -> bytes:
    """The hexadecimal SHA-256 of a safetensors file, with zeros as that sum."""
    digest = hashlib.sha256(_DIGEST.sub(_NO_DIGEST.encode(), header))
    for part in content:
        digest.update(part)
    return digest.hexdigest().encode()


class RunFolder:
    """The folder of a run, and the names of its files; locked for one run at a time.

    As a context it creates the folder, locks it, and clears what a run has left there that was
    killed. A folder in which nothing was written is removed at the end, if it was created.

    Args:
        path: the folder.
        resume: whether it may hold a run already.

    Raises:
        BlockingIOError: another run is writing to the folder.
        FileExistsError: it holds a run already.
        OSError: it cannot be written, or holds a link in place of a file.
    """

    FILES = (
        "recipe.json",
        "history.jsonl",
        "best.safetensors",
        "last.safetensors",
        "result.json",
        "state.safetensors",
    )

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = as_path(path, "out")
        # A data set of a user may change the working directory.
        self._root = self.path.absolute()
        self.recipe, self.history, self.best, self.last, self.result, self.state = (
            self._root / name for name in self.FILES
        )
        self._resume = resume
        self._lock = Lock(self._root / ".lock")

    @property
    def holds_run(self) -> bool:
        """Whether one of the files of a run is there."""
        return any(os.path.lexists(self._root / name) for name in self.FILES)

    def __enter__(self) -> "RunFolder":
        name = f"out is {str(self.path)!r}"
        try:
            self._is_new = not self._root.exists()
            self._root.mkdir(parents=True, exist_ok=True)
            self._lock.__enter__()
        except BlockingIOError:
            raise BlockingIOError(
                errno.EAGAIN, f"{name}, to which another run is writing; choose another folder"
            ) from None
        except OSError as error:
            reason = "it is a file" if self._root.is_file() else error.strerror or error
            raise OSError(f"{name}, which cannot be written: {reason}") from error
        try:
            self._prepare(name)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def _prepare(self, name: str) -> None:
        if not self._resume and self.holds_run:
            raise FileExistsError(
                f"{name}, which holds a run already; choose another folder, or continue the run "
                "(resume='auto', --resume auto)"
            )
        for file in (self._root / name for name in self.FILES):
            if file.is_symlink():
                raise OSError(f"{name}, where {file.name} is a link; expected a file of a run")
            _clear_unfinished(file)

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(None, None, None)
        if self._is_new and not self.holds_run:
            with suppress(OSError):  # it has other files
                self._root.rmdir()

    def check(self) -> None:
        """Raises an ``OSError`` unless the folder is still the one that was locked."""
        if not self._lock.is_there:
            raise FileNotFoundError(
                f"out is {str(self.path)!r}, which was removed or replaced during the run"
            )

    def check_space(self, needed: int) -> None:
        """Raises an ``OSError`` unless the disk has space for ``needed`` more bytes."""
        free = shutil.disk_usage(self._root).free
        if free < needed:
            raise OSError(
                f"out is {str(self.path)!r}, where {free / 1e6:,.0f} MB are free; the checkpoints "
                f"need {needed / 1e6:,.0f} MB"
            )
