"""CPC v2 (Hénaff et al. 2020, arXiv:1905.09272).

"Data-Efficient Image Recognition with Contrastive Predictive Coding". The official code is not
public; lightning-bolts has the best-known reimplementation. Letters: B images, a grid of G×G cells
(patches) per image, K = G², D features, d numbers of a prediction.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit import distributed
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Batch, Head, Method, Output, Parts, Progress
from sslkit_plugins.heads import Projection
from sslkit_plugins.momentum import feature_std
from sslkit_plugins.precision import at_least_float32

TURNS = (0, 2, 1, 3)
"""Quarter turns of the grid after which a direction points down: down, up, left, right."""


def turned(cells: Tensor, direction: int) -> Tensor:
    """Turn the grid [B,G²,D] of each image, so that predictions in `direction` point down."""
    grid = math.isqrt(cells.shape[1])
    turns = TURNS[direction]
    return cells.unflatten(1, (grid, grid)).rot90(turns, (1, 2)).flatten(1, 2)


def labels(images: int, grid: int, offset: int, first: int = 0) -> Tensor:
    """Return the number of the cell that each prediction has to find, int64 [B·(G-offset)·G].

    Row i and column j of image b predict cell b·G² + (i + offset)·G + j. `first` is the number of
    the first image.
    """
    cells = torch.arange(images * grid**2).view(images, grid, grid) + first * grid**2
    return cells[:, offset:].flatten()


Length = Annotated[int, Field(ge=1, description="Length of a prediction d. CPC v2: 64.")]


class Target(Head):
    """A linear map of each cell to the vector that is predicted.

    It has no bias, which would add the same number to all scores of a prediction.
    """

    roles = ()
    joins_crops = False

    def __init__(self, in_dim: int, /, *, out_dim: Length = 64) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.project = Projection(in_dim, out_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[…,D] → […,d]."""
        return self.project(features)


class Block(nn.Module):
    """A residual block of the context network, whose row i sees rows i-1 and i."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, hidden_dim, 1)
        self.columns = nn.Conv2d(hidden_dim, hidden_dim, (1, 3), padding=(0, 1))
        self.rows = nn.Conv2d(hidden_dim, hidden_dim, (2, 1))
        self.expand = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, cells: Tensor) -> Tensor:
        """[B,D,G,G] → [B,D,G,G]."""
        hidden = self.columns(self.reduce(cells).relu())
        hidden = self.rows(F.pad(hidden, (0, 0, 1, 0))).relu()
        return cells + self.expand(hidden)


class Context(Head):
    """The context network: masked convolutions over a grid of cells, as in PixelCNN.

    The context of row i depends on rows up to i only (appendix A.1 of CPC v2).
    """

    roles = ("context",)
    special = True

    def __init__(
        self,
        in_dim: int,
        crops: int,
        /,
        *,
        hidden_dim: Annotated[
            int, Field(ge=1, description="Width within a block. CPC v2: 256.")
        ] = 256,
        blocks: Annotated[
            int,
            Field(ge=1, le=100, description="Residual blocks. Each sees one more row. CPC v2: 5."),
        ] = 5,
    ) -> None:
        super().__init__()
        self.grid = math.isqrt(crops)
        if self.grid**2 != crops:
            message = f"{crops} patches are no square grid; use transform patch_grid"
            raise RecipeError(Fault("transform", message))
        self.out_dim = in_dim
        self.blocks = nn.Sequential(*[Block(in_dim, hidden_dim) for _ in range(blocks)])

    def forward(self, features: Tensor) -> Tensor:
        """[…,G²,D] → […,G²,D]."""
        cells = features.reshape(-1, self.grid, self.grid, self.out_dim).permute(0, 3, 1, 2)
        context = self.blocks(cells).relu()
        return context.permute(0, 2, 3, 1).reshape(features.shape)


class Predictor(Head):
    """Linear predictions of cells further down, one matrix for each direction and offset."""

    roles = ("cell_predictor",)
    special = True

    def __init__(
        self,
        in_dim: int,
        crops: int,
        /,
        *,
        out_dim: Length = 64,
        steps: Annotated[
            int, Field(ge=1, description="Largest offset, in rows of cells. CPC v2: 3 to 5.")
        ] = 3,
        skip: Annotated[
            int,
            Field(
                ge=0,
                description="Nearest offsets without a prediction. 1 where neighbouring patches "
                "overlap by half.",
            ),
        ] = 1,
        directions: Annotated[
            int,
            Field(
                ge=1,
                le=4,
                description="Directions of prediction, in this order: down, up, left, right. CPC "
                "v1: 1; CPC v2: 4.",
            ),
        ] = 4,
    ) -> None:
        super().__init__()
        grid = math.isqrt(crops)
        if steps >= grid:
            remedy = "cut more patches: a smaller transform.patch or transform.stride"
            if skip < grid - 1:
                remedy = f"use at most {grid - 1}, or {remedy}"
            message = f"an offset of {steps} leaves a grid of {grid} × {grid} cells; {remedy}"
            raise RecipeError(Fault("heads.predictor.steps", message))
        if skip >= steps:
            message = f"all {steps} offsets are skipped; use at most {steps - 1}"
            raise RecipeError(Fault("heads.predictor.skip", message))
        self.out_dim, self.directions = out_dim, directions
        self.offsets = list(range(skip + 1, steps + 1))
        self.matrices = nn.ModuleList()
        for _ in range(directions * len(self.offsets)):
            self.matrices.append(Projection(in_dim, out_dim))

    def forward(self, features: Tensor, direction: int = 0, offset: int | None = None) -> Tensor:
        """[…,D] → […,d], the prediction at an offset, by default the smallest."""
        place = 0 if offset is None else self.offsets.index(offset)
        return self.matrices[direction * len(self.offsets) + place](features)


class Cpc(Method):
    """Predict the features of patches from those above them, among all patches of the batch.

    Each patch is encoded alone. A causal network summarises the rows up to i; linear predictions
    have to find the patch of row i + k in the same column among all patches of all images.
    """

    needs: ClassVar = {
        "heads.context": "context",
        "heads.predictor": "cell_predictor",
        "loss": "classes",
    }
    crops: ClassVar = {"patches": (1, None)}
    reads: ClassVar = {"target": "patches", "context": "patches", "predictor": "context"}
    compares = ("target", "predictor")
    joins = True

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        scale: Annotated[
            float,
            Field(gt=0, description="Factor of the scores, which are dot products. CPC v2: 0.1."),
        ] = 0.1,
    ) -> None:
        super().__init__(parts)
        self.scale = scale
        context, predictor = self.head("context"), self.head("predictor")
        if not isinstance(context, Context) or not isinstance(predictor, Predictor):
            message = "'cpc' needs the heads cpc_context (context) and cpc_predictor (predictor)"
            raise RecipeError(Fault("heads", message))
        self.grid = context.grid

    @property
    def predictor(self) -> Predictor:
        """The head with the predictions."""
        predictor = self.heads["predictor"]
        assert isinstance(predictor, Predictor)
        return predictor

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Average the loss over directions and offsets."""
        cells = self.encode(batch.views["patches"])  # [B,G²,D]
        return self.compare(cells, self.heads["target"](cells))

    def compare(self, cells: Tensor, targets: Tensor) -> Output:
        """Predict targets [B,G²,d] from cells [B,G²,D]."""
        losses, hits = [], []
        for direction in range(self.predictor.directions):
            context = self.heads["context"](turned(cells, direction))
            every = distributed.gather_with_gradient(turned(targets, direction)).flatten(0, 1)
            for offset in self.predictor.offsets:
                seen = context[:, : -offset * self.grid]  # rows whose target lies in the grid
                predicted = self.predictor(seen, direction, offset).flatten(0, 1)
                scores = self.scores(predicted, every)
                first = distributed.rank() * len(cells)
                truth = labels(len(cells), self.grid, offset, first).to(scores.device)
                losses.append(self.loss(scores, truth))
                hits.append((scores.detach().argmax(1) == truth).float().mean())
        loss = torch.stack(losses).mean()
        unit = F.normalize(targets.detach().flatten(0, 1).float(), dim=-1)
        metrics = {"accuracy": torch.stack(hits).mean()}
        return Output(loss, metrics, {"target": feature_std(unit)})

    def scores(self, predicted: Tensor, every: Tensor) -> Tensor:
        """Return scaled products of predictions [P,d] and cells of all images [Q,d]: [P,Q]."""
        with torch.autocast(predicted.device.type, enabled=False):
            return self.scale * at_least_float32(predicted) @ at_least_float32(every).T

    def at_start(self, images: int) -> float | None:
        """Return log(B·G²), the loss of equal scores."""
        return self.loss.at_start(dim=images * self.grid**2, negatives=1)

    def at_chance(self, images: int) -> dict[str, float]:
        """Return loss and accuracy of equal scores."""
        cells = images * self.grid**2
        loss = self.loss.at_chance(dim=cells, negatives=1)
        found = {} if loss is None else {"loss": loss}
        return {**found, "accuracy": 1 / cells}
