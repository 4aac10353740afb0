"""Cosine distances and squared errors, by hand."""

import pytest
import torch

from sslkit_plugins.losses import (
    Cosine,
    SquaredError,
)


def test_cosine_distances_by_hand():
    """Parallel 0, orthogonal 2, opposite 4; lengths do not matter."""
    target = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    for prediction, expected in (([5.0, 0.0], 0), ([0.0, 3.0], 2), ([-1.0, 0.0], 4)):
        found = Cosine()(torch.tensor([prediction], dtype=torch.float64), target)
        assert found.dtype == torch.float64 and found.item() == pytest.approx(expected)
    assert Cosine().at_start(dim=8, negatives=0) == 2


def test_the_gradient_of_a_cosine_is_orthogonal_to_the_prediction():
    rows = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    Cosine()(rows, torch.randn(6, 8, dtype=torch.float64)).backward()
    assert (rows.grad * rows).sum(1).abs().max() < 1e-12


def test_squared_errors_are_averaged_over_all_elements():
    """(1 + 4 + 9 + 0) / 4."""
    prediction = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    target = torch.tensor([[0.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    assert SquaredError()(prediction, target).item() == 3.5
    assert SquaredError().at_start(dim=2, negatives=0) is None
