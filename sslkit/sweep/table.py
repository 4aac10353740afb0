"""Makes the table of a sweep from the results in its run folders."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sslkit.evaluation.intervals import student
from sslkit.report import sweep_figure
from sslkit.report.pivot import CHANCE, Pivot
from sslkit.runs import files
from sslkit.sweep.axis import value_of
from sslkit.sweep.cell import Cell
from sslkit.sweep.home import OPTION, Home

FORMAT = 1
CANDIDATES = ("trained", "untrained")


def collect(home: Home, cells: Sequence[Cell], keys: Sequence[str]) -> dict[str, Any]:
    """Return the table of a grid as plain data, from the folders of its finished cells."""
    groups: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.recipe_name, tuple(cell.values.values())), []).append(cell)
    finished = [cell for cell in cells if home.is_finished(cell)]
    found = [_evaluation(home, name, groups) for name in home.evaluations]
    return {
        "format": FORMAT,
        "recipes": list(dict.fromkeys(cell.recipe_name for cell in cells)),
        "keys": list(keys),
        "evaluations": [one for one in found if one is not None],
        "finished": len(finished),
        "cells": len(cells),
    }


def _evaluation(
    home: Home, name: str, groups: Mapping[tuple[str, tuple[str, ...]], list[Cell]]
) -> dict[str, Any] | None:
    """Return the rows of one evaluation; None without a result."""
    metrics: list[dict[str, Any]] = []
    chance: dict[str, float | None] = {}
    rows = []
    for (recipe, _), cells in groups.items():
        results: dict[int, Pivot] = {}
        for cell in cells:
            result = home.result(cell, name)
            if result is not None:
                results[cell.seed] = Pivot(result)
                metrics = metrics or result["metrics"]
                chance = chance or scores_of(results[cell.seed], CHANCE)
        values = {key: value_of(text) for key, text in cells[0].values.items()}
        rows.append(_row(recipe, values, results))
    if not metrics:
        return None
    return {"evaluation": name, "metrics": metrics, "chance": chance, "rows": rows}


def _row(recipe: str, values: dict[str, Any], results: Mapping[int, Pivot]) -> dict[str, Any]:
    """Return the scores of one combination of values over its training seeds."""
    scores: dict[str, dict[str, Any]] = {}
    for candidate in CANDIDATES:
        by_metric: dict[str, list[float]] = {}
        for pivot in results.values():
            for metric, value in scores_of(pivot, candidate).items():
                if value is not None:
                    by_metric.setdefault(metric, []).append(value)
        scores[candidate] = {metric: summary(found) for metric, found in by_metric.items()}
    return {"recipe": recipe, "values": values, "seeds": sorted(results), "scores": scores}


def scores_of(pivot: Pivot, candidate: str) -> dict[str, float | None]:
    """Return the values of a candidate by metric, in its first row."""
    for (_, name), entry in pivot.entries.items():
        if name == candidate:
            return {metric: score["value"] for metric, score in entry["scores"].items()}
    return {}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean over training seeds, with Student's 95 % interval for two or more."""
    interval = list(student(values)) if len(values) > 1 else None
    return {"mean": fmean(values), "interval": interval, "values": list(values)}


def headline(home: Home, cell: Cell) -> str:
    """Describe the main score of each evaluation of a finished cell."""
    words = []
    for name in home.evaluations:
        result = home.result(cell, name)
        if result is not None:
            pivot = Pivot(result)
            metric = pivot.metrics[0]
            value = scores_of(pivot, CANDIDATES[0]).get(metric.name)
            words.append(f"{name} {metric.name} {metric.text(value)} {metric.unit}".rstrip())
    return ", ".join(words)


def write(home: Home, table: Mapping[str, Any], title: str) -> None:
    """Write table.json, table.csv and sweep.png. Raises CheckpointError if this fails."""
    text = json.dumps(table, indent=1, ensure_ascii=False)
    files.write_text(home.folder / "table.json", text, OPTION)
    files.write_text(home.folder / "table.csv", _csv(table), OPTION)
    sweep_figure.draw(table, home.folder / "sweep.png", title=title, option=OPTION)


def _csv(table: Mapping[str, Any]) -> str:
    """Return one line for each recipe, combination of values, evaluation, metric, candidate."""
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    columns = ("evaluation", "metric", "candidate", "mean", "low", "high", "seeds", "values")
    lines.writerow(["recipe", *table["keys"], *columns])
    for found in table["evaluations"]:
        for row in found["rows"]:
            for candidate, scores in row["scores"].items():
                for metric, score in scores.items():
                    low, high = score["interval"] or ("", "")
                    numbers = [score["mean"], low, high, len(score["values"])]
                    each = " ".join(map(str, score["values"]))
                    given = [found["evaluation"], metric, candidate, *numbers, each]
                    lines.writerow([row["recipe"], *row["values"].values(), *given])
    return written.getvalue()
