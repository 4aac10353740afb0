"""Fonts for pictures: those that have the letters of a text, and how wide a text is."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

DPI = 110
"""Of the pictures that are written."""


def choose(figure: Figure) -> None:
    """Give texts of a figure fonts that have their letters, where such fonts are installed."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and not text.get_text().isascii():
            text.set_fontfamily(families(text.get_text()))


@functools.lru_cache(maxsize=1000)
def families(text: str) -> list[str]:
    """Return the usual font, then installed ones that have the letters which it lacks."""
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
    """Return the characters that a font file has; none where it cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def width(text: str, size: float, weight: str = "normal") -> float:
    """Return how wide a line of text is, in inches."""
    if not text:
        return 0.0
    font = FontProperties(family=families(text), size=size, weight=weight)
    with without_glyphs():
        return RendererAgg(1, 1, DPI).get_text_width_height_descent(text, font, False)[0] / DPI


@contextmanager
def without_glyphs() -> Iterator[None]:
    """Show letters that no font has as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield
