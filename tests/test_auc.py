"""AUC and balanced accuracy: pair counts, scikit-learn, intervals, and the evaluation."""

import numpy as np
import pytest
import torch
from noise import Noise, made, network
from sklearn import linear_model, metrics

from sslkit.errors import DataError
from sslkit.evaluation.result import document
from sslkit.interfaces import Features
from sslkit_plugins.evaluations.auc import Auc, Measured, Ranking, log_probabilities, standard_error
from sslkit_plugins.evaluations.logistic import logistic_regression, standardise


def binary(scores, labels) -> float:
    """The AUC of two classes, for the scores of class 1."""
    scores = np.asarray(scores, float)
    columns = np.stack([np.zeros_like(scores), scores], 1)
    return Ranking(columns, np.asarray(labels)).auc(np.ones(len(labels)))


@pytest.fixture(scope="module")
def tied() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    return rng.integers(0, 8, 300) + labels, labels


def test_auc_is_the_fraction_of_pairs_in_order(tied):
    assert binary([1, 2, 2, 3], [0, 1, 0, 1]) == (1 + 1 + 0.5 + 1) / 4
    scores, labels = tied
    positive, negative = scores[labels == 1][:, None], scores[labels == 0]
    pairs = (positive > negative).mean() + (positive == negative).mean() / 2
    assert binary(scores, labels) == pytest.approx(pairs, abs=1e-15)
    assert pairs == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_monotone_maps_change_nothing_and_constants_give_a_half(tied):
    scores, labels = tied
    assert binary(np.exp(scores) - 7, labels) == binary(scores, labels)
    assert binary(-scores, labels) == pytest.approx(1 - binary(scores, labels))
    assert binary(np.full(300, 3.0), labels) == 0.5


def test_the_standard_error_at_chance():
    assert standard_error(90, 210) == pytest.approx(0.036, abs=5e-4)
    rng, labels = np.random.default_rng(0), np.arange(300) < 90
    drawn = [binary(rng.random(300), labels.astype(int)) for _ in range(2000)]
    assert np.std(drawn) == pytest.approx(standard_error(90, 210), rel=0.05)


def test_many_classes_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 400, p=[0.6, 0.2, 0.15, 0.05])
    scores = rng.normal(size=(400, 4)) + 1.5 * np.eye(4)[labels]
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    ranking, ones = Ranking(np.log(chances), labels), np.ones(400)
    macro = metrics.roc_auc_score(labels, chances, multi_class="ovr", average="macro")
    assert ranking.auc(ones) == pytest.approx(macro, abs=1e-12)
    balanced = metrics.balanced_accuracy_score(labels, scores.argmax(1))
    assert ranking.balanced_accuracy(ones) == pytest.approx(balanced, abs=1e-12)
    rates, hits = ranking.curve(0)
    assert (rates[0], hits[0], rates[-1], hits[-1]) == (0, 0, 1, 1)
    rows = rng.integers(0, 400, 400)
    again = Ranking(np.log(chances)[rows], labels[rows])
    counts = np.bincount(rows, minlength=400)
    assert ranking.auc(counts) == pytest.approx(again.auc(ones), abs=1e-12)
    assert ranking.balanced_accuracy(counts) == pytest.approx(again.balanced_accuracy(ones))


def test_an_interval_over_groups_is_wider_for_copies():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    scores = np.stack([np.zeros(40), rng.normal(size=40) + labels], 1)
    once = Measured(Ranking(scores, labels), None).scores()["AUC"]
    copied = Ranking(scores.repeat(4, 0), labels.repeat(4))
    grouped = Measured(copied, np.arange(40).repeat(4).tolist()).scores()["AUC"]
    (one,), (other,) = once.intervals, grouped.intervals
    assert other.of == "40 groups, bootstrap of 1000"
    assert (one.low, one.high, once.value) == pytest.approx((other.low, other.high, grouped.value))
    narrow = Measured(copied, None).scores()["AUC"]
    assert narrow.intervals[0].high - narrow.intervals[0].low < (one.high - one.low) / 1.7


@pytest.mark.parametrize("balance", [True, False], ids=["balanced", "none"])
def test_the_weighted_fit_is_that_of_scikit_learn(balance):
    torch.manual_seed(0)
    labels = (torch.arange(120) % 10).clamp_max(2)
    features = torch.randn(120, 5) + torch.nn.functional.one_hot(labels, 5)
    train, val = standardise(features, features[:30])
    weights = Auc(class_weights="balanced" if balance else "none")._weights(labels, 3)
    fitted = logistic_regression(train, labels, 3, 0.1, class_weights=weights)
    scaled = features.double().numpy()
    scaled = (scaled - scaled.mean(0)) / scaled.std(0)
    theirs = linear_model.LogisticRegression(
        C=1 / (0.1 * 120), class_weight="balanced" if balance else None, tol=1e-8, max_iter=1000
    ).fit(scaled, labels.numpy())
    expected = theirs.predict_log_proba(scaled[:30])
    np.testing.assert_allclose(log_probabilities(val, fitted), expected, atol=2e-3)


# ---------------------------------------------------------------------------- the evaluation


def separable(count: int, seed: int) -> Noise:
    """Two classes, the second brighter; a third of the images are of the second."""
    source = Noise(count, seed)
    source.labels, source.classes = (np.arange(count) % 3 == 0).astype(np.int64), ["a", "b"]
    source.arrays[source.labels == 1] //= 2
    return source


def test_two_classes_have_the_ordinary_auc_with_baselines():
    probe = made(train=separable(60, 0), val=separable(30, 1))
    probe.classes = ["a", "b"]
    result = Auc().measure(probe)
    by_name = {entry.candidate: entry for entry in result.entries}
    assert list(by_name) == ["trained", "untrained", "raw pixels", "chance"]
    assert by_name["trained"].scores["AUC"].value == 1
    assert by_name["chance"].scores["AUC"].value == 0.5
    assert by_name["chance"].scores["balanced accuracy"].value == 0.5
    paired = by_name["trained"].differences
    assert set(paired) == {"untrained", "raw pixels"}
    assert paired["untrained"]["AUC"].of == "30 images, bootstrap of 1000, paired"
    assert (paired["untrained"]["AUC"].low, paired["untrained"]["AUC"].high) == (0, 0)
    assert result.protocol["auc_by_class"]["trained"] == {"b": 1.0}
    assert "rarest class, b, has 10 of 30 validation images" in result.protocol["notes"][0]
    (figure,) = result.figures
    assert list(figure.lines) == ["trained", "untrained", "raw pixels"]
    document(result, "auc", "evaluation 'auc'")


def test_groups_select_the_strength_and_give_the_interval():
    train, val = Noise(60), Noise(36, seed=1)
    train.groups = [f"p{number // 2}" for number in range(60)]
    val.groups = [f"q{number // 2}" for number in range(36)]
    result = Auc(layers="all").measure(made(train=train, val=val))
    trained = result.entries[0]
    assert trained.scores["AUC"].intervals[0].of == "18 groups, bootstrap of 1000"
    assert result.protocol["chosen_on"] == "AUC on a fifth of the groups of the training split"
    assert set(result.protocol["auc_by_class"]["trained"]) == {"a", "b", "c"}
    rows = {(entry.row, entry.candidate) for entry in result.entries if entry.differences}
    assert rows == {("features", "trained"), ("conv", "trained")}


def test_fewer_than_ten_images_have_no_interval_and_a_note():
    probe = made([network()], train=separable(30, 0), val=separable(9, 1))
    probe.classes = ["a", "b"]
    result = Auc().measure(probe)
    assert not result.entries[0].scores["AUC"].intervals
    note = "values without a 95 % CI: 9 images are too few; it needs 10"
    assert result.protocol["notes"][-1] == note


def test_features_that_are_not_finite_have_no_auc():
    probe = made()
    probe.candidates[0].encoder.layers[0].weight.data.fill_(torch.nan)
    result = Auc().measure(probe)
    trained, untrained, *_ = result.entries
    assert np.isnan(trained.scores["AUC"].value) and not any(trained.differences.values())
    assert 0 <= untrained.scores["AUC"].value <= 1


def test_a_class_without_validation_images_is_refused():
    val = Noise(12, seed=1)
    val.labels = np.arange(12) % 2
    probe = made(val=val)
    probe.compare = None  # nothing is embedded
    with pytest.raises(DataError, match=r"no validation image shows c, so there is no AUC; add"):
        Auc().measure(probe)


def test_constant_features_are_at_chance():
    labels = torch.arange(60) % 3
    features = Features(torch.ones(60, 4), labels, torch.ones(30, 4), labels[:30])
    chosen = torch.arange(48), torch.arange(48, 60)
    scores = Auc().fit(features, chosen, 3)
    assert Ranking(scores, labels[:30].numpy()).auc(np.ones(30)) == 0.5
