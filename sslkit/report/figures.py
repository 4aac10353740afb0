"""Pictures of a run: curves, what the model is shown."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sslkit.errors import DataError, SslkitError, printable
from sslkit.interfaces import Batch, Draws, ImageSource, PretextTransform


def save(figure: Figure, path: Path) -> Path:
    """The whole picture or none, in the format of its ending. SslkitError where it cannot be written."""
    FigureCanvasAgg(figure)
    beside = path.with_name(f".{path.name}")
    try:
        with warnings.catch_warnings():
            # A name in letters that the font lacks is shown as boxes.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(beside, format=path.suffix[1:].lower() or "png", dpi=110)
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


def _displayable(view: Tensor, low: Tensor, high: Tensor) -> np.ndarray:
    """float [3,H,W] normalised → [H,W,3] in 0 … 1."""
    return ((view - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).numpy()


def _some(source: ImageSource, count: int, seed: int) -> list[tuple[int, Image.Image]]:
    """`count` images drawn at random, passing over those that cannot be read. DataError where none can."""
    chosen: list[tuple[int, Image.Image]] = []
    reason = ""
    for index in np.random.default_rng(seed).permutation(len(source))[: count + 20].tolist():
        try:
            chosen.append((index, source.image(index)))
        except Exception as error:
            reason = f"{source.names[index]}: {error}"
        if len(chosen) == count:
            break
    if not chosen:
        raise DataError(f"none of the images drawn can be read, the last being {reason}")
    return chosen


CELL, GAP, SPACE, MARGIN, TOP = 1.1, 0.06, 0.3, 0.15, 0.85
"""Inches: side of a view, between views, between groups of them, around all, above all."""


def views(
    source: ImageSource,
    transform: PretextTransform,
    path: Path,
    *,
    images: int = 3,
    draws: int = 2,
    seed: int = 0,
) -> Path:
    """views.png: for some images the original, then every view of several draws, crops in the order the model gets them."""
    size = transform.size
    low, high = transform.plain(
        torch.stack([torch.zeros(3, size, size), torch.full((3, size, size), 255)]).to(torch.uint8)
    )
    low, high = low[:, :1, :1], high[:, :1, :1]
    chosen = _some(source, images, seed)
    crops = {name: shape[0] if len(shape) == 4 else 1 for name, shape in transform.shapes.items()}
    original = min(2, draws) * CELL
    block = draws * (CELL + GAP) + SPACE
    width = (
        MARGIN + original + sum(SPACE + count * (CELL + GAP) for count in crops.values()) + MARGIN
    )
    height = TOP + len(chosen) * block
    figure = Figure(figsize=(width, height))
    figure.text(
        MARGIN / width,
        1 - 0.25 / height,
        type(transform).__name__,
        fontsize=11,
        weight="bold",
        va="center",
    )
    figure.text(
        MARGIN / width,
        1 - 0.45 / height,
        "what the model is shown, in the drawn order",
        fontsize=8,
        va="center",
    )

    def show(picture: Any, left: float, top: float, side: float, title: str = "") -> Axes:
        axes = figure.add_axes(
            (left / width, 1 - (top + side) / height, side / width, side / height)
        )
        axes.imshow(picture, interpolation="nearest")
        axes.set_axis_off()
        axes.set_anchor("N")
        axes.set_title(title, fontsize=7, pad=3)
        return axes

    for number, (index, image) in enumerate(chosen):
        top = TOP + number * block
        name, letters = printable(str(source.names[index])), int(original / 0.065)
        axes = show(np.asarray(image), MARGIN, top, original, "" if number else "original")
        caption = name if len(name) <= letters else f"…{name[1 - letters :]}"
        axes.text(
            0.5,
            -0.03,
            caption,
            fontsize=6,
            ha="center",
            va="top",
            transform=axes.transAxes,
            parse_math=False,
        )
        for draw in range(draws):
            key = number * draws + draw
            sample = transform(image, np.random.default_rng((seed, key)))
            batch = Batch(
                {name: view.unsqueeze(0) for name, view in sample.views.items()},
                {name: target.unsqueeze(0) for name, target in sample.targets.items()},
                torch.tensor([index]),
            )
            batch = transform.on_device(batch, Draws(seed, key))
            left, line = MARGIN + original, top + draw * (CELL + GAP)
            answers = [
                f"{name} {', '.join(map(str, target.flatten().tolist()))}"
                for name, target in sample.targets.items()
            ]
            place = (left + SPACE - 0.04) / width, 1 - (line + CELL / 2) / height
            figure.text(
                *place, "  ".join(answers), fontsize=6, rotation=90, ha="right", va="center"
            )
            for group, count in crops.items():
                left += SPACE
                view = batch.views[group]
                for crop, pixels in enumerate(view.flatten(0, -4), 1):
                    title = "" if key else group if count == 1 else f"{group} {crop}"
                    show(_displayable(pixels, low, high), left, line, CELL, title)
                    left += CELL + GAP
    return save(figure, path)
