"""Compares sslkit's training step with a hand-written loop of the same passes, heads, loss, memory
and optimizer (`by_hand.py`).

python benchmarks/step.py [--cases resnet18-64,simclr,moco,swav] [--device cpu] [--steps 20]
[--batch-size N] [--threads 1]

Both train on the same pixels, ready in memory, and take turns in one process. The overhead is the
median over pairs of sslkit's time / the loop's time - 1.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import by_hand
import torch

from sslkit import recipe
from sslkit.interfaces import Batch
from sslkit.runs.run import Run
from sslkit.training import trainer
from sslkit.training.build import build

ROOT = Path(__file__).parent.parent
CASES = {
    "resnet18-64": ("recipes/pirl_jigsaw.yaml", 32),
    "resnet50-224": ("recipes/imagenet/pirl_jigsaw.yaml", 8),
    "simclr": ("recipes/simclr.yaml", 64),
    "moco": ("recipes/moco.yaml", 64),
    "swav": ("recipes/swav.yaml", 64),
    "tiny": ("recipes/pirl_jigsaw.yaml", 4),
    "tiny-simclr": ("recipes/simclr.yaml", 4),
    "tiny-moco": ("recipes/moco.yaml", 4),
    "tiny-swav": ("recipes/swav.yaml", 4),
}
"""Recipe, and images a step on a CPU."""

SMALL = ["encoder.model=test_resnet", "transform.size=32"]
WITHOUT_NORM = "heads.projector.batch_norm=false"
PLAIN = {
    "simclr": [WITHOUT_NORM],
    "moco": [
        *("encoder.norm=model", "method.shuffle=false", "sampler.exclude_own=false"),
        WITHOUT_NORM,
    ],
    "swav": ["method.queue=0", "method.freeze_steps=0", WITHOUT_NORM],
}
"""What the hand-written loops leave out of the small recipes."""

MORE = {
    **PLAIN,
    "tiny": [*SMALL, "transform.resize=32", "transform.patch=10"],
    "tiny-simclr": [*SMALL, *PLAIN["simclr"]],
    "tiny-moco": [*SMALL, *PLAIN["moco"]],
    "tiny-swav": [*SMALL, *PLAIN["swav"]],
}
DEVICE_BATCH = 256


class Ready:
    """A loader and a device phase of views that have nothing to do: the same finished pixels again
    and again.
    """

    def __init__(self, run: Run, batches: list[Batch]) -> None:
        self.finished, self.steps_per_epoch, self.micro_batches = batches, 10**6, 1
        run.loader, run.transform = self, self  # type: ignore[assignment]

    def batches(self, start: int, stop: int):
        return (self.finished[step % len(self.finished)] for step in range(start, stop))

    def on_device(self, batch: Batch, draws: object) -> Batch:
        return batch


def finished_batches(run: Run) -> list[Batch]:
    shapes = run.transform.shapes
    count, images = run.loader.step_size, len(run.source)

    def one() -> Batch:
        views = {
            name: torch.randn(count, *shape, device=run.device) for name, shape in shapes.items()
        }
        return Batch(views, {}, torch.randperm(images)[:count].to(run.device))

    return [one() for _ in range(4)]


def wait(device: torch.device) -> float:
    """Return the time in s: on one CPU thread its CPU time, which other jobs do not change."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def measure(
    case: str, device: str, steps: int, batch_size: int | None, more: list[str]
) -> tuple[str, ...]:
    path, images = CASES[case]
    size = batch_size or (DEVICE_BATCH if device == "cuda" else images)
    overrides = [
        f"train.device={device}",
        f"train.batch_size={size}",
        "train.workers=0",
        *MORE.get(case, []),
        *more,
    ]
    if "imagenet" in path:
        overrides += ["data.use=shapes", "data.images=20000"] + (
            ["sampler.negatives=4096"] if device == "cpu" else []
        )
    made = recipe.read(ROOT / path, overrides=overrides)
    run = build(replace(made, train=replace(made.train, epochs=10**6)))
    batches = finished_batches(run)
    hand = by_hand.METHODS[made.method.use](run)
    Ready(run, batches)
    run.step = 1
    ours = trainer.train(run)
    rows = []
    every = 10 if device == "cuda" else 1  # neither loop waits for a GPU after each step
    for _ in range(steps // every + 2):
        began = wait(run.device)
        for _step in range(every):
            next(ours)
        between = wait(run.device)
        for repeat in range(every):
            hand.step(batches[repeat % len(batches)])
        rows.append((between - began, wait(run.device) - between))
    rows = [(one / every, other / every) for one, other in rows[2:]]
    tax = statistics.median(one / other for one, other in rows) - 1
    one, other = (statistics.median(column) for column in zip(*rows, strict=True))
    return (
        case,
        str(run.precision).removeprefix("torch."),
        str(size),
        f"{1000 * one:.1f}",
        f"{1000 * other:.1f}",
        f"{100 * tax:+.1f} %",
    )


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    words.add_argument("--cases", default="resnet18-64,resnet50-224,simclr,moco,swav")
    words.add_argument("--device", default="cpu")
    words.add_argument("--steps", type=int, default=20)
    words.add_argument("--batch-size", type=int)
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    chosen = words.parse_args()
    torch.set_num_threads(chosen.threads)
    print(
        f"torch {torch.__version__}, {chosen.device}, {chosen.threads} threads, {chosen.steps} "
        "pairs of steps\n"
    )
    print(
        "| case | precision | images a step | sslkit, ms | by hand, ms | overhead: median of pairs "
        "|\n|---|---|---|---|---|---|"
    )
    for case in chosen.cases.split(","):
        row = measure(case, chosen.device, chosen.steps, chosen.batch_size, chosen.set)
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
