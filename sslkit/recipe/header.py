"""The comment at the top of a recipe: title, paper, command, data, budget, expected number."""

import re
from dataclasses import dataclass

FIELDS = ("paper", "command", "data", "budget", "expected")

_FIELD = re.compile(rf"({'|'.join(FIELDS)}): +(.*)")
_ARXIV = re.compile(r"arXiv:[\w.]+")


@dataclass(frozen=True)
class Header:
    """Fields of a recipe's header; "" for a missing field."""

    title: str
    paper: str = ""
    command: str = ""
    data: str = ""
    budget: str = ""
    expected: str = ""

    @property
    def citation(self) -> str:
        """Return authors, year and arXiv number, without the paper's title."""
        authors = self.paper.partition(', "')[0]
        number = _ARXIV.search(self.paper)
        return f"{authors}, {number[0]}" if number and number[0] not in authors else authors


def lines(text: str) -> list[str]:
    """Return the comment lines at the top of a recipe, without the `#`."""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        found.append(line[1:].removeprefix(" "))
    return found


def read(text: str) -> Header:
    """Read the header of a recipe's text.

    The first paragraph is the title. A field is `name: value`; continuation lines are indented.
    Other lines are notes and are ignored.
    """
    title, *rest = "\n".join(lines(text)).split("\n\n", 1)
    values: dict[str, str] = {}
    field = None
    for line in "".join(rest).split("\n"):
        if found := _FIELD.fullmatch(line):
            field = found[1]
            values[field] = found[2].strip()
        elif field is not None and line.startswith("  "):
            values[field] += f" {line.strip()}"
        else:
            field = None
    return Header(" ".join(title.split()), **values)
