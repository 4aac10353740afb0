"""Does it learn? Trains recipes with several seeds, evaluates each run, and prints one table beside
every baseline.

    python benchmarks/learning.py shapes
    python benchmarks/learning.py folder --data DIR --epochs 100 --methods pirl_jigsaw npid rotnet
    python benchmarks/learning.py folder --data DIR --table                # only the table of
    what is there

Every run is a `sslkit train` of its own, so a killed benchmark goes on where it stopped when it
is started again.
Scores are means over seeds, with the 95 % interval of Student's t where there are several.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from sslkit.evaluation.intervals import student

EVALUATIONS = ("linear", "knn")
METHODS = ["pirl_jigsaw", "pirl_rotation", "npid", "jigsaw", "rotnet"]
RECIPES = Path(__file__).parent.parent / "recipes"


def sslkit(threads: int, log: Path, *arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("a") as out:
        subprocess.run(
            [sys.executable, "-m", "sslkit", *arguments],
            env=environment,
            stdout=out,
            stderr=out,
            check=True,
        )


def run(method: str, seed: int, options: argparse.Namespace) -> Path:
    """Train and evaluate one recipe with one seed, or what is left of that; returns the run
    folder.
    """
    root = options.runs / options.set / f"seed{seed}"
    log = root / f"{method}.log"
    root.mkdir(parents=True, exist_ok=True)
    latest = root / method / "latest"
    finished = latest / "finished"
    if not finished.exists():
        if list(latest.glob("checkpoints/step-*")):
            sslkit(options.threads, log, "train", "--resume", str(latest))
        else:
            overrides = [f"name={method}", f"train.seed={seed}", *options.overrides]
            if options.epochs:
                overrides.append(f"train.epochs={options.epochs}")
            data = ["--data", str(options.data)] if options.data else []
            sets = [word for override in overrides for word in ("--set", override)]
            sslkit(
                options.threads,
                log,
                "train",
                str(options.recipes / f"{method}.yaml"),
                "--runs",
                str(root),
                *data,
                *sets,
            )
        finished.touch()
    for evaluation in EVALUATIONS:
        if not (latest / "eval" / f"{evaluation}.json").exists():
            sslkit(options.threads, log, "eval", evaluation, str(latest))
    return latest


def interval(values: list[float]) -> str:
    """The mean of several seeds with the half width of its 95 % interval."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    low, high = student(values)
    return f"{fmean(values):.1f} ± {(high - low) / 2:.1f}"


def headlines(folder: Path) -> dict[str, dict[str, float]]:
    """Top-1 in per cent by candidate and evaluation; of encoders, that of their features."""
    found: dict[str, dict[str, float]] = {}
    for name in EVALUATIONS:
        result = json.loads((folder / "eval" / f"{name}.json").read_text())
        for entry in result["entries"]:
            if entry["row"] in (None, "features"):
                value = entry["scores"]["top-1"]["value"]
                found.setdefault(entry["candidate"], {})[name] = 100 * value
    return found


def row(name: str, scores: list[dict[str, float]]) -> str:
    """One line of Markdown: mean and interval over seeds for each evaluation."""
    cells = [interval([score[evaluation] for score in scores]) for evaluation in EVALUATIONS]
    return f"| {name} | {' | '.join(cells)} | {len(scores)} |"


def table(folders: dict[str, list[Path]]) -> str:
    """Markdown: the baselines of the first method's runs, then each method."""
    lines = ["| features | linear probe | kNN | seeds |", "|---|---|---|---|"]
    runs = {method: [headlines(folder) for folder in there] for method, there in folders.items()}
    first = next(iter(runs.values()))
    for candidate in first[0]:
        if candidate != "trained":
            lines.append(row(candidate, [scores[candidate] for scores in first]))
    for method, scores in runs.items():
        lines.append(row(f"**{method}**", [score["trained"] for score in scores]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "set", metavar="NAME", help="a name for the runs' folder: shapes, caltech10_tiny, …"
    )
    parser.add_argument(
        "--data", type=Path, help="an image folder; the recipes' own data if left out"
    )
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--recipes", type=Path, default=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int)
    parser.add_argument(
        "--override", dest="overrides", action="append", default=[], metavar="KEY=VALUE"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs at once, each with --threads threads"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    jobs = [(method, seed) for seed in options.seeds for method in options.methods]
    if not options.table:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda job: run(*job, options), jobs))
    folders: dict[str, list[Path]] = {}
    for method, seed in jobs:
        folder = options.runs / options.set / f"seed{seed}" / method / "latest"
        if (folder / "eval" / "knn.json").exists():
            folders.setdefault(method, []).append(folder)
    print(table(folders))


if __name__ == "__main__":
    main()
