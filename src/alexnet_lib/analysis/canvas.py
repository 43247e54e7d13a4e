"""Figures that are readable on white and on dark, and carry their text alternative."""

import base64
import functools
import io
import os
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    import matplotlib
except ImportError as error:
    raise ImportError(
        "matplotlib is not installed; the figures need it: pip install 'alexnet-lib[figures]'"
    ) from error
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from alexnet_lib.checks import type_name
from alexnet_lib.data.folders import listed
from alexnet_lib.text import columns_of, printable

# Inches: in a column of 736 pixels text is as large as the page's, and on a phone of 390 pixels
# still 9 pixels high.
WIDTH = 5.2
FONT = 10.0  # points
SMALL = 8.5
_SMALLEST = 7.0
_DPI = 200
_CSS_DPI = 96  # of a browser

# Grey of text and lines: its contrast to white and to a dark page (#131416) is the same, 4.3.
INK = "#7a7a7a"
# Of Okabe and Ito, whom colour-blind readers can tell apart; these four have a contrast of at least
# 3 to white and to a dark page.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
COLORS = (BLUE, ORANGE, GREEN, PURPLE)

_STYLE: Any = {
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # names may have a $
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "figure.edgecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "image.interpolation": "antialiased",
}


class DescribedFigure(Figure):
    """A matplotlib figure that shows in a notebook and has a text alternative.

    It belongs to no window of ``pyplot``, so that nothing has to be closed.

    Attributes:
        alt_text: what the figure shows, in words. ``savefig`` writes it to the file: as the title
            of an SVG, the description of a PNG, the subject of a PDF.
    """

    alt_text = ""

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Writes the figure as that of matplotlib does, with the text alternative."""
        suffix = os.path.splitext(fname)[1][1:] if isinstance(fname, str | os.PathLike) else ""
        kind = str(kwargs.get("format") or suffix or matplotlib.rcParams["savefig.format"]).lower()
        own: dict[str, dict[str, Any]] = {
            "png": {"Description": self.alt_text},
            "svg": {"Title": self.alt_text, "Date": None},
            "pdf": {"Subject": self.alt_text, "CreationDate": None},
        }
        if metadata := {**own.get(kind, {}), **(kwargs.get("metadata") or {})}:
            kwargs["metadata"] = metadata
        # The same figure gives the same file.
        with matplotlib.rc_context({"svg.hashsalt": "alexnet-lib"}):
            super().savefig(fname, **kwargs)

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, Any]]:
        file = io.BytesIO()
        self.savefig(file, format="png")
        width, height = (round(inches * _CSS_DPI) for inches in self.get_size_inches())
        shown = {"width": width, "height": height, "alt": self.alt_text}
        image = base64.b64encode(file.getvalue()).decode()
        return {"image/png": image, "text/plain": self.alt_text}, {"image/png": shown}


@contextmanager
def figure_for(
    figure: object, height: float, alt_text: str, *, width: float = WIDTH
) -> Iterator[FigureBase]:
    """A block that draws on a figure, or on a new one of a size in inches if it is None."""
    if not isinstance(figure, FigureBase | None):
        raise TypeError(
            f"figure is a {type_name(figure)}; expected a Figure or SubFigure of matplotlib"
        )
    with matplotlib.rc_context(_STYLE):
        new = DescribedFigure(figsize=(width, height), dpi=_DPI, layout="constrained")
        target = figure or new
        yield target
        _finish(target, alt_text)


@contextmanager
def axes_for(
    axes: object, height: float, alt_text: str, *, width: float = WIDTH, bare: bool = False
) -> Iterator[Axes]:
    """The same with axes; ``bare`` ones have no frame and fill the figure."""
    if not isinstance(axes, Axes | None):
        raise TypeError(f"axes is a {type_name(axes)}; expected the Axes of matplotlib, or None")
    with matplotlib.rc_context(_STYLE):
        if axes is None:
            figure = DescribedFigure(figsize=(width, height), dpi=_DPI)
            if bare:
                axes = figure.add_axes((0, 0, 1, 1))
            else:
                figure.set_layout_engine("constrained")
                axes = figure.subplots()
        if bare:
            axes.set_axis_off()
        yield axes
        _finish(axes, alt_text)


def root_of(part: Any) -> Figure:
    """The figure that axes or a part of a figure belong to."""
    figure = part.figure
    while figure is not figure.figure:
        figure = figure.figure
    assert isinstance(figure, Figure)
    return figure


def _finish(part: Any, alt_text: str) -> None:
    """Completes a figure, a part of one, or axes."""
    for axes in part.findobj(Axes):
        # Ticks may be created when the figure is drawn, outside of the block.
        axes.tick_params(which="both", colors=INK)
    for text in part.findobj(Text):
        if families := sorted({family for family in _families(text.get_text()).values() if family}):
            text.set_fontfamily([*text.get_fontfamily(), *families])
    if names := [*dict.fromkeys(_unshown)]:
        _unshown.clear()
        _told.update(*names)
        warnings.warn(
            f"no font of this system has all signs of {listed(names)}: figures show their numbers; "
            "install a font that has them, for example one of Noto (fonts.google.com/noto)",
            stacklevel=5,
        )
    figure: Any = root_of(part)
    figure.alt_text = f"{getattr(figure, 'alt_text', '')} {alt_text}".strip()


# Names of the current figure with signs that no font has, and signs of which a warning has told.
_unshown: list[str] = []
_told: set[str] = set()


def _families(text: str) -> dict[str, str | None]:
    """For each sign of a text, the family of a font that has it.

    ``""`` is the family that is used anyway; None: no font has the sign.
    """
    usual = tuple(matplotlib.rcParams["font.family"])
    known = _known_families(usual)
    if missing := {sign for sign in text if sign.isprintable()} - known.keys():
        for family, file in _fonts(usual):
            with suppress(OSError, RuntimeError):  # it was removed, or is damaged
                font = FT2Font(file)
                found = {sign for sign in missing if font.get_char_index(ord(sign))}
                known |= dict.fromkeys(found, family)
                missing -= found
            if not missing:
                break
        known |= dict.fromkeys(missing)
    return {sign: known.get(sign, "") for sign in text}


@functools.cache
def _known_families(usual: tuple[str, ...]) -> dict[str, str | None]:
    return {}


def _fonts(usual: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Families and files of fonts, the usual ones first."""
    for name in usual:
        yield "", font_manager.findfont(font_manager.FontProperties(family=[name]))
    manager = font_manager.fontManager
    # Those of last resort have a box for every sign.
    files = {e.name: e.fname for e in manager.ttflist if "Resort" not in e.name}
    yield from sorted(files.items(), key=lambda item: ("Sans" not in item[0], item[0]))
    # matplotlib keeps its list, and does not look for fonts that were installed later.
    for file in sorted({*font_manager.findSystemFonts()} - {e.fname for e in manager.ttflist}):
        with suppress(Exception):  # it cannot be scaled, or is damaged
            manager.addfont(file)
            yield manager.ttflist[-1].name, file


def luminance(color: Any) -> float:
    """The relative luminance of a colour, from 0 to 1 (WCAG 2)."""
    from matplotlib.colors import to_rgb

    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Any, other: Any) -> float:
    """The contrast of two colours, from 1 to 21 (WCAG 2)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def text_color_on(color: Any) -> str:
    """Black or white, whichever is easier to read on a colour."""
    return max(("black", "white"), key=lambda text: contrast(text, color))


def width_of(text: str, points: float) -> float:
    """About how wide a text is, in inches."""
    return columns_of(text) * 0.6 * points / 72


def shortened(name: object, inches: float, points: float) -> str:
    """A name in one line whose middle is left out where it is wider, as names often end unlike.

    Signs that no font can show are written as their numbers.
    """
    text = printable(str(name))
    families = _families(text)
    if lacking := {sign for sign, family in families.items() if family is None}:
        if lacking - _told:
            _unshown.append(text)
        numbers = {ord(sign): sign.encode("unicode_escape").decode() for sign in lacking}
        text = text.translate(numbers)
    most = max(4, int(inches / width_of("m", points)))
    short, count = text, min(len(text), most)
    while columns_of(short) > most:
        end = count // 3
        short = f"{text[: count - 1 - end]}…{text[len(text) - end :]}"
        count -= 1
    return short


@contextmanager
def inches_for(
    axes: object, height: float, alt_text: str, *, width: float = WIDTH
) -> Iterator[tuple[Axes, float]]:
    """Bare axes whose coordinates are inches, from the upper left corner, and a factor of texts.

    The factor is below 1 where the caller's axes are smaller.
    """
    with axes_for(axes, height, alt_text, width=width, bare=True) as drawn:
        drawn.set(xlim=(0, width), ylim=(height, 0), aspect="equal", anchor="NW")
        size = drawn.get_window_extent()
        points_in_inch = root_of(drawn).dpi * max(width, 1e-9)
        factor = min(size.width / points_in_inch, size.height / root_of(drawn).dpi / height)
        yield drawn, min(1.0, factor)


@dataclass(frozen=True)
class Tiles:
    """Images in rows, with a line above all and one below each.

    Args:
        images: arrays ``(height, width)``, ``(height, width, 3)`` or, with opacity, ``(..., 4)``,
            with values from 0 to 1; NaN is left empty.
        columns: images in a row.
        title: the line above, or empty.
        captions: lines below the images; empty for none.
        bold: numbers of the images whose captions stand out.
        gap: space between images, in inches.
        lead: further space after the first image of a row, in inches.
    """

    images: Sequence[np.ndarray]
    columns: int
    title: str = ""
    captions: Sequence[str] = ()
    bold: Container[int] = ()
    gap: float = 0.06
    lead: float = 0.0


_TITLE, _CAPTION = 0.24, 0.19  # inches


def draw_tiles(
    axes: object, blocks: Sequence[Tiles], alt_text: str, *, width: float = WIDTH
) -> Figure:
    """Draws blocks of images, one below the other, as wide as the figure."""
    sides = [(width - b.lead - b.gap * (b.columns - 1)) / b.columns for b in blocks]
    sizes = [
        max(image.shape[0] / image.shape[1] for image in block.images) * side
        for block, side in zip(blocks, sides, strict=True)
    ]
    pitches = [
        size + block.gap + _CAPTION * bool(block.captions)
        for block, size in zip(blocks, sizes, strict=True)
    ]
    rows = [-(-len(block.images) // block.columns) for block in blocks]
    heights = [
        count * pitch + _TITLE * bool(block.title)
        for count, pitch, block in zip(rows, pitches, blocks, strict=True)
    ]
    with inches_for(axes, sum(heights), alt_text, width=width) as (drawn, factor):
        top = 0.0
        for block, side, size, pitch, height in zip(
            blocks, sides, sizes, pitches, heights, strict=True
        ):
            start = top + _TITLE * bool(block.title)
            # Bold text is wider.
            longest = max((width_of(text, 1.15) for text in block.captions), default=0) or 1
            points = max(_SMALLEST, min(SMALL, side / longest))
            drawn.text(0, start - 0.05, block.title, fontsize=FONT * factor, va="bottom")
            for number, image in enumerate(block.images):
                row, column = divmod(number, block.columns)
                x = column * (side + block.gap) + block.lead * (column > 0)
                y = start + row * pitch
                high = side * image.shape[0] / image.shape[1]
                extent = (x, x + side, y + high, y)
                drawn.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent)
                if block.captions:
                    drawn.text(
                        x + side / 2,
                        y + size + 0.03,
                        shortened(block.captions[number], side, points),
                        fontsize=points * factor,
                        ha="center",
                        va="top",
                        weight="bold" if number in block.bold else "normal",
                    )
            top += height
        drawn.set(xlim=(0, width), ylim=(sum(heights), 0))
    return root_of(drawn)
