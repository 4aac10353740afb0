"""Candidates of evaluations: networks, trained or not, and raw pixels."""

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.errors import SslkitError
from sslkit.evaluation.pooling import pool
from sslkit.interfaces import Candidate, Encoder, Method, Normalisation, PretextTransform
from sslkit.recipe.signature import sentence

PIXELS = 32
"""Side of the images of the raw-pixel baseline, px."""


class Network(Candidate):
    """An encoder with its normalisation, integer [N,C,S,S] → float [N,C,S,S].

    `fits`: untrained batch norms get the statistics of the training split. `parts` creates the
    method and the transform of the run.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        normalise: Callable[[Tensor], Tensor],
        *,
        size: int,
        device: torch.device,
        baseline: bool = False,
        fits: bool = False,
        parts: Callable[[], tuple[Method, PretextTransform]] | None = None,
    ) -> None:
        self.name, self.baseline, self.size, self.device = name, baseline, size, device
        self.fits, self.parts = fits, parts
        self.encoder = encoder.to(device).to(memory_format=torch.channels_last).eval()
        self.normalise = normalise

    @torch.no_grad()
    def embed(self, images: Tensor, *, layers: bool = False) -> dict[str, Tensor]:
        """integer [N,C,S,S] → {"features": float32 [N,D]}; `layers` adds each pooled layer.

        Encoders without layers return only the features. Raises SslkitError if the encoder does not
        accept the images or runs out of memory.
        """
        try:
            pixels = self._pixels(images)
            found = {"features": self.encoder(pixels).float()}
            if layers:
                maps = self._maps(pixels)
                found |= {name: pool(values).float() for name, values in maps.items()}
            return found
        except torch.OutOfMemoryError as error:
            raise SslkitError(
                f"{self.name}: images of {self.size} px do not fit into the memory of "
                f"{self.device.type}; use a smaller --size, or --device cpu"
            ) from error
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            raise SslkitError(
                f"{self.name} cannot embed images of {list(images.shape[1:])}: {sentence(error)}; "
                "try another --size"
            ) from error

    def network(self) -> tuple[Encoder, Callable[[Tensor], Tensor]]:
        """Return a copy of the encoder to train, and its normalisation."""
        return copy.deepcopy(self.encoder), self.normalise

    def pretext(self) -> tuple[Method, PretextTransform] | None:
        """Return the method of the run in evaluation mode, and its transform; None without a run.

        The method gets a copy of this encoder's weights and fitted statistics.
        """
        if self.parts is None:
            return None
        method, transform = self.parts()
        method.exported.load_state_dict(self.encoder.state_dict())
        return method.to(self.device).eval(), transform

    def digest(self) -> str:
        """Return the SHA-256 of the weights, and of the buffers unless images determine them."""
        tensors: dict[str, Tensor] = {**dict(self.encoder.named_parameters())}
        if not self.fits:
            tensors |= dict(self.encoder.named_buffers())
        found = hashlib.sha256()
        for name, value in sorted(tensors.items()):
            rows = value.detach().cpu().contiguous().view(-1)
            found.update(f"{name} {rows.dtype} {list(value.shape)}".encode())
            found.update(rows.view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = self.normalise(images.to(self.device))
        return pixels.contiguous(memory_format=torch.channels_last)

    def _maps(self, pixels: Tensor) -> dict[str, Tensor]:
        try:
            return self.encoder.maps(pixels)
        except SslkitError:
            return {}

    def unfitted(self) -> list[_BatchNorm]:
        """Return the untrained batch norms, whose running statistics are still 0 and 1."""
        norms = [one for one in self.encoder.modules() if isinstance(one, _BatchNorm)]
        return [norm for norm in norms if _is_initial(norm)]

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Set the statistics of untrained batch norms from one pass over `batches`.

        Restores their momentum. Statistics of trained batch norms do not change.
        """
        modules = self.unfitted()
        momenta = [module.momentum for module in modules]
        for module in modules:
            module.momentum = None  # the mean over all batches
            module.train()
        for images in batches:
            self.encoder(self._pixels(images))
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
            module.eval()


def _is_initial(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return False
    return bool((mean == 0).all() and (variance == 1).all())


class RawPixels(Candidate):
    """The pixels of the image at 32×32, a baseline without encoder."""

    name, baseline, size = "raw pixels", True, PIXELS
    has_layers = False

    def __init__(self, bits: Literal[8, 16] = 8) -> None:
        self.highest = 2**bits - 1

    def embed(self, images: Tensor, *, layers: bool = False) -> dict[str, Tensor]:
        """integer [N,C,32,32] → {"features": float32 [N,C·32·32]} in 0 … 1."""
        return {"features": images.flatten(1).float() / self.highest}


def normaliser(
    normalisation: Normalisation, bits: Literal[8, 16], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return a function that normalises integer [N,C,H,W] → float32 [N,C,H,W]."""
    mean, scale = (values.to(device) for values in normalisation.tensors())
    step = 255 / (2**bits - 1)

    def normalise(images: Tensor) -> Tensor:
        return (images.float() * step - mean) * scale

    return normalise
