"""Download one file whose MD5 is known, from the first of several mirrors that delivers it."""

import errno
import hashlib
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

__all__ = ["DownloadError", "download_file"]

_CHUNK_BYTES = 1 << 16
_REQUESTS_PER_URL = 5


class DownloadError(OSError):
    """No url gave the file.

    Attributes:
        reasons: for each url, in the order they were tried, why it failed.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return "\n".join(f"{url}: {reason}" for url, reason in self.reasons.items())


class _RequestError(Exception):
    """One request failed; with `from_zero`, the same one without a range may not."""

    def __init__(self, reason: str, *, from_zero: bool = False) -> None:
        super().__init__(reason)
        self.from_zero = from_zero


def download_file(
    urls: Sequence[str],
    path: Path,
    *,
    md5: str,
    size: int | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Download a file, check it, and put it at `path`; do nothing if it is there already.

    The urls are tried in order. Bytes are kept in `path` + ".part" until all of them are there
    and their MD5 is right, so whatever cuts a download off, the next url, or the next call,
    resumes it. A file already at `path` with another MD5 is replaced only by a verified one.
    Proxies and redirects are followed as `urllib.request` does. Two processes must not download
    to one path at the same time.

    Args:
        urls: http or https addresses of byte-identical copies, the preferred one first.
        path: where the file goes; its folder is created if missing.
        md5: the MD5 of the whole file, 32 hexadecimal digits.
        size: the size of the whole file in bytes, if known: wrong answers are then recognised
            before they are downloaded.
        timeout: seconds without a byte after which a connection is given up.
        progress: show a bar in a terminal or notebook, and elsewhere write a line to stderr when
            a download starts and when it ends. False shows nothing.

    Returns:
        `path`, which now holds a file with the given MD5.

    Raises:
        ValueError: `urls` is empty or has one that is neither http nor https, or `md5` is not
            an MD5.
        IsADirectoryError: `path` is a folder.
        DownloadError: every url failed. Bytes that may be good stay for the next call.
        OSError: the file cannot be written, for example because the disk has too little room.

    Example:
        ```python
        download_file(
            ["https://mirror.example/data.tar.gz", "https://origin.example/data.tar.gz"],
            Path("data/data.tar.gz"),
            md5="c58f30108f718f92721af3b95e74349a",
            size=170_498_071,
        )
        ```
    """
    _check_arguments(urls, path, md5)
    if _has_md5(path, md5):
        return path
    part = path.with_name(path.name + ".part")
    # An earlier call may have been interrupted between the last byte and the renaming.
    if _has_md5(part, md5):
        part.replace(path)
        return path

    path.parent.mkdir(parents=True, exist_ok=True)
    if size is not None:
        needed, free = size - _length(part), shutil.disk_usage(path.parent).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"{path.name} needs {needed:,} bytes, but only {free:,} are free",
                str(path.parent),
            )

    reasons: dict[str, str] = {}
    for url in urls:
        for _ in range(_REQUESTS_PER_URL):
            held = _length(part)
            try:
                _fetch(url, part, md5, size, timeout, progress)
            except _RequestError as failure:
                reasons[url] = str(failure)
                gained = _length(part) > held
                if not (gained or failure.from_zero):
                    break
            else:
                part.replace(path)
                return path
    raise DownloadError(reasons)


def _check_arguments(urls: Sequence[str], path: Path, md5: str) -> None:
    if not urls:
        raise ValueError("urls is empty")
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"urls must be http or https addresses, got {url!r}")
    if not re.fullmatch("[0-9a-fA-F]{32}", md5):
        raise ValueError(f"md5 must be 32 hexadecimal digits, got {md5!r}")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "path must name a file, not a folder", str(path))


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _has_md5(path: Path, md5: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return found.hexdigest() == md5.lower()


def _fetch(
    url: str, part: Path, md5: str, size: int | None, timeout: float, progress: bool
) -> None:
    """Make `part` the whole, verified file with one request for the bytes that it lacks."""
    held = _length(part)
    with _open(url, part, held, timeout) as response:
        # Whatever shows that this is not the file must come before `part` is opened for writing:
        # an error page must not cost the bytes already there.
        start = _first_byte(response, held)
        if response.headers.get_content_type() == "text/html":
            raise _RequestError("sent a web page instead of the file")
        end = size if response.length is None else start + response.length
        if size is not None and end != size:
            raise _RequestError(f"has {end:,} bytes instead of {size:,}")
        have = _receive(response, url, part, start, end, timeout, progress)
    if end is not None and have < end:
        raise _RequestError(f"connection closed after {have:,} of {end:,} bytes")
    if size not in (None, have) or not _has_md5(part, md5):
        part.unlink()
        # In a resumed file the earlier bytes may be the wrong ones, and this url without fault.
        raise _RequestError(f"wrong bytes: the MD5 of {have:,} bytes differs", from_zero=start > 0)


def _open(url: str, part: Path, held: int, timeout: float) -> HTTPResponse:
    headers = {"User-Agent": "alexnet-lib"}
    if held:
        headers["Range"] = f"bytes={held}-"
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=timeout)
        return response
    except HTTPError as error:
        error.close()
        beyond_the_end = error.code == 416 and held > 0
        if beyond_the_end:
            part.unlink()
        raise _RequestError(f"HTTP {error.code} {error.reason}", from_zero=beyond_the_end) from None
    except (OSError, HTTPException) as error:
        raise _RequestError(_reason(error, timeout)) from error


def _first_byte(response: HTTPResponse, held: int) -> int:
    if response.status == 200:
        return 0
    if response.status != 206:
        raise _RequestError(f"HTTP {response.status} {response.reason}")
    content_range = response.headers.get("Content-Range", "")
    if not content_range.startswith(f"bytes {held}-"):
        raise _RequestError(f"sent {content_range or 'no range'} when asked from byte {held}")
    return held


def _receive(
    response: HTTPResponse,
    url: str,
    part: Path,
    start: int,
    end: int | None,
    timeout: float,
    progress: bool,
) -> int:
    """Write the body to `part` as it comes and return the length that `part` then has."""
    host = urlsplit(url).hostname
    name = part.stem
    have = start
    began = time.perf_counter()
    with (
        part.open("ab" if start else "wb") as file,
        tqdm(
            desc=f"{name} from {host}",
            total=end,
            initial=start,
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            disable=None if progress else True,
        ) as bar,
    ):
        plain = progress and bar.disable
        if plain:
            amount = "size unknown" if end is None else f"{end / 1e6:.1f} MB"
            resumed = f", resumed at {start / 1e6:.1f} MB" if start else ""
            print(f"Downloading {name} from {host} ({amount}{resumed})", file=sys.stderr)
        for chunk in _chunks(response, timeout):
            file.write(chunk)
            bar.update(len(chunk))
            have += len(chunk)
            # Without a Content-Length nothing else would bound what is written.
            if end is not None and have >= end:
                break
    if plain and end in (None, have):
        seconds = time.perf_counter() - began
        speed = (have - start) / 1e6 / max(seconds, 1e-6)
        print(f"Downloaded {name} in {seconds:.1f} s ({speed:.1f} MB/s)", file=sys.stderr)
    return have


def _chunks(response: HTTPResponse, timeout: float) -> Iterator[bytes]:
    """Yield the body as it arrives.

    Apart from the writing, so that a full disk is not taken for a failing url.
    """
    try:
        # read() would lose what it has gathered when a stall or a cut ends it.
        while chunk := response.read1(_CHUNK_BYTES):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _RequestError(_reason(error, timeout)) from error


def _reason(error: OSError | HTTPException, timeout: float) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no byte within {timeout:g} s"
    return str(cause) or type(cause).__name__
