"""Downloads of a file whose MD5 is known, from the first of several mirrors that delivers it."""

import errno
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from alexnet_lib.checks import ABOVE_ZERO, check_integer, check_number, type_name
from alexnet_lib.files import as_path

_CHUNK_BYTES = 1 << 16
_REQUESTS_PER_URL = 5


class DownloadError(OSError):
    """No url gave the file; ``reasons`` says why each one failed, in the order of the urls."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return "\n".join(f"{url}: {reason}" for url, reason in self.reasons.items())


class _RequestError(Exception):
    """A request failed; with ``from_zero``, the same one without a range may not."""

    def __init__(self, reason: str, *, from_zero: bool = False) -> None:
        super().__init__(reason)
        self.from_zero = from_zero


def download_file(
    urls: Sequence[str],
    path: str | os.PathLike[str],
    *,
    md5: str,
    size: int | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Downloads a file to ``path`` and checks it; does nothing if it is there already.

    Bytes are kept in ``path`` + ".part" until the file is complete and its MD5 is right: the next
    url, or the next call, resumes. A file at ``path`` with another MD5 is replaced only by a
    verified one. Two processes must not download to one path at the same time.

    Args:
        urls: http or https addresses of identical copies, tried in order.
        path: of the file; a missing folder is created.
        md5: of the whole file, 32 hexadecimal digits.
        size: in bytes, if known: wrong answers are then recognised before they are downloaded.
        timeout: seconds without a byte after which a connection is closed.
        progress: show a bar in a terminal or notebook, elsewhere a line at the start and the end.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: ``path`` is no path, or ``urls`` no sequence of addresses.
        DownloadError: every url failed. Bytes that may be good stay for the next call.
        OSError: the file cannot be written: ``path`` is a folder, or the disk is full.
    """
    path = as_path(path)
    size = check_integer("size", size, 1, optional=True)
    timeout = check_number("timeout", timeout, ABOVE_ZERO)
    _check_arguments(urls, path, md5)
    part = path.with_name(path.name + ".part")
    if _has_md5(path, md5):
        return path
    # An earlier call may have been interrupted between the last byte and the renaming.
    if _has_md5(part, md5):
        return part.replace(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if size is not None:
        needed, free = size - _length(part), shutil.disk_usage(path.parent).free
        if needed > free:
            message = f"{path.name} needs {needed:,} bytes, but only {free:,} are free"
            raise OSError(errno.ENOSPC, message, str(path.parent))
    reasons: dict[str, str] = {}
    for url in urls:
        for _ in range(_REQUESTS_PER_URL):
            held = _length(part)
            try:
                _fetch(url, part, md5, size, timeout, progress)
                return part.replace(path)
            except _RequestError as error:
                reasons[url] = str(error)
                if _length(part) <= held and not error.from_zero:
                    break
    raise DownloadError(reasons)


def _check_arguments(urls: Sequence[str], path: Path, md5: str) -> None:
    if isinstance(urls, str | bytes) or not isinstance(urls, Sequence):
        raise TypeError(f"urls is a {type_name(urls)}; expected a list of addresses")
    if not urls:
        raise ValueError("urls is empty; expected at least one http or https address")
    for url in urls:
        if not isinstance(url, str) or urlsplit(url).scheme not in {"http", "https"}:
            raise ValueError(f"urls has {url!r}; expected http or https addresses")
    if not isinstance(md5, str) or not re.fullmatch("[0-9a-fA-F]{32}", md5):
        raise ValueError(f"md5 is {md5!r}; expected 32 hexadecimal digits")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "path is a folder; expected a file", str(path))


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _has_md5(path: Path, md5: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == md5.lower()


def _fetch(
    url: str, part: Path, md5: str, size: int | None, timeout: float, progress: bool
) -> None:
    """Completes and verifies ``part``, with one request for the bytes that it lacks."""
    held = _length(part)
    with _open(url, part, held, timeout) as response:
        # The response is checked before `part` is opened for writing: an error page must
        # not replace the bytes already there.
        if response.status not in {200, 206}:
            raise _RequestError(f"HTTP {response.status} {response.reason}")
        start = held if response.status == 206 else 0
        sent_range = response.headers.get("Content-Range") or "no range"
        if response.status == 206 and not sent_range.startswith(f"bytes {held}-"):
            raise _RequestError(f"sent {sent_range} when asked from byte {held}")
        if response.headers.get_content_type() == "text/html":
            raise _RequestError("sent a web page instead of the file")
        end = size if response.length is None else start + response.length
        if size is not None and end != size:
            raise _RequestError(f"has {end:,} bytes instead of {size:,}")
        title = f"{part.stem} from {urlsplit(url).hostname}"
        hidden = None if progress else True  # None: where there is no terminal
        bar = tqdm(desc=title, total=end, initial=start, unit="B", unit_scale=True, disable=hidden)
        plain = progress and bar.disable
        if plain:
            amount = "size unknown" if end is None else f"{end / 1e6:.1f} MB"
            resumed = f", resumed at {start / 1e6:.1f} MB" if start else ""
            print(f"Downloading {title} ({amount}{resumed})", file=sys.stderr)
        have, began = start, time.perf_counter()
        with bar, part.open("ab" if start else "wb") as file:
            # Without a Content-Length nothing else would bound what is written.
            while end is None or have < end:
                # The error of a connection is the url's; the error of a write is not.
                with _connection_errors(timeout):
                    # read() would lose the bytes before a timeout or a closed connection.
                    chunk = response.read1(_CHUNK_BYTES)
                if not chunk:
                    break
                file.write(chunk)
                bar.update(len(chunk))
                have += len(chunk)
    if end is not None and have < end:
        raise _RequestError(f"connection closed after {have:,} of {end:,} bytes")
    if plain and end in {None, have}:
        seconds = time.perf_counter() - began
        speed = (have - start) / 1e6 / max(seconds, 1e-6)
        print(f"Downloaded {part.stem} in {seconds:.1f} s ({speed:.1f} MB/s)", file=sys.stderr)
    if size not in {None, have} or not _has_md5(part, md5):
        part.unlink()
        # In a resumed file, the earlier bytes may be wrong and this url correct.
        raise _RequestError(f"wrong bytes: the MD5 of {have:,} bytes differs", from_zero=start > 0)


def _open(url: str, part: Path, held: int, timeout: float) -> HTTPResponse:
    headers = {"User-Agent": "alexnet-lib"} | ({"Range": f"bytes={held}-"} if held else {})
    with _connection_errors(timeout):
        try:
            response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=timeout)
        except HTTPError as error:
            error.close()
            too_long = error.code == 416 and held > 0
            if too_long:
                part.unlink()
            reason = f"HTTP {error.code} {error.reason}"
            raise _RequestError(reason, from_zero=too_long) from None
    return response


@contextmanager
def _connection_errors(timeout: float) -> Iterator[None]:
    """Failures of a connection, as a ``_RequestError`` with the reason."""
    try:
        yield
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        stalled = isinstance(cause, TimeoutError)
        reason = f"no byte within {timeout:g} s" if stalled else str(cause)
        raise _RequestError(reason or type(cause).__name__) from error
