"""Where the time of a training step goes: seconds by section, a verdict with its remedy, and a trace."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslkit import distributed
from sslkit.interfaces import Negatives
from sslkit.recipe import Recipe
from sslkit.runs import files
from sslkit.runs.run import Run
from sslkit.training import trainer
from sslkit.training.build import build

WAITING = "waiting for data"

SECTIONS = {
    WAITING: "the loader's workers are behind",
    "transfer": "host to device",
    "views": "colours, blur, flips, normalisation",
    "encoder": "forward",
    "heads": "forward",
    "loss": "but for its negatives",
    "negatives": "drawn and compared",
    "start of an epoch": "passes over the images",
    "forward": "the method's wiring",
    "backward": "of all of the above",
    "optimizer": "and the norm of the gradient",
    "memory": "written after the step",
}
"""What a step consists of; the rest is the loop itself."""

WARM, TRACED = 3, 3
"""Steps that are not measured, and steps in the trace."""


class Stopwatch:
    """Seconds by section, less those of the sections inside; a device is waited for at every border while it is `exact`.

    Otherwise only waiting for data is timed, which costs nothing.
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

    # Not compiled with the encoder that it is hooked to: the clock is nothing that a graph can hold.
    @torch.compiler.disable
    def begin(self, section: str) -> None:
        self._border()
        self._open.append(section)

    @torch.compiler.disable
    def end(self) -> None:
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
    """Sections inside the method's forward pass, too."""
    parts: list[tuple[str, nn.Module]] = [("heads", head) for head in run.method.heads.values()]
    for name, child in run.method.named_children():
        if name not in ("heads", "samplers"):
            parts.append((name, child))
    hooks = []
    for name, module in parts:
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: watch.begin(name)))
        hooks.append(module.register_forward_hook(lambda *_: watch.end()))
    samplers: list[Any] = list(run.method.samplers.values())
    for sampler in samplers:
        _time_negatives(sampler, watch)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for sampler in samplers:
            del sampler.draw, sampler.recall


def _time_negatives(sampler: Any, watch: Stopwatch) -> None:
    """Replace `draw` and `recall` of an instance by versions that are timed as negatives."""
    draw = sampler.draw

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            with watch("negatives"):
                return function(*given, **options)

        return call

    def drawn(*given: Any, **options: Any) -> Negatives:
        negatives: Any = timed(draw)(*given, **options)
        negatives.similarity = timed(negatives.similarity)
        return negatives

    sampler.draw, sampler.recall = drawn, timed(sampler.recall)


@dataclass(frozen=True)
class Profile:
    """`step` seconds as it runs; `seconds` by section; `busy`, the share of a step in which a GPU computes, None on a CPU."""

    images: int
    step: float
    waiting: float
    seconds: dict[str, float]
    busy: float | None

    @property
    def total(self) -> float:
        """Seconds of a step while every section is waited for."""
        return sum(self.seconds.values())

    def rows(self) -> list[tuple[str, str, str, str]]:
        """section, ms a step, share, what it is."""
        return [
            (
                name,
                f"{1000 * value:.2f}",
                f"{100 * value / self.total:.1f} %",
                SECTIONS.get(name, "python, and what no section holds"),
            )
            for name, value in self.seconds.items()
        ]

    def verdict(self) -> str:
        """What bounds the rate, and what to change."""
        waiting, overhead = self.waiting / self.step, self.seconds["the rest"] / self.total
        if waiting >= 0.1:
            return (
                f"data-bound: {100 * waiting:.0f} % of a step is spent waiting for data; more loader workers (--set train.workers=…), images "
                "packed once (sslkit pack), or fewer pixels to cut (transform sizes)"
            )
        if self.busy is not None and self.busy < 0.8:
            return (
                f"overhead-bound: the GPU computes in {100 * self.busy:.0f} % of a step; a larger batch (--set train.batch_size=…) or "
                "--set train.compile=true"
            )
        if self.busy is None and overhead >= 0.1:
            return f"overhead-bound: {100 * overhead:.0f} % of a step is the loop itself; a larger batch (--set train.batch_size=…)"
        largest = max(self.seconds, key=lambda name: self.seconds[name])
        return (
            f"compute-bound: the largest part is {largest}, {100 * self.seconds[largest] / self.total:.0f} % of a step; fewer pixels or a smaller "
            "encoder, train.precision: bf16 where the hardware has it, or more devices (--devices)"
        )


def measure(run: Run, steps: int, trace: Path | None = None) -> Profile:
    """Train for a few steps: as they are, then with every section waited for, then (where `trace` names a file) under torch.profiler.

    Every rank calls it, and takes the same steps; rank 0 writes the trace.
    """
    watch = Stopwatch(run.device)
    with _watched(run, watch):
        trained = trainer.train(run, watch)

        def timed(count: int) -> tuple[float, dict[str, float]]:
            """Seconds a step, in all and by section."""
            watch.seconds.clear()
            began = _now(run.device)
            for _ in islice(trained, count):
                pass
            return (_now(run.device) - began) / count, {
                name: value / count for name, value in watch.seconds.items()
            }

        timed(WARM)
        step, light = timed(steps)
        watch.exact = True
        total, by_section = timed(steps)
        watch.exact = False
        busy = None
        if trace is not None:
            os.environ.setdefault(
                "KINETO_LOG_LEVEL", "99"
            )  # it says on stderr that it starts and stops
            activities = [torch.profiler.ProfilerActivity.CPU]
            if run.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
                traced, _ = timed(TRACED)
            if distributed.rank() == 0:
                profiler.export_chrome_trace(str(trace))
            if run.device.type == "cuda":
                busy = (
                    sum(event.self_device_time_total for event in profiler.key_averages())
                    / 1e6
                    / TRACED
                    / traced
                )
        trained.close()
    seconds = {name: by_section[name] for name in SECTIONS if name in by_section}
    seconds["the rest"] = max(0.0, total - sum(seconds.values()))
    return Profile(run.recipe.train.batch_size, step, light.get(WAITING, 0.0), seconds, busy)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def profile(recipe: Recipe, runs: Path, steps: int = 10) -> tuple[Profile, Path]:
    """Measure a recipe; nothing is trained or saved but runs/<recipe>/profile_<time>/{profile.json,trace.json}.

    The first pass over all images is left out.
    """
    needed = 1 + WARM + 2 * steps + TRACED
    run = build(
        replace(recipe, train=replace(recipe.train, epochs=max(recipe.train.epochs, needed)))
    )
    run.step = 1
    folder = runs / recipe.name / f"profile_{datetime.now().strftime('%Y-%m-%d_%H-%M-%S')}"
    leader = distributed.rank() == 0
    if leader:
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    with files.writing(folder):
        found = measure(run, steps, folder / "trace.json")
    if leader:
        numbers = {
            "images_per_second": found.images / found.step,
            "step": found.step,
            "waiting": found.waiting,
        }
        known = numbers | {
            "busy": found.busy,
            "sections": found.seconds,
            "verdict": found.verdict(),
        }
        files.write_text(folder / "profile.json", json.dumps(known, indent=1))
    return found, folder
