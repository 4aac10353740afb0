"""The recipes that come with sslkit, by name: `pirl_jigsaw`, `imagenet/pirl_jigsaw`."""

import os
from pathlib import Path

from sslkit.recipe.words import joined, near_files, nearest

ENDING = ".yaml"
PREFIX = "recipes/"
LISTED = "`sslkit recipes` lists the shipped ones"


def folder() -> Path:
    """Return the folder of the shipped recipes: the wheel's, or the repository's in a clone."""
    package = Path(__file__).parents[1]
    packaged = package / "shipped_recipes"
    return packaged if packaged.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Return the names of the shipped recipes, those in subfolders last."""
    root = folder()
    found = [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob(f"*{ENDING}")]
    return sorted(found, key=lambda name: (name.count("/"), name))


def short_name(text: str) -> str:
    """Return a name without `.yaml` and without a leading `recipes/`."""
    return text.replace(os.sep, "/").removeprefix(PREFIX).removesuffix(ENDING)


def find(text: str) -> Path:
    """Return the file that a user means: an existing file, else the shipped recipe of that name.

    Returns the path as it was given where there is neither.
    """
    given = Path(os.path.expanduser(text))
    name = short_name(text)
    if os.path.isfile(given) or name not in names():
        return given
    return folder() / f"{name}{ENDING}"


def unknown(text: str) -> str:
    """Say that a text names neither a file nor a shipped recipe, and what may have been meant."""
    message = "there is no such file or shipped recipe"
    near = near_files(Path(text))
    meant = similar(text)
    if meant and near.endswith("?"):
        message += f"{near[:-1]} or {' or '.join(meant)}?"
    elif meant:
        message += f"; did you mean {' or '.join(meant)}?"
    else:
        message += near
    return joined(message, LISTED)


def similar(text: str) -> list[str]:
    """Return the shipped recipes whose name is near a text, or begins or ends with it."""
    name, known = short_name(text), names()
    if near := nearest(name, known):
        return near
    last = name.rpartition("/")[2]
    return [other for other in known if last and (other.startswith(last) or other.endswith(last))]
