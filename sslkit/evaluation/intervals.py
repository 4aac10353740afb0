"""95 % intervals: of shares, of means, over seeds, of paired differences, by resampling."""

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
"""Below this number of independent values, means and resampled statistics get no interval."""


def t_95(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t.

    From 10 degrees of freedom on by the Cornish-Fisher series to the third order.
    """
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    return Z_95 + 2.372 / freedom + 2.823 / freedom**2 + 2.556 / freedom**3


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the score interval of a share of `count` images (Wilson 1927)."""
    square = Z_95 * Z_95 / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval of the mean of at least two values by Student's t."""
    half = t_95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def newcombe(both: float, first: float, second: float, neither: float) -> tuple[float, float]:
    """Return the score interval of the difference of two paired shares, first − second.

    The arguments count the images that both, only the first, only the second, and neither got
    right. Newcombe 1998, Statistics in Medicine 17, 2635–2650, method 10.
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

    def half(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))

    difference = one - other
    return (
        difference - half(one - low_1, high_2 - other),
        difference + half(high_1 - one, other - low_2),
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

    `rows` int64 are numbers of images, 0 … count−1, some of them several times. With `groups`, one
    per image, whole groups are resampled. Values that are not finite are left out. None below
    ten images or groups.
    """
    members, unit = _members(count, groups)
    if len(members) < FEWEST:
        return None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = rng.integers(len(members), size=len(members))
        value = statistic(np.concatenate([members[number] for number in chosen]))
        if math.isfinite(value):
            values.append(value)
    if not values:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high), f"{len(members)} {unit}, bootstrap of {draws}")


def _members(count: int, groups: Sequence[object] | None) -> tuple[list[np.ndarray], str]:
    """Return the images of each group, or each image by itself, and what they are called."""
    if groups is None:
        return list(np.arange(count).reshape(-1, 1)), "images"
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    return [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)], "groups"
