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
    """[N,C], [N] → bool [N] by metric: is the label among the best? NaN for logits that are NaN."""
    if logits.isnan().any():
        return {metric.name: math.nan for metric in metrics(classes)}
    order = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu()
    found = order == labels.cpu().unsqueeze(1)
    among = {"top-1": found[:, 0], "top-5": found.any(1)}
    return {metric.name: among[metric.name].numpy() for metric in metrics(classes)}


def chance(val: ImageSource, classes: Sequence[str]) -> dict[str, float]:
    """Return what naming the largest class, or the five largest, reaches on `val`."""
    labels = torch.as_tensor(val.labels)
    shares = labels.bincount().sort(descending=True).values / len(labels)
    best = {"top-1": shares[0].item(), "top-5": shares[:5].sum().item()}
    return {metric.name: best[metric.name] for metric in metrics(classes)}
