"""Describes types, values and suggestions in messages."""

import dataclasses
import difflib
import inspect
import json
import os
import pathlib
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from sslkit.errors import printable
from sslkit.recipe import groups

WORDS = {
    bool: "true or false",
    int: "int",
    float: "float",
    str: "text",
    pathlib.Path: "a path",
    type(None): "null",
    None: "null",
    Any: "anything",
    dict: "a mapping",
}


def describe(annotation: Any) -> str:
    """Describe a type: "int ≥ 1", "one of 'official', 'blur'", "float > 0 or null"."""
    limits: dict[str, Any] = {}
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *metadata = typing.get_args(annotation)
        limits = bounds(metadata) | limits
    if len(groups.members(annotation)) > 1:
        return _union(annotation)
    if groups.is_group(annotation):
        return "a mapping"
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is typing.Literal:
        values = ", ".join(map(written, arguments))
        return values if len(arguments) == 1 else f"one of {values}"
    if origin is tuple and arguments and Ellipsis not in arguments:
        return _fixed_list([describe(member) for member in arguments])
    if origin in WORDS:
        return WORDS[origin] + _limits(limits, whole=origin is int)
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        items = [describe(member) for member in arguments if member is not Ellipsis]
        return _list(items, limits)
    return str(getattr(annotation, "__name__", annotation))


def _union(annotation: Any) -> str:
    group = groups.group_of(annotation)
    words = []
    for member in groups.members(annotation):
        words.append("a preset" if groups.is_preset(member, group) else describe(member))
    if "int" in words and "float" in words:
        words.remove("int")
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def _fixed_list(items: list[str]) -> str:
    each = f", each {items[0]}" if len(set(items)) == 1 else f": {', '.join(items)}"
    return f"a list of {len(items)}{each}"


def _list(items: list[str], limits: Mapping[str, Any]) -> str:
    sizes = {"min_length": "at least", "max_length": "at most"}
    size = " and".join(f" {word} {limits[key]}" for key, word in sizes.items() if key in limits)
    words = f"a list of{size}" if size else "a list"
    return f"{words}, each {items[0]}" if items else words


def bounds(metadata: Iterable[Any]) -> dict[str, Any]:
    """Return the bounds (ge, gt, le, lt, min_length, …) in the metadata of an `Annotated`."""
    import annotated_types
    from pydantic.fields import FieldInfo

    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            found |= bounds(item.metadata)
        elif isinstance(item, annotated_types.GroupedMetadata):
            found |= bounds(item)
        else:
            for key in ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length"):
                if getattr(item, key, None) is not None:
                    found[key] = getattr(item, key)
    return found


def _limits(limits: dict[str, Any], *, whole: bool) -> str:
    limits = dict(limits)
    if whole and "gt" in limits:
        limits["ge"] = limits.pop("gt") + 1
    if whole and "lt" in limits:
        limits["le"] = limits.pop("lt") - 1
    if "ge" in limits and "le" in limits:
        words = [f"between {limits['ge']} and {limits['le']}"]
    else:
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        words = [f"{sign} {limits[key]}" for key, sign in signs.items() if key in limits]
    if "multiple_of" in limits:
        words.append(f"a multiple of {limits['multiple_of']}")
    return " " + " and ".join(words) if words else ""


def description(annotation: Any) -> str:
    """Return the description of an annotation's `Field(description=…)`; "" without one."""
    from pydantic.fields import FieldInfo

    found = ""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *metadata = typing.get_args(annotation)
        for item in reversed(metadata):
            if isinstance(item, FieldInfo):
                found = found or item.description or ""
    for member in groups.members(annotation):
        if not found and typing.get_origin(member) is typing.Annotated:
            found = description(member)
    return found


def written(value: Any, most: int = 80) -> str:
    """Format a value as in a recipe, in at most `most` characters."""
    text = _written(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def written_path(path: str) -> str:
    """Format a path, in at most 500 characters."""
    return written(path, 500)


def _written(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        value = plain(value)
    if isinstance(value, str):
        return f"'{printable(value)}'"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    return printable(json.dumps(value, default=str))


def plain(value: Any) -> Any:
    """Convert the value of an option to data that YAML and JSON can represent."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {groups.option_name(f.name): plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, pathlib.Path) else value


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return up to three of `names` that are similar to `name`, best first."""
    lower = {other.lower(): other for other in names}
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3)]


def advice(name: str, names: Iterable[str]) -> str:
    """Suggest similar names, or list all names if none is similar."""
    names = list(dict.fromkeys(names))
    if near := nearest(name, names):
        return f"did you mean {' or '.join(repr(other) for other in near)}?"
    return f"there are: {', '.join(names)}" if names else "there are none"


def joined(first: str, second: str) -> str:
    """Join two clauses with a semicolon; after a question, start a new sentence."""
    if first.endswith("?"):
        return f"{first} {second[:1].upper()}{second[1:]}"
    return f"{first}; {second}"


def sentence(error: BaseException) -> str:
    """Return the class and message of an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"


def near_files(path: pathlib.Path) -> str:
    """Suggest existing files similar to a missing path."""
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return f"; there is no folder {path.parent} either"
    near = [str(path.with_name(name)) for name in nearest(path.name, names)]
    return f"; did you mean {' or '.join(near)}?" if near else ""
