"""Channel order as a pretext task: the same picture, whatever the order of its colour channels.

Letters: T terms, N rows, M negatives, D features.
"""

import math
from itertools import permutations
from statistics import NormalDist
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.interfaces import Head, Loss, Negatives, Pixels, Sample
from sslkit_plugins.views import Area, ColourList, Cut, Photometric

ORDERS = list(permutations(range(3)))


class ChannelOrder(Photometric):
    """An image, and another crop of it with red, green and blue in one of their six orders."""

    views = ("image", "permuted")

    def __init__(
        self,
        *,
<<<<<<< .merge_file_JiERml
        size: Annotated[int, Field(ge=1, description="Side of both crops, px.")] = 224,
        min_area: Annotated[Area, Field(description="Smallest part of the image in a crop.")] = 0.2,
        colours: Annotated[ColourList, Field(description="Colours of both crops.")] = "none",
=======
        size: Annotated[int, Field(ge=1, description="Side of both crops, px. Usually 224.")] = 224,
        min_area: Annotated[
            Area, Field(description="Smallest part of the image in a crop. Usually 0.08 to 0.2.")
        ] = 0.2,
        colours: Annotated[
            ColourList, Field(description="What is done to the colours of both crops.")
        ] = "none",
>>>>>>> .merge_file_AEI272
    ) -> None:
        cut = Cut(size=size, area=(min_area, 1.0), colours=colours)
        super().__init__({"image": cut, "permuted": cut})
        self.num_targets = {"order": len(ORDERS)}

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """image and permuted uint8 [3,size,size]; order [], a number of ORDERS."""
        upright, other = self.cut(image, rng)
        number = int(rng.integers(len(ORDERS)))
        views = {"image": upright, "permuted": other[list(ORDERS[number])]}
        return Sample(views, {"order": torch.tensor(number)})


class Cosine(Head):
    """The cosines between the features and `out_dim` directions.

    Gidaris & Komodakis 2018, arXiv:1804.09458, section 3.2.
    """

    def __init__(
        self,
        in_dim: int,
        /,
        *,
        out_dim: Annotated[
            int, Field(ge=1, description="Number of directions. Usually 128.")
        ] = 128,
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.directions = nn.Parameter(torch.randn(out_dim, in_dim))

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,out_dim]."""
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.directions, dim=-1))


class Hinge(Loss):
    """max(0, margin - cos⁺ + cos⁻), averaged over negatives, rows and terms.

    The triplet loss of FaceNet (Schroff et al. 2015, arXiv:1503.03832, section 3.1), with every
    negative that the method has.
    """

    needs_negatives = True

    def __init__(
        self,
        *,
        margin: Annotated[
            float, Field(ge=0, description="Margin between cosines. Usually 0.2 to 0.5.")
        ] = 0.5,
    ) -> None:
        super().__init__()
        self.margin = margin

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,D] or [T,N,D], target [N,D] of unit norm → scalar."""
        assert negatives is not None, "`needs_negatives` lets check refuse a method without"
        query = F.normalize(prediction.float(), dim=-1)
        positive = (query * target.float()).sum(-1, keepdim=True)
        gaps = F.relu(self.margin - positive + negatives.similarity(query))
        return (gaps.sum(-1) / negatives.count).mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """E max(0, x) for x of mean `margin` and variance 2/D, of cosines of random vectors."""
        gap = NormalDist(self.margin, math.sqrt(2 / dim))
        return self.margin * (1 - gap.cdf(0)) + gap.variance * gap.pdf(0)
