"""Accuracy: metrics, hits per image, and chance level."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sslkit.interfaces import ImageSource, Metric, Outcome

TOP_1 = Metric("top-1", "%", low=0, high=1)
TOP_5 = Metric("top-5", "%", low=0, high=1)


def metrics(classes: Sequence[str]) -> list[Metric]:
    """Return top-1, and also top-5 for more than five classes."""
    return [TOP_1, TOP_5] if len(classes) > 5 else [TOP_1]


def hits(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Outcome]:
    """Return bool [N] by metric, whether the label is among the best, for logits [N,C].

    Returns NaN if a logit is NaN. Of equal logits, the smaller class number ranks first, as in
    argmax.
    """
    if logits.isnan().any():
        return {metric.name: math.nan for metric in metrics(classes)}
    label = labels.to(logits.device).unsqueeze(1)
    own, number = logits.gather(1, label), torch.arange(logits.shape[1], device=logits.device)
    before = (logits > own) | ((logits == own) & (number < label))
    rank = before.sum(1).cpu()
    among = {"top-1": rank < 1, "top-5": rank < 5}
    return {metric.name: among[metric.name].numpy() for metric in metrics(classes)}


def chance(val: ImageSource, classes: Sequence[str]) -> dict[str, float]:
    """Return the accuracy on `val` of always predicting the most frequent classes."""
    labels = torch.as_tensor(val.labels)
    fractions = labels.bincount().sort(descending=True).values / len(labels)
    best = {"top-1": fractions[0].item(), "top-5": fractions[:5].sum().item()}
    return {metric.name: best[metric.name] for metric in metrics(classes)}
