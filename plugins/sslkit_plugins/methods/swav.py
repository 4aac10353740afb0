"""SwAV (Caron, Misra, Mairal, Goyal, Bojanowski & Joulin 2020, arXiv:2006.09882).

"Unsupervised Learning of Visual Features by Contrasting Cluster Assignments". The official code is
facebookresearch/swav. Letters: B images, V global crops, C crops in total, K prototypes, D
features.
"""

from contextlib import nullcontext
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Batch, Method, Output, Parts, Progress
from sslkit_plugins.clusters import sinkhorn
from sslkit_plugins.heads import Prototypes
from sslkit_plugins.momentum import feature_std, frozen
from sslkit_plugins.precision import at_least_float32


def global_crops(parts: Parts, *, at_least: int) -> int:
    """Return the number V of global crops. Raises RecipeError if there are too few crops."""
    crops = {name: shape[0] for name, shape in parts.shapes.items() if len(shape) == 4}
    if "global" not in crops or crops["global"] + crops.get("local", 0) < at_least:
        message = f"makes too few crops; at least {at_least} are compared: set it to 2"
        raise RecipeError(Fault("transform.count", message))
    return crops["global"]


def project_crops(method: Method, batch: Batch) -> Tensor:
    """Project all crops of a batch, global ones first: [B,C,D]."""
    views = [batch.views[name] for name in ("global", "local") if name in batch.views]
    features = torch.cat([method.encode(view) for view in views], 1)
    return method.heads["projector"](features)


class Swav(Method):
    """Predict the code of a crop, its assignment to prototypes, from the other crops of its image.

    Unlike in the official code, the queue fills from the first step, and all ranks share one. So
    results do not depend on the number of ranks.
    """

    needs: ClassVar = {"heads.prototypes": "prototypes"}
    crops: ClassVar = {"global+local": (2, None)}
    reads: ClassVar = {"projector": "global", "prototypes": "projector"}
    joins = True
    uses_every_parameter = False

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        epsilon: Annotated[
            float,
            Field(
                gt=0,
                description="Weight ε of the entropy of codes; smaller is sharper. SwAV: 0.05, or "
                "0.03 if the loss stays at log K.",
            ),
        ] = 0.05,
        iterations: Annotated[
            int, Field(ge=1, le=1000, description="Iterations of Sinkhorn's algorithm. SwAV: 3.")
        ] = 3,
        freeze_steps: Annotated[
            int,
            Field(
                ge=0,
                description="Steps at the start during which prototypes stay fixed. SwAV: 313 of "
                "4,096 images, 5,005 of 256.",
            ),
        ] = 313,
        queue: Annotated[
            int,
            Field(
                ge=0,
                description="Images whose projections join a batch that is small beside K. SwAV: "
                "0 at 4,096 images per step, 3,840 at 256.",
            ),
        ] = 0,
        queue_from: Annotated[
            int, Field(ge=0, description="First epoch that uses the queue, from 0. SwAV: 15.")
        ] = 15,
    ) -> None:
        super().__init__(parts)
        self.epsilon, self.iterations = epsilon, iterations
        self.freeze_steps, self.queue_from = freeze_steps, queue_from
        if not isinstance(self.heads["prototypes"], Prototypes):
            message = "method 'swav' needs vectors of unit norm; set it to prototypes"
            raise RecipeError(Fault("heads.prototypes.use", message))
        crops = global_crops(parts, at_least=2)
        self.queue: Tensor
        self.queued: Tensor
        self.register_buffer("queue", torch.zeros(queue, crops, self.head("projector").out_dim))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self._is_full = False

    @property
    def prototypes(self) -> Prototypes:
        """The head with the prototypes."""
        head = self.heads["prototypes"]
        assert isinstance(head, Prototypes)
        return head

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Swap codes: predict the code of every global crop from all other crops."""
        projections = project_crops(self, batch)
        is_frozen = progress.step < self.freeze_steps
        with frozen(self.prototypes) if is_frozen else nullcontext():
            scores = self.prototypes(projections)
        crops = batch.views["global"].shape[1]
        unit = F.normalize(at_least_float32(projections[:, :crops].detach()), dim=-1)
        codes = self.codes(unit, progress.epoch)
        loss = self.swapped_prediction(scores, codes)
        deviation = feature_std(unit.flatten(0, 1))
        return Output(loss, {}, {"projector": deviation}, keep={"projections": unit})

    def swapped_prediction(self, scores: Tensor, codes: Tensor) -> Tensor:
        """Compare scores [B,C,K] of all crops with codes [B,V,K] of the first V (equation 1)."""
        terms = []
        for crop in range(codes.shape[1]):
            others = torch.cat([scores[:, :crop], scores[:, crop + 1 :]], 1)
            code = codes[:, crop : crop + 1].expand_as(others)
            terms.append(self.loss(others.flatten(0, 1), code.flatten(0, 1)))
        return torch.stack(terms).mean()

    @torch.no_grad()
    def codes(self, projections: Tensor, epoch: int) -> Tensor:
        """Assign unit projections [B,V,D] of this rank to prototypes: codes [B,V,K].

        Uses the batch of all ranks and, from the epoch `queue_from`, the queue once it is full.
        """
        rows = distributed.gather(projections)
        if epoch >= self.queue_from and self._full():
            rows = torch.cat([rows, self.queue])
        scores = self.prototypes(rows)
        codes = []
        for crop in range(rows.shape[1]):
            codes.append(sinkhorn(scores[:, crop], self.epsilon, self.iterations))
        first = distributed.rank() * len(projections)
        return torch.stack(codes, 1)[first : first + len(projections)]

    def _full(self) -> bool:
        """Tell whether the queue is full. Synchronises with the device until it is."""
        size = len(self.queue)
        self._is_full = self._is_full or (size > 0 and bool(self.queued >= size))
        return self._is_full

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Normalise the prototypes, and replace the oldest projections of the queue."""
        self.prototypes.normalise()
        size = len(self.queue)
        if size == 0:
            return
        rows = kept["projections"][-size:]
        places = (self.queued + torch.arange(len(rows), device=rows.device)) % size
        self.queue.index_copy_(0, places, rows)
        self.queued += len(rows)

    def at_start(self, images: int) -> float | None:
        """Simulate the loss of random projections and uniform codes: log K + 1/(2·D·τ²)."""
        generator = torch.Generator().manual_seed(0)
        prototypes, dim = self.prototypes.out_dim, self.head("projector").out_dim
        rows = F.normalize(torch.randn(64, dim, generator=generator), dim=-1)
        centres = F.normalize(torch.randn(prototypes, dim, generator=generator), dim=-1)
        uniform = torch.full((64, prototypes), 1 / prototypes)
        return self.loss(rows @ centres.T, uniform).item()

    def at_chance(self, images: int) -> dict[str, float]:
        """Return log K, where the loss stays if SwAV does not learn."""
        chance = self.loss.at_chance(dim=self.prototypes.out_dim, negatives=0)
        return {} if chance is None else {"loss": chance}
