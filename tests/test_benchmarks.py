"""Every benchmark runs, on a tiny case of its own making; what it measures is not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def printed(name, *options):
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("options", "shown"), [((), "ours, both on one core"), (("--decode",), "WEBP")]
)
def test_views(options, shown):
    assert shown in printed("views.py", "--images", "4", "--repeats", "1", *options)


@pytest.mark.parametrize("more", [(), ("--wide",)], ids=["closure", "wide"])
def test_probe(more):
    small = ("--rows", "100", "--classes", "3", "--dim", "8", "--repeats", "1")
    assert "| ratio |" in printed("probe.py", *small, *more)


def test_step():
    assert "| tiny | float32 |" in printed(
        "step.py", "--cases", "tiny", "--steps", "2", "--set", "train.precision=fp32"
    )


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), "`memory_bank` takes products where rows / draws"),
        (("--step", "test_resnet", "--size", "64"), "goal: at most 3 %"),
    ],
)
def test_negatives(options, shown):
    assert shown in printed(
        "negatives.py",
        "--rows",
        "300",
        "--images",
        "2",
        "--negatives",
        "8",
        "--repeats",
        "1",
        *options,
    )


def test_pack():
    shown = printed("pack.py", "--files", "60", "--images", "50", "--repeats", "1")
    assert "| 60 | cold | bytes |" in shown and "| 60 | warm | views, 2 workers |" in shown


def test_start():
    shown = printed(
        "start.py", "--repeats", "1", "--set=train.batch_size=4", "--set=data.images=40"
    )
    assert "| `sslkit --help` |" in shown and "| the first step |" in shown


@pytest.mark.slow
def test_gpu_without_one(tmp_path):
    words = [
        BENCHMARKS / "gpu.sh",
        "--tiny",
        "--device",
        "cpu",
        "--eager",
        "--out",
        tmp_path / "gpu.json",
    ]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, env=environment, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "| eager: end to end |" in done.stdout and "compiled" not in done.stdout
    assert (
        json.loads((tmp_path / "gpu.json").read_text())["rates"]["eager"]["end to end"][
            "images_per_second"
        ]
        > 0
    )


@pytest.mark.slow
def test_kill():
    said = printed("kill.py", "--kills", "2", "--lives", "2")
    assert "0 workers: identical" in said and "identical end" in said
