"""Parses and writes YAML as plain data, with the line of every key and list item.

Tags, anchors, aliases and values that no option can have are faults.
"""

import math
import re
from typing import Any

import yaml

from sslkit.recipe.words import written

MAX_BYTES = 1 << 16
"""Maximum size of a file, bytes. PyYAML takes a second for 100 KiB."""
MAX_DEPTH = 20
BREAKS = {"\x85", "\u2028", "\u2029"}
"""Line breaks of YAML that editors do not show. They must be written as escapes."""
MARK = "\ufeff"
"""Byte-order mark. YAML drops it at the start of a text."""

LARGEST = 3.4028234663852886e38
"""Largest number of float32, the format in which parts compute."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.inf|\.nan", re.IGNORECASE)

Key = tuple[str, ...]


def whole(text: str) -> str:
    """Return the text unchanged. Raises ValueError for a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{written(text)} is no Unicode text") from error
    return text


def resolve(text: str) -> Any:
    """Parse a plain scalar: null, true, false, a decimal number, or text.

    Raises ValueError for infinite, NaN and very large numbers.
    """
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INT.fullmatch(text):
        if len(text.lstrip("+-")) > 18:
            raise ValueError(f"{text[:20]}… is too large a number")
        return int(text)
    if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
        raise ValueError(f"{text} is not a finite number")
    if not _FLOAT.fullmatch(text):
        return whole(text)
    if abs(float(text)) > LARGEST:
        raise ValueError(f"{text} is too large a number; the largest is {LARGEST:.1e}")
    return float(text)


class Dumper(yaml.SafeDumper):
    """Dumps YAML and quotes text that `resolve` would parse as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    try:
        style = None if resolve(text) == text else "'"
    except ValueError:
        style = "'"
    if set(text) & BREAKS:
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _represent_text)


def broken(text: str) -> str | None:
    """Return a message about an invisible YAML line break in a text; None without one."""
    found = sorted(set(text) & BREAKS)
    if not found:
        return None
    code = f"{ord(found[0]):04X}"
    return (
        f"holds the character U+{code}, which YAML takes for the end of a line; write it as "
        f'"\\u{code}" in double quotes, or remove it'
    )


class TooDeepError(Exception):
    """Nesting exceeds MAX_DEPTH. PyYAML's time grows with the square of the depth."""


class Document:
    """Parses one YAML text: plain data, the line of every key, and faults."""

    def __init__(self, text: str, when_empty: str = "is empty") -> None:
        self.lines: dict[Key, int] = {}
        self.faults: list[tuple[Key, int, str]] = []
        self.value: Any = None
        self._text = text
        if text.startswith(MARK):
            message = (
                "begins with the character U+FEFF, which YAML drops; write it as "
                '"\\uFEFF" in double quotes, or remove it'
            )
            self._refuse((), 1, message)
        try:
            self._events = yaml.SafeLoader(text)
            self._open(when_empty)
        except yaml.reader.ReaderError as error:
            self._refuse(
                (), text[: error.position].count("\n") + 1, f"is not valid YAML: {error.reason}"
            )
        except (ValueError, OverflowError):
            self._refuse(
                (), 1, "is not valid YAML: an escape stands for a character that does not exist"
            )
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            why = " ".join(filter(None, (error.context, error.problem)))
            if (hidden := broken(text)) is not None:
                why += f"; it {hidden}"
            self._refuse((), mark.line + 1 if mark else 1, f"is not valid YAML: {why}")
        except TooDeepError:
            pass

    def _open(self, when_empty: str) -> None:
        events = self._events
        events.get_event()
        if events.check_event(yaml.StreamEndEvent):
            self._refuse((), 1, when_empty)
            return
        events.get_event()
        self.value = self._node(())
        events.get_event()
        if not events.check_event(yaml.StreamEndEvent):
            self._refuse(
                (),
                self._events.peek_event().start_mark.line + 1,
                "holds a second document; a recipe is one",
            )

    def _refuse(self, key: Key, line: int, message: str) -> None:
        self.faults.append((key, line, message))

    def _node(self, key: Key, depth: int = 0) -> Any:
        event = self._events.get_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self._refuse(
                key, line, f"alias *{event.anchor} is not allowed in a recipe; write the value out"
            )
            return None
        if event.anchor is not None:
            message = f"anchor &{event.anchor} is not allowed in a recipe; write the value out"
            self._refuse(key, line, f"{message} where it is used")
        if event.tag is not None:
            self._refuse(
                key, line, f"tag {event.tag} is not allowed in a recipe; write the plain value"
            )
        if isinstance(event, yaml.ScalarEvent):
            start, end = event.start_mark, event.end_mark
            held = self._text[start.index : end.index] if start and end else ""
            if (hidden := broken(held)) is not None:
                self._refuse(key, line, hidden)
                return None
            try:
                return resolve(event.value) if event.implicit[0] else whole(event.value)
            except ValueError as error:
                self._refuse(key, line, str(error))
                return None
        if depth == MAX_DEPTH:
            while key[-1:] and key[-1].isdecimal():
                key = key[:-1]
            self._refuse(key, line, f"is nested deeper than {MAX_DEPTH} levels")
            raise TooDeepError
        return (
            self._sequence(key, depth)
            if isinstance(event, yaml.SequenceStartEvent)
            else self._mapping(key, depth)
        )

    def _sequence(self, key: Key, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self._events.check_event(yaml.SequenceEndEvent):
            here = (*key, str(len(items)))
            self.lines[here] = self._events.peek_event().start_mark.line + 1
            items.append(self._node(here, depth + 1))
        self._events.get_event()
        return items

    def _mapping(self, key: Key, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not self._events.check_event(yaml.MappingEndEvent):
            line = self._events.peek_event().start_mark.line + 1
            before = len(self.faults)
            name = self._node(key, depth + 1)
            if not isinstance(name, str):
                if len(self.faults) == before:
                    self._refuse(
                        key,
                        line,
                        f"the key {written(name)} is not text; quote it if it is meant as a name",
                    )
                self._node(key, depth + 1)
                continue
            if name in items:
                self._refuse(
                    (*key, name),
                    line,
                    f"is given twice; it is already on line {self.lines[(*key, name)]}",
                )
                self._node((*key, name), depth + 1)
                continue
            self.lines[(*key, name)] = line
            items[name] = self._node((*key, name), depth + 1)
        self._events.get_event()
        return items
