"""Logistic regression on standardised features by full-batch L-BFGS, in chunks of rows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.evaluation import split_labelled

STRENGTHS = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]
CHUNK = 8192
"""Rows of features per matrix product."""
ITERATIONS = 60
"""Largest number of iterations of L-BFGS; PyTorch evaluates at most 5/4 as many closures."""


class Standardised(NamedTuple):
    """Lazily standardised features [N,D]: minus `mean` [D], times `scale` [D].

    Products apply mean and scale to the weights instead of copying the features. Stored features
    (float16, or in other memory than `mean`) are converted when they are read. `picked` int64 [n]
    selects rows of stored features; None selects all.
    """

    features: Tensor
    mean: Tensor
    scale: Tensor
    picked: Tensor | None = None

    @property
    def stored(self) -> bool:
        """True if the features are not in the memory and format of computation."""
        kept, mean = self.features, self.mean
        return kept.dtype != mean.dtype or kept.device != mean.device

    def logits(self, weights: Tensor, bias: Tensor) -> Tensor:
        """Return logits [N,C] for weights [C,D] and bias [C]."""
        weights = weights * self.scale
        features = self.features if self.picked is None else self.features[self.picked]
        return F.linear(features.to(self.mean), weights, bias - weights @ self.mean)

    def predicted(self, weights: Tensor, bias: Tensor) -> Tensor:
        """Return logits [N,C]; reads stored features in chunks."""
        if not self.stored:
            return self.logits(weights, bias)
        count = len(self.features if self.picked is None else self.picked)
        return torch.cat([self.some(chunk).logits(weights, bias) for chunk in chunks(count)])

    def some(self, rows: Tensor | slice) -> "Standardised":
        """Select rows. Rows of stored features stay where they are."""
        if self.picked is not None:
            return self._replace(picked=self.picked[rows])
        if isinstance(rows, Tensor) and self.stored:
            return self._replace(picked=rows)
        return self._replace(features=self.features[rows])


def chunks(count: int) -> Iterator[slice]:
    """Yield slices of CHUNK rows."""
    for first in range(0, count, CHUNK):
        yield slice(first, first + CHUNK)


def standardise(
    train: Tensor, val: Tensor, device: torch.device | None = None
) -> tuple[Standardised, Standardised]:
    """Standardise both splits by mean and standard deviation of the training split.

    Features that are constant in training become 0. If D exceeds the N training rows, both splits
    are rotated to the span of these rows: N features instead of D, with the same regularised fit.
    `device` computes, by default that of the features.
    """
    device = train.device if device is None else device
    wide = train.shape[1] > len(train)
    if wide:
        train, val = train.to(device, torch.float32), val.to(device, torch.float32)
    mean, std = (values.to(device) for values in _moments(train))
    usable = std > 1e-6 * std.max().clamp_min(1e-12)
    scale = torch.where(usable, 1 / std, torch.zeros_like(std))
    if not wide:
        return Standardised(train, mean, scale), Standardised(val, mean, scale)
    basis, upper = torch.linalg.qr(((train - mean) * scale).T)
    zero, one = mean.new_zeros(len(train)), mean.new_ones(len(train))
    rotated = ((val - mean) * scale) @ basis
    return Standardised(upper.T.contiguous(), zero, one), Standardised(rotated, zero, one)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [D] in float32; float16 is read in chunks.

    Merges the moments of chunks in float64 (Chan et al. 1983, "Algorithms for computing the sample
    variance", equation 2.1).
    """
    if features.dtype == torch.float32:
        return features.mean(0), features.std(0, correction=0)
    width = features.shape[1]
    done, mean, squares = 0, torch.zeros(width, dtype=torch.float64), torch.zeros(width).double()
    for chunk in chunks(len(features)):
        rows = features[chunk].double().cpu()
        own = rows.mean(0)
        total = done + len(rows)
        change = own - mean
        squares += (rows - own).square().sum(0) + change.square() * (done * len(rows) / total)
        mean += change * (len(rows) / total)
        done = total
    return mean.float(), (squares / done).sqrt().float()


def logistic_regression(
    rows: Standardised,
    labels: Tensor,
    classes: int,
    strength: float,
    start: tuple[Tensor, Tensor] | None = None,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Fit weights [C,D] and bias [C] by full-batch L-BFGS from `start`.

    Minimises mean cross-entropy + strength/2 · |weights|², without penalty on the bias. Processes
    the features in chunks of rows. `class_weights` [C] multiply the loss of each class.
    """
    if start is None:
        start = rows.mean.new_zeros(classes, len(rows.mean)), rows.mean.new_zeros(classes)
    weights, bias = (values.clone().requires_grad_() for values in start)
    search = torch.optim.LBFGS(
        [weights, bias],
        max_iter=ITERATIONS,
        history_size=10,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        return objective(rows, labels, strength, weights, bias, class_weights)

    search.step(closure)
    return weights.detach(), bias.detach()


def objective(
    rows: Standardised,
    labels: Tensor,
    strength: float,
    weights: Tensor,
    bias: Tensor,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the objective and add its gradient to those of weights [C,D] and bias [C]."""
    total = strength / 2 * weights.square().sum()
    total.backward()
    for chunk in chunks(len(labels)):
        logits = rows.some(chunk).logits(weights, bias)
        loss = F.cross_entropy(logits, labels[chunk], class_weights, reduction="sum")
        loss = loss / len(labels)
        loss.backward()
        total = total.detach() + loss.detach()
    return total


def choose_strength(
    rows: Standardised, labels: Tensor, classes: int, groups: Sequence[object] | None = None
) -> float:
    """Return the strength with the best accuracy on a held-out fifth of every class.

    With `groups`, one per row, a fifth of the groups is held out. Each fit starts from the previous
    solution. If none can be held out (one image per class, one group), returns the middle strength.
    """
    fit, held_out = map(torch.as_tensor, split_labelled(labels.cpu().numpy(), groups, 0))
    if not len(held_out):
        return STRENGTHS[len(STRENGTHS) // 2]
    some, rest = rows.some(fit), rows.some(held_out)
    best, chosen, fitted = -1.0, STRENGTHS[0], None
    for strength in STRENGTHS:
        fitted = logistic_regression(some, labels[fit], classes, strength, fitted)
        correct = rest.predicted(*fitted).argmax(1) == labels[held_out]
        score = correct.float().mean().item()
        if score > best:
            best, chosen = score, strength
    return chosen
