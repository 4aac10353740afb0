"""Writes what is generated: docs/reference.md, and tables between markers in README and docs.

python scripts/reference.py            # write
python scripts/reference.py --check    # name what is not current, and exit with code 1

Parts come from signatures and docstrings, recipes from the headers of their files. A marker is
`<!-- NAME -->`; the text from there to `<!-- /NAME -->` is replaced. `method_blocks.py` has the
blocks of docs/methods/*.md.
"""

import re
import sys
import textwrap
from pathlib import Path

import method_blocks

from sslkit.recipe import SCHEDULES, optimizers, registry, sections, shipped
from sslkit.recipe.signature import Signature
from sslkit.recipe.tables import Row, group_tables, option_rows

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference.md"
MARKED = (ROOT / "README.md", ROOT / "docs" / "recipes.md")


def table(columns: Row, rows: list[Row]) -> list[str]:
    """Return a table in Markdown; the first and the third column are code."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def code(rows: list[Row]) -> list[Row]:
    """Return the rows of options with names and defaults as code."""
    marked = []
    for name, words, default, *description in rows:
        default = "**required**" if default == "required" else f"`{default}`"
        marked.append((f"`{name}`", words, default, *description))
    return marked


def options(signature: Signature) -> list[str]:
    """Return the tables of the options and of the groups within them."""
    columns, rows = option_rows(signature)
    if not rows:
        return ["No options.", ""]
    lines = table(columns, code(rows))
    for group in group_tables(signature):
        columns, rows = option_rows(group.signature)
        lines += [f"**{group.title}**", "", *table(columns, code(rows))]
        if group.presets:
            presets = [(f"`{name}`", f"`{values}`") for name, values in group.presets]
            lines += table(("preset", "values; other options keep their default"), presets)
    return lines


def page() -> str:
    """Return the whole reference."""
    lines = [
        "# Reference of parts and settings",
        "",
        "`python scripts/reference.py` writes this page from signatures and docstrings. `sslkit",
        "plugins show NAME` prints the same for every installed part, yours included.",
        "",
    ]
    for kind in registry.KINDS:
        lines += [f"## {kind}", ""]
        for part in registry.parts(kind):
            if part.distribution == "sslkit":
                signature = part.signature()
                lines += [f"### `{part.name}`", "", signature.doc, "", *options(signature)]
    lines += ["## Settings of a recipe", ""]
    common = optimizers.common_signature()
    lines += ["### `optimizer`", "", common.doc, "", *options(common)]
    lines += ["### `schedule`", ""]
    for name in SCHEDULES:
        signature = sections.signature("schedule", name)
        assert signature is not None
        lines += [f"`use: {name}`", "", signature.doc, "", *options(signature)]
    train = sections.signature("train")
    assert train is not None
    lines += ["### `train`", "", train.doc, "", *options(train)]
    return "\n".join(lines).rstrip() + "\n"


def methods() -> str:
    """Return the table of methods: page, what each learns from, paper, recipes."""
    recipes_of: dict[str, list[str]] = {}
    for name in shipped.names():
        recipes_of.setdefault(shipped.method(name), []).append(name)
    rows = []
    for method, names in recipes_of.items():
        shown = f"`{method}`"
        page = method_blocks.PAGES / f"{method}.md"
        if page.exists():
            shown = f"[{shown}]({page.relative_to(ROOT).as_posix()})"
        said = shipped.header(names[0])
        listed = ", ".join(f"`{name}`" for name in names)
        rows.append((shown, said.title, said.citation, listed))
    return "\n".join(table(("method", "what it learns from", "paper", "recipes"), rows))


def recipes() -> str:
    """Return the table of recipes with data, budget and expected number."""
    rows = []
    for name in shipped.names():
        said = shipped.header(name)
        rows.append((f"`{name}`", said.data, said.budget, said.expected))
    return "\n".join(table(("recipe", "data", "budget", "expected"), rows))


def parts() -> str:
    """Return one line for each kind of part, with the names of what comes with sslkit."""
    lines = []
    for kind in registry.KINDS:
        ours = [part.name for part in registry.parts(kind) if part.distribution == "sslkit"]
        listed = f"* {kind}: {', '.join(f'`{name}`' for name in ours)}"
        lines += textwrap.wrap(listed, 100, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([*lines, ""])


BLOCKS = {"methods": methods, "recipes": recipes, "parts": parts}


def filled(text: str) -> str:
    """Return a page with every block between markers written anew."""
    for name, block in BLOCKS.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if marked.search(text):
            body = f"\n{block()}\n".replace("\n\n\n", "\n\n")
            text = marked.sub(lambda found, body=body: found[1] + body + found[2], text)
    return text


def main() -> int:
    """Write every page, or with `--check` name those that are not current."""
    pages = {PAGE: page()}
    for path in MARKED:
        pages[path] = filled(path.read_text(encoding="utf-8"))
    for path in sorted(method_blocks.PAGES.glob("*.md")):
        try:
            pages[path] = method_blocks.filled(path.read_text(encoding="utf-8"), path)
        except method_blocks.MarkerError as error:
            print(error)
            return 1
    stale = []
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not current; run: python scripts/reference.py")
        return int(bool(stale))
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
