"""Builds the JSON schema of recipes from the installed parts."""

import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from sslkit.errors import PluginError
from sslkit.recipe import evaluations, groups, registry, sections
from sslkit.recipe.contents import NAME, OPTIONAL, PARTS, SECTIONS
from sslkit.recipe.registry import Part
from sslkit.recipe.signature import REQUIRED, Option, Signature, read_group
from sslkit.recipe.words import plain


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of recipes, for completion in editors."""
    told = "Name of the folder of runs. The file's name if left out."
    name = {"type": "string", "pattern": f"^{NAME}$", "description": told}
    properties: dict[str, Any] = {"name": name}
    for section, kind in PARTS.items():
        choices = {"oneOf": list(filter(None, map(_part_schema, registry.parts(kind))))}
        properties[section] = choices
        if section == "heads":
            properties[section] = {"type": "object", "additionalProperties": choices}
    properties["optimizer"] = _settings_schema("optimizer")
    properties["schedule"] = _settings_schema("schedule")
    train = sections.signature("train")
    assert train is not None
    properties["train"] = _object_schema(train)
    properties["train"]["properties"]["evaluate"] |= _evaluations_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sslkit recipe",
        "type": "object",
        "properties": properties,
        "required": [section for section in SECTIONS if section not in OPTIONAL],
        "additionalProperties": False,
    }


def _evaluations_schema() -> dict[str, Any]:
    """Return the schema of `train.evaluate`, by the name of the evaluation."""
    found = {}
    for part in registry.parts("evaluations"):
        try:
            one = _object_schema(evaluations.signature(part))
            found[part.name] = {**one, "type": ["object", "null"]}
        except (PluginError, RecursionError):
            continue
    return {"properties": found, "additionalProperties": False}


def _part_schema(part: Part) -> dict[str, Any] | None:
    """Return the schema of a part; None if its signature cannot be read."""
    try:
        use = {"use": {"const": part.name}}
        return {"title": part.name, **_object_schema(part.signature(), use, required=["use"])}
    except (PluginError, RecursionError):
        return None


def _settings_schema(section: str) -> dict[str, Any]:
    """Return the schema of a section whose options depend on `use`."""
    choices = []
    for name in sections.names(section):
        signature = sections.signature(section, name)
        if signature is None:
            choices.append({"properties": {"use": {"const": name}}, "required": ["use"]})
        else:
            required = [] if name == sections.DEFAULTS[section] else ["use"]
            choice = _object_schema(signature, {"use": {"const": name}}, required=required)
            choices.append({"title": name, **choice})
    return {"oneOf": choices} if choices else {"type": "object"}


def _object_schema(
    signature: Signature, first: Mapping[str, Any] | None = None, *, required: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the schema of a mapping with the properties `first` and the signature's options."""
    options = signature.options.values()
    properties = {option.name: _option_schema(option) for option in options}
    needed = [option.name for option in options if option.default is REQUIRED]
    return {
        "type": "object",
        "description": signature.summary,
        "properties": {**(first or {}), **properties},
        "required": [*required, *needed],
        "additionalProperties": False,
    }


def _option_schema(option: Option) -> dict[str, Any]:
    schema = {
        **_type_schema(option.annotation),
        "description": option.description or option.words,
    }
    return schema if option.default is REQUIRED else {**schema, "default": plain(option.default)}


def _type_schema(annotation: Any) -> dict[str, Any]:
    """Return the schema of a type, with groups expanded."""
    if not groups.has_group(annotation):
        return pydantic.TypeAdapter(annotation).json_schema()
    members = groups.members(annotation)
    if len(members) > 1:
        return {"anyOf": [_type_schema(member) for member in members]}
    bare = groups.bare(annotation)
    if groups.is_group(bare):
        return _group_schema(bare)
    items = [_type_schema(item) for item in typing.get_args(bare) if item is not Ellipsis]
    if typing.get_origin(bare) is list or Ellipsis in typing.get_args(bare):
        return {"type": "array", "items": items[0]}
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def _group_schema(group: type) -> dict[str, Any]:
    presets = groups.presets(group)
    if not presets:
        return _object_schema(read_group(group))
    preset = {"enum": list(presets), "description": "What the mapping starts from."}
    return {**_object_schema(read_group(group), {"preset": preset}), "required": []}
