"""Optimizers and schedules against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from sslkit.errors import RecipeError
from sslkit.recipe import Optimizer, Schedule
from sslkit.training.optim import make_optimizer, make_schedule


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2)
    )


def rates(steps, epochs=10, steps_per_epoch=10, lr=1.0, **options):
    set_rate = make_schedule(
        torch.optim.SGD(network().parameters(), lr=lr), Schedule(**options), epochs, steps_per_epoch
    )
    return [set_rate(step) for step in steps]


def test_biases_and_norms_do_not_decay_unless_asked():
    module = network()
    decaying, exempt = make_optimizer(module, Optimizer(lr=0.1, weight_decay=0.5)).param_groups
    assert decaying["weight_decay"] == 0.5 and exempt["weight_decay"] == 0
    assert {id(p) for p in decaying["params"]} == {id(module[0].weight), id(module[4].weight)}
    assert len(exempt["params"]) == 6
    (all_decay,) = make_optimizer(
        module, Optimizer(lr=0.1, weight_decay=0.5, exempt_norms_and_biases=False)
    ).param_groups
    assert len(all_decay["params"]) == 8 and all_decay["weight_decay"] == 0.5


def test_frozen_parameters_are_left_out():
    module = network()
    module[0].requires_grad_(False)
    assert (
        sum(
            len(group["params"]) for group in make_optimizer(module, Optimizer(lr=0.1)).param_groups
        )
        == 6
    )


def test_options_reach_the_optimizer_and_nesterov_is_off_by_default():
    sgd = make_optimizer(network(), Optimizer(lr=0.1, momentum=0.8))
    assert type(sgd) is torch.optim.SGD
    assert sgd.defaults["momentum"] == 0.8 and sgd.defaults["nesterov"] is False
    assert (
        make_optimizer(network(), Optimizer(lr=0.1, momentum=0.8, nesterov=True)).defaults[
            "nesterov"
        ]
        is True
    )
    adamw = make_optimizer(network(), Optimizer(use="adamw", lr=0.1, betas=(0.8, 0.9), eps=1e-3))
    assert type(adamw) is torch.optim.AdamW
    assert adamw.defaults["betas"] == (0.8, 0.9) and adamw.defaults["eps"] == 1e-3
    assert make_optimizer(network(), Optimizer(use="adamw", lr=0.1)).defaults["betas"] == (
        0.9,
        0.999,
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"use": "sgdd"}, "optimizer.use.*no optimizer 'sgdd'"),
        ({"use": "adamw", "momentum": 0.9}, "optimizer.momentum.*'adamw' has no such option"),
        ({"use": "sgd", "betas": (0.9, 0.99)}, "optimizer.betas.*'sgd' has no such option"),
        ({"use": "sgd", "nesterov": True}, "optimizer.use.*Nesterov momentum requires a momentum"),
        ({"use": "adahessian"}, "optimizer.use.*'adahessian' cannot be used"),
        ({"use": "fusedlamb"}, "optimizer.use.*no optimizer 'fusedlamb' here"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        make_optimizer(network(), Optimizer(lr=0.1, **options))


def test_cosine():
    assert rates([0, 50, 100], final_lr=0.2) == pytest.approx([1.0, 0.6, 0.2])
    assert rates([25]) == pytest.approx([(1 + math.cos(math.pi / 4)) / 2])


def test_warm_up_is_linear_and_the_schedule_counts_from_the_first_step():
    values = rates(range(20), warmup_epochs=1, warmup_lr=0.5)
    assert values[:10] == pytest.approx([0.5 + 0.05 * i for i in range(10)])
    assert values[10] == pytest.approx((1 + math.cos(math.pi * 10 / 100)) / 2)
    assert rates([0, 2, 5, 9], use="constant", warmup_epochs=0.5) == pytest.approx([0, 0.4, 1, 1])


def test_per_epoch_holds_the_rate_of_the_first_step():
    assert rates(range(10, 20), per="epoch") == pytest.approx(rates([10]) * 10)


def test_drops():
    assert rates([29, 30, 59, 60, 99], use="step", step_epochs=3) == pytest.approx(
        [1, 0.1, 0.1, 0.01, 0.001]
    )
    assert rates([49, 50, 79, 80], use="multistep", milestones=(5, 8), factor=0.5) == pytest.approx(
        [1, 0.5, 0.5, 0.25]
    )
    assert rates([0, 99], use="constant") == [1, 1]


def test_the_rate_is_a_pure_function_of_the_step():
    assert rates([70, 3, 70]) == [*rates([70]), *rates([3]), *rates([70])]
    assert rates([70, 3], use="step", step_epochs=3) == pytest.approx([0.01, 1])


def test_every_group_gets_the_rate():
    optimizer = make_optimizer(network(), Optimizer(lr=1.0, weight_decay=0.1))
    make_schedule(optimizer, Schedule(), 10, 10)(50)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.5])
