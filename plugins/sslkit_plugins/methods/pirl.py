"""PIRL (Misra & van der Maaten 2020, arXiv:1912.01991).

"Self-Supervised Learning of Pretext-Invariant Representations". The official code is
facebookresearch/vissl. Letters: B images, K patches, D features.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import (
    Batch,
    Epoch,
    Method,
    Negatives,
    Output,
    Parts,
    Pixels,
    Progress,
    Sample,
)
from sslkit_plugins.methods.jigsaw import (
    Cutter,
    Grid,
    ImageSide,
    PatchSide,
    PuzzleArea,
    PuzzleSide,
    hamming_permutations,
)
from sslkit_plugins.momentum import feature_std
from sslkit_plugins.views.crops import Coloured, Flip, MinArea, Side
from sslkit_plugins.views.cuts import Area, Cut, flip_or_not
from sslkit_plugins.views.photometric import Photometric


class Jigsaw(Photometric):
    """A crop of an image, and the shuffled patches of another crop (supplement A.1).

    Image and puzzle are cropped independently, and every patch has its own colours and flip. A
    number of `permutations` restricts them to a set with large Hamming distances, as in the paper's
    figure 7, and adds the target `order`. `all` draws any of the K! permutations.
    """

    views = ("image", "patches")
    counts: ClassVar = {"patches": None}
    targets = ("order",)

    def __init__(
        self,
        channels: int = 3,
        /,
        *,
        size: ImageSide = 224,
        grid: Grid = 3,
        resize: PuzzleSide = 255,
        patch: PatchSide = 64,
        min_area: PuzzleArea = 0.6,
        image_min_area: Annotated[
            Area,
            Field(
                description="Smallest area of the image view's crop, as a fraction of the image. "
                "PIRL: 0.08."
            ),
        ] = 0.08,
        colours: Coloured = "official",
        flip: Flip = 0.5,
        permutations: Annotated[
            PositiveInt | Literal["all"],
            Field(
                description="Number of permutations to draw from. all: any of the K! "
                "permutations, without a target."
            ),
        ] = "all",
    ) -> None:
        cutter = Cutter(grid, resize, patch)
        image = Cut(size=size, area=(image_min_area, 1.0), colours=colours, flip=flip)
        puzzle = Cut(size=resize, area=(min_area, 1.0), colours=colours, flip=flip)
        super().__init__({"image": image, "patches": puzzle}, channels)
        self.cutter = cutter
        self.shapes["patches"] = (grid**2, channels, patch, patch)
        self.permutations = None
        if permutations != "all":
            self.permutations = hamming_permutations(grid**2, permutations)
            self.num_targets = {"order": len(self.permutations)}

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """Return views `image`, integer [C,size,size], and `patches`, [K,C,patch,patch]."""
        view, puzzle = self.cut(image, rng)
        patches = self.cutter(self.rotated(puzzle, rng), rng)
        targets = {}
        if self.permutations is None:
            order = rng.permutation(len(patches))
        else:
            number = int(rng.integers(len(self.permutations)))
            order, targets = self.permutations[number], {"order": torch.tensor(number)}
        shuffled = torch.stack([patches[i] for i in order])
        return Sample({"image": view, "patches": shuffled}, targets)

    def rotated(self, puzzle: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the puzzle [C,resize,resize] that is cut into patches."""
        return puzzle

    def state(self) -> dict[str, Tensor]:
        """Return the set of permutations."""
        if self.permutations is None:
            return {}
        return {"permutations": torch.from_numpy(self.permutations)}


class JigsawRotation(Jigsaw):
    """Like `jigsaw`, but rotates the puzzle by 0, 90, 180 or 270 degrees first (table 5)."""

    def rotated(self, puzzle: Tensor, rng: np.random.Generator) -> Tensor:
        """Rotate the puzzle [C,resize,resize] by a random number of quarter turns."""
        return torch.rot90(puzzle, int(rng.integers(4)), (1, 2))


class Rotation(Photometric):
    """Two crops of an image, the second rotated by 0, 90, 180 or 270 degrees (supplement A.2).

    Both crops have the same augmentation. The flip precedes the rotation; colours commute with
    both.
    """

    views = ("image", "rotated")
    counts: ClassVar = {}
    targets = ("rotation",)

    def __init__(
        self,
        channels: int = 3,
        /,
        *,
        size: Side = 224,
        min_area: MinArea = 0.08,
        colours: Coloured = "official",
        flip: Flip = 0.5,
    ) -> None:
        cut = Cut(size=size, area=(min_area, 1.0), colours=colours, flip=0.0)
        super().__init__({"image": cut, "rotated": cut}, channels)
        self.flip = flip
        self.num_targets = {"rotation": 4}

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """Return views `image` and `rotated`, integer [C,size,size], and target `rotation`.

        `rotation` is the number of counter-clockwise quarter turns.
        """
        view, other = [flip_or_not(crop, rng, self.flip) for crop in self.cut(image, rng)]
        turns = int(rng.integers(4))
        rotated = torch.rot90(other, turns, (1, 2)).contiguous()
        return Sample({"image": view, "rotated": rotated}, {"rotation": torch.tensor(turns)})


class Pirl(Method):
    """Pull f(image) and g(pretext view) towards the image's bank entry, away from other entries.

    Each head is named after the view that it reads: `image`, and the transform's pretext view.
    """

    crops: ClassVar = {}
    compares = None
    stores = ("image",)
    recalls = True
    contrasts = True

    def __init__(self, parts: Parts, /) -> None:
        super().__init__(parts)
        if "image" not in self.heads or len(self.heads) > 2:
            message = (
                "method 'pirl' needs a view 'image' and one pretext view, but the heads read: "
                f"{', '.join(self.heads)}"
            )
            raise RecipeError(Fault("transform", message))
        # The encoder sees the pretext view first, as in the official code. Batch norm's running
        # statistics then end with the image.
        self.order = sorted(self.heads, key=lambda name: name == "image")
        weights = getattr(self.loss, "weights", (1, 1)) if len(self.heads) > 1 else (1,)
        self.judged = [name for name, weight in zip(self.order, weights, strict=True) if weight]
        """Views whose loss terms have a non-zero weight; only these are monitored."""

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare both outputs [B,D] with the images' bank entries."""
        outputs = {name: self.heads[name](self.encode(batch.views[name])) for name in self.order}
        memory = self.sampler.recall(batch.index)
        negatives = self.sampler.draw(batch.index, progress.draws, terms=len(outputs))
        return self.compare(outputs, memory, negatives)

    def compare(self, outputs: dict[str, Tensor], memory: Tensor, negatives: Negatives) -> Output:
        """Compare the outputs [B,D] of every view with unit-norm vectors [B,D] and negatives."""
        loss = self.loss(torch.stack(list(outputs.values())), memory, negatives)
        unit = {name: F.normalize(rows.detach().float(), dim=-1) for name, rows in outputs.items()}
        metrics = {"match": (unit["image"] * memory).sum(-1).mean()}
        terms = getattr(self.loss, "terms", None)
        if terms is not None and len(terms) > 1:
            metrics |= {f"loss_{name}": term for name, term in zip(self.order, terms, strict=True)}
        deviations = {name: feature_std(unit[name]) for name in self.judged}
        return Output(loss, metrics, deviations, keep={"image": outputs["image"].detach()})

    def begin_epoch(self, epoch: Epoch) -> None:
        """Fill the bank with f(image) and freeze the loss's constant, before the first step.

        `official` freezes ē at the first batch (VISSL, `nce_loss.py`), here over all of its
        micro-batches.
        """
        if epoch.progress.step > 0:
            return
        if self.sampler.needs_fill:
            for batch in epoch.views():
                keys = self.heads["image"](self.encode(batch.views["image"]))
                index, keys = distributed.gather(batch.index), distributed.gather(keys.float())
                self.sampler.fill(index, keys)
        observe = getattr(self.loss, "observe", None)
        if observe is not None and epoch.micro_batches > 1:
            with observe():
                for batch, progress in epoch.next_step():
                    self(batch, progress)

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Move the bank entries towards f(image), never g, once per step (section 3.2)."""
        self.sampler.update(index, kept["image"])

    def at_start(self, images: int) -> float | None:
        """Return the loss of random unit vectors against a random bank."""
        dim = self.head("image").out_dim
        return self.loss.at_start(dim=dim, negatives=self.sampler.candidates)

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the chance level of the loss and of each term with a non-zero weight.

        All terms compare with the same bank, so they have the same chance level.
        """
        dim = self.head("image").out_dim
        chance = self.loss.at_chance(dim=dim, negatives=self.sampler.candidates)
        if chance is None:
            return {}
        terms = [f"loss_{name}" for name in self.judged] if len(self.order) > 1 else []
        return dict.fromkeys(["loss", *terms], chance)
