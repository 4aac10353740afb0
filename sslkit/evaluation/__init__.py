"""Evaluations of encoders. Plugins may import the names in `__all__`."""

from sslkit.data.splits import split_by_class
from sslkit.evaluation.compare import combine
from sslkit.evaluation.intervals import bootstrap, percentiles, resample, student, too_few
from sslkit.evaluation.pooling import pool
from sslkit.evaluation.resumable import ResumableTraining
from sslkit.evaluation.rows import Rows, split, split_labelled
from sslkit.evaluation.state import load_state, save_state
from sslkit.memory import activations

__all__ = [
    "ResumableTraining",
    "Rows",
    "activations",
    "bootstrap",
    "combine",
    "load_state",
    "percentiles",
    "pool",
    "resample",
    "save_state",
    "split",
    "split_by_class",
    "split_labelled",
    "student",
    "too_few",
]
