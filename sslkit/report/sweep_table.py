"""Builds the tables of a sweep from its table.json, as text."""

from collections.abc import Mapping
from typing import Any

from sslkit.recipe.words import written
from sslkit.report.pivot import Metric
from sslkit.report.tables import Table

HEADLINE_ONLY = "untrained"
"""Candidate that is shown for the headline alone."""


def tables(table: Mapping[str, Any]) -> list[Table]:
    """Return one table for each evaluation: values × metrics, and the untrained encoder."""
    made = [_table(table, found) for found in table["evaluations"]]
    if made:
        made[-1].below.append(_legend(table))
    return made


def _table(table: Mapping[str, Any], found: Mapping[str, Any]) -> Table:
    metrics = [Metric(**metric) for metric in found["metrics"]]
    columns = ["recipe"] if len(table["recipes"]) > 1 or not table["keys"] else []
    columns += [*table["keys"], *(metric.title for metric in metrics)]
    made = Table(found["evaluation"], (*columns, f"untrained, {metrics[0].name}", "seeds"))
    for row in found["rows"]:
        cells = [row["recipe"]] if columns[0] == "recipe" else []
        cells += [shown(value) for value in row["values"].values()]
        cells += [_cell(row["scores"]["trained"], metric) for metric in metrics]
        cells += [_cell(row["scores"]["untrained"], metrics[0]), str(len(row["seeds"]))]
        made.rows.append(tuple(cells))
    for metric in metrics:
        chance = found["chance"].get(metric.name)
        if chance is not None:
            made.below.append(f"chance, {metric.name}: {metric.text(chance)}")
    return made


def shown(value: Any) -> str:
    """Format a value of the recipe."""
    return value if isinstance(value, str) else written(value)


def _cell(scores: Mapping[str, Any], metric: Metric) -> str:
    score = scores.get(metric.name)
    if score is None:
        return "-"
    mean = metric.text(score["mean"])
    if score["interval"] is None:
        return mean
    low, high = clipped(score["interval"], metric)
    return f"{mean} [{metric.text(low)}, {metric.text(high)}]"


def clipped(interval: tuple[float, float], metric: Metric) -> tuple[float, float]:
    """Clip an interval to the range of its metric."""
    ends = [None if end is None else end / metric.factor for end in metric.ends()]
    low, high = interval
    low = low if ends[0] is None else max(low, ends[0])
    high = high if ends[1] is None else min(high, ends[1])
    return low, high


def _legend(table: Mapping[str, Any]) -> str:
    most = 0
    for found in table["evaluations"]:
        most = max([most, *(len(row["seeds"]) for row in found["rows"])])
    if most < 2:
        return "one training seed, so there is no interval: --seeds 3"
    return f"[low, high]: 95 % CI of the mean over {most} training seeds, Student's t"
