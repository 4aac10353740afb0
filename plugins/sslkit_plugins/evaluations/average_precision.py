"""Average precision of ranked images, by the three rules in use, and its mean over classes."""

import math
from collections.abc import Callable
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


def average_precisions(
    scores: np.ndarray, tags: np.ndarray, rule: Rule
) -> Callable[[np.ndarray | None], np.ndarray]:
    """Return a function of resampled images that computes the AP of every class, float [C].

    `scores` are [N,C], `tags` int8 [N,C]. The function takes image numbers int64, or None for
    every image once. The AP of a class without positives is NaN.
    """
    rankings = [Ranking(*columns) for columns in zip(scores.T, tags.T, strict=True)]

    def compute(rows: np.ndarray | None) -> np.ndarray:
        counts = None if rows is None else np.bincount(rows, minlength=len(scores))
        return np.array([ranking.average_precision(rule, counts) for ranking in rankings])

    return compute


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Return the mean of the finite values, [...,C] → [...]; NaN if there are none."""
    with np.errstate(invalid="ignore"):
        return np.nansum(values, -1) / np.isfinite(values).sum(-1)


def prevalence(tags: np.ndarray) -> np.ndarray:
    """Return the fraction of positives of each class, float [C]: the AP of a constant score."""
    return (tags == 1).sum(0) / np.maximum((tags != -1).sum(0), 1)
