"""DINO: pairs of crops, centre, temperatures, frozen prototypes, the exported teacher."""

import math

import pytest
import torch
from torch.nn import functional as F

from sslkit import recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Progress
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.heads import Prototypes
from sslkit_plugins.losses import SoftCrossEntropy
from sslkit_plugins.methods.dino import prototype_use

TINY = ["encoder.model=test_resnet", "transform.size=32", "transform.local.size=16"]
TINY += ["train.epochs=2", "train.batch_size=8", "train.workers=0", "train.device=cpu"]
TINY += ["train.precision=fp32", "heads.projector.hidden_dim=16", "heads.projector.out_dim=8"]
TINY += ["heads.prototypes.out_dim=12"]


@pytest.fixture
def made(images):
    def make(*more):
        return build(recipe.read("recipes/dino.yaml", overrides=[*TINY, *more], data=str(images)))

    return make


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(small=2):
    views = {"global": rows(6, 2, 3, 32, 32), "local": rows(6, small, 3, 16, 16, seed=1)}
    return Batch(views, {}, torch.arange(6))


def at(step=0, steps=100, epoch=0, epochs=10):
    return Progress(step, steps, epoch, epochs, Draws(0))


def test_every_teacher_crop_meets_every_other_crop(made):
    """Two teachers and ten crops: the loss is the mean over 18 terms."""
    method = made().method.double()
    calls = []
    method.loss.register_forward_hook(lambda module, inputs, output: calls.append(output.detach()))
    output = method(batch(small=8), at())
    assert len(calls) == 18
    torch.testing.assert_close(output.loss.detach(), torch.stack(calls).mean())


def test_a_teacher_crop_does_not_meet_itself(made):
    """With two crops, the terms are (teacher 1, student 2) and (teacher 2, student 1)."""
    method = made("transform={use: crops, size: 32}").method.double()
    calls = []
    method.loss.register_forward_hook(lambda module, inputs, output: calls.append(inputs))
    view = batch().views["global"]
    method(Batch({"global": view}, {}, torch.arange(6)), at())
    scores = method.heads["prototypes"](method.heads["projector"](method.encode(view)))
    targets = method.sharpened(method.teacher_scores(view), at())
    assert len(calls) == 2
    for (student, target), crop in zip(calls, (0, 1), strict=True):
        torch.testing.assert_close(student, scores[:, 1 - crop])
        torch.testing.assert_close(target, targets[:, crop])


def test_a_constant_student_has_loss_ln_k_for_any_teacher():
    teacher = F.softmax(rows(6, 12) / 0.04, dim=-1)
    found = SoftCrossEntropy(temperature=0.1)(torch.full((6, 12), 0.3).double(), teacher)
    assert found.item() == pytest.approx(math.log(12), abs=1e-12)


def test_a_constant_added_to_all_scores_changes_nothing(made):
    method, loss = made().method.double(), SoftCrossEntropy()
    teacher = method.sharpened(rows(6, 12), at())
    torch.testing.assert_close(method.sharpened(rows(6, 12) + 5, at()), teacher)
    student = rows(6, 12, seed=1)
    torch.testing.assert_close(loss(student + 5, teacher), loss(student, teacher))


def test_the_loss_is_at_least_the_teachers_entropy(made):
    method, loss = made().method.double(), SoftCrossEntropy(temperature=0.1)
    teacher = method.sharpened(rows(6, 12) / 10, at())
    entropy = torch.special.entr(teacher).sum(-1).mean()
    assert loss(rows(6, 12, seed=1) / 10, teacher) > entropy
    same = rows(6, 12) / 10 * (0.1 / method.teacher_temperature)
    torch.testing.assert_close(loss(same, teacher), entropy)


def test_equal_teacher_scores_are_centred_to_a_uniform_distribution(made):
    method = made().method.double()
    scores = rows(1, 12).expand(6, 12)
    method.centre.copy_(scores.mean(0, keepdim=True))
    expected = torch.full((6, 12), 1 / 12, dtype=torch.float64)
    torch.testing.assert_close(method.sharpened(scores, at()), expected)


def test_the_centre_is_a_moving_average_of_batch_means(made):
    """After n steps: 0.1 Σ 0.9^(n - 1 - i) mean_i, over the rows of all ranks."""
    method = made().method.double()
    kept = [rows(2, 12, seed=number) for number in range(5)]
    for value in kept:
        method.after_step(torch.arange(6), {"centre": value}, at())
    expected = sum(0.1 * 0.9 ** (4 - i) * value.mean(0) for i, value in enumerate(kept))
    torch.testing.assert_close(method.centre[0], expected)


def test_a_step_uses_the_centre_from_before_it(made):
    run = made()
    output = run.method.double()(batch(), at())
    assert run.method.centre.abs().max() == 0
    expected = run.method.teacher_scores(batch().views["global"]).mean((0, 1))
    torch.testing.assert_close(output.keep["centre"][0], expected)


def test_scores_are_cosines_and_the_first_loss_is_near_ln_k():
    """Scores of d = 256 have deviation 1/16: ln K + 1/(2·256·0.1²) = ln K + 0.195."""
    torch.manual_seed(0)
    head = Prototypes(256, 10_000, out_dim=4096, weight_norm=True).double()
    scores = head(rows(200, 256)).detach()
    assert scores.abs().max() < 1
    assert scores.std() == pytest.approx(1 / 16, rel=0.02)
    teacher = F.softmax(rows(200, 4096, seed=1), dim=-1)
    found = SoftCrossEntropy(temperature=0.1)(scores, teacher).item()
    assert found == pytest.approx(math.log(4096) + 0.195, abs=0.02)


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (50, 0.998), (100, 1.0)])
def test_the_teacher_follows_encoder_and_heads(made, step, momentum):
    method = made("method.momentum=0.996").method.double()
    assert set(method.teacher) == {"encoder", "projector", "prototypes"}
    with torch.no_grad():
        method.heads["prototypes"].weight.add_(1.0)
    before = method.teacher["prototypes"].weight.clone()
    method.after_step(torch.arange(6), {"centre": torch.zeros(1, 12).double()}, at(step))
    weight = method.heads["prototypes"].weight
    expected = momentum * before + (1 - momentum) * weight
    torch.testing.assert_close(method.teacher["prototypes"].weight, expected)


def test_the_teachers_temperature_warms_up_by_epoch(made):
    """0.04, 0.05, 0.06, 0.07, then 0.07."""
    settings = ["teacher_temperature=0.07", "warm_temperature=0.04", "warm_epochs=4"]
    method = made(*(f"method.{setting}" for setting in settings)).method
    found = [method.temperature(epoch) for epoch in range(6)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert made("method.warm_epochs=1").method.temperature(0) == pytest.approx(0.04)


def test_prototypes_are_frozen_in_the_first_epoch(made):
    """Their gradient is None, so momentum and weight decay leave them alone."""
    run = made("method.freeze_epochs=1", "schedule.warmup_epochs=0")
    weight = run.method.heads["prototypes"].weight
    before, per_epoch = weight.detach().clone(), run.loader.steps_per_epoch
    for step in train(run):
        if step.number <= per_epoch:
            assert weight.grad is None and torch.equal(weight, before)
        else:
            assert weight.grad is not None and not torch.equal(weight, before)
    assert weight.requires_grad


def test_the_teachers_encoder_is_exported(made):
    method = made().method
    assert method.exported is method.teacher["encoder"]
    assert not any(value.requires_grad for value in method.exported.parameters())


def test_the_teacher_has_no_stochastic_depth(made):
    settings = ["encoder.model=test_vit", "encoder.drop_path_rate=0.5", "transform.size=160"]
    method = made(*settings, "transform.local.size=96").method
    rates = [
        module.drop_prob for module in method.encoder.modules() if hasattr(module, "drop_prob")
    ]
    assert max(rates) > 0
    teachers = method.teacher.modules()
    assert {module.drop_prob for module in teachers if hasattr(module, "drop_prob")} == {0.0}


def test_entropy_and_chance_level(made):
    """A uniform teacher has the entropy ln K, and a uniform student the loss ln K."""
    run = made("method.teacher_temperature=1000", "method.warm_epochs=0")
    step = next(train(run))
    assert step.metrics["teacher_entropy"] == pytest.approx(math.log(12), abs=1e-4)
    assert run.method.at_chance(8) == {"loss": math.log(12)} == {"loss": run.method.at_start(8)}


def test_prototypes_are_at_most_the_number_of_images(made):
    head = made("heads.prototypes.out_dim=65536").method.heads["prototypes"]
    assert head.out_dim == 24
    assert head.notes == (
        "out_dim has 65,536 prototypes, more than the 24 images, so 24 are used; "
        "set a few per expected class",
    )


def test_a_single_crop_is_refused(made):
    sentence = r"transform\.count  method 'dino' compares at least 2 crops of an image, not 1"
    with pytest.raises(RecipeError, match=sentence):
        made("transform={use: crops, size: 32, count: 1}")


def test_prototype_use_is_one_for_all_prototypes_and_zero_for_one():
    """Two of four prototypes, used equally: log 2 / log 4 = 1/2."""
    one_hot = torch.eye(4, dtype=torch.float64)
    assert prototype_use(one_hot.view(2, 2, 4)).item() == pytest.approx(1)
    assert prototype_use(one_hot[[0, 1, 0, 1]].view(2, 2, 4)).item() == pytest.approx(0.5)
    assert prototype_use(one_hot[:1].expand(4, -1).view(2, 2, 4)).item() == 0
