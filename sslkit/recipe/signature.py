"""What a class says of itself is the schema of its options: facts, options, types in words, what is wrong with a value."""

import difflib
import inspect
import json
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from sslkit.errors import PluginError, printable
from sslkit.recipe.source import is_foreign, is_literal

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""


@dataclass(frozen=True)
class Option:
    """What a recipe may set: its `name` there, the Python `parameter`, the type, the default, and the type in words."""

    name: str
    parameter: str
    annotation: Any
    default: Any
    description: str


@dataclass(frozen=True)
class Signature:
    """What a class says of itself: facts it is given, options by the name they have in recipes, docstring, literal attributes."""

    runtime: tuple[str, ...]
    options: dict[str, Option]
    doc: str
    attributes: dict[str, Any]

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, in one line."""
        return " ".join(self.doc.partition("\n\n")[0].split())

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options as recipes name them → keyword arguments of the constructor."""
        return {self.options[name].parameter: value for name, value in options.items()}

    def validate(
        self, owner: str, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """(options with every default filled in, [(option, what is wrong with it)]); to be used only if nothing is wrong."""
        faults = [
            (name, f"no such option of {owner}; {advice(name, self.options)}")
            for name in given
            if name not in self.options
        ]
        options = {name: given.get(name, option.default) for name, option in self.options.items()}
        for name, option in self.options.items():
            if options[name] is REQUIRED:
                faults.append((name, f"{owner} needs the option '{name}' ({option.description})"))
                del options[name]
        try:
            return self._adapter(options).validate_json(
                json.dumps(plain(options)), strict=True
            ), faults
        except pydantic.ValidationError as error:
            wrong = dict.fromkeys(
                str(detail["loc"][0])
                for detail in error.errors(include_url=False, include_context=False)
            )
        except (pydantic.PydanticUserError, TypeError) as error:
            raise PluginError(
                f"the options of {owner} have types that cannot be checked: {sentence(error)}"
            ) from error
        faults += [
            (name, f"{written(options[name])} is not {self.options[name].description}")
            for name in wrong
        ]
        return options, faults

    def _adapter(self, names: Iterable[str]) -> pydantic.TypeAdapter:
        from typing_extensions import TypedDict

        return pydantic.TypeAdapter(
            TypedDict("Options", {name: self.options[name].annotation for name in names})
        )  # type: ignore[operator]


def read_class(part: type, owner: str) -> Signature:
    """The signature of a class. PluginError where a parameter is neither positional-only nor keyword-only."""
    lineage = [ancestor for ancestor in part.__mro__ if not is_foreign(ancestor.__module__)]
    try:
        parameters = list(inspect.signature(part.__init__, eval_str=True).parameters.values())[1:]  # type: ignore[misc]
    except Exception as error:
        raise PluginError(f"the options of {owner} cannot be read: {sentence(error)}") from error
    facts, options = [], {}
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            raise PluginError(
                f"parameter '{parameter.name}' of {owner} must stand before '/', as a fact, or after '*', as an option"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            facts.append(parameter.name)
        if parameter.kind is parameter.KEYWORD_ONLY:
            name = parameter.name.removesuffix("_")
            annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
            options[name] = Option(
                name, parameter.name, annotation, parameter.default, describe(annotation)
            )
    attributes = {
        name: value
        for ancestor in reversed(lineage)
        for name, value in vars(ancestor).items()
        if not name.startswith("_") and is_literal(value)
    }
    doc = next(
        (ancestor.__dict__["__doc__"] for ancestor in lineage if ancestor.__dict__.get("__doc__")),
        "",
    )
    return Signature(tuple(facts), options, inspect.cleandoc(doc), attributes)


# ---------------------------------------------------------------------------------------------------------------- in words


def describe(annotation: Any) -> str:
    """A type in words: "a whole number ≥ 1", "one of 'official', 'blur'", "a number between 0 and 1 or null"."""
    bounds: dict[str, Any] = {}
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *metadata = typing.get_args(annotation)
        bounds = _bounds(metadata) | bounds
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(member) for member in arguments))
    if origin is typing.Literal:
        return ("" if len(arguments) == 1 else "one of ") + ", ".join(
            written(value) for value in arguments
        )
    if origin is tuple and arguments and Ellipsis not in arguments:
        items = [describe(member) for member in arguments]
        return f"a list of {len(items)}" + (
            f", each {items[0]}" if len(set(items)) == 1 else f": {', '.join(items)}"
        )
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        pathlib.Path: "a path",
        type(None): "null",
        None: "null",
        Any: "anything",
        dict: "a mapping",
    }
    if origin in words:
        return words[origin] + _limits(bounds, whole=origin is int)
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        each = [describe(member) for member in arguments if member is not Ellipsis]
        sizes = {"min_length": "at least", "max_length": "at most"}
        size = " and".join(
            f" {words} {bounds[key]}" for key, words in sizes.items() if key in bounds
        )
        return "a list" + (f" of{size}" if size else "") + (f", each {each[0]}" if each else "")
    return str(getattr(annotation, "__name__", annotation))


def _bounds(metadata: Iterable[Any]) -> dict[str, Any]:
    import annotated_types
    from pydantic.fields import FieldInfo

    bounds: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            bounds |= _bounds(item.metadata)
        elif isinstance(item, annotated_types.GroupedMetadata):
            bounds |= _bounds(item)
        else:
            for key in ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length"):
                if getattr(item, key, None) is not None:
                    bounds[key] = getattr(item, key)
    return bounds


def _limits(bounds: dict[str, Any], *, whole: bool) -> str:
    if whole and "gt" in bounds:
        bounds = {**bounds, "ge": bounds["gt"] + 1}
        del bounds["gt"]
    if whole and "lt" in bounds:
        bounds = {**bounds, "le": bounds["lt"] - 1}
        del bounds["lt"]
    if "ge" in bounds and "le" in bounds:
        words = [f"between {bounds['ge']} and {bounds['le']}"]
    else:
        words = [
            f"{sign} {bounds[key]}"
            for key, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
            if key in bounds
        ]
    if "multiple_of" in bounds:
        words.append(f"a multiple of {bounds['multiple_of']}")
    return " " + " and ".join(words) if words else ""


def written(value: Any) -> str:
    """A value as a recipe would hold it, shortened to fit into a sentence."""
    if isinstance(value, str):
        text = f"'{printable(value)}'"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(written, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    else:
        text = printable(json.dumps(value, default=str))
    return text if len(text) <= 80 else f"{text[:79]}…"


def plain(value: Any) -> Any:
    """A value of an option as YAML and JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that `name` may have been meant to be, best first."""
    lower = {other.lower(): other for other in names}
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3)]


def advice(name: str, names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    if near := nearest(name, names):
        return f"did you mean {' or '.join(repr(other) for other in near)}?"
    return f"there are: {', '.join(names)}" if names else "there are none"


def sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"
