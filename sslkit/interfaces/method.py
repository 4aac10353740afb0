"""Methods and losses: the wiring of a paper."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from sslkit.draws import Draws
from sslkit.interfaces.images import Batch
from sslkit.interfaces.negatives import Negatives, NegativeSampler
from sslkit.interfaces.networks import Encoder, Head


@dataclass(frozen=True)
class Progress:
    """Where training stands: `step` of `steps`, `epoch` of `epochs`, all from 0.

    `draws` are random numbers of this step. In `forward` they hold one row per image of the global
    batch, of which a rank gets its own; in `begin_epoch` and `after_step` every rank gets the same.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    draws: Draws

    @property
    def fraction(self) -> float:
        """0 at the first step, towards 1 at the last."""
        return self.step / max(self.steps, 1)

    def cosine(self, start: float, end: float) -> float:
        """Return `start` at the first step, towards `end` at the last, along half a cosine."""
        return end + (start - end) * (1 + math.cos(math.pi * self.fraction)) / 2


class Epoch(ABC):
    """What a method may do before the first step of an epoch."""

    progress: Progress
    """That of the step that comes next."""
    micro_batches: int
    """Micro-batches of one step on this rank."""

    @abstractmethod
    def views(self) -> Iterator[Batch]:
        """Yield every image of the data set once, in order, with augmented views on the device.

        Ranks share the images; the last batch is filled up from the beginning.
        """

    @abstractmethod
    def plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, un-augmented: float32 [B,C,S,S] normalised, int64 [B].

        Ranks share the images; the last batch is filled up from the beginning. An unreadable image
        is black.
        """

    @abstractmethod
    def next_step(self) -> Iterator[tuple[Batch, Progress]]:
        """Yield the micro-batches of the step that comes next, on the device.

        Running statistics that change meanwhile are put back at the end.
        """

    @abstractmethod
    def forget(self, *modules: nn.Module) -> None:
        """Drop the optimizer's state of these modules, which begin anew."""


class Loss(nn.Module, ABC):
    """(prediction, target, negatives) → scalar. Knows no ranks.

    It remembers nothing between steps but what a paper freezes, in a buffer.
    """

    needs_negatives: ClassVar[bool | None] = False
    """True: the loss is computed against negatives; None: with or without; False: it takes none."""

    @abstractmethod
    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,…] or [T,N,…], target [N,…] → float32 scalar.

        The value is the mean over N, and a weighted mean over T.
        """

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return the value expected of random unit vectors of `dim` numbers, or None.

        `negatives` candidates stand beside the positive.
        """
        return None

    def at_chance(self, *, dim: int, negatives: int) -> float | None:
        """Return the value of an output that says nothing of the image, or None if unknown.

        It is what a constant encoder reaches at best. `at_start` unless the loss knows better.
        """
        return self.at_start(dim=dim, negatives=negatives)


@dataclass(frozen=True)
class Output:
    """What a method makes of a micro-batch.

    `loss` is a scalar; `metrics` are detached scalars by name, the same names at every step.
    `feature_std` are scalars by name which tell collapse: 1 spread over all directions, 0 all
    images alike. `keep` are detached tensors [rows,…] by name, as many rows on every rank;
    `after_step` gets the rows of all ranks, floats as float32.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    feature_std: dict[str, Tensor] = field(default_factory=dict)
    keep: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """What a method is wired from. `samplers` has one entry per stored head; `images` counts N."""

    encoder: Encoder
    heads: dict[str, Head]
    samplers: dict[str, NegativeSampler]
    loss: Loss
    images: int


class Method(nn.Module, ABC):
    """The wiring of a paper: which head reads what, what is compared, what is remembered.

    Class attributes are literals, so that a recipe is checked before torch is imported. `forward`
    writes no buffer; `begin_epoch` and `after_step` do.
    """

    reads: ClassVar[dict[str, str] | None] = None
    """Head → what it reads: another head, a view, or `view.segment` (a segment of the encoder's
    vector). None: one head per view of the transform, with its name."""
    predicts: ClassVar[dict[str, str]] = {}
    """Head → the target that it predicts. `label` is the data set's class; others come from the
    transform."""
    compares: ClassVar[tuple[str, ...] | None] = ()
    """Heads whose outputs are compared, hence of one `out_dim`. None: all heads but those that
    predict a target."""
    stores: ClassVar[tuple[str, ...]] = ()
    """Heads whose outputs samplers keep. The recipe's one sampler is made once for each."""
    recalls: ClassVar[bool] = False
    """True: the method reads the stored vector of a given image."""
    contrasts: ClassVar[bool] = False
    """True: the loss is given negatives."""
    joins: ClassVar[bool] = False
    """True: the loss looks across the batch, so `train.accumulate` would change it."""
    needs_tokens: ClassVar[bool] = False
    """True: the encoder must give tokens."""
    uses_every_parameter: ClassVar[bool] = True
    """False: some steps leave weights without gradient."""

    def __init__(self, parts: Parts, /) -> None:
        super().__init__()
        self.encoder = parts.encoder
        self.heads = nn.ModuleDict(dict(parts.heads))
        self.samplers = nn.ModuleDict(dict(parts.samplers))
        self.loss = parts.loss

    def head(self, name: str) -> Head:
        """Return a head by its name, typed as one."""
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    @property
    def sampler(self) -> NegativeSampler:
        """The only sampler."""
        (sampler,) = self.samplers.values()
        assert isinstance(sampler, NegativeSampler)
        return sampler

    @property
    def exported(self) -> Encoder:
        """The encoder that evaluations measure and export writes."""
        return self.encoder

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Output: ...

    def begin_epoch(self, epoch: Epoch) -> None:
        """Prepare an epoch, once before its first step, without gradient and under autocast.

        The method is in training mode, and is put back into it afterwards. torch's generator is
        seeded from the step, alike on all ranks. A resume within an epoch does not repeat it.
        """

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Update memories and averages after every optimizer step that was taken, without gradient.

        `index` int64 [B] and `kept` (`Output.keep`) hold the rows of all ranks in the same order.
        """

    def at_start(self, images: int) -> float | None:
        """Return the loss expected before training for a global batch of `images`, or None."""
        return None

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the chance of numbers by name: what a model reaches that has learnt nothing.

        `images` count the global batch. Names are `loss` and those of `Output.metrics`; each term
        of a loss may have a chance of its own. A name that begins with `loss` is better below its
        chance, any other above. Health compares with them, and curves show them.
        """
        return {}

    def encode(self, view: Tensor, encoder: nn.Module | None = None) -> Tensor:
        """[B,C,H,W] → [B,dim]; [B,K,C,H,W] → [B,K,dim] in one image-major pass.

        `encoder` stands in for the method's own: a teacher, a slow copy.
        """
        encoder = self.encoder if encoder is None else encoder
        if view.dim() == 4:
            return encoder(view)
        return encoder(view.flatten(0, 1)).unflatten(0, view.shape[:2])
