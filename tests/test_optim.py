"""Optimizers and schedules against values worked out by hand."""

import math

import pytest
import timm
import torch
from torch import nn

from sslkit.errors import RecipeError
from sslkit.recipe import SCHEDULES, Cosine, Optimizer
from sslkit.runs import checkpoint
from sslkit.training.optim import make_optimizer, make_schedule


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2)
    )


def rates(steps, use="cosine", epochs=10, steps_per_epoch=10, lr=1.0, **options):
    optimizer = torch.optim.SGD(network().parameters(), lr=lr)
    set_rate = make_schedule(optimizer, SCHEDULES[use](**options), epochs, steps_per_epoch)
    return [set_rate(step) for step in steps]


def chosen(use="sgd", lr=0.1, **options):
    return Optimizer(use=use, lr=lr, options=options)


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


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        ("test_vit", {"pos_embed", "cls_token"}),
        ("eva02_tiny_patch14_224", {"pos_embed", "cls_token", "q_bias", "v_bias"}),
        ("cait_xxs24_224", {"pos_embed", "cls_token", "gamma_1"}),
        ("test_convnext2", {"weight"}),
    ],
)
def test_one_dimension_and_what_timm_names_do_not_decay(model, kept):
    module = nn.Sequential(timm.create_model(model, num_classes=0))
    decaying, exempt = make_optimizer(module, Optimizer(lr=0.1, weight_decay=0.5)).param_groups
    assert exempt["weight_decay"] == 0 and min(p.dim() for p in decaying["params"]) == 2
    places = {id(value) for value in exempt["params"]}
    names = {
        name.split(".")[-1] for name, value in module.named_parameters() if id(value) in places
    }
    assert kept | {"bias"} <= names


def test_frozen_parameters_are_left_out():
    module = network()
    module[0].requires_grad_(False)
    assert (
        sum(
            len(group["params"]) for group in make_optimizer(module, Optimizer(lr=0.1)).param_groups
        )
        == 6
    )


def test_options_reach_the_optimizer_and_nesterov_is_off():
    sgd = make_optimizer(network(), chosen(momentum=0.8))
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, False)
    assert make_optimizer(network(), chosen(momentum=0.8, nesterov=True)).defaults["nesterov"]
    adamw = make_optimizer(network(), chosen("adamw", betas=[0.8, 0.9], eps=1e-3))
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.8, 0.9), 1e-3)
    assert make_optimizer(network(), chosen("adamw")).defaults["betas"] == (0.9, 0.999)
    lars = make_optimizer(network(), chosen("lars", trust_coeff=0.02))
    assert lars.defaults["trust_coeff"] == 0.02


def test_a_name_has_timms_defaults_unless_the_recipe_differs():
    """`larc` is the class of `lars` with clipping: the name alone tells them apart."""
    assert make_optimizer(network(), chosen("lars")).defaults["trust_clip"] is False
    assert make_optimizer(network(), chosen("larc")).defaults["trust_clip"] is True
    given = make_optimizer(network(), chosen("larc", trust_clip=False))
    assert given.defaults["trust_clip"] is False


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        (chosen("sgdd"), "optimizer.use.*no optimizer 'sgdd'"),
        (chosen("adamw", momentum=0.9), "optimizer.momentum.*'adamw' has no such option"),
        (chosen("sgd", betas=(0.9, 0.99)), "optimizer.betas.*'sgd' has no such option"),
        (chosen("sgd", nesterov=True), "optimizer.use.*Nesterov momentum requires a momentum"),
        (chosen("adahessian"), "optimizer.use.*'adahessian' cannot be used"),
        (chosen("fusedlamb"), "optimizer.use.*no optimizer 'fusedlamb' here"),
    ],
    ids=lambda value: value.use if isinstance(value, Optimizer) else "",
)
def test_what_cannot_be_used_is_refused_with_a_sentence(optimizer, sentence):
    with pytest.raises(RecipeError, match=sentence):
        make_optimizer(network(), optimizer)


def test_cosine():
    assert rates([0, 50, 100], final_lr=0.2) == pytest.approx([1.0, 0.6, 0.2])
    assert rates([25]) == pytest.approx([(1 + math.cos(math.pi / 4)) / 2])


def test_warm_up_is_linear_and_reaches_the_rate():
    values = rates(range(101), warmup_epochs=1, warmup_lr=0.5)
    assert values[:11] == pytest.approx([0.5 + 0.05 * i for i in range(11)])
    assert values[10] == max(values) == 1.0
    assert values[55] == pytest.approx(0.5), "half of the 90 steps after the warm-up"
    assert values[100] == 0
    assert rates([0, 2, 5, 9], use="constant", warmup_epochs=0.5) == pytest.approx([0, 0.4, 1, 1])


def test_warm_up_does_not_move_the_drops():
    options = {"use": "multistep", "milestones": (5, 8), "warmup_epochs": 2}
    assert rates([19, 20, 49, 50, 79, 80], **options) == pytest.approx([0.95, 1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("warmup", [10, 12.5])
def test_a_run_that_only_warms_up(warmup):
    assert rates([0, 50, 99], warmup_epochs=warmup) == pytest.approx(
        [0, 50 / (10 * warmup), 99 / (10 * warmup)]
    )


def test_a_run_of_one_step_has_the_full_rate(caplog):
    assert rates([0], epochs=1, steps_per_epoch=1) == [1.0] and not caplog.records


def test_per_epoch_holds_the_rate_of_the_first_step():
    assert rates(range(10, 20), per="epoch") == pytest.approx(rates([10]) * 10)


def test_per_epoch_warms_up_by_step():
    """An epoch held at the first rate of a warm-up, which is usually 0, would train nothing."""
    values = rates(range(30), per="epoch", warmup_epochs=1.5)
    assert values[:15] == pytest.approx([step / 15 for step in range(15)])
    assert values[15:20] == [1.0] * 5
    assert values[20:] == pytest.approx(rates([20], warmup_epochs=1.5) * 10)


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
    make_schedule(optimizer, Cosine(), 10, 10)(50)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.5])


def decays(optimizer):
    return [group["weight_decay"] for group in optimizer.param_groups]


def test_weight_decay_follows_half_a_cosine_from_its_own_value():
    optimizer = make_optimizer(network(), Optimizer(use="adamw", lr=0.1, weight_decay=0.04))
    set_rate = make_schedule(optimizer, Cosine(final_weight_decay=0.4), 10, 10)
    expected = {0: 0.04, 50: 0.22, 75: 0.4 - 0.36 * (1 - math.sqrt(0.5)) / 2, 100: 0.4}
    for step in (75, 0, 100, 50):
        set_rate(step)
        assert decays(optimizer) == pytest.approx([expected[step], 0])


def test_the_group_that_decays_need_not_be_the_first():
    module = network()
    groups = [
        {"params": module[1].parameters(), "weight_decay": 0.0},
        {"params": module[0].parameters(), "weight_decay": 0.2},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    make_schedule(optimizer, Cosine(final_weight_decay=0.0), 10, 10)(50)
    assert decays(optimizer) == pytest.approx([0, 0.1])


def test_the_weight_decay_goes_on_after_a_resume(make, tmp_path):
    settings = (
        "optimizer={use: adamw, lr: 0.01, weight_decay: 0.04}",
        "schedule={final_weight_decay: 0.4}",
        "train.epochs=4",
    )
    unbroken, first, second = make(*settings), make(*settings), make(*settings)
    for run in (unbroken, first):
        run.set_rate(3)
    first.step = 3
    checkpoint.save(first, tmp_path)
    checkpoint.resume(second, tmp_path)
    for step in (4, 11):
        unbroken.set_rate(step)
        second.set_rate(step)
        assert decays(second.optimizer) == decays(unbroken.optimizer)
        assert 0.04 < decays(second.optimizer)[0] < 0.4
