"""Sinkhorn codes, k-means and whitening against their definitions, in float64."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Draws
from sslkit_plugins.clusters import k_means, sinkhorn, whiten


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clustered(count=200, groups=4, dim=6, spread=0.1):
    """Rows around `groups` distant points."""
    places = 3 * noise(groups, dim, seed=1)
    return places[torch.arange(count) % groups] + spread * noise(count, dim, seed=2)


def cosines(rows=64, prototypes=10, dim=16):
    """Scores of random unit rows with random unit prototypes."""
    unit = F.normalize(noise(rows, dim), dim=1)
    return unit @ F.normalize(noise(prototypes, dim, seed=1), dim=1).T


def in_exp_domain(scores, epsilon, iterations):
    """Sinkhorn-Knopp as the paper's code has it."""
    codes = torch.exp(scores / epsilon)
    codes = codes / codes.sum()
    rows, prototypes = codes.shape
    for _ in range(iterations):
        codes = codes / codes.sum(0, keepdim=True) / prototypes
        codes = codes / codes.sum(1, keepdim=True) / rows
    return codes * rows


def test_rows_of_codes_sum_to_one_after_three_iterations():
    codes = sinkhorn(cosines(), 0.05, 3)
    assert (codes.sum(1) - 1).abs().max() < 1e-14
    assert codes.dtype == torch.float64 and (codes >= 0).all()


def test_prototypes_are_used_evenly_only_after_many_iterations():
    """Clustered rows: the masses are far off after 3 iterations, exact after 1,000."""
    scores = F.normalize(clustered(64), dim=1) @ F.normalize(noise(10, 6, seed=3), dim=1).T
    off = {}
    for iterations in (3, 1000):
        codes = sinkhorn(scores, 0.05, iterations)
        off[iterations] = (codes.sum(0) / codes.sum() * 10 - 1).abs().max().item()
    assert off[3] > 0.1 and off[1000] < 1e-3 * off[3]
    random = sinkhorn(cosines(), 0.05, 1000)
    torch.testing.assert_close(random.sum(0), torch.full((10,), 6.4, dtype=torch.float64))


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_codes_are_those_of_the_exp_domain(iterations):
    scores = cosines()
    expected = in_exp_domain(scores, 0.05, iterations)
    torch.testing.assert_close(sinkhorn(scores, 0.05, iterations), expected, rtol=1e-12, atol=1e-15)


def test_a_constant_added_to_all_scores_changes_nothing():
    scores = cosines()
    torch.testing.assert_close(sinkhorn(scores + 3, 0.05, 3), sinkhorn(scores, 0.05, 3))


def test_codes_differ_from_scores_by_terms_of_rows_and_columns():
    """log Q - S/ε = a row term + a column term, so its double-centred residual is 0."""
    scores = cosines()
    rest = sinkhorn(scores, 0.05, 3).log() - scores / 0.05
    residual = rest - rest.mean(0) - rest.mean(1, keepdim=True) + rest.mean()
    assert residual.abs().max() < 1e-12


def test_codes_of_half_precision_do_not_overflow():
    """exp(1/0.01) overflows float32, and exp(1/0.05) float16."""
    scores = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float16)
    for epsilon in (0.05, 0.01):
        codes = sinkhorn(scores, epsilon, 3)
        assert codes.dtype == torch.float32
        torch.testing.assert_close(codes, torch.eye(2))


def test_codes_of_equal_scores_are_uniform():
    torch.testing.assert_close(sinkhorn(torch.zeros(8, 4), 0.05, 3), torch.full((8, 4), 0.25))


def objective(rows, found):
    return (rows - found.centres[found.assigned]).square().sum().item()


def nearest_distance(rows, centres):
    return (rows.unsqueeze(1) - centres).square().sum(2).min(1).values


@pytest.mark.parametrize("spherical", [False, True], ids=["euclidean", "spherical"])
def test_the_objective_never_rises(spherical):
    rows = F.normalize(noise(150, 5), dim=1) if spherical else noise(150, 5)
    values = []
    for iterations in range(15):
        found = k_means(rows, 12, iterations, Draws(0), spherical=spherical)
        values.append(objective(rows, found))
    assert values[-1] < values[0]
    for before, after in pairwise(values):
        assert after <= before + 1e-9


@pytest.mark.parametrize("iterations", [0, 1, 10])
@pytest.mark.parametrize("seed", range(5))
def test_every_row_has_the_nearest_centre(iterations, seed):
    """Brute force. Tight groups leave clusters empty, whose centres move."""
    rows = torch.cat([clustered(60, spread=0.01), noise(20, 6, seed=seed)])
    found = k_means(rows, 25, iterations, Draws(seed))
    own = (rows - found.centres[found.assigned]).square().sum(1)
    torch.testing.assert_close(own, nearest_distance(rows, found.centres), rtol=0, atol=1e-12)
    assert (torch.bincount(found.assigned, minlength=25) > 0).all()


class Fixed:
    """Draws that select given rows as first centres."""

    def __init__(self, first, count):
        self.numbers = torch.ones(count)
        self.numbers[first] = torch.arange(len(first)) / (2 * len(first))

    def uniform(self, rows):
        return self.numbers


def test_distant_groups_are_found():
    """From one row of each group."""
    found = k_means(clustered(), 4, 20, Fixed(torch.arange(4), 200))
    assert torch.equal(found.assigned, torch.arange(200) % 4)


def test_no_cluster_is_empty_even_if_rows_are_equal():
    found = k_means(torch.ones(20, 3), 7, 5, Draws(0))
    assert (torch.bincount(found.assigned, minlength=7) > 0).all()
    torch.testing.assert_close(found.centres, torch.ones(7, 3))


def test_as_many_clusters_as_rows_give_each_row_its_own():
    rows = noise(9, 4)
    found = k_means(rows, 9, 5, Draws(0))
    assert sorted(found.assigned.tolist()) == list(range(9))
    assert torch.equal(found.centres[found.assigned], rows)
    assert sorted(k_means(torch.zeros(9, 4), 9, 5, Draws(0)).assigned.tolist()) == list(range(9))


def test_one_cluster_is_the_mean():
    rows = noise(50, 4)
    torch.testing.assert_close(k_means(rows, 1, 1, Draws(0)).centres[0], rows.mean(0))


def test_the_order_of_rows_does_not_matter():
    """The same first centres, in any order of rows, give the same clusters."""
    rows, order = noise(80, 4), torch.randperm(80, generator=torch.Generator().manual_seed(5))
    places = order.argsort()
    one = k_means(rows, 3, 10, Fixed(torch.tensor([4, 40, 70]), 80))
    other = k_means(rows[order], 3, 10, Fixed(places[[4, 40, 70]], 80))
    torch.testing.assert_close(other.centres, one.centres)
    assert torch.equal(other.assigned, one.assigned[order])


def test_spherical_centres_have_unit_norm_and_ignore_length():
    rows = noise(100, 5)
    found = k_means(rows, 6, 10, Draws(0), spherical=True)
    torch.testing.assert_close(found.centres.norm(dim=1), torch.ones(6, dtype=torch.float64))
    cosine = F.normalize(rows, dim=1) @ found.centres.T
    assert torch.equal(found.assigned, cosine.argmax(1))
    longer = rows * torch.linspace(1, 9, 100, dtype=torch.float64).unsqueeze(1)
    assert torch.equal(k_means(longer, 6, 10, Draws(0), spherical=True).assigned, found.assigned)


def test_draws_decide_where_clusters_start():
    rows = noise(100, 5)
    one, same, other = (k_means(rows, 6, 2, Draws(seed)).assigned for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_clusters_do_not_depend_on_autocast_or_blocks(monkeypatch):
    rows = noise(100, 5).float()
    expected = k_means(rows, 6, 5, Draws(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = k_means(rows, 6, 5, Draws(0))
    assert torch.equal(found.centres, expected.centres)
    monkeypatch.setattr("sslkit_plugins.clusters.SLICE", 40)
    assert torch.equal(k_means(rows, 6, 5, Draws(0)).assigned, expected.assigned)


def test_two_ranks_get_the_clusters_of_rank_0(ranks, tmp_path):
    """Even if their rows differ in the last bits."""

    def work(folder):
        rows = noise(40, 4) + 1e-3 * distributed.rank() * noise(40, 4, seed=9)
        found = k_means(rows, 5, 5, Draws(0))
        save_file(found._asdict(), folder / f"{distributed.rank()}.safetensors")

    assert ranks(work) == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    expected = k_means(noise(40, 4), 5, 5, Draws(0))
    for name, value in expected._asdict().items():
        assert torch.equal(first[name], value) and torch.equal(second[name], value)


def test_whitened_rows_have_identity_covariance():
    rows = noise(300, 8) @ noise(8, 8, seed=1) + 5
    found = whiten(rows, 5)
    assert found.shape == (300, 5) and found.dtype == torch.float64
    torch.testing.assert_close(found.mean(0), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(found.T @ found / 300, torch.eye(5, dtype=torch.float64))


def test_whitening_keeps_the_directions_of_largest_variance():
    """Independent columns of deviation 1, 10 and 100: two components drop the first."""
    rows = noise(2000, 3) * torch.tensor([1.0, 10.0, 100.0])
    found, expected = whiten(rows, 2), F.normalize(rows - rows.mean(0), dim=0) * 2000**0.5
    agreement = (found.T @ expected / 2000).abs()
    torch.testing.assert_close(
        agreement, torch.tensor([[0.0, 0, 1], [0, 1, 0]]).double(), atol=0.05, rtol=0
    )


def test_directions_without_variance_stay_zero():
    """Rank 2 in 6 columns."""
    rows = noise(50, 2) @ noise(2, 6, seed=1)
    found = whiten(rows, 4)
    expected = torch.diag(torch.tensor([1.0, 1, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(found.T @ found / 50, expected, atol=1e-8, rtol=0)
    assert not whiten(torch.ones(5, 3), 2).any()


def test_fewer_rows_than_columns_give_one_component_less():
    found = whiten(noise(4, 10), 256)
    assert found.shape == (4, 3)
    torch.testing.assert_close(found.T @ found / 4, torch.eye(3, dtype=torch.float64))


def test_whitening_works_block_by_block(monkeypatch):
    rows = noise(30, 6).float()
    expected = whiten(rows, 4)
    monkeypatch.setattr("sslkit_plugins.clusters.SLICE", 20)
    torch.testing.assert_close(whiten(rows, 4).abs(), expected.abs())
    assert expected.dtype == torch.float32
