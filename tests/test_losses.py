"""The losses against closed forms, written out number by number in float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sslkit.interfaces import Draws
from sslkit_plugins.losses import (
    Cosine,
    CrossEntropy,
    InfoNCE,
    LambdaNCE,
    SoftCrossEntropy,
    SquaredError,
)
from sslkit_plugins.samplers import BankNegatives, KeyNegatives, MemoryBank, in_batch

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


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.03, 0.02, 0.01])
def test_first_loss_is_right_at_every_temperature(temperature):
    """Against 64 random unit vectors of 128 numbers, the mean of many batches."""
    generator = torch.Generator().manual_seed(1)
    rows = F.normalize(torch.randn(30, 256, 128, generator=generator), dim=-1)
    bank = F.normalize(torch.randn(30, 65, 128, generator=generator), dim=-1)
    logits = rows @ bank.transpose(1, 2) / temperature
    positive, others = logits[..., 0], logits[..., 1:]
    mean = (logits.logsumexp(-1) - positive).mean().item()
    for loss in (
        InfoNCE(temperature=temperature),
        LambdaNCE(form="info_nce", temperature=temperature),
    ):
        expected = loss.at_start(dim=128, negatives=64)
        assert expected == pytest.approx(mean, rel=0.02)
        assert expected == loss.at_start(dim=128, negatives=64) < math.log(65) + 2 / temperature
    nce = [
        LambdaNCE(form="official", temperature=temperature)._nce(p[None], o[None], 64).item()
        for p, o in zip(positive, others, strict=True)
    ]
    expected = LambdaNCE(temperature=temperature).at_start(dim=128, negatives=64)
    assert expected == pytest.approx(sum(nce) / len(nce), rel=0.05)


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


def test_own_image_among_all_negatives_counts_nothing():
    """Three images, two numbers: by hand, with τ = 1. cos of the query with memories: 1 (own), 0,
    -1.
    """
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    index = torch.tensor([0])
    loss = InfoNCE(temperature=1.0)(
        torch.tensor([[2.0, 0.0]]), bank[index], BankNegatives(bank, None, index)
    )
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 1 + math.exp(-1))), rel=1e-6)


def test_info_nce_against_vectors_by_hand():
    """τ = 1. Cosines 1 (positive), 0 and -1, then 0 (positive), 1 and 0: mean of two rows."""
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    negatives = KeyNegatives(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    first = -math.log(math.e / (math.e + 1 + 1 / math.e))
    second = -math.log(1 / (1 + math.e + 1))
    for prediction in (rows, torch.stack([rows, rows])):
        found = InfoNCE(temperature=1.0)(prediction, target, negatives)
        assert found.item() == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("loss", [InfoNCE(), LambdaNCE()], ids=["info_nce", "lambda_nce"])
def test_losses_that_need_negatives_say_so_before_torch(loss):
    """`needs_negatives` is a literal, from which `check` refuses a method without negatives."""
    assert type(loss).needs_negatives is True and CrossEntropy.needs_negatives is False


def nt_xent(pairs, temperature):
    """NT-Xent as SimCLR writes it: cross-entropy over the 2B-1 others (equation 1, figure 2)."""
    rows = F.normalize(pairs.flatten(0, 1), dim=1)
    logits = rows @ rows.T / temperature
    logits = logits.masked_fill(torch.eye(len(rows), dtype=torch.bool), -math.inf)
    partners = torch.arange(len(rows)).view(-1, 2).flip(1).flatten()
    return F.cross_entropy(logits, partners)


@pytest.mark.parametrize("images", [2, 5])
def test_info_nce_in_the_batch_is_nt_xent(images):
    """Loss and gradients, against a cross-entropy over all other rows."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(images, 2, D, generator=generator, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    pairs = F.normalize(ours, dim=-1)
    rows, partners = pairs.flatten(0, 1), pairs.flip(1).flatten(0, 1)
    negatives = in_batch(rows)
    found = InfoNCE(temperature=0.5)(rows, partners, negatives)
    expected = nt_xent(theirs, 0.5)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert negatives.count == 2 * images - 2


def test_in_batch_negatives_of_one_image_leave_its_positive_alone():
    pairs = F.normalize(torch.randn(2, D), dim=1).requires_grad_()
    loss = InfoNCE()(pairs, pairs.flip(0), in_batch(pairs))
    loss.backward()
    assert loss.item() == 0 and not pairs.grad.any()


def test_first_loss_of_random_rows_in_a_batch():
    """ln(2B - 2) + 1/(2·D·τ²) with 512 images: 6.92 + 0.78 (τ = 0.1, D = 64)."""
    generator = torch.Generator().manual_seed(0)
    pairs = F.normalize(torch.randn(512, 2, 64, generator=generator), dim=-1)
    rows, partners = pairs.flatten(0, 1), pairs.flip(1).flatten(0, 1)
    loss = InfoNCE(temperature=0.1)
    assert loss.at_start(dim=64, negatives=1022) == pytest.approx(7.71, abs=0.02)
    assert loss(rows, partners, in_batch(rows)).item() == pytest.approx(7.71, abs=0.2)


def test_losses_stay_in_float32_under_autocast(problem):
    bank, index, prediction, picks = problem
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = LambdaNCE()(prediction, bank[index], BankNegatives(bank, picks, index))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(
        LambdaNCE()(prediction, bank[index], BankNegatives(bank, picks, index)).item(), rel=1e-6
    )


def test_cross_entropy_of_indifferent_logits_is_log_c():
    loss = CrossEntropy()
    assert loss(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item() == pytest.approx(math.log(4))
    assert loss.at_start(dim=4, negatives=1) == pytest.approx(math.log(4))


FLOATS = {
    "info_nce": (InfoNCE(temperature=0.2), lambda rows: rows),
    "lambda_nce": (LambdaNCE(form="info_nce", temperature=0.2), lambda rows: rows),
    "cross_entropy": (CrossEntropy(), lambda rows: torch.arange(len(rows))),
    "soft_cross_entropy": (SoftCrossEntropy(), lambda rows: rows.softmax(-1)),
    "cosine": (Cosine(), lambda rows: rows),
    "squared_error": (SquaredError(), lambda rows: rows),
}


@pytest.mark.parametrize(("loss", "target_of"), FLOATS.values(), ids=FLOATS.keys())
def test_losses_keep_float64_and_widen_half_precision(loss, target_of):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 6, D, dtype=torch.float64, generator=generator)
    prediction, other = F.normalize(rows, dim=-1)
    vectors = F.normalize(torch.randn(9, D, dtype=torch.float64, generator=generator), dim=-1)
    values = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        negatives = KeyNegatives(vectors.to(dtype)) if type(loss).needs_negatives else None
        given = prediction.to(dtype)
        given = given.expand(2, -1, -1) if isinstance(loss, LambdaNCE) else given
        values[dtype] = loss(given, target_of(other.to(dtype)), negatives)
    assert values[torch.float64].dtype == torch.float64
    assert values[torch.float32].dtype == values[torch.bfloat16].dtype == torch.float32
    exact = values[torch.float64].item()
    assert values[torch.float32].item() == pytest.approx(exact, rel=1e-5)
    assert values[torch.bfloat16].item() == pytest.approx(exact, rel=0.05)


def test_info_nce_in_float64_is_a_cross_entropy_to_twelve_digits():
    generator = torch.Generator().manual_seed(0)
    query, key = F.normalize(torch.randn(2, 5, D, dtype=torch.float64, generator=generator), dim=-1)
    vectors = F.normalize(torch.randn(9, D, dtype=torch.float64, generator=generator), dim=-1)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ vectors.T], 1) / TAU
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    found = InfoNCE(temperature=TAU)(query, key, KeyNegatives(vectors))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_info_nce_without_negatives_is_zero_from_the_start():
    loss = InfoNCE()
    assert loss.at_start(dim=D, negatives=0) == loss.at_chance(dim=D, negatives=0) == 0


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


@pytest.mark.parametrize(
    "loss", [SoftCrossEntropy(), Cosine(), SquaredError()], ids=lambda loss: type(loss).__name__
)
def test_half_precision_widens_to_float32(loss):
    prediction, target = torch.rand(4, 6), torch.rand(4, 6).softmax(1)
    expected = loss(prediction.half().float(), target.half().float())
    found = loss(prediction.half(), target.half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_info_nce_counts_rows_whose_positive_is_nearest():
    """The second of two rows is nearer to a negative than to its positive."""
    loss = InfoNCE(temperature=0.1)
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    positive = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss(query, positive, KeyNegatives(torch.tensor([[0.0, 1.0]])))
    assert loss.accuracy.item() == 0.5
