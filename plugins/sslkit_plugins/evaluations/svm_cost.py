"""Estimates the time of support vector machines from fits on a few images."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslkit.evaluation import Rows
from sslkit.interfaces import ImageSource, Probe
from sslkit_plugins.evaluations.support_vectors import FOLDS, Machines, is_wide, normalised

SAMPLE = 128
"""Largest number of images of a measured fit."""
CLASSES = 3
"""Largest number of classes whose fits are measured."""
NODE = 16
"""Size of a number in the solver (liblinear's feature_node), bytes."""

Key = tuple[str | None, str]
"""Row and candidate."""


class FitCost(NamedTuple):
    """Time of the fits of one class on features of length `width`, measured on `rows` rows."""

    rows: int
    width: int
    narrow: float
    """Time of a fit, summed over the costs, in the span of the rows, s."""
    factor: float
    """Time of the same fit at the full width, as a multiple."""
    rotation: float
    """Time of the rotation to the span, s."""
    costs: int
    """Number of costs to choose from."""

    def seconds(self, rows: int, folds: int = FOLDS) -> float:
        """Return the time of choosing a cost by `folds` folds and of the last fit on `rows` rows.

        The iterations of a fit hardly depend on the rows, because all features have length 1.
        """
        factor, rotation = self.factor, 0.0
        if is_wide(rows, self.width):
            share = (rows - self.rows) / max(1, self.width - self.rows)
            factor = 1 + (self.factor - 1) * min(1.0, max(0.0, share))
            rotation = self.rotation * (rows / self.rows) ** 2
        chosen = folds - 1 if self.costs > 1 and folds > 1 else 0
        fits = self.narrow * (chosen + 1 / self.costs)
        return rotation + fits * factor * rows / self.rows


def measure(probe: Probe, machines: Machines, *, layers: bool) -> dict[Key, FitCost]:
    """Measure fits for every row and candidate, on the features of a few training images."""
    count = min(SAMPLE, len(probe.train))
    chosen = np.sort(np.random.default_rng(0).permutation(len(probe.train))[:count])
    images = Rows(probe.train, chosen)
    classes = _classes(images)
    machines.fit(np.eye(2), np.array([True, False]), 1.0)  # imports scikit-learn
    found = {}
    for key, features in _features(probe, images, layers=layers).items():
        if features.isfinite().all():  # others are not fitted
            found[key] = _fits(normalised(features), classes, machines)
    return found


def _features(probe: Probe, images: ImageSource, *, layers: bool) -> dict[Key, Tensor]:
    """Return the features of some images by row and candidate."""
    batches: dict[Key, list[Tensor]] = {}
    for candidate in probe.candidates:
        for shown, _ in probe.images(images, view="squash", size=candidate.size):
            for layer, rows in candidate.embed(shown, layers=layers).items():
                row = layer if candidate.has_layers else None
                batches.setdefault((row, candidate.name), []).append(rows)
    return {key: torch.cat(rows) for key, rows in batches.items()}


def _classes(images: ImageSource) -> list[np.ndarray]:
    """Return the positives of a rare, a middling and a frequent class, bool [n]."""
    assert images.tags is not None
    positives = (images.tags == 1).T
    usable = [one for one in positives if min(one.sum(), (~one).sum()) >= FOLDS]
    if not usable:
        return [np.arange(len(images)) % 2 == 0]
    usable.sort(key=lambda one: int(one.sum()))
    places = np.linspace(0, len(usable) - 1, min(CLASSES, len(usable))).astype(int)
    return [usable[place] for place in places]


def _fits(rows: np.ndarray, classes: list[np.ndarray], machines: Machines) -> FitCost:
    """Measure the fits of some classes on the same rows, [n,D]."""
    count, width = rows.shape
    rotated, rotation = rows, 0.0
    if width > count:
        rotation = _seconds(lambda: np.linalg.qr(rows.T))
        rotated = np.linalg.qr(rows.T)[1].T
    narrow, middle = 0.0, machines.costs[len(machines.costs) // 2]
    for positive in classes:
        for cost in machines.costs:
            narrow += _fit(machines, rotated, positive, cost) / len(classes)
    factor, one = 1.0, classes[len(classes) // 2]
    if width > count:
        short = _fit(machines, rotated, one, middle)
        factor = max(1.0, _fit(machines, rows, one, middle) / short)
    return FitCost(count, width, narrow, factor, rotation, len(machines.costs))


def _fit(machines: Machines, rows: np.ndarray, positive: np.ndarray, cost: float) -> float:
    return _seconds(lambda: machines.fit(rows, positive, cost))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory(rows: int, tested: int, width: int) -> int:
    """Return the memory of a fit on `rows` rows, of both splits, and of the rotation, bytes."""
    features, span = 8 * (rows + tested) * width, width
    if is_wide(rows, width):
        features += 8 * rows * width
        span = rows
    return features + (8 + NODE) * rows * span
