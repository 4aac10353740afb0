"""RotNet: Gidaris, Singh & Komodakis 2018, "Unsupervised Representation Learning by Predicting Image Rotations", arXiv:1803.07728.
The covariant task that PIRL's rotation view is compared with. Letters: B images, K copies."""

from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import PositiveInt

from sslkit.interfaces import Pixels, Sample
from sslkit_plugins.methods.predict import Predict
from sslkit_plugins.views.photometric import Area, ColourList, Photometric, flip_or_not


class Rotate(Photometric):
    """A crop turned by 0, 90, 180 or 270 degrees, and by which.

    `copies: all` shows all four turns of one crop, flipped and coloured alike, as the paper feeds them; `one` shows
    one turn, as VISSL does. The crop is flipped before it is turned.
    """

    views = ("rotated",)
    flips = False
    shared = True

    def __init__(
        self,
        *,
        size: PositiveInt = 224,
        min_area: Area = 0.08,
        colours: ColourList = "none",
        copies: Literal["one", "all"] = "all",
    ) -> None:
        self.size, self.colours, self.copies, self.crops = (
            size,
            colours,
            copies,
            ((size, min_area),),
        )
        self.shapes = {"rotated": (3, size, size) if copies == "one" else (4, 3, size, size)}
        self.num_targets = {"rotation": 4}

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """rotated uint8 [3,size,size] and rotation [], or [4,3,size,size] and [4]: counter-clockwise quarter turns."""
        (view,) = self.cut(image, rng)
        upright = flip_or_not(view, rng)
        if self.copies == "all":
            return Sample(
                {
                    "rotated": torch.stack(
                        [torch.rot90(upright, turns, (1, 2)) for turns in range(4)]
                    )
                },
                {"rotation": torch.arange(4)},
            )
        turns = int(rng.integers(4))
        return Sample(
            {"rotated": torch.rot90(upright, turns, (1, 2)).contiguous()},
            {"rotation": torch.tensor(turns)},
        )


class RotNet(Predict):
    """Predict by how many quarter turns each copy was rotated."""

    reads: ClassVar = {"rotation": "rotated"}
    predicts: ClassVar = {"rotation": "rotation"}
