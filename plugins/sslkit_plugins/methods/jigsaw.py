"""Jigsaw puzzles (Noroozi & Favaro 2016, arXiv:1603.09246).

"Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles". PIRL compares its
jigsaw view with this covariant task. Letters: K patches, B images.
"""

import functools
import itertools
import math
from typing import Annotated, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Pixels, Sample
from sslkit_plugins.methods.predict import Predict
from sslkit_plugins.views.colours import ColourList
from sslkit_plugins.views.crops import Flip
from sslkit_plugins.views.cuts import Area, Cut, flip_or_not
from sslkit_plugins.views.photometric import Photometric

Grid = Annotated[
    int, Field(ge=2, description="Cells per side of the puzzle. Noroozi & Favaro, PIRL: 3.")
]
ImageSide = Annotated[int, Field(ge=1, description="Side of the image view, px, usually 224.")]
PuzzleSide = Annotated[
    int, Field(ge=1, description="Side of the puzzle, px. VISSL: 255, in 3 × 3 cells of 85 px.")
]
PatchSide = Annotated[
    int,
    Field(ge=1, description="Side of a patch, px, cut at a random place in its cell. VISSL: 64."),
]
PuzzleArea = Annotated[
    Area,
    Field(description="Smallest area of the puzzle, as a fraction of the image. PIRL, VISSL: 0.6."),
]

POOL = 300_000
"""Number of random permutations to choose from if all are too many (K > 9)."""


@functools.cache
def hamming_permutations(patches: int, count: int, seed: int = 0) -> np.ndarray:
    """Return permutations with large Hamming distances (algorithm 1).

    Greedy: the first is random; each further one maximises the smallest distance to the previous
    ones, with random ties. Returns uint8 [min(count, patches!), patches].
    """
    rng = np.random.default_rng(seed)
    if patches <= 9:
        every = itertools.chain.from_iterable(itertools.permutations(range(patches)))
        candidates = np.fromiter(every, np.uint8, patches * math.factorial(patches)).reshape(
            -1, patches
        )
        candidates = rng.permutation(candidates)
    else:
        candidates = np.unique(
            rng.permuted(np.tile(np.arange(patches, dtype=np.uint8), (POOL, 1)), axis=1), axis=0
        )
        candidates = rng.permutation(candidates)
    if count >= len(candidates):
        return candidates
    places = np.ascontiguousarray(candidates.T)
    nearest = np.full(len(candidates), patches, np.uint8)
    chosen = np.empty(count, np.int64)
    for number in range(count):
        chosen[number] = nearest.argmax()
        distance = np.zeros_like(nearest)
        for place, patch in zip(places, candidates[chosen[number]], strict=True):
            distance += place != patch
        np.minimum(nearest, distance, out=nearest)
    return candidates[chosen]


class Cutter:
    """Cuts a puzzle of `resize` px per side into grid² patches of `patch` px, one per cell.

    The offset in the cell is uniform in 0 … cell-patch on each axis; VISSL's code never draws the
    last one. Raises RecipeError if a patch does not fit into a cell.
    """

    def __init__(self, grid: int, resize: int, patch: int) -> None:
        self.grid, self.cell, self.patch = grid, resize // grid, patch
        if patch > self.cell:
            fault = (
                f"{patch} pixels do not fit into a cell of {self.cell}: a puzzle of {resize} has "
                f"{grid} cells per side; use at most {self.cell}"
            )
            raise RecipeError(Fault("transform.patch", fault))

    def __call__(self, puzzle: Tensor, rng: np.random.Generator) -> list[Tensor]:
        """Cut [C,resize,resize] into K of [C,patch,patch], row by row."""
        most = self.cell - self.patch + 1
        offsets = rng.integers(0, most, (self.grid, self.grid, 2)).tolist()
        patches = []
        for row, column in itertools.product(range(self.grid), repeat=2):
            down, right = offsets[row][column]
            top, left = self.cell * row + down, self.cell * column + right
            patches.append(puzzle[:, top : top + self.patch, left : left + self.patch])
        return patches


class Puzzle(Photometric):
    """Shuffled patches of one crop; the target is the number of their permutation.

    Flips and colours are drawn for the whole crop, as in VISSL's `jigsaw_8gpu_resnet.yaml`:
    grayscale for 66 % of the images hides chromatic aberration, which reveals positions.
    """

    views = ("patches",)
    counts: ClassVar = {"patches": None}
    targets = ("order",)

    def __init__(
        self,
        channels: int = 3,
        /,
        *,
        size: Annotated[
            int, Field(ge=1, description="Side of the images in evaluations, px.")
        ] = 224,
        grid: Grid = 3,
        resize: PuzzleSide = 255,
        patch: PatchSide = 64,
        min_area: PuzzleArea = 0.6,
        colours: Annotated[
            ColourList,
            Field(
                description="Colour augmentation, drawn once per image: a preset or its options."
            ),
        ] = "gray",
        flip: Flip = 0.5,
        permutations: Annotated[
            int,
            Field(
                ge=2,
                description="Number of permutations, which are the classes. VISSL: 100, 2,000 or "
                "10,000.",
            ),
        ] = 2000,
    ) -> None:
        cutter = Cutter(grid, resize, patch)
        cut = Cut(size=resize, area=(min_area, 1.0), colours=colours, flip=0.0, shared="all")
        super().__init__({"patches": cut}, channels)
        self.size, self.cutter, self.flip = size, cutter, flip
        self.permutations = hamming_permutations(grid**2, permutations)
        self.shapes = {"patches": (grid**2, channels, patch, patch)}
        self.num_targets = {"order": len(self.permutations)}

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """Return view `patches`, integer [K,C,patch,patch], and target `order`, int64 []."""
        (puzzle,) = self.cut(image, rng)
        patches = self.cutter(flip_or_not(puzzle, rng, self.flip), rng)
        order = int(rng.integers(len(self.permutations)))
        shuffled = torch.stack([patches[i] for i in self.permutations[order]])
        return Sample({"patches": shuffled}, {"order": torch.tensor(order)})

    def state(self) -> dict[str, Tensor]:
        """Return the set of permutations."""
        return {"permutations": torch.from_numpy(self.permutations)}


class Jigsaw(Predict):
    """Predict the permutation of the patches from their concatenated features.

    The context-free network of the paper, section 3.
    """

    reads: ClassVar = {"order": "patches"}
    predicts: ClassVar = {"order": "order"}
    crops: ClassVar = {}
