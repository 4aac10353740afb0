"""Linear SVMs on images with several classes: average precision, fits, samples, the command."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import NPID, Noise, made, network
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC
from test_evaluate import evaluated, sslkit
from voc_folder import random_voc, write_image, write_list

import sslkit as toolkit
from sslkit import console, recipe
from sslkit.errors import DataError, RecipeError
from sslkit.evaluation import store
from sslkit.evaluation.candidates import RawPixels
from sslkit.runs import checkpoint
from sslkit.training import build as training
from sslkit_plugins.evaluations import support_vectors
from sslkit_plugins.evaluations.average_precision import (
    Ranking,
    average_precisions,
    mean_over_classes,
    prevalence,
)
from sslkit_plugins.evaluations.few_shots import draw_few, possible
from sslkit_plugins.evaluations.support_vectors import Machines, folds_of, normalised
from sslkit_plugins.evaluations.svm import Svm

RULES = ["envelope", "11-point", "step"]

# ---------------------------------------------------------------------------- average precision


def ranked(hits, count):
    """The ranking of `count` images whose positives have the ranks `hits`."""
    tags = np.zeros(count, np.int8)
    tags[np.array(hits) - 1] = 1
    return Ranking(-np.arange(count, dtype=float), tags)


@pytest.mark.parametrize(
    "hits, count, envelope, eleven, step",
    [
        ([1, 3, 6], 6, 13 / 18, 8 / 11, 13 / 18),
        ([2, 4], 4, 0.5, 0.5, 0.5),
        ([1], 5, 1.0, 1.0, 1.0),
        ([5], 5, 0.2, 0.2, 0.2),
        ([3, 4], 4, 0.5, 0.5, 5 / 12),
    ],
)
def test_average_precision_by_hand(hits, count, envelope, eleven, step):
    """Ranks 1, 3, 6: precisions 1, 2/3, 1/2. Eleven points: 4 · 1 + 3 · 2/3 + 4 · 1/2 = 8."""
    found = [ranked(hits, count).average_precision(rule) for rule in RULES]
    assert found == pytest.approx([envelope, eleven, step])


@pytest.fixture
def random_scores():
    """Scores with many ties, and tags with difficult images."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 12, 200).astype(float), rng.choice([1, 0, 0, -1], 200).astype(np.int8)


def test_the_step_rule_is_scikit_learns(random_scores):
    scores, tags = random_scores
    kept = tags != -1
    expected = average_precision_score(tags[kept], scores[kept])
    assert Ranking(scores, tags).average_precision("step") == pytest.approx(expected, abs=1e-12)


def test_the_other_rules_are_their_definitions(random_scores):
    scores, tags = random_scores
    points = []
    for threshold in np.unique(scores):
        chosen = tags[scores >= threshold]
        hits = (chosen == 1).sum()
        points.append((hits / (chosen != -1).sum(), hits / (tags == 1).sum()))

    def best(recall):
        return max(one for one, reached in points if reached >= recall - 1e-12)

    recalls = sorted({reached for _, reached in points})
    steps = np.diff([0.0, *recalls])
    area = sum(step * best(recall) for step, recall in zip(steps, recalls, strict=True))
    eleven = np.mean([best(recall) for recall in np.linspace(0, 1, 11)])
    ranking = Ranking(scores, tags)
    assert ranking.average_precision("envelope") == pytest.approx(area)
    assert ranking.average_precision("11-point") == pytest.approx(eleven)


def test_an_eleventh_point_is_reached_in_spite_of_rounding():
    """0.3 = 3/10 of the positives: 4 points of precision 1, the others 10/20."""
    hits = [1, 2, 3, *range(14, 21)]
    assert ranked(hits, 20).average_precision("11-point") == pytest.approx((4 + 7 * 0.5) / 11)


@pytest.mark.parametrize("rule", RULES)
def test_identities_of_average_precision(rule, random_scores):
    scores, tags = random_scores
    value = Ranking(scores, tags).average_precision(rule)
    assert Ranking(tags.astype(float), tags).average_precision(rule) == 1
    constant = Ranking(np.zeros(200), tags).average_precision(rule)
    assert constant == pytest.approx(prevalence(tags[:, None])[0])
    assert Ranking(np.exp(scores), tags).average_precision(rule) == value
    order = np.random.default_rng(1).permutation(200)
    assert Ranking(scores[order], tags[order]).average_precision(rule) == pytest.approx(value)
    kept = tags != -1
    assert Ranking(scores[kept], tags[kept]).average_precision(rule) == value
    assert math.isnan(Ranking(scores, np.zeros(200, np.int8)).average_precision(rule))


def test_images_of_a_group_stay_in_one_fold():
    positive, groups = np.arange(24) % 4 == 0, np.arange(24) // 4
    folds = folds_of(positive, groups)
    assert len(folds) == 3
    for rows, held_out in folds:
        assert not set(groups[rows]) & set(groups[held_out]) and positive[held_out].any()
    assert folds_of(positive, np.zeros(24)) == [], "one group allows no folds"


@pytest.mark.parametrize("rule", RULES)
def test_resampled_images_count_as_often_as_they_are_drawn(rule, random_scores):
    scores, tags = random_scores
    rows = np.random.default_rng(2).integers(200, size=200)
    both = np.stack([scores, -scores], 1), np.stack([tags, tags], 1)
    found = average_precisions(*both, rule)(rows)
    expected = average_precisions(both[0][rows], both[1][rows], rule)(None)
    assert found == pytest.approx(expected)


def test_classes_without_positives_are_left_out_of_the_mean():
    values = np.array([[0.5, math.nan], [0.2, 0.4], [math.nan, math.nan]])
    np.testing.assert_allclose(mean_over_classes(values), [0.5, 0.3, math.nan])


# ---------------------------------------------------------------------------------------- fits


def problem(count=60, dim=8, seed=0):
    """Rows of length 1 with a noisy direction for the positives."""
    rng = np.random.default_rng(seed)
    positive = rng.random(count) < 0.4
    rows = rng.normal(size=(count, dim)) + 0.6 * positive[:, None]
    return normalised(torch.tensor(rows)), positive


def direct(cost, **options) -> LinearSVC:
    """The machine of VISSL's protocol."""
    weights = {1: 2, -1: 1}
    fixed = {"loss": "squared_hinge", "penalty": "l2", "dual": True, "intercept_scaling": 1}
    fixed |= {"tol": 1e-4, "max_iter": 2000, "random_state": 0}
    return LinearSVC(C=cost, class_weight=weights, **(fixed | options))


def test_features_are_divided_by_their_length():
    rows = normalised(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.dtype == np.float64
    np.testing.assert_allclose(rows, [[3 / 5.00001, 4 / 5.00001], [0, 0]])


def test_the_cost_is_that_of_scikit_learns_cross_validation():
    rows, positive = problem()
    labels, costs = np.where(positive, 1, -1), [0.01, 0.1, 1.0, 5.0]
    found = [
        cross_val_score(direct(cost), rows, labels, cv=3, scoring="average_precision").mean()
        for cost in costs
    ]
    chosen = Machines(costs).choose_cost(rows, positive)
    assert chosen == costs[int(np.argmax(found))] and len(set(found)) > 1


@pytest.mark.parametrize("dim", [8, 40, 300], ids=["tall", "wide", "in-the-span"])
def test_decisions_are_those_of_liblinear(dim):
    rows, positive = problem(dim=dim)
    val = problem(20, dim, seed=1)[0]
    machine = direct(0.5).fit(rows, np.where(positive, 1, -1))
    found = Machines([0.5]).decide(rows, positive, val)
    np.testing.assert_allclose(found, machine.decision_function(val), atol=1e-9)


@pytest.mark.parametrize("positives, fits", [(3, 9), (2, 6), (1, 0)])
def test_few_positives_give_fewer_folds(positives, fits):
    rows, _ = problem(12)
    machines = Machines([10.0, 0.1, 1.0])
    cost = machines.choose_cost(rows, np.arange(12) < positives)
    assert machines.fits == fits and cost in machines.costs
    assert fits or cost == 1.0


def test_fits_that_stop_early_are_counted(monkeypatch):
    monkeypatch.setattr(support_vectors, "ITERATIONS", 1)
    machines = Machines([0.1, 1000.0])
    machines.decide(*problem(), problem()[0])
    assert machines.fits == 7 and machines.unfinished == 7
    assert "7 of 7 fits stopped at 1 iterations" in machines.notes()[0]
    assert Machines([1.0]).notes() == []


# ------------------------------------------------------------------------------- the evaluation


class Embedded(RawPixels):
    """The colours of the first pixels as features: the second class is seen, with noise."""

    def embed(self, images, *, layers=False):
        return {"features": images[:, :, :3, :3].flatten(1).float()}


def source(count, seed) -> Noise:
    """Images of two classes; a bright corner tells the first, some of whose objects are hard."""
    rng = np.random.default_rng(seed)
    made = Noise(count, seed)
    made.classes = ["a", "b"]
    made.tags = (rng.random((count, 2)) < 0.4).astype(np.int8)
    made.tags[:2] = [[1, 1], [0, 0]]
    shift = 30 * made.tags[:, 0].astype(int)
    made.arrays = (made.arrays // 2 + shift[:, None, None, None]).astype(np.uint8)
    made.tags[np.flatnonzero(made.tags[:, 0] == 1)[1::2], 0] = -1
    return made


def probe_of(train=None, val=None):
    candidates = [network(), network("untrained", baseline=True), Embedded()]
    found = made(candidates, train or source(60, 0), val or source(40, 1))
    found.classes = ["a", "b"]
    return found


def entry(result, row, candidate):
    return next(one for one in result.entries if (one.row, one.candidate) == (row, candidate))


def value(result, row, candidate):
    return entry(result, row, candidate).scores["mAP"].value


def embedded(probe):
    """Normalised features of the candidate that sees three pixels."""
    found = []
    for images in (probe.train, probe.val):
        shown = [shown for shown, _ in probe.images(images, view="squash", size=32)]
        found.append(normalised(Embedded().embed(torch.cat(shown))["features"]))
    return found


@pytest.mark.parametrize("difficult", ["negative", "ignore"])
def test_difficult_images_train_as_negatives_or_not_at_all(difficult):
    probe = probe_of()
    result = Svm(costs=[1.0], difficult=difficult).measure(probe)
    tags, shown = probe.train.tags[:, 0], probe.val.tags[:, 0]
    assert (tags == -1).sum() > 5 and (shown == -1).sum() > 3
    train, val = embedded(probe)
    rows = tags != -1 if difficult == "ignore" else tags != 2
    labels = np.where(tags[rows] == 1, 1, -1)
    decided = direct(1.0).fit(train[rows], labels).decision_function(val)
    expected = Ranking(decided, shown).average_precision("envelope")
    assert value(result, "a", "raw pixels") == pytest.approx(expected, abs=1e-9)
    assert result.protocol["difficult_in_training"] == difficult
    assert result.protocol["difficult_in_validation"] == "ignore"


def test_map_is_the_mean_over_classes_and_chance_is_prevalence():
    probe = probe_of()
    result = Svm(costs=[1.0]).measure(probe)
    assert result.metrics[0].name == "mAP"
    rows = [one.row for one in result.entries if one.candidate == "trained"]
    assert rows == ["all classes", "a", "b"]
    for name in ("trained", "untrained", "raw pixels", "chance"):
        classes = [value(result, "a", name), value(result, "b", name)]
        assert value(result, "all classes", name) == pytest.approx(np.mean(classes))
    tags = probe.val.tags
    for number, name in enumerate("ab"):
        expected = (tags[:, number] == 1).sum() / (tags[:, number] != -1).sum()
        assert value(result, name, "chance") == pytest.approx(expected)
    ours = entry(result, "all classes", "trained")
    low, high, of = ours.scores["mAP"].intervals[0].__dict__.values()
    assert 0 < low < high < 1 and of == "40 images, bootstrap of 1000"
    assert set(ours.differences) == {"untrained", "raw pixels", "chance"}
    same = ours.differences["untrained"]["mAP"]
    assert (same.low, same.high) == (0, 0)


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_named(rule):
    assert Svm(costs=[1.0], ap=rule).measure(probe_of()).protocol["average_precision"] == rule


def test_every_layer_is_scored_against_the_same_of_the_baselines():
    result = Svm(costs=[1.0], layers="all").measure(probe_of())
    keys = [(one.row, one.candidate) for one in result.entries]
    expected = [(row, name) for row in ("features", "conv") for name in ("trained", "untrained")]
    assert sorted(map(str, keys)) == sorted(
        map(str, [*expected, (None, "raw pixels"), (None, "chance")])
    )
    assert set(entry(result, "conv", "trained").differences) == {
        "untrained",
        "raw pixels",
        "chance",
    }


@pytest.mark.parametrize(
    "split, tag, sentence",
    [
        ("train", 0, "no training image shows the class b"),
        ("train", -1, "no training image shows the class b"),
        ("val", 0, "no validation image shows the class b"),
        ("train", 1, "every training image shows the class b"),
    ],
    ids=["no-positive", "difficult-only", "none-to-validate", "no-negative"],
)
@pytest.mark.parametrize("low_shot", [False, True])
def test_one_sided_classes_are_refused_before_embedding(split, tag, sentence, low_shot):
    probe = probe_of()
    getattr(probe, split).tags[:, 1] = tag
    probe.candidates[0].embed = None
    with pytest.raises(DataError, match=sentence):
        Svm(low_shot=low_shot).measure(probe)


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"shots": [1]}, "--shots  is an option of --low-shot only"),
        ({"samples": 2}, "--samples  is an option of --low-shot only"),
        ({"low_shot": True, "layers": "all"}, "--layers  --low-shot scores the last layer only"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(RecipeError, match=fault):
        Svm(**options)


@pytest.mark.parametrize("costs", ["[]", "[0]", "few"])
def test_costs_are_positive_numbers(costs):
    with pytest.raises(RecipeError, match="--costs"):
        recipe.read_evaluation("svm", {"costs": costs})


# ------------------------------------------------------------------------------------ low-shot


def test_a_sample_has_k_positives_and_nineteen_times_as_many_others():
    tag = np.random.default_rng(0).choice([1, 0, 0, 0, -1], 1000).astype(np.int8)
    rows = {k: draw_few(tag, k, [0, 0]) for k in (1, 2, 8)}
    for k, drawn in rows.items():
        assert (tag[drawn] == 1).sum() == k and (tag[drawn] == 0).sum() == 19 * k
        assert len(set(drawn)) == 20 * k
    assert set(rows[1]) < set(rows[2]) < set(rows[8])
    assert np.array_equal(rows[2], draw_few(tag, 2, [0, 0]))
    others = draw_few(tag, 2, [1, 0]), draw_few(tag, 2, [0, 1])
    assert not any(np.array_equal(rows[2], other) for other in others)


def test_too_few_negatives_are_all_used():
    tag = np.array([1] * 5 + [0] * 7, np.int8)
    assert (tag[draw_few(tag, 2, [0])] == 0).sum() == 7


def test_shots_that_a_class_lacks_are_left_out():
    tags = np.zeros((200, 2), np.int8)
    tags[:30, 0] = tags[:5, 1] = 1
    shots, notes = possible([1, 4, 8, 96], tags, ["a", "b"])
    assert shots == [1, 4]
    assert notes[0].startswith("not measured: k = 8, 96, because the class b has only 5 positive")
    with pytest.raises(DataError, match="the class b has only 5 positive training images"):
        possible([8], tags, ["a", "b"])


@pytest.fixture(scope="module")
def few():
    """Two shots and three samples on the embedded probe."""
    return Svm(costs=[1.0], low_shot=True, shots=[4, 1, 100], samples=3).measure(probe_of())


def test_low_shot_has_a_row_per_number_of_shots(few):
    rows = list(dict.fromkeys(one.row for one in few.entries))
    assert rows == ["k = 1", "k = 4", None]
    score = entry(few, "k = 4", "raw pixels").scores["mAP"]
    assert len(score.values) == 3 and len(set(score.values)) == 3
    assert few.protocol["shots"] == [1, 4] and few.protocol["negatives_per_positive"] == 19
    assert few.protocol["difficult_in_training"] == "ignore"
    notes = " ".join(few.protocol["notes"])
    assert "k = 100" in notes and "negatives; samples that need more" in notes


def test_low_shot_trains_on_the_samples(few):
    probe = probe_of()
    train, val = embedded(probe)
    for sample in range(3):
        decided = []
        for number, tag in enumerate(probe.train.tags.T):
            rows = draw_few(tag, 4, [sample, number])
            machine = direct(1.0).fit(train[rows], np.where(tag[rows] == 1, 1, -1))
            decided.append(machine.decision_function(val))
        expected = average_precisions(np.stack(decided, 1), probe.val.tags, "envelope")(None).mean()
        found = entry(few, "k = 4", "raw pixels").scores["mAP"].values[sample]
        assert found == pytest.approx(expected, abs=1e-9)


def test_low_shot_differences_are_paired_by_sample(few):
    ours, theirs = (entry(few, "k = 4", name) for name in ("trained", "raw pixels"))
    found = ours.differences["raw pixels"]["mAP"]
    change = np.subtract(ours.scores["mAP"].values, theirs.scores["mAP"].values)
    margin = 4.303 * change.std(ddof=1) / math.sqrt(3)
    assert [found.low, found.high] == pytest.approx(
        [change.mean() - margin, change.mean() + margin]
    )
    assert found.of == "3 samples, paired"
    assert ours.scores["mAP"].intervals[0].of == "3 samples"


def test_low_shot_draws_curves(few):
    (figure,) = few.figures
    assert figure.log and list(figure.lines) == ["trained", "untrained", "raw pixels", "chance"]
    xs, ys = figure.lines["trained"]
    assert xs == [1, 4]
    assert ys == pytest.approx([100 * value(few, f"k = {k}", "trained") for k in (1, 4)])


def test_low_shot_of_features_that_are_not_finite_is_a_dash(capsys):
    class Broken(RawPixels):
        def embed(self, images, *, layers=False):
            return {"features": torch.full((len(images), 2), torch.nan)}

    probe = probe_of()
    probe.candidates[2] = Broken()
    choice = recipe.read_evaluation("svm", {"low_shot": True, "shots": "[1]", "costs": "[1]"})
    result = store.run(choice, probe)
    console.print_result(result)
    assert re.search(r"raw pixels +-\s", capsys.readouterr().out)
    assert [None] in [ys for _, ys in result["figures"][0]["lines"].values()]


# --------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return random_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder) -> Path:
    """A run of zero steps on the folder, without its labels."""
    place = tmp_path_factory.mktemp("runs") / "run"
    place.mkdir()
    text = NPID.format(root=folder).replace("image_folder", "voc")
    (place / "recipe.yaml").write_text(text)
    checkpoint.save(training.build(recipe.read(place / "recipe.yaml")), place)
    return place


def test_coloured_squares_are_found(run, folder):
    before = copy.deepcopy(sorted(run.rglob("*")))
    result = evaluated("svm", run, "--data", folder, "--costs", "[0.1,1]")
    assert result["evaluation"] == "svm" and result["metrics"][0]["name"] == "mAP"
    found = {(one["row"], one["candidate"]): one["scores"]["mAP"] for one in result["entries"]}
    assert {"all classes", "a", "b"} == {row for row, _ in found}
    chance = found["all classes", "chance"]["value"]
    assert found["all classes", "raw pixels"]["value"] > chance + 0.1
    stated = result["protocol"]
    assert stated["costs"] == [0.1, 1.0] and stated["view"].startswith("squash")
    assert list(stated["chosen_costs"]) == ["features trained", "features untrained", "raw pixels"]
    assert set(stated["chosen_costs"]["raw pixels"]) == {"a", "b"}
    assert set(stated["chosen_costs"]["raw pixels"].values()) <= {0.1, 1.0}
    assert stated["val_images"] == 24 and stated["val_fingerprint"]
    new = {path.name for path in set(run.rglob("*")) - set(before)}
    assert new == {"eval", "svm.json", "svm.png"}


def test_low_shot_from_python(run, folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = toolkit.evaluate(
            run, "svm", data=folder, low_shot=True, shots=[1, 2], samples=2, costs=[1.0]
        )
    assert result.score(row="k = 2").value > 0
    assert "k = 1" in repr(result) and "mAP" in repr(result)


@pytest.mark.parametrize(
    "break_it, sentence",
    [
        (lambda root: write_list(root, "test", []), "test.txt is empty"),
        (lambda root: write_list(root, "test", ["nothing"]), "names nothing, but JPEGImages"),
        (
            lambda root: write_image(root, "test003", [("zebra", (1, 1, 9, 9), False)]),
            "no training image shows the class zebra",
        ),
        (
            lambda root: (root / "Annotations" / "test003.xml").write_text("<annotation>"),
            "test003.xml cannot be used",
        ),
        (lambda root: shutil.rmtree(root / "Annotations"), "have no tags"),
    ],
    ids=["empty-list", "no-image", "no-positive", "broken-xml", "no-annotations"],
)
def test_a_broken_folder_is_one_sentence(run, folder, tmp_path, break_it, sentence):
    root = tmp_path / "voc"
    shutil.copytree(folder, root)
    break_it(root)
    code, _, err = sslkit("eval", "svm", run, "--data", root, "--out", tmp_path / "out")
    lines = [line for line in err.splitlines() if not line.startswith("in ")]
    assert code == 2 and len(lines) == 1 and sentence in lines[0]
    assert not (tmp_path / "out").exists()


def test_labels_are_not_tags(run, tmp_path):
    np.savez(
        tmp_path / "set.npz", images=np.zeros((8, 16, 16, 3), np.uint8), labels=np.arange(8) % 2
    )
    code, _, err = sslkit("eval", "svm", run, "--data", tmp_path / "set.npz")
    assert code == 2 and "no tags" in err and "in VOC layout" in err


def test_scikit_learn_is_imported_late():
    text = "import sys, sslkit_plugins.evaluations.svm; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert json.dumps(recipe.read_evaluation("svm", {}).as_dict())
