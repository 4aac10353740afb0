"""VICReg: closed forms of its three terms in float64."""

import pytest
import torch

from sslkit import recipe
from sslkit.errors import RecipeError
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.methods.vicreg import VarianceCovariance

COVARIANCE = VarianceCovariance(invariance=0, variance=0, covariance=1)


def rows(count=64, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64)


def whitened(count=64, dim=8):
    """Rows whose unbiased covariance is 1.21 times the identity."""
    centred = rows(count, dim) - rows(count, dim).mean(0)
    return torch.linalg.qr(centred)[0] * (count - 1) ** 0.5 * 1.1


def test_constant_features_have_the_variance_term_alone():
    """25 · (1 - √1e-4) = 24.75."""
    loss = VarianceCovariance()
    constant = torch.full((16, 8), 3.0, dtype=torch.float64)
    assert loss(constant, constant).item() == pytest.approx(24.75, abs=1e-12)
    assert loss.at_chance(dim=8, negatives=15) == pytest.approx(24.75)


def test_equal_decorrelated_views_of_enough_variance_have_no_loss():
    assert VarianceCovariance()(whitened(), whitened()).item() < 1e-20


def test_independent_normal_features():
    """50 for the invariance, little for the variance, 2·(d - 1)/(B - 1) for the covariance."""
    loss = VarianceCovariance()
    first, second = rows(512, 256), rows(512, 256, seed=1)
    little = VarianceCovariance(invariance=0, covariance=0)(first, second).item()
    assert 0 < little < 1
    found = loss(first, second).item()
    assert found == pytest.approx(50 + little + 2 * 255 / 511, rel=0.01)


def test_random_unit_vectors_have_the_expected_first_loss():
    """2·25/d + 25·(1 - √(1/d + 1e-4)) and little covariance: 0.20 + 23.42 for d = 256."""
    loss = VarianceCovariance()
    expected = loss.at_start(dim=256, negatives=511)
    assert expected == pytest.approx(0.195 + 23.418, abs=0.001)
    first, second = (torch.nn.functional.normalize(rows(512, 256, seed)) for seed in (0, 1))
    assert loss(first, second).item() == pytest.approx(expected, rel=0.01)


def test_each_term_by_hand():
    """Rows (1, 1) and (-1, -1): variance 2, covariance 2, so the last term is 2·2²/2 = 4 a view."""
    view = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert COVARIANCE(view, view).item() == pytest.approx(8)
    invariance = VarianceCovariance(invariance=1, variance=0, covariance=0)
    assert invariance(view, view + 3).item() == pytest.approx(9)
    variance = VarianceCovariance(invariance=0, variance=1, covariance=0)
    small = torch.tensor([[0.1], [-0.1]], dtype=torch.float64)
    assert variance(small, view[:, :1]).item() == pytest.approx((1 - 0.0201**0.5) / 2)


def test_the_covariance_term_scales_with_the_fourth_power():
    expected = 16 * COVARIANCE(rows(), rows(seed=1))
    torch.testing.assert_close(COVARIANCE(2 * rows(), 2 * rows(seed=1)), expected)


def test_a_common_shift_and_exchanged_views_change_nothing():
    loss = VarianceCovariance()
    expected = loss(rows(), rows(seed=1))
    torch.testing.assert_close(loss(rows() + 7, rows(seed=1) + 7), expected)
    torch.testing.assert_close(loss(rows(seed=1), rows()), expected)


def test_it_computes_in_float32_under_autocast_and_keeps_float64():
    loss = VarianceCovariance()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(rows().float(), rows(seed=1).float())
    torch.testing.assert_close(found, loss(rows(), rows(seed=1)).float())
    assert loss(rows().bfloat16(), rows().bfloat16()).dtype == torch.float32


def test_a_step_trains_every_weight_and_measures_collapse(images):
    settings = ["encoder.model=test_resnet", "transform.size=32", "train.batch_size=8"]
    settings += ["train.workers=0", "train.device=cpu", "train.precision=fp32"]
    run = build(recipe.read("recipes/vicreg.yaml", overrides=settings, data=str(images)))
    assert run.method.at_chance(8) == {}, "a random network is below it"
    step = next(train(run))
    assert all(value.grad is not None for value in run.weights)
    assert 0 < step.metrics["feature_std/projector"] < 1.1


def test_accumulation_is_refused():
    with pytest.raises(RecipeError, match=r"train\.accumulate  the loss of method 'vicreg' looks"):
        recipe.read("recipes/vicreg.yaml", overrides=["train.accumulate=2"])
