"""CMC: which bank each view reads and writes, graphs, halves, colour spaces."""

import math

import pytest
import torch
from torch.nn import functional as F

from sslkit import recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Parts, Progress
from sslkit_plugins.encoders import ChannelGroups, Timm
from sslkit_plugins.heads import Linear
from sslkit_plugins.losses import InfoNCE, LambdaNCE
from sslkit_plugins.methods.cmc import Cmc
from sslkit_plugins.samplers import MemoryBank
from sslkit_plugins.views import Lab, YCbCr
from sslkit_plugins.views.lab import lab_to_rgb, rgb_to_lab
from sslkit_plugins.views.ycbcr import rgb_to_ycbcr, ycbcr_to_rgb

HALVES = {"l": 1, "ab": 2}


def method(groups=HALVES, loss=None, images=12, heads=None, **options):
    torch.manual_seed(0)
    encoder = ChannelGroups((32,), 3, model="test_resnet", groups=groups)
    made = {name: Linear(encoder.dims[name], out_dim=8) for name in heads or groups}
    banks = {}
    for name in made:
        torch.manual_seed(len(banks))  # A bank draws its first rows from the seed.
        banks[name] = MemoryBank(8, images, negatives="all")
    parts = Parts(encoder, made, banks, loss or InfoNCE(temperature=0.5), images)
    return Cmc(parts, **options)


def at(step=0):
    return Progress(step, 10, 0, 1, Draws(step))


def given(images=4):
    source = torch.Generator().manual_seed(1)
    index = torch.arange(images) * 2
    return Batch({"image": torch.randn(images, 3, 32, 32, generator=source)}, {}, index)


def test_a_term_trains_the_encoder_of_its_query_alone():
    made, batch = method(), given()
    terms = made.terms(made.project(batch.views["image"]), batch.index, at())
    terms["l_ab"].backward()
    networks = made.encoder.networks
    assert any(value.grad.any() for value in networks["l"].parameters())
    for value in networks["ab"].parameters():
        assert value.grad is None or not value.grad.any()


def test_positives_and_negatives_are_rows_of_the_other_views_bank():
    made, batch = method(), given()
    outputs = made.project(batch.views["image"])
    found = made.terms(outputs, batch.index, at())
    for query, other in (("l", "ab"), ("ab", "l")):
        rows = made.samplers[other].bank
        scores = F.normalize(outputs[query], dim=1) @ rows.T / 0.5
        expected = F.cross_entropy(scores, batch.index)
        torch.testing.assert_close(found[f"{query}_{other}"], expected)
    output = made(batch, at())
    torch.testing.assert_close(output.loss, sum(found.values()))
    assert output.metrics.keys() == {"loss_l_ab", "loss_ab_l"}


def test_exchanging_views_and_banks_leaves_the_loss():
    made, batch = method(), given()
    outputs = made.project(batch.views["image"])
    before = sum(made.terms(outputs, batch.index, at()).values())
    one, other = made.samplers["l"].bank, made.samplers["ab"].bank
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)
    after = made.terms({"l": outputs["ab"], "ab": outputs["l"]}, batch.index, at())
    torch.testing.assert_close(sum(after.values()), before)


@pytest.mark.parametrize(
    ("graph", "pairs"),
    [
        ("core", [("l", "a"), ("l", "b"), ("a", "l"), ("b", "l")]),
        ("full", [("l", "a"), ("l", "b"), ("a", "l"), ("a", "b"), ("b", "l"), ("b", "a")]),
    ],
)
def test_graphs_of_three_views(graph, pairs):
    made = method({"l": 1, "a": 1, "b": 1}, graph=graph)
    assert made.pairs == pairs
    assert made.at_chance(4)["loss"] == pytest.approx(len(pairs) * math.log(12))
    assert made.at_start(4) == pytest.approx(len(pairs) * made.loss.at_start(dim=8, negatives=11))
    assert made(given(), at()).loss.item() == pytest.approx(made.at_start(4), rel=0.2)


def test_each_view_writes_its_own_bank():
    """A row moves halfway to the output of its own head, and no other row moves."""
    made, batch = method(), given()
    before = {name: made.samplers[name].bank.clone() for name in HALVES}
    output = made(batch, at())
    assert all(torch.equal(made.samplers[name].bank, before[name]) for name in HALVES)
    made.after_step(batch.index, output.keep, at())
    for name in HALVES:
        rows = made.samplers[name].bank
        new = F.normalize(output.keep[name], dim=1)
        expected = F.normalize(0.5 * before[name][batch.index] + 0.5 * new, dim=1)
        torch.testing.assert_close(rows[batch.index], expected)
        assert torch.equal(rows[1::2], before[name][1::2])


def test_each_bank_has_its_own_constant():
    """Z of the pair l_ab is that of cosines with bank ab, which here are all 1 and then all 0."""
    made, batch = method(loss=LambdaNCE(lambda_=0.0, temperature=0.5)), given()
    direction = torch.eye(8)[0]
    made.samplers["ab"].bank.copy_(direction.expand(12, 8))
    made.samplers["l"].bank.copy_(torch.eye(8)[1].expand(12, 8))
    made.terms({"l": direction.repeat(4, 1), "ab": direction.repeat(4, 1)}, batch.index, at())
    constants = {pair: loss.log_mean_exp.item() for pair, loss in made.losses.items()}
    assert constants == pytest.approx({"l_ab": 1 / 0.5, "ab_l": 0.0})


def test_widths_of_the_halves_add_up_to_the_models():
    """From res2 on; the official halves keep the width of the first convolution, too."""
    halves = ChannelGroups((32,), 3, model="resnet18", groups=HALVES, width=0.5).eval()
    full = Timm((32,), 3, model="resnet18").eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        widths = {name: rows.shape[1] for name, rows in halves.maps(images).items()}
        assert widths == {**{n: r.shape[1] for n, r in full.maps(images).items()}, "conv1": 128}
    assert halves.dims == {"l": 256, "ab": 256} and halves.dim == full.dim == 512
    assert list(halves.stages()) == list(full.stages())


def test_a_group_sees_its_channels_alone():
    encoder = ChannelGroups((32,), 3, model="test_resnet", groups=HALVES).eval()
    images = torch.randn(2, 3, 32, 32)
    changed = images.clone()
    changed[:, 1:] += 1
    with torch.no_grad():
        one, other = encoder(images), encoder(changed)
    assert torch.equal(encoder.segment(one, "l"), encoder.segment(other, "l"))
    assert not torch.equal(encoder.segment(one, "ab"), encoder.segment(other, "ab"))
    assert encoder.normalisation.mean == (0.0,) * 3 and encoder.normalisation.std == (1.0,) * 3


@pytest.mark.parametrize(
    ("there", "back", "error"),
    [(rgb_to_lab, lab_to_rgb, 0.05), (rgb_to_ycbcr, ycbcr_to_rgb, 1e-3)],
    ids=["lab", "ycbcr"],
)
def test_colours_survive_the_way_there_and_back(there, back, error):
    """Within 1e-3 of the range 0 … 255, for Lab 2e-4."""
    steps = torch.arange(0, 256, 15, dtype=torch.float32)
    cube = torch.cartesian_prod(steps, steps, steps).T.view(1, 3, -1, 1)
    assert (back(there(cube)) - cube).abs().max() < error


@pytest.mark.parametrize("space", [Lab, YCbCr])
def test_autocast_changes_no_colour(space):
    """Banks are filled under autocast, whose matrix products are bfloat16."""
    pixels = torch.randint(256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    transform, batch = space(size=4), Batch({"image": pixels.byte()}, {}, torch.arange(2))
    expected = transform.on_device(batch, Draws(0)).views["image"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transform.on_device(batch, Draws(0)).views["image"], expected)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((0, 0, 0), (-1, 0, 0)),
        ((255, 255, 255), (1, 0, 0)),
        ((255, 0, 0), (2 * 0.299 - 1, -2 * 0.299 / 1.772, 1)),
        ((0, 0, 255), (2 * 0.114 - 1, 1, -2 * 0.114 / 1.402)),
    ],
    ids=["black", "white", "red", "blue"],
)
def test_ycbcr_has_the_values_of_the_standard(rgb, expected):
    pixels = torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)
    found = YCbCr(size=1).plain(pixels).flatten().tolist()
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ChannelGroups((32,), 5), "have 3 channels, the images have 5; divide 5 channels"),
        (lambda: ChannelGroups((32,), 3, groups={"a b": 3}), "'a b' cannot name a group"),
        (lambda: ChannelGroups((32,), 3, model="test_vit"), "'test_vit' is none, so set it to 1"),
        (lambda: method(heads=["l"]), "the heads are l and the segments l, ab"),
        (lambda: method({"all": 3}), "a head for each of at least two segments"),
        (lambda: YCbCr(5), "'ycbcr' needs images of 3 channels; the data set has 5"),
    ],
    ids=["channels", "name", "width", "unread segment", "one segment", "ycbcr"],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(RecipeError, match=sentence):
        make()


def test_a_recipe_names_a_head_for_each_group():
    """Heads are named after segments; a recipe without heads is refused by `check`."""
    three = ["encoder.groups={l: 1, a: 1, b: 1}", "heads={l: {use: linear}, a: {use: linear}}"]
    assert list(recipe.read("cmc", overrides=three).heads) == ["l", "a"]
    with pytest.raises(RecipeError, match="needs heads, one for each segment"):
        recipe.read("cmc", overrides=["heads={}"])
    with pytest.raises(RecipeError, match="same out_dim: l 16, ab 128"):
        recipe.read("cmc", overrides=["heads.l.out_dim=16"])
    with pytest.raises(RecipeError, match="'queue' keeps none"):
        recipe.read("cmc", overrides=["sampler={use: queue}"])
