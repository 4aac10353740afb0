"""Builds the tables of an evaluation from its JSON.

A result with one row becomes one table, candidates × metrics; others have one table per metric.
"""

from dataclasses import dataclass, field
from typing import Any

from sslkit.errors import counted
from sslkit.report.pivot import Metric, Pivot, interval

Cells = tuple[str, ...]


@dataclass
class Table:
    """A table of text with a title and lines below."""

    title: str
    columns: Cells
    rows: list[Cells] = field(default_factory=list)
    below: list[str] = field(default_factory=list)


def tables(result: dict[str, Any]) -> list[Table]:
    """Return the tables of a result, with notes and a legend below the last one."""
    pivot, legend = Pivot(result), Legend()
    if len(pivot.rows) <= 1:
        made = [_candidates(pivot, legend)]
    else:
        made = [_rows(pivot, metric, legend) for metric in pivot.metrics]
    made[0].title = f"{heading(result)}\n\n{made[0].title}".rstrip()
    made[-1].below += [*result["protocol"].get("notes", []), *legend.lines()]
    return made


def heading(result: dict[str, Any]) -> str:
    """Return the evaluation's name with the numbers of images and classes."""
    protocol = result["protocol"]
    if "train_images" not in protocol:
        return result["evaluation"]
    text = (
        f"{result['evaluation']}: {protocol['train_images']:,} training and "
        f"{protocol['val_images']:,} validation images"
    )
    if protocol.get("classes"):
        text += f", {counted(protocol['classes'], 'class', 'classes')}"
    return text


class Legend:
    """Marks for the kinds of intervals in the tables. The first kind has no mark."""

    MARKS = ("", "*", "**", "†", "‡")

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.subject: str | None = None
        """The candidate whose paired differences the tables show."""
        self.missing = False
        """True if a value is not finite."""

    def mark(self, of: str) -> str:
        """Return the mark of intervals over `of`."""
        if of not in self.kinds:
            self.kinds.append(of)
        return self.MARKS[min(self.kinds.index(of), len(self.MARKS) - 1)]

    def lines(self) -> list[str]:
        """Return the lines below the tables."""
        lines = []
        if self.missing:
            lines.append(
                "-: not a finite number, for example because features are not finite or all equal"
            )
        if self.kinds:
            kinds = [f"{self.mark(of)} over {of}".strip() for of in self.kinds]
            lines.append(f"[low, high]: 95 % CI {'; '.join(kinds)}")
        if self.subject is not None:
            difference = "95 % CI of the paired difference on the same images"
            lines.append(f"{self.subject} − other: {difference}")
        return lines


def _cell(score: dict[str, Any] | None, metric: Metric, legend: Legend) -> str:
    if score is None:
        return ""
    legend.missing = legend.missing or score["value"] is None
    shown = interval(score)
    if shown is None:
        return metric.text(score["value"])
    return f"{metric.text(score['value'])} {metric.range(shown)}{legend.mark(shown['of'])}"


def _difference(pivot: Pivot, row: str | None, other: str, metric: Metric, legend: Legend) -> str:
    """Format the paired difference to another candidate."""
    found = pivot.compared(row)
    if found is None or metric.name not in found[1].get(other, {}):
        return ""
    name, differences = found
    ours = pivot.score(row, name, metric)
    theirs = pivot.score(row, other, metric) or pivot.score(None, other, metric)
    if ours is None or theirs is None or None in (ours["value"], theirs["value"]):
        return ""
    legend.subject = name
    paired = differences[other][metric.name]
    change = ours["value"] - theirs["value"]
    same = f", {paired['of']}" if paired["of"].startswith("no ") else ""
    sign = "+" if change > 0 else ""
    return f"{sign}{metric.text(change)} {metric.range(paired)}{same}"


def _candidates(pivot: Pivot, legend: Legend) -> Table:
    """Return the table of one row: candidates × metrics, and the first metric's difference."""
    row = pivot.rows[0] if pivot.rows else None
    found, headline = pivot.compared(row), pivot.metrics[0]
    columns = ["", *(metric.title for metric in pivot.metrics)]
    if found is not None:
        headline = _first_compared(pivot, found[1])
        columns.append(f"{found[0]} − other, {headline.name}")
    table = Table("", tuple(columns))
    for name in pivot.candidates:
        cells = [name]
        for metric in pivot.metrics:
            score = pivot.score(row, name, metric) or pivot.score(None, name, metric)
            cells.append(_cell(score, metric, legend))
        if found is not None:
            cells.append(_difference(pivot, row, name, headline, legend))
        table.rows.append(tuple(cells))
    return table


def _first_compared(pivot: Pivot, differences: dict[str, Any]) -> Metric:
    """Return the first metric with a paired difference, else the headline."""
    for metric in pivot.metrics:
        if any(metric.name in metrics for metrics in differences.values()):
            return metric
    return pivot.metrics[0]


def _rows(pivot: Pivot, metric: Metric, legend: Legend) -> Table:
    """Return the table of one metric: rows × candidates, and their differences."""
    with_rows = {candidate for row, candidate in pivot.entries if row is not None}
    names = [name for name in pivot.candidates if name in with_rows]
    compared = [pivot.compared(row) for row in pivot.rows]
    subject = next((found[0] for found in compared if found is not None), None)
    others = [name for name in names if name != subject] if subject is not None else []
    columns = ["", *names, *(f"{subject} − {other}" for other in others)]
    table = Table(metric.title, tuple(columns))
    for row in pivot.rows:
        cells = [_cell(pivot.score(row, name, metric), metric, legend) for name in names]
        cells += [_difference(pivot, row, other, metric, legend) for other in others]
        table.rows.append((row, *cells))
    for name in pivot.everywhere():
        score = pivot.score(None, name, metric)
        if score is not None:
            table.below.append(f"{name}: {_cell(score, metric, legend)}")
    return table
