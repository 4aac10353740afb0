"""Copies that follow, weights that are frozen, the measure of collapse, and schedules of a step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslkit.interfaces import Draws, Progress
from sslkit_plugins.momentum import Momentum, feature_std, frozen


def at(step, steps=100):
    return Progress(step, steps, 0, 1, Draws(0))


def test_a_cosine_goes_from_start_to_end():
    """BYOL's momentum at the beginning, in the middle and at the end: 0.996, 0.998, 1."""
    values = [at(step).cosine(0.996, 1.0) for step in (0, 50, 100)]
    assert values == pytest.approx([0.996, 0.998, 1.0])
    assert at(0, steps=0).cosine(0.5, 1.0) == 0.5


def test_a_copy_follows_by_its_momentum():
    """0.75 · 1 + 0.25 · 5 = 2; then 0.5 · 2 + 0.5 · 5 = 3.5. The original stays."""
    original = nn.Linear(2, 1)
    nn.init.ones_(original.weight)
    copies = Momentum(layer=original)
    nn.init.constant_(original.weight, 5.0)
    for momentum, expected in ((0.75, 2.0), (0.5, 3.5), (1.0, 3.5), (0.0, 5.0)):
        copies.follow(momentum, layer=original)
        assert copies["layer"].weight.tolist() == [[expected, expected]]
    assert original.weight.tolist() == [[5.0, 5.0]]


def test_a_copy_has_no_gradient_and_statistics_of_its_own():
    original = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    copies = Momentum(net=original).train()
    assert not any(value.requires_grad for value in copies.parameters())
    copies["net"](torch.randn(8, 3))
    assert copies["net"][1].num_batches_tracked == 1 and original[1].num_batches_tracked == 0
    before = copies["net"][1].running_mean.clone()
    copies.follow(0.0, net=original)
    assert torch.equal(copies["net"][1].running_mean, before), "parameters alone follow"


def test_copies_are_in_the_state():
    net = nn.Linear(2, 2)
    names = Momentum(encoder=net, projector=net).state_dict().keys()
    assert names == {
        f"{name}.{part}" for name in ("encoder", "projector") for part in ("weight", "bias")
    }


def test_frozen_weights_get_no_gradient_but_pass_it_on():
    """None, not 0: an optimizer would move a weight of gradient 0 by momentum and decay."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    second.bias.requires_grad_(False)
    with frozen(second):
        loss = second(first(torch.ones(1, 2))).sum()
    loss.backward()
    assert second.weight.grad is None and first.weight.grad.abs().sum() > 0
    assert second.weight.requires_grad and not second.bias.requires_grad


def test_weights_are_trainable_again_after_an_error():
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="in between"), frozen(net):
        raise ValueError("in between")
    assert net.weight.requires_grad


def test_feature_std_is_0_for_equal_rows_and_1_for_random_ones():
    assert feature_std(F.normalize(torch.ones(50, 8), dim=1)) == 0
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(5000, 64, generator=generator), dim=1)
    assert feature_std(rows) == pytest.approx(1, abs=0.02)
    assert feature_std(torch.cat([torch.eye(4), -torch.eye(4)])) == pytest.approx(1), "by hand"
