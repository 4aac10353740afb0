"""Reads the axes of a sweep, such as loss.lambda=0,0.5,1 or optimizer.lr=log:0.01..0.3."""

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from sslkit.errors import Fault
from sslkit.recipe.document import Document, Dumper
from sslkit.recipe.words import written

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(log:)?({NUMBER})\.\.({NUMBER})")
PAIRS = {"[": "]", "{": "}", "(": ")"}
QUOTES = "'\""
SEED = "train.seed"


@dataclass(frozen=True)
class Axis:
    """The values of one key of the recipe, each as text for `--set`."""

    key: str
    values: tuple[str, ...]

    def as_dict(self) -> Any:
        """Return the values as plain data."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """An interval of numbers that a search samples, both ends included."""

    key: str
    low: float
    high: float
    whole: bool
    """True if both ends are integers: only integers are sampled."""
    log: bool

    @property
    def values(self) -> tuple[str, ...]:
        """The ends as text, which stand for the interval when recipes are checked."""
        return text_of(self.low), text_of(self.high)

    def as_dict(self) -> Any:
        """Return the interval as it is written on the command line."""
        return f"{'log:' if self.log else ''}{self.low}..{self.high}"


def is_axis(word: str) -> bool:
    """Tell whether a word has the form key=values, with a dotted key."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "." in key and "/" not in key


def read_axis(word: str, *, search: bool) -> tuple[Axis | Range | None, list[Fault]]:
    """Read an axis, and its faults. Only a `search` takes ranges. Returns None without values."""
    key, _, text = word.partition("=")
    key = key.strip()
    if key == SEED:
        return None, [Fault(key, "--seeds N sets the training seeds; remove this axis")]
    found = RANGE.fullmatch(text.strip())
    if found is not None:
        if not search:
            message = f"'{text}' is a range, which only a search samples; add --search, or list"
            return None, [Fault(key, f"{message} values: {key}={found[2]},{found[3]}")]
        return _range(key, found)
    return _values(key, text)


def _range(key: str, found: re.Match[str]) -> tuple[Range | None, list[Fault]]:
    whole = re.fullmatch(r"[-+]?\d+", found[2]) and re.fullmatch(r"[-+]?\d+", found[3])
    low, high = (int(text) if whole else float(text) for text in found.groups()[1:])
    if low >= high:
        return None, [Fault(key, f"{found[0]} is empty; write the smaller number first")]
    if found[1] and low <= 0:
        message = f"{found[0]} begins at {low}; a logarithmic range begins above 0"
        return None, [Fault(key, message)]
    return Range(key, low, high, bool(whole), bool(found[1])), []


def _values(key: str, text: str) -> tuple[Axis | None, list[Fault]]:
    parts = split(text)
    if parts is None:
        return None, [Fault(key, f"a bracket or quote of {written(text)} is not closed")]
    values: list[str] = []
    faults: list[Fault] = []
    for part in parts:
        document = Document(part, "has an empty value; remove the comma, or write null")
        faults += [Fault(key, message) for _, _, message in document.faults]
        if document.faults:
            continue
        value = text_of(document.value)
        if value in values:
            faults.append(Fault(key, f"{part.strip()} is given twice; remove one"))
            continue
        values.append(value)
    return Axis(key, tuple(values)), faults


def split(text: str) -> list[str] | None:
    """Split a text at the commas outside brackets and quotes; None if one is not closed."""
    parts, closing, quote, start = [], "", "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        elif letter in PAIRS:
            closing = PAIRS[letter] + closing
        elif closing and letter == closing[0]:
            closing = closing[1:]
        elif letter == "," and not closing:
            parts.append(text[start:place])
            start = place + 1
    if quote or closing:
        return None
    return [*parts, text[start:]]


def text_of(value: Any) -> str:
    """Return the text of a value for `--set`, equal for equal numbers (1.0 and 1)."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int | float):
        return json.dumps(value) if isinstance(value, bool | int) else _float(value)
    dumped = yaml.dump(
        value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=10_000
    )
    return str(dumped).removesuffix("\n").removesuffix("...").strip()


def value_of(text: str) -> Any:
    """Return the value of a text that `text_of` made."""
    return Document(text).value


def _float(value: float) -> str:
    """Return the shortest decimal of a number, in a form that YAML reads as a number."""
    mantissa, e, exponent = repr(value).partition("e")
    if e and "." not in mantissa:
        mantissa += ".0"
    return f"{mantissa}{e}{exponent}"
