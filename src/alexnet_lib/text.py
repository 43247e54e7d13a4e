"""Printed text: tables, durations, and lines above a progress bar."""

import itertools
import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from html import escape
from typing import Any


def format_table(rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """The lines of a table; the columns of these numbers, from 0, are aligned to the right."""
    rows = [*rows]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(cell))
            cells.append(space + cell if column in right else cell + space)
        lines.append("  ".join(cells).rstrip())
    return lines


def html_table(rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """The same as HTML, for a notebook; the first row is the header."""
    header, *body = (
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(itertools.chain(["th"], itertools.repeat("td")), rows, strict=False)
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead>{header}</thead><tbody>{''.join(body)}</tbody></table>"


def _width(text: str) -> int:
    """Columns of a terminal that the text takes: two for a Chinese sign, none for an accent."""
    return sum(
        0 if unicodedata.combining(sign) else 1 + (unicodedata.east_asian_width(sign) in "WF")
        for sign in text
    )


def format_duration(seconds: float) -> str:
    """For example ``"72 s"``, ``"50 min"``, ``"1.5 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    r"""A text with the signs that a terminal would obey as escapes, for example ``\x1b``."""
    return "".join(
        sign
        if sign in _JOINERS or unicodedata.category(sign) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        else sign.encode("unicode_escape").decode()
        for sign in text
    )


# Of the invisible signs, those that scripts and emoji need.
_JOINERS = "\u200c\u200d"


def say(line: str) -> None:
    """Prints a line on the standard error stream; a progress bar stays below it.

    Where it cannot be printed, it is lost: nothing depends on it.
    """
    from tqdm.auto import tqdm

    with suppress(Exception):
        tqdm.write(line, file=_UnfailingLine(sys.stderr))


def progress_bar(*arguments: Any, **options: Any) -> Any:
    """A bar of tqdm on the standard error stream, which may be closed, full or missing."""
    from tqdm.auto import tqdm

    return tqdm(*arguments, file=_Unfailing(sys.stderr), **options)


class _Unfailing:
    """A stream that loses what it cannot write, instead of raising an error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    # Whatever it raises: tqdm would keep its lock, and the next bar wait for ever.
    def write(self, text: str) -> int:
        with suppress(Exception):  # closed, full; or None
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(Exception):
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())
        except Exception:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _UnfailingLine(_Unfailing):
    """The same for a line: tqdm clears the bars of equal streams for it, also those of users."""

    def __eq__(self, other: object) -> bool:
        return getattr(other, "_stream", other) is self._stream

    def __hash__(self) -> int:
        return hash(self._stream)
