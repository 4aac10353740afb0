"""Scores, intervals and paired differences by hand; the JSON, tables and pictures made of them."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from sslkit import console
from sslkit.errors import PluginError, SslkitError
from sslkit.evaluation import bootstrap
from sslkit.evaluation.intervals import newcombe, student, t_95, wilson
from sslkit.evaluation.result import UNCHANGED, difference, document, outcome_fault, score
from sslkit.evaluation.store import write
from sslkit.interfaces import Curves, Entry, Histogram, Interval, Metric, Result, Score
from sslkit.report import results
from sslkit.report.tables import tables

TOP_1 = Metric("top-1", "%")
WIDTH = Metric("width", better="lower")


def hits(text: str) -> np.ndarray:
    """ "1101" → which images are hits."""
    return np.array([letter == "1" for letter in text])


# -------------------------------------------------------------------------------- intervals


def test_wilson_by_hand():
    """8 of 10: (0.8 + 0.19207) / 1.38415 ± …, as in Newcombe 1998, table I, method 3."""
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1), abs=1e-4)


def test_student_by_hand():
    """70, 80, 90: 80 ± 4.303 · 10 / √3."""
    assert student([70, 80, 90]) == pytest.approx((55.157, 104.843), abs=1e-3)


@pytest.mark.parametrize(
    "freedom, quantile", [(1, 12.706), (2, 4.303), (9, 2.262), (10, 2.228), (20, 2.086), (60, 2.0)]
)
def test_quantiles_of_student(freedom, quantile):
    assert t_95(freedom) == pytest.approx(quantile, abs=1e-3)


@pytest.mark.parametrize(
    "table, low, high",
    [((36, 12, 2, 0), 0.0569, 0.3404), ((1, 1, 7, 12), -0.507, -0.0256)],
    ids=["newcombe-1998", "bentur-2009"],
)
def test_newcombe_as_published(table, low, high):
    assert newcombe(*table) == pytest.approx((low, high), abs=1e-3)


def test_newcombe_turns_its_sign_with_the_order():
    low, high = newcombe(30, 12, 5, 13)
    assert newcombe(30, 5, 12, 13) == pytest.approx((-high, -low))


def test_no_disagreement_is_no_certainty():
    low, high = newcombe(9, 0, 0, 9)
    assert low == -high and high > 0.05


def test_bootstrap_of_a_mean_is_near_students():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap(lambda rows: values[rows].mean(), len(values))
    assert (found.low, found.high) == pytest.approx(student(values.tolist()), abs=0.03)
    assert found.of == "400 images, bootstrap of 1000"


def test_bootstrap_resamples_whole_groups():
    """Two images a group, always alike: half as many values, an interval √2 times as wide."""
    values = np.random.default_rng(1).normal(0, 1, 200).repeat(2)
    groups = np.arange(200).repeat(2)
    by_image = bootstrap(lambda rows: values[rows].mean(), 400)
    by_group = bootstrap(lambda rows: values[rows].mean(), 400, groups=groups)
    ratio = (by_group.high - by_group.low) / (by_image.high - by_image.low)
    assert ratio == pytest.approx(math.sqrt(2), rel=0.1)
    assert by_group.of == "200 groups, bootstrap of 1000"


def test_bootstrap_of_few_groups_is_none():
    assert bootstrap(lambda rows: 1.0, 90, groups=["a", "b", "c"] * 30) is None


# ----------------------------------------------------------------------- outcomes → scores


def test_hits_are_a_share_with_wilsons_interval():
    found = score([hits("1111111100")], TOP_1)
    assert found.value == 0.8
    (interval,) = found.intervals
    assert (interval.low, interval.high) == pytest.approx(wilson(0.8, 10))
    assert interval.of == "10 images"


def test_the_type_decides_not_the_values():
    """60 distances of 0 are a mean, not a share."""
    (interval,) = score([np.zeros(60)], WIDTH).intervals
    assert (interval.low, interval.high) == (0, 0)
    assert score([torch.zeros(60, dtype=torch.bool)], TOP_1).intervals[0].high > 0.05


def test_values_of_few_images_have_no_interval():
    assert score([np.arange(9.0)], WIDTH).intervals == ()
    assert len(score([np.arange(10.0)], WIDTH).intervals) == 1


def test_several_seeds_add_an_interval_over_seeds():
    found = score([hits("1100"), hits("1110")], TOP_1)
    assert found.values == (0.5, 0.75) and found.value == 0.625
    images, seeds = found.intervals
    assert (images.low, images.high) == pytest.approx(wilson(0.625, 4))
    assert (seeds.low, seeds.high, seeds.of) == (0.0, 1.0, "2 probe seeds"), "kept within 0 … 1"


def test_a_number_has_no_interval_and_a_score_keeps_its_own():
    assert score([0.3], WIDTH) == Score((0.3,))
    own = Score((0.3,), (Interval(0.1, 0.5, "12 groups"),))
    assert score([own], WIDTH) == own


def test_nan_has_no_interval():
    assert score([np.full(20, np.nan)], WIDTH).intervals == ()
    assert score([math.nan, math.nan], WIDTH).intervals == ()


def test_groups_are_resampled():
    found = score([hits("10" * 20)], TOP_1, groups=list(range(20)) * 2)
    assert found.intervals[0].of == "20 groups, bootstrap of 1000"


def test_paired_hits_use_the_table_of_agreement():
    ours, theirs = hits("1111110000"), hits("1110001000")
    found = difference([ours], [theirs])
    assert (found.low, found.high) == pytest.approx(newcombe(3, 3, 1, 3))
    assert found.of == "10 images, paired"


def test_equal_hits_say_that_no_image_differs():
    found = difference([hits("1100")], [hits("1100")])
    assert found.of == UNCHANGED and found.low < 0 < found.high


def test_paired_values_use_the_differences():
    ours = np.arange(10.0)
    found = difference([ours + 2 + np.array([0.5, -0.5] * 5)], [ours])
    assert (found.low, found.high) == pytest.approx(student([2.5, 1.5] * 5))


def test_numbers_have_no_paired_difference():
    assert difference([0.3], [0.2]) is None
    assert difference([Score((0.3,))], [hits("1")]) is None


@pytest.mark.parametrize(
    "outcomes, sentence",
    [
        ([], "not a dict"),
        ({"top-1": 1.0, "loss": 2.0}, "for the metrics ['top-1']"),
        ({"top-1": "good"}, "neither a number, nor an array, nor a Score"),
        ({"top-1": np.ones(3)}, "has outcomes [3] for 4 images"),
        ({"top-1": np.ones((4, 2))}, "has outcomes [4, 2] for 4 images"),
    ],
    ids=["list", "unknown", "text", "short", "matrix"],
)
def test_wrong_outcomes_are_named(outcomes, sentence):
    assert sentence in outcome_fault(outcomes, ["top-1"], 4)


def test_a_tensor_without_dimensions_is_a_number():
    outcome = torch.tensor([0.25, 0.75]).mean()
    assert outcome_fault({"top-1": outcome}, ["top-1"], 4) is None
    assert score([outcome], TOP_1) == Score((0.5,))
    assert difference([outcome], [outcome]) is None


# ------------------------------------------------------------------------------------- JSON


def entry(row, candidate, value, spread=0.05, differences=None) -> Entry:
    interval = Interval(value - spread, value + spread, "200 images")
    return Entry(row, candidate, {"top-1": Score((value,), (interval,))}, differences or {})


def result(*entries, metrics=(TOP_1,), figures=(), **protocol) -> Result:
    stated = [
        {"name": "trained", "baseline": False, "size": 64},
        {"name": "untrained", "baseline": True, "size": 64},
        {"name": "raw pixels", "baseline": True, "size": 32},
    ]
    facts = {"train_images": 550, "val_images": 200, "classes": 10, "candidates": stated}
    return Result(metrics, list(entries), {**facts, **protocol}, list(figures))


PAIRED = {"untrained": {"top-1": Interval(-0.02, 0.08, "200 images, paired")}}
ONE_ROW = result(
    entry("features", "trained", 0.452, differences=PAIRED),
    entry("features", "untrained", 0.42),
    entry(None, "raw pixels", 0.4),
    Entry(None, "chance", {"top-1": Score((0.1,))}),
)
LAYERS = result(
    entry("features", "trained", 0.452, differences=PAIRED),
    entry("conv1", "trained", 0.6, differences=PAIRED),
    entry("features", "untrained", 0.42),
    entry("conv1", "untrained", 0.57),
    entry(None, "raw pixels", 0.4),
    Entry(None, "chance", {"top-1": Score((0.1,))}),
)
HISTOGRAM = Histogram("distances", "distance", [0.0, 1.0, 2.0], {"trained": [3, 4]})
CURVES = Curves("shots", "images", "top-1", {"trained": ([1, 10], [0.2, 0.4])}, log=True)


def plain(made: Result) -> dict:
    return document(made, "linear", "evaluation 'linear' of x 1.0")


def test_the_json_holds_everything_and_no_nan():
    made = plain(
        result(
            Entry("a", "trained", {"top-1": Score((math.nan, 0.5))}),
            figures=[HISTOGRAM, CURVES],
            share=np.float32(0.5),
            counts=np.arange(2),
            root=Path("images"),
        )
    )
    assert set(made) == {"format", "evaluation", "metrics", "entries", "figures", "protocol"}
    assert made["format"] == 1 and made["evaluation"] == "linear"
    assert made["entries"][0]["scores"]["top-1"]["values"] == [None, 0.5]
    assert made["entries"][0]["scores"]["top-1"]["value"] is None
    assert made["protocol"]["share"] == 0.5 and made["protocol"]["counts"] == [0, 1]
    assert made["protocol"]["root"] == "images"
    assert [figure["kind"] for figure in made["figures"]] == ["histogram", "curves"]
    assert json.loads(json.dumps(made, allow_nan=False)) == made


@pytest.mark.parametrize(
    "made, sentence",
    [
        ({"top1": 1}, "'dict' instead of a Result"),
        (result(entry("a", "b", 0.1), metrics=()), "no metrics"),
        (result(), "no entries"),
        (result(Entry("a", "b", {"auc": Score((1.0,))})), "a score 'auc' of b in row 'a'"),
        (result(Entry("a", "b", {"top-1": 0.3})), "no Score with values for 'top-1'"),
        (result(Entry("a", "b", {"top-1": Score(("x",))})), "that are not numbers"),
        (result(entry("a", "b", 0.1), figures=["x.png"]), "neither Histogram nor Curves"),
        (
            result(entry("a", "b", 0.1), figures=[Histogram("h", "x", [0.0], {"t": [1]})]),
            "whose counts are not one fewer than edges",
        ),
        (result(entry("a", "b", 0.1), device=object()), "a protocol that JSON cannot hold"),
    ],
    ids=["dict", "metrics", "entries", "unknown", "float", "text", "figure", "edges", "protocol"],
)
def test_a_wrong_result_is_refused_in_one_sentence(made, sentence):
    with pytest.raises(PluginError) as caught:
        plain(made)
    assert str(caught.value).startswith("evaluation 'linear' of x 1.0 returned ")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_result_of_another_protocol_is_kept(tmp_path):
    pictures = []
    for k, value in ((20, 0.5), (20, 0.51), (200, 0.4)):
        write(tmp_path / "eval", plain(result(entry("features", "trained", value), k=k)))
        pictures.append((tmp_path / "eval" / "linear.png").read_bytes())
    held = {}
    for path in (tmp_path / "eval").glob("*.json"):
        found = json.loads(path.read_text())
        held[path.name] = found["protocol"]["k"], found["entries"][0]["scores"]["top-1"]["value"]
    assert held == {"linear.json": (200, 0.4), "linear.1.json": (20, 0.51)}
    assert sorted(path.name for path in (tmp_path / "eval").glob("*.png")) == [
        "linear.1.png",
        "linear.png",
    ]
    assert (tmp_path / "eval" / "linear.1.png").read_bytes() == pictures[1]
    assert (tmp_path / "eval" / "linear.png").read_bytes() == pictures[2] != pictures[1]


# ----------------------------------------------------------------------------------- tables


def test_one_row_gives_candidates_by_metrics():
    (table,) = tables(plain(ONE_ROW))
    assert table.title == "linear: 550 training and 200 validation images, 10 classes"
    one = result(entry("features", "trained", 0.4), classes=1)
    assert tables(plain(one))[0].title.endswith("200 validation images, 1 class")
    assert table.columns == ("", "top-1 % ↑", "trained − other, top-1")
    assert table.rows == [
        ("trained", "45.2 [40.2, 50.2]", ""),
        ("untrained", "42.0 [37.0, 47.0]", "+3.2 [-2.0, 8.0]"),
        ("raw pixels", "40.0 [35.0, 45.0]", ""),
        ("chance", "10.0", ""),
    ]
    assert table.below[0] == "[low, high]: 95 % CI over 200 images"


def test_several_rows_give_rows_by_candidates():
    (table,) = tables(plain(LAYERS))
    assert table.columns == ("", "trained", "untrained", "trained − untrained")
    assert table.rows[1] == ("conv1", "60.0 [55.0, 65.0]", "57.0 [52.0, 62.0]", "+3.0 [-2.0, 8.0]")
    assert table.below[:2] == ["raw pixels: 40.0 [35.0, 45.0]", "chance: 10.0"]


def test_the_widest_interval_is_shown_and_says_of_what():
    images, seeds = Interval(0.4, 0.6, "200 images"), Interval(0.3, 0.7, "2 probe seeds")
    wide = Entry("features", "trained", {"top-1": Score((0.4, 0.6), (images, seeds))})
    (table,) = tables(plain(result(entry("features", "untrained", 0.42), wide)))
    assert table.rows[0] == ("trained", "50.0 [30.0, 70.0]")
    assert table.rows[1] == ("untrained", "42.0 [37.0, 47.0]*")
    assert table.below == ["[low, high]: 95 % CI over 2 probe seeds; * over 200 images"]


def test_other_numbers_have_three_digits_and_nan_a_dash():
    scores = {"width": Score((1.23456,)), "depth": Score((math.nan,))}
    metrics = (WIDTH, Metric("depth", "m", better="neither"))
    (table,) = tables(plain(result(Entry(None, "trained", scores), metrics=metrics)))
    assert table.columns == ("", "width ↓", "depth m")
    assert table.rows == [("trained", "1.235", "-")]
    (explanation,) = table.below
    assert explanation.startswith("-: not a finite number, for example because features are")


def test_no_image_differs_is_said():
    same = {"untrained": {"top-1": Interval(-0.01, 0.01, UNCHANGED)}}
    made = result(
        entry("features", "trained", 0.4, differences=same), entry("features", "untrained", 0.4)
    )
    assert tables(plain(made))[0].rows[1][-1] == "0.0 [-1.0, 1.0], no image differs"


def test_the_console_prints_the_tables(capsys):
    console.print_result(plain(LAYERS))
    out = capsys.readouterr().out
    assert out.startswith("linear: 550 training")
    assert "conv1" in out and "chance: 10.0" in out and "over 200 images" in out


# --------------------------------------------------------------------------------- pictures


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    kept = []
    save = results.save

    def keep(figure, path, option=""):
        kept.append(figure)
        return save(figure, path, option)

    monkeypatch.setattr(results, "save", keep)
    return kept


def test_bars_show_every_row_and_candidate(tmp_path, drawn):
    results.picture(plain(LAYERS), tmp_path / "linear.png")
    (axes,) = drawn[0].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        "features   trained",
        "untrained",
        "conv1   trained",
        "untrained",
        "raw pixels",
        "chance",
    ]
    assert [text.get_text() for text in axes.texts] == [
        "45.2",
        "42.0",
        "60.0",
        "57.0",
        "40.0",
        "10.0",
    ]
    colours = [bar.get_facecolor()[:3] for bar in axes.patches]
    grey = [red == green == blue for red, green, blue in colours]
    assert grey == [False, True, False, True, True, True]
    assert "95 % CI over 200 images" in axes.get_xlabel()
    assert axes.get_xlim() == (0, 100)


def test_axes_end_where_the_metric_ends(tmp_path, drawn):
    metric = Metric("top-1", low=-1, high=1)
    scores = {"top-1": Score((-0.3,))}
    made = result(Entry("features", "trained", scores), metrics=(metric,))
    results.picture(plain(made), tmp_path / "x.png")
    assert drawn[0].axes[0].get_xlim() == (-1, 1)


def test_figures_stand_two_abreast_below(tmp_path, drawn):
    made = plain(result(*ONE_ROW.entries, figures=[HISTOGRAM, CURVES, HISTOGRAM]))
    results.picture(copy.deepcopy(made), tmp_path / "x.png")
    bars, *others = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in others] == ["distances", "shots", "distances"]
    assert others[1].get_xscale() == "log"
    places = [axes.get_position() for axes in others]
    assert places[0].y0 == pytest.approx(places[1].y0) and places[2].y1 < places[0].y0
    assert bars.get_position().y0 > places[0].y1


def test_long_names_leave_room_for_the_bars(tmp_path, drawn):
    name = "a_run_with_a_long_name_" * 5
    rows = [Entry(f"class {row} {name}", name, {"top-1": Score((0.5,))}) for row in "ab"]
    line = replace(CURVES, lines={name: ([1, 2, 64], [0.1, 0.2, 0.3])})
    results.picture(plain(result(*rows, figures=[line])), tmp_path / "x.png")
    bars, panel = drawn[0].axes
    assert max(len(label.get_text()) for label in bars.get_yticklabels()) < 70
    assert bars.get_position().width > 0.3
    assert {"1", "2", "50"} <= {label.get_text() for label in panel.get_xticklabels()}
    assert panel.get_legend() is None and len(drawn[0].legends) == 1


def test_a_picture_has_at_most_thirty_rows(tmp_path, drawn):
    rows = [Entry(f"class {number}", "trained", {"top-1": Score((0.5,))}) for number in range(500)]
    results.picture(plain(result(*rows)), tmp_path / "x.png")
    axes = drawn[0].axes[0]
    assert len(axes.patches) == 30 and "30 of 500 rows" in axes.get_xlabel()


def test_nan_is_drawn_as_a_dash(tmp_path, drawn):
    made = plain(result(Entry("features", "trained", {"top-1": Score((math.nan,))})))
    results.picture(made, tmp_path / "x.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["-"]


def test_a_folder_in_the_way_leaves_nothing_behind(tmp_path):
    (tmp_path / "linear.png").mkdir()
    with pytest.raises(SslkitError, match="cannot write"):
        results.picture(plain(ONE_ROW), tmp_path / "linear.png")
    assert [path.name for path in tmp_path.iterdir()] == ["linear.png"]
