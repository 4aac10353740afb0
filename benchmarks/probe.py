"""The closure of the linear probe's fit: one matrix [D+1,C] against weights [C,D] and bias apart.

    OMP_NUM_THREADS=1 python benchmarks/probe.py
    OMP_NUM_THREADS=1 python benchmarks/probe.py --rows 1000 --classes 10 --dim 64 --repeats 3

The first is sliced for each product and reads all rows at once; its features are standardised
before. The second is what `linear` does: chunks of 8,192 rows, mean and scale applied to the
weights. Both compute loss and gradient at the same weights, in one process, turn about. The ratio
is the median over pairs. `--wide` scores features that have more numbers than rows, with all of
them and in the span of the rows.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit_plugins.evaluations.logistic import (
    CHUNK,
    Standardised,
    choose_strength,
    logistic_regression,
    standardise,
)

STRENGTH = 0.01


def joined(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Loss and gradient of weights [D+1,C] on standardised features [N,D]."""
    weights.grad = None
    loss = F.cross_entropy(features @ weights[:-1] + weights[-1], labels)
    loss = loss + STRENGTH / 2 * weights[:-1].square().sum()
    loss.backward()
    return loss


def apart(rows: Standardised, labels: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Loss and gradient of weights [C,D] and bias [C], in chunks, as the probe computes them."""
    weights.grad = bias.grad = None
    total = STRENGTH / 2 * weights.square().sum()
    total.backward()
    for first in range(0, len(labels), CHUNK):
        part = slice(first, first + CHUNK)
        logits = rows.some(part).logits(weights, bias)
        loss = F.cross_entropy(logits, labels[part], reduction="sum") / len(labels)
        loss.backward()
        total = total.detach() + loss.detach()
    return total


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pairs(
    one: Callable[[], object], other: Callable[[], object], repeats: int
) -> tuple[float, float, float]:
    """Return the median seconds of both and the median ratio, after one pair to warm up."""
    one(), other()
    found = [(seconds(one), seconds(other)) for _ in range(repeats)]
    first, second = zip(*found, strict=True)
    ratio = statistics.median(a / b for a, b in found)
    return statistics.median(first), statistics.median(second), ratio


def closure(count: int, dim: int, classes: int, repeats: int) -> str:
    """Measure one case; both gradients must agree."""
    torch.manual_seed(0)
    features, labels = torch.randn(count, dim).abs(), torch.randint(classes, (count,))
    rows = Standardised(features, features.mean(0), 1 / features.std(0, correction=0))
    scaled = (features - rows.mean) * rows.scale
    start = 0.01 * torch.randn(classes, dim)
    weights, bias = start.clone().requires_grad_(), torch.zeros(classes, requires_grad=True)
    matrix = torch.cat([start.T, torch.zeros(1, classes)]).requires_grad_()
    old, new, ratio = pairs(
        lambda: joined(scaled, labels, matrix),
        lambda: apart(rows, labels, weights, bias),
        repeats,
    )
    torch.testing.assert_close(matrix.grad[:-1].T, weights.grad, rtol=1e-3, atol=1e-5)
    return f"| {count:,} | {classes} | {1000 * old:.1f} | {1000 * new:.1f} | {ratio:.1f} |"


def wide(count: int, dim: int, classes: int, repeats: int) -> str:
    """Measure one layer's score for features with more numbers than rows: the choice of strength
    and the fit. The features are random walks, as alike from number to number as those of a map.
    """
    torch.manual_seed(0)
    labels = torch.randint(classes, (count,))
    features = torch.randn(count, dim).cumsum(1)
    features += features.std() * torch.randn(classes, dim)[labels]

    def everywhere() -> None:
        mean, std = features.mean(0), features.std(0, correction=0)
        fit(Standardised(features, mean, 1 / std))

    def fit(rows: Standardised) -> None:
        strength = choose_strength(rows, labels, classes)
        logistic_regression(rows, labels, classes, strength)

    old, new, ratio = pairs(everywhere, lambda: fit(standardise(features, features)[0]), repeats)
    return f"| {count:,} × {dim:,} | {classes} | {old:.2f} | {new:.2f} | {ratio:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--wide", action="store_true", help="fit 550 rows of 9,216 numbers")
    options = parser.parse_args()
    if options.wide:
        print("| features | classes | all numbers, s | in the span of the rows, s | ratio |")
        print("|---|---|---|---|---|")
        print(wide(550, 9216, 10, options.repeats))
        return
    print(f"D = {options.dim}, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    print("| rows | classes | one matrix, ms | apart, ms | ratio |\n|---|---|---|---|---|")
    for count in options.rows:
        for classes in options.classes:
            print(closure(count, options.dim, classes, options.repeats), flush=True)


if __name__ == "__main__":
    main()
