"""SwAV: swapped prediction, codes over ranks and queue, prototypes, refusals."""

import math
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import sslkit
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from sslkit import distributed, recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Encoder, Parts, Progress
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.clusters import sinkhorn
from sslkit_plugins.heads import Linear, Prototypes
from sslkit_plugins.losses import SoftCrossEntropy
from sslkit_plugins.methods.swav import Swav

RECIPE = Path(__file__).parent.parent / "recipes" / "swav.yaml"
TINY = ["transform.size=32", "encoder.model=test_resnet", "heads.projector.hidden_dim=16"]
TINY += ["heads.projector.out_dim=8", "heads.prototypes.out_dim=6", "train.batch_size=8"]
TINY += ["train.workers=0", "train.device=cpu", "train.precision=fp32", "train.epochs=2"]
LOCAL = {"global": (2, 3, 8, 8), "local": (3, 3, 4, 4)}


class Means(Encoder):
    """A linear map of the mean colour."""

    dim = 5

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 5)

    def forward(self, images):
        return self.net(images.mean((2, 3)))

    def maps(self, images):
        return {}


def method(shapes=LOCAL, prototypes=4, dim=6, **options):
    """SwAV of three colours, in float64."""
    torch.manual_seed(0)
    heads = {"projector": Linear(5, out_dim=dim)}
    heads["prototypes"] = Prototypes(dim, 50, out_dim=prototypes)
    options = {"freeze_steps": 0, **options}
    return Swav(Parts(Means(), heads, {}, SoftCrossEntropy(), 50, shapes), **options).double()


def batch(images=8, shapes=LOCAL, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = {}
    for name, shape in shapes.items():
        views[name] = torch.randn(images, *shape, generator=generator, dtype=torch.float64)
    return Batch(views, {}, torch.arange(images))


def at(step=0, epoch=0):
    return Progress(step, 100, epoch, 10, Draws(0))


def made(*more, data=None):
    return build(recipe.read(RECIPE, overrides=[*TINY, *more], data=data))


def unit_projections(swav, crops):
    features = swav.encode(crops)
    return F.normalize(swav.heads["projector"](features), dim=-1)


def test_each_code_is_predicted_from_all_other_crops():
    """Equation 1, crop by crop and image by image."""
    swav, given = method(), batch()
    found = swav(given, at()).loss
    rows = torch.cat([unit_projections(swav, view) for view in given.views.values()], 1)
    scores = rows @ swav.prototypes.weight.T
    total = 0
    for crop in range(2):
        code = sinkhorn(scores[:, crop].detach(), 0.05, 3)
        for other in {*range(5)} - {crop}:
            terms = -(code * F.log_softmax(scores[:, other] / 0.1, dim=1)).sum(1)
            total = total + terms.mean() / 4 / 2
    torch.testing.assert_close(found, total)
    assert found.dtype == torch.float64


def test_two_global_crops_swap_their_codes():
    shapes = {"global": (2, 3, 8, 8)}
    swav, given = method(shapes), batch(shapes=shapes)
    scores = unit_projections(swav, given.views["global"]) @ swav.prototypes.weight.T
    codes = torch.stack([sinkhorn(scores[:, crop], 0.05, 3) for crop in range(2)], 1)
    log = F.log_softmax(scores / 0.1, dim=-1)
    expected = -(codes.detach() * log.flip(1)).sum(-1).mean()
    torch.testing.assert_close(swav(given, at()).loss, expected)


def test_codes_get_no_gradient():
    """The loss of fixed codes has the same gradient."""
    swav, given = method(), batch()
    swav(given, at()).loss.backward()
    found = swav.encoder.net.weight.grad.clone()
    swav.zero_grad()
    rows = torch.cat([unit_projections(swav, view) for view in given.views.values()], 1)
    codes = swav.codes(rows[:, :2].detach(), 0)
    assert not codes.requires_grad
    swav.swapped_prediction(swav.prototypes(rows), codes).backward()
    torch.testing.assert_close(swav.encoder.net.weight.grad, found)


def test_codes_use_prototypes_evenly_and_rows_sum_to_one():
    swav = method(iterations=300)
    codes = swav.codes(F.normalize(torch.randn(16, 2, 6).double(), dim=-1), 0)
    torch.testing.assert_close(codes.sum(2), torch.ones(16, 2, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((2, 4), 4.0, dtype=torch.float64))


def test_the_order_of_prototypes_does_not_matter():
    swav, given, order = method(), batch(), torch.tensor([2, 0, 3, 1])
    before = swav(given, at()).loss
    with torch.no_grad():
        swav.prototypes.weight.copy_(swav.prototypes.weight[order].clone())
    torch.testing.assert_close(swav(given, at()).loss, before)


def filled(swav, count, seed=5):
    """Push `count` random rows; return them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 2, 6, generator=generator, dtype=torch.float64)
    rows = F.normalize(rows, dim=-1)
    with torch.no_grad():
        swav.after_step(torch.arange(count), {"projections": rows}, at())
    return rows


def test_the_queue_joins_codes_once_full_and_from_its_epoch():
    swav, rows = method(queue=10, queue_from=1), F.normalize(torch.randn(8, 2, 6), dim=-1).double()
    alone = swav.codes(rows, 5)
    queued = filled(swav, 9)
    torch.testing.assert_close(swav.codes(rows, 5), alone, msg="not full")
    queued = torch.cat([queued, filled(swav, 1, seed=6)])
    torch.testing.assert_close(swav.codes(rows, 0), alone, msg="too early")
    together = method(queue=0).codes(torch.cat([rows, queued]), 0)[:8]
    torch.testing.assert_close(swav.codes(rows, 1), together)
    assert (together - alone).abs().max() > 1e-3


def test_the_queue_keeps_the_latest_projections():
    swav = method(queue=10)
    rows = torch.cat([filled(swav, 7, seed=1), filled(swav, 7, seed=2), filled(swav, 7, seed=3)])
    kept = {tuple(row.flatten().tolist()) for row in swav.queue}
    assert kept == {tuple(row.flatten().tolist()) for row in rows[-10:]}
    many = filled(swav, 25, seed=4)
    kept = {tuple(row.flatten().tolist()) for row in swav.queue}
    assert kept == {tuple(row.flatten().tolist()) for row in many[-10:]}


def test_the_queue_has_its_full_size_from_the_start():
    assert method(queue=10).state_dict()["queue"].shape == (10, 2, 6)
    assert method().state_dict()["queue"].shape == (0, 2, 6)


def test_prototypes_are_frozen_for_the_first_steps():
    """Without gradient, so momentum and weight decay do not move them either."""
    run = made("method.freeze_steps=2", "optimizer.weight_decay=0.1", "schedule.warmup_epochs=0")
    before = run.method.prototypes.weight.detach().clone()
    for step in islice(train(run), 3):
        moved = (run.method.prototypes.weight - before).abs().max().item()
        assert moved < 1e-6 if step.number <= 2 else moved > 1e-4
        assert (run.method.prototypes.weight.grad is None) == (step.number <= 2)
    assert run.method.prototypes.weight.requires_grad


def test_frozen_prototypes_pass_gradients_to_the_encoder():
    swav = method(freeze_steps=5)
    swav(batch(), at(step=4)).loss.backward()
    assert swav.prototypes.weight.grad is None and swav.encoder.net.weight.grad.any()
    swav(batch(), at(step=5)).loss.backward()
    assert swav.prototypes.weight.grad.any()


def test_prototypes_have_unit_norm_after_every_step():
    run = made("method.freeze_steps=0", "schedule.warmup_epochs=0", "optimizer.lr=1.0")
    before = run.method.prototypes.weight.detach().clone()
    for _ in islice(train(run), 3):
        norms = run.method.prototypes.weight.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    assert (run.method.prototypes.weight - before).abs().max() > 1e-3


@pytest.mark.parametrize("use", ["larc", "lars"])
def test_optimizers_of_the_paper_leave_frozen_prototypes(use):
    more = [f"optimizer.use={use}", "optimizer.trust_coeff=0.001", "schedule.warmup_epochs=0"]
    run = made("method.freeze_steps=1", *more)
    before = run.method.prototypes.weight.detach().clone()
    next(train(run))
    assert (run.method.prototypes.weight - before).abs().max() < 1e-6


def test_the_first_loss_is_near_log_k():
    """log K + 1/(2·D·τ²) of random projections and codes that know nothing of them."""
    swav = method(prototypes=40, dim=128)
    expected = math.log(40) + 1 / (2 * 128 * 0.1**2)
    assert swav.at_start(8) == pytest.approx(expected, abs=0.05)
    assert swav.at_chance(8) == {"loss": math.log(40)}


def test_equal_projections_have_the_loss_of_chance():
    """A collapsed encoder: the codes are uniform, and the loss is log K."""
    swav, given = method(), batch()
    with torch.no_grad():
        swav.encoder.net.weight.zero_()
        swav.prototypes.weight.copy_(F.normalize(torch.ones(4, 6).double(), dim=1))
    output = swav(given, at())
    assert output.loss.item() == pytest.approx(math.log(4), rel=1e-12)
    assert output.feature_std["projector"].item() == pytest.approx(0, abs=1e-6)


def test_two_ranks_have_the_codes_of_one(ranks, tmp_path):
    rows = F.normalize(torch.randn(8, 2, 6).double(), dim=-1)

    def work(folder):
        swav = method(queue=10, queue_from=0)
        filled(swav, 10)
        mine = rows.chunk(distributed.world())[distributed.rank()]
        codes = swav.codes(mine, 0)
        save_file({"codes": codes.contiguous()}, folder / f"{distributed.rank()}.safetensors")

    assert ranks(work) == [0, 0]
    found = [load_file(tmp_path / f"{rank}.safetensors")["codes"] for rank in (0, 1)]
    swav = method(queue=10, queue_from=0)
    filled(swav, 10)
    torch.testing.assert_close(torch.cat(found), swav.codes(rows, 0))


def test_micro_batches_are_refused():
    with pytest.raises(RecipeError, match=r"train\.accumulate"):
        made("train.accumulate=2")


def test_one_crop_alone_is_refused():
    with pytest.raises(RecipeError, match=r"transform\.count.*set it to 2"):
        made("transform.count=1")


def test_small_crops_are_compared_with_one_large_crop():
    shapes = {"global": (1, 3, 8, 8), "local": (3, 3, 4, 4)}
    assert method(shapes)(batch(shapes=shapes), at()).loss.isfinite()


def test_another_head_than_prototypes_is_refused():
    with pytest.raises(RecipeError, match=r"heads\.prototypes\.use .*; use: prototypes"):
        made("heads.prototypes.use=linear", "heads.prototypes.out_dim=6")


@pytest.mark.parametrize("option", ["epsilon=0", "iterations=0", "queue=-1", "freeze_steps=-1"])
def test_options_out_of_range_are_refused(option, tmp_path):
    code, _, err = sslkit("check", RECIPE, "--set", f"method.{option}")
    assert code == 2 and f"method.{option.partition('=')[0]}" in err and "Traceback" not in err
