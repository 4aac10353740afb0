"""It learns: the embedded run, shortened, ends well above its own initialisation, raw pixels and
chance.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parent.parent / "recipes" / "pirl_jigsaw.yaml"


@pytest.mark.slow
def test_the_embedded_run_learns(tmp_path):
    def sslkit(*arguments):
        subprocess.run(
            [sys.executable, "-m", "sslkit", *map(str, arguments)], check=True, cwd=tmp_path
        )

    sslkit("train", RECIPE, "--set", "train.epochs=15")
    sslkit("eval", "linear")
    result = json.loads((tmp_path / "runs/pirl_jigsaw/latest/eval/linear.json").read_text())
    found = {}
    for entry in result["entries"]:
        found[entry["candidate"]] = entry["scores"]["top-1"]["value"]
    trained = found.pop("trained")
    assert trained > max(found.values()) + 0.08
