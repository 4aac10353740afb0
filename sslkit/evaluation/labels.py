"""Reads labels, groups and splits of images from a CSV file."""

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sslkit.errors import DataError, counted, printable
from sslkit.recipe.words import near_files, written

NEEDED, OPTIONAL = ("name", "label"), ("group", "split")
"""Columns of the file, in any order and any case."""
DELIMITERS = ",;\t"
SEVERAL = "|"
"""Separates several labels of one image."""
TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "dev", "test", "testing")
"""Values of the column split, in lower case. The first of VAL with images validates."""


class LabelRow(NamedTuple):
    """A row of the file: line number, image, labels, and group and split if there are columns."""

    line: int
    name: str
    labels: tuple[str, ...]
    group: str | None
    split: str | None


@dataclass(frozen=True)
class LabelFile:
    """The rows of a file with the columns name and label, and its SHA-256.

    `unread` are the names of other columns.
    """

    path: Path
    sha256: str
    rows: list[LabelRow]
    unread: tuple[str, ...] = ()

    def at(self, row: LabelRow) -> str:
        """Return the place of a row for messages."""
        return f"{self.path}, line {row.line}"


def read_labels(path: Path) -> LabelFile:
    """Read a CSV file, separated by commas, semicolons or tabs. Raises DataError."""
    try:
        content = path.expanduser().read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"the file of labels {path} does not exist{near_files(path)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the file of labels {path} cannot be read: {reason}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line} is not UTF-8 text; save the file as UTF-8") from error
    delimiter, columns = _columns(path, text)
    rows = list(_rows(path, text, delimiter, columns))
    if not rows:
        raise DataError(f"{path} has no rows below its first line; add one row per image")
    unread = [name for name in columns if name and name not in (*NEEDED, *OPTIONAL)]
    return LabelFile(path, hashlib.sha256(content).hexdigest(), rows, tuple(unread))


def _columns(path: Path, text: str) -> tuple[str, list[str]]:
    """Return the delimiter and the names of the columns, in lower case."""
    for delimiter in DELIMITERS:
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            columns = [cell.strip().lower() for cell in next(reader, [])]
        except csv.Error:
            continue
        if set(NEEDED) <= set(columns):
            for name in (*NEEDED, *OPTIONAL):
                if columns.count(name) > 1:
                    raise DataError(f"{path} has several columns {name}; keep one of them")
            return delimiter, columns
    first = (text.splitlines() or [""])[0]
    raise DataError(
        f"{path} needs the columns name and label; its first line must be name,label or "
        f"name,label,group,split, separated by commas, semicolons or tabs, but it is "
        f"{written(first)}"
    )


def _rows(path: Path, text: str, delimiter: str, columns: list[str]) -> Iterator[LabelRow]:
    """Yield the rows that are not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    next(reader)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {line} is not a row of CSV ({error}); correct its quotes"
            ) from error
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            remedy = "add the missing ones"
            if len(cells) > len(columns):
                remedy = f"put a cell that contains {written(delimiter)} in double quotes"
            raise DataError(
                f"{path}, line {line} has {counted(len(cells), 'cell')} and its first line "
                f"{len(columns)}; {remedy}"
            )
        yield _row(path, line, dict(zip(columns, map(str.strip, cells), strict=True)))


def _row(path: Path, line: int, cells: dict[str, str]) -> LabelRow:
    """Check the cells of a row."""
    for column in (*NEEDED, *OPTIONAL):
        if column in cells and not cells[column]:
            image = f" of {printable(cells['name'])}" if cells["name"] else ""
            raise DataError(
                f"{path}, line {line}: the {column}{image} is empty; fill it in, or remove the row"
            )
    labels = [label.strip() for label in cells["label"].split(SEVERAL)]
    if "" in labels:
        raise DataError(
            f"{path}, line {line}: one of the labels {written(cells['label'])} is empty; write "
            f"several labels as cat{SEVERAL}dog"
        )
    split = cells.get("split")
    if split is not None and split.lower() not in (*TRAIN, *VAL):
        raise DataError(
            f"{path}, line {line}: {written(split)} is not a split; write one of "
            f"{', '.join((*TRAIN, *VAL))}"
        )
    split = None if split is None else split.lower()
    return LabelRow(line, cells["name"], tuple(labels), cells.get("group"), split)
