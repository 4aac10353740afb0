"""RotNet (Gidaris, Singh & Komodakis 2018, arXiv:1803.07728).

"Unsupervised Representation Learning by Predicting Image Rotations". PIRL compares its rotation
view with this covariant task. Letters: B images, K copies.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from sslkit.interfaces import Pixels, Sample
from sslkit_plugins.methods.predict import Predict
from sslkit_plugins.views.crops import Coloured, Flip, MinArea, Side
from sslkit_plugins.views.cuts import Cut, flip_or_not
from sslkit_plugins.views.photometric import Photometric


class Rotate(Photometric):
    """A crop rotated by 0, 90, 180 or 270 degrees; the target is the rotation.

    The flip precedes the rotation. `copies: all` returns all four rotations of one crop, with the
    same flip and colours, as in the paper; `one` returns a random rotation, as in VISSL.
    """

    views = ("rotated",)
    counts: ClassVar = {}
    targets = ("rotation",)

    def __init__(
        self,
        channels: int = 3,
        /,
        *,
        size: Side = 224,
        min_area: MinArea = 0.08,
        colours: Coloured = "none",
        flip: Flip = 0.5,
        copies: Annotated[
            Literal["one", "all"],
            Field(
                description="Rotations per crop. all: all four, as in the paper. one: a random "
                "one, as in VISSL."
            ),
        ] = "all",
    ) -> None:
        cut = Cut(size=size, area=(min_area, 1.0), colours=colours, flip=0.0, shared="all")
        super().__init__({"rotated": cut}, channels)
        if copies == "all":
            self.shapes = {"rotated": (4, channels, size, size)}
        self.copies, self.flip = copies, flip
        self.num_targets = {"rotation": 4}

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """Return view `rotated` and target `rotation`, counter-clockwise quarter turns.

        They are integer [C,size,size] and int64 [], or [4,C,size,size] and [4].
        """
        (view,) = self.cut(image, rng)
        upright = flip_or_not(view, rng, self.flip)
        if self.copies == "all":
            copies = torch.stack([torch.rot90(upright, turns, (1, 2)) for turns in range(4)])
            return Sample({"rotated": copies}, {"rotation": torch.arange(4)})
        turns = int(rng.integers(4))
        rotated = torch.rot90(upright, turns, (1, 2)).contiguous()
        return Sample({"rotated": rotated}, {"rotation": torch.tensor(turns)})


class RotNet(Predict):
    """Predict the rotation of each copy, one of four classes."""

    reads: ClassVar = {"rotation": "rotated"}
    predicts: ClassVar = {"rotation": "rotation"}
    crops: ClassVar = {}
