"""Reads recipes and reports all faults together, with file, line, dotted key and remedy."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sslkit.errors import PluginError, RecipeError
from sslkit.recipe import registry, wiring
from sslkit.recipe import sections as settings
from sslkit.recipe.contents import HEAD, NAME, OPTIONAL, PARTS, SECTIONS, Choice, Recipe
from sslkit.recipe.document import Key
from sslkit.recipe.draft import Draft, Source
from sslkit.recipe.settings import SETTINGS, Cosine
from sslkit.recipe.words import advice, written

SINGLE = {
    "data": "training reads one data set",
    "optimizer": "one optimizer trains all weights",
}
"""Sections that might be written as lists → why there is one."""


def read(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    data: str | None = None,
    wired: bool = True,
    opened: bool = True,
) -> Recipe:
    """Read a recipe. Raises RecipeError with every fault; imports no torch.

    `source` is a path, the name of a shipped recipe (`pirl_jigsaw`), or a mapping of its sections.
    An existing file takes precedence over a shipped recipe. A recipe without `name` is named after
    its file, a mapping after its method.
    `overrides` have the form `section.key=value`. `data` is a folder, packed set or .npz file that
    replaces the recipe's data.
    `wired=False` skips checks between parts, for commands that use only some parts.
    `opened=False` accepts a data set that is not installed, for commands that read no images.
    """
    return _Reading(Draft(source, overrides, data)).recipe(wired, opened)


def placed(
    error: RecipeError, source: Source, *, overrides: Sequence[str] = (), data: str | None = None
) -> RecipeError:
    """Return an error whose faults have the file and line of their keys."""
    draft = Draft(source, overrides, data)
    for fault in error.faults:
        draft.refuse(tuple(fault.key.split(".")), fault.message)
    return RecipeError(*draft.ordered_faults())


def _no_mapping(section: str, content: Any) -> str:
    """Say that the content of a section is not a mapping with the name of a part."""
    if isinstance(content, list) and section in SINGLE:
        return f"{written(content)} is a list, but {SINGLE[section]}; write {{use: NAME, …}}"
    return f"{written(content)} is not of the form {{use: NAME, …}}"


class _Reading:
    """Validates a draft section by section and collects its faults."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.content = draft.content
        self.refuse = draft.refuse

    def recipe(self, wired: bool = True, opened: bool = True) -> Recipe:
        """Return the recipe. Raises RecipeError with every fault."""
        for section in self.content:
            if section not in SECTIONS:
                self.refuse((section,), f"no such section; {advice(section, SECTIONS)}")
        for section in SECTIONS:
            if section not in self.content and section not in OPTIONAL:
                self.refuse((section,), "a recipe needs this section")
        sections: dict[str, Any] = {
            "name": self._name(),
            "sampler": None,
            "schedule": Cosine(),
        }
        for section, kind in PARTS.items():
            if section in self.content and section != "heads":
                sections[section] = self._choice((section,), kind, self.content[section])
        if not opened:
            sections["data"] = self._absent(sections.get("data"))
        heads = self._heads()
        sections["heads"] = heads or {}
        for section in SETTINGS:
            if section in self.content:
                sections[section] = self._settings(section)
        self._check_weight_decay(sections.get("optimizer"), sections["schedule"])
        self._check_constant(heads, sections["schedule"])
        if heads is not None and wired:
            chosen = {name: value for name, value in sections.items() if name in self.content}
            if not opened:
                chosen.pop("data", None)
            for key, message in wiring.faults(chosen, heads):
                self.refuse(key, message)
        if self.draft.faults:
            raise RecipeError(*self.draft.ordered_faults())
        return Recipe(**sections)

    def _name(self) -> str:
        name = self.content.get("name", self.draft.name)
        if not isinstance(name, str):
            self.refuse(("name",), f"{written(name)} is not text; put it in quotes")
        elif not re.fullmatch(NAME, name):
            self.refuse(
                ("name",),
                f"{written(name)} cannot name a folder; use letters, digits, '_', '-' and '.', and "
                "begin with none of the last two",
            )
        return str(name)

    def _heads(self) -> dict[str, Choice | None] | None:
        """Return the heads by name; None if the section is not a mapping."""
        heads = self.content.get("heads", {})
        if not isinstance(heads, dict):
            example = "{image: {use: linear}}"
            message = f"{written(heads)} is not a mapping of heads, such as {example}"
            self.refuse(("heads",), message)
            return None
        for name in heads:
            if not re.fullmatch(HEAD, name):
                message = f"{written(name)} cannot name a head; use letters, digits and '_'"
                self.refuse(("heads", name), message)
        return {name: self._choice(("heads", name), "heads", heads[name]) for name in heads}

    def _choice(self, key: Key, kind: str, content: Any) -> Choice | None:
        """Return the part of a section with its options; None if it is missing or invalid."""
        if not isinstance(content, dict) or not isinstance(content.get("use"), str):
            names = ", ".join(dict.fromkeys(part.name for part in registry.parts(kind)))
            held = "needs 'use', a name"
            if not isinstance(content, dict):
                held = _no_mapping(key[0], content)
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
            below = (name,) if name in given else tuple(name.split("."))
            self.refuse((*key, *below), message)
            options.pop(below[0], None)  # Checks between parts skip it.
        return Choice(kind, part.name, options, part)

    def _absent(self, chosen: Choice | None) -> Choice | None:
        """Return the recipe's data set, even if it is not installed."""
        content = self.content.get("data")
        if chosen is not None or not isinstance(content, dict):
            return chosen
        use = content.get("use")
        if not isinstance(use, str):
            return None
        self.draft.faults = [f for f in self.draft.faults if f.key.partition(".")[0] != "data"]
        options = {name: value for name, value in content.items() if name != "use"}
        return Choice("datasets", use, options, registry.Part("datasets", use, "", "", "", ""))

    def _settings(self, section: str) -> Any:
        """Return the settings of a section; None if they are invalid."""
        content = self.content[section]
        if not isinstance(content, dict):
            known = settings.signature(section)
            names = ", ".join(known.options) if known else "use"
            message = f"{written(content)} is not a mapping of options; there are: {names}"
            if isinstance(content, list) and section in SINGLE:
                message = _no_mapping(section, content)
            self.refuse((section,), message)
            return None
        made, faults = settings.read(section, content)
        for name, message in faults:
            below = (name,) if name in content else tuple(name.split("."))
            self.refuse((section, *below), message)
        return made

    def _check_constant(self, heads: Mapping[str, Any] | None, schedule: Any) -> None:
        """Refuse a constant learning rate for heads that do not exist."""
        if heads is None or schedule is None:
            return
        for name in schedule.constant:
            if name not in heads:
                message = f"the recipe has no head named {written(name)}; {advice(name, heads)}"
                self.refuse(("schedule", "constant"), message)

    def _check_weight_decay(self, optimizer: Any, schedule: Any) -> None:
        """Refuse a schedule for a weight decay of 0."""
        if optimizer is None or schedule is None or schedule.final_weight_decay is None:
            return
        if optimizer.weight_decay == 0:
            self.refuse(
                ("schedule", "final_weight_decay"),
                "changes optimizer.weight_decay, which is 0, so nothing decays; set "
                "optimizer.weight_decay, or remove this: --set schedule.final_weight_decay=null",
            )
