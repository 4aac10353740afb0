"""Samplers: who is drawn, what is written, in which form similarity is computed."""

import math
from pathlib import Path

import pytest
import torch
from conftest import sslkit
from torch.nn import functional as F

from sslkit.errors import RecipeError
from sslkit.interfaces import Draws
from sslkit_plugins import samplers
from sslkit_plugins.losses import LambdaNCE
from sslkit_plugins.samplers import BankNegatives, KeyNegatives, MemoryBank, in_batch

DIM = 6


def bank(images=20, **options):
    torch.manual_seed(0)
    return MemoryBank(DIM, images, **options)


def test_rows_begin_as_unit_vectors():
    torch.testing.assert_close(bank(500).bank.norm(dim=1), torch.ones(500))


@pytest.mark.parametrize("draws", ["term", "image"])
def test_an_image_is_never_its_own_negative(draws):
    """Few images and many draws, so that an exclusion that fails is seen at once."""
    index = torch.tensor([0, 3, 4])
    drawn = bank(5, negatives=4000, draws=draws).draw(index, Draws(1), terms=2)
    for place, own in enumerate(index.tolist()):
        others = drawn.picks[:, place]
        assert own not in others
        counts = torch.bincount(others.flatten(), minlength=5)
        kept = counts[[i for i in range(5) if i != own]] / others.numel()
        assert kept.min() > 0.22 and kept.max() < 0.28, "uniform over the other four"


@pytest.mark.parametrize(
    "options",
    [{"negatives": "all"}, {"negatives": 300, "draws": "batch"}],
    ids=["all", "batch"],
)
def test_own_rows_among_shared_candidates_count_as_minus_infinity(options):
    memory = bank(5, **options)
    index = torch.tensor([2, 0])
    scores = memory.draw(index, Draws(1)).similarity(memory.recall(index))
    own = torch.isinf(scores)
    assert own.any(1).all()
    assert scores[~own].max() < 0.999, "the cosine 1 of a row with itself is nowhere left"


def test_official_draws_may_hold_the_own_row():
    drawn = bank(5, negatives=1000, exclude_own=False).draw(torch.tensor([1]), Draws(1))
    assert (drawn.picks == 1).any()


def test_draws_per_term_differ_and_per_image_are_shared():
    index = torch.arange(4)
    per_term = bank(negatives=50).draw(index, Draws(1), terms=2).picks
    per_image = bank(negatives=50, draws="image").draw(index, Draws(1), terms=2).picks
    assert per_term.shape == (2, 4, 50) and not torch.equal(per_term[0], per_term[1])
    assert per_image.shape == (1, 4, 50) and not torch.equal(per_image[0, 0], per_image[0, 1])


def test_drawing_changes_nothing_and_repeats_for_the_same_key():
    memory = bank(negatives=50)
    before = memory.bank.clone()
    first = memory.draw(torch.arange(4), Draws(7)).picks
    assert torch.equal(first, memory.draw(torch.arange(4), Draws(7)).picks)
    assert not torch.equal(first, memory.draw(torch.arange(4), Draws(8)).picks)
    assert torch.equal(memory.bank, before)


def test_two_ranks_draw_what_one_process_draws():
    index = torch.arange(6)
    whole = bank(negatives=9).draw(index, Draws(5), terms=2).picks
    halves = [
        bank(negatives=9).draw(index[3 * r : 3 * r + 3], Draws(5, rank=r, world=2), terms=2).picks
        for r in range(2)
    ]
    assert torch.equal(whole, torch.cat(halves, dim=1))
    assert not torch.equal(
        halves[0] - index[:3].view(1, -1, 1), halves[1] - index[3:].view(1, -1, 1)
    )


def test_update_by_hand():
    """normalize(0.5·(1,0) + 0.5·(0,1)) = (√½, √½); the key's length does not matter; other rows
    stay.
    """
    memory = MemoryBank(2, 3)
    memory.bank.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.6, 0.8]]))
    memory.update(torch.tensor([0]), torch.tensor([[0.0, 7.0]]))
    torch.testing.assert_close(
        memory.bank, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0], [0.6, 0.8]])
    )


def test_the_momentum_weighs_the_old_row():
    """normalize(0.75·(1,0) + 0.25·(0,1)) = (3, 1)/√10."""
    memory = MemoryBank(2, 2, momentum=0.75)
    memory.bank.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    memory.update(torch.tensor([0]), torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(memory.bank[0], torch.tensor([3.0, 1.0]) / 10**0.5)


def test_rows_have_unit_norm_after_every_write():
    memory = bank(50, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        index = torch.randperm(50, generator=generator)[:8]
        memory.update(index, 30 * torch.randn(8, DIM, generator=generator))
        torch.testing.assert_close(memory.bank.norm(dim=1), torch.ones(50))
    memory.fill(torch.arange(50), torch.randn(50, DIM, generator=generator))
    torch.testing.assert_close(memory.bank.norm(dim=1), torch.ones(50))


CHEAPEST = {"gathered": 0.0, "products": 1e9}
"""What gathering a row costs where the other way is never taken."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [(2, 7, 3), (1, 7, 3), (3,), None], ids=["term", "image", "batch", "all"]
)
@pytest.mark.parametrize("chunk", [1, 100, 2**24], ids=["chunk_1", "chunk_100", "one_chunk"])
@pytest.mark.parametrize("way", CHEAPEST)
def test_both_ways_in_chunks_equal_the_naive_gather_with_its_gradient(
    way, chunk, shape, dtype, monkeypatch
):
    monkeypatch.setitem(samplers.COSTS, "cpu", samplers.Costs(chunk, chunk, CHEAPEST[way]))
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(400, DIM, generator=generator), dim=1).to(dtype)
    query = torch.randn(2, 7, DIM, generator=generator)
    picks = None if shape is None else torch.randint(400, shape, generator=generator)
    every = (torch.arange(400) if picks is None else picks).expand(2, 7, -1)
    weight = torch.randn(every.shape, generator=generator)
    results = []
    for similarity in (
        lambda q: BankNegatives(rows, picks, None).similarity(q),
        lambda q: torch.einsum("tbd,tbmd->tbm", q, rows.float()[every]),
    ):
        leaf = query.clone().requires_grad_()
        scores = similarity(leaf)
        (scores * weight).sum().backward()
        results.append((scores.detach(), leaf.grad))
    (found, slope), (scores, gradient) = results
    torch.testing.assert_close(found, scores)
    torch.testing.assert_close(slope, gradient)
    torch.testing.assert_close(BankNegatives(rows, picks, None).similarity(query[0]), scores[0])


@pytest.mark.parametrize(
    ("dtype", "step"), [("float16", 2**-11), ("bfloat16", 2**-8)], ids=["float16", "bfloat16"]
)
def test_what_a_bank_in_half_precision_costs(dtype, step):
    """Rows are rounded to 11 or 8 bits where they are written, cosines and means are float32.
    `step` is the distance of neighbouring
    numbers, as a share: a number of a row errs by up to half of it, at random, the gradient by
    less than `step`, the loss by far less.
    """
    values, slopes, kept = {}, {}, {}
    for kind in ("float32", dtype):
        torch.manual_seed(0)
        memory = MemoryBank(128, 4000, negatives=1000, dtype=kind)
        index, generator = torch.arange(32), torch.Generator().manual_seed(1)
        for _ in range(20):
            memory.update(index, 1 + torch.randn(32, 128, generator=generator))
        prediction = torch.randn(2, 32, 128, generator=generator).requires_grad_()
        values[kind] = [
            LambdaNCE(form=form)(
                prediction, memory.recall(index), memory.draw(index, Draws(1), terms=2)
            )
            for form in ("official", "paper", "info_nce")
        ]
        slopes[kind] = torch.stack(
            [torch.autograd.grad(value, prediction)[0] for value in values[kind]]
        )
        kept[kind] = memory.bank
    assert (
        kept[dtype].dtype == getattr(torch, dtype) and memory.recall(index).dtype == torch.float32
    )
    torch.testing.assert_close(kept[dtype].float(), kept["float32"], rtol=step, atol=step / 8)
    torch.testing.assert_close(
        kept[dtype].float().norm(dim=1), torch.ones(4000), rtol=0, atol=step / 4
    )
    assert (slopes[dtype] - slopes["float32"]).norm() < step * slopes["float32"].norm()
    for value, exact in zip(values[dtype], values["float32"], strict=True):
        assert value.item() == pytest.approx(exact.item(), rel=step / 20)


@pytest.mark.parametrize(
    ("dtype", "momentum"), [("bfloat16", 0.5), ("bfloat16", 0.992), ("float16", 0.999)]
)
def test_rows_follow_at_every_momentum_that_a_type_allows(dtype, momentum):
    """Five times 1 / (1 - momentum) updates towards fixed embeddings: cosine 0.96 and more."""
    memory = MemoryBank(128, 64, momentum=momentum, dtype=dtype)
    goal = F.normalize(torch.randn(64, 128, generator=torch.Generator().manual_seed(1)), dim=1)
    for _ in range(round(5 / (1 - momentum))):
        memory.update(torch.arange(64), goal)
    assert (memory.recall(torch.arange(64)) * goal).sum(1).mean() > 0.96


@pytest.mark.parametrize(
    ("dtype", "momentum", "remedy"),
    [
        ("bfloat16", 0.999, "use at most 0.992, or set dtype: float16, or set dtype: float32"),
        ("bfloat16", 0.9995, "use at most 0.992, or set dtype: float32"),
        ("float16", 0.9995, "use at most 0.999, or set dtype: float32"),
    ],
    ids=["bfloat16-0.999", "bfloat16-0.9995", "float16-0.9995"],
)
def test_a_momentum_that_is_rounded_away_is_refused(dtype, momentum, remedy):
    with pytest.raises(RecipeError) as raised:
        MemoryBank(DIM, 9, momentum=momentum, dtype=dtype)
    assert str(raised.value) == (
        f"sampler.momentum  at {momentum} rows of {dtype} hardly move, because rounding "
        f"discards updates; {remedy}"
    )


def test_a_bank_that_never_moves_may_have_any_type():
    assert MemoryBank(DIM, 9, momentum=1.0, dtype="bfloat16").momentum == 1


def test_a_momentum_that_is_rounded_away_ends_a_training(tmp_path):
    recipe = Path(__file__).parents[1] / "recipes" / "npid.yaml"
    options = ["--set", "sampler.dtype=bfloat16", "--set", "sampler.momentum=0.999"]
    code, _, err = sslkit("train", recipe, *options, "--runs", tmp_path / "r")
    assert code == 2 and "use at most 0.992" in err
    assert "Traceback" not in err and not (tmp_path / "r").exists()


def test_a_new_bank_needs_no_numbers():
    """What it would hold can be asked without its memory: of 100 million rows here."""
    with torch.device("meta"):
        held = MemoryBank(128, 10**8, dtype="float16").bank
    assert held.is_meta and held.shape == (10**8, 128) and held.element_size() == 2


def test_all_state_is_in_the_state_dict():
    memory = bank()
    memory.update(torch.tensor([1]), torch.ones(1, DIM))
    other = MemoryBank(DIM, 20)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.bank, memory.bank)


def test_a_bank_of_one_image_is_refused():
    with pytest.raises(RecipeError, match="at least 2 images"):
        MemoryBank(DIM, 1)


def test_vectors_are_compared_with_every_query():
    """Cosines of (1,0) and (0.6,0.8) with (1,0), (0,1) and (-1,0), for two terms; by hand."""
    query = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).expand(2, -1, -1)
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    expected = torch.tensor([[1.0, 0.0, -1.0], [0.6, 0.8, -0.6]]).expand(2, -1, -1)
    negatives = KeyNegatives(vectors)
    assert negatives.count == 3
    torch.testing.assert_close(negatives.similarity(query), expected)
    torch.testing.assert_close(negatives.similarity(query[0]), expected[0])


def test_own_vectors_give_minus_infinity_and_no_gradient():
    vectors = torch.eye(2).requires_grad_()
    own = torch.tensor([[True, False], [False, False]])
    scores = KeyNegatives(vectors, own, count=1).similarity(torch.eye(2))
    assert scores.tolist() == [[-math.inf, 0.0], [0.0, 1.0]]
    scores.exp().sum().backward()
    torch.testing.assert_close(vectors.grad, torch.tensor([[0.0, 1.0], [1.0, math.e]]))


def test_vectors_are_compared_in_float32_under_autocast():
    rows = F.normalize(torch.randn(5, DIM), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = KeyNegatives(rows.bfloat16()).similarity(rows.bfloat16())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, rows.bfloat16().float() @ rows.bfloat16().float().T)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_in_batch_all_rows_of_other_images_are_negatives(copies):
    rows = F.normalize(torch.randn(4 * copies, DIM), dim=1)
    negatives = in_batch(rows, copies=copies)
    scores = negatives.similarity(rows)
    images = torch.arange(4).repeat_interleave(copies)
    assert torch.equal(scores.isinf(), images.unsqueeze(1) == images)
    assert negatives.count == 3 * copies == (~scores.isinf()).sum(1)[0]
