"""kNN and the linear probe by values worked out by hand, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from noise import Noise, made, network
from torch.nn import functional as F

from sslkit import recipe
from sslkit.evaluation import pool, split_labelled, store
from sslkit.evaluation.pooling import FEATURES
from sslkit.interfaces import Features
from sslkit_plugins.evaluations import classifiers, linear, logistic
from sslkit_plugins.evaluations.knn import Knn
from sslkit_plugins.evaluations.linear import Linear
from sslkit_plugins.evaluations.logistic import logistic_regression, standardise

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


def test_a_near_image_may_lose_to_two_far_ones():
    """At 0 rad one image of class 0; at 0.2 and 0.25 rad two of class 1."""
    train = torch.tensor([[1.0, 0.0], [math.cos(0.2), math.sin(0.2)], [math.cos(0.25), -0.2474]])
    labels, query = torch.tensor([0, 1, 1]), at(0)
    assert voted(train, labels, query, k=1) == [0]
    for temperature in (0.07, 0.1, 1):
        assert voted(train, labels, query, k=3, temperature=temperature) == [1]
    votes = Knn(k=3).vote(Features(train, labels, query, labels[:1]), 2)[0]
    assert (votes[1] / votes[0]).item() == pytest.approx(2.23e6 / 1.60e6, rel=0.01)


def test_every_training_image_is_its_own_nearest():
    given = clusters(100)
    own = given._replace(val=given.train, val_labels=given.train_labels)
    assert Knn(k=1).vote(own, 7).argmax(1).equal(own.train_labels)


def test_votes_of_all_images_are_counted_exactly():
    """At a boundless temperature all 10⁵ votes weigh the same, and one vote decides."""
    labels = torch.cat([torch.zeros(50_001), torch.ones(50_000)]).long()
    train = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0))
    given = Features(train, labels, at(0), labels[:1])
    votes = Knn(k=len(labels), temperature=1e12).vote(given, 2)[0] * len(labels)
    torch.testing.assert_close(
        votes, torch.tensor([50_001.0, 50_000.0]).double(), atol=1e-6, rtol=0
    )


def knn_of(**options) -> dict:
    return store.run(recipe.read_evaluation("knn", options), made())


def test_a_preset_reports_each_k_and_its_headline_first():
    found = knn_of(preset="dino")
    names = [metric["name"] for metric in found["metrics"]]
    assert names == ["top-1", "top-1, k = 10", "top-1, k = 100", "top-1, k = 200"]
    protocol = found["protocol"]
    stated = {name: protocol[name] for name in ("preset", "k", "ks", "temperature", "source")}
    assert stated == {
        "preset": "dino",
        "k": 20,
        "ks": [20, 10, 30, 30],
        "temperature": 0.07,
        "source": "dino: eval_knn.py",
    }
    assert protocol["notes"] == [
        "top-1 is that of k = 20",
        "all 30 training images vote, fewer than 100, 200 (--k)",
    ]
    assert protocol["replaced"] == []
    other = knn_of(preset="dino", k="3")["protocol"]
    assert (other["k"], other["temperature"], other["replaced"]) == (3, 0.07, ["k"])
    for k in (20, 10):
        single = knn_of(k=str(k))["entries"]
        name = "top-1" if k == 20 else "top-1, k = 10"
        for one, other in zip(found["entries"], single, strict=True):
            assert one["scores"][name]["value"] == other["scores"]["top-1"]["value"]


@pytest.mark.parametrize(
    ("name", "k", "temperature"),
    [("moco", 200, 0.1), ("lightly", 200, 0.1), ("solo-learn", 20, 0.07), ("vissl", 200, 0.1)],
)
def test_presets_of_knn_have_their_numbers(name, k, temperature):
    found = Knn(preset=name)
    assert (found.ks, found.temperature) == ((k,), temperature)
    given = Knn(preset=name, k=3, temperature=0.5)
    assert (given.ks, given.temperature) == ((3,), 0.5), "given options win"


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
    monkeypatch.setattr(logistic, "CHUNK", chunk)
    torch.manual_seed(0)
    rows, labels, strength = 3 + 2 * torch.randn(80, 5), torch.randint(3, (80,)), 0.1
    weights, bias = fitted(rows, labels, 3, strength)
    scaled = (rows - rows.mean(0)) / rows.std(0, correction=0)
    wrong = (scaled @ weights.T + bias).softmax(1) - F.one_hot(labels, 3)
    assert (wrong.T @ scaled / 80 + strength * weights).abs().max() < 1e-4
    assert wrong.mean(0).abs().max() < 1e-4, "the bias is free: mean probabilities are the shares"


def test_a_boundless_regulariser_leaves_the_class_shares():
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
    whole = logistic.Standardised(rows, mean, scale)
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

    for module in (linear, logistic):
        monkeypatch.setattr(module, "logistic_regression", spy)
    given, probe = Features(rows[:40], labels[:40], rows[40:], labels[40:]), made()
    right = Linear().regress(given, probe)["top-1"].mean()
    honest = list(fits)
    fits.clear()
    wrong = Linear().regress(given._replace(val_labels=(given.val_labels + 1) % 3), probe)
    assert fits == honest
    held_out = "a fifth of every class held out, then all"
    assert [count for _, count in honest] == [31] * len(logistic.STRENGTHS) + [40], held_out
    assert right > wrong["top-1"].mean()


def test_the_strength_is_selected_on_images_of_other_groups():
    """Twelve groups of five images: a fifth of the groups is held out, never part of one."""
    labels, groups = np.arange(60) % 3, [f"patient {number // 5}" for number in range(60)]
    fit, held_out = split_labelled(labels, groups, 0)
    assert sorted([*fit, *held_out]) == list(range(60)) and 10 <= len(held_out) <= 15
    assert not {groups[row] for row in fit} & {groups[row] for row in held_out}
    rows, _ = logistic.standardise(torch.randn(60, 4), torch.randn(1, 4))
    middle = logistic.STRENGTHS[len(logistic.STRENGTHS) // 2]
    assert logistic.choose_strength(rows, torch.as_tensor(labels), 3, ["one"] * 60) == middle
    train = Noise(30)
    train.groups = [f"p{number // 3}" for number in range(30)]
    protocol = Linear().measure(made([network()], train=train)).protocol
    assert protocol["chosen_on"] == "a fifth of the groups of the training split"


def test_batch_norm_of_a_pooled_map_is_by_channel():
    """Two images of two channels and two places, by hand: channel 0 holds 1, 3, 5, 7 (mean 4,
    variance 5), channel 1 0, 0, 8, 8 (mean 4, variance 16)."""
    rows = torch.tensor([[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 8.0, 8.0]])
    norm = classifiers.ChannelNorm(2, eps=1e-12)
    expected = torch.tensor([[-3.0, -1.0, -4.0, -4.0], [1.0, 3.0, 4.0, 4.0]])
    expected /= torch.tensor([5.0, 5.0, 16.0, 16.0]).sqrt()
    torch.testing.assert_close(norm(rows), expected)
    assert norm.weight.shape == (2,)
    by_place = torch.nn.BatchNorm2d(2, eps=1e-12)(rows.view(2, 2, 1, 2)).flatten(1)
    torch.testing.assert_close(norm(rows), by_place)


def classifiers_of(monkeypatch, **options):
    """The classifiers, the optimizer and the schedule of one fit by SGD."""
    made_by = {}
    make = classifiers.optimizer_of

    def spy(heads, protocol, lr, per_epoch):
        made_by["classifiers"] = heads
        made_by["optimizer"], made_by["schedule"] = make(heads, protocol, lr, per_epoch)
        return made_by["optimizer"], made_by["schedule"]

    monkeypatch.setattr(classifiers, "optimizer_of", spy)
    probe = made()
    Linear(seeds=1, **options).descend(probe, probe.candidates[0], 0)
    return made_by["classifiers"], made_by["optimizer"], made_by["schedule"]


def test_sgd_norms_channels_and_does_not_decay_norms(monkeypatch):
    """`conv` is a map of 4 channels pooled to 4 · 14 · 14 numbers, `features` a vector of 4."""
    heads, optimizer, _ = classifiers_of(monkeypatch, solver="sgd", epochs=1, layers="all")
    sizes = {name: (norm.num_features, last.in_features) for name, (norm, last) in heads.items()}
    assert sizes == {"features": (4, 4), "conv": (4, 784)}
    decays = {id(v): g["weight_decay"] for g in optimizer.param_groups for v in g["params"]}
    for norm, last in heads.values():
        assert [decays[id(value)] for value in norm.parameters()] == [0, 0]
        assert [decays[id(value)] for value in last.parameters()] == [5e-4, 5e-4]
    assert all(g["momentum"] == 0.9 and g["nesterov"] for g in optimizer.param_groups)


def test_sgd_drops_as_vissl_does(monkeypatch):
    """28 epochs of one step: 0.01, and a tenth from epoch 8, 16 and 24 on."""
    _, _, schedule = classifiers_of(monkeypatch, solver="sgd", epochs=28)
    assert (schedule.base_lrs, dict(schedule.milestones)) == ([0.01] * 2, {8: 1, 16: 1, 24: 1})


def test_maps_of_resnet50_are_pooled_to_the_papers_sizes():
    maps = [(64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)]
    sizes = [pool(torch.zeros(1, channels, side, side)).shape[1] for channels, side in maps]
    assert sizes == [9216, 9216, 8192, 9216, 8192]


@pytest.mark.parametrize("channels, side", [(64, 16), (512, 1), (64, 64), (256, 9), (20_000, 3)])
def test_other_maps_are_pooled_to_about_as_many(channels, side):
    width = pool(torch.zeros(1, channels, side, side)).shape[1]
    assert width <= max(FEATURES, channels)
    assert width == channels * side * side or width > FEATURES / 4 or width == channels
