"""Splits a labelled data set."""

import numpy as np


def split_by_class(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of training and validation images, int64.

    Validation gets `fraction` of every class, at least one image and never all of them.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held_out.append(rows[: min(len(rows) - 1, max(1, round(fraction * len(rows))))])
    val = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), val), val
