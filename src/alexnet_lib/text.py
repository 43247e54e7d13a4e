"""Printed text: tables, durations, and lines above a progress bar."""

import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence


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


def say(line: str) -> None:
    """Prints a line on the standard error stream; a progress bar stays below it."""
    from tqdm.auto import tqdm

    tqdm.write(line, file=sys.stderr)
