"""A logistic regression on frozen features, for candidates that have no weights to train."""

import torch
from torch import Tensor

from sslkit.interfaces import Candidate, ImageSource, Probe
from sslkit_plugins.evaluations.logistic import (
    choose_strength,
    logistic_regression,
    standardise,
)


def regress(probe: Probe, candidate: Candidate, images: ImageSource) -> Tensor:
    """Return the logits [N,classes] of the validation images after a fit on `images`.

    They are NaN if a feature is not finite.
    """
    train, val = (_features(probe, candidate, source) for source in (images, probe.val))
    if not (train.isfinite().all() and val.isfinite().all()):
        return val.new_full((len(val), len(probe.classes)), torch.nan)
    labels = torch.as_tensor(images.labels, device=train.device)
    rows, others = standardise(train, val)
    strength = choose_strength(rows, labels, len(probe.classes), images.groups)
    return others.logits(*logistic_regression(rows, labels, len(probe.classes), strength))


def _features(probe: Probe, candidate: Candidate, images: ImageSource) -> Tensor:
    """Return the features of all images, float32 [N,D]."""
    shown = probe.images(images, size=candidate.size)
    return torch.cat([candidate.embed(batch)["features"] for batch, _ in shown])
