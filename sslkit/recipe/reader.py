"""YAML → Recipe. Every fault is found at once, with file, line, dotted key and remedy, before torch is imported."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslkit.errors import Fault, PluginError, RecipeError
from sslkit.recipe import registry, wiring
from sslkit.recipe.contents import HEAD, NAME, OPTIONAL, PARTS, SECTIONS, Choice, Recipe
from sslkit.recipe.document import MAX_BYTES, Document, Key
from sslkit.recipe.settings import SETTINGS, Schedule, optimizers, settings_signature
from sslkit.recipe.signature import (
    advice,
    nearest,
    written,
)


def read(
    path: str | os.PathLike[str], *, overrides: Sequence[str] = (), data: str | None = None
) -> Recipe:
    """Read a recipe; `overrides` are `section.key=value`, `data` a folder, packed set or .npz file to use. RecipeError with every fault."""
    return _Reading(Path(path), overrides, data).recipe()


def read_evaluation(name: str, given: Mapping[str, str | bool]) -> Choice:
    """Return an evaluation with its options, whose values are read as those of `--set`.

    `given` are texts by option; a flag is true or false. RecipeError with every fault.
    """
    part = registry.find("evaluations", name)
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for option, text in given.items():
        if isinstance(text, bool) or not text.strip():
            values[option] = text or None
            continue
        document = Document(text)
        values[option] = document.value
        faults += [Fault(_flag(option), message) for _, _, message in document.faults]
    options, wrong = part.signature().validate(name, values)
    faults += [Fault(_flag(option), message) for option, message in wrong]
    if faults:
        raise RecipeError(*faults)
    return Choice("evaluations", part.name, options, part)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def read_data(data: str) -> Choice:
    """Return the data set that `--data` names. RecipeError where it names none."""
    section = opened_by(data)
    if isinstance(section, str):
        raise RecipeError(Fault("", f"{written(data)}: {section}", "--data"))
    part = registry.find("datasets", section.pop("use"))
    options, wrong = part.signature().validate(part.name, section)
    if wrong:
        raise RecipeError(*(Fault(option, message, "--data") for option, message in wrong))
    return Choice("datasets", part.name, options, part)


def opened_by(data: str) -> dict[str, Any] | str:
    """Return the section of a recipe that opens a path, or what is wrong with the path."""
    path = Path(os.path.abspath(os.path.expanduser(data)))
    if os.path.isfile(path / "packed.json"):
        return {"use": "packed", "root": str(path)}
    if os.path.isdir(path):
        return {"use": "image_folder", "root": str(path)}
    if os.path.isfile(path) and path.suffix == ".npz":
        return {"use": "npz", "file": str(path)}
    if os.path.exists(path):
        return "is neither a folder nor a .npz file"
    return f"there is no such folder or file{_near(path)}"


class _Reading:
    """One reading of one file: what it holds after `--set` and `--data`, where each key came from, and the faults so far."""

    def __init__(self, path: Path, overrides: Sequence[str], data: str | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {}
        self.places: dict[Key, tuple[str, int | None]] = {(): (str(path), None)}
        self.faults: list[Fault] = []
        self._load()
        settings = [setting for setting in map(self._parse, overrides) if setting is not None]
        for key, value in settings:
            if key[-1] == "use":
                self._set(key, value)
        if data is not None:
            self._replace_data(data)
        for key, value in settings:
            if key[-1] != "use":
                self._set(key, value)

    def refuse(self, key: Key, message: str) -> None:
        known = next(
            key[:length] for length in range(len(key), -1, -1) if key[:length] in self.places
        )
        file, line = self.places[known]
        self.faults.append(Fault(".".join(key), message, file, line))

    def _load(self) -> None:
        """RecipeError at once where there is nothing to go on with."""
        try:
            if self.path.is_dir():
                raise RecipeError(
                    Fault(
                        "", f"is a folder; name a recipe in it{_listing(self.path)}", str(self.path)
                    )
                )
            if not self.path.is_file():
                raise RecipeError(
                    Fault("", f"there is no such file{_near(self.path)}", str(self.path))
                )
            with self.path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise RecipeError(
                    Fault(
                        "",
                        f"is larger than {MAX_BYTES >> 10} KiB; that is no recipe",
                        str(self.path),
                    )
                )
            needed = ", ".join(section for section in SECTIONS if section not in OPTIONAL)
            document = Document(
                content.decode("utf-8-sig"), f"is empty; a recipe needs the sections {needed}"
            )
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise RecipeError(
                Fault("", "is not UTF-8 text; save it as UTF-8", str(self.path), line)
            ) from error
        except (OSError, ValueError) as error:
            raise RecipeError(Fault("", f"cannot be read: {error}", str(self.path))) from error
        self.faults += [
            Fault(".".join(key), message, str(self.path), line)
            for key, line, message in document.faults
        ]
        self.places |= {key: (str(self.path), line) for key, line in document.lines.items()}
        if isinstance(document.value, dict):
            self.content = document.value
        elif not self.faults:
            self.faults.append(
                Fault(
                    "",
                    f"holds {written(document.value)}; a recipe is a mapping of sections",
                    str(self.path),
                    1,
                )
            )
        if not self.content and self.faults:
            raise RecipeError(*self.faults)

    def _parse(self, override: str) -> tuple[Key, Any] | None:
        dotted, equals, text = override.partition("=")
        key = tuple(dotted.strip().split("."))
        if not equals or not all(key):
            self.faults.append(
                Fault("", f"{written(override)} is not of the form section.key=value", "--set")
            )
            return None
        document = Document(text) if text.strip() else None
        if document is not None and document.faults:
            self.faults += [
                Fault(".".join((*key, *below)), message, "--set")
                for below, _, message in document.faults
            ]
            return None
        return key, None if document is None else document.value

    def _set(self, key: Key, value: Any) -> None:
        target = self.content
        for length, name in enumerate(key[:-1], 1):
            if name not in target:
                self.places[key[:length]] = ("--set", None)
            inner = target.setdefault(name, {})
            if not isinstance(inner, dict):
                self.faults.append(
                    Fault(
                        ".".join(key),
                        f"'{'.'.join(key[:length])}' has no options; it is {written(inner)}",
                        "--set",
                    )
                )
                return
            target = inner
        if key[-1] == "use" and key[0] in PARTS and target.get("use") != value:
            target.clear()
        if isinstance(value, dict):
            self.places = {
                known: place for known, place in self.places.items() if known[: len(key)] != key
            }
        target[key[-1]] = value
        self.places[key] = ("--set", None)

    def _replace_data(self, data: str) -> None:
        section = opened_by(data)
        if isinstance(section, str):
            self.faults.append(Fault("", f"{written(data)}: {section}", "--data"))
            return
        held = self.content.get("data")
        current = held if isinstance(held, dict) else {}
        if section["use"] == current.get("use") == "image_folder":
            section = {**current, **section}
        self.content["data"] = section
        self.places |= {
            ("data", name): ("--data", None)
            for name, value in section.items()
            if value != current.get(name)
        }
        self.places.setdefault(("data",), ("--data", None))

    def recipe(self) -> Recipe:
        for section in self.content:
            if section not in SECTIONS:
                self.refuse((section,), f"no such section; {advice(section, SECTIONS)}")
        for section in SECTIONS:
            if section not in self.content and section not in OPTIONAL:
                self.refuse(
                    (section,),
                    f"a recipe needs {'a name' if section == 'name' else 'this section'}",
                )
        sections: dict[str, Any] = {
            "name": self._name(),
            "path": self.path,
            "heads": {},
            "sampler": None,
            "schedule": Schedule(),
        }
        for section, kind in PARTS.items():
            if section in self.content and section != "heads":
                sections[section] = self._choice((section,), kind, self.content[section])
        heads = self.content.get("heads", {})
        if isinstance(heads, dict):
            for name in heads:
                if not re.fullmatch(HEAD, name):
                    self.refuse(
                        ("heads", name),
                        f"{written(name)} cannot name a head; use letters, digits and '_'",
                    )
            sections["heads"] = {
                name: self._choice(("heads", name), "heads", head) for name, head in heads.items()
            }
        else:
            self.refuse(
                ("heads",),
                f"{written(heads)} is not a mapping of heads, such as {{image: {{use: linear}}}}",
            )
        for section, settings in SETTINGS.items():
            if section in self.content:
                sections[section] = self._settings(section, settings)
        if isinstance(heads, dict):
            chosen = {name: value for name, value in sections.items() if name in self.content}
            for key, message in wiring.faults(chosen, sections["heads"]):
                self.refuse(key, message)
        if self.faults:
            raise RecipeError(*sorted(self.faults, key=self._order))
        return Recipe(**sections)

    def _order(self, fault: Fault) -> tuple[bool, float]:
        return fault.file != str(self.path), math.inf if fault.line is None else fault.line

    def _name(self) -> str:
        name = self.content.get("name", "unnamed")
        if not isinstance(name, str):
            self.refuse(("name",), f"{written(name)} is not text; put it in quotes")
        elif not re.fullmatch(NAME, name):
            self.refuse(
                ("name",),
                f"{written(name)} cannot name a folder; use letters, digits, '_', '-' and '.', and begin with none of the last two",
            )
        return str(name)

    def _choice(self, key: Key, kind: str, content: Any) -> Choice | None:
        if not isinstance(content, dict) or not isinstance(content.get("use"), str):
            names = ", ".join(dict.fromkeys(part.name for part in registry.parts(kind)))
            held = (
                f"{written(content)} is not of the form {{use: NAME, …}}"
                if not isinstance(content, dict)
                else "needs 'use', a name"
            )
            self.refuse(key, f"{held}; there are: {names}")
            return None
        try:
            part = registry.find(kind, content["use"])
            given = {name: value for name, value in content.items() if name != "use"}
            options, faults = part.signature().validate(part.name, given)
        except PluginError as error:
            self.refuse((*key, "use"), str(error))
            return None
        for name, message in faults:
            self.refuse((*key, name), message)
        return Choice(kind, part.name, options, part)

    def _settings(self, section: str, settings: type) -> Any:
        content = self.content[section]
        if not isinstance(content, dict):
            self.refuse(
                (section,),
                f"{written(content)} is not a mapping of options; there are: {', '.join(settings_signature(settings).options)}",
            )
            return None
        options, faults = settings_signature(settings).validate(section, content)
        for name, message in faults:
            self.refuse((section, name), message)
        if (
            section == "optimizer"
            and isinstance(options["use"], str)
            and (names := optimizers())
            and options["use"] not in names
        ):
            self.refuse(
                (section, "use"),
                f"no optimizer named '{options['use']}' in torch or timm; {advice(options['use'], names)}",
            )
        return None if faults else settings(**options)


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.y*ml"))[:10]
    return f": {', '.join(names)}" if names else ""


def _near(path: Path) -> str:
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return f"; there is no folder {path.parent} either"
    near = nearest(path.name, names)
    return (
        f"; did you mean {' or '.join(str(path.with_name(name)) for name in near)}?" if near else ""
    )
