"""Linear classifiers trained by SGD or LARS on the features of augmented images."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.errors import SslkitError
from sslkit.interfaces import Candidate, Encoder, Probe
from sslkit_plugins.evaluations.protocols import Protocol

EMBEDDED = 256
"""Largest number of images that the encoder embeds together."""
ALEXNET_POOLS = {
    "conv1": (55, 6, 6, 3, 10),
    "conv2": (27, 4, 4, 0, 6),
    "conv3": (13, 3, 3, 1, 5),
    "conv4": (13, 3, 3, 1, 5),
    "conv5": (13, 2, 2, 0, 6),
}
"""Side of a map at 224 px; kernel, stride and padding of the max-pooling; side of the result."""
WIDE = 768
"""Width of a vision transformer from which DINO reads one block and the mean patch."""
BLOCKS = 4
"""Last blocks whose class tokens DINO reads from narrower transformers."""


class ChannelNorm(nn.BatchNorm1d):
    """Batch norm per channel of a pooled map, flattened to [N,c·s]."""

    def forward(self, features: Tensor) -> Tensor:
        """[N,c·s] → [N,c·s]."""
        positions = features.unflatten(1, (self.num_features, -1))
        return super().forward(positions).flatten(1)


def map_channels(candidate: Candidate, images: Tensor) -> dict[str, int]:
    """Return the number of channels of each layer's map; {} for candidates without maps."""
    network = candidate.network()
    if network is None:
        return {}
    encoder, normalise = network
    try:
        with torch.no_grad():
            maps = encoder.maps(normalise(images[:1]))
    except SslkitError:
        return {}
    return {name: values.shape[1] for name, values in maps.items()}


def max_pool(name: str, maps: Tensor) -> Tensor:
    """[N,c,h,w] → [N,c·s] by the max-pooling of AlexNet's probes; adaptive at other map sizes."""
    side, kernel, stride, padding, pooled = ALEXNET_POOLS[name]
    if maps.shape[-2:] == (side, side):
        return F.max_pool2d(maps, kernel, stride, padding).flatten(1)
    height, width = maps.shape[-2:]
    return F.adaptive_max_pool2d(maps, (min(pooled, height), min(pooled, width))).flatten(1)


class Reader:
    """Reads the features of a candidate by layer, as a protocol requires.

    `notes` are sentences about what the encoder lacks.
    """

    def __init__(self, candidate: Candidate, protocol: Protocol, *, layers: bool) -> None:
        self.candidate, self.protocol, self.layers = candidate, protocol, layers
        self.pools = layers and protocol.pooling == "alexnet"
        self.network = candidate.network() if protocol.tokens or self.pools else None
        self.notes: list[str] = []

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """integer [N,C,S,S] → {layer: float32 [N,D]}."""
        parts: dict[str, list[Tensor]] = {}
        for some in images.split(EMBEDDED):
            for name, rows in self._read(some).items():
                parts.setdefault(name, []).append(rows)
        return {
            name: rows[0] if len(rows) == 1 else torch.cat(rows) for name, rows in parts.items()
        }

    def _read(self, images: Tensor) -> dict[str, Tensor]:
        found = self.candidate.embed(images, layers=self.layers)
        if self.network is None:
            return found
        encoder, normalise = self.network
        pixels = normalise(images)
        special = self._pooled if self.pools else self._tokens
        return found | special(encoder, pixels)

    def _pooled(self, encoder: Encoder, pixels: Tensor) -> dict[str, Tensor]:
        """Return the max-pooled layers of AlexNet; {} for other encoders."""
        try:
            maps = encoder.maps(pixels)
        except SslkitError:
            maps = {}
        if set(maps) != set(ALEXNET_POOLS):
            self._note("the encoder has no layers conv1 … conv5, so layers are average-pooled")
            return {}
        return {name: max_pool(name, values).float() for name, values in maps.items()}

    def _tokens(self, encoder: Encoder, pixels: Tensor) -> dict[str, Tensor]:
        """Return class tokens of the last blocks, or class token and mean patch if they are wide.

        dino: eval_linear.py, `--n_last_blocks` and `--avgpool_patchtokens`. {} without class token.
        """
        prefix = encoder.prefix_tokens
        try:
            blocks = encoder.blocks(pixels, BLOCKS)
        except SslkitError:
            prefix = 0
        if not prefix:
            self._note("the encoder has no class tokens, so its features are classified")
            return {}
        last = blocks[-1]
        if last.shape[-1] >= WIDE:
            return {"features": torch.cat([last[:, 0], last[:, prefix:].mean(1)], 1).float()}
        return {"features": torch.cat([rows[:, 0] for rows in blocks], 1).float()}

    def _note(self, text: str) -> None:
        note = f"{self.candidate.name}: {text}"
        if note not in self.notes:
            self.notes.append(note)


def classifier(width: int, channels: int, classes: int, protocol: Protocol) -> nn.Sequential:
    """Build a classifier of features [N,width], a map of `channels`, with its batch norm."""
    last = nn.Linear(width, classes)
    _initialise(last, protocol.initial)
    if protocol.norm == "none":
        return nn.Sequential(nn.Identity(), last)
    affine = protocol.norm == "affine"
    return nn.Sequential(ChannelNorm(channels, eps=protocol.norm_eps, affine=affine), last)


def _initialise(layer: nn.Linear, how: str) -> None:
    """Draw initial weights; `uniform` keeps PyTorch's."""
    if how == "uniform":
        return
    nn.init.zeros_(layer.bias)
    if how == "zeros":
        nn.init.zeros_(layer.weight)
    elif how == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    elif how == "truncated":
        nn.init.trunc_normal_(layer.weight, std=0.01)
    else:
        nn.init.normal_(layer.weight, std=0.01)


def batch_of(protocol: Protocol, count: int) -> tuple[int, float]:
    """Return batch size and learning rate for `count` training images."""
    size = min(protocol.batch_size, count)
    return size, protocol.lr * size / 256 if protocol.scaled else protocol.lr


def train(probe: Probe, read: Reader, protocol: Protocol, seed: int) -> nn.ModuleDict:
    """Train one classifier per layer on random crops and flips, all at once."""
    labels = torch.as_tensor(probe.train.labels, device=probe.device)
    batch_size, lr = batch_of(protocol, len(probe.train))
    per_epoch = len(probe.train) // batch_size
    steps = protocol.epochs * per_epoch
    torch.manual_seed(seed)
    classifiers = nn.ModuleDict()
    candidate = read.candidate
    batches = probe.augmented(
        probe.train, batch_size=batch_size, steps=steps, seed=seed, size=candidate.size
    )
    with probe.progress(f"training on {candidate.name}") as advance:
        for step, (images, index) in enumerate(batches):
            found = read(images)
            if step == 0:
                channels = map_channels(candidate, images) if read.layers else {}
                for name, rows in found.items():
                    width = rows.shape[1]
                    classifiers[name] = classifier(
                        width, channels.get(name, width), len(probe.classes), protocol
                    )
                classifiers.to(probe.device)
                optimizer, schedule = optimizer_of(classifiers, protocol, lr, per_epoch)
            losses = [
                F.cross_entropy(classifiers[name](rows), labels[index.to(probe.device)])
                for name, rows in found.items()
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
            advance(1, steps)
    classifiers.eval()
    return classifiers


def optimizer_of(
    classifiers: nn.ModuleDict, protocol: Protocol, lr: float, per_epoch: int
) -> tuple[Any, Any]:
    """Return the optimizer and the schedule of learning rates, advanced every step."""
    norms: list[Tensor] = []
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for module in classifiers.modules():
        if isinstance(module, ChannelNorm):
            norms += module.parameters()
        elif isinstance(module, nn.Linear):
            weights.append(module.weight)
            biases.append(module.bias)
    steps = protocol.epochs * per_epoch
    optimizer: Any
    if protocol.optimizer == "lars":
        from timm.optim import Lars

        groups = [
            {"params": weights, "always_adapt": True},
            {"params": [*biases, *norms], "always_adapt": protocol.adapts_bias},
        ]
        optimizer = Lars(
            groups, lr=lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
        )
    else:
        groups = [
            {"params": [*weights, *biases], "weight_decay": protocol.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.SGD(
            groups, lr=lr, momentum=protocol.momentum, nesterov=protocol.nesterov
        )
    return optimizer, schedule_of(optimizer, protocol, steps, per_epoch)


def schedule_of(optimizer: Any, protocol: Protocol, steps: int, per_epoch: int) -> Any:
    """Return the schedule; drops and warm-up keep their fractions of the source's epochs."""
    published = protocol.epochs_of_source or protocol.epochs
    if protocol.schedule == "steps":
        drops = [math.ceil(steps * drop / published) for drop in protocol.drops]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
    warmup = steps * protocol.warmup_epochs // published

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if protocol.schedule == "cosine per epoch":
            step -= step % per_epoch
        return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def predict(probe: Probe, read: Reader, classifiers: Any) -> dict[str, Tensor]:
    """Return logits [N,C] of the validation images by layer; means over ten crops."""
    logits: dict[str, list[Tensor]] = {name: [] for name in classifiers}
    size = read.candidate.size
    if read.protocol.test_crops == 1:
        batches = probe.images(probe.val, size=size)
    else:
        batches = probe.images(probe.val, view="square", size=round(size * 256 / 224))
    for images, _ in batches:
        crops = [images] if read.protocol.test_crops == 1 else ten_crops(images, size)
        sums: dict[str, Tensor] = {}
        for crop in crops:
            for name, rows in read(crop).items():
                found = classifiers[name](rows)
                sums[name] = sums[name] + found if name in sums else found
        for name, total in sums.items():
            logits[name].append(total / len(crops))
    return {name: torch.cat(parts) for name, parts in logits.items()}


def ten_crops(images: Tensor, size: int) -> list[Tensor]:
    """[N,C,S,S] → ten crops [N,C,size,size]: four corners and the centre, each also flipped."""
    far = images.shape[-1] - size
    middle = far // 2
    corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
    crops = [images[..., top : top + size, left : left + size] for top, left in corners]
    return [*crops, *(crop.flip(-1) for crop in crops)]
