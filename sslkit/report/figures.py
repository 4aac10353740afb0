"""Draws the training curves of a run."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from sslkit.errors import SslkitError
from sslkit.report import fonts
from sslkit.runs import files
from sslkit.runs.metrics import UNTRAINED, Bins


def save(figure: Figure, path: Path, option: str = "") -> Path:
    """Write a figure atomically, in the format of the extension.

    Raises SslkitError if it cannot be written; the message names `option`, which selects another
    path.
    """
    FigureCanvasAgg(figure)
    fonts.choose(figure)
    try:
        with files.replacing(path, option) as beside, fonts.without_glyphs():
            kind = path.suffix[1:].lower() or "png"
            # Data sets recognise pictures of sslkit by this entry and skip them.
            metadata = {"Software": "sslkit"} if kind == "png" else None
            figure.savefig(beside, format=kind, dpi=fonts.DPI, metadata=metadata)
    except ValueError as error:
        raise SslkitError(
            f"cannot write {path}: '{path.suffix}' is not an image format; use .png, .jpg, .svg or "
            ".pdf"
        ) from error
    return path


def plain_axes(axes: Axes) -> Axes:
    """Hide the top and right spines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    return axes


def log_axis(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with ticks at 1, 2 and 5 times powers of 10."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.minorticks_off()


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a fiftieth of the curve, ignoring non-finite values."""
    width = max(1, len(values) // 50)
    finite = np.isfinite(values)
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - width, 0)

    def over_window(numbers: np.ndarray) -> np.ndarray:
        total = np.concatenate([np.zeros(1), np.cumsum(numbers)])
        return total[end] - total[begin]

    with np.errstate(invalid="ignore"):
        return over_window(np.where(finite, values, 0)) / over_window(finite)


SPARSE = 0.5
"""Fraction of bins with a value below which a curve is drawn as points, without smoothing."""

PANELS = 60
"""Largest number of curves in one figure."""


def curves(folder: Path, bins: Bins, *, title: str, epoch: int, chances: dict[str, float]) -> Path:
    """Draw curves.png with one panel per metric.

    A thin line shows the values, a thick line their running mean, a dashed line the chance level in
    `chances` or the untrained encoder. Points show metrics of few steps. The learning rate is not
    smoothed. The axis of `feature_std` starts at 0 and includes 1. Panel titles show the last
    value. `epoch` is the number of steps per epoch.
    """
    fixed = ("step", "epoch", "lr", "loss")
    names = [name for name in bins.totals if name not in fixed and not name.endswith(UNTRAINED)]
    names = [name for name in ("loss", "lr") if name in bins.totals] + names
    del names[PANELS:]
    columns = min(3, max(len(names), 1))
    lines = math.ceil(len(names) / columns) or 1
    width, height = 3.6 * columns, 0.6 + 2.5 * lines
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, fontsize=9, y=1 - 0.2 / height, va="center", parse_math=False, wrap=True)
    # Fixed margins, inches. A layout engine would lay out every text twice.
    grid = figure.add_gridspec(
        lines,
        columns,
        left=0.55 / width,
        right=1 - 0.1 / width,
        bottom=0.45 / height,
        top=1 - 0.7 / height,
        wspace=0.22,
        hspace=0.36,
    )
    epochs = bins.mean("step") / epoch if names else np.zeros(0)
    for place, name in enumerate(names):
        axes = plain_axes(figure.add_subplot(grid[place // columns, place % columns]))
        level = _level(bins, name, chances)
        _draw_curve(axes, epochs, bins.mean(name), name, level)
    return save(figure, folder / "curves.png")


def _level(bins: Bins, name: str, chances: dict[str, float]) -> tuple[str, float] | None:
    """Return name and value of the dashed line: chance level, or the untrained encoder."""
    if name in chances:
        return "chance", chances[name]
    untrained = f"{name}{UNTRAINED}"
    if untrained not in bins.totals or not bins.counts[untrained].any():
        return None
    return "untrained", float(bins.totals[untrained].sum() / bins.counts[untrained].sum())


def _draw_curve(
    axes: Axes,
    epochs: np.ndarray,
    values: np.ndarray,
    name: str,
    level: tuple[str, float] | None,
) -> None:
    known = np.isfinite(values)
    if known.mean() < SPARSE:
        axes.plot(epochs[known], values[known], linewidth=1.5, color="C0", marker="o", markersize=3)
    else:
        if name != "lr":
            axes.plot(epochs, values, linewidth=0.5, alpha=0.4)
        smooth = values if name == "lr" else _smooth(values)
        axes.plot(epochs, smooth, linewidth=1.5, color="C0")
    axes.grid(alpha=0.25)
    if level is not None:
        label = f"{level[0]} {level[1]:.3g}"
        axes.axhline(level[1], color="0.3", linewidth=1, linestyle="--", label=label)
        place = axes.get_yaxis_transform()
        axes.text(0.99, level[1], label, fontsize=7, ha="right", va="bottom", transform=place)
    if name.startswith("feature_std/"):
        axes.set_ylim(0, max(1.0, *np.nan_to_num(values)))
    finite = values[np.isfinite(values)]
    title = f"{name}   {finite[-1]:.3g}" if finite.size else name
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.set_xlabel("epoch", fontsize=7)
    axes.set_xlim(left=0)
