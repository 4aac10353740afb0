"""The memory bank: who is drawn, what is written, in which form similarity is computed."""

import pytest
import torch
from torch.nn import functional as F

from sslkit.errors import RecipeError
from sslkit.interfaces import Draws
from sslkit_plugins import samplers
from sslkit_plugins.samplers import BankNegatives, MemoryBank

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
        assert counts.sum() == 8000
        kept = counts[[i for i in range(5) if i != own]].float()
        assert kept.min() > 1800 and kept.max() < 2200, "uniform over the other four"


@pytest.mark.parametrize("options", [{"negatives": "all"}, {"negatives": 300, "draws": "batch"}])
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
    assert not torch.equal(per_term[0], per_term[1])
    assert torch.equal(per_image[0], per_image[1])
    assert not torch.equal(per_image[0, 0], per_image[0, 1])


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
    halves = [bank(negatives=9).draw(index[3 * r : 3 * r + 3], Draws(5, rank=r, world=2), terms=2).picks for r in range(2)]
    assert torch.equal(whole, torch.cat(halves, dim=1))
    assert not torch.equal(halves[0] - index[:3].view(1, -1, 1), halves[1] - index[3:].view(1, -1, 1))


def test_update_by_hand():
    """normalize(0.5·(1,0) + 0.5·(0,1)) = (√½, √½); the key's length does not matter; other rows stay."""
    memory = MemoryBank(2, 3)
    memory.bank.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.6, 0.8]]))
    memory.update(torch.tensor([0]), torch.tensor([[0.0, 7.0]]))
    torch.testing.assert_close(memory.bank, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0], [0.6, 0.8]]))


def test_rows_have_unit_norm_after_every_write():
    memory = bank(50, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        index = torch.randperm(50, generator=generator)[:8]
        memory.update(index, 30 * torch.randn(8, DIM, generator=generator))
        torch.testing.assert_close(memory.bank.norm(dim=1), torch.ones(50))
    memory.fill(torch.arange(50), torch.randn(50, DIM, generator=generator))
    torch.testing.assert_close(memory.bank.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_chunked_gather_equals_the_naive_one_with_its_gradient(chunk, monkeypatch):
    monkeypatch.setattr(samplers, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(400, DIM, generator=generator), dim=1)
    query = torch.randn(2, 7, DIM, generator=generator)
    picks = torch.randint(400, (2, 7, 3), generator=generator)
    weight = torch.randn(2, 7, 3, generator=generator)
    results = []
    for similarity in (
        lambda q: BankNegatives(rows, picks, None).similarity(q),
        lambda q: torch.einsum("tbd,tbmd->tbm", q, rows[picks]),
        lambda q: (q @ rows.T).gather(-1, picks),
    ):
        leaf = query.clone().requires_grad_()
        scores = similarity(leaf)
        (scores * weight).sum().backward()
        results.append((scores.detach(), leaf.grad))
    for scores, gradient in results[1:]:
        torch.testing.assert_close(results[0][0], scores)
        torch.testing.assert_close(results[0][1], gradient)


def test_all_state_is_in_the_state_dict():
    memory = bank()
    memory.update(torch.tensor([1]), torch.ones(1, DIM))
    other = MemoryBank(DIM, 20)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.bank, memory.bank)


def test_a_bank_of_one_image_is_refused():
    with pytest.raises(RecipeError, match="at least 2 images"):
        MemoryBank(DIM, 1)
