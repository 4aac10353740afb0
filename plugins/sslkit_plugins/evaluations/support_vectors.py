"""Linear support vector machines of one class, with a cost chosen by cross-validation."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sslkit_plugins.evaluations.average_precision import Ranking

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC

COSTS = [0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0]
"""Costs of VISSL (`benchmark/svm/…/eval_resnet_8gpu_transfer_voc07_svm`)."""
FOLDS = 3
ITERATIONS = 2000
TOLERANCE = 1e-4


def normalised(features: Tensor) -> np.ndarray:
    """Return x / (|x| + 1e-5), float64 [N,D]."""
    rows = features.double().cpu().numpy()
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-5)


def folds_of(
    positive: np.ndarray, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows to fit and to hold out of each fold; [] if there are too few.

    `positive` bool [N]. `groups` [N] stay within a fold; folds without both kinds are left out.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    members = len(positive) if groups is None else len(np.unique(groups))
    folds = min(FOLDS, members, positive.sum(), (~positive).sum())
    if folds < 2:
        return []
    if groups is None:
        return list(StratifiedKFold(folds).split(positive, positive))
    found = []
    for rows, held_out in StratifiedGroupKFold(folds).split(positive, positive, groups):
        if all(0 < positive[some].sum() < len(some) for some in (rows, held_out)):
            found.append((rows, held_out))
    return found


def is_wide(rows: int, width: int) -> bool:
    """Tell whether a machine is fitted in the span of its rows."""
    return width > 2 * rows


class Machines:
    """Fits support vector machines, counts the fits that do not converge, records the costs."""

    def __init__(self, costs: Sequence[float], groups: Sequence[object] | None = None) -> None:
        self.costs = sorted(costs)
        self.groups = None if groups is None else np.asarray(groups)
        self.fits = self.unfinished = 0
        self.chosen: list[float] = []

    def decide(
        self,
        train: np.ndarray,
        positive: np.ndarray,
        val: np.ndarray,
        rows: np.ndarray | slice = slice(None),
    ) -> np.ndarray:
        """Fit with the best cost, and return the decision values of `val`, [M].

        `train` are [N,D], `positive` bool [N], `rows` their places in `groups`, which stay within a
        fold. If D is much larger than N, the machine is fitted in the span of the training rows, N
        numbers instead of D. Its weights are the same.
        """
        groups = None if self.groups is None else self.groups[rows]
        basis = None
        if is_wide(*train.shape):
            basis, upper = np.linalg.qr(train.T)
            train = upper.T
        self.chosen.append(self.choose_cost(train, positive, groups))
        machine = self.fit(train, positive, self.chosen[-1])
        weights = machine.coef_[0]
        if basis is not None:
            weights = basis @ weights
        return val @ weights + machine.intercept_[0]

    def choose_cost(
        self, train: np.ndarray, positive: np.ndarray, groups: np.ndarray | None = None
    ) -> float:
        """Return the cost of the largest AP (step rule) over the folds, the smallest if equal.

        There are three folds, or two if the class has only two positives or negatives. With a
        single one, or one group, the median cost is returned.
        """
        splits = folds_of(positive, groups)
        if len(self.costs) == 1 or not splits:
            return self.costs[len(self.costs) // 2]
        found = []
        for cost in self.costs:
            values = []
            for rows, held_out in splits:
                machine = self.fit(train[rows], positive[rows], cost)
                ranking = Ranking(machine.decision_function(train[held_out]), positive[held_out])
                values.append(ranking.average_precision("step"))
            found.append(np.mean(values))
        return self.costs[int(np.argmax(found))]

    def fit(self, train: np.ndarray, positive: np.ndarray, cost: float) -> "LinearSVC":
        """Return a fitted machine: squared hinge loss, L2, dual, positives count twice."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        machine = LinearSVC(
            C=cost,
            class_weight={1: 2, -1: 1},
            dual=True,
            tol=TOLERANCE,
            max_iter=ITERATIONS,
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            machine.fit(train, np.where(positive, 1, -1))
        self.fits += 1
        self.unfinished += int(machine.n_iter_ >= ITERATIONS)
        return machine

    def notes(self) -> list[str]:
        """Return a sentence about fits that did not converge, if there are any."""
        if not self.unfinished:
            return []
        return [
            f"{self.unfinished:,} of {self.fits:,} fits stopped at {ITERATIONS:,} iterations "
            "before they converged, as liblinear does for large costs"
        ]
