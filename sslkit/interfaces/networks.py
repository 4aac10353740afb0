"""Encoders and heads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from sslkit.errors import SslkitError
from sslkit.interfaces.views import Normalisation


class Encoder(nn.Module, ABC):
    """[N,C,H,W] → [N,dim]. Knows nothing of crops, targets or negatives.

    Every instance has `dim`; `dims`, the lengths of the segments of its vector that a head may read
    by name, in order, empty without segments; `normalisation`, the mean and standard deviation that
    its weights expect (ImageNet's unless the constructor sets another).
    """

    has_tokens: ClassVar[bool] = False
    """True where `tokens` works for some models of this encoder."""
    initial_options: ClassVar[tuple[str, ...]] = ()
    """Options that only choose the initial weights. They keep their defaults where a checkpoint is
    loaded, so that a run does not need those weights again."""
    paths: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Options that may hold paths, each with the words that are none. Run folders keep paths
    absolute; options of type Path need no mention."""
    pretrained: ClassVar[str | None] = None
    """Value of the option `weights` that stands for the library's own pretrained weights."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Libraries that `export` writes for, the usual one first."""

    dim: int
    dims: dict[str, int]
    normalisation: Normalisation
    prefix_tokens: int = 0
    """Tokens that `tokens` gives before those of the patches, such as a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = {}
        self.normalisation = Normalisation()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """float [N,C,H,W] → [N,dim]."""

    def segment(self, features: Tensor, name: str) -> Tensor:
        """Return the named segment of […,dim], as `dims` cuts it."""
        start = 0
        for other, length in self.dims.items():
            if other == name:
                return features[..., start : start + length]
            start += length
        raise SslkitError(f"{type(self).__name__} has no segment '{name}'")

    @abstractmethod
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,H,W] → {layer: [N,c,h,w]}, shallow to deep, for per-layer probes."""

    def tokens(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """float [N,C,H,W] → [N,prefix_tokens+L,width], the tokens of a transformer.

        `kept` int64 [N,k] are the patches that enter the transformer, counted row by row; None
        keeps all. Raises SslkitError where the model has no tokens.
        """
        raise SslkitError(f"{type(self).__name__} has no tokens")

    def stages(self) -> dict[str, list[nn.Module]]:
        """Return all modules with weights by stage, shallow to deep.

        Raises SslkitError where the encoder does not say.
        """
        return {name: [module] for name, module in self.sequence().items()}

    def sequence(self) -> dict[str, nn.Module]:
        """Return the stages which give `maps` when run one after another, shallow to deep.

        Raises SslkitError where there is no such chain.
        """
        raise SslkitError(f"{type(self).__name__} has no chain of stages")

    def weights(self) -> dict[str, Tensor]:
        """Return parameters and buffers under the names of the architecture's own library."""
        return self.state_dict()

    @classmethod
    def opens(cls, folder: Path) -> dict[str, Any] | None:
        """Return the options of this encoder that load what was exported into `folder`.

        None where the folder holds nothing that this encoder can load.
        """
        return None

    @classmethod
    def own_size(cls, options: Mapping[str, Any]) -> int | None:
        """Return the side of the images that an encoder of these options was made for, px.

        None where it takes any. Encoders that no run trained are evaluated at this size.
        """
        return None

    def export(self, library: str, folder: Path, size: int) -> str:
        """Write the encoder for `library` into `folder`, which exists and is empty.

        `size` is the side of the images that evaluations show, px. Returns lines of Python which
        load it with `library` alone. They find the folder in the variable `folder` and leave the
        encoder in the variable `model`. Raises SslkitError where that library has no such
        architecture.
        """
        raise SslkitError(f"{type(self).__name__} cannot be exported to {library}")


class Head(nn.Module, ABC):
    """[…,in_dim] → […,out_dim] with free leading dimensions; a head over crops reads […,K,in_dim].

    Nets that are no such map (a generator, a decoder) may take more arguments and say so. Heads are
    thrown away after training.
    """

    out_dim: int

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor: ...
