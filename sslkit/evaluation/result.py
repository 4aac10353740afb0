"""Computes scores, intervals and paired differences; converts results to JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor

from sslkit.errors import PluginError, SslkitError
from sslkit.evaluation.intervals import FEWEST, bootstrap, newcombe, student, wilson
from sslkit.interfaces import (
    Curves,
    Entry,
    Histogram,
    Interval,
    Metric,
    Outcome,
    Result,
    Score,
)
from sslkit.recipe.signature import plain, sentence, written
from sslkit.report.text import result_text

FORMAT = 1
"""Version of the JSON."""
UNCHANGED = "no image differs"
"""Description of a paired difference of two candidates that agree on every image."""


def array(outcome: Outcome) -> np.ndarray | None:
    """Return outcomes per image, bool or float64 [n]; None for a number or a Score."""
    if isinstance(outcome, Tensor):
        outcome = outcome.detach().cpu().numpy()
    if not isinstance(outcome, np.ndarray) or outcome.ndim == 0:
        return None
    return outcome if outcome.dtype == bool else outcome.astype(np.float64)


def score(
    outcomes: Sequence[Outcome], metric: Metric, groups: Sequence[object] | None = None
) -> Score:
    """Return the score of one metric for the outcomes of all probe seeds.

    Hits have Wilson's interval, values per image Student's. With `groups`, intervals come from
    resampled groups. Several seeds add an interval over seeds.
    """
    first, arrays = outcomes[0], _arrays(outcomes)
    values = tuple(_value(outcome) for outcome in outcomes)
    intervals = [*first.intervals] if isinstance(first, Score) else []
    if arrays and math.isfinite(fmean(values)):
        found = _over_images(_mean_of(arrays), arrays[0].dtype == bool, groups)
        if found is not None:
            intervals.append(_clipped((found.low, found.high), metric, found.of))
    if len(set(values)) > 1 and math.isfinite(fmean(values)):
        intervals.append(_clipped(student(values), metric, f"{len(values)} probe seeds"))
    return Score(values, tuple(intervals))


def difference(
    outcomes: Sequence[Outcome],
    others: Sequence[Outcome],
    groups: Sequence[object] | None = None,
) -> Interval | None:
    """Return the interval of the paired difference of two candidates on the same images.

    Averages over seeds. Returns None without outcomes per image, or with too few.
    """
    ours, theirs = _arrays(outcomes), _arrays(others)
    if not ours or len(ours) != len(theirs):
        return None
    change = _mean_of(ours) - _mean_of(theirs)
    if not np.isfinite(change).all():
        return None
    same = all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
    of = UNCHANGED if same else f"{len(change)} images, paired"
    if groups is not None:
        found = bootstrap(lambda rows: float(change[rows].mean()), len(change), groups=groups)
        return None if found is None else Interval(found.low, found.high, f"{found.of}, paired")
    if ours[0].dtype == bool and theirs[0].dtype == bool:
        return Interval(*newcombe(*_agreement(ours, theirs)), of)
    if same:
        return Interval(0.0, 0.0, of)
    if len(change) < FEWEST:
        return None
    return Interval(*student(change.tolist()), of)


def _agreement(
    ours: list[np.ndarray], theirs: list[np.ndarray]
) -> tuple[float, float, float, float]:
    """Return the numbers of hits of both, of ours only, of theirs only and of neither.

    They are means over seeds.
    """
    both = fmean(float((one & other).sum()) for one, other in zip(ours, theirs, strict=True))
    first = fmean(float((one & ~other).sum()) for one, other in zip(ours, theirs, strict=True))
    second = fmean(float((~one & other).sum()) for one, other in zip(ours, theirs, strict=True))
    return both, first, second, len(ours[0]) - both - first - second


def _value(outcome: Outcome) -> float:
    if isinstance(outcome, Score):
        return outcome.value
    values = array(outcome)
    return float(outcome) if values is None else float(values.mean())


def _arrays(outcomes: Sequence[Outcome]) -> list[np.ndarray]:
    """Return the outcomes per image of every seed; [] if a seed has none."""
    found = [values for values in map(array, outcomes) if values is not None]
    return found if len(found) == len(outcomes) else []


def _mean_of(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean outcome of every image over seeds."""
    return np.mean(arrays, axis=0)


def _over_images(
    values: np.ndarray, hits: bool, groups: Sequence[object] | None
) -> Interval | None:
    if groups is not None:
        return bootstrap(lambda rows: float(values[rows].mean()), len(values), groups=groups)
    of = f"{len(values)} images"
    if hits:
        return Interval(*wilson(float(values.mean()), len(values)), of)
    if len(values) < FEWEST:
        return None
    return Interval(*student(values.tolist()), of)


def _clipped(ends: tuple[float, float], metric: Metric, of: str) -> Interval:
    """Clip an interval to the metric's range."""
    low, high = axis(metric)
    start = ends[0] if low is None else max(low, ends[0])
    stop = ends[1] if high is None else min(high, ends[1])
    return Interval(start, stop, of)


def axis(metric: Metric) -> tuple[float | None, float | None]:
    """Return the ends of a metric's axis, by default 0 and 1 for percentages."""
    if metric.unit != "%":
        return metric.low, metric.high
    low = 0.0 if metric.low is None else metric.low
    return low, 1.0 if metric.high is None else metric.high


# ------------------------------------------------------------------------------------- JSON


def document(result: Result, name: str, owner: str) -> dict[str, Any]:
    """Return the result of evaluation `name` as plain data, with None for NaN.

    Raises PluginError, which names `owner`, if the result breaks the contract.
    """
    wrong = fault(result)
    if wrong is not None:
        raise PluginError(f"{owner} returned {wrong}")
    try:
        made = {
            "format": FORMAT,
            "evaluation": name,
            "metrics": [asdict(metric) for metric in result.metrics],
            "entries": [_entry(entry) for entry in result.entries],
            "figures": [_figure(figure) for figure in result.figures],
            "protocol": result.protocol,
        }
        return json.loads(json.dumps(_numbers(plain(made)), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{owner} returned a protocol that JSON cannot hold: {sentence(error)}"
        ) from error


@dataclass(frozen=True, repr=False)
class EvaluationResult(Result):
    """The result of a named evaluation; `print` shows its tables.

    `metrics` and `entries` have all numbers, `protocol` has the conditions of the measurement.
    """

    evaluation: str = ""
    owner: str = ""
    """The evaluation and its distribution, for messages."""

    def score(
        self, metric: str | None = None, candidate: str | None = None, row: str | None = None
    ) -> Score:
        """Return a score with `value`, the mean over seeds, `values` and `intervals`.

        By default, `metric` is the headline, `candidate` the evaluated encoder, and `row` the
        candidate's first one. Raises SslkitError if there is no such score.
        """
        metric = self.metrics[0].name if metric is None else metric
        candidate = self._subject() if candidate is None else candidate
        for entry in self.entries:
            fits = entry.candidate == candidate and row in (None, entry.row)
            if fits and metric in entry.scores:
                return entry.scores[metric]
        names = ", ".join(dict.fromkeys(entry.candidate for entry in self.entries))
        metrics = ", ".join(metric.name for metric in self.metrics)
        where = "" if row is None else f" in row {written(row)}"
        raise SslkitError(
            f"there is no score {written(metric)} of {written(candidate)}{where}; there are the "
            f"metrics {metrics} and the candidates {names}"
        )

    def _subject(self) -> str:
        """Return the first candidate that is not a baseline."""
        for candidate in self.protocol.get("candidates", []):
            if not candidate["baseline"]:
                return candidate["name"]
        return self.entries[0].candidate

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data, the JSON of `sslkit eval`.

        Raises PluginError if the result breaks the contract of evaluations.
        """
        return document(self, self.evaluation, self.owner)

    def __repr__(self) -> str:
        return result_text(self.as_dict())


def _entry(entry: Entry) -> dict[str, Any]:
    scores = {name: _score(found) for name, found in entry.scores.items()}
    return {**asdict(entry), "scores": scores}


def _score(found: Score) -> dict[str, Any]:
    intervals = [asdict(interval) for interval in found.intervals]
    return {"value": found.value, "values": found.values, "intervals": intervals}


def _figure(figure: Histogram | Curves) -> dict[str, Any]:
    return {"kind": type(figure).__name__.lower(), **asdict(figure)}


def _numbers(value: Any) -> Any:
    """Convert NumPy's numbers to Python's, and non-finite ones to None."""
    if isinstance(value, Mapping):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    if isinstance(value, np.ndarray):
        return _numbers(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def fault(result: Any) -> str | None:
    """Return how a result breaks the contract; None if it does not."""
    if not isinstance(result, Result):
        return f"{written(type(result).__name__)} instead of a Result"
    names = [metric.name for metric in result.metrics if isinstance(metric, Metric)]
    if not names or len(names) != len(result.metrics) or len(set(names)) != len(names):
        return "no metrics, or one that is not a Metric, or two of one name"
    if not result.entries:
        return "no entries"
    for entry in result.entries:
        wrong = _entry_fault(entry, names)
        if wrong is not None:
            return wrong
    for figure in result.figures:
        wrong = _figure_fault(figure)
        if wrong is not None:
            return wrong
    for name, text in result.files.items():
        if not isinstance(text, str) or PurePath(name).name != name:
            return f"a file {written(name)} that is not text with a plain name"
    if not isinstance(result.protocol, Mapping):
        return f"a protocol that is not a mapping: {written(type(result.protocol).__name__)}"
    return None


def _entry_fault(entry: Any, names: list[str]) -> str | None:
    if not isinstance(entry, Entry):
        return f"{written(type(entry).__name__)} instead of an Entry"
    where = f"{entry.candidate} in row {written(entry.row)}"
    for name, found in entry.scores.items():
        if name not in names:
            return f"a score {written(name)} of {where}, which is none of its metrics"
        if not isinstance(found, Score) or not found.values:
            return f"no Score with values for {written(name)} of {where}"
        if not all(isinstance(value, int | float | np.number) for value in found.values):
            return f"values of {written(name)} of {where} that are not numbers"
        if not all(isinstance(interval, Interval) for interval in found.intervals):
            return f"intervals of {written(name)} of {where} that are not of type Interval"
    return None


def _figure_fault(figure: Any) -> str | None:
    if isinstance(figure, Histogram):
        bins = len(figure.edges) - 1
        if bins < 1 or any(len(counts) != bins for counts in figure.counts.values()):
            return f"a histogram {written(figure.title)} whose counts are not one fewer than edges"
        return None
    if isinstance(figure, Curves):
        if any(len(xs) != len(ys) for xs, ys in figure.lines.values()):
            return f"curves {written(figure.title)} with unequal numbers of x and y"
        return None
    return f"a figure that is neither Histogram nor Curves: {written(type(figure).__name__)}"


def outcome_fault(outcomes: Any, names: Sequence[str], count: int) -> str | None:
    """Return the error in the outcomes of a scoring function for `count` images, or None."""
    if not isinstance(outcomes, Mapping):
        return f"its score returned {written(type(outcomes).__name__)}, not a dict"
    if set(outcomes) != set(names):
        return f"its score returned {written(sorted(outcomes))} for the metrics {written([*names])}"
    for name, outcome in outcomes.items():
        if isinstance(outcome, Score | int | float | np.number):
            continue
        if isinstance(outcome, Tensor | np.ndarray) and outcome.ndim == 0:
            continue
        values = array(outcome)
        if values is None:
            return f"{written(name)} is neither a number, nor an array, nor a Score"
        if values.shape != (count,):
            return f"{written(name)} has outcomes {list(values.shape)} for {count} images"
    return None
