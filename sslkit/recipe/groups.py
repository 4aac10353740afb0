"""Groups: options within an option, declared as frozen keyword-only dataclasses.

An option's annotation contains a group alone, in a union, or in a list:
`Literal["strong", "weak"] | Colours | tuple[Colours, ...]`. A recipe writes a group as a mapping.
The class attribute `presets: ClassVar[dict[str, dict[str, Any]]]` names sets of values. A mapping
may start from a preset: `{preset: strong, blur: 0.5}`.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any


def is_group(annotation: Any) -> bool:
    """Return whether an annotation is a frozen dataclass whose fields are all keyword-only."""
    if not isinstance(annotation, type) or not dataclasses.is_dataclass(annotation):
        return False
    frozen = annotation.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return frozen and all(field.kw_only for field in dataclasses.fields(annotation))


def bare(annotation: Any) -> Any:
    """Return an annotation without its `Annotated`."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself if it is not a union."""
    annotation = bare(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def group_of(annotation: Any) -> type | None:
    """Return the group of an annotation; None if it has no group."""
    return next((bare(member) for member in members(annotation) if is_group(bare(member))), None)


def list_of(annotation: Any) -> Any:
    """Return the member of a union that is a list or tuple of groups; None if there is none."""
    for member in members(annotation):
        is_list = typing.get_origin(bare(member)) in (list, tuple)
        if is_list and any(map(has_group, typing.get_args(bare(member)))):
            return member
    return None


def items_of(listed: Any, count: int) -> list[Any] | None:
    """Return the annotations of `count` list items; None if the list cannot have that length."""
    arguments = typing.get_args(bare(listed))
    if typing.get_origin(bare(listed)) is list or Ellipsis in arguments:
        return [arguments[0]] * count
    return list(arguments) if len(arguments) == count else None


def has_group(annotation: Any) -> bool:
    """Return whether an annotation contains a group, at any depth of unions and lists."""
    return group_of(annotation) is not None or list_of(annotation) is not None


def groups_in(annotation: Any) -> Iterator[type]:
    """Yield the groups of an annotation, without nested groups."""
    for member in members(annotation):
        if is_group(bare(member)):
            yield bare(member)
        elif list_of(member) is not None:
            for item in typing.get_args(bare(member)):
                yield from groups_in(item)


def presets(group: type | None) -> Mapping[str, Mapping[str, Any]]:
    """Return the presets of a group by name."""
    return getattr(group, "presets", {})


def is_preset(member: Any, group: type | None) -> bool:
    """Return whether a member of a union is a Literal of preset names."""
    if typing.get_origin(bare(member)) is not typing.Literal:
        return False
    return set(typing.get_args(bare(member))) <= set(presets(group))


def option_name(parameter: str) -> str:
    """Return the name of a parameter in recipes: `lambda_` becomes `lambda`."""
    return parameter.removesuffix("_")


def realise(annotation: Any, value: Any) -> Any:
    """Convert the mappings of groups to dataclass instances.

    `annotation` must contain the imported classes, not their stand-ins.
    """
    group = group_of(annotation)
    if isinstance(value, Mapping) and group is not None:
        hints = typing.get_type_hints(group, include_extras=True)
        arguments = {}
        for field in dataclasses.fields(group):
            item = value[option_name(field.name)]
            arguments[field.name] = realise(hints[field.name], item)
        return group(**arguments)
    listed = list_of(annotation)
    if isinstance(value, list | tuple) and listed is not None:
        items = items_of(listed, len(value)) or []
        return type(value)(map(realise, items, value))
    return value
