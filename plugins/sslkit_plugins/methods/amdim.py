"""AMDIM (Bachman, Hjelm & Buchwalter 2019, arXiv:1906.00910).

"Learning Representations by Maximizing Mutual Information Across Views". The official code is
Philip-Bachman/amdim-public. Letters: B images, n locations of a map, r features of a location.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Batch, Loss, Method, Negatives, Output, Parts, Progress
from sslkit_plugins.encoders.amdim import AmdimEncoder
from sslkit_plugins.momentum import feature_std
from sslkit_plugins.precision import at_least_float32
from sslkit_plugins.samplers import KeyNegatives

LOCATIONS = {"1_5": 25, "1_7": 49, "5_5": 25}
"""Term → number of target locations. 1_7 predicts the 7×7 map from the 1×1 map."""


class ClippedNCE(Loss):
    """InfoNCE from a vector to each location of its image's other view (equations 4 to 6).

    The score is c·tanh(s/c) with s = <a, b>/√r. `penalty` times the mean s² is added. Candidates of
    a location are itself and all locations of other images; other locations of the same image are
    neither positives nor negatives.
    """

    roles = ("locations",)
    needs_negatives = True

    def __init__(
        self,
        *,
        clip: Annotated[
            float, Field(gt=0, description="Largest absolute score c. AMDIM: 20.")
        ] = 20.0,
        penalty: Annotated[
            float, Field(ge=0, description="Weight of the mean squared score. AMDIM: 0.05.")
        ] = 0.05,
    ) -> None:
        super().__init__()
        self.clip, self.penalty = clip, penalty

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [B,r] or [T,B,r], target [B,n,r] or one location [B,r] → scalar."""
        assert negatives is not None, "check refuses a method without negatives"
        target = target if target.dim() == 3 else target.unsqueeze(1)
        source = at_least_float32(prediction) / math.sqrt(prediction.shape[-1])
        own = (source.unsqueeze(-2) * at_least_float32(target)).sum(-1)  # [B,n]
        others = negatives.similarity(source)  # [B,M], -inf at locations of the same image
        clipped = self.clipped(others).masked_fill(others.isinf(), -math.inf)
        total = clipped.logsumexp(-1, keepdim=True)
        nce = F.softplus(total - self.clipped(own)).mean()
        squares = own.square().sum() + others.masked_fill(others.isinf(), 0).square().sum()
        return nce + self.penalty * squares / others.numel()

    def clipped(self, scores: Tensor) -> Tensor:
        """Return c·tanh(s/c), which has slope 1 at 0."""
        return self.clip * torch.tanh(scores / self.clip)

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return log(1 + M), the loss of scores near 0."""
        return math.log1p(negatives)


def others(locations: Tensor) -> KeyNegatives:
    """Use all locations [B,n,r] of other images of the global batch as negatives of each image."""
    images, count = locations.shape[:2]
    every = distributed.gather_with_gradient(at_least_float32(locations)).flatten(0, 1)
    first = distributed.rank() * images
    owner = torch.arange(len(every), device=every.device) // count
    own = owner == torch.arange(first, first + images, device=every.device).unsqueeze(1)
    return KeyNegatives(every, own, count=len(every) - count)


class Amdim(Method):
    """Predict all locations of one view's maps from vectors of the other view.

    Sources are the global vector (1×1 map) and a random location of the 5×5 map. The terms 1→5,
    1→7 and 5→5 are averaged over both directions and added.
    """

    needs: ClassVar = {"encoder": "locations", "loss": "locations"}
    crops: ClassVar = {"global": (2, 2)}
    reads: ClassVar = {}
    contrasts = True
    joins = True

    def __init__(self, parts: Parts, /) -> None:
        super().__init__(parts)
        if not isinstance(self.encoder, AmdimEncoder):
            message = "'amdim' compares locations of three maps; use encoder amdim"
            raise RecipeError(Fault("encoder.use", message))
        if not isinstance(self.loss, ClippedNCE):
            message = "'amdim' compares a vector with many locations; use loss clipped_nce"
            raise RecipeError(Fault("loss.use", message))

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Add the three terms, each averaged over both directions."""
        view = batch.views.get("global")
        if view is None or view.dim() != 5 or view.shape[1] != 2:
            message = "'amdim' compares two crops of an image; use crops with count: 2"
            raise RecipeError(Fault("transform", message))
        assert isinstance(self.encoder, AmdimEncoder)
        maps = self.encoder.locations(view.flatten(0, 1))
        one, five, seven = [rows.unflatten(0, view.shape[:2]) for rows in maps]
        places = progress.draws.integers(len(view), 2, high=five.shape[2], device=view.device)
        terms = self.terms(one, five, seven, places)
        unit = F.normalize(one.detach().flatten(0, 1).float(), dim=-1)
        metrics = {f"loss_{name}": term.detach() for name, term in terms.items()}
        loss = torch.stack(list(terms.values())).sum()
        return Output(loss, metrics, {"global": feature_std(unit)})

    def terms(self, one: Tensor, five: Tensor, seven: Tensor, places: Tensor) -> dict[str, Tensor]:
        """Return the three terms of the loss.

        The maps of both views are [B,2,r], [B,2,25,r] and [B,2,49,r]. `places` int64 [B,2] are the
        source locations of the 5×5 maps.
        """
        terms = dict.fromkeys(LOCATIONS, one.new_zeros(()))
        rows = torch.arange(len(one), device=one.device)
        for view, other in ((0, 1), (1, 0)):
            vector, local = one[:, view], five[rows, view, places[:, view]]
            fives, sevens = five[:, other], seven[:, other]
            among_fives = others(fives)
            terms["1_5"] = terms["1_5"] + self.loss(vector, fives, among_fives) / 2
            terms["1_7"] = terms["1_7"] + self.loss(vector, sevens, others(sevens)) / 2
            terms["5_5"] = terms["5_5"] + self.loss(local, fives, among_fives) / 2
        return terms

    def at_start(self, images: int) -> float | None:
        """Return the loss of scores near 0; None with batch norm.

        Batch norm gives the scores a variance that depends on the images.
        """
        assert isinstance(self.encoder, AmdimEncoder)
        return None if self.encoder.batch_norm else self.at_chance(images)["loss"]

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the loss of zero features, ln(1 + (B-1)·n) for each term."""
        chance = {}
        for name, count in LOCATIONS.items():
            value = self.loss.at_chance(dim=self.encoder.dim, negatives=(images - 1) * count)
            assert value is not None
            chance[f"loss_{name}"] = value
        return {"loss": sum(chance.values()), **chance}
