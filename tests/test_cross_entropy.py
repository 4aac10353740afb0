"""Cross-entropies of classes and of distributions, by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from sslkit_plugins.losses import (
    CrossEntropy,
    SoftCrossEntropy,
)


def test_cross_entropy_of_indifferent_logits_is_log_c():
    loss = CrossEntropy()
    assert loss(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item() == pytest.approx(math.log(4))
    assert loss.at_start(dim=4, negatives=1) == pytest.approx(math.log(4))


def test_soft_cross_entropy_by_hand():
    """Softmax of (ln 3, 0) is (3/4, 1/4); the target is (1/2, 1/2)."""
    scores = torch.tensor([[math.log(3) / 2, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    found = SoftCrossEntropy(temperature=0.5)(scores, target)
    assert found.dtype == torch.float64 and found.item() == pytest.approx(expected, rel=1e-12)


def test_soft_cross_entropy_of_one_hot_targets_is_cross_entropy():
    logits, classes = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    one_hot = F.one_hot(classes, 5).double()
    expected = CrossEntropy()(logits, classes)
    torch.testing.assert_close(SoftCrossEntropy(temperature=1.0)(logits, one_hot), expected)
    weighted = SoftCrossEntropy(temperature=1.0)(logits, 3 * one_hot)
    torch.testing.assert_close(weighted, 3 * expected)


def test_soft_cross_entropy_is_least_where_prediction_equals_target():
    """Its gradient is (softmax - q)/(N·τ), and the value is the entropy of q."""
    target = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    scores = (0.1 * target.log()).requires_grad_()
    loss = SoftCrossEntropy(temperature=0.1)(scores, target)
    assert loss.item() == pytest.approx(-(target * target.log()).sum().item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, torch.zeros(1, 3, dtype=torch.float64))


def test_soft_cross_entropy_of_equal_scores_is_log_c():
    loss = SoftCrossEntropy()
    target = torch.rand(4, 7).softmax(1)
    assert loss(torch.zeros(4, 7), target).item() == pytest.approx(math.log(7))
    assert loss.at_start(dim=7, negatives=0) == loss.at_chance(dim=7, negatives=0) == math.log(7)
