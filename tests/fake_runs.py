"""Stands in for `sslkit train` and `sslkit eval` in tests of sweeps: writes a run's files.

fake_runs.py CALLS train RECIPE --run DIR | eval NAME DIR. The score is 1 − |λ − 0.5| / 2 + seed/100
as a fraction; λ = 0.9 fails until DIR's parent holds a file `mended`; λ = 0.8 is killed at first;
λ = 0.7 trains until its standard input is closed.
"""

import json
import os
import signal
import sys
from pathlib import Path

import yaml

IMAGES = 64


def train(recipe: Path, folder: Path) -> None:
    chosen = yaml.safe_load(recipe.read_text())
    value, home = chosen["loss"]["lambda"], folder.parent
    if value == 0.9 and not (home / "mended").exists():
        sys.exit("it diverged; lower the rate")
    if value == 0.8 and not (home / "killed").exists():
        (home / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if value == 0.7:
        sys.stdin.read()
        sys.exit(143)
    step = chosen["train"]["epochs"] * (IMAGES // chosen["train"]["batch_size"])
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    folder.joinpath("recipe.yaml").write_text(recipe.read_text())
    state = {"step": step, "images": IMAGES, "fingerprint": "f", "unreadable": {}}
    state["optimizer"] = {"name": "SGD", "state": {}}
    (place / "state.json").write_text(json.dumps(state))


def evaluate(name: str, folder: Path) -> None:
    chosen = yaml.safe_load((folder / "recipe.yaml").read_text())
    value = 1 - abs(chosen["loss"]["lambda"] - 0.5) / 2 + chosen["train"]["seed"] / 100
    scores = {"trained": value, "untrained": 0.25, "chance": 0.1}
    entries = [
        {
            "row": None,
            "candidate": candidate,
            "scores": {"top-1": {"value": score, "values": [score], "intervals": []}},
            "differences": {},
        }
        for candidate, score in scores.items()
    ]
    step = int(max(os.listdir(folder / "checkpoints")).removeprefix("step-"))
    better = "lower" if chosen["loss"]["temperature"] == 0.5 else "higher"
    metric = {"name": "top-1", "unit": "%", "better": better, "low": 0, "high": 1}
    result = {"format": 1, "evaluation": name, "metrics": [metric], "entries": entries}
    result |= {"figures": [], "protocol": {"step": step}}
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval" / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    with open(sys.argv[1], "a") as calls:
        threads = os.environ.get("OMP_NUM_THREADS")
        calls.write(f"{sys.argv[2]} {Path(sys.argv[-1]).name} {threads}\n")
    if sys.argv[2] == "train":
        train(Path(sys.argv[3]), Path(sys.argv[5]))
    else:
        evaluate(sys.argv[3], Path(sys.argv[4]))
