"""What a run's numbers are taken to mean."""

import math

import pytest

from sslkit.runs.metrics import Row
from sslkit.training.health import Health, expected_loss


def watched(*losses, expected=10.0, steps=100, first=1, filled=False, **metrics):
    health = Health(expected, steps, filled=filled)
    for number, loss in enumerate(losses, first):
        health.add(Row(number, 0, 0.1, loss, metrics))
    return health


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (10.2, "as it should be"),
        (15.1, "far too high"),
        (4.9, "far too low"),
        (14.9, "as it should be"),
        (5.1, "as it should be"),
    ],
)
def test_the_first_loss_is_held_against_that_of_random_outputs(loss, sentence):
    said = watched(loss).start()
    assert sentence in said and f"loss {loss:.2f}" in said and "10.00 expected" in said


def test_a_resumed_run_or_a_loss_without_expectation_is_not_judged_at_its_start():
    assert watched(20.0, first=5).start() == "loss 20.00 at step 5"
    assert watched(20.0, expected=None).start() == "loss 20.00 at step 1"
    assert watched().start() == watched().now() == "no step yet"


def test_collapse_comes_first():
    assert watched(*[10.0] * 60, std_image=0.05).now().startswith("collapsed: std_image is 0.05")
    assert "collapsed" not in watched(*[5.0] * 60, std_image=0.11).now()


def test_the_first_loss_against_a_filled_memory_is_not_judged():
    assert watched(20.0, filled=True).start() == (
        "loss 20.00 at the first step, 10.00 at chance; memory holds a first pass, so no judgement yet"
    )
    assert watched(*[9.9] * 60, filled=True).now().startswith("not learning")


def test_a_loss_at_chance_is_not_learning_once_half_is_done():
    assert (
        watched(*[9.9] * 60).now()
        == "not learning: after 60 of 100 steps the loss is 9.90, at chance (10.00)"
    )
    assert watched(*[9.9] * 60, steps=120).now().startswith("healthy")
    assert watched(*[9.9] * 20).now() == "too early to judge: loss 9.90 over 20 steps"


def test_fine():
    assert watched(*[5.0] * 60, std_image=0.9).now() == "healthy: loss 5.00, 10.00 at chance"
    assert watched(*[5.0] * 60, expected=None).now() == "healthy: loss 5.00"


def test_only_the_last_steps_count():
    assert watched(*[10.0] * 50, *[2.0] * 50).now() == "healthy: loss 2.00, 10.00 at chance"


def test_the_expected_loss_of_pirl(make):
    """log M + 1/(2Dτ²) + 1 for the NCE forms: M = 12, or all other 23; D = 16; τ = 0.07."""
    assert expected_loss(make().method) == pytest.approx(math.log(12) + 1 / (32 * 0.07**2) + 1)
    method = make("sampler.negatives=all", "loss.form=info_nce").method
    assert expected_loss(method) == pytest.approx(math.log(23) + 1 / (32 * 0.07**2))
    assert expected_loss(make("sampler.init=forward").method) == expected_loss(make().method)
