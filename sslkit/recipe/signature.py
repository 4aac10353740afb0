"""Builds a part's option schema from its constructor and validates values."""

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from sslkit.errors import PluginError
from sslkit.recipe import groups
from sslkit.recipe.source import is_foreign, is_literal
from sslkit.recipe.words import advice, bounds, describe, description, plain, sentence, written

REQUIRED = inspect.Parameter.empty
"""Default of a required option."""

Faults = list[tuple[str, str]]
"""Pairs of an option's dotted key and a message."""


@dataclass(frozen=True)
class Option:
    """An option of a part.

    `name` is the option's name in recipes, `parameter` its name in Python. `words` describes the
    type, and `description` comes from the annotation.
    """

    name: str
    parameter: str
    annotation: Any
    default: Any

    @functools.cached_property
    def words(self) -> str:
        """Description of the type, such as "int ≥ 1"."""
        return describe(self.annotation)

    @functools.cached_property
    def description(self) -> str:
        """Description from the annotation."""
        return description(self.annotation)

    @property
    def more(self) -> str:
        """Description as the second sentence of a message."""
        return f". {self.description}" if self.description else ""

    def refuse(self, value: Any) -> str:
        """Return a message for a value of the wrong type."""
        return f"expected {self.words}, got {written(value)}{self._choices}{self.more}"

    @property
    def _choices(self) -> str:
        """List of a group's presets and options, for messages."""
        group = groups.group_of(self.annotation)
        if group is None:
            return ""
        presets, names = groups.presets(group), read_group(group).options
        chosen = f"; presets: {', '.join(presets)}" if presets else ""
        return f"{chosen}; options of a mapping: {', '.join(names)}"


@dataclass(frozen=True)
class Signature:
    """Runtime arguments, options by name in recipes, docstring and attributes of a class."""

    runtime: tuple[str, ...]
    options: dict[str, Option]
    doc: str
    attributes: dict[str, Any]

    @property
    def summary(self) -> str:
        """First paragraph of the docstring, as one line."""
        return " ".join(self.doc.partition("\n\n")[0].split())

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Convert options by name in recipes to keyword arguments of the constructor.

        Instantiates groups, so the signature must come from the imported class.
        """
        arguments = {}
        for name, value in options.items():
            option = self.options[name]
            arguments[option.parameter] = groups.realise(option.annotation, value)
        return arguments

    def validate(self, owner: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], Faults]:
        """Return the options with all defaults, and the faults.

        The options are valid only without faults. Keys of faults in groups are dotted.
        Raises PluginError for types that cannot be checked.
        """
        faults = []
        for name in given:
            if name not in self.options:
                faults.append((name, f"no such option of {owner}; {advice(name, self.options)}"))
        options = {}
        for name, option in self.options.items():
            options[name] = given.get(name, option.default)
            if options[name] is REQUIRED:
                message = f"{owner} needs the option '{name}' ({option.words}){option.more}"
                faults.append((name, message))
                del options[name]
        simple = {}
        for name, value in options.items():
            option = self.options[name]
            if groups.has_group(option.annotation):
                options[name], wrong = _settle(option, value, name)
                faults += wrong
            else:
                simple[name] = value
        checked, wrong = self._check(owner, simple)
        return options | checked, faults + wrong

    def _check(self, owner: str, options: dict[str, Any]) -> tuple[dict[str, Any], Faults]:
        """Validate options without groups."""
        from typing_extensions import TypedDict

        types = {name: self.options[name].annotation for name in options}
        try:
            adapter = pydantic.TypeAdapter(TypedDict("Options", types))  # type: ignore[operator]
            return adapter.validate_json(json.dumps(plain(options)), strict=True), []
        except pydantic.ValidationError as error:
            errors = error.errors(include_url=False, include_context=False)
            wrong = dict.fromkeys(str(detail["loc"][0]) for detail in errors)
        except (pydantic.PydanticUserError, TypeError) as error:
            raise PluginError(
                f"the options of {owner} have types that cannot be checked: {sentence(error)}"
            ) from error
        return options, [(name, self.options[name].refuse(options[name])) for name in wrong]


def _settle(option: Option, value: Any, key: str) -> tuple[Any, Faults]:
    """Validate a value of an option with groups, and fill in presets and defaults.

    Mappings and lists keep their type; the name of a preset stays a name.
    """
    annotation, value = option.annotation, plain(value)
    group, listed = groups.group_of(annotation), groups.list_of(annotation)
    if isinstance(value, dict) and group is not None:
        return _settle_mapping(option, group, value, key)
    if isinstance(value, list) and listed is not None:
        return _settle_list(option, listed, value, key)
    others = [other for other in groups.members(annotation) if not groups.has_group(other)]
    if others:
        try:
            union: Any = typing.Union[tuple(others)]  # noqa: UP007
            adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(union)
            return adapter.validate_json(json.dumps(value), strict=True), []
        except pydantic.ValidationError:
            pass
    names: list[Any] = []
    for other in others:
        names += _names(other)
    if isinstance(value, str) and any(groups.is_preset(other, group) for other in others):
        return value, [(key, f"no preset {written(value)}; {_with(advice(value, names), option)}")]
    return value, [(key, option.refuse(value))]


def _with(advised: str, option: Option) -> str:
    """Append an option's description to advice, without a full stop after a question."""
    return f"{advised}{option.more.removeprefix('.') if advised.endswith('?') else option.more}"


def _names(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a Literal; () for other annotations."""
    is_literal = typing.get_origin(groups.bare(annotation)) is typing.Literal
    return typing.get_args(groups.bare(annotation)) if is_literal else ()


def _settle_mapping(
    option: Option, group: type, value: dict[str, Any], key: str
) -> tuple[Any, Faults]:
    presets, faults = groups.presets(group), []
    if presets and "preset" in value:
        name = value["preset"]
        value = {other: item for other, item in value.items() if other != "preset"}
        if isinstance(name, str) and name in presets:
            value = {**presets[name], **value}
        else:
            faults = [(f"{key}.preset", f"no preset {written(name)}; {advice(str(name), presets)}")]
    options, wrong = read_group(group).validate(option.name, value)
    return options, faults + [(f"{key}.{name}", message) for name, message in wrong]


def _settle_list(option: Option, listed: Any, value: list[Any], key: str) -> tuple[Any, Faults]:
    items = groups.items_of(listed, len(value))
    limits = bounds(getattr(listed, "__metadata__", ()))
    fits = limits.get("min_length", 0) <= len(value) <= limits.get("max_length", len(value))
    if items is None or not fits:
        return value, [(key, option.refuse(value))]
    settled, faults = [], []
    for number, (annotation, item) in enumerate(zip(items, value, strict=True)):
        one = dataclasses.replace(option, annotation=annotation)
        done, wrong = _settle(one, item, f"{key}.{number}")
        settled.append(done)
        faults += wrong
    is_tuple = typing.get_origin(groups.bare(listed)) is tuple
    return tuple(settled) if is_tuple else settled, faults


@functools.cache
def read_group(group: type) -> Signature:
    """Return the options of a group. Raises PluginError if they cannot be read."""
    return read_class(group, group.__name__)


def read_class(part: type, owner: str) -> Signature:
    """Return the signature of a class.

    Raises PluginError if a parameter is neither positional-only nor keyword-only.
    """
    try:
        signature = inspect.signature(part.__init__, eval_str=True)  # type: ignore[misc]
    except Exception as error:
        raise PluginError(f"the options of {owner} cannot be read: {sentence(error)}") from error
    runtime, options = [], {}
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            raise PluginError(
                f"parameter '{parameter.name}' of {owner} must stand before '/', as a runtime "
                "argument, or after '*', as an option"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            runtime.append(parameter.name)
        if parameter.kind is parameter.KEYWORD_ONLY:
            option = _option(part, parameter, owner)
            options[option.name] = option
    lineage = [ancestor for ancestor in part.__mro__ if not is_foreign(ancestor.__module__)]
    attributes = _attributes(reversed(lineage))
    return Signature(tuple(runtime), options, _doc(lineage), attributes)


def _option(part: type, parameter: inspect.Parameter, owner: str) -> Option:
    annotation = Any if parameter.annotation is REQUIRED else parameter.annotation
    found = [member for member in groups.members(annotation) if groups.is_group(member)]
    if len(found) > 1:
        names = " and ".join(group.__name__ for group in found)
        raise PluginError(
            f"option '{parameter.name}' of {owner} is {names}; a mapping does not tell which"
        )
    default = parameter.default
    for field in getattr(part, "__dataclass_fields__", {}).values():
        if field.name == parameter.name and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
    return Option(groups.option_name(parameter.name), parameter.name, annotation, default)


def _attributes(lineage: Iterable[type]) -> dict[str, Any]:
    attributes = {}
    for ancestor in lineage:
        for name, value in vars(ancestor).items():
            if not name.startswith("_") and is_literal(value):
                attributes[name] = value
    return attributes


def _doc(lineage: Iterable[type]) -> str:
    """Return the first docstring, ignoring those that `dataclass` generates."""
    for ancestor in lineage:
        doc = vars(ancestor).get("__doc__")
        if doc and not doc.startswith(f"{ancestor.__name__}("):
            return inspect.cleandoc(doc)
    return ""
