"""The recipes that come with sslkit, by name: `pirl_jigsaw`, `imagenet/pirl_jigsaw`."""

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
    """Return what a shipped recipe says of itself."""
    return read(text(name))


def method(name: str) -> str:
    """Return the name of a shipped recipe's method."""
    sections = Document(text(name)).value
    return str(sections["method"]["use"])


def copy(name: str, to: str | None = None) -> Path:
    """Write a shipped recipe to a new file, named after that file, and return the file's path.

    `to` is the recipe's own file name in the working directory if left out. Raises RecipeError
    where the file exists, or if it cannot be written.
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
    """Return a recipe whose commands name another file, without the line that names its runs."""
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
