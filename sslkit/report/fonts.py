"""Chooses fonts that have the characters of a text, and measures text."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import ScalarFormatter

DPI = 110
"""Resolution of the written figures, dots per inch."""


def choose(figure: Figure) -> None:
    """Set fonts that have the characters of a figure's texts, if they are installed."""
    for text in _texts(figure):
        if not text.get_text().isascii():
            text.set_fontfamily(families(text.get_text()))


def _texts(figure: Figure) -> Iterator[Text]:
    """Yield all texts except numbers of ticks. `Figure.findobj` takes longer than drawing."""
    yield from figure.texts
    for axes in figure.axes:
        for child in axes.get_children():
            if isinstance(child, Text):
                yield child
            elif isinstance(child, Legend):
                yield from [child.get_title(), *child.get_texts()]
            elif isinstance(child, Axis):
                yield child.label
                if not isinstance(child.get_major_formatter(), ScalarFormatter):
                    yield from child.get_ticklabels()


@functools.lru_cache(maxsize=1000)
def families(text: str) -> list[str]:
    """Return the default font, then installed fonts with the characters that it lacks."""
    missing = {ord(letter) for letter in text} - _letters(findfont(FontProperties()))
    chosen = ["sans-serif"]
    for font in fontManager.ttflist:
        if not missing:
            break
        if found := missing & _letters(font.fname):
            chosen.append(font.name)
            missing -= found
    return chosen


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """Return the characters of a font file; an empty set if it cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of a line of text, inches."""
    if not text:
        return 0.0
    font = FontProperties(family=families(text), size=size, weight=weight)
    with without_glyphs():
        return RendererAgg(1, 1, DPI).get_text_width_height_descent(text, font, False)[0] / DPI


@contextmanager
def without_glyphs() -> Iterator[None]:
    """Suppress matplotlib's warning about characters that no font has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield
