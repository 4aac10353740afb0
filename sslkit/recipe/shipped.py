"""Finds, shows and copies shipped recipes by name, such as `imagenet/pirl_jigsaw`."""

import os
import re
import shlex
from pathlib import Path

from sslkit.errors import Fault, RecipeError, printable
from sslkit.recipe.document import Document
from sslkit.recipe.header import Header, read
from sslkit.recipe.words import joined, near_files, nearest

ENDING = ".yaml"
PREFIX = "recipes/"
LISTED = "`sslkit recipes` lists the shipped ones"


def folder() -> Path:
    """Return the folder of shipped recipes, in the wheel or in a clone of the repository."""
    package = Path(__file__).parents[1]
    packaged = package / "shipped_recipes"
    return packaged if packaged.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Return the names of the shipped recipes; subfolders come last."""
    root = folder()
    found = [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob(f"*{ENDING}")]
    return sorted(found, key=lambda name: (name.count("/"), name))


def short_name(text: str) -> str:
    """Remove `.yaml` and a leading `recipes/` from a name."""
    return text.replace(os.sep, "/").removeprefix(PREFIX).removesuffix(ENDING)


def find(text: str) -> Path:
    """Return an existing file, else the shipped recipe of that name.

    Returns the path unchanged if neither exists.
    """
    given = Path(os.path.expanduser(text))
    name = short_name(text)
    if os.path.isfile(given) or name not in names():
        return given
    return folder() / f"{name}{ENDING}"


def unknown(text: str) -> str:
    """Return a message for a recipe that does not exist, with similar names."""
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
    """Return shipped recipes of which the text is the first word, or with a similar name.

    If there are none, returns those with the text as prefix or suffix.
    """
    name, known = short_name(text), names()
    if variants := [other for other in known if other.startswith(f"{name}_")]:
        return variants
    place, _, last = name.rpartition("/")
    places = {other.rpartition("/")[0] for other in known}
    if place and not nearest(place, sorted(places)):
        return []
    if near := nearest(name, known):
        return near
    return [other for other in known if last and (other.startswith(last) or other.endswith(last))]


def text(name: str) -> str:
    """Return the text of a shipped recipe. Raises RecipeError if there is none of that name."""
    short = short_name(name)
    if short not in names():
        meant = similar(name)
        remedy = f"did you mean {' or '.join(meant)}?" if meant else ""
        message = joined(remedy, LISTED) if remedy else LISTED
        raise RecipeError(Fault("", f"no recipe of that name is shipped; {message}", name))
    return (folder() / f"{short}{ENDING}").read_text(encoding="utf-8")


def header(name: str) -> Header:
    """Return the header of a shipped recipe."""
    return read(text(name))


def method(name: str) -> str:
    """Return the method name of a shipped recipe."""
    sections = Document(text(name)).value
    return str(sections["method"]["use"])


def copy(name: str, to: str | None = None) -> Path:
    """Copy a shipped recipe to a new file, name the recipe after it, and return its path.

    By default, `to` is the recipe's file name in the working directory. Raises RecipeError if the
    file exists or cannot be written.
    """
    content, short = text(name), short_name(name)
    path = Path(os.path.expanduser(to or f"{short.rpartition('/')[2]}{ENDING}"))
    if os.path.isdir(path):
        message = f"is a folder; name a file in it, such as {path / Path(short).name}{ENDING}"
        raise RecipeError(Fault("", message, str(path)))
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(_renamed(content, short, str(path)))
    except FileExistsError as error:
        message = "exists, and nothing is overwritten; name another file"
        raise RecipeError(Fault("", message, str(path))) from error
    except FileNotFoundError as error:
        made = shlex.quote(str(path.parent))
        message = f"the folder {path.parent} does not exist; make it: mkdir -p {made}"
        raise RecipeError(Fault("", message, str(path))) from error
    except (OSError, ValueError) as error:
        message = f"cannot be written: {error}; name another file"
        raise RecipeError(Fault("", message, str(path))) from error
    return path


def _renamed(content: str, name: str, path: str) -> str:
    """Replace the file name in a recipe's commands, and remove the `name` line."""
    command = re.compile(rf"(sslkit \w+ ){re.escape(name)}(?= |$)")
    given = printable(shlex.quote(path))
    lines = []
    for line in content.splitlines():
        if line.startswith("name:"):
            continue
        if line.startswith("#"):
            line = command.sub(lambda found: found[1] + given, line)
        lines.append(line)
    return "\n".join(lines) + "\n"
