"""Growth of evaluations with rows and classes, extrapolated to ImageNet.

    OMP_NUM_THREADS=1 python benchmarks/evaluations.py
    OMP_NUM_THREADS=1 python benchmarks/evaluations.py --rows 1000 --classes 10 --dim 64

Features are random, [N,512]. `linear` is one closure of L-BFGS (loss and gradient on N rows), `knn`
and `retrieval` search 1,000 and 100 queries among N rows, `quality` computes RankMe and uniformity
of at most 25,600 rows. Times are CPU times. Memory is the peak above features and labels.
"ImageNet" multiplies the time by the ratio of rows (1,281,167) and queries (50,000). A fit of
`linear` takes at most 75 closures; with the choice of the strength, 6.6 fits.
"""

import argparse
import importlib
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sslkit.interfaces import Features
from sslkit_plugins.evaluations import logistic
from sslkit_plugins.evaluations.knn import Knn

TRAIN, VAL = 1_281_167, 50_000
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Case(NamedTuple):
    """Work to measure: name, function, and factor from its size to ImageNet's."""

    name: str
    work: Callable[[], object]
    factor: float | None


def resident(key: str) -> int:
    """Return VmRSS or VmHWM of this process, bytes; 0 where /proc does not exist."""
    if not STATUS.exists():
        return 0
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def measured(work: Callable[[], object]) -> tuple[float, int]:
    """Return CPU time, s, and peak memory above the start, bytes; the faster of two calls."""
    best, peak = float("inf"), 0
    for _ in range(2):
        if RESET.exists():
            RESET.write_text("5")  # the peak begins anew
        before, start = resident("VmRSS"), time.process_time()
        work()
        best = min(best, time.process_time() - start)
        peak = max(peak, resident("VmHWM") - before)
    return best, peak


def features(count: int, queries: int, classes: int, dim: int) -> Features:
    """Return random features with labels."""
    torch.manual_seed(0)
    train, val = torch.randn(count, dim), torch.randn(queries, dim)
    return Features(train, torch.arange(count) % classes, val, torch.arange(queries) % classes)


def closure(given: Features, classes: int) -> Callable[[], Tensor]:
    """Return the closure of a logistic regression."""
    rows, _ = logistic.standardise(given.train, given.val)
    weights = torch.zeros(classes, len(rows.mean), requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    return lambda: logistic.objective(rows, given.train_labels, 0.1, weights, bias)


def cases(count: int, classes: int, dim: int) -> Iterator[Case]:
    """Yield the cases of one size; those of absent evaluations are left out."""
    given = features(count, 1000, classes, dim)
    names = [str(number) for number in range(classes)]
    yield Case("linear, one closure", closure(given, classes), TRAIN / count)
    search = TRAIN / count * VAL / 1000
    yield Case("knn --k 20, 1,000 queries", lambda: Knn().hits(given, names), search)
    if retrieval := optional("retrieval"):
        few = given._replace(val=given.val[:100], val_labels=given.val_labels[:100])
        ranking = retrieval.Retrieval()
        yield Case("retrieval, 100 queries", lambda: ranking.rank(few), 10 * search)
    if quality := optional("quality"):
        rows = given.train[: quality.ROWS]
        same = 1.0 if count >= quality.ROWS else None
        yield Case("quality, RankMe", lambda: quality.rankme(rows), same)
        yield Case("quality, uniformity", lambda: quality.uniformity(rows), same)


def optional(name: str) -> object:
    """Import an evaluation; None if it is not part of this version."""
    try:
        return importlib.import_module(f"sslkit_plugins.evaluations.{name}")
    except ModuleNotFoundError:
        return None


def line(case: Case, count: int, classes: int) -> str:
    """Measure a case and return its line of the table."""
    took, peak = measured(case.work)
    imagenet = "" if case.factor is None else f"{took * case.factor:,.0f}"
    cells = [case.name, f"{count:,}", f"{classes:,}", f"{took:.3f}", f"{peak / 2**20:,.0f}"]
    return f"| {' | '.join([*cells, imagenet])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("retrieval", "quality"):
        if not optional(name):
            print(f"{name} is not part of this version, so it is left out")
    print(f"{date.today()}, D = {options.dim}, 1 thread, torch {torch.__version__}\n")
    print("| work | rows | classes | CPU time, s | peak memory, MiB | ImageNet, s |")
    print("|---|---|---|---|---|---|")
    lines = []
    for count in options.rows:
        for classes in options.classes:
            for case in cases(count, classes, options.dim):
                if classes == options.classes[0] or not case.name.startswith("quality"):
                    lines.append(line(case, count, classes))
    print("\n".join(sorted(lines, key=lambda one: one.split(" | ")[0])), flush=True)


if __name__ == "__main__":
    main()
