"""Stochastic depth in the residual blocks of a timm model."""

from timm.layers import DropPath
from torch import nn

PLACES = ("drop_path", "drop_path1", "drop_path2")
"""Attributes of timm's residual blocks."""


def set_drop_path(network: nn.Module, rate: float) -> bool:
    """Set stochastic depth of all blocks in place, rising linearly from 0 to `rate`.

    Returns False if no block has it (Huang et al. 2016, arXiv:1603.09382).
    """
    blocks = []
    for module in network.modules():
        places = [place for place in PLACES if hasattr(module, place)]
        if places:
            blocks.append((module, places))
    for number, (module, places) in enumerate(blocks):
        for place in places:
            setattr(module, place, DropPath(rate * number / max(1, len(blocks) - 1)))
    return bool(blocks)
