"""λ·NCE against closed forms, written out number by number in float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sslkit.interfaces import Draws
from sslkit_plugins.losses import (
    InfoNCE,
    LambdaNCE,
)
from sslkit_plugins.samplers import BankNegatives, KeyNegatives, MemoryBank

T, B, M, D, N, TAU = 2, 5, 16, 8, 40, 0.07


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(3)
    bank = F.normalize(torch.randn(N, D, generator=generator), dim=1)
    index = torch.tensor([4, 0, 39, 17, 8])
    prediction = torch.randn(T, B, D, generator=generator)
    picks = torch.randint(N - 1, (T, B, M), generator=generator)
    picks += picks >= index.view(1, -1, 1)
    return bank, index, prediction, picks


def exps(problem):
    """e [T,B,1+M] in float64, the positive first."""
    bank, index, prediction, picks = (
        x.double().numpy() if x.is_floating_point() else x.numpy() for x in problem
    )
    unit = prediction / np.linalg.norm(prediction, axis=-1, keepdims=True)
    rows = np.concatenate([np.broadcast_to(index[None, :, None], (T, B, 1)), picks], axis=2)
    return np.exp(np.einsum("tbd,tbkd->tbk", unit, bank[rows]) / TAU)


def closed_form(form, e, mean_exp=None):
    """The term of each t: [T]."""
    positive, negative = e[..., 0], e[..., 1:]
    if form == "info_nce":
        return -np.log(positive / (positive + negative.sum(-1))).mean(-1)
    constant = np.full(positive.shape, M * mean_exp) if form == "official" else negative.sum(-1)
    pull = -np.log(positive / (positive + constant))
    push = -np.log(constant[..., None] / (negative + constant[..., None])).sum(-1)
    return (pull + push).mean(-1)


def value(loss, problem):
    bank, index, prediction, picks = problem
    prediction = prediction.clone().requires_grad_()
    result = loss(prediction, bank[index], BankNegatives(bank, picks, index))
    result.backward()
    return result.item(), prediction.grad


@pytest.mark.parametrize("form", ["official", "paper", "info_nce"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_lambda_nce_is_the_closed_form(problem, form, weight):
    e = exps(problem)
    terms = closed_form(form, e, e[0].mean())
    loss = LambdaNCE(lambda_=weight, temperature=TAU, form=form)
    found, gradient = value(loss, problem)
    assert found == pytest.approx(weight * terms[0] + (1 - weight) * terms[1], rel=1e-5)
    assert (gradient[0].abs().max() > 0) == (weight > 0)
    assert (gradient[1].abs().max() > 0) == (weight < 1)


def test_npids_nce_is_a_binary_cross_entropy():
    """Logits s/τ - ln(m·Pn·Z), with Pn = 1/n and Z = n·mean(e); summed over columns, in float64."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(4, D, dtype=torch.float64, generator=generator)
    vectors = F.normalize(torch.randn(M + 4, D, dtype=torch.float64, generator=generator), dim=1)
    positive, negatives = vectors[:4], vectors[4:]
    unit = F.normalize(rows, dim=1)
    scores = torch.cat([(unit * positive).sum(1, keepdim=True), unit @ negatives.T], 1) / TAU
    partition, noise = N * scores.exp().mean(), 1 / N
    logits = scores - (M * noise * partition).log()
    truth = torch.zeros_like(logits)
    truth[:, 0] = 1
    expected = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / 4
    loss = LambdaNCE(lambda_=0.0, temperature=TAU).double()
    found = loss(rows, positive, KeyNegatives(negatives))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert loss.log_mean_exp.exp().item() == pytest.approx(scores.exp().mean().item(), rel=1e-12)


def test_a_full_softmax_starts_above_log_n():
    """ln N + 1/(2·D·τ²): 9.31 by the formula, 9.27 measured, for 5,000 images."""
    torch.manual_seed(0)
    bank, index = MemoryBank(128, 5000, negatives="all"), torch.arange(256)
    loss = LambdaNCE(lambda_=0.0, temperature=0.07, form="info_nce")
    found = loss(torch.randn(256, 128), bank.recall(index), bank.draw(index, Draws(0))).item()
    assert math.log(5000) + 1 / (2 * 128 * 0.07**2) == pytest.approx(9.31, abs=0.01)
    assert found == pytest.approx(9.27, abs=0.15)
    assert loss.at_start(dim=128, negatives=4999) == pytest.approx(9.31, abs=0.02)


def test_the_official_constant_is_frozen_by_the_first_batch(problem):
    loss = LambdaNCE(temperature=TAU)
    first = exps(problem)[0].mean()
    value(loss, problem)
    assert loss.log_mean_exp.item() == pytest.approx(math.log(first), rel=1e-5) and loss.frozen
    bank, index, prediction, picks = problem
    later = (bank, index, prediction.flip(-1) * 2, picks)
    e = exps(later)
    assert value(loss, later)[0] == pytest.approx(
        closed_form("official", e, first).mean(), rel=1e-5
    )
    assert loss.log_mean_exp.item() == pytest.approx(math.log(first), rel=1e-5)


def test_the_constant_of_a_batch_in_parts_is_that_of_the_whole_batch():
    generator = torch.Generator().manual_seed(5)
    bank = F.normalize(torch.randn(N, D, generator=generator), dim=1)
    prediction, index = torch.randn(T, 8, D, generator=generator), torch.arange(8)
    picks = torch.randint(N, (T, 8, M), generator=generator)

    def show(loss, rows):
        return loss(
            prediction[:, rows], bank[index[rows]], BankNegatives(bank, picks[:, rows], index[rows])
        )

    whole, parts = LambdaNCE(), LambdaNCE()
    show(whole, slice(0, 8))
    with parts.observe():
        for first in range(0, 8, 2):
            assert show(parts, slice(first, first + 2)).isfinite()
            assert not parts.frozen
    assert parts.frozen
    torch.testing.assert_close(parts.log_mean_exp, whole.log_mean_exp)
    before = parts.log_mean_exp.clone()
    with parts.observe():
        show(parts, slice(0, 2))
    assert torch.equal(parts.log_mean_exp, before), "frozen for ever"


def test_observing_a_form_that_freezes_nothing_changes_nothing(problem):
    bank, index, prediction, picks = problem
    loss = LambdaNCE(form="paper")
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    with loss.observe():
        loss(prediction, bank[index], BankNegatives(bank, picks, index))
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@pytest.mark.parametrize("form", ["official", "paper", "info_nce"])
def test_a_tiny_temperature_overflows_nothing(problem, form):
    """exp(1/0.005) = 10^87: every image at its own memory, another one opposite."""
    bank, index, _, picks = problem
    prediction = torch.stack([bank[index], -bank[index]]).requires_grad_()
    loss = LambdaNCE(temperature=0.005, form=form)
    value = loss(prediction, bank[index], BankNegatives(bank, picks, index))
    value.backward()
    assert value.isfinite() and prediction.grad.isfinite().all() and loss.log_mean_exp.isfinite()


@pytest.mark.parametrize("form", ["official", "paper", "info_nce"])
def test_an_image_that_finds_only_itself_among_shared_candidates(problem, form):
    """Without negatives there is nothing to be near to: the other images' rows alone count in the
    forms that compare with them.
    """
    bank, index, prediction, _ = problem
    prediction = prediction.clone().requires_grad_()
    negatives = BankNegatives(bank, index[:1].expand(M), index)
    value = LambdaNCE(form=form)(prediction, bank[index], negatives)
    value.backward()
    assert value.isfinite() and prediction.grad.isfinite().all()
    assert (prediction.grad[:, 0] == 0).all() == (form != "official")


@pytest.mark.parametrize(
    "loss",
    [LambdaNCE(lambda_=0.3), LambdaNCE(form="info_nce"), InfoNCE()],
    ids=["lambda_0.3", "lambda_info_nce", "info_nce"],
)
def test_the_terms_are_left_by_themselves(problem, loss):
    bank, index, prediction, picks = problem
    value = loss(prediction.requires_grad_(), bank[index], BankNegatives(bank, picks, index))
    share = getattr(loss, "lambda_", 0.5)
    assert loss.terms.shape == (T,) and not loss.terms.requires_grad
    assert value.item() == pytest.approx(
        (share * loss.terms[0] + (1 - share) * loss.terms[1]).item(), rel=1e-6
    )


def test_a_resumed_loss_keeps_its_constant(problem):
    loss = LambdaNCE(temperature=TAU)
    value(loss, problem)
    other = LambdaNCE(temperature=TAU)
    other.load_state_dict(loss.state_dict())
    bank, index, prediction, picks = problem
    later = (bank, index, -prediction, picks)
    assert value(other, later)[0] == value(loss, later)[0]


@pytest.mark.parametrize("form", ["official", "info_nce"])
def test_gradients_are_the_closed_form(problem, form):
    """d term / d v̂ = 1/(τB) · [-(1-h₀) m₀ + Σⱼ hⱼ mⱼ], then through the normalisation of v.

    The paper form's denominator depends on v as well; the finite differences below cover it.
    """
    bank, index, prediction, picks = problem
    e = exps(problem)
    constant = M * e[0].mean()
    h = e / (e + constant if form == "official" else e.sum(-1, keepdims=True))
    unit = F.normalize(prediction.double(), dim=-1)
    rows = torch.cat([index.view(1, -1, 1).expand(T, B, 1), picks], dim=2)
    weight = torch.as_tensor(h).clone()
    weight[..., 0] -= 1
    along = 0.5 * torch.einsum("tbk,tbkd->tbd", weight, bank.double()[rows]) / (TAU * B)
    expected = (along - (along * unit).sum(-1, keepdim=True) * unit) / prediction.double().norm(
        dim=-1, keepdim=True
    )
    _, gradient = value(LambdaNCE(temperature=TAU, form=form), problem)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_the_paper_form_by_finite_differences(problem):
    bank, index, prediction, picks = problem
    loss = LambdaNCE(temperature=0.5, form="paper")
    _, gradient = value(loss, problem)
    for place in [(0, 0, 0), (1, 3, 5)]:
        step = torch.zeros_like(prediction)
        step[place] = 1e-2
        up = value(loss, (bank, index, prediction + step, picks))[0]
        down = value(loss, (bank, index, prediction - step, picks))[0]
        assert (up - down) / 2e-2 == pytest.approx(gradient[place].item(), abs=2e-3)


@pytest.mark.parametrize(
    ("negatives", "info", "nce"),
    [(32_000, 11.17, 12.17), (4_096, 9.11, 10.11)],
    ids=["32000", "4096"],
)
def test_first_loss_of_random_vectors(negatives, info, nce):
    """log N + 1/(2·128·0.07²), and 1 more for NCE."""
    images, rows, dim = 40_000, 256, 128
    torch.manual_seed(0)
    bank = MemoryBank(dim, images, negatives=negatives)
    index = torch.arange(rows)
    prediction = torch.randn(1, rows, dim)
    drawn = bank.draw(index, Draws(0))
    for form, expected in (("info_nce", info), ("official", nce), ("paper", nce)):
        loss = LambdaNCE(form=form)
        assert loss(prediction, bank.recall(index), drawn).item() == pytest.approx(
            expected, abs=0.2
        )
        assert loss.at_start(dim=dim, negatives=negatives) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        ("official", (0.05, 0.3, 1.0, 5.0)),
        ("info_nce", (0.05, 0.3, 1.0, 5.0)),
        ("paper", (1.0, 5.0)),
    ],
    ids=["official", "info_nce", "paper"],
)
def test_a_perfect_solution_has_the_smallest_loss(form, sizes):
    """Every image at its own memory, all memories orthogonal: no perturbation does better, and
    another image's memory is far worse.

    Not so the paper form under small perturbations: Σⱼ log(1 + eⱼ/Σe) is largest where all
    negatives are equally far, so that it
    does not mind one negative a little nearer than the others.
    """
    bank = torch.eye(12)
    index = torch.arange(12)
    negatives = BankNegatives(bank, None, index)
    loss = LambdaNCE(form=form)
    perfect = loss(bank.expand(2, -1, -1), bank, negatives).item()
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        other = bank.expand(2, -1, -1) + size * torch.randn(2, 12, 12, generator=generator)
        assert loss(other, bank, negatives).item() > perfect
    assert loss(bank.roll(1, 0).expand(2, -1, -1), bank, negatives).item() > perfect + 10


def test_losses_stay_in_float32_under_autocast(problem):
    bank, index, prediction, picks = problem
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = LambdaNCE()(prediction, bank[index], BankNegatives(bank, picks, index))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(
        LambdaNCE()(prediction, bank[index], BankNegatives(bank, picks, index)).item(), rel=1e-6
    )


def test_one_term_may_come_without_its_axis(problem):
    bank, index, prediction, _ = problem
    negatives = BankNegatives(bank, None, index)
    loss = LambdaNCE(form="info_nce")
    alone = loss(prediction[0], bank[index], negatives)
    assert torch.equal(alone, loss(prediction[:1], bank[index], negatives))
