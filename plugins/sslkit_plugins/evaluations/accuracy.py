"""Accuracy: hits by image, its metrics, and what a guess reaches."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sslkit.interfaces import ImageSource, Metric, Outcome

TOP_1 = Metric("top-1", "%", low=0, high=1)
TOP_5 = Metric("top-5", "%", low=0, high=1)


def metrics(classes: Sequence[str]) -> list[Metric]:
    """Return top-1, and top-5 where there are more than five classes."""
    return [TOP_1, TOP_5] if len(classes) > 5 else [TOP_1]


def hits(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Outcome]:
    """[N,C], [N] → bool [N] by metric: is the label among the best? NaN for logits that are NaN.

    Among equal logits the class of the smaller number comes first, as for argmax.
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
    """Return what naming the largest class, or the five largest, reaches on `val`."""
    labels = torch.as_tensor(val.labels)
    shares = labels.bincount().sort(descending=True).values / len(labels)
    best = {"top-1": shares[0].item(), "top-5": shares[:5].sum().item()}
    return {metric.name: best[metric.name] for metric in metrics(classes)}
