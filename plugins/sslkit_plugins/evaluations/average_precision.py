"""Average precision of ranked images, by the three rules in use, and its mean over classes."""

import math
from statistics import fmean
from typing import Literal

import numpy as np

Rule = Literal["envelope", "11-point", "step"]

ROUNDING = 1e-9
"""Tolerance of recall at the eleven points, where 3/10 and 0.3 differ by rounding."""


def area(precision: np.ndarray, recall: np.ndarray, rule: Rule) -> float:
    """Return the average precision for precision [n] at ascending recall [n], the last 1.

    envelope: area below the largest precision at this recall or a higher one (VOC since 2010,
    Everingham et al. 2015, section 3.2). 11-point: mean of the same at recalls 0, 0.1, … 1 (VOC
    2007). step: Σ (recallᵢ − recallᵢ₋₁) · precisionᵢ, as in scikit-learn.
    """
    if rule == "step":
        return float(np.diff(recall, prepend=0.0) @ precision)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "envelope":
        return float(np.diff(recall, prepend=0.0) @ best)
    points = np.searchsorted(recall, np.linspace(0, 1, 11) - ROUNDING)
    return float(best[np.minimum(points, len(best) - 1)].mean())


class Ranking:
    """Images in the order of their scores for one class, without those that are ignored.

    `scores` are [n], `tags` [n]: 1 positive, 0 negative, −1 ignored. Images of equal score share a
    rank, so their order does not matter.
    """

    def __init__(self, scores: np.ndarray, tags: np.ndarray) -> None:
        kept = np.flatnonzero(tags != -1)
        self.order = kept[np.argsort(-scores[kept], kind="stable")]
        self.positive = tags[self.order] == 1
        ranked = scores[self.order]
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def average_precision(self, rule: Rule, counts: np.ndarray | None = None) -> float:
        """Return the average precision, NaN without positives.

        `counts` [n] is the number of times that each image appears, by default 1.
        """
        present = np.ones(len(self.order)) if counts is None else counts[self.order]
        hits = np.cumsum(present * self.positive)[self.ends]
        if not len(hits) or hits[-1] == 0:
            return math.nan
        seen = np.cumsum(present)[self.ends]
        return area(hits / np.maximum(seen, 1), hits / hits[-1], rule)


class Rankings:
    """The rankings of all classes, for scores [N,C] and tags int8 [N,C]."""

    def __init__(self, scores: np.ndarray, tags: np.ndarray, rule: Rule) -> None:
        self.rule, self.count = rule, len(scores)
        self.classes = [Ranking(*columns) for columns in zip(scores.T, tags.T, strict=True)]

    def value(self, number: int | None = None, rows: np.ndarray | None = None) -> float:
        """Return the AP of class `number`, or the mean over classes.

        `rows` int64 are resampled images. Classes without positives among them are left out.
        """
        counts = None if rows is None else np.bincount(rows, minlength=self.count)
        chosen = self.classes if number is None else [self.classes[number]]
        values = [ranking.average_precision(self.rule, counts) for ranking in chosen]
        finite = [value for value in values if math.isfinite(value)]
        return fmean(finite) if finite else math.nan


def prevalence(tags: np.ndarray) -> np.ndarray:
    """Return the fraction of positives of each class, float [C]: the AP of a constant score."""
    return (tags == 1).sum(0) / np.maximum((tags != -1).sum(0), 1)
