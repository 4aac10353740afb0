"""`--plan`: sizes, memory and time of an evaluation, with nothing measured or written."""

import numpy as np
import pytest
import torch
from noise import Noise, made, network
from test_evaluate import painted, sslkit, trained  # noqa: F401  (fixtures)

from sslkit import memory, recipe
from sslkit.evaluation.candidates import RawPixels
from sslkit.evaluation.plan import duration, plan
from sslkit.interfaces import Work
from sslkit.recipe import registry
from sslkit_plugins.evaluations import effort, few_shots, step_cost, svm_cost
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
def test_every_evaluation_is_planned(part):
    if part.signature().attributes.get("needs", "labels") == "boxes":
        pytest.skip("the pictures have no boxes")
    lines = planned(part.name)
    assert "time to read and embed" in lines
    if part.distribution == "sslkit":
        assert "time in total" in lines


def test_fine_tuning_is_planned_from_its_steps():
    """50 % of 30 images of three classes are 15; batches of 5, three epochs."""
    options = {"share": "50%", "epochs": "3", "batch_size": "5", "seeds": "2"}
    found = plan(recipe.read_evaluation("finetune", options), made())
    lines = dict(found.lines)
    assert (
        "(2 seeds of 9 steps of 5 images for each encoder)"
        in lines["time of the evaluation itself"]
    )
    images = 2 * 2 * 9 * 5 + 15  # encoders × seeds × steps × batch, and raw pixels once
    assert f"({images} images)" in lines["time to decode images again"]
    assert "(2 passes over the validation images)" in lines["time of further passes"]
    assert 0 < found.seconds < 600


def test_fine_tuning_for_no_epoch_is_planned():
    lines = planned("finetune", epochs="0")
    assert "1 seed of 0 steps" in lines["time of the evaluation itself"]


def test_a_plan_changes_no_encoder():
    probe = made()
    before = {name: value.clone() for name, value in encoder_of(probe).items()}
    planned("finetune", probe, epochs="1")
    assert all(torch.equal(value, before[name]) for name, value in encoder_of(probe).items())


def encoder_of(probe) -> dict[str, torch.Tensor]:
    return probe.candidates[0].encoder.state_dict()


def test_the_cost_of_a_step_is_that_of_its_images(monkeypatch):
    """A step of four images takes 5 s, 1 s of them in the optimizer."""
    layer = torch.nn.Linear(10, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    rows = torch.ones(4, 10)

    def step():
        layer(rows).sum().backward()
        optimizer.step()

    monkeypatch.setattr(effort, "seconds", lambda work, device, warm: 5.0 if work is step else 1.0)
    cost = step_cost.measure(layer, optimizer, step, 4, CPU)
    assert (cost.update, cost.image) == (1.0, 1.0)
    assert cost.seconds(steps=7, images=16) == 7 * (1 + 16)
    parameters = 4 * 33
    assert cost.weights == 3 * parameters, "weights, gradients, momentum"
    assert cost.activations == rows.nbytes / 4
    assert cost.bytes(16) == 3 * parameters + 16 * 40


def test_fits_of_machines_grow_with_rows_and_folds():
    """Measured: 2 s for both costs on 10 rows of 4 numbers."""
    cost = svm_cost.FitCost(rows=10, width=4, narrow=2.0, factor=1.0, rotation=0.0, costs=2)
    assert cost.seconds(10) == 2 * 2.0 + 2.0 / 2, "three folds of two thirds, and one more fit"
    assert cost.seconds(100) == 10 * cost.seconds(10)
    assert cost.seconds(10, folds=1) == 1.0


def test_fits_of_wide_features_cost_as_much_as_their_span():
    """On 10 rows of 110 numbers, a fit takes 11 times as long as on 10 numbers."""
    cost = svm_cost.FitCost(rows=10, width=110, narrow=1.0, factor=11.0, rotation=0.5, costs=1)
    assert cost.seconds(10) == 1.0 + 0.5
    assert cost.seconds(20) == (1 + 10 * 0.1) * 2 + 0.5 * 4
    assert cost.seconds(1000) == 11 * 100, "no rotation"


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, "11 costs for each of 3 classes, timed on 30 images"),
        ({"costs": "[1, 2]", "low_shot": "true", "shots": "[1, 2]"}, "2 numbers of shots"),
    ],
    ids=["all images", "low-shot"],
)
def test_support_vector_machines_are_planned_from_fits(options, how):
    found = plan(recipe.read_evaluation("svm", options), made())
    assert how in dict(found.lines)["time of the evaluation itself"]
    assert found.seconds > 0 and found.memory > 0


def test_low_shot_samples_have_the_negatives_that_there_are():
    assert few_shots.negatives(2, np.array([12, 100])) == (12 + 38) / 2


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


def test_passes_of_images_and_crops_are_counted():
    """30 training images once, and ten crops of each; 12 validation images and transforms."""
    assert "(11 passes over the training images)" in planned("quality")["time of further passes"]
    lines = planned("invariance")
    assert "(9 passes over the validation images)" in lines["time of further passes"]
    assert lines["memory"].startswith("0.0 MiB of features")
    assert "7 transforms of 12 images" in planned("copies")["time of the evaluation itself"]


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
