"""Trains eight methods with lightly's modules and with sslkit, and compares the encoders.

    python -m pip install lightly                      # optional; only lightly's side needs it
    python benchmarks/parity.py --data DIR             # DIR has train/ and val/, a folder per class
    python benchmarks/parity.py --data DIR --sides sslkit --methods simclr moco --seeds 0 1
    python benchmarks/parity.py --report               # write the table of parity.md so far

Both sides start from the same weights. The same code evaluates both encoders, each as a file of
timm's ResNet-18. Every finished training is a line of the results file and does not run again, so a
killed benchmark goes on when it is started again. `parity_settings.py` has the settings of sslkit's
side, `lightly_side.py` those of lightly's; `parity.md` lists what is equal and what differs.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from parity_report import Line, report, write
from parity_settings import METHODS, SIZE, Settings
from safetensors.torch import save_file

from sslkit import recipe
from sslkit.device import pick_precision
from sslkit.training import trainer
from sslkit.training.build import build

HERE = Path(__file__).parent
SIDES = ("lightly", "sslkit", "speed")
MISSING = "needs lightly: python -m pip install lightly; --sides sslkit runs without it"


def command(log: Path, *arguments: str) -> None:
    """Run a command of sslkit, or end with its last line."""
    words = [sys.executable, "-m", "sslkit", *arguments]
    with log.open("a") as out:
        done = subprocess.run(words, stdout=out, stderr=out, check=False)
    if done.returncode != 0:
        last = log.read_text().strip().rpartition("\n")[2]
        raise SystemExit(f"sslkit {arguments[0]} failed: {last} (all of it: {log})")


class Benchmark:
    """The trainings, evaluations and measurements on one folder of images."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data, self.folder = options.data.absolute(), options.runs.absolute()
        self.settings = Settings(options.epochs, options.batch_size)
        self.results = options.results
        self.precision = pick_precision("auto", torch.device("cpu"))

    def lines(self) -> list[Line]:
        """Return the finished jobs of these epochs and this batch size."""
        if not self.results.exists():
            return []
        found = [json.loads(line) for line in self.results.read_text().splitlines()]
        wanted = {"epochs": self.settings.epochs, "batch_size": self.settings.batch_size}
        return [line for line in found if wanted.items() <= line.items()]

    def run(self, method: str, side: str, seed: int) -> None:
        """Run a job and append its line, unless there is one."""
        job = {"method": method, "side": side, "seed": seed}
        if any(job.items() <= line.items() for line in self.lines()):
            return
        sides: dict[str, Callable[[str, int], Line]] = {
            "lightly": self.lightly,
            "sslkit": self.sslkit,
            "speed": self.speed,
            "initial": self.untrained,
        }
        began = time.monotonic()
        measured = sides[side](method, seed)
        line = job | {
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "precision": str(self.precision).removeprefix("torch."),
            "date": datetime.now(UTC).date().isoformat(),
            "minutes": round((time.monotonic() - began) / 60, 1),
            **measured,
        }
        with self.results.open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def place(self, method: str, side: str, seed: int) -> Path:
        """Return the folder of a job, which exists."""
        folder = self.folder / f"{method}-{side}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def initial(self, seed: int) -> Path:
        """Return the file of the weights with which both sides begin."""
        path = self.place("untrained", "initial", seed) / "encoder.safetensors"
        if not path.exists():
            torch.manual_seed(seed)
            model = timm.create_model("resnet18", num_classes=0)
            save_file(model.state_dict(), path)
        return path

    def untrained(self, method: str, seed: int) -> Line:
        """Evaluate the initial weights."""
        return self.evaluate(self.initial(seed))

    def evaluate(self, weights: Path) -> Line:
        """Return top-1 of linear probe and kNN, each with its 95 % interval, in per cent."""
        found = {}
        for name in ("linear", "knn"):
            out = weights.parent / "eval"
            words = ["--encoder", "timm:resnet18", "--weights", str(weights), "--size", str(SIZE)]
            words += ["--data", str(self.data), "--device", "cpu", "--workers", "0"]
            command(weights.parent / "log", "eval", name, *words, "--out", str(out))
            entries = json.loads((out / f"{name}.json").read_text())["entries"]
            features = next(entry for entry in entries if entry["candidate"] == "timm:resnet18")
            score = features["scores"]["top-1"]
            values = (score["value"], score["intervals"][0]["low"], score["intervals"][0]["high"])
            found[name] = [round(100 * value, 2) for value in values]
        return found

    def training(self, method: str, seed: int) -> Any:
        """Return lightly's side of a training."""
        import lightly
        import lightly_side

        chosen = METHODS[method]
        job = lightly_side.Job(
            method=method,
            data=self.data / "train",
            initial=self.initial(seed),
            seed=seed,
            epochs=self.settings.epochs,
            warmup_epochs=self.settings.warmup_epochs,
            batch_size=self.settings.batch_size,
            optimizer=chosen.optimizer["use"],
            lr=chosen.optimizer["lr"],
            weight_decay=chosen.optimizer["weight_decay"],
            precision=self.precision,
        )
        self.version = lightly.__version__
        return lightly_side.Training(job)

    def lightly(self, method: str, seed: int) -> Line:
        """Train and evaluate with lightly's modules."""
        training = self.training(method, seed)
        weights = self.place(method, "lightly", seed) / "encoder.safetensors"
        loss = list(training.steps())
        training.save(weights)
        last = statistics.fmean(loss[-len(loss) // self.settings.epochs :])
        return {"version": self.version, "last_loss": round(last, 4)} | self.evaluate(weights)

    def recipe(self, method: str, seed: int) -> Path:
        """Write and return the recipe of sslkit's side."""
        path = self.place(method, "sslkit", seed) / "parity.yaml"
        written = self.settings.recipe(method, self.data, self.initial(seed), seed)
        path.write_text(yaml.safe_dump(written, sort_keys=False))
        return path

    def sslkit(self, method: str, seed: int) -> Line:
        """Train and evaluate with sslkit."""
        path = self.recipe(method, seed)
        run = path.parent / "run"
        command(path.parent / "log", "train", str(path), "--run", str(run))
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        weights = path.parent / "encoder.safetensors"
        weights.write_bytes((run / "encoder.safetensors").read_bytes())
        return {"last_loss": round(rows[-1]["loss"], 4)} | self.evaluate(weights)

    def speed(self, method: str, seed: int) -> Line:
        """Return images per second of CPU time on one thread: median over blocks of steps.

        Loading, views, step. Both sides take turns in one process, without workers.
        """
        torch.set_num_threads(1)
        theirs = self.training(method, seed).steps()
        run = build(recipe.read(self.recipe(method, seed), overrides=["train.workers=0"]))
        ours: Iterator[Any] = trainer.train(run)
        seconds: dict[str, list[float]] = {"lightly": [], "sslkit": []}
        block = 3
        for turn in range(6):
            for side, steps in (("lightly", theirs), ("sslkit", ours)):
                began = time.process_time()
                for _ in range(block):
                    next(steps)
                if turn > 0:
                    seconds[side].append(time.process_time() - began)
        images = block * self.settings.batch_size
        pairs = zip(seconds["lightly"], seconds["sslkit"], strict=True)
        return {
            "lightly": round(images / statistics.median(seconds["lightly"]), 1),
            "sslkit": round(images / statistics.median(seconds["sslkit"]), 1),
            "ratio": round(statistics.median(one / other for one, other in pairs), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--results", type=Path, default=HERE / "parity.jsonl")
    parser.add_argument("--runs", type=Path, default=Path("runs/parity"))
    parser.add_argument("--report", action="store_true", help="write the table of parity.md")
    options = parser.parse_args()
    if options.data is None and not options.report:
        parser.error("--data is missing: name a folder with train/ and val/")
    if options.report:
        options.data = options.data or Path()
        lines = Benchmark(options).lines()
        write(HERE / "parity.md", lines)
        print(report(lines))
        return
    for split in ("train", "val"):
        if not (options.data / split).is_dir():
            parser.error(f"{options.data} has no folder {split}/")
    if set(options.sides) != {"sslkit"} and importlib.util.find_spec("lightly") is None:
        parser.error(MISSING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    benchmark = Benchmark(options)
    for seed in options.seeds:
        benchmark.run("untrained", "initial", seed)
        for method in options.methods:
            for side in options.sides:
                benchmark.run(method, side, seed)


if __name__ == "__main__":
    main()
