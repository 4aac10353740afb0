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
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Head, Loss, Negatives, Pixels, Sample
from sslkit_plugins.views import Area, ColourList, Cut, Photometric

ORDERS = list(permutations(range(3)))


class ChannelOrder(Photometric):
    """An image, and another crop of it with red, green and blue in one of their six orders."""

    views = ("image", "permuted")

    def __init__(
        self,
        *,
        size: Annotated[int, Field(ge=1, description="Side of both crops, px.")] = 224,
        min_area: Annotated[Area, Field(description="Smallest part of the image in a crop.")] = 0.2,
        colours: Annotated[ColourList, Field(description="Colours of both crops.")] = "none",
    ) -> None:
        cut = Cut(size=size, area=(min_area, 1.0), colours=colours)
        super().__init__({"image": cut, "permuted": cut})
        self.num_targets = {"order": len(ORDERS)}

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """Cut image and permuted uint8 [3,size,size]; order [], a number of ORDERS."""
        whole, other = self.cut(image, rng)
        number = int(rng.integers(len(ORDERS)))
        return Sample(
            {"image": whole, "permuted": other[list(ORDERS[number])]},
            {"order": torch.tensor(number)},
        )


class Cosine(Head):
    """The cosines between the features and `out_dim` directions (Gidaris & Komodakis 2018, arXiv:1804.09458, section 3.2)."""

    def __init__(self, in_dim: int, /, *, out_dim: PositiveInt = 128) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.directions = nn.Parameter(torch.randn(out_dim, in_dim))

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,out_dim]."""
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.directions, dim=-1))


class Hinge(Loss):
    """max(0, margin - cos⁺ + cos⁻), averaged over negatives, rows and terms: the triplet loss of FaceNet
    (Schroff et al. 2015, arXiv:1503.03832, section 3.1) with every negative of the sampler."""

    needs_negatives = True

    def __init__(self, *, margin: NonNegativeFloat = 0.5) -> None:
        super().__init__()
        self.margin = margin

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,D] or [T,N,D], target [N,D] of unit norm → scalar."""
        if negatives is None:
            raise RecipeError(
                Fault(
                    "loss",
                    "'hinge' needs the negatives of a sampler; take a method that has one, such as pirl",
                )
            )
        query = F.normalize(prediction.float(), dim=-1)
        positive = (query * target.float()).sum(-1, keepdim=True)
        gaps = F.relu(self.margin - positive + negatives.similarity(query))
        return (gaps.sum(-1) / negatives.count).mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """E max(0, x) for x of mean `margin` and variance 2/D, the difference of two cosines of random vectors."""
        gap = NormalDist(self.margin, math.sqrt(2 / dim))
        return self.margin * (1 - gap.cdf(0)) + gap.variance * gap.pdf(0)
