"""Table and figure of a search, from its table.json."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sslkit.report.figures import log_axis, plain_axes, save
from sslkit.report.pivot import Metric
from sslkit.report.sweep_table import shown
from sslkit.report.tables import Table

BEST = 10
"""Number of trials in the printed table."""


def table(found: Mapping[str, Any]) -> Table:
    """Return the table of the best trials."""
    metric, seeds = Metric(**found["metric"]), len(found["trials"][0]["seeds"])
    title = metric.title if seeds == 1 else f"{metric.title}, median of {seeds} seeds"
    made = Table(found["evaluation"], ("trial", *found["keys"], title, "untrained"))
    for trial in found["trials"][:BEST]:
        values = [_short(trial["values"][key]) for key in found["keys"]]
        scores = (metric.text(trial["score"]), metric.text(trial["untrained"]))
        made.rows.append((trial["trial"], *values, *scores))
    count = len(found["trials"])
    made.below.append(f"the best {min(BEST, count)} of {count} trials")
    made.below.append("The best score of many is too high: measure its values with new seeds.")
    return made


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def draw(found: Mapping[str, Any], path: Path, *, title: str, option: str = "") -> Path:
    """Draw the score of every trial against each value.

    Raises SslkitError if `path` cannot be written; the message names `option`, which selects
    another path.
    """
    metric, keys = Metric(**found["metric"]), found["keys"]
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(3.6 * columns, 0.4 + 3.0 * lines), layout="constrained")
    figure.suptitle(title, fontsize=9, parse_math=False, wrap=True)
    scores = [trial["score"] * metric.factor for trial in found["trials"]]
    for place, key in enumerate(keys, 1):
        axes = plain_axes(figure.add_subplot(lines, columns, place))
        values = [trial["values"][key] for trial in found["trials"]]
        axes.scatter(values, scores, s=14, color="C0", alpha=0.6, linewidths=0)
        axes.scatter(values[:1], scores[:1], s=40, color="C3", label="best")
        if key in found["log"]:
            log_axis(axes)
        axes.set_xlabel(key, fontsize=8, parse_math=False)
        if place == 1:
            axes.set_ylabel(f"{found['evaluation']}, {metric.title}", fontsize=8)
            figure.legend(fontsize=7, frameon=False, loc="outside upper right")
    return save(figure, path, option)
