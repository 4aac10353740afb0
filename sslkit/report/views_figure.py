"""Draws images and their augmented views."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sslkit.errors import DataError, printable
from sslkit.interfaces import Batch, Draws, ImageSource, PretextTransform, Sample
from sslkit.report import figures, fonts

CELL, MOSAIC, GAP, SPACE, MARGIN, TOP = 1.1, 2.6, 0.06, 0.3, 0.15, 0.85
"""Sides of a crop and a mosaic, gaps between crops and groups, margins around and above, inches."""
ROW = 12
"""Largest number of crops in a row; more become a mosaic."""


def draw_views(
    source: ImageSource,
    transform: PretextTransform,
    path: Path,
    *,
    images: int = 3,
    draws: int = 2,
    seed: int = 0,
    title: str = "",
    option: str = "",
) -> Path:
    """Draw random images with all views of several draws, in the order that the model sees.

    `title` names the run or the recipe, and its method. Unreadable images are skipped. Raises
    DataError if no image can be read, and SslkitError if `path` cannot be written; the message
    names `option`, which selects another path.
    """
    chosen = _some(source, images, seed)
    sheet = _Sheet(transform, len(chosen), draws, title)
    for number, (index, image) in enumerate(chosen):
        sheet.original(number, image, printable(str(source.names[index])))
        for draw in range(draws):
            key = number * draws + draw
            drawn = transform.fetch(source, index, np.random.default_rng((seed, key)))
            sample = transform(drawn, np.random.default_rng((seed, key)))
            batch = transform.on_device(_batch(sample, index), Draws(seed, key))
            sheet.draw(number, draw, batch)
    return figures.save(sheet.figure, path, option)


def _some(source: ImageSource, count: int, seed: int) -> list[tuple[int, Image.Image]]:
    """Return `count` random images. Raises DataError if none of the drawn images can be read."""
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
        raise DataError(f"none of the drawn images can be read; the last is {reason}")
    return chosen


def _batch(sample: Sample, index: int) -> Batch:
    """Return a batch of one sample."""
    views = {name: view.unsqueeze(0) for name, view in sample.views.items()}
    targets = {name: target.unsqueeze(0) for name, target in sample.targets.items()}
    return Batch(views, targets, torch.tensor([index]))


class _Sheet:
    """The figure, with a block of rows per image and a row per draw."""

    def __init__(self, transform: PretextTransform, images: int, draws: int, title: str) -> None:
        self.transform = transform
        self.counts = {
            name: shape[0] if len(shape) == 4 else 1 for name, shape in transform.shapes.items()
        }
        self.line = MOSAIC if max(self.counts.values()) > ROW else CELL
        self.side = min(2, draws) * CELL
        self.block = draws * (self.line + GAP) + SPACE
        sizes = ", ".join(f"{name} {_size(shape)}" for name, shape in transform.shapes.items())
        caption = f"views that the model sees, in this order: {sizes}"
        wide = sum(SPACE + _width(count) for count in self.counts.values())
        head = " ".join(filter(None, (title, type(transform).__name__)))
        lines = max(fonts.width(head, 11, "bold"), fonts.width(caption, 8))
        self.width = 2 * MARGIN + max(self.side + wide, lines)
        self.height = TOP + images * self.block
        self.figure = Figure(figsize=(self.width, self.height))
        self._text(MARGIN, 0.25, head, fontsize=11, weight="bold", va="center")
        self._text(MARGIN, 0.45, caption, fontsize=8, va="center")

    def original(self, number: int, image: Image.Image, name: str) -> None:
        """Show an image and its name."""
        title = "" if number else "original"
        axes = self._show(
            np.asarray(image), MARGIN, TOP + number * self.block, self.side, title, anchor="N"
        )
        letters = int(self.side / 0.065)
        caption = name if len(name) <= letters else f"…{name[1 - letters :]}"
        text = axes.text(0.5, -0.03, caption, fontsize=6, ha="center", va="top", parse_math=False)
        text.set_transform(axes.transAxes)

    def draw(self, number: int, draw: int, batch: Batch) -> None:
        """Show all views of one draw, and its targets."""
        left, top = MARGIN + self.side, TOP + number * self.block + draw * (self.line + GAP)
        targets = [
            f"{name} {', '.join(map(str, target.flatten().tolist()))}"
            for name, target in batch.targets.items()
        ]
        where = {"rotation": 90, "ha": "right", "va": "center"}
        self._text(
            left + SPACE - 0.04, top + self.line / 2, "  ".join(targets), fontsize=6, **where
        )
        is_first = number == 0 and draw == 0
        for name, count in self.counts.items():
            left += SPACE
            pictures = self._pictures(batch.views[name])
            if count > ROW:
                title = f"{name} 1 … {count}" if is_first else ""
                self._show(_mosaic(pictures), left, top, MOSAIC, title)
                left += MOSAIC + GAP
                continue
            for crop, picture in enumerate(pictures, 1):
                title = name if count == 1 else f"{name} {crop}"
                self._show(picture, left, top, CELL, title if is_first else "")
                left += CELL + GAP

    def _pictures(self, view: Tensor) -> np.ndarray:
        """Convert a view of one image to pictures [K,H,W,3] in 0 … 1."""
        return self.transform.picture(view.flatten(0, -4)).permute(0, 2, 3, 1).numpy()

    def _show(
        self, picture: np.ndarray, left: float, top: float, side: float, title: str, anchor="C"
    ) -> Axes:
        """Show a picture in a square of `side` inches."""
        box = (left / self.width, 1 - (top + side) / self.height)
        axes = self.figure.add_axes((*box, side / self.width, side / self.height))
        axes.imshow(picture, interpolation="nearest")
        axes.set_axis_off()
        axes.set_anchor(anchor)
        axes.set_title(title, fontsize=7, pad=3)
        return axes

    def _text(self, left: float, top: float, text: str, **style) -> None:
        """Write text at a position in inches."""
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)


def _width(count: int) -> float:
    """Return the width of a view of `count` crops, inches."""
    return MOSAIC + GAP if count > ROW else count * (CELL + GAP)


def _size(shape: tuple[int, ...]) -> str:
    """Format the shape of a view: "224 px", "6 × 96 px", "224 px of 5 channels"."""
    crops = f"{shape[0]} × " if len(shape) == 4 else ""
    channels = "" if shape[-3] == 3 else f" of {shape[-3]} channels"
    return f"{crops}{shape[-1]} px{channels}"


def _mosaic(pictures: np.ndarray) -> np.ndarray:
    """Arrange pictures [K,H,W,3] in a square, row by row, with white gaps."""
    count, height, width, _ = pictures.shape
    columns = math.ceil(math.sqrt(count))
    rows, gap = math.ceil(count / columns), max(1, width // 12)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.float32)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet
