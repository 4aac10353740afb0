"""95 % intervals of proportions, means, paired differences and resampled statistics."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import numpy as np

from sslkit.interfaces import Interval

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles of Student's t with 1 … 9 degrees of freedom."""
FEWEST = 10
"""Smallest number of independent values for intervals of means and resampled statistics."""


def t_95(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t.

    Uses the Cornish-Fisher series to the third order from 10 degrees of freedom on.
    """
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    return Z_95 + 2.372 / freedom + 2.823 / freedom**2 + 2.556 / freedom**3


def wilson(proportion: float, count: float) -> tuple[float, float]:
    """Return the score interval of a proportion of `count` images (Wilson 1927)."""
    square = Z_95 * Z_95 / count
    middle = (proportion + square / 2) / (1 + square)
    variance = proportion * (1 - proportion) + square / 4
    margin = math.sqrt(square * variance) / (1 + square)
    return max(0.0, middle - margin), min(1.0, middle + margin)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's interval of the mean of at least two values."""
    margin = t_95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - margin, fmean(values) + margin


def newcombe(both: float, first: float, second: float, neither: float) -> tuple[float, float]:
    """Return the score interval of the difference of two paired proportions, first − second.

    The arguments are the numbers of images that both, only the first, only the second, and neither
    classify correctly. Newcombe 1998, Statistics in Medicine 17, 2635–2650, method 10.
    """
    count = both + first + second + neither
    one, other = (both + first) / count, (both + second) / count
    low_1, high_1 = wilson(one, count)
    low_2, high_2 = wilson(other, count)
    covariance = both * neither - first * second
    if covariance > 0:
        covariance = max(0.0, covariance - count / 2)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def margin(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))

    difference = one - other
    return (
        difference - margin(one - low_1, high_2 - other),
        difference + margin(high_1 - one, other - low_2),
    )


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    groups: Sequence[object] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """Return the percentile interval of `statistic(rows)` over resampled images.

    `rows` int64 are image numbers, 0 … count−1, with repetitions. With `groups`, one per image, the
    groups are resampled. Non-finite values are dropped. Returns None for fewer than ten images or
    groups.
    """
    found = resample(statistic, count, groups=groups, draws=draws, seed=seed)
    return None if found is None else percentiles(*found)


def resample(
    statistic: Callable[[np.ndarray], float | np.ndarray],
    count: int,
    *,
    groups: Sequence[object] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, str] | None:
    """Return the values of a statistic in every draw of `bootstrap`, [draws,…], and a description.

    Equal arguments draw the same images. Returns None for fewer than ten images or groups.
    """
    members, unit = _members(count, groups)
    if len(members) < FEWEST:
        return None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = rng.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[number] for number in chosen])))
    return np.array(values), f"{len(members)} {unit}, bootstrap of {draws}"


def too_few(count: int, groups: Sequence[object] | None) -> list[str]:
    """Return a note on images or groups that are too few for intervals; [] if they suffice."""
    members, unit = _members(count, groups)
    if len(members) >= FEWEST:
        return []
    return [f"values without a 95 % CI: {len(members)} {unit} are too few; it needs {FEWEST}"]


def percentiles(values: np.ndarray, of: str) -> Interval | None:
    """Return the percentile interval of the finite values; None if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return Interval(float(low), float(high), of)


def _members(count: int, groups: Sequence[object] | None) -> tuple[list[np.ndarray], str]:
    """Return the images of each group, or single images, and the name of the unit."""
    if groups is None:
        return list(np.arange(count).reshape(-1, 1)), "images"
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    return [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)], "groups"
