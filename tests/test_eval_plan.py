"""`--plan`: sizes, memory and time of an evaluation, with nothing measured or written."""

import pytest
import torch
from noise import Noise, made, network
from test_evaluate import painted, sslkit, trained  # noqa: F401  (fixtures)

from sslkit import recipe
from sslkit.evaluation import memory
from sslkit.evaluation.candidates import RawPixels
from sslkit.evaluation.plan import duration, plan
from sslkit.interfaces import Work
from sslkit.recipe import registry
from sslkit_plugins.evaluations import effort
from sslkit_plugins.evaluations.knn import Knn
from sslkit_plugins.evaluations.protocols import PRESETS

CPU = torch.device("cpu")
IMAGENET = Work(
    1_281_167,
    50_000,
    1000,
    {("features", "trained"): 64, ("conv1", "trained"): 96, (None, "raw pixels"): 48},
    CPU,
    made(),
)
"""ImageNet's rows with short features, whose samples take no time."""


def planned(name="linear", probe=None, **options) -> dict[str, str]:
    return dict(plan(recipe.read_evaluation(name, options), probe or made()).lines)


def test_a_plan_names_rows_lengths_memory_and_time():
    lines = planned(layers="all")
    assert lines["rows"] == "30 training and 12 validation images, 3 classes"
    assert lines["features of trained"] == "features 4, conv 784"
    assert lines["features of raw pixels"] == "3,072"
    size = 4 * (2 * (4 + 784) + 3072) * 42 / 2**20
    assert lines["memory"].startswith(f"{size:,.1f} MiB of features, ")
    assert lines["disk"] == "none" and lines["time in total"].endswith("on cpu")
    assert "at most 75 closures for each of 8 fits" in lines["time of the evaluation itself"]


def test_a_plan_of_the_last_layer_counts_no_others():
    assert planned("knn")["features of trained"] == "features 4"


def test_a_plan_of_training_counts_its_passes():
    lines = planned(preset="pirl", seeds="2")
    assert "(56 passes over the training images)" in lines["time of further passes"]
    assert "28 epochs × 2 seeds" in lines["time of the evaluation itself"]
    assert lines["memory"].startswith("0.0 MiB of features")


def test_features_beyond_the_memory_are_planned_on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "total", lambda: 2**20)
    monkeypatch.delenv("TMPDIR", raising=False)
    probe = made()
    probe.home = tmp_path
    lines = planned("knn", probe, layers="all")
    assert lines["disk"] == f"0.4 MiB of features in float16, in {tmp_path}, deleted at the end"
    assert not list(tmp_path.iterdir())


def test_a_plan_reads_two_batches_and_fits_no_statistics():
    train = Noise(500)
    probe = made([network("untrained", fits=True), RawPixels()], train=train)
    planned("knn", probe)
    assert 32 <= len(train.decoded) <= 64 and probe.candidates[0].unfitted()


@pytest.mark.parametrize(
    "part", [pytest.param(part, id=part.name) for part in registry.parts("evaluations")]
)
def test_every_evaluation_can_be_asked(part):
    if part.signature().attributes.get("needs", "labels") != "labels":
        pytest.skip("needs no labels, or more")
    assert "time to read and embed" in planned(part.name)


@pytest.fixture
def timeless(monkeypatch):
    """Every sample takes a second."""
    monkeypatch.setattr(effort, "seconds", lambda work, device: 1.0)


def test_long_fits_are_advised_against(timeless):
    found = effort.regression(IMAGENET, layers=True)
    assert found.seconds > effort.LONG
    assert found.notes == (
        "long; use a GPU (--device cuda), a preset by SGD (--preset moco), or fewer images "
        "(--data with a subset of the class folders)",
    )
    assert not effort.regression(IMAGENET._replace(train=300, classes=3), layers=True).notes


def test_estimates_grow_with_the_rows(timeless):
    for estimate in (
        lambda work: effort.regression(work, layers=False),
        lambda work: effort.training(work, PRESETS["moco"], 1, layers=False),
        Knn().estimate,
    ):
        one, ten = (estimate(IMAGENET._replace(train=rows)) for rows in (30_000, 300_000))
        assert ten.seconds / one.seconds == pytest.approx(10, rel=0.05)
        assert ten.bytes < 30 * one.bytes, "nothing quadratic"


def test_the_command_plans_and_writes_nothing(trained, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    words = ("--layers", "all", "--preset", "pirl", "--plan", "--out", out)
    code, shown, err = sslkit("eval", "linear", trained, *words)
    assert code == 0, err
    assert "features of untrained" in shown and "time in total" in shown
    assert not out.exists() and "written" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5.0 seconds"), (150, "2.5 minutes"), (9000, "2.5 hours"), (864_000, "10.0 days")],
)
def test_durations_are_told_in_the_largest_unit(seconds, text):
    assert duration(seconds) == text
