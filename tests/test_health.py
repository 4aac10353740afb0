"""How a run is judged by its numbers."""

import math

import pytest

from sslkit.runs.metrics import Row
from sslkit.training.health import Health


def watched(*losses, expected=10.0, steps=100, first=1, filled=False, std=None):
    """A run of these losses; `std` is the feature_std of each step."""
    health = Health(expected, steps, filled=filled)
    for number, loss in enumerate(losses):
        metrics = {} if std is None else {"feature_std/image": std[number]}
        health.add(Row(first + number, 0, 0.1, loss, metrics))
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
def test_the_first_loss_is_compared_with_that_of_random_vectors(loss, sentence):
    said = watched(loss).start()
    assert sentence in said and f"loss {loss:.2f}" in said and "10.00 expected" in said


def test_a_resumed_run_is_not_judged_at_its_start():
    assert watched(20.0, first=5).start() == "loss 20.00 at step 5"
    assert watched(20.0, expected=None).start() == "loss 20.00 at step 1"
    assert watched().start() == watched().now() == "no step yet"


def test_features_that_are_alike_are_collapsed():
    verdict = watched(*[10.0] * 60, std=[0.05] * 60).now()
    assert verdict.startswith("collapsed: feature_std/image is 0.05")
    assert "collapsed" not in watched(*[5.0] * 60, std=[0.11] * 60).now()


def test_an_untrained_encoder_is_not_collapsed():
    assert "collapsed" not in watched(*[5.0] * 60, std=[0.05] * 60, steps=600).now()
    assert "collapsed" in watched(*[5.0] * 61, std=[0.05] * 61, steps=600).now()


def test_an_early_collapse_is_seen_where_features_became_alike():
    assert "collapsed" in watched(*[5.0] * 60, std=[0.5] + [0.05] * 59, steps=6000).now()


def test_the_first_loss_against_a_filled_bank_is_not_judged():
    assert watched(20.0, filled=True).start() == (
        "loss 20.00 at the first step, 10.00 at chance; "
        "bank initialised by a forward pass; nothing to compare with"
    )
    assert watched(*[9.9] * 60, filled=True).now().startswith("not learning")


def test_a_loss_at_chance_is_not_learning_once_half_is_done():
    assert (
        watched(*[9.9] * 60).now()
        == "not learning: after 60 of 100 steps the loss is 9.90, at chance (10.00)"
    )
    assert watched(*[9.9] * 60, steps=120).now().startswith("healthy")
    assert watched(*[9.9] * 20).now() == "too early to judge: loss 9.90 over 20 steps"


def test_a_loss_below_chance_is_healthy():
    assert watched(*[5.0] * 60, std=[0.9] * 60).now() == "healthy: loss 5.00, 10.00 at chance"
    assert watched(*[5.0] * 60, expected=None).now() == "healthy: loss 5.00"


def test_only_the_last_steps_count():
    assert watched(*[10.0] * 50, *[2.0] * 50).now() == "healthy: loss 2.00, 10.00 at chance"


def test_the_expected_loss_of_pirl(make):
    """log M + 1/(2Dτ²) + 1 for the NCE forms: M = 12, or all other 23; D = 16; τ = 0.07."""
    spread = 1 / (32 * 0.07**2)
    assert make().method.at_start(8) == pytest.approx(math.log(12) + spread + 1)
    method = make("sampler.negatives=all", "loss.form=info_nce").method
    assert method.at_start(8) == pytest.approx(math.log(23) + spread)
