"""Draws the figure of a sweep from its table.json.

One numeric key gives lines, one key of names gives bars, two keys give heat maps.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sslkit.report.figures import plain_axes, save
from sslkit.report.pivot import Metric
from sslkit.report.sweep_table import clipped, shown

LOG_FROM = 20
"""Ratio of the largest to the smallest positive value from which an axis is logarithmic."""

APART = 0.008
"""Distance between lines, as a share of the axis, so that intervals do not hide each other."""

LETTERS = 60
"""Characters below an axis, with three between names, above which names are rotated."""


def draw(table: Mapping[str, Any], path: Path, *, title: str, option: str = "") -> Path | None:
    """Draw one panel for each evaluation; heat maps have one for each recipe.

    Returns None without results. Raises SslkitError if `path` cannot be written; the message
    names `option`, which selects another path.
    """
    panels = _panels(table)
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(6.4 * columns, 0.4 + 3.6 * lines), layout="constrained")
    figure.suptitle(title, fontsize=9, parse_math=False, wrap=True)
    for place, panel in enumerate(panels, 1):
        axes = plain_axes(figure.add_subplot(lines, columns, place))
        _draw(axes, table, panel)
    return save(figure, path, option)


def _panels(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the evaluation and the rows of each panel."""
    panels = []
    for found in table["evaluations"]:
        rows = [row for row in found["rows"] if row["scores"]["trained"]]
        groups = [rows]
        if len(table["keys"]) == 2:
            groups = [_of(rows, name) for name in table["recipes"]]
        panels += [{**found, "rows": group} for group in groups if group]
    return panels


def _of(rows: list[dict[str, Any]], recipe: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["recipe"] == recipe]


def _draw(axes: Axes, table: Mapping[str, Any], panel: Mapping[str, Any]) -> None:
    keys, metric = table["keys"], Metric(**panel["metrics"][0])
    if len(keys) == 2:
        _heat_map(axes, keys, panel["rows"], metric)
        name = panel["rows"][0]["recipe"]
        title = f"{name}: {panel['evaluation']}, {metric.title}"
        axes.set_title(title, fontsize=8, loc="left", parse_math=False)
        return
    values: list[Any] = []
    for row in panel["rows"]:
        values += row["values"].values()
    if len(keys) == 1 and all(map(_is_number, values)):
        _lines(axes, table, panel, metric)
    else:
        _bars(axes, table, panel["rows"], metric)
    chance = panel["chance"].get(metric.name)
    if chance is not None:
        axes.axhline(
            chance * metric.factor, color="0.6", linewidth=1, linestyle=":", label="chance"
        )
    axes.set_ylabel(metric.title, fontsize=8)
    axes.set_title(_caption(panel), fontsize=8, loc="left", parse_math=False)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _caption(panel: Mapping[str, Any]) -> str:
    seeds = [len(row["seeds"]) for row in panel["rows"]]
    if max(seeds) < 2:
        return f"{panel['evaluation']}; one training seed"
    return f"{panel['evaluation']}; mean and 95 % CI over {max(seeds)} training seeds"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points(
    rows: list[dict[str, Any]], candidate: str, metric: Metric
) -> tuple[list[float], list[list[float]]]:
    """Return means, and the lengths of the intervals below and above: [points], [2,points]."""
    means, below, above = [], [], []
    for row in rows:
        score = row["scores"][candidate].get(metric.name)
        mean = math.nan if score is None else score["mean"]
        low = high = mean
        if score is not None and score["interval"] is not None:
            low, high = clipped(score["interval"], metric)
        means.append(mean * metric.factor)
        below.append(max(0.0, mean - low) * metric.factor)
        above.append(max(0.0, high - mean) * metric.factor)
    return means, [below, above]


def _lines(axes: Axes, table: Mapping[str, Any], panel: Mapping[str, Any], metric: Metric) -> None:
    key = table["keys"][0]
    ticks = sorted({row["values"][key] for row in panel["rows"]})
    logarithmic = ticks[0] > 0 and ticks[-1] / ticks[0] >= LOG_FROM
    if logarithmic:
        axes.set_xscale("log")
    for number, name in enumerate(table["recipes"]):
        rows = _of(panel["rows"], name)
        rows.sort(key=lambda row: float(row["values"][key]))
        xs = [row["values"][key] for row in rows]
        for candidate, style in (("trained", "-"), ("untrained", "--")):
            place = len(axes.containers) - len(table["recipes"]) + 0.5
            means, reach = _points(rows, candidate, metric)
            label = f"{name}, untrained" if candidate == "untrained" else name
            faint = 0.5 if candidate == "untrained" else 1.0
            axes.errorbar(
                _moved(xs, ticks, place * APART, logarithmic),
                means,
                yerr=reach,
                label=label,
                color=f"C{number}",
                alpha=faint,
                linestyle=style,
                marker="o",
                markersize=3,
                capsize=2,
            )
    _name_ticks(axes, ticks, [shown(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(key, fontsize=8, parse_math=False)


def _moved(xs: list[float], ticks: list[float], share: float, logarithmic: bool) -> list[float]:
    """Move positions along the axis by a share of its length."""
    if logarithmic:
        return [x * (ticks[-1] / ticks[0]) ** share for x in xs]
    return [x + share * (ticks[-1] - ticks[0]) for x in xs]


def _name_ticks(axes: Axes, places: Iterable[float], names: list[str]) -> None:
    """Name the ticks of the horizontal axis. Names that are too long side by side are rotated."""
    axes.set_xticks(list(places), names, fontsize=7)
    if sum(len(name) + 3 for name in names) > LETTERS:
        for label in axes.get_xticklabels():
            label.set(rotation=60, ha="right", rotation_mode="anchor")


def _bars(axes: Axes, table: Mapping[str, Any], rows: list[dict[str, Any]], metric: Metric) -> None:
    places = np.arange(len(rows))
    for offset, (candidate, colour) in zip(
        (-0.2, 0.2), (("trained", "C0"), ("untrained", "0.75")), strict=True
    ):
        means, reach = _points(rows, candidate, metric)
        axes.bar(places + offset, means, 0.4, yerr=reach, capsize=2, color=colour, label=candidate)
    names = []
    for row in rows:
        several = len(table["recipes"]) > 1 or not row["values"]
        words = [row["recipe"]] if several else []
        names.append(", ".join([*words, *map(shown, row["values"].values())]))
    _name_ticks(axes, places, names)
    axes.set_xlabel(", ".join(table["keys"]), fontsize=8, parse_math=False)


def _heat_map(axes: Axes, keys: list[str], rows: list[dict[str, Any]], metric: Metric) -> None:
    xs = list(dict.fromkeys(shown(row["values"][keys[0]]) for row in rows))
    ys = list(dict.fromkeys(shown(row["values"][keys[1]]) for row in rows))
    grid = np.full((len(ys), len(xs)), math.nan)
    for row in rows:
        place = ys.index(shown(row["values"][keys[1]])), xs.index(shown(row["values"][keys[0]]))
        score = row["scores"]["trained"].get(metric.name)
        grid[place] = math.nan if score is None else score["mean"] * metric.factor
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (line, column), value in np.ndenumerate(grid):
        colour = "white" if value < middle else "black"
        text = metric.text(value / metric.factor)
        axes.text(column, line, text, ha="center", va="center", color=colour, fontsize=8)
    _name_ticks(axes, range(len(xs)), xs)
    axes.set_yticks(range(len(ys)), ys, fontsize=7)
    axes.set_xlabel(keys[0], fontsize=8, parse_math=False)
    axes.set_ylabel(keys[1], fontsize=8, parse_math=False)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes).ax.tick_params(labelsize=7)
