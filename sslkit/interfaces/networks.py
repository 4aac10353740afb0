"""Encoders and heads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from sslkit.errors import SslkitError
from sslkit.interfaces.views import Normalisation


class Encoder(nn.Module, ABC):
    """A network [N,C,H,W] → [N,dim], independent of crops, targets and negatives.

    Instances have these attributes:

    * `dim`, the length of the features.
    * `dims`, the ordered lengths of the segments that heads may read by name; {} without segments.
    * `normalisation`, the mean and standard deviation of the input, by default ImageNet's.
    """

    roles: ClassVar[tuple[str, ...] | None] = None
    """Roles in `Method.needs` that the encoder has; None: not stated, so any is accepted.

    `tokens`: the method `tokens` works for some models. `segments`: `dims` is not empty.
    """
    has_weights: ClassVar[bool] = True
    """False if there is nothing to train, so only evaluations use the encoder."""
    initial_options: ClassVar[tuple[str, ...]] = ()
    """Options that only select initial weights.

    They have their default values when a checkpoint is loaded, so a run does not need those weights
    again.
    """
    paths: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Options with paths: name → values that are not paths.

    Run folders store paths as absolute. Options of type Path are included.
    """
    pretrained: ClassVar[str | None] = None
    """Value of the option `weights` for the library's pretrained weights."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Libraries that `export` supports, default first."""

    dim: int
    dims: dict[str, int]
    normalisation: Normalisation
    prefix_tokens: int = 0
    """Number of tokens before the patch tokens in `tokens`, such as a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = {}
        self.normalisation = Normalisation()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """float [N,C,H,W] → [N,dim]."""

    def segment(self, features: Tensor, name: str) -> Tensor:
        """Return the named segment of features […,dim]. Raises SslkitError if there is none."""
        start = 0
        for other, length in self.dims.items():
            if other == name:
                return features[..., start : start + length]
            start += length
        raise SslkitError(f"{type(self).__name__} has no segment '{name}'")

    @abstractmethod
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,H,W] → {layer: [N,c,h,w]}, shallow to deep, for evaluation by layer."""

    def tokens(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """float [N,C,H,W] → [N,prefix_tokens+L,width], the tokens of a transformer.

        `kept` int64 [N,k] are the patches that enter the transformer, numbered row by row; None
        keeps all. Raises SslkitError if the model has no tokens.
        """
        raise SslkitError(f"{type(self).__name__} has no tokens")

    def blocks(self, images: Tensor, count: int) -> list[Tensor]:
        """Return the normalised tokens after the last `count` blocks of a transformer.

        float [N,C,H,W] → `count` of [N,prefix_tokens+L,width], shallow to deep. Raises SslkitError
        if the model has no blocks of tokens.
        """
        raise SslkitError(f"{type(self).__name__} has no blocks of tokens")

    def stages(self) -> dict[str, list[nn.Module]]:
        """Return all modules with weights by stage, shallow to deep.

        Raises SslkitError if the encoder has no stages.
        """
        return {name: [module] for name, module in self.sequence().items()}

    def sequence(self) -> dict[str, nn.Module]:
        """Return modules whose sequential outputs are `maps`, shallow to deep.

        Raises SslkitError if the encoder is not a sequence of stages.
        """
        raise SslkitError(f"{type(self).__name__} is not a sequence of stages")

    def weights(self) -> dict[str, Tensor]:
        """Return parameters and buffers by the names of the architecture's library."""
        return self.state_dict()

    @classmethod
    def opens(cls, folder: Path) -> dict[str, Any] | None:
        """Return the options that load an exported folder; None if this encoder cannot load it."""
        return None

    @classmethod
    def own_size(cls, options: Mapping[str, Any]) -> int | None:
        """Return the native image size of an encoder with these options, px; None for any size.

        Evaluations of encoders without a run use this size.
        """
        return None

    def export(self, library: str, folder: Path, size: int) -> str:
        """Export the encoder for `library` to `folder`, an existing empty folder.

        `size` is the side of the images in evaluations, px. Returns Python code that loads the
        encoder with `library` alone: it reads the variable `folder` and sets the variable `model`.
        Raises SslkitError if the library does not have the architecture.
        """
        raise SslkitError(f"{type(self).__name__} cannot be exported to {library}")


class Head(nn.Module, ABC):
    """A network […,in_dim] → […,out_dim]; heads over crops read […,K,in_dim].

    Networks with other inputs (a generator, a decoder) may take and document more arguments. Heads
    are discarded after training. `crops` and `shape` are those of the view at the end of the chain
    of heads.
    """

    roles: ClassVar[tuple[str, ...] | None] = None
    """Roles in `Method.needs` that the head has; None: not stated, so any is accepted."""
    special: ClassVar[bool] = False
    """True: only methods that need one of its roles can use the head."""
    joins_crops: ClassVar[bool | None] = None
    """True: reads all crops of an image at once. False: reads one vector. None: not stated."""
    out_dim: int
    notes: tuple[str, ...] = ()
    """Sentences that training prints at the start, such as a number that was limited."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,out_dim]."""
