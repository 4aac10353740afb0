"""Losses, and the terms that they share."""

from sslkit_plugins.losses.binary import Binary
from sslkit_plugins.losses.contrast import (
    Temperature,
    contrast,
    info_nce_terms,
    nce_terms,
    random_logits,
)
from sslkit_plugins.losses.cross_entropy import CrossEntropy, SoftCrossEntropy
from sslkit_plugins.losses.distance import Cosine, NegativeCosine, SquaredError
from sslkit_plugins.losses.info_nce import InfoNCE
from sslkit_plugins.losses.lambda_nce import LambdaNCE

__all__ = [
    "Binary",
    "Cosine",
    "CrossEntropy",
    "InfoNCE",
    "LambdaNCE",
    "NegativeCosine",
    "SoftCrossEntropy",
    "SquaredError",
    "Temperature",
    "contrast",
    "info_nce_terms",
    "nce_terms",
    "random_logits",
]
