"""The promises of `download_file`, each against a real HTTP server on this machine."""

import contextlib
import hashlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import namedtuple
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet_lib import interrupts
from alexnet_lib.data import downloads
from alexnet_lib.data.downloads import DownloadError, download_file

BODY = random.Random(2012).randbytes(300_000)
HALF = len(BODY) // 2
OTHER = bytes(reversed(BODY))
MD5 = hashlib.md5(BODY).hexdigest()
TIMEOUT = 0.3

# One answered request: its path, its Range header and the bytes of file content sent for it.
Answer = namedtuple("Answer", "path range sent")


class Handler(BaseHTTPRequestHandler):
    """Answers /NAME with the method `NAME`, and keeps an `Answer` of each in `server.answers`."""

    server: "Server"

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0].replace("-", "_")
        getattr(self, name)()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def asked_from(self) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(match[1]) if match else 0

    def asked_before(self) -> bool:
        return any(answer.path == self.path for answer in self.server.answers)

    def answer(
        self,
        body: bytes,
        *,
        status: int = 200,
        length: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send `body`; `length` is a Content-Length other than its own, -1 for none at all."""
        self.server.answers.append(Answer(self.path, self.headers.get("Range"), len(body)))
        self.server.agents.add(self.headers.get("User-Agent"))
        self.send_response(status)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def ranged(self, body: bytes, stop: int | None = None) -> None:
        """Serve what is asked of `body`, but send nothing from byte `stop` on."""
        start = self.asked_from()
        if not start:
            self.answer(body[:stop], length=len(body))
        elif start >= len(body):
            self.answer(b"", status=416)
        else:
            content_range = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            rest = len(body) - start
            self.answer(body[start:stop], status=206, length=rest, headers=content_range)

    def good(self) -> None:
        self.ranged(BODY)

    def good_too(self) -> None:
        self.ranged(BODY)

    def no_range(self) -> None:
        self.answer(BODY)

    def no_length(self) -> None:
        self.answer(BODY, length=-1)

    def cut_at_half(self) -> None:
        self.ranged(BODY, HALF)

    def cut_at_half_without_range(self) -> None:
        self.answer(BODY[:HALF], length=len(BODY))

    def cut_once(self) -> None:
        self.ranged(BODY, None if self.asked_before() else HALF)

    def cut_after_1000_bytes(self) -> None:
        self.ranged(BODY, self.asked_from() + 1000)

    def stalls_at_half(self) -> None:
        self.ranged(BODY, HALF)
        self.server.closing.wait(10)

    def silent(self) -> None:
        self.server.closing.wait(10)

    def wrong(self) -> None:
        self.ranged(OTHER)

    def wrong_without_range(self) -> None:
        self.answer(OTHER)

    def wrong_cut_at_half(self) -> None:
        self.ranged(OTHER, HALF)

    def shorter(self) -> None:
        self.answer(BODY[:-1])

    def too_long_without_length(self) -> None:
        self.answer(BODY + BODY, length=-1)

    def other_range(self) -> None:
        content_range = {"Content-Range": f"bytes 7-{len(BODY) - 1}/{len(BODY)}"}
        self.answer(BODY[7:], status=206, headers=content_range)

    def web_page(self) -> None:
        self.answer(b"<html>Moved</html>", length=-1, headers={"Content-Type": "text/html"})

    def status_204(self) -> None:
        self.answer(b"", status=204)

    def status_404(self) -> None:
        self.answer(b"gone", status=404)

    def status_416(self) -> None:
        self.answer(b"", status=416)

    def status_503(self) -> None:
        self.answer(b"busy", status=503)

    def drips(self) -> None:
        self.answer(b"", length=len(BODY))
        self.drip(BODY)

    def drips_at_half(self) -> None:
        self.ranged(BODY, HALF)
        self.drip(BODY[HALF:])

    def drips_headers(self) -> None:
        self.server.answers.append(Answer(self.path, None, 0))
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        self.drip(b"X: 1\r\n" * 50)

    def drip(self, body: bytes) -> None:
        for byte in body:
            if self.server.closing.wait(TIMEOUT / 3):
                break
            self.wfile.write(bytes([byte]))

    def gzipped(self) -> None:
        self.answer(BODY, headers={"Content-Encoding": "gzip"})

    def endless(self) -> None:
        self.answer(b"", length=-1)
        with contextlib.suppress(OSError):
            while not self.server.closing.is_set():
                self.wfile.write(OTHER)

    def says_much(self) -> None:
        self.answer(BODY, length=10**18)

    def redirect_to_itself(self) -> None:
        self.answer(b"", status=302, headers={"Location": self.path})

    def redirect_on(self) -> None:
        number = int(self.path.partition("?")[2] or 0) + 1
        self.answer(b"", status=302, headers={"Location": f"/redirect_on?{number}"})

    def redirect_to_file(self) -> None:
        self.answer(b"", status=302, headers={"Location": "file:///etc/passwd"})

    def redirect_to_ftp(self) -> None:
        self.answer(b"", status=302, headers={"Location": "ftp://127.0.0.1:9/file"})

    def slow_start(self) -> None:
        if not self.asked_before():
            self.server.started.set()
            self.server.go_on.wait(10)
        self.ranged(BODY)

    def redirect(self) -> None:
        self.answer(b"", status=302, headers={"Location": "/good"})


class Server(ThreadingHTTPServer):
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.agents: set[str | None] = set()
        self.closing = threading.Event()
        self.started, self.go_on = threading.Event(), threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: a client that hangs up is part of many tests."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # A proxy that this machine may be set to use knows nothing of its 127.0.0.1.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


Fetch = Callable[..., Path]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "body.bin"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "body.bin.part"


@pytest.fixture
def fetch(server: Server, path: Path) -> Fetch:
    """`download_file` to `path` from the server's paths of the given names."""

    def fetch(*names: str, size: int | None = len(BODY), progress: bool = False) -> Path:
        urls = [name if "://" in name else server.url(name) for name in names]
        return download_file(urls, path, md5=MD5, size=size, timeout=TIMEOUT, progress=progress)

    return fetch


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def failures(fetch: Fetch, *names: str, **options: Any) -> list[str]:
    """The reasons, in order, of a download that must fail."""
    with pytest.raises(DownloadError) as caught:
        fetch(*names, **options)
    return list(caught.value.reasons.values())


# What a successful download leaves behind


def test_a_download_puts_the_file_at_path_and_leaves_no_part(
    fetch: Fetch, path: Path, part: Path
) -> None:
    assert fetch("good") == path
    assert path.read_bytes() == BODY
    assert not part.exists()


def test_a_missing_folder_is_created(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "some" / "folder" / "body.bin"
    download_file([server.url("good")], path, md5=MD5, progress=False)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("name", ["good", "no-length"])
def test_the_size_need_not_be_known(fetch: Fetch, path: Path, name: str) -> None:
    fetch(name, size=None)
    assert path.read_bytes() == BODY


def test_the_md5_may_be_in_capitals(server: Server, path: Path) -> None:
    download_file([server.url("good")], path, md5=MD5.upper(), progress=False)
    assert path.read_bytes() == BODY


def test_the_first_url_that_works_is_the_only_one_asked(fetch: Fetch, server: Server) -> None:
    fetch("good", "good-too")
    assert [answer.path for answer in server.answers] == ["/good"]


def test_requests_name_the_library(fetch: Fetch, server: Server) -> None:
    fetch("good")
    assert server.agents == {"alexnet-lib"}


# Files that are there already


def test_a_right_file_at_path_needs_no_network(fetch: Fetch, server: Server, path: Path) -> None:
    path.write_bytes(BODY)
    assert fetch("good") == path
    assert server.answers == []


def test_a_wrong_file_at_path_is_replaced_by_the_right_one(fetch: Fetch, path: Path) -> None:
    path.write_bytes(OTHER)
    fetch("good")
    assert path.read_bytes() == BODY


def test_a_wrong_file_at_path_stays_while_no_right_one_is_had(fetch: Fetch, path: Path) -> None:
    path.write_bytes(b"placed by hand")
    failures(fetch, "cut-at-half", "wrong", "status-404")
    assert path.read_bytes() == b"placed by hand"


def test_a_part_that_lacks_nothing_but_its_name_needs_no_network(
    fetch: Fetch, server: Server, path: Path, part: Path
) -> None:
    part.write_bytes(BODY)
    fetch("good")
    assert path.read_bytes() == BODY
    assert not part.exists()
    assert server.answers == []


@pytest.mark.parametrize("length", [1, HALF, len(BODY), len(BODY) + 5])
@pytest.mark.parametrize("name", ["good", "no-range"])
def test_a_stale_part_of_wrong_content_is_recovered_from(
    fetch: Fetch, path: Path, part: Path, name: str, length: int
) -> None:
    part.write_bytes((OTHER + OTHER)[:length])
    fetch(name)
    assert path.read_bytes() == BODY


# Resuming


def test_a_cut_off_download_resumes_where_it_stopped(
    fetch: Fetch, server: Server, path: Path
) -> None:
    fetch("cut-once")
    assert path.read_bytes() == BODY
    assert server.answers == [
        Answer("/cut-once", None, HALF),
        Answer("/cut-once", f"bytes={HALF}-", len(BODY) - HALF),
    ]


def test_the_next_url_resumes_what_the_first_began(
    fetch: Fetch, server: Server, path: Path
) -> None:
    fetch("cut-at-half", "good")
    assert path.read_bytes() == BODY
    assert server.answers[-1] == Answer("/good", f"bytes={HALF}-", len(BODY) - HALF)


def test_a_stalled_download_resumes_from_the_next_url(
    fetch: Fetch, server: Server, path: Path
) -> None:
    fetch("stalls-at-half", "good")
    assert path.read_bytes() == BODY
    assert server.answers[-1] == Answer("/good", f"bytes={HALF}-", len(BODY) - HALF)


def test_the_next_call_resumes_what_a_failed_one_left(
    fetch: Fetch, server: Server, path: Path, part: Path
) -> None:
    failures(fetch, "cut-at-half")
    assert part.read_bytes() == BODY[:HALF]
    fetch("good")
    assert path.read_bytes() == BODY
    assert server.answers[-1] == Answer("/good", f"bytes={HALF}-", len(BODY) - HALF)


def test_an_interrupt_leaves_the_part_and_the_next_call_resumes(
    fetch: Fetch, server: Server, path: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read1, reads = HTTPResponse.read1, iter(range(10))

    def interrupted(response: HTTPResponse, n: int = -1) -> bytes:
        if next(reads) == 2:
            raise KeyboardInterrupt
        return read1(response, n)

    with monkeypatch.context() as patched:
        patched.setattr(HTTPResponse, "read1", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("good")
    held = part.stat().st_size
    assert 0 < held < len(BODY)
    assert part.read_bytes() == BODY[:held]
    assert not path.exists()

    fetch("good")
    assert path.read_bytes() == BODY
    assert server.answers[-1] == Answer("/good", f"bytes={held}-", len(BODY) - held)


def test_a_server_without_ranges_is_taken_from_zero(
    fetch: Fetch, server: Server, path: Path, part: Path
) -> None:
    part.write_bytes(BODY[:HALF])
    fetch("no-range")
    assert path.read_bytes() == BODY
    assert server.answers == [Answer("/no-range", f"bytes={HALF}-", len(BODY))]


def test_a_range_that_cannot_be_had_is_followed_by_a_request_from_zero(
    fetch: Fetch, server: Server, part: Path
) -> None:
    part.write_bytes(OTHER + OTHER)
    fetch("good")
    assert server.answers == [
        Answer("/good", f"bytes={2 * len(BODY)}-", 0),
        Answer("/good", None, len(BODY)),
    ]


def test_another_range_than_the_one_asked_for_is_refused_and_costs_nothing(
    fetch: Fetch, part: Path
) -> None:
    part.write_bytes(BODY[:HALF])
    [reason] = failures(fetch, "other-range")
    assert f"sent bytes 7-{len(BODY) - 1}/{len(BODY)} when asked from byte {HALF}" in reason
    assert part.read_bytes() == BODY[:HALF]


def test_a_redirect_is_followed_with_the_range_asked_for(
    fetch: Fetch, server: Server, path: Path, part: Path
) -> None:
    part.write_bytes(BODY[:HALF])
    fetch("redirect")
    assert path.read_bytes() == BODY
    assert server.answers[-1] == Answer("/good", f"bytes={HALF}-", len(BODY) - HALF)


# Every loop ends


def test_a_url_that_is_always_cut_off_gets_five_requests(fetch: Fetch, server: Server) -> None:
    failures(fetch, "cut-after-1000-bytes")
    assert len(server.answers) == 5


def test_a_request_that_brings_nothing_new_is_the_last_to_its_url(
    fetch: Fetch, server: Server
) -> None:
    failures(fetch, "cut-at-half-without-range")
    assert len(server.answers) == 2


@pytest.mark.parametrize("name", ["status-416", "status-404", "web-page", "shorter"])
def test_a_refusal_is_not_asked_for_again(fetch: Fetch, server: Server, name: str) -> None:
    failures(fetch, name)
    assert len(server.answers) == 1


# Wrong bytes


def test_wrong_bytes_never_get_to_path_or_stay_in_part(
    fetch: Fetch, path: Path, part: Path
) -> None:
    [reason] = failures(fetch, "wrong")
    assert "MD5" in reason
    assert not path.exists()
    assert not part.exists()


def test_after_wrong_bytes_the_next_url_starts_from_zero(
    fetch: Fetch, server: Server, path: Path
) -> None:
    fetch("wrong", "good")
    assert path.read_bytes() == BODY
    assert server.answers == [
        Answer("/wrong", None, len(BODY)),
        Answer("/good", None, len(BODY)),
    ]


def test_a_url_that_resumed_wrong_bytes_is_asked_again_from_zero(
    fetch: Fetch, server: Server, path: Path
) -> None:
    fetch("wrong-cut-at-half", "good")
    assert path.read_bytes() == BODY
    assert server.answers[-2:] == [
        Answer("/good", f"bytes={HALF}-", len(BODY) - HALF),
        Answer("/good", None, len(BODY)),
    ]


def test_a_whole_file_of_wrong_bytes_is_not_downloaded_twice(
    fetch: Fetch, server: Server, part: Path
) -> None:
    part.write_bytes(BODY[:HALF])
    failures(fetch, "wrong-without-range")
    assert len(server.answers) == 1


def test_a_length_that_contradicts_the_size_is_refused_before_the_download(
    fetch: Fetch, part: Path
) -> None:
    part.write_bytes(BODY[:HALF])
    assert failures(fetch, "shorter") == ["has 299,999 bytes instead of 300,000"]
    assert part.read_bytes() == BODY[:HALF]


def test_a_wrong_length_is_caught_by_the_md5_where_the_size_is_not_known(
    fetch: Fetch, path: Path
) -> None:
    [reason] = failures(fetch, "shorter", size=None)
    assert "MD5" in reason
    assert not path.exists()


def test_an_answer_without_a_length_is_not_read_far_beyond_the_size(
    fetch: Fetch, path: Path
) -> None:
    [reason] = failures(fetch, "too-long-without-length")
    have = re.search(r"([\d,]+) bytes", reason)
    assert have
    assert int(have[1].replace(",", "")) < 1.5 * len(BODY)
    assert not path.exists()


def test_a_web_page_is_refused_and_costs_nothing(fetch: Fetch, part: Path) -> None:
    part.write_bytes(BODY[:HALF])
    assert failures(fetch, "web-page") == ["sent a web page instead of the file"]
    assert part.read_bytes() == BODY[:HALF]


# Failing urls


def test_all_urls_failing_names_each_with_its_reason(
    fetch: Fetch, server: Server, closed_port: int
) -> None:
    refused = f"http://127.0.0.1:{closed_port}/"
    names = ["status-404", "status-503", "silent", "cut-at-half", "status-204"]
    with pytest.raises(DownloadError) as caught:
        fetch(*names, refused)
    lines = str(caught.value).splitlines()
    assert lines[:-1] == [
        f"{server.url('status-404')}: HTTP 404 Not Found",
        f"{server.url('status-503')}: HTTP 503 Service Unavailable",
        f"{server.url('silent')}: no byte within 0.3 s",
        f"{server.url('cut-at-half')}: connection closed after 150,000 of 300,000 bytes",
        f"{server.url('status-204')}: HTTP 204 No Content",
    ]
    assert lines[-1].startswith(f"{refused}: ")
    # Windows tries a refusing port for longer than the timeout of these tests.
    assert re.search("refused|no byte within", lines[-1])
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("name", ["status-404", "status-503", "status-204", "silent"])
def test_a_failing_url_costs_no_bytes(fetch: Fetch, part: Path, name: str) -> None:
    part.write_bytes(BODY[:HALF])
    failures(fetch, name)
    assert part.read_bytes() == BODY[:HALF]


@pytest.mark.parametrize("name", ["silent", "stalls-at-half"])
def test_a_connection_without_bytes_is_given_up_after_the_timeout(fetch: Fetch, name: str) -> None:
    began = time.perf_counter()
    failures(fetch, name)
    # One request to the silent url, and two to the other, which brings bytes at first.
    assert TIMEOUT <= time.perf_counter() - began < 2 * TIMEOUT + 1


@pytest.mark.parametrize("name", ["status-404", "status-503", "silent", "web-page", "shorter"])
def test_after_a_failing_url_the_next_is_tried(fetch: Fetch, path: Path, name: str) -> None:
    fetch(name, "good")
    assert path.read_bytes() == BODY


def test_after_a_refused_connection_the_next_url_is_tried(
    fetch: Fetch, path: Path, closed_port: int
) -> None:
    fetch(f"http://127.0.0.1:{closed_port}/", "good")
    assert path.read_bytes() == BODY


def test_after_an_unknown_host_the_next_url_is_tried(
    fetch: Fetch, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    getaddrinfo = socket.getaddrinfo

    def resolve(host: str, *args: Any, **options: Any) -> Any:
        if host == "unknown.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return getaddrinfo(host, *args, **options)

    monkeypatch.setenv("no_proxy", "127.0.0.1,unknown.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    fetch("http://unknown.invalid/", "good")
    assert path.read_bytes() == BODY


def test_a_proxy_in_the_environment_is_used(
    server: Server, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.setenv("no_proxy", "")
    # urllib reads the environment once, when it builds its opener.
    monkeypatch.setattr(urllib.request, "_opener", None)
    fetch("http://elsewhere.invalid/good")
    assert [answer.path for answer in server.answers] == ["http://elsewhere.invalid/good"]


# Failures of this machine or of the caller


def test_too_little_disk_space_is_told_before_any_download(
    fetch: Fetch, server: Server, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part.write_bytes(BODY[:HALF])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 149_999, 149_999))
    with pytest.raises(OSError, match="needs 150,000 bytes, but only 149,999 are free"):
        fetch("good")
    assert server.answers == []


def test_the_space_that_the_part_takes_is_not_asked_for_again(
    fetch: Fetch, path: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part.write_bytes(BODY[:HALF])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 150_000, 150_000))
    fetch("good")
    assert path.read_bytes() == BODY


def test_a_part_that_cannot_be_written_is_not_blamed_on_the_urls(fetch: Fetch, part: Path) -> None:
    part.mkdir()
    with pytest.raises(OSError, match=part.name) as caught:
        fetch("no-range")
    assert not isinstance(caught.value, DownloadError)


def test_a_folder_as_path_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="path is a folder; expected a file"):
        download_file([server.url("good")], tmp_path, md5=MD5)
    assert server.answers == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/f", "file:///etc/hosts", "body.bin"])
def test_only_http_and_https_urls_are_accepted(path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=f"urls has '{url}'; expected http or https addresses"):
        download_file(["https://elsewhere.invalid/", url], path, md5=MD5)


def test_no_url_at_all_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="urls is empty; expected at least one"):
        download_file([], path, md5=MD5)


def test_an_md5_that_is_none_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="md5 is 'abc'; expected 32 hexadecimal digits"):
        download_file(["https://elsewhere.invalid/"], path, md5="abc")


# What is shown


def test_without_a_terminal_a_plain_line_tells_the_start_and_one_the_end(
    fetch: Fetch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("good", progress=True)
    shown = capsys.readouterr()
    first, last = shown.err.splitlines()
    assert first == "Downloading body.bin from 127.0.0.1 (0.3 MB)"
    assert re.fullmatch(r"Downloaded body\.bin in \d+\.\d s \(\d+\.\d MB/s\)", last)
    assert shown.out == ""


def test_the_plain_line_tells_from_where_a_download_resumes(
    fetch: Fetch, part: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part.write_bytes(BODY[:HALF])
    fetch("good", progress=True)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "Downloading body.bin from 127.0.0.1 (0.3 MB, resumed at 0.1 MB)"


def test_no_end_is_told_of_a_download_that_was_cut_off(
    fetch: Fetch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures(fetch, "cut-at-half", progress=True)
    assert "Downloaded" not in capsys.readouterr().err


def test_in_a_terminal_a_bar_tells_file_host_and_size(
    fetch: Fetch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch("good", progress=True)
    shown = capsys.readouterr().err
    assert "body.bin from 127.0.0.1: 100%" in shown
    assert "300k/300k" in shown
    assert "Download" not in shown


def test_in_a_terminal_the_bar_of_a_resumed_download_begins_where_it_stopped(
    fetch: Fetch,
    part: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part.write_bytes(BODY[:HALF])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch("good", progress=True)
    shown = capsys.readouterr().err
    assert "150k/300k" in shown
    assert "300k/300k" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_without_progress_nothing_is_shown(
    fetch: Fetch,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    fetch("good", progress=False)
    assert capsys.readouterr() == ("", "")


# Values of any library


@pytest.mark.parametrize("kind", [str, Path])
def test_the_path_may_begin_at_the_home_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], Any]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    done = download_file([server.url("good")], kind("~/new/file"), md5=MD5, progress=False)
    assert done == tmp_path / "new" / "file"
    assert done.read_bytes() == BODY


@pytest.mark.bad_input  # by their annotations
def test_size_and_timeout_may_be_of_numpy(server: Server, path: Path) -> None:
    options: dict[str, Any] = {"size": np.int64(len(BODY)), "timeout": np.float32(TIMEOUT)}
    download_file([server.url("good")], path, md5=MD5, progress=False, **options)
    assert path.read_bytes() == BODY


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("urls", "http://127.0.0.1/file", TypeError, "urls is a str; expected a list of addresses"),
        ("urls", 3, TypeError, "urls is a int; expected a list of addresses"),
        ("urls", [3], ValueError, "urls has 3; expected http or https addresses"),
        ("path", 3, TypeError, "path is a int; expected a path"),
        ("md5", None, ValueError, "md5 is None; expected 32 hexadecimal digits"),
        (
            "size",
            -1,
            ValueError,
            "size is -1; expected an integer from 1 to 9223372036854775807, or None",
        ),
        (
            "size",
            2.5,
            ValueError,
            "size is 2.5; expected an integer from 1 to 9223372036854775807, or None",
        ),
        (
            "timeout",
            0,
            ValueError,
            "timeout is 0; expected a number of seconds above 0, up to 86,400",
        ),
        (
            "timeout",
            "3",
            ValueError,
            "timeout is '3'; expected a number of seconds above 0, up to 86,400",
        ),
    ],
)
def test_an_argument_of_another_kind_is_named(
    name: str, value: Any, error: type[Exception], message: str, path: Path
) -> None:
    arguments: dict[str, Any] = {"urls": ["http://127.0.0.1/file"], "path": path, "md5": MD5}
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        download_file(**{**arguments, name: value})
    assert not path.exists()


# Servers that mean no good, and others that download


@pytest.mark.parametrize("name", ["drips", "drips_at_half", "drips_headers"])
def test_a_connection_that_drips_is_given_up(name: str, fetch: Fetch) -> None:
    (reason,) = failures(fetch, name)
    assert re.fullmatch(r"\d+ bytes in [0-9.]+ s, which is too slow", reason)
    assert fetch(name, "good").read_bytes() == BODY


def test_an_encoding_that_was_not_asked_for_is_named(fetch: Fetch, part: Path) -> None:
    (reason,) = failures(fetch, "gzipped")
    assert reason == "sent the file in the encoding 'gzip', which was not asked"
    assert not part.exists()


@pytest.mark.parametrize("size", [len(BODY), None])
def test_endless_data_ends(
    size: int | None, fetch: Fetch, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_MOST_UNANNOUNCED", 2 * len(BODY))
    (reason,) = failures(fetch, "endless", size=size)
    assert "wrong bytes" in reason or "sends more than" in reason
    assert not part.exists()


def test_a_length_that_the_disk_cannot_hold_is_an_error_before_a_byte_is_written(
    fetch: Fetch, part: Path
) -> None:
    with pytest.raises(OSError, match="needs 1,000,000,000,000,000,000 bytes, but only"):
        fetch("says_much", size=None)
    assert not part.exists()


@pytest.mark.parametrize("name", ["redirect_to_itself", "redirect_on"])
def test_redirects_end(name: str, fetch: Fetch, server: Server) -> None:
    (reason,) = failures(fetch, name)
    assert "redirect" in reason
    assert len(server.answers) < 20


@pytest.mark.parametrize("kind", ["file", "ftp"])
def test_redirects_lead_to_http_only(kind: str, fetch: Fetch) -> None:
    (reason,) = failures(fetch, f"redirect_to_{kind}")
    assert re.search(f"(redirects to {kind}://|'{kind}://.* not allowed)", reason)


def test_two_downloads_to_one_path_do_not_disturb_each_other(
    server: Server, path: Path, tmp_path: Path
) -> None:
    def fetch() -> None:
        url = server.url("slow_start")
        results.append(download_file([url], path, md5=MD5, progress=False).read_bytes())

    results: list[bytes] = []
    threads = [threading.Thread(target=fetch) for _ in range(3)]
    threads[0].start()
    server.started.wait(10)
    for thread in threads[1:]:
        thread.start()
    server.go_on.set()
    for thread in threads:
        thread.join()
    assert results == [BODY] * 3
    assert len(server.answers) == 1
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_lock_of_a_process_that_was_killed_does_not_last(server: Server, path: Path) -> None:
    script = (
        "import sys; from alexnet_lib.data.downloads import download_file;"
        "download_file([sys.argv[1]], sys.argv[2], md5=sys.argv[3], timeout=60)"
    )
    url = server.url("slow_start")
    command = [sys.executable, "-c", script, url, str(path), MD5]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        assert server.started.wait(60)
        process.kill()
    server.go_on.set()
    assert download_file([url], path, md5=MD5, progress=False).read_bytes() == BODY


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed here")
def test_a_link_that_somebody_put_there_is_not_followed(
    fetch: Fetch, part: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    part.symlink_to(target)
    with pytest.raises(OSError, match=r"body\.bin\.part"):
        fetch("good")
    assert target.read_text() == "mine"
    part.unlink()
    os.mkfifo(part)
    with pytest.raises(OSError, match=r"body\.bin\.part"):
        fetch("good")


def test_a_signal_ends_a_download_whose_bytes_stay(
    fetch: Fetch, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = downloads._opened

    def opened(*arguments: Any) -> Any:
        monkeypatch.setattr(interrupts, "_received", 15)
        monkeypatch.setattr(interrupts, "_handling", threading.get_ident())
        return real(*arguments)

    monkeypatch.setattr(downloads, "_opened", opened)
    with pytest.raises(interrupts.Interrupted):
        fetch("good")
    monkeypatch.setattr(interrupts, "_received", None)
    monkeypatch.setattr(downloads, "_opened", real)
    assert part.exists()
    assert fetch("good").read_bytes() == BODY
