"""Checks that a mapping from Python contains only data that YAML can represent."""

import numbers
import os
from collections.abc import Mapping
from typing import Any

from sslkit.recipe.document import LARGEST, MAX_DEPTH, Key, whole
from sslkit.recipe.words import written

PLACE = "the given mapping"
"""Place of the mapping in messages, instead of a file name."""


class GivenMapping:
    """A copy of a mapping as plain data, with its faults, like `Document` for a file."""

    def __init__(self, given: Mapping[Any, Any]) -> None:
        self.faults: list[tuple[Key, str]] = []
        self.value: dict[str, Any] = self._mapping(given, ())

    def _refuse(self, key: Key, message: str) -> None:
        self.faults.append((key, message))

    def _mapping(self, given: Mapping[Any, Any], key: Key) -> dict[str, Any]:
        copied = {}
        for name, value in given.items():
            if isinstance(name, str):
                copied[str(name)] = self._value(value, (*key, str(name)))
            else:
                self._refuse(key, f"the key {written(name)} is not text")
        return copied

    def _value(self, value: Any, key: Key) -> Any:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str | numbers.Real):
            return self._scalar(value, key)
        if len(key) > MAX_DEPTH:
            self._refuse(key, f"is nested deeper than {MAX_DEPTH} levels")
            return None
        if isinstance(value, Mapping):
            return self._mapping(value, key)
        if isinstance(value, list | tuple):
            return [self._value(item, (*key, str(place))) for place, item in enumerate(value)]
        allowed = "text, a path, a number, True, False, None, a list or a mapping"
        self._refuse(key, f"is of type {type(value).__name__}; give {allowed}")
        return None

    def _scalar(self, value: str | numbers.Real, key: Key) -> Any:
        try:
            if isinstance(value, str):
                return whole(str(value))
            if isinstance(value, numbers.Integral):
                return _int(int(value))
            return _float(float(value))
        except ValueError as error:
            self._refuse(key, str(error))
            return None


def _int(value: int) -> int:
    if abs(value) >= 10**18:
        raise ValueError(f"{str(value)[:20]}… is too large a number")
    return value


def _float(value: float) -> float:
    if value - value != 0:
        raise ValueError(f"{value} is not a finite number")
    if abs(value) > LARGEST:
        raise ValueError(f"{value} is too large a number; the largest is {LARGEST:.1e}")
    return value
