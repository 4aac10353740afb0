"""Low-shot training: samples of a few images per class, and the result over samples."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sslkit.errors import DataError, counted, printable
from sslkit.evaluation import student
from sslkit.interfaces import Curves, Entry, Interval

SHOTS = [1, 2, 4, 8, 16, 32, 64, 96]
SAMPLES = 5
NEGATIVES = 19
"""Negatives per positive."""
CHANCE = "chance"

BySample = list[dict[int, float]]
"""The metric by number of shots, for each sample."""


def draw_few(tag: np.ndarray, k: int, seed: Sequence[int]) -> np.ndarray:
    """Return k positives and 19·k negatives, or all negatives if there are fewer, ascending.

    `tag` int8 [N] are the tags of one class; images with −1 are never drawn. The sample of a seed
    for a larger k contains those for smaller ones.
    """
    rng = np.random.default_rng(seed)
    positives = rng.permutation(np.flatnonzero(tag == 1))[:k]
    negatives = rng.permutation(np.flatnonzero(tag == 0))[: NEGATIVES * k]
    return np.sort(np.concatenate([positives, negatives]))


def negatives(k: int, available: np.ndarray) -> int:
    """Return the mean number of negatives of k shots over classes with `available` ones, [C]."""
    return round(float(np.minimum(NEGATIVES * k, available).mean()))


def possible(
    shots: Sequence[int], tags: np.ndarray, classes: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Return the numbers of shots that every class allows, and sentences about the others.

    Raises DataError if there are none.
    """
    positives, negatives = (tags == 1).sum(0), (tags == 0).sum(0)
    rarest, most = printable(classes[int(positives.argmin())]), int(positives.min())
    allowed = [k for k in shots if k <= most]
    shown = f"the class {rarest} has only {counted(most, 'positive training image')}"
    if not allowed:
        raise DataError(f"{shown}; choose fewer shots, such as --shots '[1]'")
    notes = []
    if len(allowed) < len(shots):
        left_out = ", ".join(str(k) for k in shots if k > most)
        notes.append(f"not measured: k = {left_out}, because {shown}")
    if negatives.min() < NEGATIVES * allowed[-1]:
        common, few = printable(classes[int(negatives.argmin())]), int(negatives.min())
        notes.append(
            f"the class {common} has only {counted(few, 'negative')}; samples that need more "
            f"({NEGATIVES}·k) use all of them"
        )
    if allowed[0] == 1:
        notes.append("k = 1: a single positive allows no folds, so the cost is the median")
    return allowed, notes


def over_samples(entry: Entry, entries: Sequence[Entry], metric: str) -> Entry:
    """Return an entry with Student's intervals of its paired differences over samples.

    Keeps the candidates of its `differences`. `entries` are those of all candidates and rows.
    """
    score = entry.scores[metric]
    ours, of = np.array(score.values), counted(len(score.values), "sample")
    differences = {}
    for other in entries:
        if other.candidate not in entry.differences or other.row != entry.row or len(ours) < 2:
            continue
        change = ours - np.array(other.scores[metric].values)
        if np.isfinite(change).all():
            found = Interval(*student(change.tolist()), f"{of}, paired")
            differences[other.candidate] = {metric: found}
    intervals = tuple(replace(interval, of=of) for interval in score.intervals)
    scores = {metric: replace(score, intervals=intervals)}
    return replace(entry, scores=scores, differences=differences)


def curves(shots: Sequence[int], values: dict[str, BySample], chance: float) -> Curves:
    """Return the mean mAP over samples by number of positives, %."""
    xs = [float(k) for k in shots]
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for name, samples in values.items():
        means = np.array([list(one.values()) for one in samples]).mean(0)
        lines[name] = xs, (100 * means).tolist()
    lines[CHANCE] = xs, [100 * chance] * len(xs)
    return Curves("mAP by positives per class", "positives per class", "mAP %", lines, log=True)


def not_finite(shots: Sequence[int], samples: int) -> BySample:
    """Return the scores of a candidate whose features are not finite."""
    return [dict.fromkeys(shots, math.nan) for _ in range(samples)]
