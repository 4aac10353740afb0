"""Pools the map of a layer to a vector, for evaluation by layer."""

import math

from torch import Tensor
from torch.nn import functional as F

FEATURES = 9216
"""Approximate length of a pooled map (Goyal et al. 2019, arXiv:1905.01235, section 6.1)."""
PAPER_POOLS = {112: (10, 10, 4), 56: (16, 8, 0), 28: (13, 5, 0), 14: (8, 3, 0), 7: (6, 1, 0)}
"""Side of a map → kernel, stride and padding of PIRL's linear protocol at 224 px."""


def pool(maps: Tensor) -> Tensor:
    """[N,c,h,w] → [N,features] by average pooling.

    Uses PIRL's pooling at its map sizes, else adaptive pooling to about FEATURES numbers.
    """
    channels, height, width = maps.shape[1:]
    if height in PAPER_POOLS and height == width and channels * height * width > FEATURES:
        kernel, stride, padding = PAPER_POOLS[height]
        return F.avg_pool2d(maps, kernel, stride, padding).flatten(1)
    side = max(1, math.isqrt(FEATURES // channels))
    return F.adaptive_avg_pool2d(maps, (min(height, side), min(width, side))).flatten(1)
