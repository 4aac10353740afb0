"""Strided convolutions over maps of one pixel."""

import torch
from torch import Tensor, nn

from sslkit_plugins.precision import at_least_float32


class StridedConv2d(nn.Conv2d):
    """A convolution in float32 on the CPU, under autocast, for maps of 1×1.

    The bfloat16 CPU kernels of PyTorch 2.14 (oneDNN) are wrong for a strided 3×3 convolution over a
    map of 1×1: gradients of the weights are wrong or infinite. A ResNet reaches such maps with
    views of 16 px or less. Other maps, and GPUs, use autocast as usual.
    """

    def forward(self, images: Tensor) -> Tensor:
        """[N,C,H,W] → [N,D,h,w]."""
        if images.device.type != "cpu" or images.shape[-2:] != (1, 1):
            return super().forward(images)
        with torch.autocast("cpu", enabled=False):
            return super().forward(at_least_float32(images))


def guard_strided(model: nn.Module) -> None:
    """Make every strided convolution of a model, in place, a `StridedConv2d`."""
    for module in model.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and max(module.kernel_size) > 1:
            module.__class__ = StridedConv2d
