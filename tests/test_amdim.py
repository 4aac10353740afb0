"""AMDIM: candidate sets by brute force, closed forms, clipped scores, and the sides of its maps."""

import math

import pytest
import torch

from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Parts, Progress
from sslkit_plugins.encoders import AmdimEncoder, Timm
from sslkit_plugins.losses import InfoNCE
from sslkit_plugins.methods.amdim import Amdim, ClippedNCE, others
from sslkit_plugins.samplers import KeyNegatives


def method(loss=None, **options):
    torch.manual_seed(0)
    encoder = AmdimEncoder((32,), 3, base_width=4, out_dim=6, depth=1, **options)
    return Amdim(Parts(encoder, {}, {}, loss or ClippedNCE(), 10))


def maps(images, dim=6, seed=0):
    """Features of two views in float64, and the source locations."""
    source = torch.Generator().manual_seed(seed)
    shapes = [(images, 2, dim), (images, 2, 25, dim), (images, 2, 49, dim)]
    found = [torch.randn(*s, generator=source, dtype=torch.float64) for s in shapes]
    return [*found, torch.randint(25, (images, 2), generator=source)]


def brute_force(vectors, locations, clip=20.0, penalty=0.05):
    """Compare each vector with its image's locations, one candidate set at a time."""
    images, count, dim = locations.shape

    def score(vector, location):
        return (vector @ location / math.sqrt(dim)).item()

    terms, squares = [], []
    for i in range(images):
        negatives = []
        for other in range(images):
            raw = [score(vectors[i], locations[other, j]) for j in range(count)]
            squares += [value**2 for value in raw]
            if other != i:
                negatives += [clip * math.tanh(value / clip) for value in raw]
        for j in range(count):
            positive = clip * math.tanh(score(vectors[i], locations[i, j]) / clip)
            total = math.exp(positive) + sum(math.exp(value) for value in negatives)
            terms.append(math.log(total) - positive)
    return sum(terms) / len(terms) + penalty * sum(squares) / len(squares)


def test_a_term_compares_with_all_locations_of_other_images():
    one, five, _, _ = maps(4)
    found = ClippedNCE()(one[:, 0], five[:, 1], others(five[:, 1]))
    assert found.item() == pytest.approx(brute_force(one[:, 0], five[:, 1]), abs=1e-12)


def test_the_terms_are_means_over_both_directions():
    one, five, seven, places = maps(3)
    found = method().terms(one, five, seven, places)
    local = five[torch.arange(3).unsqueeze(1), torch.arange(2), places]
    pairs = {"1_5": (one, five), "1_7": (one, seven), "5_5": (local, five)}
    for name, (source, target) in pairs.items():
        first = brute_force(source[:, 0], target[:, 1])
        second = brute_force(source[:, 1], target[:, 0])
        assert found[name].item() == pytest.approx((first + second) / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("images", "expected"),
    [(200, (8.512, 9.185, 8.512)), (480, (9.391, 10.064, 9.391))],
    ids=["200 images", "480 images"],
)
def test_zero_features_give_the_logarithm_of_the_candidates(images, expected):
    """ln(1 + (B-1)·n) for 25, 49 and 25 locations."""
    chance = method().at_chance(images)
    values = [chance[f"loss_{name}"] for name in ("1_5", "1_7", "5_5")]
    assert values == pytest.approx(expected, abs=5e-4)
    assert chance["loss"] == pytest.approx(sum(expected), abs=2e-3)
    assert method(batch_norm=False).at_start(images) == chance["loss"]
    assert method().at_start(images) is None, "batch norm gives the scores a variance"
    zeros = [rows.float() * 0 for rows in maps(images)[:3]]
    found = method().terms(*zeros, torch.zeros(images, 2, dtype=torch.int64))
    assert [value.item() for value in found.values()] == pytest.approx(values, abs=1e-5)


def test_scores_are_clipped_with_slope_one_at_zero():
    loss = ClippedNCE(clip=20)
    scores = torch.tensor([0.0, 1e6, -1e6], dtype=torch.float64, requires_grad=True)
    clipped = loss.clipped(scores)
    clipped.sum().backward()
    assert clipped.tolist() == [0.0, 20.0, -20.0] and scores.grad.tolist() == [1.0, 0.0, 0.0]


def test_the_loss_has_a_largest_value():
    """2c + ln(1 + (B-1)·n), for a positive of -c and negatives of c."""
    target = torch.ones(3, 25, 4) * 1e4
    vectors = torch.tensor([-1e4, 1e4, 1e4]).view(3, 1).repeat(1, 4)
    one = ClippedNCE(penalty=0.0)(vectors[:1], target[:1], KeyNegatives(-target[1:].flatten(0, 1)))
    assert one.item() == pytest.approx(2 * 20 + math.log(math.exp(-40) + 50), abs=1e-4)
    assert one.item() < 40 + math.log1p(50)


def test_other_locations_of_the_own_image_are_no_candidates():
    one, five, _, _ = maps(4)
    among, changed = others(five[:, 1]), five[:, 1].clone()
    changed[0, 1:] += 7.0
    loss = ClippedNCE(penalty=0.0)
    terms = []
    for locations in (five[:, 1], changed):
        negatives = KeyNegatives(locations.flatten(0, 1), among.own[:1])
        terms.append(loss(one[:1, 0], five[:1, 1, :1], negatives).item())
    assert terms[0] == terms[1]


def test_exchanging_the_views_leaves_the_total():
    one, five, seven, places = maps(4)
    first = method().terms(one, five, seven, places)
    second = method().terms(*[rows.flip(1) for rows in (one, five, seven, places)])
    for name, value in first.items():
        assert value.item() == pytest.approx(second[name].item(), abs=1e-12)


def test_gradients_of_sources_positives_and_negatives_are_exact():
    """Against finite differences; the locations are positives and negatives at once."""
    one, five, _, _ = maps(3, dim=2)
    vectors, locations = one[:, 0].requires_grad_(), five[:, 1, :4].clone().requires_grad_()

    def term(source, target):
        return ClippedNCE()(source, target, others(target))

    assert torch.autograd.gradcheck(term, (vectors, locations))


@pytest.mark.parametrize(
    ("side", "sides"),
    [(32, [30, 14, 7, 5, 3, 1]), (64, [62, 30, 14, 7, 5, 3, 1]), (128, [62, 30, 14, 7, 5, 3, 1])],
)
def test_maps_have_the_sides_of_the_paper(side, sides):
    encoder = AmdimEncoder((side,), 3, base_width=4, out_dim=10, depth=2).eval()
    with torch.no_grad():
        images = torch.randn(2, 3, side, side)
        found = encoder.maps(images)
        one, five, seven = encoder.locations(images)
        assert torch.equal(one, encoder(images))
    assert [rows.shape[-1] for rows in found.values()] == sides
    assert [rows.shape for rows in (one, five, seven)] == [(2, 10), (2, 25, 10), (2, 49, 10)]


def test_residual_branches_start_at_zero():
    """At first a map is the average pooling of the map before."""
    encoder = AmdimEncoder((32,), 3, base_width=4, out_dim=40, depth=2)
    found = [*encoder.maps(torch.randn(2, 3, 32, 32)).values()]
    pooled = torch.nn.functional.avg_pool2d(found[2], 3, 1)
    torch.testing.assert_close(found[3], pooled)


def test_other_sizes_encoders_losses_and_crops_are_a_sentence():
    with pytest.raises(RecipeError, match="takes images of one size, 32, 64 or 128 px, not 48"):
        AmdimEncoder((48,), 3)
    with pytest.raises(RecipeError, match="not 64 and 32; change"):
        AmdimEncoder((64, 32), 3)
    with pytest.raises(RecipeError, match="use encoder amdim"):
        Amdim(Parts(Timm((32,), 3, model="test_resnet"), {}, {}, ClippedNCE(), 10))
    with pytest.raises(RecipeError, match="use loss clipped_nce"):
        method(InfoNCE())
    batch = Batch({"global": torch.randn(2, 3, 3, 32, 32)}, {}, torch.arange(2))
    with pytest.raises(RecipeError, match="compares two crops"):
        method()(batch, Progress(0, 1, 0, 1, Draws(0)))
