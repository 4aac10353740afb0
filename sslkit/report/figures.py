"""Pictures of a run: its curves."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sslkit.errors import SslkitError, printable


def save(figure: Figure, path: Path) -> Path:
    """The whole picture or none, in the format of its ending. SslkitError where it cannot be written."""
    FigureCanvasAgg(figure)
    beside = path.with_name(f".{path.name}")
    try:
        with warnings.catch_warnings():
            # A name in letters that the font lacks is shown as boxes.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            kind = path.suffix[1:].lower() or "png"
            # Data sets recognise pictures of sslkit by this, and pass over them.
            metadata = {"Software": "sslkit"} if kind == "png" else None
            figure.savefig(beside, format=kind, dpi=110, metadata=metadata)
        beside.replace(path)
    except ValueError as error:
        raise SslkitError(
            f"cannot write {path}: no picture ends in '{path.suffix}'; take .png, .jpg, .svg or .pdf"
        ) from error
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise SslkitError(f"cannot write {path}: {error.strerror}") from error
    return path


def plain_axes(axes: Axes) -> Axes:
    """Only what carries numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    return axes


def _smooth(values: np.ndarray) -> np.ndarray:
    """The running mean over about a fiftieth of the curve; what is not finite is left out of it."""
    width = max(1, len(values) // 50)
    known = np.isfinite(values)
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - width, 0)

    def over_window(numbers: np.ndarray) -> np.ndarray:
        total = np.concatenate([np.zeros(1), np.cumsum(numbers)])
        return total[end] - total[begin]

    with np.errstate(invalid="ignore"):
        return over_window(np.where(known, values, 0)) / over_window(known)


PANELS = 60
"""Most curves in one picture."""


def curves(folder: Path) -> Path:
    """curves.png from metrics.jsonl: one panel per number, thin as measured, thick its running mean."""
    rows = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    names = list(
        dict.fromkeys(
            name for row in rows for name in ("loss", *row) if name not in ("step", "epoch")
        )
    )[:PANELS]
    columns = min(3, max(len(names), 1))
    lines = math.ceil(len(names) / columns) or 1
    figure = Figure(figsize=(3.6 * columns, 0.5 + 2.5 * lines), layout="constrained")
    figure.suptitle(printable(f"{folder.parent.name}  {folder.name}"), fontsize=9, parse_math=False)
    steps = np.array([row["step"] for row in rows])
    for place, name in enumerate(names, 1):
        axes = plain_axes(figure.add_subplot(lines, columns, place))
        values = np.array([row.get(name, np.nan) for row in rows], dtype=float)
        smooth = _smooth(values)
        axes.plot(steps, values, linewidth=0.5, alpha=0.4)
        axes.plot(steps, smooth, linewidth=1.5, color="C0")
        axes.grid(alpha=0.25)
        axes.set_title(
            printable(f"{name}   {smooth[-1]:.3g}"), fontsize=9, loc="left", parse_math=False
        )
        axes.set_xlabel("step", fontsize=7)
    return save(figure, folder / "curves.png")
