"""InfoNCE against vectors, a bank and the batch, by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from sslkit_plugins.losses import (
    InfoNCE,
)
from sslkit_plugins.samplers import BankNegatives, KeyNegatives, in_batch

D, TAU = 8, 0.07


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


def test_info_nce_counts_rows_whose_positive_is_nearest():
    """The second of two rows is nearer to a negative than to its positive."""
    loss = InfoNCE(temperature=0.1)
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    positive = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss(query, positive, KeyNegatives(torch.tensor([[0.0, 1.0]])))
    assert loss.accuracy.item() == 0.5
