"""Parts that the wirings need. Letters: N images, B images of a batch, C×S×S pixels, D features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.interfaces import Draws, Encoder, Loss, Negatives, NegativeSampler
from sslkit_plugins.samplers import KeyNegatives
from sslkit_plugins.views.cuts import Cut
from sslkit_plugins.views.photometric import Photometric


class Halves(Encoder):
    """Two networks side by side, whose vectors are the segments `left` and `right`."""

    roles = ("segments",)

    def __init__(self, channels: int, /, *, width: int = 6) -> None:
        super().__init__()
        self.left = nn.Conv2d(channels, width, 5, stride=4)
        self.right = nn.Conv2d(channels, width + 2, 5, stride=4)
        self.dims = {"left": width, "right": width + 2}
        self.dim = sum(self.dims.values())

    def forward(self, images: Tensor) -> Tensor:
        """float [N,C,S,S] → [N,dim]."""
        maps = self.maps(images)
        return torch.cat([side.mean((2, 3)) for side in maps.values()], 1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,S,S] → {side: [N,c,h,w]}."""
        return {name: getattr(self, name)(images).relu() for name in self.dims}


class Distance(Loss):
    """Mean squared distance of unit vectors; the target gets no gradient."""

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,D], target [N,D] → scalar."""
        ours = F.normalize(prediction.float(), dim=-1)
        theirs = F.normalize(target.detach().float(), dim=-1)
        return (ours - theirs).square().sum(-1).mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """2: random vectors are orthogonal."""
        return 2.0


class Forgetful(NegativeSampler):
    """The same eight random vectors for every image; remembers none."""

    candidates = 8

    def __init__(self, dim: int, /) -> None:
        super().__init__()
        self.vectors: Tensor
        self.register_buffer("vectors", F.normalize(torch.randn(8, dim), dim=1))

    def draw(self, index: Tensor, draws: Draws, terms: int = 1) -> Negatives:
        """index int64 [B] → the eight vectors."""
        return KeyNegatives(self.vectors)


class UpsideDown(Photometric):
    """A crop in the view `upside_down`, which no other transform makes."""

    views = ("upside_down",)

    def __init__(self, channels: int = 3, /, *, size: int = 32) -> None:
        super().__init__({"upside_down": Cut(size=size, colours="none")}, channels)


class Wordless(Photometric):
    """Names its view too late, in the constructor."""

    def __init__(self, channels: int = 3, /) -> None:
        super().__init__({"global": Cut(size=32, colours="none")}, channels)
        self.views = ("global",)


class Curious(Distance):
    """Requires a runtime argument that losses do not get."""

    def __init__(self, num_images: int, /) -> None:
        super().__init__()
