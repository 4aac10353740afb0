"""Every block of Python in docs/python.md runs, in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_evaluate import paint

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_blocks_of_the_page_run_in_order(tmp_path):
    paint(tmp_path / "photos", 11)
    paint(tmp_path / "labelled", 10)
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(BLOCKS)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    out = ran.stdout
    assert "linear: 24 training and 6 validation images, 3 classes" in out
    assert "is complete: 20 steps done; nothing to do" in out
    assert "train.epoch no such option of train; did you mean 'epochs'?" in out
    assert "by_hand: pirl, resnet18, step 2 of 2>" in out
