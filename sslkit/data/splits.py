"""Splits of a labelled data set."""

import numpy as np


def split_by_class(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of training and validation images, int64.

    The latter are `fraction` of every class, one image at least and never all of them.
    """
    rng = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held.append(rows[: min(len(rows) - 1, max(1, round(fraction * len(rows))))])
    val = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), val), val
