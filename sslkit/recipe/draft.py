"""Applies `--set` and `--data` to a recipe, unchecked, and records the origin of each key."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslkit.errors import Fault, PluginError, RecipeError
from sslkit.recipe import groups, mapping, registry, sections, shipped
from sslkit.recipe.contents import OPTIONAL, PARTS, SECTIONS
from sslkit.recipe.document import MAX_BYTES, Document, Key, broken
from sslkit.recipe.paths import opened_by
from sslkit.recipe.settings import SETTINGS
from sslkit.recipe.signature import REQUIRED, Option, Signature, read_group
from sslkit.recipe.words import plain, written, written_path

Source = str | os.PathLike[str] | Mapping[str, Any]
"""Path of a recipe, name of a shipped recipe, or mapping of sections."""
NEEDED = ", ".join(section for section in SECTIONS if section not in OPTIONAL)
EMPTY = f"is empty; a recipe needs the sections {NEEDED}"


class Draft:
    """The sections of a recipe after `--set` and `--data`, before validation.

    `places` maps a key to its file and line. `faults` holds the faults found so far. `name` is the
    default name of the recipe.
    """

    def __init__(self, source: Source, overrides: Sequence[str], data: str | None) -> None:
        self.place = mapping.PLACE if isinstance(source, Mapping) else os.fspath(source)
        self.content: dict[str, Any] = {}
        self.places: dict[Key, tuple[str, int | None]] = {(): (self.place, None)}
        self.faults: list[Fault] = []
        if isinstance(source, Mapping):
            self._copy(source)
        else:
            self._load(shipped.find(self.place))
        settings = [setting for setting in map(self._parse, overrides) if setting is not None]
        # Set `use` first: it drops the options of the replaced part.
        for key, value in settings:
            if key[-1] == "use":
                self._set(key, value)
        if data is not None:
            self._replace_data(data)
        for key, value in settings:
            if key[-1] != "use":
                self._set(key, value)

    def refuse(self, key: Key, message: str) -> None:
        """Add a fault at the line of the key, or of its nearest known parent."""
        known = key
        while known not in self.places:
            known = known[:-1]
        file, line = self.places[known]
        self.faults.append(Fault(".".join(key), message, file, line))

    def ordered_faults(self) -> list[Fault]:
        """Return the file's faults in order of line, then the others."""

        def order(fault: Fault) -> tuple[bool, float]:
            return fault.file != self.place, math.inf if fault.line is None else fault.line

        return sorted(self.faults, key=order)

    # --------------------------------------------------------------------- the file or the mapping

    def _copy(self, source: Mapping[str, Any]) -> None:
        """Copy a mapping from Python. Raises RecipeError if it is empty."""
        given = mapping.GivenMapping(source)
        self.content = given.value
        for key, message in given.faults:
            self.faults.append(Fault(".".join(key), message, self.place))
        if not self.content:
            raise RecipeError(*self.faults or [Fault("", EMPTY, self.place)])
        method = self.content.get("method")
        use = method.get("use") if isinstance(method, dict) else None
        self.name = run_name(str(use))

    def _load(self, path: Path) -> None:
        """Read a recipe file. Raises RecipeError if it has no readable content."""
        self.name = run_name(path.stem)
        content = self._bytes(path)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            fault = Fault("", "is not UTF-8 text; save it as UTF-8", self.place, line)
            raise RecipeError(fault) from error
        document = Document(text, EMPTY)
        for key, line, message in document.faults:
            self.faults.append(Fault(".".join(key), message, self.place, line))
        for key, line in document.lines.items():
            self.places[key] = (self.place, line)
        if isinstance(document.value, dict):
            self.content = document.value
        elif not self.faults:
            held = written(document.value)
            message = f"holds {held}; a recipe is a mapping of sections"
            self.faults.append(Fault("", message, self.place, 1))
        if not self.content and self.faults:
            raise RecipeError(*self.faults)

    def _bytes(self, path: Path) -> bytes:
        try:
            if path.is_dir():
                raise self._unusable(f"is a folder; name a recipe in it{_listing(path)}")
            if not path.is_file():
                raise self._unusable(shipped.unknown(self.place))
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise self._unusable(f"cannot be read: {error}") from error
        if len(content) > MAX_BYTES:
            raise self._unusable(f"is larger than {MAX_BYTES >> 10} KiB; that is no recipe")
        return content

    def _unusable(self, message: str) -> RecipeError:
        return RecipeError(Fault("", message, self.place))

    # ----------------------------------------------------------------------------------- --set

    def _parse(self, override: str) -> tuple[Key, Any] | None:
        dotted, equals, text = override.partition("=")
        key = tuple(dotted.strip().split("."))
        if not equals or not all(key):
            message = f"{written(override)} is not of the form section.key=value"
            self.faults.append(Fault("", message, "--set"))
            return None
        if not text.strip():
            return key, None
        if (hidden := broken(text)) is not None:
            self.faults.append(Fault(dotted.strip(), hidden, "--set"))
            return None
        document = Document(text)
        for below, _, message in document.faults:
            self.faults.append(Fault(".".join((*key, *below)), message, "--set"))
        return None if document.faults else (key, document.value)

    def _set(self, key: Key, value: Any) -> None:
        """Set the value of a key, as `--set` does.

        A preset's name in the path becomes a mapping with that preset. A missing option in the
        path gets its default. In optimizer and schedule, null removes the key.
        """
        target: Any = self.content
        for length in range(1, len(key)):
            target = self._enter(target, key, length)
            if target is None:
                return
        place = self._place(target, key, len(key))
        if place is None:
            return
        if _names_part(key) and target.get("use") != value:
            target.clear()
        self.places = {
            known: found for known, found in self.places.items() if known[: len(key)] != key
        }
        if value is None and key[0] in ("optimizer", "schedule") and key[1:] and place in target:
            del target[place]
            return
        target[place] = value
        self.places[key] = ("--set", None)

    def _enter(self, target: Any, key: Key, length: int) -> Any:
        """Return the mapping or list at `key[:length]`; create it if it is missing."""
        here = key[:length]
        place = self._place(target, key, length)
        if place is None:
            return None
        if isinstance(target, dict) and target.get(place) is None:
            target[place] = self._default(here, target)
            self.places[here] = ("--set", None)
        inner = target[place]
        option = self._option(here)
        if option is not None and isinstance(inner, str):
            if inner in groups.presets(groups.group_of(option.annotation)):
                inner = target[place] = {"preset": inner}
        if isinstance(inner, dict | list):
            return inner
        held = f"'{'.'.join(here)}' has no options; it is {written(inner)}"
        self.faults.append(Fault(".".join(key), held, "--set"))
        return None

    def _place(self, target: Any, key: Key, length: int) -> Any:
        """Return `key[length - 1]` as a key of `target`: a name, or an index into a list.

        Returns None if the list has no such item.
        """
        name = key[length - 1]
        if isinstance(target, dict):
            return name
        if name.isdecimal() and name.isascii() and int(name) < len(target):
            return int(name)
        held = f"'{'.'.join(key[: length - 1])}' is a list of {len(target)}, counted from 0"
        self.faults.append(Fault(".".join(key), held, "--set"))
        return None

    def _default(self, key: Key, target: Mapping[str, Any]) -> Any:
        """Return the default of an option that `target` does not set; {} if there is none."""
        above = self._option(key[:-1])
        if above is not None:
            presets = groups.presets(groups.group_of(above.annotation))
            preset = presets.get(str(target.get("preset")), {})
            if key[-1] in preset:
                return plain(preset[key[-1]])
        option = self._option(key)
        if option is None or option.default is REQUIRED or option.default is None:
            return {}
        return plain(option.default)

    def _option(self, key: Key) -> Option | None:
        """Return the option at a key, including options of groups; None if there is none."""
        names = key[2:] if key[:1] == ("heads",) else key[1:]
        if not names:
            return None
        signature = self._signature(key[: len(key) - len(names)])
        if signature is None:
            return None
        option = signature.options.get(names[0])
        for name in names[1:]:
            if option is None:
                return None
            option = _below(option, name)
        return option

    def _signature(self, key: Key) -> Signature | None:
        """Return the signature of the part or settings at a key; None if it is unknown."""
        content: Any = self.content
        for name in key:
            content = content.get(name) if isinstance(content, dict) else None
        use = content.get("use") if isinstance(content, dict) else None
        if key[0] in PARTS and isinstance(use, str):
            try:
                return registry.find(PARTS[key[0]], use).signature()
            except PluginError:
                return None
        if key[0] not in SETTINGS:
            return None
        return sections.signature(key[0], use if isinstance(use, str) else None)

    # ---------------------------------------------------------------------------------- --data

    def _replace_data(self, data: str) -> None:
        held = self.content.get("data")
        current = held if isinstance(held, dict) else {}
        replaced = opened_by(data, current.get("use"))
        if isinstance(replaced, str):
            self.faults.append(Fault("", f"{written_path(data)}: {replaced}", "--data"))
            return
        if replaced["use"] == current.get("use"):
            replaced = {**current, **replaced}
        self.content["data"] = replaced
        for name, value in replaced.items():
            if value != current.get(name):
                self.places["data", name] = ("--data", None)
        self.places.setdefault(("data",), ("--data", None))


def run_name(text: str) -> str:
    """Make a run folder's name from a text: characters outside A-Z a-z 0-9 . _ - become `_`."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip(".-")[:100]
    return name if re.search("[A-Za-z0-9]", name) else "recipe"


def _names_part(key: Key) -> bool:
    """Return whether a key is the `use` of a part."""
    length = 3 if key[0] == "heads" else 2
    return key[0] in PARTS and key[-1] == "use" and len(key) == length


def _below(option: Option, name: str) -> Option | None:
    """Return the option `name` of a group, or item `name` of a list; None if there is none."""
    group, listed = groups.group_of(option.annotation), groups.list_of(option.annotation)
    if name.isdecimal() and listed is not None:
        items = groups.items_of(listed, int(name) + 1) or []
        return replace(option, annotation=items[-1], default=REQUIRED) if items else None
    return None if group is None else read_group(group).options.get(name)


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.y*ml"))[:10]
    return f": {', '.join(names)}" if names else ""
