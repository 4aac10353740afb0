"""Replaces batch norms by group norms, or by batch norms over slices of a batch."""

from typing import Any

import torch
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import Tensor, nn
from torch.nn import functional as F


def replace_by_group_norm(model: nn.Module, groups: int) -> None:
    """Replace batch norms by group norms; keep activation, dropout, scale and shift.

    The number of groups is the largest divisor of the channels up to `groups` (Wu & He 2018,
    arXiv:1803.08494). One group is a layer norm over channels and positions.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, old in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(old, nn.modules.batchnorm._BatchNorm):
            continue
        if old not in made:
            channels = old.num_features
            count = max(n for n in range(1, groups + 1) if channels % n == 0)
            new = GroupNormAct(channels, count, eps=old.eps, affine=old.affine)
            new.act = getattr(old, "act", nn.Identity())
            new.drop = getattr(old, "drop", nn.Identity())
            if old.affine:
                new.weight, new.bias = old.weight, old.bias
            made[old] = new
        model.set_submodule(name, made[old])


class SplitBatchNorm(BatchNormAct2d):
    """A batch norm with separate statistics for each of `splits` slices of the batch.

    Simulates several devices on one, as in MoCo's CIFAR-10 demo (He et al. 2020, arXiv:1911.05722,
    section 3.3). Slices are consecutive rows, and their sizes differ by at most one. The running
    statistics follow the mean over slices. In evaluation mode it equals the batch norm that it
    replaces, and it has the same tensors.
    """

    def __init__(self, old: Any, splits: int) -> None:
        super().__init__(old.num_features, old.eps, old.momentum, apply_act=False)
        self.splits = splits
        self.act = getattr(old, "act", nn.Identity())
        self.drop = getattr(old, "drop", nn.Identity())
        self.weight, self.bias = old.weight, old.bias
        self.running_mean, self.running_var = old.running_mean, old.running_var
        self.num_batches_tracked = old.num_batches_tracked

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,…] → [N,C,…]."""
        if self.training:
            x = self._normalise_slices(x)
        else:
            x = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return self.act(self.drop(x))

    def _normalise_slices(self, x: Tensor) -> Tensor:
        own: Any = self
        momentum = self.momentum
        if momentum is None:  # the mean over all batches
            momentum = 1 / (1 + int(own.num_batches_tracked))
        found, means, variances = [], [], []
        for part in x.tensor_split(min(self.splits, len(x))):
            mean, variance = own.running_mean.clone(), own.running_var.clone()
            found.append(
                F.batch_norm(part, mean, variance, self.weight, self.bias, True, momentum, self.eps)
            )
            means.append(mean)
            variances.append(variance)
        with torch.no_grad():
            own.running_mean.copy_(torch.stack(means).mean(0))
            own.running_var.copy_(torch.stack(variances).mean(0))
            own.num_batches_tracked.add_(1)
        return torch.cat(found)


def split_batch_norms(model: nn.Module, splits: int) -> None:
    """Replace every batch norm with running statistics by a SplitBatchNorm."""
    for name, old in list(model.named_modules()):
        if isinstance(old, nn.modules.batchnorm._BatchNorm) and old.track_running_stats:
            model.set_submodule(name, SplitBatchNorm(old, splits))


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return all batch norms of a model."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
