"""BiGAN (Donahue, Krähenbühl & Darrell 2017, arXiv:1605.09782).

"Adversarial Feature Learning". Official code: github.com/jeffdonahue/bigan (`train_gan.py`,
`net.py`). Letters: N images, x images [N,C,S,S], z latent vectors [N,Z].
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Batch, Head, Method, Output, Parts, Progress
from sslkit_plugins.momentum import frozen

START = 4
"""Side of the first map of the generator and of the last map of the discriminator, px."""

Base = Annotated[
    int,
    Field(ge=1, description="Channels of the layer next to the image; each further one has twice."),
]
HiddenNorm = Annotated[
    bool, Field(description="Apply batch norm in the hidden layers. BiGAN: true.")
]


def doublings(side: int, key: str) -> int:
    """Return n for a side of 4·2ⁿ px, n ≥ 1. Raises RecipeError for other sides."""
    count = round(math.log2(side / START))
    if count < 1 or START * 2**count != side:
        message = f"needs images of 8, 16, 32, 64, … px, not {side}; use transform.size=64"
        raise RecipeError(Fault(key, message))
    return count


class Conditioned(nn.Module):
    """A layer whose output is shifted by a linear map of z, then normalised."""

    def __init__(self, layer: nn.Module, channels: int, latent: int, norm: bool) -> None:
        super().__init__()
        self.layer, self.shift = layer, nn.Linear(latent, channels, bias=not norm)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, maps: Tensor, latent: Tensor) -> Tensor:
        """[N,c,h,w], z [N,Z] → [N,c',h',w']."""
        return self.norm(self.layer(maps) + self.shift(latent)[:, :, None, None])


class Generator(Head):
    """G, which draws an image from a latent vector with transposed convolutions.

    The official `deconvnet_64`. Returns images, not vectors: [N,Z] → [N,C,S,S] in 0 … 1.
    """

    roles = ("generator",)
    special = True

    def __init__(
        self,
        in_dim: int,
        shape: tuple[int, int, int],
        /,
        *,
        channels: Base = 64,
        hidden_norm: HiddenNorm = True,
    ) -> None:
        super().__init__()
        pixels, side, _ = shape
        count = doublings(side, "heads.generator")
        self.out_dim = math.prod(shape)
        width = channels * 2 ** (count - 1)
        self.first_shape = (width, START, START)
        self.first = nn.Linear(in_dim, math.prod(self.first_shape))
        norm = nn.BatchNorm1d(self.first.out_features) if hidden_norm else nn.Identity()
        self.first_norm = norm
        self.layers = nn.ModuleList()
        for _ in range(count - 1):
            layer = nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False)
            self.layers.append(Conditioned(layer, width // 2, in_dim, hidden_norm))
            width //= 2
        self.last = nn.ConvTranspose2d(width, pixels, 4, 2, 1)

    def forward(self, features: Tensor) -> Tensor:
        """z [N,Z] → images [N,C,S,S] in 0 … 1."""
        maps = F.relu(self.first_norm(self.first(features))).unflatten(1, self.first_shape)
        for layer in self.layers:
            maps = F.relu(layer(maps, features))
        return self.last(maps).sigmoid()


class Discriminator(Head):
    """D, which tells (x, E(x)) from (G(z), z) and returns a logit: positive means (x, E(x)).

    The official `convnet_64`, every layer but the first conditioned on z.
    """

    roles = ("discriminator",)
    special = True

    def __init__(
        self,
        in_dim: int,
        shape: tuple[int, int, int],
        /,
        *,
        channels: Base = 64,
        hidden_norm: HiddenNorm = True,
    ) -> None:
        super().__init__()
        pixels, side, _ = shape
        count = doublings(side, "heads.discriminator")
        self.out_dim = 1
        self.first = nn.Conv2d(pixels, channels, 5, 2, 2)
        self.layers = nn.ModuleList()
        width = channels
        for _ in range(count - 1):
            layer = nn.Conv2d(width, 2 * width, 5, 2, 2, bias=False)
            self.layers.append(Conditioned(layer, 2 * width, in_dim, hidden_norm))
            width *= 2
        self.last = nn.Linear(width * START**2, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, images: Tensor, latent: Tensor) -> Tensor:  # type: ignore[override]
        """x [N,C,S,S], z [N,Z] → logits [N]."""
        maps = F.leaky_relu(self.first(images), 0.2)
        for layer in self.layers:
            maps = F.leaky_relu(layer(maps, latent), 0.2)
        return self.last(maps.flatten(1)).squeeze(1)


class BiGan(Method):
    """Learn an encoder E as the inverse of a generator G, against a discriminator D.

    Steps take turns: `discriminator_steps` steps of D, then one of E and G with flipped labels.
    """

    needs: ClassVar = {
        "heads.generator": "generator",
        "heads.discriminator": "discriminator",
        "loss": "elements",
    }
    crops: ClassVar = {}
    reads: ClassVar = {"latent": "image", "generator": "latent", "discriminator": "latent"}
    uses_every_parameter = False

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        discriminator_steps: Annotated[
            int, Field(ge=1, description="Steps of D before a step of E and G, usually 1.")
        ] = 1,
    ) -> None:
        super().__init__(parts)
        self.discriminator_steps = discriminator_steps
        self.mean: Tensor
        self.scale: Tensor
        mean, scale = self.encoder.normalisation.tensors()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare (x, E(x)) with (G(z), z); the weights of the other side get no gradient."""
        images = batch.views["image"]
        latent = progress.draws.uniform(len(images), self.head("latent").out_dim, low=-1.0)
        latent = latent.to(images.device)
        turn_of_d = progress.step % (self.discriminator_steps + 1) < self.discriminator_steps
        others = [self.heads["discriminator"]]
        if turn_of_d:
            others = [self.encoder, self.heads["latent"], self.heads["generator"]]
        with frozen(*others):
            real = self.heads["discriminator"](images, self.encoded(images))
            fake = self.heads["discriminator"](self.generated(latent), latent)
            loss_d, loss_eg = self.losses(real, fake)
        metrics = {
            "loss_discriminator": loss_d.detach(),
            "loss_generator": loss_eg.detach(),
            "accuracy_discriminator": ((real > 0).float().mean() + (fake < 0).float().mean()) / 2,
        }
        return Output(loss_d if turn_of_d else loss_eg, metrics)

    def encoded(self, images: Tensor) -> Tensor:
        """Return E(x) in -1 … 1: [N,C,S,S] → [N,Z]."""
        return self.heads["latent"](self.encode(images)).tanh()

    def generated(self, latent: Tensor) -> Tensor:
        """Return G(z), normalised like the images: [N,Z] → [N,C,S,S]."""
        return (255 * self.heads["generator"](latent) - self.mean) * self.scale

    def losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of D, and of E and G, of logits [N] of both kinds of pairs."""
        logits = torch.cat([real, fake])
        is_real = torch.cat([torch.ones_like(real), torch.zeros_like(fake)])
        return self.loss(logits, is_real), self.loss(logits, 1 - is_real)

    def at_start(self, images: int) -> float | None:
        """Return the loss of logits 0, with which the discriminator begins."""
        return self.loss.at_start(dim=1, negatives=1)
