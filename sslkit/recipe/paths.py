"""Paths → data sets: which installed data set opens a folder or a file."""

import fnmatch
import os
from pathlib import Path
from typing import Any

from sslkit.errors import PluginError
from sslkit.recipe import registry
from sslkit.recipe.words import near_files


def opened_by(data: str, preferred: str | None = None) -> dict[str, Any] | str:
    """Return the section of a recipe that opens a path, or what is wrong with the path.

    Data sets claim paths with their class attribute `opens`. The `preferred` one is asked first,
    then the most specific claim wins: a file by its ending, a folder by a file in it, any folder.
    """
    path = Path(os.path.abspath(os.path.expanduser(data)))
    if not os.path.exists(path):
        return f"there is no such folder or file{near_files(path)}"
    claims: dict[str, tuple[int, str]] = {}
    for part in registry.parts("datasets"):
        for pattern, option in _patterns(part).items():
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


def _patterns(part: registry.Part) -> dict[str, str]:
    """Return what a data set opens: pattern → the option that gets the path."""
    try:
        return part.signature().attributes.get("opens") or {}
    except PluginError:
        return {}


def _rank(pattern: str, path: Path) -> int:
    """Return how specific a claim is: 0 for none, 1 for any folder, 2 for a file or a marked folder."""
    if pattern == "/":
        return int(os.path.isdir(path))
    if pattern.startswith("/"):
        return 2 * os.path.isfile(path / pattern[1:])
    return 2 * (os.path.isfile(path) and fnmatch.fnmatch(path.name.lower(), pattern))
