"""The JSON schema of recipes with the parts that are installed."""

from collections.abc import Mapping
from typing import Any

import pydantic

from sslkit.errors import PluginError
from sslkit.recipe import registry
from sslkit.recipe.contents import NAME, OPTIONAL, PARTS, SECTIONS
from sslkit.recipe.registry import Part
from sslkit.recipe.settings import SETTINGS, optimizers, settings_signature
from sslkit.recipe.signature import (
    REQUIRED,
    Option,
    Signature,
    plain,
)


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of recipes with the parts that are installed, for completion in editors."""
    properties: dict[str, Any] = {
        "name": {
            "type": "string",
            "pattern": "^" + NAME + "$",
            "description": "names the run's folder",
        }
    }
    for section, kind in PARTS.items():
        choices = {"oneOf": list(filter(None, map(_part_schema, registry.parts(kind))))}
        properties[section] = (
            {"type": "object", "additionalProperties": choices} if section == "heads" else choices
        )
    for section, settings in SETTINGS.items():
        properties[section] = _object_schema(settings_signature(settings), {})
    properties["optimizer"]["properties"]["use"]["examples"] = list(optimizers())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sslkit recipe",
        "type": "object",
        "properties": properties,
        "required": [section for section in SECTIONS if section not in OPTIONAL],
        "additionalProperties": False,
    }


def _part_schema(part: Part) -> dict[str, Any] | None:
    """None for a part that cannot be read: it must not harm the schema of the others."""
    try:
        return {
            "title": part.name,
            **_object_schema(part.signature(), {"use": {"const": part.name}}),
        }
    except PluginError:
        return None


def _object_schema(signature: Signature, first: Mapping[str, Any]) -> dict[str, Any]:
    required = [name for name, option in signature.options.items() if option.default is REQUIRED]
    return {
        "type": "object",
        "description": signature.summary,
        "properties": {
            **first,
            **{name: _option_schema(option) for name, option in signature.options.items()},
        },
        "required": [*first, *required],
        "additionalProperties": False,
    }


def _option_schema(option: Option) -> dict[str, Any]:
    schema = {
        **pydantic.TypeAdapter(option.annotation).json_schema(),
        "description": option.description,
    }
    return schema if option.default is REQUIRED else {**schema, "default": plain(option.default)}
