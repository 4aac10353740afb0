"""Draws the figure of an evaluation from its JSON: bars of the headline, then its figures."""

import math
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sslkit.report.figures import log_axis, plain_axes, save
from sslkit.report.pivot import Metric, Pivot, interval
from sslkit.report.tables import heading

GREYS = ("0.45", "0.62", "0.78", "0.88")
"""Grey levels of the baselines; other candidates have colours."""
ROWS = 30
"""Largest number of rows that are drawn; the table has all."""
NAME, TITLE, HEADING = 30, 44, 80
"""Characters of a name, and per line of the titles of a small figure and of the picture."""


def picture(result: dict[str, Any], path: Path, option: str = "") -> Path:
    """Draw a bar with its 95 % interval for each row and candidate, and the figures below.

    One legend below them names the candidates. A single figure is as wide as the bars.

    Raises SslkitError if `path` cannot be written; the message names `option`, which selects
    another path.
    """
    pivot = Pivot(result)
    bars = _bars(pivot)
    lines = math.ceil(len(result["figures"]) / 2)
    high = 1.0 + 0.24 * len(bars) + 0.12 * min(len(pivot.rows), ROWS)
    figure = Figure(figsize=(7.5, high + 2.8 * lines), layout="constrained")
    grid = figure.add_gridspec(1 + lines, 2, height_ratios=[high, *[2.8] * lines])
    _draw_bars(plain_axes(figure.add_subplot(grid[0, :])), pivot, bars)
    candidates = [short(name) for name in pivot.candidates]
    named: dict[str, Artist] = {}
    for number, drawn in enumerate(result["figures"]):
        column = number % 2 if len(result["figures"]) > 1 else slice(None)
        axes = plain_axes(figure.add_subplot(grid[1 + number // 2, column]))
        _draw_figure(axes, drawn, _colours(pivot))
        handles, names = axes.get_legend_handles_labels()
        if set(names) <= set(candidates):
            named |= dict(zip(names, handles, strict=True))
        else:
            axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    if named:
        order = [name for name in candidates if name in named]
        handles = [named[name] for name in order]
        figure.legend(handles, order, loc="outside lower left", fontsize=7, frameon=False, ncols=3)
    return save(figure, path, option)


def _colours(pivot: Pivot) -> dict[str, str]:
    """Return the colour of each candidate, grey for baselines."""
    colours, coloured, grey = {}, 0, 0
    for name in pivot.candidates:
        if name in pivot.baselines:
            colours[name] = GREYS[min(grey, len(GREYS) - 1)]
            grey += 1
        else:
            colours[name] = f"C{coloured}"
            coloured += 1
    return colours


Bar = tuple[float, str, str, dict[str, Any]]
"""Vertical position, label, candidate, score."""


def _bars(pivot: Pivot) -> list[Bar]:
    """Return the bars from top to bottom, grouped by row."""
    metric, bars, place = pivot.metrics[0], [], 0.0
    several = len(pivot.rows) > 1
    for row in [*pivot.rows[:ROWS], None]:
        first = True
        for name in pivot.candidates:
            score = pivot.score(row, name, metric)
            if score is None:
                continue
            label = short(name)
            if several and row is not None and first:
                label = f"{short(row)}   {label}"
            bars.append((place, label, name, score))
            place, first = place + 1, False
        place += 0.5 if several else 0.0
    return bars


def _draw_bars(axes: Axes, pivot: Pivot, bars: list[Bar]) -> None:
    metric, colours = pivot.metrics[0], _colours(pivot)
    values, kinds = [], []
    for place, _, name, score in bars:
        if score["value"] is None:
            values.append((place, 0.0, "-"))
            continue
        value, shown = score["value"] * metric.factor, interval(score)
        axes.barh(place, value, height=0.8, color=colours[name])
        end = value
        if shown is not None:
            low, high = shown["low"] * metric.factor, shown["high"] * metric.factor
            reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(value, place, xerr=reach, color="black", linewidth=1, capsize=2)
            kinds.append(shown["of"])
            end = max(value, high)
        values.append((place, end, metric.text(score["value"])))
    axes.set_yticks([bar[0] for bar in bars], [bar[1] for bar in bars], fontsize=8)
    axes.set_ylim(max([bar[0] for bar in bars], default=0) + 0.7, -0.7)
    _set_ends(axes, metric, values)
    whisker = f"; whisker: 95 % CI over {' or '.join(dict.fromkeys(kinds))}" if kinds else ""
    drawn = f"; {ROWS} of {len(pivot.rows):,} rows" if len(pivot.rows) > ROWS else ""
    axes.set_xlabel(f"{metric.title}{whisker}{drawn}", fontsize=8)
    lines = filter(None, (heading(pivot.result), _subject(pivot.result)))
    title = "\n".join(textwrap.fill(line, HEADING) for line in lines)
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)


def short(name: str, length: int = NAME) -> str:
    """Replace the middle of a long name by an ellipsis."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[1 - length // 2 :]}"


def _subject(result: dict[str, Any]) -> str:
    """Return the last two folders of a result's run, its method and its step."""
    protocol = result["protocol"]
    if "run" not in protocol:
        return ""
    run = "/".join(Path(protocol["run"]).parts[-2:])
    method = f"method {protocol['method']}, " if "method" in protocol else ""
    return f"{run}, {method}step {protocol['step']:,}"


def _set_ends(axes: Axes, metric: Metric, values: list[tuple[float, float, str]]) -> None:
    """Set the ends of the axis, and write the values behind the bars."""
    low, high = metric.ends()
    if low is None:
        low = axes.get_xlim()[0]
    if high is None:
        high = axes.get_xlim()[1]
    room = 0.08 * (high - low)
    axes.set_xlim(low, high)
    for place, end, text in values:
        axes.text(max(end, 0.0) + room / 6, place, text, va="center", fontsize=8)
    if low < 0:
        axes.axvline(0, color="black", linewidth=0.8)


def _draw_figure(axes: Axes, drawn: dict[str, Any], colours: dict[str, str]) -> None:
    if drawn["kind"] == "histogram":
        _draw_histogram(axes, drawn, colours)
    else:
        for name, (xs, ys) in drawn["lines"].items():
            ys = [math.nan if value is None else value for value in ys]
            label = short(name, NAME if name in colours else TITLE)
            axes.plot(xs, ys, color=colours.get(name), label=label)
        if drawn["log"]:
            log_axis(axes)
        axes.set_ylabel(drawn["y"], fontsize=7)
    axes.set_xlabel(drawn["x"], fontsize=7)
    title = textwrap.fill(drawn["title"], TITLE)
    axes.set_title(title, fontsize=8, loc="left", parse_math=False)


def _draw_histogram(axes: Axes, drawn: dict[str, Any], colours: dict[str, str]) -> None:
    """Draw one outline per candidate; baselines are thin, candidates with a colour are shaded."""
    edges = drawn["edges"]
    for name, counts in drawn["counts"].items():
        colour = colours.get(name)
        if colour in GREYS:
            axes.stairs(counts, edges, color=colour, linewidth=1, label=short(name))
            continue
        axes.stairs(counts, edges, color=colour, fill=True, alpha=0.15)
        axes.stairs(counts, edges, color=colour, linewidth=1.5, label=short(name))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("images per bin", fontsize=7)
