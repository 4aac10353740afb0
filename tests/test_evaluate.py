"""Evaluations by hand-checked values, on a run through the command line, and what they refuse."""

import copy
import json
import math
import shutil
import weakref
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from sslkit import console, parts, recipe
from sslkit.cli import app
from sslkit.errors import DataError, PluginError, SslkitError
from sslkit.evaluation import Rows, pool, split_by_class, store
from sslkit.evaluation import probe as probes
from sslkit.evaluation.build import Request, build
from sslkit.evaluation.candidates import Network, RawPixels, normaliser
from sslkit.evaluation.pooling import FEATURES
from sslkit.evaluation.probe import ImageProbe
from sslkit.evaluation.rows import split
from sslkit.interfaces import (
    Candidate,
    Encoder,
    Features,
    ImageSource,
    Metric,
    Normalisation,
    Pixels,
)
from sslkit.recipe import registry
from sslkit.runs import checkpoint
from sslkit.training import build as training
from sslkit_plugins.evaluations import linear
from sslkit_plugins.evaluations.knn import Knn
from sslkit_plugins.evaluations.linear import Linear, logistic_regression, standardise

RECIPE = """\
name: evaluated
method: {{use: npid}}
data: {{use: image_folder, root: '{root}'}}
transform: {{use: augment, size: 32}}
encoder: {{use: timm, model: test_resnet}}
heads: {{image: {{use: linear, out_dim: 16}}}}
sampler: {{use: memory_bank, negatives: 4}}
loss: {{use: lambda_nce}}
optimizer: {{lr: 0.1}}
train: {{epochs: 1, batch_size: 4, device: cpu, precision: fp32, workers: 0}}
"""
COLOURS = {"blue": (20, 30, 200), "green": (30, 180, 40), "red": (220, 30, 20)}
LAYERS = ["features", "conv1", "res2", "res3", "res4", "res5"]


def paint(folder: Path, count: int, seed: int = 0, colours=COLOURS) -> Path:
    """`count` images of every class, each in its colour: pixels alone tell the classes apart."""
    rng = np.random.default_rng(seed)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(colour) + rng.integers(-15, 16, (36, 40, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("painted"), 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, painted) -> Path:
    """A run folder of zero steps: what evaluations need."""
    folder = tmp_path_factory.mktemp("runs") / "evaluated" / "now"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(root=painted))
    checkpoint.save(training.build(recipe.read(folder / "recipe.yaml")), folder)
    return folder


def sslkit(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def evaluated(*words: object) -> dict:
    """What `sslkit eval …` wrote."""
    code, out, err = sslkit("eval", *words)
    assert code == 0, err
    return json.loads(Path(out.split("written: ")[1].strip()).read_text())


def scores(result: dict, metric: str = "top-1") -> dict:
    """Value by (row, candidate)."""
    return {
        (entry["row"], entry["candidate"]): entry["scores"][metric]["value"]
        for entry in result["entries"]
    }


class Noise(ImageSource):
    """Random pictures of three classes, whose decoding is counted."""

    def __init__(self, count: int, seed: int = 0, channels: int = 3, bits=8) -> None:
        rng = np.random.default_rng(seed)
        kind = np.uint8 if bits == 8 else np.uint16
        self.arrays = rng.integers(0, 2**bits, (count, channels, 40, 48)).astype(kind)
        self.names = [f"{number:03}.png" for number in range(count)]
        self.labels, self.classes = np.arange(count) % 3, ["a", "b", "c"]
        self.channels, self.bits = channels, bits
        self.decoded: Counter[int] = Counter()

    def image(self, index: int) -> Image.Image:
        self.decoded[index] += 1
        return Image.fromarray(self.arrays[index].transpose(1, 2, 0))

    def pixels(self, index: int, reduction) -> Pixels:
        self.decoded[index] += 1
        return Pixels(torch.from_numpy(self.arrays[index]), 48, 40)


class Tiny(Encoder):
    """A convolution, a batch norm and the mean of its map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3))
        self.dim = 4

    def forward(self, images):
        return self.layers(images).mean((2, 3))

    def maps(self, images):
        return {"conv": self.layers(images)}


CPU = torch.device("cpu")


def network(name="trained", size=16, **options) -> Network:
    plain = normaliser(Normalisation(), 8, CPU)
    return Network(name, Tiny(), plain, size=size, device=CPU, **options)


def made(candidates=None, train=None, val=None) -> ImageProbe:
    """A probe of 30 and 12 noisy pictures."""
    train, val = train or Noise(30), val or Noise(12, seed=1)
    found = candidates or [network(), network("untrained", baseline=True), RawPixels()]
    return ImageProbe(train, val, ["a", "b", "c"], found, found[0].size, CPU)


# --------------------------------------------------------------------------------------- kNN


def at(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)


def voted(train, labels, query, **options) -> list[int]:
    given = Features(train, labels, query, torch.zeros(len(query), dtype=torch.int64))
    return Knn(**options).vote(given, int(labels.max()) + 1).argmax(1).tolist()


def test_votes_weigh_exp_of_cosine_over_temperature():
    """One neighbour of class 0 at 10°, two of class 1 at 40°: cosines 0.985 and 0.766."""
    train, labels, query = at(10, 40, -40, 180), torch.tensor([0, 1, 1, 2]), at(0)
    near, far = math.cos(math.radians(10)), math.cos(math.radians(40))
    even = (near - far) / math.log(2)  # exp(near/τ) = 2·exp(far/τ)
    assert voted(train, labels, query, temperature=0.9 * even, k=3) == [0]
    assert voted(train, labels, query, temperature=1.1 * even, k=3) == [1]
    assert voted(train, labels, query, temperature=1.1 * even, k=1) == [0]
    assert voted(train, labels, query, temperature=0.9 * even, k=1000) == [0], "fewer than k"


def test_votes_do_not_mind_the_length_of_features():
    train, labels, query = at(10, 40, 90), torch.tensor([0, 1, 2]), at(12, 39, 80)
    lengths = torch.tensor([[0.01], [5.0], [300.0]])
    assert voted(train * lengths, labels, query * lengths, k=1) == [0, 1, 2]


def test_votes_in_blocks_are_the_same(monkeypatch):
    torch.manual_seed(0)
    given = Features(torch.randn(50, 8), torch.arange(50) % 4, torch.randn(30, 8), torch.zeros(30))
    whole = Knn(k=7).vote(given, 4)
    monkeypatch.setattr("sslkit_plugins.evaluations.knn.BLOCK_BYTES", 4 * 50 * 3)
    torch.testing.assert_close(Knn(k=7).vote(given, 4), whole)


def clusters(count=600, rest=250, width=64, classes=7) -> Features:
    """Random features, in part told apart by class."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count + rest) % classes
    centres = torch.randn(classes, width, generator=rng)
    rows = centres[labels] + 3 * torch.randn(count + rest, width, generator=rng)
    return Features(rows[:count], labels[:count], rows[count:], labels[count:])


def test_votes_are_those_of_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors", reason="needs scikit-learn")
    given = clusters()
    theirs = neighbors.KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(given.train, given.train_labels)
    ours = Knn().vote(given, 7)
    np.testing.assert_allclose(ours, theirs.predict_proba(given.val), atol=1e-4)


# ------------------------------------------------------------------------------------ linear


def fitted(rows, labels, classes, strength, start=None):
    return logistic_regression(standardise(rows, rows)[0], labels, classes, strength, start)


def test_separable_classes_are_told_apart_wholly():
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    rows = 4 * F.one_hot(labels, 3).float() + 0.3 * torch.randn(60, 3)
    logits = standardise(rows, rows)[0].logits(*fitted(rows, labels, 3, 1e-3))
    assert logits.argmax(1).equal(labels)


@pytest.mark.parametrize("chunk", [8192, 30], ids=["whole", "chunks"])
def test_the_gradient_vanishes_at_the_optimum(monkeypatch, chunk):
    monkeypatch.setattr(linear, "CHUNK", chunk)
    torch.manual_seed(0)
    rows, labels, strength = 3 + 2 * torch.randn(80, 5), torch.randint(3, (80,)), 0.1
    weights, bias = fitted(rows, labels, 3, strength)
    scaled = (rows - rows.mean(0)) / rows.std(0, correction=0)
    wrong = (scaled @ weights.T + bias).softmax(1) - F.one_hot(labels, 3)
    assert (wrong.T @ scaled / 80 + strength * weights).abs().max() < 1e-4
    assert wrong.mean(0).abs().max() < 1e-4, "the bias is free: mean probabilities are the shares"


def test_a_boundless_regulariser_leaves_the_shares_of_the_classes():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights, bias = fitted(torch.randn(10, 4), labels, 3, 1e3)
    assert weights.abs().max() < 1e-3
    torch.testing.assert_close(bias.softmax(0), torch.tensor([0.6, 0.3, 0.1]), rtol=1e-3, atol=1e-3)


def test_a_start_elsewhere_ends_at_the_same_place():
    torch.manual_seed(0)
    rows, labels = torch.randn(50, 4), torch.randint(2, (50,))
    one, _ = fitted(rows, labels, 2, 0.03)
    other, _ = fitted(rows, labels, 2, 0.03, (torch.randn(2, 4), torch.randn(2)))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_standardising_uses_the_training_split_alone():
    train, val = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[4.0, 7.0]])
    one, other = standardise(train, val)
    weights, bias = torch.eye(2), torch.zeros(2)
    assert one.logits(weights, bias).tolist() == [[-1, 0], [1, 0]]
    assert other.logits(weights, bias).tolist() == [[2, 0]], "a constant becomes 0 everywhere"


def test_wide_features_are_fitted_in_the_span_of_their_rows():
    """The same predictions as in all 40 numbers, from 12."""
    torch.manual_seed(0)
    rows, val, labels = torch.randn(12, 40), torch.randn(9, 40), torch.arange(12) % 3
    reduced, others = standardise(rows, val)
    assert reduced.features.shape == (12, 12) and others.features.shape == (9, 12)
    short = others.logits(*logistic_regression(reduced, labels, 3, 0.1))
    mean, scale = rows.mean(0), 1 / rows.std(0, correction=0)
    whole = linear.Standardised(rows, mean, scale)
    long = whole._replace(features=val).logits(*logistic_regression(whole, labels, 3, 0.1))
    torch.testing.assert_close(short, long, rtol=1e-3, atol=1e-3)


def test_the_fit_is_that_of_scikit_learn():
    """Its C is 1 / (N · strength)."""
    models = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    given = clusters()
    train, val = standardise(given.train, given.val)
    ours = val.logits(*logistic_regression(train, given.train_labels, 7, 0.03)).softmax(1)
    mean, scale = given.train.mean(0), given.train.std(0, correction=0)
    theirs = models.LogisticRegression(C=1 / (600 * 0.03), max_iter=1000, tol=1e-8)
    theirs.fit((given.train - mean) / scale, given.train_labels)
    probabilities = theirs.predict_proba((given.val - mean) / scale)
    np.testing.assert_allclose(ours, probabilities, atol=2e-3)
    assert ours.argmax(1).tolist() == probabilities.argmax(1).tolist()


def test_validation_labels_never_choose_the_regulariser(monkeypatch):
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    rows = F.one_hot(labels, 3).float() + torch.randn(60, 3)
    fits = []

    def spy(features, labels, classes, strength, start=None):
        fits.append((strength, len(labels)))
        return logistic_regression(features, labels, classes, strength, start)

    monkeypatch.setattr(linear, "logistic_regression", spy)
    given, probe = Features(rows[:40], labels[:40], rows[40:], labels[40:]), made()
    right = Linear().regress(given, probe)["top-1"].mean()
    honest = list(fits)
    fits.clear()
    wrong = Linear().regress(given._replace(val_labels=(given.val_labels + 1) % 3), probe)
    assert fits == honest
    held_out = "a fifth of every class held out, then all"
    assert [count for _, count in honest] == [31] * len(linear.STRENGTHS) + [40], held_out
    assert right > wrong["top-1"].mean()


def test_maps_of_resnet50_are_pooled_to_the_papers_sizes():
    maps = [(64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)]
    sizes = [pool(torch.zeros(1, channels, side, side)).shape[1] for channels, side in maps]
    assert sizes == [9216, 9216, 8192, 9216, 8192]


@pytest.mark.parametrize("channels, side", [(64, 16), (512, 1), (64, 64), (256, 9), (20_000, 3)])
def test_other_maps_are_pooled_to_about_as_many(channels, side):
    width = pool(torch.zeros(1, channels, side, side)).shape[1]
    assert width <= max(FEATURES, channels)
    assert width == channels * side * side or width > FEATURES / 4 or width == channels


# -------------------------------------------------------------------------------- candidates


def test_a_twin_gets_the_statistics_of_the_training_split():
    twin = network("untrained", baseline=True, fits=True)
    probe = made([network(), twin])
    before = copy.deepcopy(twin.encoder.state_dict())
    probe.fit_statistics()
    norm = twin.encoder.layers[1]
    shown = torch.cat([images for images, _ in probe.images(probe.train, size=16)])
    maps = twin.encoder.layers[0](twin.normalise(shown))
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, maps.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert norm.momentum == 0.3 and not norm.training
    after = twin.encoder.state_dict()
    weights = [name for name in before if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], after[name]) for name in weights)


@pytest.mark.parametrize("fits", [True, False], ids=["trained-elsewhere", "of-the-run"])
def test_statistics_that_an_encoder_brings_are_left_alone(fits):
    candidate = network(fits=fits)
    if fits:
        candidate.encoder.layers[1].running_mean.fill_(0.5)
    before = copy.deepcopy(candidate.encoder.state_dict())
    made([candidate, RawPixels()]).fit_statistics()
    after = candidate.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_network_to_train_is_a_copy():
    candidate = network()
    encoder, normalise = candidate.network()
    encoder.layers[0].weight.data.zero_()
    assert candidate.encoder.layers[0].weight.abs().sum() > 0
    assert normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).shape == (1, 3, 2, 2)
    assert RawPixels().network() is None


def test_raw_pixels_are_the_small_picture():
    (images, _), *_ = made().images(Noise(2), size=32)
    rows = RawPixels().embed(images)["features"]
    assert rows.shape == (2, 3 * 32 * 32)
    torch.testing.assert_close(rows, images.flatten(1) / 255)
    deep = torch.full((1, 5, 32, 32), 65535, dtype=torch.uint16)
    assert RawPixels(16).embed(deep)["features"].unique().tolist() == [1.0]


def test_what_an_encoder_cannot_take_is_told_with_a_remedy():
    with pytest.raises(SslkitError, match=r"trained cannot embed .*; try another --size"):
        network().embed(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


# -------------------------------------------------------------------------------------- probe


def test_every_image_is_decoded_once_whatever_the_sizes():
    sizes = {"trained": 16, "untrained": 16, "other": 24}
    candidates: list[Candidate] = [
        network(name, size, fits=name == "untrained") for name, size in sizes.items()
    ]
    probe = made([*candidates, RawPixels()])
    probe.fit_statistics()
    seen = {candidate.name: set() for candidate in probe.candidates}
    for candidate in probe.candidates:
        embed = candidate.embed

        def spy(images, *, layers=False, embed=embed, name=candidate.name):
            seen[name].add(tuple(images.shape[-2:]))
            return embed(images, layers=layers)

        candidate.embed = spy
    probe.compare(lambda features, seed: {"x": 0.0}, [Metric("x")], layers=True)
    assert set(probe.train.decoded.values()) == set(probe.val.decoded.values()) == {1}
    assert seen["other"] == {(24, 24)} and seen["raw pixels"] == {(32, 32)}


def test_images_beyond_the_memory_are_decoded_for_each_pass(monkeypatch):
    kept, streamed = made(), made()
    whole = [images for images, _ in kept.images(kept.train, view="squash")]
    monkeypatch.setattr(probes, "KEPT", 1000)
    parts_of = [images for images, _ in streamed.images(streamed.train, view="squash")]
    assert torch.equal(torch.cat(whole), torch.cat(parts_of))
    list(streamed.images(streamed.train, view="squash"))
    assert set(streamed.train.decoded.values()) == {2} and not streamed.kept.get("squash")


@pytest.mark.parametrize("channels, bits", [(3, 8), (5, 8), (5, 16)])
def test_crop_and_squash_show_the_centre_and_the_whole(channels, bits):
    source = Noise(3, channels=channels, bits=bits)
    source.arrays[:, :, :, :4] = 0  # the left edge is cut away by "crop" alone
    source.arrays[:, :, :, 4:] = 200
    probe = made(train=source)
    ((crop, index),) = probe.images(source, size=40)
    ((squash, _),) = probe.images(source, size=40, view="squash")
    assert crop.shape == squash.shape == (3, channels, 40, 40) and index.tolist() == [0, 1, 2]
    assert crop.dtype == (torch.uint8 if bits == 8 else torch.uint16)
    assert crop.to(torch.int64).min() == 200 and squash[..., 0].to(torch.int64).max() < 20


def test_views_are_crops_of_every_image_in_order():
    probe = made()
    found = list(probe.views(probe.val, count=3, size=16))
    again = list(probe.views(probe.val, count=3, size=16))
    assert torch.cat([index for _, index in found]).tolist() == list(range(12))
    views = torch.cat([crops for crops, _ in found])
    assert views.shape == (12, 3, 3, 16, 16) and views.dtype == torch.uint8
    assert torch.equal(views, torch.cat([crops for crops, _ in again]))
    assert not torch.equal(views[:, 0], views[:, 1])
    other = torch.cat([crops for crops, _ in probe.views(probe.val, count=3, size=16, seed=1)])
    assert not torch.equal(views, other)


def test_augmented_batches_meet_every_image_once_an_epoch():
    probe = made()
    batches = list(probe.augmented(probe.train, batch_size=10, steps=6, seed=0, size=16))
    orders = [index.tolist() for _, index in batches]
    first, second = ([*chain(*half)] for half in (orders[:3], orders[3:]))
    assert sorted(first) == sorted(second) == list(range(30)) and first != second
    one, two = (
        {row: images[place] for images, index in half for place, row in enumerate(index.tolist())}
        for half in (batches[:3], batches[3:])
    )
    assert one[0].shape == (3, 16, 16) and not torch.equal(one[0], two[0])


def test_features_of_a_layer_are_dropped_after_use():
    probe, seen = made(), []

    def scorer(features, seed):
        assert all(earlier() is None for earlier in seen)
        seen.append(weakref.ref(features.train))
        return {"x": 0.0}

    result = probe.compare(scorer, [Metric("x")], layers=True)
    rows = [(entry.row, entry.candidate) for entry in result.entries]
    assert rows == [
        ("features", "trained"),
        ("conv", "trained"),
        ("features", "untrained"),
        ("conv", "untrained"),
        (None, "raw pixels"),
    ]
    assert len(seen) == 5


def test_seeds_reach_the_score_and_the_difference_is_paired():
    def scorer(features, seed):
        right = torch.zeros(12, dtype=torch.bool)
        right[: 6 + seed + (features.train.shape[1] == 4)] = True
        return {"hits": right, "x": float(seed)}

    result = made().compare(scorer, [Metric("hits", "%"), Metric("x")], seeds=2)
    trained, untrained, pixels = result.entries
    assert trained.scores["hits"].values == (7 / 12, 8 / 12)
    assert trained.scores["x"].values == (0.0, 1.0)
    assert set(trained.differences) == {"untrained", "raw pixels"}
    assert trained.differences["untrained"]["hits"].of == "no image differs"
    assert trained.differences["raw pixels"]["hits"].of == "12 images, paired"
    assert not untrained.differences and not pixels.differences
    assert result.protocol["seeds"] == 2


def test_rows_keep_everything_that_a_source_has():
    source = Noise(6)
    source.tags = np.eye(6, 3, dtype=np.int8)
    source.groups = list("aabbcc")
    some = Rows(source, np.array([4, 1]))
    assert some.names == ["004.png", "001.png"] and some.labels.tolist() == [1, 1]
    assert some.tags.tolist() == [[0, 0, 0], [0, 1, 0]] and some.groups == ["c", "a"]
    assert np.array_equal(some.image(0), source.image(4))


def test_a_set_with_groups_is_split_by_group():
    source = Noise(40)
    source.groups = [f"patient {number // 4}" for number in range(40)]
    train, val, how = split(source, 0)
    assert not set(train.groups) & set(val.groups) and (len(train), len(val)) == (32, 8)
    assert how == "a fifth of the groups, split with seed 0"


def test_split_by_class_leaves_an_image_on_either_side():
    labels = np.array([0, 0, 1, 1, 1, 2])
    first, second = split_by_class(labels, 0.2, 0)
    assert sorted([*first, *second]) == list(range(6))
    assert np.bincount(labels[second], minlength=3).tolist() == [1, 1, 0]


# --------------------------------------------------------------------------- on a run, whole


def test_knn_on_a_run_writes_scores_baselines_and_protocol(trained, painted):
    result = evaluated("knn", trained, "--k", 3, "--split-seed", 7)
    protocol = result["protocol"]
    expected = {
        "k": 3,
        "temperature": 0.07,
        "train_images": 24,
        "val_images": 6,
        "classes": 3,
        "split": "a fifth of every class, split with seed 7",
        "step": 0,
        "checkpoint": "step-00000000",
    }
    assert {name: protocol[name] for name in expected} == expected
    assert protocol["data"] == {"use": "image_folder", "root": str(painted), "follow_links": False}
    found = scores(result)
    assert list(found) == [
        ("features", "trained"),
        ("features", "untrained"),
        (None, "raw pixels"),
        (None, "chance"),
    ]
    assert found[None, "chance"] == pytest.approx(1 / 3) and found[None, "raw pixels"] == 1
    assert (trained / "eval" / "knn.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "words", [["--k", "3", "{run}"], ["--k=3", "{run}"], ["{run}", "--k=3", "--layers", "all"]]
)
def test_options_and_run_may_come_in_any_order(trained, words):
    result = evaluated("knn", *(word.format(run=trained) for word in words))
    assert result["protocol"]["k"] == 3


def test_the_newest_run_is_taken_where_none_is_named(trained, monkeypatch, tmp_path):
    shutil.copytree(trained.parent.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    code, out, err = sslkit("eval", "knn", "--k", "2")
    assert code == 0, err
    assert str(tmp_path / "runs" / "evaluated" / "now") in out


def test_every_layer_stands_beside_its_own_untrained_layer(trained):
    code, out, err = sslkit("eval", "linear", trained, "--layers", "all")
    assert code == 0, err
    result = json.loads((trained / "eval" / "linear.json").read_text())
    rows = [(row, name) for name in ("trained", "untrained") for row in LAYERS]
    assert list(scores(result)) == [*rows, (None, "raw pixels"), (None, "chance")]
    paired = {
        entry["row"]: entry["differences"]
        for entry in result["entries"]
        if entry["candidate"] == "trained"
    }
    assert all(set(found) == {"untrained", "raw pixels"} for found in paired.values())
    assert scores(result)["conv1", "trained"] == 1, "colours are plain to see"
    assert "trained − untrained" in out and "res5" in out and "raw pixels: 100.0" in out


def test_linear_by_sgd_scores_every_candidate(trained):
    words = ("--solver", "sgd", "--epochs", 2, "--seeds", 2, "--layers", "all")
    result = evaluated("linear", trained, *words)
    rows = [(row, name) for name in ("trained", "untrained") for row in LAYERS]
    assert list(scores(result)) == [*rows, (None, "raw pixels"), (None, "chance")]
    assert all(len(entry["scores"]["top-1"]["values"]) == 2 for entry in result["entries"][:-1])
    assert (result["protocol"]["epochs"], result["protocol"]["seeds"]) == (2, 2)


def test_another_size_another_run_and_another_folder(trained, tmp_path):
    other = tmp_path / "evaluated" / "then"
    shutil.copytree(trained, other)
    out = tmp_path / "here"
    words = ("--size", 48, "--against", other, "--out", out)
    result = evaluated("knn", trained, *words)
    assert (out / "knn.json").is_file() and not (trained / "eval" / "x").exists()
    sizes = {one["name"]: one["size"] for one in result["protocol"]["candidates"]}
    assert sizes == {"trained": 48, "untrained": 48, "raw pixels": 32, "then": 48}
    found = scores(result)
    assert found["features", "then"] == found["features", "trained"], "the same weights"


def test_an_encoder_alone_is_measured_on_a_folder(painted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--encoder", "timm:test_resnet", "--data", painted, "--weights", "none")
    result = evaluated("knn", *words)
    assert (tmp_path / "eval" / "timm_test_resnet" / "knn.json").is_file()
    assert list(scores(result)) == [
        ("features", "timm:test_resnet"),
        (None, "raw pixels"),
        (None, "chance"),
    ]
    assert result["protocol"]["encoder"]["model"] == "test_resnet"
    sizes = [one["size"] for one in result["protocol"]["candidates"]]
    assert sizes == [160, 32], "timm's test models were made for 160 px"


def test_an_exported_folder_is_measured_beside_its_untrained_twin(
    trained, painted, tmp_path, monkeypatch
):
    folder = tmp_path / "mine" / "export" / "timm"
    folder.mkdir(parents=True)
    probe = build(Request(run=trained, device="cpu")).probe
    probe.candidates[0].encoder.export("timm", folder, 32)
    monkeypatch.chdir(tmp_path)
    alone = scores(evaluated("knn", "--encoder", folder, "--data", painted))
    whole = scores(evaluated("knn", trained))
    assert alone["features", "mine"] == whole["features", "trained"]
    assert alone["features", "untrained"] == whole["features", "untrained"]
    assert (tmp_path / "eval" / "mine" / "knn.json").is_file()


def test_training_and_validation_folders_are_used_as_they_are(trained, tmp_path):
    paint(tmp_path / "train", 5)
    paint(tmp_path / "val", 2, seed=1)
    probe = build(Request(run=trained, data=str(tmp_path), device="cpu")).probe
    assert (len(probe.train), len(probe.val)) == (15, 6)
    assert probe.protocol()["split"] == "the data set's own validation images"
    assert {Path(probe.val.root).name, Path(probe.train.root).name} == {"train", "val"}
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path, "--split-seed", 3)
    assert code == 2 and "has validation images of its own; leave the option out" in err


def test_a_split_takes_a_fifth_of_every_class_and_depends_on_the_seed_alone(trained):
    one, same, other = (
        build(Request(run=trained, split_seed=seed, device="cpu")).probe for seed in (0, 0, 1)
    )
    assert list(one.val.names) == list(same.val.names) != list(other.val.names)
    assert not set(one.val.names) & set(one.train.names)
    assert np.bincount(one.val.labels).tolist() == [2, 2, 2]
    assert np.bincount(one.train.labels).tolist() == [8, 8, 8]
    for label, name in zip(one.val.labels, one.val.names, strict=True):
        assert one.classes[label] == name.split("/")[0]


# ------------------------------------------------------------------- what cannot be measured


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--kk", "3"], "--kk  no such option; did you mean '--k'?"),
        (["--layer", "all"], "did you mean '--layers'?"),
        (["--k", "0"], "expected int ≥ 1, got 0"),
        (["--k", "[1"], "--k  is not valid YAML"),
        (["--k"], "requires an argument"),
        (["--weights", "none"], "--weights  belongs to an encoder"),
        (["--encoder", "resnet18"], "neither a folder nor of the form PART:MODEL"),
        (["--encoder", "tim:resnet18"], "did you mean 'timm'?"),
        (["--encoder", "timm:resnet18", "--weights", "none.pt"], "none.pt"),
        (["--encoder", "{run}"], "no encoder (timm) opens"),
        (["--against", "{run}"], "is already measured"),
        (["--size", "0"], "--size"),
        (["--data", "nowhere"], "there is no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_named(trained, words, sentence):
    words = [word.format(run=trained) for word in words]
    code, _, err = sslkit("eval", "knn", trained, *words)
    assert code == 2
    assert sentence in " ".join(err.split()).replace("--k ", "--k  ") or sentence in err
    assert "Traceback" not in err


def test_options_of_the_other_solver_are_refused(trained):
    code, _, err = sslkit("eval", "linear", trained, "--epochs", 3, "--seeds", 2)
    assert code == 2
    assert "--epochs" in err and "--seeds" in err and "belongs to --solver sgd" in err


def test_an_encoder_without_images_is_refused():
    code, _, err = sslkit("eval", "knn", "--encoder", "timm:test_resnet", "--weights", "none")
    assert code == 2 and "--encoder without a run needs images: --data DIR" in err


def test_an_unknown_evaluation_is_named(trained):
    code, _, err = sslkit("eval", "lineal", trained)
    assert code == 2 and "did you mean 'linear'?" in err


def test_splits_with_different_classes_are_refused_in_a_sentence(trained, tmp_path):
    paint(tmp_path / "train", 2)
    paint(tmp_path / "val", 2, colours={"blue": (0, 0, 9), "pink": (9, 0, 9)})
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path)
    assert code == 2 and "different classes" in err and "pink" in err


def test_a_run_whose_images_are_gone_is_evaluated_on_others(trained, tmp_path):
    folder = tmp_path / "evaluated" / "then"
    shutil.copytree(trained, folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(root=tmp_path / "gone"))
    code, _, err = sslkit("eval", "knn", folder)
    assert code == 2 and "does not exist" in err and "--data DIR" in err
    result = evaluated("knn", folder, "--data", paint(tmp_path / "here", 5))
    assert result["protocol"]["data"]["root"] == str(tmp_path / "here")


def test_no_run_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = sslkit("eval", "knn")
    assert code == 2 and "there is no trained run below runs/" in err
    code, _, err = sslkit("eval", "knn", tmp_path)
    assert code == 2 and "is not a run folder" in err


def test_needs_are_checked_before_weights_are_loaded(trained, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "checkpoints")
    code, _, err = sslkit("eval", "knn", folder, "--data", paint(tmp_path / "few", 1))
    assert code == 2 and "single image" in err


@pytest.mark.parametrize("needs, word", [("tags", "no tags"), ("boxes", "no boxes")])
def test_other_needs_are_told(trained, needs, word):
    with pytest.raises(DataError, match=word):
        build(Request(run=trained, device="cpu"), needs)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(trained, tmp_path, monkeypatch, workers):
    folder = paint(tmp_path / "torn", 5)
    (folder / "blue" / "0.png").write_bytes(b"no picture")
    monkeypatch.setattr("sslkit.evaluation.build.auto_workers", lambda device: workers)
    with pytest.raises(DataError) as caught:
        build(Request(run=trained, data=str(folder), device="cpu"))
    assert "blue/0.png cannot be read" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_run_of_other_channels_is_refused(trained, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 16, 16, 5), dtype=np.uint8)
    np.savez(tmp_path / "five.npz", images=images, labels=np.arange(9) % 3)
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path / "five.npz")
    assert code == 2 and "was trained on images of 3 channels and 8 bits" in err


# ----------------------------------------------------------- promises of every evaluation

every = pytest.mark.parametrize(
    "part", [pytest.param(part, id=part.name) for part in registry.parts("evaluations")]
)


@every
def test_it_changes_no_weight_and_no_buffer(part):
    probe = made()
    before = [copy.deepcopy(one.encoder.state_dict()) for one in probe.candidates[:2]]
    store.run(recipe.read_evaluation(part.name, {}), probe)
    after = [one.encoder.state_dict() for one in probe.candidates[:2]]
    for one, other in zip(before, after, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@every
def test_it_gives_the_same_json_twice(part):
    choice = recipe.read_evaluation(part.name, {})
    one, other = (store.run(choice, made()) for _ in range(2))
    assert json.dumps(one) == json.dumps(other)
    assert one["metrics"] and {"trained", "untrained", "raw pixels"} <= {
        entry["candidate"] for entry in one["entries"]
    }


@every
def test_features_that_are_nan_are_shown_as_a_dash(part, capsys):
    class Broken(RawPixels):
        def embed(self, images, *, layers=False):
            return {name: rows * torch.nan for name, rows in super().embed(images).items()}

    result = store.run(recipe.read_evaluation(part.name, {}), made([network(), Broken()]))
    entry = next(one for one in result["entries"] if one["candidate"] == "raw pixels")
    assert [found["value"] for found in entry["scores"].values()] == [None]
    console.print_result(result)
    assert "raw pixels   -" in capsys.readouterr().out


@every
@pytest.mark.parametrize(
    "colours, count, sentence",
    [
        (dict(list(COLOURS.items())[:1]), 4, "one subfolder per class"),
        (COLOURS, 1, "every class has a single image"),
    ],
    ids=["one-class", "single-images"],
)
def test_it_refuses_what_it_cannot_measure(part, trained, tmp_path, colours, count, sentence):
    if part.signature().attributes["needs"] != "labels":
        pytest.skip("needs no labels")
    folder = paint(tmp_path / "set", count, colours=colours)
    code, _, err = sslkit("eval", part.name, trained, "--data", folder)
    assert code == 2 and sentence in err and len(err.strip().splitlines()) == 1


@every
@pytest.mark.parametrize(
    "labels, sentence",
    [(None, "have no labels"), ([1] * 8, "are of one class"), ([], "set.npz")],
    ids=["no-labels", "one-class", "empty"],
)
def test_it_refuses_arrays_that_it_cannot_measure(part, trained, tmp_path, labels, sentence):
    if part.signature().attributes["needs"] != "labels":
        pytest.skip("needs no labels")
    count = 8 if labels is None else len(labels)
    arrays = {"images": np.zeros((count, 16, 16, 3), np.uint8)}
    if labels is not None:
        arrays["labels"] = np.array(labels, np.int64)
    np.savez(tmp_path / "set.npz", **arrays)
    code, _, err = sslkit("eval", part.name, trained, "--data", tmp_path / "set.npz")
    assert code == 2 and sentence in err and len(err.strip().splitlines()) == 1


def test_an_evaluation_that_fails_is_named(monkeypatch):
    choice = recipe.read_evaluation("knn", {})
    monkeypatch.setattr(Knn, "vote", lambda *_: 1 / 0)
    with pytest.raises(PluginError, match=r"evaluation 'knn' of sslkit .* failed: ZeroDivision"):
        store.run(choice, made())
    monkeypatch.setattr(Knn, "measure", lambda *_: {"top1": 1})
    with pytest.raises(PluginError, match="returned 'dict' instead of a Result"):
        store.run(choice, made())
    assert isinstance(parts.make(choice), Knn)
