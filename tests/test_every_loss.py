"""What `sslkit.interfaces` promises of samplers and losses, asked of every installed one."""

import math

import pytest
import torch
from installed_parts import equal, every, small, unit

from sslkit.interfaces import (
    Draws,
    NegativeSampler,
)
from sslkit.recipe import registry
from sslkit_plugins.samplers import KeyNegatives, MemoryBank

# --- samplers


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def remembers(part):
    return part.load().recall is not NegativeSampler.recall


@every("samplers")
def test_drawing_does_not_update_and_gives_count_candidates(part):
    sampler, index = small(part), torch.tensor([3, 0, 29])
    before = snapshot(sampler)
    for shape in [(3, 6), (2, 3, 6)]:
        terms = shape[0] if len(shape) == 3 else 1
        negatives = sampler.draw(index, Draws(1), terms)
        cosines = negatives.similarity(unit(*shape))
        assert cosines.shape[:-1] == shape[:-1]
        assert cosines.dtype == torch.float32 and cosines.max() <= 1 + 1e-5
        assert negatives.count <= cosines.shape[-1] <= negatives.count + 1
        same = sampler.draw(index, Draws(1), terms).similarity(unit(*shape))
        assert torch.equal(cosines, same), "a draw is a function of its key"
    assert equal(snapshot(sampler), before)


@every("samplers")
def test_the_own_image_is_no_negative(part):
    if not remembers(part):
        pytest.skip("remembers no image")
    sampler, index = small(part), torch.arange(30)
    for key in range(20):
        assert sampler.draw(index, Draws(key)).similarity(sampler.recall(index)).max() < 0.9999


@every("samplers")
def test_updates_keep_unit_norms_and_touch_no_other_image(part):
    if not remembers(part):
        pytest.skip("remembers no image")
    sampler, index, everyone = small(part), torch.tensor([3, 0, 29]), torch.arange(30)
    before = sampler.recall(everyone).clone()
    sampler.update(index, 5 * unit(3, 6))
    after = sampler.recall(everyone)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(30))
    assert [i for i in range(30) if not torch.equal(before[i], after[i])] == [0, 3, 29]
    sampler.fill(index, 5 * unit(3, 6, seed=1))
    torch.testing.assert_close(sampler.recall(index), unit(3, 6, seed=1))


@every("samplers")
def test_all_its_memory_is_in_its_state(part):
    sampler, index = small(part), torch.tensor([3, 0, 29])
    sampler.update(index, unit(3, 6))
    other = small(part)
    other.load_state_dict(sampler.state_dict())
    query = unit(2, 3, 6, seed=2)
    one, two = (each.draw(index, Draws(5), 2).similarity(query) for each in (sampler, other))
    assert torch.equal(one, two)
    kept = {name for name, value in vars(sampler).items() if isinstance(value, torch.Tensor)}
    assert not kept, "tensors outside of the state dictionary are lost by a resume"


# --- losses

ANSWERS = {
    "cross_entropy": torch.arange(8),
    "soft_cross_entropy": torch.full((8, 10), 0.1),
    "binary": torch.arange(8) % 2,
}
"""Targets of losses that take logits; all others compare vectors, most of them with memory."""

LOGITS = {"cross_entropy": (8, 10), "soft_cross_entropy": (8, 10), "binary": (8,)}
"""Shapes of their logits."""


def question(part, dtype=torch.float32):
    """prediction, target and negatives that the loss may be asked with."""
    if part.name in ANSWERS:
        logits = torch.zeros(LOGITS[part.name], dtype=dtype, requires_grad=True)
        return logits, ANSWERS[part.name], None
    if part.load().needs_negatives is False:
        return unit(8, 128, seed=3).to(dtype).requires_grad_(), unit(8, 128, seed=4), None
    sampler = registry.find("samplers", "memory_bank").load()(128, 400, negatives=300)
    prediction = unit(2, 8, 128, seed=3).to(dtype).requires_grad_()
    return prediction, unit(8, 128, seed=4), sampler.draw(torch.arange(8), Draws(1), 2)


@every("losses")
def test_a_loss_is_a_finite_differentiable_scalar(part):
    prediction, target, negatives = question(part)
    if part.name in ANSWERS:
        prediction = unit(*LOGITS[part.name]).requires_grad_()
    value = small(part)(prediction, target, negatives)
    value.backward()
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    assert prediction.grad.isfinite().all() and prediction.grad.abs().sum() > 0


SHARED = {"term": {}, "image": {"draws": "image"}, "batch": {"draws": "batch"}}
CANDIDATES = {**SHARED, "all": {"negatives": "all"}, "vectors": None}
"""Options of a bank by the form of its negatives; None: vectors at hand."""


def step_of(part, form, dtype, *, autocast):
    """Value and gradient of a loss."""
    prediction, target, negatives = question(part, dtype)
    if part.name in ANSWERS:
        prediction = (5 * unit(*LOGITS[part.name])).to(dtype).requires_grad_()
    if negatives is not None and CANDIDATES[form] is None:
        negatives = KeyNegatives(unit(40, 128, seed=5).to(dtype))
    elif negatives is not None:
        options = {"negatives": 300, **CANDIDATES[form]}
        torch.manual_seed(0)
        bank = MemoryBank(128, 400, **options)
        negatives = bank.draw(torch.arange(8), Draws(1), 2)
    loss = small(part)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(prediction, target, negatives)
    value.backward()
    return value, prediction.grad


@pytest.mark.parametrize("form", CANDIDATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@every("losses")
def test_autocast_changes_no_bit_of_a_loss(part, dtype, form):
    """Value and gradient: logits, products with memory and their sums are float32."""
    value, gradient = step_of(part, form, dtype, autocast=True)
    exact, slope = step_of(part, form, dtype, autocast=False)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert torch.equal(value, exact) and torch.equal(gradient, slope)


@every("losses")
def test_a_loss_is_at_first_what_it_says(part):
    prediction, target, negatives = question(part)
    loss = small(part)
    answers = 10 if part.name in ANSWERS else 128
    expected = loss.at_start(dim=answers, negatives=7 if negatives is None else 300)
    if expected is not None:
        found = loss(prediction, target, negatives).item()
        assert math.isclose(found, expected, rel_tol=0.15, abs_tol=0.1)
