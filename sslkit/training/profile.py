"""Measures the time of a training step by section, with a verdict and a trace."""

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslkit import distributed, faults
from sslkit.interfaces import ImageSource, Negatives, NegativeSampler
from sslkit.parts import DataFormat, make_source
from sslkit.recipe import Recipe
from sslkit.runs import files
from sslkit.runs.run import Run
from sslkit.training import trainer
from sslkit.training.build import build
from sslkit.training.rehearsal import rehearse_recipe
from sslkit.training.trainer import EPOCH, WAITING

DATA_BOUND = 0.25
"""Fraction of a step spent waiting for data, from which a run is data-bound."""

SECTIONS = {
    WAITING: "until the next batch is ready; without workers, time to load it",
    "transfer": "host to device",
    "views": "colours, blur, flips, normalisation",
    "encoder": "forward",
    "heads": "forward",
    "loss": "without negatives",
    "negatives": "drawn and compared",
    EPOCH: "passes over the images",
    "forward": "the method itself",
    "backward": "of all of the above",
    "optimizer": "and the norm of the gradient",
    "memory": "updates after the step",
}
"""Sections of a step with descriptions.

Other modules of a method, such as moving averages, add sections with their names.
"""

REST = "the rest"

WARM, TRACED = 3, 3
"""Warm-up steps without measurement, and steps in the trace."""


class Stopwatch:
    """Measures seconds by section, excluding nested sections.

    If `exact`, it synchronises with the device at every border. Otherwise it only measures the
    wait for data, without cost.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.exact = device, False
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        self.begin(section)
        try:
            yield
        finally:
            self.end()

    # A compiled graph cannot contain a clock.
    @torch.compiler.disable
    def begin(self, section: str) -> None:
        """Start a section."""
        self._border()
        self._open.append(section)

    @torch.compiler.disable
    def end(self) -> None:
        """End the innermost section."""
        self._border()
        self._open.pop()

    def _border(self) -> None:
        if self.exact and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open and (self.exact or self._open[-1] == WAITING):
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


@contextmanager
def _watched(run: Run, watch: Stopwatch) -> Iterator[None]:
    """Time the modules of the method by their names, and negatives."""
    with ExitStack() as stack:
        for name, child in run.method.named_children():
            group = isinstance(child, nn.ModuleDict | nn.ModuleList)
            for module in child.children() if group else [child]:
                _hook(module, name, watch, stack)
        for cls in _classes(NegativeSampler):
            _time(cls, "draw", watch, stack)
            _time(cls, "recall", watch, stack)
        for cls in _classes(Negatives):
            _time(cls, "similarity", watch, stack)
        yield


def _hook(module: nn.Module, section: str, watch: Stopwatch, stack: ExitStack) -> None:
    """Time the forward passes of a module until `stack` is closed."""
    before = module.register_forward_pre_hook(lambda *_: watch.begin(section))
    after = module.register_forward_hook(lambda *_: watch.end())
    stack.callback(before.remove)
    stack.callback(after.remove)


def _classes(base: type[Any]) -> list[type]:
    """Return `base` and all of its subclasses."""
    found: list[type] = [base]
    for cls in base.__subclasses__():
        found += _classes(cls)
    return list(dict.fromkeys(found))


def _time(cls: type, name: str, watch: Stopwatch, stack: ExitStack) -> None:
    """Time a function of a class in the section `negatives`, until `stack` is closed."""
    function: Any = vars(cls).get(name)
    if function is None:
        return

    @functools.wraps(function)
    def timed(*given: Any, **options: Any) -> Any:
        with watch("negatives"):
            return function(*given, **options)

    setattr(cls, name, timed)
    stack.callback(setattr, cls, name, function)


@dataclass(frozen=True)
class Profile:
    """Seconds of a step of `images` images.

    `step` and `waiting` are the duration of a normal step and its wait for data. `seconds` are
    durations by section, with synchronisation at every border. `busy` is the fraction of a step in
    which a GPU computes; None on a CPU. `precision` is the number format of the networks.
    """

    images: int
    step: float
    waiting: float
    seconds: dict[str, float]
    busy: float | None
    precision: torch.dtype = torch.float32

    @property
    def total(self) -> float:
        """Seconds of a step with synchronisation at every border."""
        return sum(self.seconds.values())

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return section, ms per step, fraction and description."""
        rows = []
        for name, value in self.seconds.items():
            default = "Python, and everything outside of sections" if name == REST else "forward"
            fraction = f"{100 * value / self.total:.1f} %"
            rows.append((name, f"{1000 * value:.2f}", fraction, SECTIONS.get(name, default)))
        return rows

    def verdict(self) -> str:
        """Return the bottleneck and a remedy."""
        waiting, overhead = self.waiting / self.step, self.seconds[REST] / self.total
        if waiting >= DATA_BOUND:
            return (
                f"data-bound: {100 * waiting:.0f} % of a step is spent waiting for data; use more "
                "loader workers (--set train.workers=…), a packed data set (sslkit pack), or "
                "smaller views"
            )
        if self.busy is not None and self.busy < 0.8:
            return (
                f"overhead-bound: the GPU computes in {100 * self.busy:.0f} % of a step; use a "
                "larger batch (--set train.batch_size=…) or --set train.compile=true"
            )
        if self.busy is None and overhead >= 0.1:
            return (
                f"overhead-bound: {100 * overhead:.0f} % of a step is the loop itself; use a "
                "larger batch (--set train.batch_size=…)"
            )
        largest = max(self.seconds, key=lambda name: self.seconds[name])
        lower = ""
        if self.precision == torch.float32:
            lower = ", train.precision: bf16 if the hardware supports it"
        return (
            f"compute-bound: the largest section is {largest}, "
            f"{100 * self.seconds[largest] / self.total:.0f} % of a step; use smaller views, a "
            f"smaller encoder{lower}, or more devices (--devices)"
        )


def measure(run: Run, steps: int, trace: Path | None = None) -> Profile:
    """Train for a few steps: normally, then with exact timing, then under torch.profiler.

    The last only if `trace` is a path, to which rank 0 writes. All ranks take the same steps.
    """
    watch, busy = Stopwatch(run.device), None
    with _watched(run, watch):
        trained = trainer.train(run, watch)
        _timed(run, trained, watch, WARM)
        step, light = _timed(run, trained, watch, steps)
        watch.exact = True
        total, by_section = _timed(run, trained, watch, steps)
        watch.exact = False
        if trace is not None:
            busy = _trace(run, trained, watch, trace)
        trained.close()
    names = [*SECTIONS, *(name for name in by_section if name not in SECTIONS)]
    seconds = {name: by_section[name] for name in names if name in by_section}
    seconds[REST] = max(0.0, total - sum(seconds.values()))
    waiting, precision = light.get(WAITING, 0.0), run.precision
    return Profile(run.recipe.train.batch_size, step, waiting, seconds, busy, precision)


def _timed(
    run: Run, trained: Iterator[trainer.Step], watch: Stopwatch, count: int
) -> tuple[float, dict[str, float]]:
    """Take `count` steps; return the mean seconds of a step, in total and by section."""
    watch.seconds.clear()
    began = _now(run.device)
    for _ in islice(trained, count):
        pass
    by_section = {name: value / count for name, value in watch.seconds.items()}
    return (_now(run.device) - began) / count, by_section


def _trace(
    run: Run, trained: Iterator[trainer.Step], watch: Stopwatch, trace: Path
) -> float | None:
    """Write a trace of TRACED steps; return the fraction of time in which a GPU computes."""
    # Suppresses the profiler's messages on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        traced, _ = _timed(run, trained, watch, TRACED)
    if distributed.rank() == 0:
        profiler.export_chrome_trace(str(trace))
    if run.device.type != "cuda":
        return None
    busy = sum(event.self_device_time_total for event in profiler.key_averages())
    return busy / 1e6 / TRACED / traced


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@faults.telling()
def profile(
    recipe: Recipe,
    runs: Path,
    steps: int = 10,
    look: Callable[[ImageSource, Recipe], None] = lambda source, recipe: None,
) -> tuple[Profile, Path]:
    """Profile a recipe, and write runs/<recipe>/profile_<time>/ with profile.json and trace.json.

    Saves no weights. Does not measure what a method does before its first step. Calls `look` with
    the data set on rank 0.
    """
    needed = 1 + WARM + 2 * steps + TRACED
    train = replace(recipe.train, epochs=max(recipe.train.epochs, needed))
    source = make_source(recipe, "pretrain")
    if distributed.rank() == 0:
        look(source, recipe)
    rehearse_recipe(recipe, DataFormat.of(source), source)
    run = build(replace(recipe, train=train), source)
    run.step = 1
    folder = runs / recipe.name / f"profile_{datetime.now().strftime('%Y-%m-%d_%H-%M-%S')}"
    leader = distributed.rank() == 0
    with files.writing(folder, "--runs DIR"):
        if leader:
            folder.mkdir(parents=True, exist_ok=True)
        found = measure(run, steps, folder / "trace.json")
    if leader:
        report = {
            "images_per_second": found.images / found.step,
            "step": found.step,
            "waiting": found.waiting,
            "busy": found.busy,
            "sections": found.seconds,
            "verdict": found.verdict(),
        }
        files.write_text(folder / "profile.json", json.dumps(report, indent=1), "--runs DIR")
    return found, folder
