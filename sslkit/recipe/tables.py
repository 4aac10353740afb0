"""Tabulates options for `sslkit plugins show` and the reference."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sslkit.recipe import groups
from sslkit.recipe.signature import REQUIRED, Option, Signature, read_group
from sslkit.recipe.words import written

Row = tuple[str, ...]


@dataclass
class GroupTable:
    """A group, the options that use it (`colours`, `local.colours`), and its options."""

    group: type
    signature: Signature
    options: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Description of the group, as a title."""
        summary = self.signature.summary
        return f"{self.group.__name__}, for {', '.join(self.options)}" + (
            f": {summary}" if summary else ""
        )

    @property
    def presets(self) -> list[Row]:
        """Presets, each with the values that it sets."""
        presets = groups.presets(self.group)
        return [(name, _values(preset.items())) for name, preset in presets.items()]


def option_rows(signature: Signature) -> tuple[Row, list[Row]]:
    """Return column names and one row per option; descriptions only if any option has one."""
    options = list(signature.options.values())
    rows: list[Row] = [(option.name, option.words, _default(option)) for option in options]
    if not any(option.description for option in options):
        return ("option", "type", "default"), rows
    described: list[Row] = [
        (*row, option.description) for row, option in zip(rows, options, strict=True)
    ]
    return ("option", "type", "default", "description"), described


def group_tables(signature: Signature) -> list[GroupTable]:
    """Return each group in the options once, outer groups first."""
    found: dict[type, GroupTable] = {}
    waiting = [(option.name, option) for option in signature.options.values()]
    while waiting:
        path, option = waiting.pop(0)
        for group in dict.fromkeys(groups.groups_in(option.annotation)):
            is_new = group not in found
            table = found.setdefault(group, GroupTable(group, read_group(group)))
            if path not in table.options:
                table.options.append(path)
            if is_new:
                inner = table.signature.options.values()
                waiting += [(f"{path}.{other.name}", other) for other in inner]
    return list(found.values())


def _default(option: Option) -> str:
    return "required" if option.default is REQUIRED else written(option.default)


def _values(items: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {written(value)}" for name, value in items) or "all defaults"
