"""Classifiers and intervals against scikit-learn's and SciPy's, on the same features."""

import numpy as np
import pytest
import torch
from noise import Noise

from sslkit.evaluation.intervals import student, t_95, wilson
from sslkit.interfaces import Features
from sslkit_plugins.evaluations import accuracy, logistic
from sslkit_plugins.evaluations.knn import Knn
from sslkit_plugins.evaluations.logistic import logistic_regression, standardise

pytest.importorskip("sklearn", reason="needs scikit-learn")
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier


def clusters(count, width, classes=7, rest=250) -> Features:
    """Random features, in part told apart by class."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count + rest) % classes
    centres = torch.randn(classes, width, generator=rng)
    rows = centres[labels] + 3 * torch.randn(count + rest, width, generator=rng)
    return Features(rows[:count], labels[:count], rows[count:], labels[count:])


def objective(weights, bias, rows, labels, strength) -> float:
    """Mean cross-entropy + strength/2 · |weights|², in float64."""
    logits = np.asarray(rows, np.float64) @ np.asarray(weights, np.float64).T + np.asarray(bias)
    largest = logits.max(1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(1)) + largest[:, 0]
    loss = (total - logits[np.arange(len(labels)), labels]).mean()
    return loss + strength / 2 * np.square(np.asarray(weights, np.float64)).sum()


@pytest.mark.parametrize("strength", logistic.STRENGTHS)
@pytest.mark.parametrize(("count", "width"), [(600, 64), (90, 300)], ids=["tall", "wide"])
def test_the_objective_reaches_scikit_learns(count, width, strength):
    """From zero within 0.1 % of its minimum, and the same classes but where two are nearly as
    likely.

    Wide features are rotated to the span of their rows, which changes no objective.
    """
    given = clusters(count, width)
    train, val = standardise(given.train, given.val)
    weights, bias = logistic_regression(train, given.train_labels, 7, strength)
    labels = given.train_labels.numpy()
    shown = (train.features - train.mean) * train.scale
    ours = objective(weights, bias, shown, labels, strength)
    mean, scale = given.train.mean(0), given.train.std(0, correction=0)
    rows = ((given.train - mean) / scale).double().numpy()
    fit = LogisticRegression(C=1 / (count * strength), max_iter=5000, tol=1e-10).fit(rows, labels)
    theirs = objective(fit.coef_, fit.intercept_, rows, labels, strength)
    assert theirs * (1 - 1e-6) <= ours <= theirs * 1.001
    predicted = fit.predict(((given.val - mean) / scale).numpy())
    assert (val.logits(weights, bias).argmax(1).numpy() == predicted).mean() >= 0.98


@pytest.mark.parametrize("k", [1, 7, 20, 200, 600])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_votes_are_scikit_learns(k, temperature):
    given = clusters(600, 64)
    theirs = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(given.train, given.train_labels)
    ours = Knn(k=k, temperature=temperature).vote(given, 7)
    np.testing.assert_allclose(ours, theirs.predict_proba(given.val), atol=2e-4)


@pytest.mark.parametrize("classes", [6, 10, 100])
def test_hits_are_scikit_learns(classes):
    torch.manual_seed(0)
    logits, labels = torch.randn(400, classes), torch.randint(classes, (400,))
    found = accuracy.hits(logits, labels, [str(number) for number in range(classes)])
    for name, k in (("top-1", 1), ("top-5", 5)):
        theirs = top_k_accuracy_score(labels, logits, k=k, labels=range(classes))
        assert found[name].mean() == pytest.approx(theirs)


def test_ties_are_told_by_the_number_of_the_class():
    """By hand. No class stands out of row 1; rows 2 and 3 hold two best, or three of no vote."""
    logits = torch.tensor([[0.0] * 7, [0, 1, 0, 1, 0, 0, 0], [3, 0, 0, 2, 0, 0, 0]])
    names = [str(number) for number in range(7)]
    hits = {"top-1": [], "top-5": []}
    for label in range(7):
        found = accuracy.hits(logits, torch.full((3,), label), names)
        for name, rows in found.items():
            hits[name].append(rows.tolist())
    first = np.array(hits["top-1"]).T
    assert [np.flatnonzero(row).tolist() for row in first] == [[0], [1], [0]]
    best = [np.flatnonzero(row).tolist() for row in np.array(hits["top-5"]).T]
    assert best == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_chance_is_what_the_largest_classes_reach():
    source = Noise(9)
    source.labels = np.array([0, 0, 0, 1, 1, 2, 3, 4, 5])
    assert accuracy.chance(source, list("abcdef")) == pytest.approx(
        {"top-1": 3 / 9, "top-5": 8 / 9}
    )


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (3, 10), (150, 200), (49_000, 50_000)])
def test_wilson_is_scipys(hits, count):
    theirs = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits / count, count) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@pytest.mark.parametrize("freedom", [1, 2, 5, 9, 10, 15, 30, 100, 5000])
def test_quantiles_are_scipys(freedom):
    assert t_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=5e-4)


@pytest.mark.parametrize("count", [2, 3, 12, 400])
def test_student_is_scipys(count):
    values = np.random.default_rng(0).normal(70, 5, count)
    error = stats.sem(values)
    theirs = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=error)
    assert student(values.tolist()) == pytest.approx(theirs, abs=1e-3)
