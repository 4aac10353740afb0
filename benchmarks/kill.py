"""Kill a training run again and again, resume it each time, and compare what it ends with to the
run that nobody killed.

    python benchmarks/kill.py [--kills 50] [--lives 5] [--seed 0] [--data DIR]

SIGKILL for every process of the run, at random moments: while it starts, during a step, during a
save, at the first and at the last batch
of an epoch; with 0 and 2 loader workers, and with 2 processes that train together. It is resumed
by `sslkit train --resume FOLDER` and
nothing else. Weights, memory bank, optimizer, state and metrics must be the same bit for bit.
Exit code 1 where they are not.
"""

import argparse
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sslkit.console import print_table, print_text

RECIPE = """\
name: kill
method:    {{use: pirl}}
data:      {{use: image_folder, root: '{data}'}}
transform: {{use: jigsaw, size: 32, grid: 2, resize: 32, patch: 12}}
encoder:   {{use: timm, model: test_resnet}}
heads:
  image:   {{use: linear, out_dim: 16}}
  patches: {{use: concat_patches, patch_dim: 16, out_dim: 16}}
sampler:   {{use: memory_bank, negatives: 12}}
loss:      {{use: lambda_nce}}
optimizer: {{use: sgd, lr: 0.03, momentum: 0.9, weight_decay: 1.0e-4}}
train:
  {{epochs: {epochs}, batch_size: 8, precision: fp32, device: cpu, save_minutes: {save_minutes},
   unreadable: 100}}
"""
SAVE_MINUTES = 0.01
SETTINGS = {"0 workers": (0, 1), "2 workers": (2, 1), "2 ranks": (0, 2)}
"""What is run: loader workers of each process, processes."""
MOMENTS = ("a step", "a save", "first batch", "last batch", "start")
AHEAD = 8
"""Steps that a life lasts at most, beside the time that it takes to meet a save."""
COMPARED = ("method.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class Kill:
    """One kill: where it came, and what became of it."""

    setting: str
    moment: str
    at: int
    resumed: int = -1
    seconds: float = math.nan
    identical: bool = False


def make_images(folder: Path, count: int = 48) -> Path:
    """Noise, 40×40."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            folder / f"{number:03}.png"
        )
    return folder


class Session:
    """One process, or group of them, that trains, until it ends or is killed."""

    def __init__(self, runs: Path, arguments: list[str], processes: int) -> None:
        self.runs, self.begun = runs, time.monotonic()
        self.log = runs.parent / f"{runs.name}.log"
        self.log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "sslkit", "train", *arguments]
        if processes > 1:
            command += ["--devices", str(processes)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def output(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """Every process of it at once: a launcher's processes are no group."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                children.setdefault(
                    int(stat.read_text().rpartition(") ")[2].split()[1]), []
                ).append(int(stat.parent.name))
            except OSError:
                continue
        family = [self.process.pid]
        for member in family:
            family += children.get(member, [])
        for member in family:
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def wait(self) -> None:
        if self.process.wait() != 0:
            sys.exit(
                "a run that nobody killed ended with exit code "
                f"{self.process.returncode}:\n{self.output()}"
            )


def folder_of(runs: Path) -> Path:
    return (runs / "kill" / "latest").resolve()


def steps_done(runs: Path) -> int:
    """The last step in metrics.jsonl."""
    try:
        lines = (folder_of(runs) / "metrics.jsonl").read_bytes().splitlines(True)
    except OSError:
        return 0
    return sum(line.endswith(b"\n") for line in lines)


def is_writing(runs: Path) -> bool:
    return any((folder_of(runs) / "checkpoints").glob(".writing-*/*"))


def live(
    session: Session, kill: Kill, per_epoch: int, total: int, before: int, chance: random.Random
) -> float:
    """Let it run until the moment has come, and kill it. Returns the seconds to its first step, nan
    where it came to none.
    """
    runs, first = session.runs, math.nan

    def until(done) -> bool:
        nonlocal first
        while not done():
            if math.isnan(first) and steps_done(runs) > before:
                first = time.monotonic() - session.begun
            if session.process.poll() is not None:
                return False
            time.sleep(0.0005)
        return True

    if kill.moment == "start":
        wait = session.begun + chance.uniform(0.1, 6.0)
        met = until(
            lambda: (
                folder_of(runs).is_dir()
                and (folder_of(runs) / "recipe.yaml").exists()
                and time.monotonic() > wait
            )
        )
    else:
        # The first lines that a resumed run writes are those of steps it repeats: they are dropped
        # first.
        target = before + chance.randint(1, AHEAD)
        if kill.moment in ("first batch", "last batch"):
            target += -target % per_epoch - (kill.moment == "last batch")
            target += per_epoch if target <= before else 0
        target = min(target, total - 2)
        met = until(lambda: steps_done(runs) >= target and not math.isnan(first))
        if met and kill.moment == "a save":
            met = until(lambda: is_writing(runs))
            time.sleep(chance.uniform(0, 0.004))
        elif met:
            time.sleep(chance.uniform(0, 0.03))
    if not met:
        sys.exit(
            "the run ended before it could be killed (exit code "
            f"{session.process.returncode}):\n{session.output()}"
        )
    session.kill()
    kill.at = steps_done(runs)
    return first


def arguments_of(place: Path, workers: int) -> list[str]:
    return [str(place / "kill.yaml"), "--set", f"train.workers={workers}"]


def reference(place: Path, setting: str) -> Path:
    """The runs folder of the run that nobody kills."""
    workers, processes = SETTINGS[setting]
    runs = place / "never killed" / setting
    Session(runs, [*arguments_of(place, workers), "--runs", str(runs)], processes).wait()
    return runs


def differences(runs: Path, expected: Path) -> list[str]:
    """Files that are not the same."""
    one, other = folder_of(runs), folder_of(expected)
    last = max((other / "checkpoints").iterdir()).name
    names = [
        "metrics.jsonl",
        "encoder.safetensors",
        *(f"checkpoints/{last}/{name}" for name in COMPARED),
    ]
    return [
        name
        for name in names
        if not (one / name).exists() or (one / name).read_bytes() != (other / name).read_bytes()
    ]


def chain(
    place: Path,
    number: int,
    setting: str,
    moments: list[str],
    expected: Path,
    chance: random.Random,
) -> list[Kill]:
    """One run, killed once at every moment, then left alone."""
    workers, processes = SETTINGS[setting]
    total = steps_done(expected)
    per_epoch = total // EPOCHS
    runs = place / f"killed {number}"
    session = Session(runs, [*arguments_of(place, workers), "--runs", str(runs)], processes)
    kills: list[Kill] = []
    before = 0
    for moment in [*moments, None]:
        kill = Kill(setting, moment or "", 0)
        if moment is None:
            while session.process.poll() is None and steps_done(runs) <= before:
                time.sleep(0.0005)
            first = time.monotonic() - session.begun
            session.wait()
        else:
            first = live(session, kill, per_epoch, total, before, chance)
        if kills:
            found = re.search(r"resumed at step (\d+)", session.output())
            kills[-1].resumed = int(found.group(1)) if found else kills[-1].resumed
            kills[-1].seconds = first
        if moment is None:
            break
        kills.append(kill)
        before = kill.at
        session = Session(runs, ["--resume", str(folder_of(runs))], processes)
    different = differences(runs, expected)
    for kill in kills:
        kill.identical = not different
        lost = (
            "killed again before it said"
            if kill.resumed < 0
            else f"resumed at {kill.resumed}, {kill.at - kill.resumed} lost"
        )
        print_text(
            f"{setting}: killed during {kill.moment} after step {kill.at}, {lost}, "
            f"{kill.seconds:.1f} s to the next step"
        )
    print_text(
        f"{setting}: {'identical' if not different else 'different: ' + ', '.join(different)}"
    )
    return kills


def table(kills: list[Kill]) -> None:
    rows = []
    for setting in SETTINGS:
        for moment in MOMENTS:
            some = [kill for kill in kills if (kill.setting, kill.moment) == (setting, moment)]
            told = [kill for kill in some if kill.resumed >= 0]
            seconds = [kill.seconds for kill in told if not math.isnan(kill.seconds)]
            lost = [kill.at - kill.resumed for kill in told]
            if some:
                rows.append(
                    (
                        setting,
                        moment,
                        str(len(some)),
                        f"{min(kill.at for kill in some)} … {max(kill.at for kill in some)}",
                        f"{statistics.median(lost):.0f}, {max(lost)}" if lost else "-",
                        f"{statistics.median(seconds):.1f}" if seconds else "-",
                        f"{sum(kill.identical for kill in some)} of {len(some)}",
                    )
                )
    columns = (
        "run",
        "killed during",
        "kills",
        "after step",
        "steps lost: median, most",
        "seconds to the next step",
        "identical end",
    )
    print_table(columns, rows)


EPOCHS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--lives", type=int, default=5, help="kills of one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a folder of images; noise if left out")
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(chosen.kills)]
    chance.shuffle(moments)
    print_text(f"{chosen.kills} kills, seed {chosen.seed}")
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        place = Path(temporary)
        data = chosen.data.resolve() if chosen.data else make_images(place / "images")
        (place / "kill.yaml").write_text(
            RECIPE.format(data=data, epochs=EPOCHS, save_minutes=SAVE_MINUTES)
        )
        expected: dict[str, Path] = {}
        kills: list[Kill] = []
        for number in range(-(-chosen.kills // chosen.lives)):
            setting = list(SETTINGS)[number % len(SETTINGS)]
            if setting not in expected:
                expected[setting] = reference(place, setting)
            some = moments[number * chosen.lives : (number + 1) * chosen.lives]
            kills += chain(place, number, setting, some, expected[setting], chance)
    table(kills)
    if not all(kill.identical for kill in kills):
        sys.exit("a killed run ended differently from the run that nobody killed")


if __name__ == "__main__":
    main()
