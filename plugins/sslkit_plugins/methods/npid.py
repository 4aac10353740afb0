"""NPID: Wu, Xiong, Yu & Lin 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv:1805.01978."""

from typing import ClassVar

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from sslkit.interfaces import Pixels, Sample
from sslkit_plugins.methods.pirl import Pirl
from sslkit_plugins.views.photometric import Area, ColourList, Photometric


class Augment(Photometric):
    """One augmented crop of an image. `colours: npid` is the paper's list, `official` that of PIRL, whose NPID++ this is."""

    views = ("image",)

    def __init__(
        self, *, size: PositiveInt = 224, min_area: Area = 0.08, colours: ColourList = "official"
    ) -> None:
        self.size, self.colours, self.crops = size, colours, ((size, min_area),)
        self.shapes = {"image": (3, size, size)}
        self.num_targets: dict[str, int] = {}

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """image uint8 [3,size,size]."""
        (view,) = self.cut(image, rng)
        return Sample({"image": view}, {})


class Npid(Pirl):
    """Instance discrimination against a memory bank; PIRL with λ = 0."""

    reads: ClassVar = {"image": "image"}
