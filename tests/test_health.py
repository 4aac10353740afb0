"""How a run is judged by its numbers."""

import math

import pytest

from sslkit.runs.metrics import Row
from sslkit.training import trainer
from sslkit.training.health import Health
from sslkit_plugins.methods.pirl import Pirl


def watched(*losses, expected=10.0, chances=None, steps=100, first=1, filled=False, **metrics):
    """A run of these losses; `std` is the feature_std of each step, other metrics have names."""
    chances = {"loss": 10.0} if chances is None else chances
    health = Health(expected, steps, chances=chances, filled=filled)
    for number, loss in enumerate(losses):
        known = {name: values[number] for name, values in metrics.items()}
        if "std" in known:
            known["feature_std/image"] = known.pop("std")
        health.add(Row(first + number, 1, 0.1, loss, known))
    return health


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (10.2, "as expected"),
        (15.1, "far too high"),
        (4.9, "far too low"),
        (14.9, "as expected"),
        (5.1, "as expected"),
    ],
)
def test_the_first_loss_is_compared_with_that_of_random_vectors(loss, sentence):
    said = watched(loss).start()
    assert sentence in said and f"loss {loss:.2f}" in said and "10.00 expected" in said


@pytest.mark.parametrize(
    ("loss", "sentence"), [(0.1, "as expected"), (0.6, "far too high"), (-0.6, "far too low")]
)
def test_a_first_loss_of_0_has_a_margin(loss, sentence):
    """SimSiam expects 0, of which half is no margin."""
    assert sentence in watched(loss, expected=0.0).start()


def test_a_resumed_run_is_not_judged_at_its_start():
    assert watched(20.0, first=5).start() == "loss 20.00 at step 5"
    assert watched(20.0, expected=None).start() == "loss 20.00 at step 1"
    assert watched().start() == "no step yet" and watched().now() == "no step was taken"


def test_the_first_loss_against_a_filled_bank_is_not_judged():
    assert watched(20.0, filled=True).start() == (
        "loss 20.00 at the first step, 10.00 expected of random vectors; "
        "bank initialised by a forward pass; nothing to compare with"
    )


def test_features_that_became_alike_are_collapsed():
    early = watched(*[5.0] * 60, std=[0.5] + [0.05] * 59, steps=6000)
    assert early.now().startswith("collapsed: feature_std/image is 0.050, 0.500 at the first step")


def test_features_that_are_nearly_alike_from_the_first_step_may_learn():
    """An untrained encoder without batch norm, as CPC's, has such features."""
    assert watched(*[5.0] * 400, std=[0.05] * 400, steps=400).now().startswith("healthy")


@pytest.mark.parametrize(("steps", "verdict"), [(600, "collapsed"), (2000, "too early to judge")])
def test_a_constant_encoder_is_collapsed_once_there_was_time(steps, verdict):
    run = watched(*[10.0] * 400, std=[0.0] * 400, steps=steps)
    assert run.now().startswith(verdict)


@pytest.mark.parametrize(
    ("count", "steps", "verdict"),
    [
        (20, 20, "too short to tell: loss 9.90 (10.00 at chance) over 20 steps"),
        (20, 300, "too early to judge: loss 9.90 (10.00 at chance) over 20 steps"),
        (120, 120, "too short to tell: loss 9.90 (10.00 at chance, 9.90 by step 20)"),
        (120, 300, "too early to judge"),
        (300, 1000, "too early to judge"),
        (
            300,
            300,
            "not learning: after 300 of 300 steps loss 9.90 ± 0.20 (10.00 at chance, 9.90 by",
        ),
        (600, 1000, "no progress so far: after 600 of 1000 steps"),
    ],
)
def test_a_loss_at_chance_is_judged_once_there_was_time(count, steps, verdict):
    assert watched(*[9.9] * count, steps=steps).now().startswith(verdict)


def test_a_loss_that_falls_towards_chance_is_slow():
    run = watched(*[14 - step / 100 for step in range(300)], steps=300)
    assert run.now().startswith("slow: after 300 of 300 steps better than before, but loss 11.26")


def test_a_loss_that_falls_to_chance_is_at_chance():
    """A constant encoder comes there as well."""
    run = watched(*[14 - step / 50 for step in range(200)], *[10.0] * 200, steps=400)
    assert run.now() == (
        "at chance: after 400 of 400 steps loss 10.00 ± 0.20 (10.00 at chance, 13.81 by step 20)"
    )


def test_a_loss_that_rises_is_not_learning():
    run = watched(*[9.0 + step for step in range(300)], steps=300)
    assert run.now().startswith("not learning") and "18.50 by step 20" in run.now()


def test_a_loss_below_chance_is_healthy():
    assert watched(*[5.0] * 60, std=[0.9] * 60).now() == ("healthy: loss 5.00 (10.00 at chance)")


def test_only_the_last_steps_count():
    assert watched(*[10.0] * 50, *[2.0] * 50).now().startswith("healthy: loss 2.00")


def test_an_accuracy_at_chance_is_not_healthy():
    """The loss fell below chance in a few classes; the task is not learnt."""
    accuracy = [0.25 + 0.05 * (-1) ** step for step in range(300)]
    chances = {"loss": 10.0, "accuracy": 0.25}
    run = watched(*[5.0] * 300, steps=300, chances=chances, accuracy=accuracy)
    assert run.now().startswith("not learning by accuracy: after 300 of 300 steps accuracy 0.25")
    better = [value + 0.1 for value in accuracy]
    run = watched(*[5.0] * 300, steps=300, chances=chances, accuracy=better)
    assert run.now().startswith("healthy: loss 5.00")


def test_each_term_has_a_chance_of_its_own():
    chances = dict.fromkeys(("loss", "loss_image", "loss_patches"), 10.0)
    terms = {"loss_image": [2.0] * 300, "loss_patches": [10.0] * 300}
    said = watched(*[6.0] * 300, steps=300, chances=chances, **terms).now()
    assert said.startswith(
        "not learning by loss_patches: after 300 of 300 steps loss_patches 10.00"
    )


def test_noise_is_no_progress():
    """Means that differ by less than three standard errors do not differ."""
    losses = [9.5 + 3 * (-1) ** step * (step % 7) for step in range(300)]
    assert watched(*losses, steps=300).now().startswith("not learning")


def test_a_loss_without_chance_level_is_compared_with_early_steps():
    falling = [3 - step / 200 for step in range(300)]
    assert watched(*falling, chances={}, steps=300).now().startswith("healthy: loss 1.6")
    flat = watched(*[3.0] * 300, chances={}, steps=300).now()
    assert flat.startswith("no progress in the loss, whose chance level is unknown: loss 3.00")
    assert watched(*[3.0] * 100, chances={}).now().startswith("too short to tell: loss 3.00")


def test_a_memory_that_settles_is_no_progress():
    """The loss of an encoder that learns nothing falls while the rows of a bank become means."""
    health = Health(10.0, 300, chances={"loss": 5.0}, epoch=20)
    for step in range(1, 301):
        health.add(Row(step, 1, 0.1, 9 + 2 * 0.5 ** (step / 20), {}))
    assert health.now().startswith("not learning: after 300 of 300 steps loss 9.00")
    assert "by step 80)" in health.now()


def test_a_resumed_run_is_judged_as_an_unbroken_one():
    losses = [12.0 - 0.05 * step for step in range(120)]
    unbroken, resumed = watched(*losses, steps=120), watched(steps=120)
    for step, loss in enumerate(losses, start=1):
        row = Row(step, 1, 0.1, loss, {})
        (resumed.remember if step <= 115 else resumed.add)(row)
    assert resumed.now() == unbroken.now() and "healthy" in resumed.now()


def test_a_resumed_run_has_the_first_steps_of_the_run():
    run = watched(steps=300)
    for step in range(1, 241):
        run.remember(Row(step, 1, 0.1, 9.0, {}))
    for step in range(241, 301):
        run.add(Row(step, 1, 0.1, 8.0, {}))
    assert run.now() == "healthy: loss 8.00 (10.00 at chance, 9.00 by step 20)"
    assert "by step" not in watched(*[8.0] * 60, first=241, steps=300).now()


def test_the_expected_loss_of_pirl(make):
    """log M + 1/(2Dτ²), 1 more for the NCE forms: M = 12, or all other 23; D = 16; τ = 0.5."""
    spread = 1 / (32 * 0.5**2)
    method = make("loss.temperature=0.5").method
    assert method.at_start(8) == pytest.approx(math.log(12) + spread + 1, abs=0.1)
    method = make("sampler.negatives=all", "loss.form=info_nce", "loss.temperature=0.5").method
    assert method.at_start(8) == pytest.approx(math.log(23) + spread, abs=0.1)


@pytest.mark.parametrize(("weight", "left_out"), [(0, "patches"), (1, "image")])
def test_a_term_without_weight_has_no_chance(make, weight, left_out):
    method = make(f"loss.lambda={weight}").method
    kept = {"image", "patches"} - {left_out}
    assert method.at_chance(8).keys() == {"loss", *(f"loss_{name}" for name in kept)}
    run = make(f"loss.lambda={weight}")
    step = next(trainer.train(run))
    known = {name.partition("/")[2] for name in step.metrics if name.startswith("feature_std/")}
    assert known == kept and {"loss_image", "loss_patches"} <= step.metrics.keys()


def test_the_chances_of_pirl(make):
    """log(1 + M), every candidate alike, and 1 more for the NCE forms."""
    names = ["loss", "loss_image", "loss_patches"]
    chances = make().method.at_chance(8)
    assert sorted(chances) == names and set(chances.values()) == {math.log(13) + 1}
    method = make("sampler.negatives=all", "loss.form=info_nce").method
    assert isinstance(method, Pirl) and set(method.at_chance(8).values()) == {math.log(24)}


def test_a_complete_run_of_skipped_steps_is_too_short_to_tell():
    run = watched(9.9, steps=240)
    assert run.now().startswith("too early to judge")
    run.reached = 240
    assert run.now() == "too short to tell: loss 9.90 (10.00 at chance) over 1 step"


def test_a_verdict_shows_by_how_much_it_is_missed():
    """Three standard errors of ±0.4 over 50 steps are 0.17, less than 2 % of 10."""
    losses = [9.9 + 0.4 * (-1) ** step for step in range(300)]
    assert "loss 9.90 ± 0.20 (10.00 at chance" in watched(*losses, steps=300).now()
    losses = [9.5 + 4 * (-1) ** step for step in range(300)]
    assert "loss 9.50 ± 1.71 (10.00 at chance" in watched(*losses, steps=300).now()
