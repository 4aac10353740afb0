"""SimSiam: identities of its loss, the stop-gradient, and a predictor with a constant rate."""

import math

import pytest
import torch
from conftest import assert_same, everything
from torch.nn import functional as F

from sslkit import recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Progress
from sslkit.runs import checkpoint
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.losses import Cosine, NegativeCosine

TINY = ["encoder.model=test_resnet", "transform.size=32", "train.epochs=2", "train.batch_size=8"]
TINY += ["train.workers=0", "train.device=cpu", "train.precision=fp32"]
TINY += ["heads.projector.hidden_dim=16", "heads.predictor.hidden_dim=16"]
TINY += ["heads.projector.out_dim=8", "heads.predictor.out_dim=8"]
TINY += ["optimizer={use: sgd, lr: 0.05, momentum: 0.9, exempt_norms_and_biases: false}"]


@pytest.fixture
def made(images):
    def make(*more):
        path, data = "recipes/simsiam.yaml", str(images)
        return build(recipe.read(path, overrides=[*TINY, *more], data=data))

    return make


def batch(rows=6):
    generator = torch.Generator().manual_seed(0)
    view = torch.randn(rows, 2, 3, 32, 32, generator=generator, dtype=torch.float64)
    return Batch({"global": view}, {}, torch.arange(rows))


def rows(count=6, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64)


AT_START = Progress(0, 100, 0, 1, Draws(0))


def test_the_loss_of_parallel_orthogonal_and_opposite_vectors():
    target = torch.tensor([[2.0, 0.0]])
    for prediction, expected in (([5.0, 0.0], -1), ([0.0, 3.0], 0), ([-1.0, 0.0], 1)):
        assert NegativeCosine()(torch.tensor([prediction]), target).item() == expected


def test_the_gradient_is_orthogonal_to_the_prediction():
    prediction = rows().requires_grad_()
    NegativeCosine()(prediction, rows(seed=1)).backward()
    assert (prediction.grad * prediction).sum(1).abs().max() < 1e-15


def test_scales_of_prediction_and_target_change_nothing():
    loss = NegativeCosine()
    expected = loss(rows(), rows(seed=1))
    torch.testing.assert_close(loss(3 * rows(), 0.1 * rows(seed=1)), expected)


def test_byols_term_is_2_plus_twice_this_loss():
    prediction, target = rows(), rows(seed=1)
    expected = 2 + 2 * NegativeCosine()(prediction, target)
    torch.testing.assert_close(Cosine()(prediction, target), expected)


def test_equal_views_without_predictor_have_no_gradient():
    projection = rows().requires_grad_()
    loss = NegativeCosine()(projection, projection.detach())
    loss.backward()
    assert loss.item() == pytest.approx(-1, abs=1e-15)
    assert projection.grad.abs().max() < 1e-15


def test_random_vectors_have_loss_0_plus_or_minus_1_over_root_d():
    """One pair: 1/√2048 = 0.022."""
    prediction, target = rows(4000, 2048), rows(4000, 2048, seed=1)
    cosines = F.cosine_similarity(prediction, target)
    assert cosines.std() == pytest.approx(1 / math.sqrt(2048), rel=0.05)
    assert NegativeCosine().at_start(dim=2048, negatives=0) == 0
    assert NegativeCosine()(prediction, target).abs() < 0.002


def test_half_precision_is_widened_and_float64_stays():
    assert NegativeCosine()(rows().half(), rows().half()).dtype == torch.float32
    assert NegativeCosine()(rows(), rows()).dtype == torch.float64


def test_no_gradient_reaches_the_target(made):
    """The gradient equals that with fixed targets."""
    method = made().method.double()
    first, second = (method.project(view) for view in batch().views["global"].unbind(1))
    predictions = method.heads["predictor"](first), method.heads["predictor"](second)
    fixed = second.detach().clone(), first.detach().clone()
    terms = [F.cosine_similarity(p, z).mean() for p, z in zip(predictions, fixed, strict=True)]
    expected = torch.autograd.grad(-(terms[0] + terms[1]) / 2, list(method.encoder.parameters()))
    output = method(batch(), AT_START)
    found = torch.autograd.grad(output.loss, list(method.encoder.parameters()))
    torch.testing.assert_close(output.loss, -(terms[0] + terms[1]) / 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_feature_std_tells_collapse(made):
    """Healthy projections: 1; equal ones: 0, although the loss is then -1."""
    method = made().method
    method.heads["predictor"] = torch.nn.Identity()
    method.project = lambda view: rows(5000, 8).float()
    assert method(batch(), AT_START).feature_std["projector"] == pytest.approx(1, abs=0.02)
    method.project = lambda view: torch.ones(5000, 8)
    collapsed = method(batch(), AT_START)
    assert collapsed.feature_std["projector"] == 0
    assert collapsed.loss.item() == pytest.approx(-1)


def test_the_predictors_rate_is_constant(made):
    """`--fix-pred-lr`: at the middle of half a cosine, all other rates are halved."""
    run = made("schedule.warmup_epochs=0", "optimizer.lr=0.2")
    predictor = {id(value) for value in run.method.heads["predictor"].parameters()}
    assert run.set_rate(run.steps // 2) == pytest.approx(0.1)
    constant = 0
    for group in run.optimizer.param_groups:
        inside = {id(value) in predictor for value in group["params"]}
        assert group["lr"] == pytest.approx(0.2 if inside == {True} else 0.1)
        assert len(inside) == 1
        constant += len(group["params"]) if inside == {True} else 0
    assert constant == len(predictor)


def test_without_constant_heads_the_groups_are_as_before(made):
    run = made("schedule.constant=[]")
    (group,) = run.optimizer.param_groups
    assert "follows_schedule" not in group


def test_the_constant_rate_goes_on_after_a_resume(made, tmp_path):
    unbroken, before, after = (made("schedule.warmup_epochs=0") for _ in range(3))
    expected = list(train(unbroken))
    steps = train(before)
    for _ in range(4):
        next(steps)
    checkpoint.save(before, tmp_path)
    checkpoint.resume(after, tmp_path)
    found = list(train(after))
    assert_same(everything(after), everything(unbroken))
    assert [step.lr for step in found] == [step.lr for step in expected[4:]]
    rates = [group["lr"] for group in after.optimizer.param_groups]
    assert rates == [group["lr"] for group in unbroken.optimizer.param_groups]
    assert rates[-1] == 0.05 and rates[0] < 0.02


def test_a_constant_head_that_does_not_exist_is_refused(images):
    sentence = r"schedule\.constant  the recipe has no head named 'predicter'; did you mean"
    with pytest.raises(RecipeError, match=sentence):
        recipe.read("recipes/simsiam.yaml", overrides=["schedule.constant=[predicter]"])
