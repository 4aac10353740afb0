"""Pictures of a run: curves, what the model is shown, scores beside their floors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from sslkit.interfaces import ImageSource, PretextTransform


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format="png", dpi=110)
    beside.replace(path)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The running mean over about a fiftieth of the curve."""
    width = max(1, len(values) // 50)
    padded = np.concatenate([np.zeros(1), np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - width, 0)
    return (padded[end] - padded[begin]) / (end - begin)


def curves(folder: Path) -> Path:
    """curves.png from metrics.jsonl: one panel per number, thin as measured, thick its running mean."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = [name for name in (rows[0] if rows else {}) if name not in ("step", "epoch")]
    figure = Figure(figsize=(3.6 * max(len(names), 1), 3), layout="constrained")
    steps = np.array([row["step"] for row in rows])
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), place)
        values = np.array([row.get(name, np.nan) for row in rows], dtype=float)
        axes.plot(steps, values, linewidth=0.5, alpha=0.4)
        axes.plot(steps, _smooth(values), linewidth=1.5, color="C0")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
    path = folder / "curves.png"
    _save(figure, path)
    return path


def _displayable(view: Tensor, low: Tensor, high: Tensor) -> np.ndarray:
    """float [3,H,W] normalised → [H,W,3] in 0 … 1."""
    return ((view - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).numpy()


def views(source: ImageSource, transform: PretextTransform, path: Path, *, images: int = 3, draws: int = 2, seed: int = 0) -> Path:
    """views.png: for some images the original, then every view of several draws, crops in the order the model gets them."""
    from sslkit.interfaces import Batch, Draws

    size = transform.size
    low, high = transform.plain(torch.stack([torch.zeros(3, size, size), torch.full((3, size, size), 255)]).to(torch.uint8))
    low, high = low[:, :1, :1], high[:, :1, :1]
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(source), size=min(images, len(source)), replace=False)
    columns = 1 + sum(shape[0] if len(shape) == 4 else 1 for shape in transform.shapes.values())
    rows = len(chosen) * draws
    figure = Figure(figsize=(1.15 * columns, 1.3 * rows), layout="constrained")
    for row in range(rows):
        index = int(chosen[row // draws])
        image = source.image(index)
        sample = transform(image, np.random.default_rng((seed, row)))
        batch = Batch(
            {name: view.unsqueeze(0) for name, view in sample.views.items()},
            {name: target.unsqueeze(0) for name, target in sample.targets.items()},
            torch.tensor([index]),
        )
        batch = transform.on_device(batch, Draws(seed, row))
        pictures: list[tuple[str, Any]] = [(str(source.names[index])[-18:], np.asarray(image))]
        for name, view in batch.views.items():
            crops = view[0] if view.dim() == 5 else view
            answer = batch.targets.get("order", batch.targets.get("rotation"))
            title = name if answer is None else f"{name} ({', '.join(map(str, answer[0].reshape(-1).tolist()))})"
            pictures += [(title if k == 0 else "", _displayable(crop, low, high)) for k, crop in enumerate(crops)]
        for column, (title, picture) in enumerate(pictures):
            axes = figure.add_subplot(rows, columns, row * columns + column + 1)
            axes.imshow(picture)
            axes.set_axis_off()
            axes.set_title(title, fontsize=6)
    _save(figure, path)
    return path


def scores(result: dict[str, Any], path: Path) -> Path:
    """A bar for every floor and every score of an evaluation, in per cent."""
    bars = {**result["floors"], **{f"trained: {layer}": score["top1"] for layer, score in result["layers"].items()}}
    figure = Figure(figsize=(6, 0.5 + 0.4 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    values = list(bars.values())
    axes.barh(list(bars), values, color=["0.7"] * len(result["floors"]) + ["C0"] * len(result["layers"]))
    axes.invert_yaxis()
    axes.set_xlabel(f"{result['evaluation']}: top-1, per cent")
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.1f}", va="center", fontsize=8)
    axes.set_xlim(0, max(100.0, *values))
    _save(figure, path)
    return path
