"""Resolves paths in recipes and finds the data set that opens a path."""

import fnmatch
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslkit.errors import PluginError
from sslkit.recipe import evaluations, groups, registry
from sslkit.recipe.contents import PARTS, Choice, Recipe
from sslkit.recipe.words import near_files


def opened_by(data: str, preferred: str | None = None) -> dict[str, Any] | str:
    """Return the `data` section that opens a path, or a message if no data set does.

    Data sets claim paths with their class attribute `opens`. The most specific claim wins: a file
    pattern or a folder with a marker file, then any folder. `preferred`, the recipe's own data set,
    wins a tie, and may claim more paths with `opens_if_named`.
    """
    path = Path(os.path.abspath(os.path.expanduser(data)))
    if not os.path.exists(path):
        return f"there is no such folder or file{near_files(path)}"
    claims: dict[str, tuple[int, str]] = {}
    for part in registry.parts("datasets"):
        for pattern, option in _patterns(part, part.name == preferred).items():
            rank = _rank(pattern, path)
            if rank > claims.get(part.name, (0, ""))[0]:
                claims[part.name] = rank, option
    best = max((rank for rank, _ in claims.values()), default=0)
    found = [name for name, (rank, _) in claims.items() if rank == best]
    if not found:
        return "no installed data set opens this file"
    if preferred in claims and claims[preferred][0] == best:
        found = [preferred]
    if len(found) > 1:
        return f"several data sets open this path: {', '.join(found)}; name one in the recipe"
    return {"use": found[0], claims[found[0]][1]: str(path)}


def _patterns(part: registry.Part, is_named: bool) -> dict[str, str]:
    """Return the patterns that a data set opens, each with the option for the path."""
    try:
        attributes = part.signature().attributes
    except PluginError:
        return {}
    patterns = attributes.get("opens_if_named") if is_named else None
    return {**(attributes.get("opens") or {}), **(patterns or {})}


def _rank(pattern: str, path: Path) -> int:
    """Rank a claim: 0 no match, 1 any folder, 2 a file or a folder with a marker file."""
    if pattern == "/":
        return int(os.path.isdir(path))
    if pattern.startswith("/"):
        return 2 * os.path.isfile(path / pattern[1:])
    return 2 * (os.path.isfile(path) and fnmatch.fnmatch(path.name.lower(), pattern))


def absolute(recipe: Recipe, bases: Iterable[Path] = (Path(),)) -> Recipe:
    """Return a recipe with absolute paths, valid from any working directory.

    A relative path resolves below the first of `bases` that contains it; otherwise it stays
    unchanged. Paths are the options in a part's `opens` and `paths`, and options of type Path.
    """
    bases = tuple(bases)
    sections: dict[str, Any] = {"heads": dict(recipe.heads)}
    for section, name, choice in _choices(recipe):
        options = dict(choice.options)
        for option, value in _paths(choice):
            options[option] = type(value)(_found(str(value), bases))
        if section == "heads":
            sections[section][name] = replace(choice, options=options)
        else:
            sections[section] = replace(choice, options=options)
    if recipe.train.evaluate:
        evaluate = {name: dict(options or {}) for name, options in recipe.train.evaluate.items()}
        for name, option, value in _evaluation_paths(recipe):
            evaluate[name][option] = type(value)(_found(str(value), bases))
        sections["train"] = replace(recipe.train, evaluate=evaluate)
    return replace(recipe, **sections)


def missing(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the paths of a recipe that do not exist, with their dotted keys."""
    found = []
    for section, name, choice in _choices(recipe):
        for option, value in _paths(choice):
            if not os.path.lexists(os.path.expanduser(value)):
                found.append((".".join(filter(None, (section, name, option))), str(value)))
    for name, option, value in _evaluation_paths(recipe):
        if not os.path.lexists(os.path.expanduser(value)):
            found.append((f"train.evaluate.{name}.{option}", str(value)))
    return found


def _choices(recipe: Recipe) -> Iterator[tuple[str, str, Choice]]:
    """Yield section, name of the head ("" for other parts), and part."""
    for section in PARTS:
        chosen = getattr(recipe, section)
        named = chosen if isinstance(chosen, dict) else {"": chosen}
        for name, choice in named.items():
            if choice is not None:
                yield section, name, choice


def _evaluation_paths(recipe: Recipe) -> Iterator[tuple[str, str, str | Path]]:
    """Yield name, option and value of the paths in `train.evaluate`."""
    for repeat, choice in evaluations.repeated(recipe.train):
        common = {"data": repeat.data, "labels": repeat.labels}
        for option, value in common.items():
            if value is not None:
                yield choice.use, option, value
        for option, path in _paths(choice):
            yield choice.use, option, path


def _paths(choice: Choice) -> Iterator[tuple[str, str | Path]]:
    """Yield the options of a part that are paths, with their values."""
    try:
        signature = choice.part.signature()
    except PluginError:
        return
    words: dict[str, tuple[str, ...]] = {}
    for name, option in signature.options.items():
        if Path in map(groups.bare, groups.members(groups.bare(option.annotation))):
            words[name] = ()
    for attribute in ("opens", "opens_if_named"):
        for name in (signature.attributes.get(attribute) or {}).values():
            words[name] = ()
    words |= signature.attributes.get("paths") or {}
    for name in words:
        value = choice.options.get(name)
        if isinstance(value, str | Path) and str(value) and str(value) not in words[name]:
            yield name, value


def _found(text: str, bases: tuple[Path, ...]) -> str:
    for base in bases:
        path = os.path.abspath(base / os.path.expanduser(text))
        if os.path.lexists(path):
            return path
    return text
