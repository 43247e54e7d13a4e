"""Downloads of a file whose MD5 is known, from the first of several mirrors that delivers it."""

import errno
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from alexnet_lib import interrupts
from alexnet_lib.checks import Range, check_choice, check_integer, check_number, shown, type_name
from alexnet_lib.files import Lock, as_path
from alexnet_lib.text import printable, progress_bar, say

_CHUNK_BYTES = 1 << 16
_REQUESTS_PER_URL = 5
# A server that sends a byte now and then would else never be given up. The slowest line that
# anybody has, of a satellite phone, carries some 300 bytes a second.
_LEAST_BYTES_PER_SECOND = 300
# What a server may send that says no length, where the size is not known.
_MOST_UNANNOUNCED = 10_000_000_000
# The system's clock for connections counts no more; and nobody waits longer for a byte.
_TIMEOUT = Range("a number of seconds above 0, up to 86,400", lambda x: 0 < x <= 86_400)
_MOST_BYTES = 2**63 - 1  # of a file, for any file system
_WAIT_SECONDS = 0.2


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
    verified one. Several processes and threads can download to one path: one does, the others wait
    for it, and take over where it ends.

    A connection is given up that sends no byte within ``timeout`` seconds, or on average fewer than
    300 bytes per second over that time; redirects are followed to http and https only, and ten
    times at most.

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
        KeyboardInterrupt: the program was asked to stop; the bytes stay for the next call.
        OSError: the file cannot be written: ``path`` is a folder, or the disk is full.
    """
    path = as_path(path)
    size = check_integer("size", size, 1, _MOST_BYTES, optional=True)
    timeout = check_number("timeout", timeout, _TIMEOUT)
    progress = check_choice("progress", progress, (True, False))
    _check_arguments(urls, path, md5)
    if _has_md5(path, md5):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            error.errno, "it is a file, or lies in one; expected a folder", str(path.parent)
        ) from None
    part = path.with_name(path.name + ".part")
    with _locked(part, progress):
        return _download(urls, path, part, md5, size, timeout, progress)


@contextmanager
def _locked(part: Path, progress: bool) -> Iterator[None]:
    """Waits until no other process or thread downloads to this file."""
    lock, told = Lock(part.with_name(part.name + ".lock")), not progress
    while True:
        interrupts.check()
        try:
            lock.__enter__()
        except BlockingIOError:
            if not told:
                say(f"Waiting for another process that downloads {part.stem}")
                told = True
            time.sleep(_WAIT_SECONDS)
        else:
            break
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _download(
    urls: Sequence[str],
    path: Path,
    part: Path,
    md5: str,
    size: int | None,
    timeout: float,
    progress: bool,
) -> Path:
    if _has_md5(path, md5):  # another process was first
        return path
    # An earlier call may have been interrupted between the last byte and the renaming.
    if _has_md5(part, md5):
        return part.replace(path)
    if size is not None:
        _check_space(part, size - _length(part))
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
    if not len(urls):
        raise ValueError("urls is empty; expected at least one http or https address")
    for url in urls:
        if not isinstance(url, str) or _scheme(url) not in {"http", "https"}:
            raise ValueError(f"urls has {shown(url)}; expected http or https addresses")
    if not isinstance(md5, str) or not re.fullmatch("[0-9a-fA-F]{32}", md5):
        raise ValueError(f"md5 is {shown(md5)}; expected 32 hexadecimal digits")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "path is a folder; expected a file", str(path))


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:  # brackets of an IPv6 address that do not match
        return ""


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        message = f"{part.stem} needs {needed:,} bytes, but only {free:,} are free"
        raise OSError(errno.ENOSPC, message, str(part.parent))


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
        start, end = _range(response, held, size)
        if end is not None:
            _check_space(part, end - start)
        title = f"{part.stem} from {urlsplit(url).hostname}"
        hidden = None if progress else True  # None: where there is no terminal
        bar = progress_bar(
            desc=title, total=end, initial=start, unit="B", unit_scale=True, disable=hidden
        )
        plain = progress and bar.disable
        if plain:
            amount = "size unknown" if end is None else f"{end / 1e6:.1f} MB"
            resumed = f", resumed at {start / 1e6:.1f} MB" if start else ""
            say(f"Downloading {title} ({amount}{resumed})")
        have, began = start, time.perf_counter()
        with bar, _opened(part, "ab" if start else "wb") as file:
            # Without a Content-Length nothing else would bound what is written.
            while have < (_MOST_UNANNOUNCED if end is None else end):
                interrupts.check()
                # The error of a connection is the url's; the error of a write is not.
                with _connection_errors(timeout):
                    # read() would lose the bytes before a timeout or a closed connection.
                    chunk = response.read1(_CHUNK_BYTES)
                if not chunk:
                    break
                file.write(chunk)
                bar.update(len(chunk))
                have += len(chunk)
    if end is None and have >= _MOST_UNANNOUNCED:
        part.unlink()
        raise _RequestError(f"sends more than {have:,} bytes, without saying how many")
    if end is not None and have < end:
        raise _RequestError(f"connection closed after {have:,} of {end:,} bytes")
    if plain and end in {None, have}:
        seconds = time.perf_counter() - began
        speed = (have - start) / 1e6 / max(seconds, 1e-6)
        say(f"Downloaded {part.stem} in {seconds:.1f} s ({speed:.1f} MB/s)")
    if size not in {None, have} or not _has_md5(part, md5):
        part.unlink()
        # In a resumed file, the earlier bytes may be wrong and this url correct.
        raise _RequestError(f"wrong bytes: the MD5 of {have:,} bytes differs", from_zero=start > 0)


def _range(response: HTTPResponse, held: int, size: int | None) -> tuple[int, int | None]:
    """First and last byte that a response has; the last is None if it does not say."""
    if response.status not in {200, 206}:
        raise _RequestError(f"HTTP {response.status} {response.reason}")
    start = held if response.status == 206 else 0
    sent_range = response.headers.get("Content-Range") or "no range"
    if response.status == 206 and not sent_range.startswith(f"bytes {held}-"):
        raise _RequestError(f"sent {sent_range} when asked from byte {held}")
    if response.headers.get_content_type() == "text/html":
        raise _RequestError("sent a web page instead of the file")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise _RequestError(f"sent the file in the encoding {encoding!r}, which was not asked")
    end = size if response.length is None else start + response.length
    if size is not None and end != size:
        raise _RequestError(f"has {end:,} bytes instead of {size:,}")
    return start, end


def _open(url: str, part: Path, held: int, timeout: float) -> HTTPResponse:
    headers = {"User-Agent": "alexnet-lib"} | ({"Range": f"bytes={held}-"} if held else {})
    with _connection_errors(timeout):
        try:
            opener = build_opener(_Redirects, *_handlers(timeout))
            response: HTTPResponse = opener.open(Request(url, headers=headers), timeout=timeout)
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
    except (OSError, HTTPException, ValueError, OverflowError) as error:  # of odd addresses too
        cause = error.reason if isinstance(error, URLError) else error
        stalled = isinstance(cause, TimeoutError) and not isinstance(cause, _TooSlowError)
        reason = f"no byte within {timeout:g} s" if stalled else str(cause)
        raise _RequestError(printable(reason) or type(cause).__name__) from error


def _opened(part: Path, mode: str) -> Any:
    """The open file; a link or a pipe that somebody put there is an ``OSError``."""
    more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return open(part, mode, opener=lambda path, flags: os.open(path, flags | more, 0o666))


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https; Python's own also follows those to ftp."""

    def redirect_request(self, req: Request, *details: Any) -> Request | None:
        if _scheme(details[-1]) not in {"http", "https"}:
            raise URLError(f"redirects to {printable(details[-1])}; expected http or https")
        return super().redirect_request(req, *details)


class _TooSlowError(TimeoutError):
    """A connection sends fewer bytes than ``_LEAST_BYTES_PER_SECOND``."""


class _Measured(io.RawIOBase):
    """What a connection sends, headers included; an error if it is too slow.

    The timeout of a socket is for a single byte, and a byte now and then is in time for ever.
    """

    def __init__(self, stream: Any, seconds: float) -> None:
        self._stream, self._seconds = stream, seconds
        self._began, self._bytes = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        passed = time.monotonic() - self._began
        if passed >= self._seconds:
            if self._bytes < passed * _LEAST_BYTES_PER_SECOND:
                raise _TooSlowError(f"{self._bytes} bytes in {passed:.1f} s, which is too slow")
            self._began, self._bytes = time.monotonic(), 0
        count: int | None = self._stream.readinto(buffer)
        self._bytes += count or 0
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _handlers(timeout: float) -> list[HTTPHandler | HTTPSHandler]:
    """Handlers of http and https whose answers are measured."""

    class Response(HTTPResponse):
        def __init__(self, sock: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(sock, *arguments, **options)
            self.fp.close()
            self.fp = io.BufferedReader(_Measured(sock.makefile("rb", buffering=0), timeout))

    def connection(kind: Any, *arguments: Any, **options: Any) -> Any:
        made = kind(*arguments, **options)
        made.response_class = Response
        return made

    class Http(HTTPHandler):
        def http_open(self, req: Request) -> Any:
            return self.do_open(partial(connection, HTTPConnection), req)

    class Https(HTTPSHandler):
        def https_open(self, req: Request) -> Any:
            return self.do_open(partial(connection, HTTPSConnection), req)

    return [Http(), Https()]
