"""Strided convolutions over maps of 1×1 under autocast on the CPU."""

import pytest
import torch
from torch import nn

from sslkit_plugins.encoders import Timm
from sslkit_plugins.encoders.strided import StridedConv2d, guard_strided


def gradient(conv, images, precision):
    conv.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        conv(images).float().square().mean().backward()
    return conv.weight.grad.clone()


@pytest.mark.parametrize("side", [1, 2])
def test_gradients_in_bfloat16_are_near_those_in_float32(side):
    """In 20 trials, since the kernel reads memory that others have used before."""
    model = nn.Sequential(nn.Conv2d(64, 128, 3, 2, 1, bias=False))
    guard_strided(model)
    (conv,) = model
    images = torch.randn(8, 64, side, side, generator=torch.Generator().manual_seed(0))
    expected = gradient(conv, images, "fp32")
    for _ in range(20):
        used = torch.full((128 * 64 * 9,), float("nan"))
        del used
        error = (gradient(conv, images, "bf16") - expected).abs().max() / expected.abs().max()
        assert error < 0.05


def test_only_strided_convolutions_change():
    encoder = Timm((32,), 3, model="resnet18")
    strided = [module for module in encoder.modules() if isinstance(module, StridedConv2d)]
    assert len(strided) == 4 and all(max(conv.stride) == 2 for conv in strided)
    before = sum(isinstance(module, nn.Conv2d) for module in encoder.modules())
    assert before == 20
