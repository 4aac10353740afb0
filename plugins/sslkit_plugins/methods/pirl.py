"""PIRL: Misra & van der Maaten 2020, "Self-Supervised Learning of Pretext-Invariant
Representations", arXiv:1912.01991.

Letters: B images, K patches, D features. "Official" is facebookresearch/vissl.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Batch, Epoch, Method, Output, Parts, Pixels, Progress, Sample
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
    """An image, and the shuffled patches of another crop of it (supplement A.1).

    Image and puzzle are cropped independently, and every patch has its own colours and flip.
    `permutations` limits the orders to a set that differs in many places, as in the paper's
    figure 7, and provides the target `order`; `all` draws any of the K! orders.
    """

    views = ("image", "patches")

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
        """Cut image, integer [C,size,size], and patches, integer [K,C,patch,patch]."""
        whole, puzzle = self.cut(image, rng)
        patches = self.cutter(self.rotated(puzzle, rng), rng)
        targets = {}
        if self.permutations is None:
            order = rng.permutation(len(patches))
        else:
            number = int(rng.integers(len(self.permutations)))
            order, targets = self.permutations[number], {"order": torch.tensor(number)}
        shuffled = torch.stack([patches[i] for i in order])
        return Sample({"image": whole, "patches": shuffled}, targets)

    def rotated(self, puzzle: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the puzzle [C,resize,resize] as it is cut into patches."""
        return puzzle

    def state(self) -> dict[str, Tensor]:
        """Return the set of orders."""
        if self.permutations is None:
            return {}
        return {"permutations": torch.from_numpy(self.permutations)}


class JigsawRotation(Jigsaw):
    """Like `jigsaw`, the puzzle rotated by 0, 90, 180 or 270 degrees before it is cut (table 5)."""

    def rotated(self, puzzle: Tensor, rng: np.random.Generator) -> Tensor:
        """Rotate the puzzle [C,resize,resize] by a random number of quarter turns."""
        return torch.rot90(puzzle, int(rng.integers(4)), (1, 2))


class Rotation(Photometric):
    """An image, and another crop of it, rotated by 0, 90, 180 or 270 degrees (supplement A.2).

    Both are augmented alike, and flipped as they are cut, hence before the rotation; colours do not
    depend on their order.
    """

    views = ("image", "rotated")

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
        """Cut image and rotated, integer [C,size,size].

        `rotation` counts counter-clockwise quarter turns.
        """
        whole, other = [flip_or_not(view, rng, self.flip) for view in self.cut(image, rng)]
        turns = int(rng.integers(4))
        rotated = torch.rot90(other, turns, (1, 2)).contiguous()
        return Sample({"image": whole, "rotated": rotated}, {"rotation": torch.tensor(turns)})


class Pirl(Method):
    """Pull f(image) and g(pretext view) towards the image's bank entry, away from other entries.

    The heads have the names of the views that they read: `image`, and the pretext view of the
    transform.
    """

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
        # The pretext view passes the encoder first, as in the official code, so that batch norm's
        # running statistics end with the image.
        self.order = sorted(self.heads, key=lambda name: name == "image")
        weights = getattr(self.loss, "weights", (1, 1)) if len(self.heads) > 1 else (1,)
        self.judged = [name for name, weight in zip(self.order, weights, strict=True) if weight]
        """Views whose terms have weight; only these are judged."""

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare both outputs [B,D] with the bank's entries of the images."""
        outputs = {name: self.heads[name](self.encode(batch.views[name])) for name in self.order}
        memory = self.sampler.recall(batch.index)
        negatives = self.sampler.draw(batch.index, progress.draws, terms=len(outputs))
        loss = self.loss(torch.stack(list(outputs.values())), memory, negatives)
        unit = {name: F.normalize(rows.detach().float(), dim=-1) for name, rows in outputs.items()}
        metrics = {"match": (unit["image"] * memory).sum(-1).mean()}
        terms = getattr(self.loss, "terms", None)
        if terms is not None and len(terms) > 1:
            metrics |= {f"loss_{name}": term for name, term in zip(self.order, terms, strict=True)}
        deviations = {name: feature_std(unit[name]) for name in self.judged}
        return Output(loss, metrics, deviations, keep={"image": outputs["image"].detach()})

    def begin_epoch(self, epoch: Epoch) -> None:
        """Before the first step: fill the bank with f(image), freeze the constant of the loss.

        `official` freezes ē at the first batch (VISSL, `nce_loss.py`). With several
        micro-batches it must be that of all of them.
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
        """Move the bank's entries towards f(image), never g, once a step (section 3.2)."""
        self.sampler.update(index, kept["image"])

    def at_start(self, images: int) -> float | None:
        """Random unit vectors against a random bank."""
        dim = self.head("image").out_dim
        return self.loss.at_start(dim=dim, negatives=self.sampler.candidates)

    def at_chance(self, images: int) -> dict[str, float]:
        """Terms compare with the same bank, so their chances are alike; none without weight."""
        dim = self.head("image").out_dim
        chance = self.loss.at_chance(dim=dim, negatives=self.sampler.candidates)
        if chance is None:
            return {}
        terms = [f"loss_{name}" for name in self.judged] if len(self.order) > 1 else []
        return dict.fromkeys(["loss", *terms], chance)
