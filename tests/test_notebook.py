"""The notebook in `examples/` runs from top to bottom, and holds no outputs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_steps.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_the_notebook_holds_no_outputs():
    for cell in CELLS:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", "\n\n".join(CODE)],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for name in ("loss.png", "neighbours.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert "of the neighbours are of the image's class" in ran.stdout
    assert "linear: 320 training and 80 validation images, 10 classes" in ran.stdout
    assert "are recognised" in ran.stdout


@pytest.mark.slow
def test_a_kernel_runs_the_notebook(tmp_path):
    reason = "nbclient and ipykernel are not installed"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    shutil.copy(NOTEBOOK, tmp_path)
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
    nbformat.validate(notebook)
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "".join(output.get("text", "") for output in outputs if output.output_type == "stream")
    assert "health: healthy" in shown and "\x1b" not in shown
    assert any("image/png" in output.get("data", {}) for output in outputs)
