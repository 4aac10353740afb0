"""Barlow Twins: closed forms of its loss in float64, and the gathered batch, also of VICReg."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sslkit import distributed, recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Progress
from sslkit.training.build import build
from sslkit_plugins.methods.barlow_twins import CrossCorrelation

TINY = ["encoder.model=test_resnet", "transform.size=32", "train.epochs=2", "train.batch_size=8"]
TINY += ["train.workers=0", "train.device=cpu", "train.precision=fp32", "encoder.norm=group"]
TINY += ["heads.projector.hidden_norm=false", "heads.projector.hidden_dim=16"]
TINY += ["heads.projector.out_dim=8"]


def made(images, name):
    return build(recipe.read(name, overrides=TINY, data=str(images)))


def rows(count, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64)


def whitened(count=64, dim=8):
    """Rows whose covariance is the identity."""
    centred = rows(count, dim) - rows(count, dim).mean(0)
    return torch.linalg.qr(centred)[0] * count**0.5


def test_equal_whitened_views_have_no_loss():
    assert CrossCorrelation()(whitened(), whitened()).item() < 1e-8


def test_constant_features_have_loss_d():
    loss = CrossCorrelation()
    constant = torch.full((16, 8), 3.0, dtype=torch.float64)
    assert loss(constant, constant).item() == 8 == loss.at_chance(dim=8, negatives=15)


def test_equal_views_of_rank_1_have_the_off_diagonal_alone():
    """All elements of C are 1: λ·d·(d - 1) = 0.0051 · 56."""
    view = rows(64, 1) * torch.arange(1.0, 9.0, dtype=torch.float64)
    assert CrossCorrelation()(view, view).item() == pytest.approx(0.0051 * 56, rel=1e-4)


def test_independent_features_have_the_expected_first_loss():
    """d + (d + λ·d·(d - 1))/B; for d = 8192 and B = 2048 it is 8363."""
    loss = CrossCorrelation()
    assert loss.at_start(dim=8192, negatives=2047) == pytest.approx(8363.1, abs=0.05)
    found = loss(rows(512, 256), rows(512, 256, seed=1)).item()
    assert found == pytest.approx(loss.at_start(dim=256, negatives=511), rel=0.02)


def test_affine_maps_of_features_and_exchanged_views_change_nothing():
    loss = CrossCorrelation()
    first, second = rows(64, 8), rows(64, 8, seed=1)
    scale, shift = torch.arange(1.0, 9.0, dtype=torch.float64), rows(1, 8, seed=2)
    expected = loss(first, second)
    torch.testing.assert_close(loss(second, first), expected)
    torch.testing.assert_close(loss(first * scale + shift, second), expected, rtol=1e-4, atol=0)


def test_the_weight_and_the_scale_have_an_effect():
    """By hand: C = [[1, 1], [1, 1]], so the off-diagonal sum is 2."""
    view = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert CrossCorrelation(off_diagonal=1)(view, view).item() == pytest.approx(2, rel=1e-4)
    half = CrossCorrelation(off_diagonal=1, scale=0.5)
    assert half(view, view).item() == pytest.approx(1, rel=1e-4)


def test_it_computes_in_float32_under_autocast_and_keeps_float64():
    first, second = rows(64, 8), rows(64, 8, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = CrossCorrelation()(first.float(), second.float())
    torch.testing.assert_close(found, CrossCorrelation()(first, second).float())
    assert CrossCorrelation()(first.bfloat16(), second.bfloat16()).dtype == torch.float32
    assert CrossCorrelation()(first, second).dtype == torch.float64


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_two_ranks_have_the_loss_and_gradient_of_one(name, images, ranks, tmp_path):
    """In float64; the mean of the ranks' gradients is that of the joined batch."""
    view = torch.randn(8, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    run = made(images, name)
    method = run.method.double()

    def work(folder):
        world, rank = distributed.world(), distributed.rank()
        share = view.chunk(world)[rank]
        batch = Batch({"global": share}, {}, torch.arange(len(share)))
        loss = method(batch, Progress(0, 1, 0, 1, Draws(0))).loss
        gradients = torch.autograd.grad(loss, list(method.parameters()))
        means = (distributed.mean(value).contiguous() for value in gradients)
        tensors = {str(number): value for number, value in enumerate(means)}
        save_file({"loss": loss.detach(), **tensors}, folder / f"{world}-{rank}.safetensors")

    work(tmp_path)
    assert ranks(work) == [0, 0]
    names = ("1-0", "2-0")
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in names)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-9, atol=1e-11)


def test_accumulation_is_refused():
    sentence = r"train\.accumulate  the loss of method 'barlow_twins' looks across the batch"
    with pytest.raises(RecipeError, match=sentence):
        recipe.read("recipes/barlow_twins.yaml", overrides=["train.accumulate=2"])
