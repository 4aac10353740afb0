"""Reads a run folder: recipe, newest checkpoint, metrics, encoder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sslkit.data.plain import plain_pixels
from sslkit.errors import DataError
from sslkit.interfaces import Encoder, Method, Pixels, PretextTransform
from sslkit.parts import DataFormat, make_method, make_transform
from sslkit.recipe import Recipe
from sslkit.runs import checkpoint as checkpoints
from sslkit.runs import folders, metrics
from sslkit.runs.state import State, data_format


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A run folder at its newest checkpoint; see `sslkit.load`.

    `notes` has a sentence for each damaged checkpoint that was skipped.
    """

    folder: Path
    recipe: Recipe
    checkpoint: Path
    state: State
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, recipe: Recipe | None = None) -> "TrainedRun":
        """Read the newest intact checkpoint. By default, the recipe is that of the folder.

        Raises CheckpointError if there is none, RecipeError if a part is not installed.
        """
        if recipe is None:
            recipe = folders.read_recipe(folder, opened=False)
        found, state, notes = checkpoints.newest(folder)
        return cls(folder, recipe, found, state, tuple(notes))

    @property
    def step(self) -> int:
        """Completed steps at the checkpoint."""
        return self.state["step"]

    @property
    def steps(self) -> int:
        """Steps of the complete training."""
        chosen = self.recipe.train
        return chosen.epochs * (self.state["images"] // chosen.batch_size)

    @property
    def data(self) -> DataFormat:
        """Number of images, channels, bits and classes of the training data."""
        return data_format(self.state)

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The columns of metrics.jsonl: `step`, `epoch`, `lr`, `loss` and more, each [steps].

        `pandas.DataFrame(run.metrics)` is the table of all steps.
        """
        return metrics.columns(self.folder / "metrics.jsonl")

    @cached_property
    def size(self) -> int:
        """Side of the images in evaluations, px."""
        return make_transform(self.recipe, self.data).size

    def parts(self, *, trained: bool = True) -> tuple[Method, PretextTransform]:
        """Create method and transform, with the checkpoint's weights or with initial weights."""
        transform = make_transform(self.recipe, self.data)
        method = make_method(self.recipe, transform, self.data, restored=trained)
        if trained:
            checkpoints.load_method(method, self.checkpoint)
        return method, transform

    def encoder(self) -> Encoder:
        """Create the trained encoder: float32 [N,C,S,S] of `transform` → [N,dim].

        Returns a new `torch.nn.Module` on the CPU, in evaluation mode.
        """
        method, _ = self.parts()
        return method.exported.eval()

    @torch.no_grad()
    def transform(self, image: Image.Image | np.ndarray) -> Tensor:
        """Convert an image to the encoder's input: float32 [C,size,size], normalised.

        Resizes the short side to 256/224 of `size` and crops the central square, as evaluations do.
        Accepts a PIL image, or an array uint8 or uint16 [H,W,C] for runs on other than 8-bit RGB.
        Raises DataError for an array of another format.
        """
        pixels = torch.tensor(plain_pixels(self._decoded(image), self.size))
        normalised = self._plain.plain(pixels.permute(2, 0, 1)[None])
        return normalised[0]

    def _decoded(self, image: Image.Image | np.ndarray) -> Image.Image | Pixels:
        if isinstance(image, Image.Image) and (self.data.channels, self.data.bits) == (3, 8):
            return ImageOps.exif_transpose(image).convert("RGB")
        values = np.asarray(image)
        kind = np.uint8 if self.data.bits == 8 else np.uint16
        if values.ndim != 3 or values.shape[2] != self.data.channels or values.dtype != kind:
            raise DataError(
                f"the run reads images {np.dtype(kind).name} [H,W,{self.data.channels}], but this "
                f"one is {values.dtype} {list(values.shape)}"
            )
        if kind is np.uint8 and self.data.channels == 3:
            return Image.fromarray(values)
        channels_first = torch.from_numpy(values.transpose(2, 0, 1).copy())
        return Pixels(channels_first, values.shape[1], values.shape[0])

    @cached_property
    def _plain(self) -> PretextTransform:
        """The transform with the encoder's normalisation."""
        _, transform = self.parts()
        return transform

    def facts(self) -> dict[str, Any]:
        """Return the run's entries in the protocol of an evaluation."""
        return {
            "run": str(self.folder),
            "method": self.recipe.method.use,
            "checkpoint": self.checkpoint.name,
            "step": self.step,
        }

    def __repr__(self) -> str:
        done = f"step {self.step:,} of {self.steps:,}"
        encoder = self.recipe.encoder
        model = encoder.options.get("model", encoder.use)
        return f"<run {self.folder}: {self.recipe.method.use}, {model}, {done}>"
