"""Parts that break their contracts, one way each."""

import sys

import numpy as np
import torch
from torch import nn

from sslkit.interfaces import Head, ImageSource, Loss
from sslkit_plugins.datasets.shapes import Shapes
from sslkit_plugins.heads import Linear
from sslkit_plugins.losses import InfoNCE
from sslkit_plugins.methods.npid import Npid
from sslkit_plugins.views import Augment

MADE_UP = (500, 375)
"""Size of the images of a rehearsal, px."""


class Raises(Linear):
    """A head that always fails."""

    def forward(self, features):
        raise ValueError("no features today\nbecause")


class Exits(Linear):
    """A head that ends the process."""

    def forward(self, features):
        sys.exit(0)


class Wide(Linear):
    """A head whose layer takes longer vectors."""

    def __init__(self, in_dim: int, /, *, out_dim: int = 16) -> None:
        super().__init__(in_dim + 1, out_dim=out_dim)


class Unmade(Head):
    """A head that cannot be made."""

    def __init__(self, in_dim: int, /) -> None:
        super().__init__()
        self.layer = nn.Linear(in_dim, "many")

    def forward(self, features):
        return self.layer(features)


class Forgetful(Linear):
    """A head that does not say how long its vectors are."""

    def __init__(self, in_dim: int, /) -> None:
        super().__init__(in_dim, out_dim=16)
        del self.out_dim


class Stubborn(Linear):
    """A head whose state no file can hold."""

    def get_extra_state(self):
        return object()

    def set_extra_state(self, state):
        pass


class Nan(InfoNCE):
    """A loss that is not a number."""

    def forward(self, prediction, target, negatives=None):
        return super().forward(prediction, target, negatives) * float("nan")


class Vector(InfoNCE):
    """A loss per image."""

    def forward(self, prediction, target, negatives=None):
        return prediction.square().mean((0, 2))


class Detached(Loss):
    """A loss that depends on no weight."""

    needs_negatives = None

    def forward(self, prediction, target, negatives=None):
        return prediction.detach().square().mean()


class Late(InfoNCE):
    """A loss that fails in its fourth call: the third step after a rehearsal of one."""

    needs_negatives = True
    calls = 0

    def forward(self, prediction, target, negatives=None):
        Late.calls += 1
        if Late.calls == 4:
            raise RuntimeError("the fourth call")
        return super().forward(prediction, target, negatives)


class Misshaped(Npid):
    """A method that keeps the rows of the first image only."""

    def forward(self, batch, progress):
        output = super().forward(batch, progress)
        output.keep["image"] = output.keep["image"][:1, :3]
        return output


class Bare(Npid):
    """A method that returns its loss alone."""

    def forward(self, batch, progress):
        return super().forward(batch, progress).loss


class Clusters(Npid):
    """A method that needs more images than a rehearsal has."""

    def begin_epoch(self, epoch):
        rows = [images.flatten(1) for images, index in epoch.plain()]
        torch.cat(rows)[:, :8].topk(16, dim=0)


class Hasty(Npid):
    """A method that fails before an epoch."""

    def begin_epoch(self, epoch):
        epoch.progress.epoch / 0


class Narrow(Augment):
    """A transform that fails for images of other sizes than made-up ones."""

    def __call__(self, image, rng):
        if (image.width, image.height) != MADE_UP:
            raise IndexError("this picture is too small")
        return super().__call__(image, rng)


class Cropped(Augment):
    """A transform that makes smaller views than it says."""

    def __call__(self, image, rng):
        sample = super().__call__(image, rng)
        sample.views["image"] = sample.views["image"][:, 1:]
        return sample


class ShortLabels(Shapes):
    """A data set with one label too few."""

    def __init__(self, split: str, /) -> None:
        super().__init__(split, images=40)
        self.labels = self.labels[:-1]


class TextLabels(ImageSource):
    """A data set whose labels are text."""

    def __init__(self, split: str, /) -> None:
        self.names = ["a", "b"]
        self.labels = np.array(["cat", "dog"])

    def image(self, index):
        raise NotImplementedError
