"""Blocks of the pages docs/methods/*.md: the source of a function, and a method's recipes.

<!-- source MODULE:Class.method -->    …    <!-- end source -->
<!-- expected METHOD -->               …    <!-- end expected -->
"""

import ast
import re
import textwrap
from pathlib import Path

from sslkit.recipe import shipped

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "methods"
PLACES = {"sslkit": ROOT, "sslkit_plugins": ROOT / "plugins"}
"""Folders of the packages that a block may show."""

MARKER = re.compile(r"<!-- (end )?(source|expected)(?: (\S+))? -->")
BLOCK = re.compile(
    r"(<!-- (source|expected) (\S+) -->\n)((?:(?!<!-- ).)*?)(<!-- end \2 -->)", re.DOTALL
)

Definition = ast.ClassDef | ast.FunctionDef


class MarkerError(Exception):
    """A marker of a page that cannot be filled; the message names page and marker."""


def definition(tree: ast.AST, names: list[str]) -> Definition | None:
    """Return the class or function with these nested names, or None."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition) and node.name == names[0]:
            return node if len(names) == 1 else definition(node, names[1:])
    return None


def source(target: str, page: Path) -> str:
    """Return the code of `MODULE:Class.method`, after a link to its lines.

    Raises MarkerError if there is no such module or definition.
    """
    module, _, name = target.partition(":")
    place = PLACES.get(module.partition(".")[0], ROOT)
    path = place / f"{module.replace('.', '/')}.py"
    if not path.is_file():
        raise MarkerError(f"there is no module {module}")
    text = path.read_text(encoding="utf-8")
    node = definition(ast.parse(text), name.split("."))
    if node is None:
        raise MarkerError(f"{path.relative_to(ROOT)} defines no {name or 'such name'}")
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last = node.end_lineno
    code = textwrap.dedent("\n".join(text.splitlines()[first - 1 : last]))
    shown = path.relative_to(ROOT).as_posix()
    link = f"{relative(path, page.parent)}#L{first}-L{last}"
    return f"[`{shown}`, lines {first} to {last}]({link}):\n\n```python\n{code}\n```"


def relative(path: Path, folder: Path) -> str:
    """Return the path of a file of this repository relative to a folder of it."""
    steps = "../" * len(folder.relative_to(ROOT).parts)
    return f"{steps}{path.relative_to(ROOT).as_posix()}"


def recipes_of(method: str) -> list[str]:
    """Return the shipped recipes that use a method or bear its name."""
    found = []
    for name in shipped.names():
        if method in (shipped.method(name), name.rpartition("/")[2]):
            found.append(name)
    return found


def expected(method: str, page: Path) -> str:
    """Return the table of a method's recipes. Raises MarkerError if there are none."""
    names = recipes_of(method)
    if not names:
        raise MarkerError(f"no recipe uses the method '{method}'")
    lines = ["| recipe | budget | expected |", "|---|---|---|"]
    for name in names:
        said = shipped.header(name)
        link = relative(shipped.folder() / f"{name}{shipped.ENDING}", page.parent)
        lines.append(f"| [`{name}`]({link}) | {said.budget} | {said.expected} |")
    return "\n".join(lines)


FILLS = {"source": source, "expected": expected}


def filled(text: str, page: Path) -> str:
    """Return the text of a page with every block written anew.

    Raises MarkerError for a marker without its pair or with an unknown name, and for a recipe that
    two blocks list.
    """
    where = page.relative_to(ROOT)
    listed: set[str] = set()

    def written(found: re.Match[str]) -> str:
        kind, name = found[2], found[3]
        if kind == "expected":
            again = listed.intersection(recipes_of(name))
            if again:
                message = f"another block lists {', '.join(sorted(again))}; remove one block"
                raise MarkerError(f"{where}: <!-- {kind} {name} -->: {message}")
            listed.update(recipes_of(name))
        try:
            body = FILLS[kind](name, page)
        except MarkerError as error:
            raise MarkerError(f"{where}: <!-- {kind} {name} -->: {error}") from error
        return f"{found[1]}\n{body}\n\n{found[5]}"

    unpaired = MARKER.search(BLOCK.sub("", text))
    if unpaired is not None:
        raise MarkerError(f"{where}: {unpaired[0]} has no pair, or its name is missing")
    return BLOCK.sub(written, text)
