"""Estimates time and memory of linear classifiers from single closures and steps."""

import time
from collections.abc import Callable

import torch
from torch import nn

from sslkit.errors import counted
from sslkit.interfaces import Estimate, Work
from sslkit_plugins.evaluations import logistic
from sslkit_plugins.evaluations.classifiers import EMBEDDED, batch_of, classifier
from sslkit_plugins.evaluations.logistic import Standardised
from sslkit_plugins.evaluations.protocols import Protocol

OPERATIONS = 2e10
"""Multiplications of a measured closure, about a second on one CPU core."""
CLOSURES = logistic.ITERATIONS * 5 // 4
"""Largest number of closures of a fit: PyTorch's `max_eval`."""
SHORT, CALLS = 0.3, 5
"""Time after which a measurement ends, s, and its largest number of calls."""
LONG = 2 * 3600
"""Time of fits from which alternatives are proposed, s."""
WAYS_OUT = (
    "a preset by SGD (--preset moco), or fewer images (--data with a subset of the class folders)"
)


def seconds(work: Callable[[], object], device: torch.device, *, warm: bool = False) -> float:
    """Return the mean time of a call, or of several short ones, s.

    A first call is not timed, unless `warm` tells that there was one.
    """
    if not warm:
        work()
    _finish(device)
    start, count = time.perf_counter(), 0
    while True:
        work()
        _finish(device)
        count += 1
        took = time.perf_counter() - start
        if took > SHORT or count == CALLS:
            return took / count


def _finish(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def closure(rows: int, width: int, classes: int, device: torch.device) -> float:
    """Return the time of one closure (loss and gradient) on random features, s per row."""
    count = int(OPERATIONS / (4 * width * classes))
    count = min(rows, max(64, min(count, logistic.CHUNK)))
    features = torch.randn(count, width, device=device)
    labels = torch.randint(classes, (count,), device=device)
    weights = torch.zeros(classes, width, device=device, requires_grad=True)
    bias = torch.zeros(classes, device=device, requires_grad=True)
    given = Standardised(features, features.mean(0), torch.ones(width, device=device))
    return seconds(lambda: logistic.objective(given, labels, 0.1, weights, bias), device) / count


def regression(work: Work, *, layers: bool) -> Estimate:
    """Estimate the logistic regressions: a fit per strength on four fifths, then one on all."""
    fits = 0.8 * len(logistic.STRENGTHS) + 1
    total, measured, largest = 0.0, {}, 0
    for width in work.widths(layers).values():
        used = min(width, work.train)  # wide features are rotated to the span of the rows
        largest = max(largest, width)
        if used not in measured:
            measured[used] = closure(work.train, used, work.classes, work.device)
        total += measured[used] * work.train * fits * CLOSURES
    notes: list[str] = []
    if total > LONG:
        gpu = "" if work.device.type == "cuda" else "a GPU (--device cuda), "
        notes.append(f"long; use {gpu}{WAYS_OUT}")
    weights = 4 * largest * work.classes
    kept = 4 * work.train * largest * 9 // 5
    return Estimate(
        layers=layers,
        seconds=total,
        bytes=kept + 24 * weights + 3 * 4 * logistic.CHUNK * work.classes,
        how=f"at most {CLOSURES} closures for each of {len(logistic.STRENGTHS) + 1} fits of a "
        "layer",
        notes=tuple(notes),
    )


def training(work: Work, protocol: Protocol, seeds: int, *, layers: bool) -> Estimate:
    """Estimate the passes over augmented images and the steps of the classifiers."""
    batch_size, _ = batch_of(protocol, work.train)
    steps = protocol.epochs * (work.train // batch_size) * seeds
    total, largest = 0.0, 0
    count = min(batch_size, EMBEDDED)
    for width in work.widths(layers).values():
        layer = classifier(width, width, work.classes, protocol).to(work.device)
        rows = torch.randn(count, width, device=work.device)
        labels = torch.randint(work.classes, (count,), device=work.device)

        def step(
            layer: nn.Module = layer, rows: torch.Tensor = rows, labels: torch.Tensor = labels
        ) -> None:
            nn.functional.cross_entropy(layer(rows), labels).backward()

        total += seconds(step, work.device) * batch_size / count * steps
        largest += width
    return Estimate(
        features=False,
        layers=layers,
        passes=float(protocol.epochs * seeds),
        val_passes=float(protocol.test_crops * seeds),
        seconds=total,
        bytes=4 * batch_size * largest + 12 * largest * work.classes,
        how=f"{protocol.epochs} epochs × {counted(seeds, 'seed')} of random crops",
    )
