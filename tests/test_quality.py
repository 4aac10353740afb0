"""Quality of features without labels: RankMe, alpha-ReQ, alignment, uniformity, LiDAR."""

import math

import pytest
import torch
from noise import Noise, made, network
from torch.nn import functional as F

from sslkit.evaluation.candidates import RawPixels
from sslkit_plugins.evaluations import quality
from sslkit_plugins.evaluations.quality import (
    Quality,
    alignment,
    alpha_req,
    lidar,
    rankme,
    uniformity,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(rows, columns, seed=seed)).Q


# ------------------------------------------------------------------------------------- RankMe


def test_rankme_counts_equal_directions():
    assert rankme(orthonormal(500, 64)) == pytest.approx(64.001, abs=0.001)
    five = orthonormal(500, 5) @ orthonormal(64, 5, seed=1).T
    assert rankme(five) == pytest.approx(5.0005, abs=1e-4)


@pytest.mark.parametrize("dim, expected", [(64, 1.0001), (512, 1.0008)])
def test_rankme_of_one_direction_has_only_epsilon(dim, expected):
    features = normal(600, 1) @ normal(1, dim, seed=1)
    assert rankme(features) == pytest.approx(expected, abs=1e-4)


def test_rankme_ignores_scale_and_rotation_but_not_a_shift():
    features = normal(2000, 64)
    assert rankme(features) == pytest.approx(63.7, abs=0.1)
    assert rankme(100 * features @ orthonormal(64, 64)) == pytest.approx(rankme(features))
    assert rankme(features + 10) == pytest.approx(12.2, abs=0.5)


# ---------------------------------------------------------------------------------- alpha-ReQ


def test_alpha_is_the_exponent_of_the_eigenvalues():
    values = torch.arange(1, 201, dtype=torch.float64) ** -1.3
    ones = torch.ones(400, 1, dtype=torch.float64)
    centred = torch.linalg.qr(torch.cat([ones, normal(400, 200)], 1)).Q[:, 1:]
    features = centred * values.sqrt() + 7
    assert alpha_req(features) == pytest.approx(1.3, abs=1e-6)
    assert alpha_req(normal(2000, 128)) == pytest.approx(0.19, abs=0.05)


def test_alpha_of_constant_or_flat_features_is_nan():
    assert math.isnan(alpha_req(torch.full((50, 8), 0.3)))
    assert math.isnan(alpha_req(normal(50, 1) @ normal(1, 8)))


# ------------------------------------------------------------------- alignment and uniformity


def test_alignment_is_the_mean_squared_distance_of_views():
    views = normal(6, 4, 16)
    unit = F.normalize(views, dim=-1)
    pairs = [(one, other) for one in range(4) for other in range(one)]
    squares = [(unit[:, one] - unit[:, other]).square().sum(1) for one, other in pairs]
    torch.testing.assert_close(alignment(views), torch.stack(squares).mean(0))
    assert alignment(views[:, :1].expand(6, 4, 16)).max() < 1e-12
    torch.testing.assert_close(alignment(views * 3), alignment(views))


def test_uniformity_of_known_distributions():
    assert uniformity(torch.ones(50, 8)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)
    assert uniformity(normal(3000, 128)) == pytest.approx(-3.937, abs=0.005)
    angle = torch.linspace(0, 2 * math.pi, 2001)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    assert uniformity(circle) == pytest.approx(-1.575, abs=0.005)
    assert math.isnan(uniformity(torch.ones(1, 8)))


def test_features_of_zeros_are_at_one_point():
    assert alignment(torch.zeros(3, 4, 8)).tolist() == [0, 0, 0]
    assert uniformity(torch.zeros(50, 8)) == 0
    zero_and_unit = torch.tensor([[0.0, 0], [0, 5]])
    assert alignment(zero_and_unit.unsqueeze(0)).item() == pytest.approx(1)
    assert uniformity(zero_and_unit) == pytest.approx(-2)


def test_uniformity_in_blocks_equals_the_full_matrix(monkeypatch):
    features = normal(101, 8)
    full = uniformity(features)
    monkeypatch.setattr(quality, "BLOCK", 7 * 101)
    assert uniformity(features) == pytest.approx(full, abs=1e-6)
    unit = F.normalize(features, dim=1)
    expected = torch.pdist(unit).square().mul(-2).exp().mean().log().item()
    assert full == pytest.approx(expected, abs=1e-6)


# -------------------------------------------------------------------------------------- LiDAR


def informative(
    count: int, dims: int, noise: float, dim: int = 32, scale: float = 1
) -> torch.Tensor:
    """Views [N,10,dim] whose means differ in `dims` dimensions."""
    means = F.pad(scale * normal(count, dims), (0, dim - dims))
    return means.unsqueeze(1) + noise * normal(count, 10, dim, seed=1)


def test_lidar_counts_the_dimensions_that_tell_images_apart():
    assert lidar(informative(500, 4, 0.01)) == pytest.approx(3.9, abs=0.15)
    views = informative(500, 2, 1.0, scale=5)
    assert lidar(views) == pytest.approx(2.98, abs=0.15)
    assert rankme(views.flatten(0, 1)) == pytest.approx(26.8, abs=0.5)


def test_lidar_equals_its_definition():
    views = informative(60, 5, 0.3, dim=12)
    means = views.mean(1)
    centred = means - means.mean(0)
    between = centred.T @ centred / 59
    deviations = (views - means.unsqueeze(1)).flatten(0, 1)
    within = deviations.T @ deviations / (60 * 9) + 1e-4 * torch.eye(12)
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ values.rsqrt().diag() @ vectors.T
    shares = torch.linalg.eigvalsh(root @ between @ root).clamp_min(0)
    shares = shares / shares.sum() + 1e-7
    assert lidar(views) == pytest.approx((-(shares * shares.log()).sum()).exp().item())


def test_lidar_in_the_span_of_few_rows_is_the_same():
    views = informative(6, 4, 0.3, dim=59)
    padded = F.pad(views, (0, 2))  # 61 dimensions exceed the 60 rows.
    assert lidar(padded) == pytest.approx(lidar(views), rel=1e-4)
    assert lidar(padded) <= 5.001, "at most N - 1"


def test_lidar_needs_the_views_of_an_image_together():
    views = informative(100, 4, 0.01)
    mixed = views.flatten(0, 1)[torch.randperm(1000)].unflatten(0, (100, 10))
    assert lidar(mixed) > 2 * lidar(views)
    assert math.isnan(lidar(views[:1])) and math.isnan(lidar(torch.ones(4, 3, 8)))


# --------------------------------------------------------------------------------- evaluation


def test_every_candidate_has_every_measure():
    result = Quality(views=3).measure(made())
    assert [entry.candidate for entry in result.entries] == ["trained", "untrained", "raw pixels"]
    names = ["RankMe", "alpha-ReQ", "alignment", "uniformity", "LiDAR"]
    assert [metric.name for metric in result.metrics] == names
    trained, _, pixels = result.entries
    assert all(list(entry.scores) == names for entry in result.entries)
    assert trained.scores["alignment"].intervals[0].of == "30 images"
    assert set(trained.differences["untrained"]) == {"alignment"}
    notes = result.protocol["notes"]
    assert "within one method and architecture" in notes[0]
    assert notes[1].startswith("raw pixels: 30 images limit the ranks of 3,072 features")
    (figure,) = result.figures
    assert set(figure.lines) == {"trained", "untrained", "raw pixels"}
    assert figure.lines["trained"][0][0] == 1 and figure.lines["trained"][1][0] == 0
    assert pixels.scores["RankMe"].value == pytest.approx(
        rankme(torch.cat([RawPixels().embed(one)["features"] for one, _ in images()]))
    )


def images():
    probe = made()
    return probe.images(probe.train, size=32)


def test_it_needs_no_labels_and_limits_its_rows(monkeypatch):
    source = Noise(30)
    source.labels = None
    monkeypatch.setattr(quality, "ROWS", 20)
    result = Quality(views=4).measure(made([network()], train=source))
    assert (result.protocol["rows"], result.protocol["viewed_images"]) == (20, 5)
    assert Quality.needs == ""


def test_groups_of_the_training_images_are_resampled():
    source = Noise(30)
    source.groups = [f"patient {number // 2}" for number in range(30)]
    result = Quality(views=2).measure(made([network()], train=source))
    (interval,) = result.entries[0].scores["alignment"].intervals
    assert interval.of == "15 groups, bootstrap of 1000"
