"""Every benchmark runs, on a tiny case of its own making; what it measures is not judged here."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def printed(name, *options):
    """What a benchmark prints."""
    done = subprocess.run([sys.executable, BENCHMARKS / name, *options], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("options", "shown"), [((), "ours, both on one core"), (("--decode",), "WEBP")])
def test_views(options, shown):
    assert shown in printed("views.py", "--images", "4", "--repeats", "1", *options)


def test_step():
    assert "| tiny | float32 |" in printed("step.py", "--cases", "tiny", "--steps", "2", "--set", "train.precision=fp32")
