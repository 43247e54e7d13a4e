"""Printed text: tables, durations, and lines above a progress bar."""

import itertools
import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from html import escape
from typing import Any, ClassVar


def format_table(rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """The lines of a table; the columns of these numbers, from 0, are aligned to the right."""
    rows = [*rows]
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - columns_of(cell))
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


def columns_of(text: str) -> int:
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

    In a notebook, which shows that stream as errors, it is the standard output. Where a line cannot
    be printed, it is lost: nothing depends on it.
    """
    from tqdm.std import tqdm

    with suppress(Exception):
        if not _in_notebook():
            tqdm.write(line, file=_UnfailingLine(sys.stderr))
        elif _Cell.has_bar():
            _Cell.bar.fp.say(line)
        else:
            print(line)


def progress_bar(*arguments: Any, **options: Any) -> Any:
    """A bar of tqdm on the standard error stream, which may be closed, full or missing.

    It is as wide as the terminal. In a notebook it is plain text, which needs no widgets, and of
    several bars at a time only the first is shown.
    """
    from tqdm.std import tqdm  # tqdm.auto asks for widgets in a notebook

    if not _in_notebook():
        return tqdm(*arguments, file=_Unfailing(sys.stderr), dynamic_ncols=True, **options)
    if _Cell.has_bar():
        return tqdm(*arguments, **{**options, "disable": True})
    # None of a pass that is over at once, whose output would stay empty.
    _Cell.bar = tqdm(*arguments, file=_Cell(), ncols=100, mininterval=0.5, delay=0.5, **options)
    return _Cell.bar


def _in_notebook() -> bool:
    """Whether a Jupyter kernel shows what is printed."""
    return type(sys.stderr).__module__.startswith("ipykernel.")


class _Cell:
    """The stream of a bar in a notebook: an output of the cell, of lines that stay and the bar."""

    bar: ClassVar[Any] = None

    @classmethod
    def has_bar(cls) -> bool:
        """Whether a bar is open."""
        return not getattr(cls.bar, "disable", True)

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._bar = ""
        self._handle: Any = None

    def say(self, line: str) -> None:
        """Shows a line above the bar."""
        self._lines.append(line)
        self._show()

    def write(self, text: str) -> int:
        """Shows what tqdm writes, a carriage return and the bar, in place of the bar so far."""
        if text:
            self._bar = text.strip()
            self._show()
        return len(text)

    def flush(self) -> None:
        """Does nothing: what is written is shown at once."""

    def _show(self) -> None:
        from IPython.display import display

        text = "\n".join([*self._lines, self._bar]).rstrip("\n")
        data = {"text/plain": text} if text else {}
        if self._handle is not None:
            self._handle.update(data, raw=True)
        elif text:
            self._handle = display(data, raw=True, display_id=True)


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
