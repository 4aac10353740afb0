"""A probe of noisy pictures and a tiny encoder, for tests of evaluations."""

from collections import Counter

import numpy as np
import torch
from PIL import Image
from torch import nn

from sslkit.evaluation.candidates import Network, RawPixels, normaliser
from sslkit.evaluation.probe import ImageProbe
from sslkit.interfaces import Encoder, ImageSource, Normalisation, Pixels

NPID = """\
name: npid
method: {{use: npid}}
data: {{use: image_folder, root: '{root}'}}
transform: {{use: augment, size: 32}}
encoder: {{use: timm, model: test_resnet}}
heads: {{image: {{use: linear, out_dim: 16}}}}
sampler: {{use: memory_bank, negatives: 4}}
loss: {{use: lambda_nce}}
optimizer: {{lr: 0.1}}
train: {{epochs: 1, batch_size: 4, device: cpu, precision: fp32, workers: 0}}
"""
"""A recipe on the image folder `root`; no step of it is needed."""


class Noise(ImageSource):
    """Random pictures of three classes, whose decoding is counted."""

    def __init__(self, count: int, seed: int = 0, channels: int = 3, bits=8) -> None:
        rng = np.random.default_rng(seed)
        kind = np.uint8 if bits == 8 else np.uint16
        self.arrays = rng.integers(0, 2**bits, (count, channels, 40, 48)).astype(kind)
        self.names = [f"{number:03}.png" for number in range(count)]
        self.labels, self.classes = np.arange(count) % 3, ["a", "b", "c"]
        self.tags = np.eye(3, dtype=np.int8)[self.labels]
        self.channels, self.bits = channels, bits
        self.decoded: Counter[int] = Counter()

    def image(self, index: int) -> Image.Image:
        self.decoded[index] += 1
        return Image.fromarray(self.arrays[index].transpose(1, 2, 0))

    def pixels(self, index: int, reduction) -> Pixels:
        self.decoded[index] += 1
        return Pixels(torch.from_numpy(self.arrays[index]), 48, 40)


class Tiny(Encoder):
    """A convolution, a batch norm and the mean of its map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3))
        self.dim = 4

    def forward(self, images):
        return self.layers(images).mean((2, 3))

    def maps(self, images):
        return {"conv": self.layers(images)}


CPU = torch.device("cpu")


def network(name="trained", size=16, **options) -> Network:
    plain = normaliser(Normalisation(), 8, CPU)
    return Network(name, Tiny(), plain, size=size, device=CPU, **options)


def made(candidates=None, train=None, val=None) -> ImageProbe:
    """A probe of 30 and 12 noisy pictures."""
    train, val = train or Noise(30), val or Noise(12, seed=1)
    found = candidates or [network(), network("untrained", baseline=True), RawPixels()]
    return ImageProbe(train, val, ["a", "b", "c"], found, found[0].size, CPU)
