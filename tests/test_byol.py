"""BYOL: two terms, a target network that follows, and a measure of collapse."""

import pytest
import torch
from torch.nn import functional as F

from sslkit import recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Progress
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.losses import Cosine

TINY = ["encoder.model=test_resnet", "transform.size=32", "train.epochs=2", "train.batch_size=8"]
TINY += ["train.workers=0", "train.device=cpu", "train.precision=fp32"]
TINY += ["heads.projector.hidden_dim=16", "heads.predictor.hidden_dim=16"]
TINY += ["heads.projector.out_dim=8", "heads.predictor.out_dim=8"]


@pytest.fixture
def made(images):
    def make(*more):
        return build(recipe.read("recipes/byol.yaml", overrides=[*TINY, *more], data=str(images)))

    return make


def batch(rows=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    view = torch.randn(rows, 2, 3, 32, 32, generator=generator, dtype=torch.float64)
    return Batch({"global": view}, {}, torch.arange(rows))


def at(step, steps=100):
    return Progress(step, steps, 0, 1, Draws(0))


def test_the_loss_is_the_squared_distance_of_unit_vectors():
    """In float64; its gradient is orthogonal to the prediction."""
    prediction = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randn(6, 8, dtype=torch.float64)
    loss = Cosine()(prediction, target)
    distance = (F.normalize(prediction, dim=1) - F.normalize(target, dim=1)).square().sum(1).mean()
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, distance, rtol=0, atol=1e-14)
    loss.backward()
    assert (prediction.grad * prediction).sum(1).abs().max() < 1e-15


def test_each_view_predicts_the_target_of_the_other(made):
    """L = |q₁ - t₂|² + |q₂ - t₁|² of unit vectors, whichever view is the first."""
    method = made().method.double()
    views = batch().views["global"].unbind(1)
    predictions = [F.normalize(method.online(view)[1], dim=1) for view in views]
    targets = [F.normalize(method.target_projection(view), dim=1) for view in views]
    first = (predictions[0] - targets[1]).square().sum(1).mean()
    second = (predictions[1] - targets[0]).square().sum(1).mean()
    found = method(batch(), at(0)).loss
    torch.testing.assert_close(found, first + second)
    exchanged = Batch({"global": batch().views["global"].flip(1)}, {}, torch.arange(6))
    torch.testing.assert_close(method(exchanged, at(0)).loss, found)


def test_batch_norm_sees_one_view_at_a_time(made):
    """Another second view leaves the first view's projection as it is."""
    method = made().method.double()
    projections = []
    method.heads["projector"].register_forward_hook(
        lambda module, inputs, output: projections.append(output.detach())
    )
    one, other = batch(), batch()
    other.views["global"][:, 1] = 5.0
    method(one, at(0))
    method(other, at(0))
    assert len(projections) == 4
    assert torch.equal(projections[0], projections[2])
    assert not torch.equal(projections[1], projections[3])


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (50, 0.998), (100, 1.0)])
def test_the_target_follows_after_each_step(made, step, momentum):
    method = made("method.momentum=0.996").method.double()
    with torch.no_grad():
        for value in method.encoder.parameters():
            value.add_(1.0)
    weight = next(method.encoder.parameters())
    before = next(method.target["encoder"].parameters()).clone()
    method.after_step(torch.arange(6), {}, at(step))
    after = next(method.target["encoder"].parameters())
    torch.testing.assert_close(after, momentum * before + (1 - momentum) * weight)


def test_the_target_has_no_predictor_and_no_gradient(made):
    run = made()
    assert set(run.method.target) == {"encoder", "projector"}
    trained = {id(value) for group in run.optimizer.param_groups for value in group["params"]}
    assert not trained & {id(value) for value in run.method.target.parameters()}
    next(train(run))
    assert all(value.grad is None for value in run.method.target.parameters())
    assert all(value.grad is not None for value in run.weights)


def test_the_target_has_batch_norm_statistics_of_its_own(made):
    run = made()
    next(train(run))
    online = dict(run.method.encoder.named_buffers())
    for name, value in run.method.target["encoder"].named_buffers():
        if name.endswith("num_batches_tracked"):
            assert value == online[name] == 2
    assert run.method.target.training


def test_feature_std_is_1_for_random_projections_and_0_for_equal(made):
    method = made("heads.projector.out_dim=64", "heads.predictor.out_dim=64").method

    class Fixed(torch.nn.Module):
        rows = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))

        def forward(self, features):
            return self.rows[: len(features)]

    method.online = lambda view: (Fixed.rows, Fixed.rows)
    method.target_projection = lambda view: Fixed.rows
    assert method(batch(), at(0)).feature_std["projector"] == pytest.approx(1, abs=0.01)
    Fixed.rows = torch.ones(2000, 64)
    assert method(batch(), at(0)).feature_std["projector"] == pytest.approx(0, abs=1e-4)


def test_the_expected_first_loss_is_that_of_orthogonal_vectors(made):
    assert made().method.at_start(8) == 4.0


def test_another_number_of_crops_is_refused(made):
    sentence = r"transform\.count  method 'byol' compares 2 crops of an image, not 3; set it to 2"
    with pytest.raises(RecipeError, match=sentence):
        made("transform.count=3", "transform.colours=byol_first")
