"""Output of a training session: a progress bar on a terminal, otherwise some lines."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.console import escaped, print_text, terminal
from sslkit.errors import counted

if TYPE_CHECKING:
    from sslkit.runs.metrics import Row
    from sslkit.runs.run import Run
    from sslkit.training.health import Health

UNREADABLE = 10
"""Largest number of unreadable images that a message names at the end of a session."""

PASS = 5.0
"""Time after which the progress of a pass over the images is reported, s."""


class TrainingScreen:
    """The output of a training session: a progress bar on a terminal, otherwise some lines."""

    def __init__(self, run: Run) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.run = run
        self.folder: Path | None = None
        self.console = terminal(markup=False, highlight=False, emoji=False)
        self.first_step, self.every = run.step, max(1, run.steps // 20)
        self.clock: tuple[float, int] | None = None
        self.passed = (0.0, 0.0)
        """Start of the current pass over the images, and time of its last report."""
        self.verdict = "healthy"
        self.measured = ""
        """Values of the latest evaluations while training."""
        self.told_unreadable = False
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]}  lr {task.fields[lr]}{task.fields[measured]}  "
                "{task.fields[rate]} images/s"
            ),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(
            "",
            total=run.steps,
            completed=run.step,
            epoch="-",
            loss="-",
            lr="-",
            measured="",
            rate="-",
        )

    def begin(self, notes: list[str], folder: Path | None) -> None:
        """Print the run's settings; `folder` is the folder of a resumed run."""
        run, chosen = self.run, self.run.recipe.train
        self.folder = folder
        world = run.loader.world
        for note in notes:
            print_text(note, stderr=True)
        self._say(
            f"{run.recipe.name}: {counted(len(run.source), 'image')}, "
            f"{counted(chosen.epochs, 'epoch')} × {counted(run.loader.steps_per_epoch, 'step')}; "
            f"batch {chosen.batch_size} over {counted(world, f'{run.device.type} device')}, "
            f"{str(run.precision).removeprefix('torch.')}, "
            f"{counted(run.loader.workers, 'loader worker')}"
        )
        if run.recipe.schedule.warmup_epochs >= chosen.epochs:
            self._say(
                "the learning rate only warms up and never reaches "
                f"{run.recipe.optimizer.lr:g}: schedule.warmup_epochs = "
                f"{run.recipe.schedule.warmup_epochs:g} of train.epochs = {chosen.epochs}"
            )
        if folder is not None:
            self._say(f"resumed at step {run.step}: {folder}")
        self.bar.start()

    def made(self, folder: Path) -> None:
        """Print the folder of a new run."""
        self.folder = folder
        self._say(str(folder))

    def passing(self, done: int) -> None:
        """Report the progress of a pass over the images, at increasing intervals."""
        total, now = len(self.run.source), time.monotonic()
        began, last = self.passed
        if done <= self.run.loader.step_size:
            self.passed = (now, now)
            return
        if done < total and now - last < max(PASS, (now - began) / 10):
            return
        if done >= total and last == began:
            return
        rate = (done - self.run.loader.step_size) / (now - began)
        left = f"{(total - done) / rate:.0f} s left" if done < total else "done"
        self._say(f"pass over the images: {done:,} of {total:,}, {rate:.0f} images/s, {left}")
        self.passed = (began, now)

    def show(self, rows: list[Row], skipped: list[str], health: Health) -> None:
        """Show messages about skipped steps, and the latest metrics.

        Reports the health of the first step, and later changes of the verdict. The clock starts
        after the first step, which includes the set-up.
        """
        for text in skipped:
            self._say(text)
        if self.run.unreadable and not self.told_unreadable:
            self.told_unreadable = True
            name, reason = next(iter(self.run.unreadable.items()))
            self._say(f"unreadable images are replaced; the first is {name} ({reason})")
        if not rows:
            return
        row = rows[-1]
        rate = left = "-"
        if self.clock is None:
            self.clock = time.monotonic(), row.step
            self._say(f"health: {health.start()}")
        else:
            pace = (row.step - self.clock[1]) / (time.monotonic() - self.clock[0])
            rate = f"{pace * self.run.recipe.train.batch_size:.0f}"
            left = f"{(self.run.steps - row.step) / pace:.0f}"
        evaluated = self._measure(rows)
        due = row.step // self.every > (row.step - len(rows)) // self.every or evaluated
        if due and row.step < self.run.steps:
            self._show_health(health)
        shown: dict[str, Any] = {
            "epoch": str(row.epoch),
            "loss": f"{row.loss:.3f}",
            "lr": f"{row.lr:.2g}",
            "measured": self.measured,
            "rate": rate,
        }
        self.bar.update(self.task, completed=row.step, **shown)
        if self.bar.disable and due:
            speed = "" if left == "-" else f"  {rate} images/s  {left} s left"
            self._say(
                f"step {row.step}/{self.run.steps}  epoch {shown['epoch']}  loss {shown['loss']}  "
                f"lr {shown['lr']}{self.measured}{speed}"
            )

    def _measure(self, rows: list[Row]) -> bool:
        """Keep the headline of each evaluation of the last step; print those of the untrained one.

        Returns whether there are any.
        """
        from sslkit.runs.metrics import UNTRAINED

        first, last = rows[0].metrics, rows[-1].metrics
        untrained, measured = [], []
        for evaluation in self.run.recipe.train.evaluate or ():
            start = f"{evaluation} "
            names = [name for name in (*first, *last) if name.startswith(start)]
            before = [name for name in names if name.endswith(UNTRAINED)]
            now = [name for name in names if name in last and name not in before]
            untrained += [
                f"{name.removesuffix(UNTRAINED)} {first[name]:.3g}" for name in before[:1]
            ]
            measured += [f"{name} {last[name]:.3g}" for name in now[:1]]
        if untrained:
            self._say(f"untrained: {', '.join(untrained)}")
        if measured:
            self.measured = f"  {'  '.join(measured)}"
        return bool(measured)

    def _show_health(self, health: Health) -> None:
        """Print the verdict if it has changed."""
        verdict = health.now().partition(":")[0]
        if verdict not in ("too early to judge", self.verdict):
            self.verdict = verdict
            self._say(f"health: {health.now()}")

    def stopped(self, signal: str, saved: bool) -> None:
        """Print the step at which a signal stopped training, and the command to resume."""
        self.close()
        self._say_unreadable()
        if self.folder is None:
            self._say(f"stopped by {signal} before a step was completed; nothing was written")
            return
        done = "before a step was completed"
        if saved:
            done = f"after step {self.run.step}, saved"
        elif self.run.step > self.first_step:
            done = f"after step {self.run.step}, before the next epoch, not saved"
        self._say(
            f"stopped by {signal} {done}; resume with: sslkit train --resume "
            f"{shlex.quote(str(self.folder))}"
        )

    def done(self, health: Health) -> None:
        """Print the health, skipped steps, unreadable images, the encoder and the next command."""
        self._say(f"health: {health.now()}")
        if self.run.skipped:
            text = (
                f"{self.run.skipped:,} of {counted(self.run.step, 'step')} skipped because of "
                "non-finite numbers"
            )
            if self.run.mostly_skipped:
                text += (
                    ": more than half, so the exit code is 1; lower the learning rate "
                    "(--set optimizer.lr=…) or clip (--set train.clip_grad=1.0), and train again"
                )
            self._say(text)
        self._say_unreadable()
        assert self.folder is not None
        encoder = self.folder / "encoder.safetensors"
        following = f"sslkit eval linear {shlex.quote(str(self.folder))}"
        if self.run.source.labels is None:
            following += " --data LABELLED_DIR"
        self._say(f"encoder: {encoder}\nnext: {following}")

    def _say_unreadable(self) -> None:
        found = sorted(self.run.unreadable.items())
        if not found:
            return
        named = [f"{name} ({reason})" for name, reason in found[:UNREADABLE]]
        if len(found) > UNREADABLE:
            named.append(f"and {len(found) - UNREADABLE} more")
        subject = "1 image could not be read and was"
        if len(found) > 1:
            subject = f"{len(found)} images could not be read and were"
        self._say(f"{subject} replaced: {', '.join(named)}")

    def close(self) -> None:
        """Stop the progress bar."""
        self.bar.stop()

    def _say(self, text: str) -> None:
        self.console.print(escaped(text), soft_wrap=True)
