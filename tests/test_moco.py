"""MoCo: the loss by hand, the key encoder, shuffling, the symmetric loss, two ranks."""

import math
from itertools import islice

import pytest
import torch
from bare import Layer, bare, crops, mean_gradients, progress, random
from torch import nn
from torch.nn import functional as F

from sslkit import distributed, recipe
from sslkit.interfaces import Draws
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.methods.moco import Moco
from sslkit_plugins.momentum import Momentum, shuffled


def unit(*shape, seed=0):
    return F.normalize(random(*shape, seed=seed), dim=-1)


def made(keys, *heads, **options):
    return bare(Moco, keys.shape[1], *heads, keys=keys, **options)


# ------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_loss_is_equation_1(shuffle):
    """Cross-entropy of [q·k, q·queue]/τ with class 0."""
    first, second, keys = random(5, 8), random(5, 8, seed=1), unit(16, 8, seed=2)
    method = made(keys, temperature=0.07, shuffle=shuffle)
    found = method(crops(first, second), progress()).loss
    query, key = F.normalize(first, dim=1), F.normalize(second, dim=1)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ keys.T], 1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_equal_vectors_give_log_of_one_more_than_the_keys(symmetric):
    same = F.normalize(torch.ones(8, 4, dtype=torch.float64), dim=1)
    method = made(same, symmetric=symmetric)
    loss = method(crops(same[:3], same[:3]), progress()).loss
    assert loss.item() == pytest.approx(math.log(9), rel=1e-12)


def test_a_symmetric_loss_is_the_mean_over_both_directions():
    first, second, keys = random(4, 6), random(4, 6, seed=1), unit(10, 6, seed=2)
    one = made(keys)(crops(first, second), progress()).loss
    other = made(keys)(crops(second, first), progress()).loss
    both = made(keys, symmetric=True)(crops(first, second), progress()).loss
    torch.testing.assert_close(both, (one + other) / 2, rtol=1e-12, atol=0)


def test_a_symmetric_loss_enqueues_once_after_both_terms():
    """Perfect features: log(1 + K·exp(-1/τ)). With a key of the own image in the queue, a term
    would be at least ln 2.
    """
    basis = torch.eye(8, dtype=torch.float64)
    images, keys = basis[:2], basis[2:]
    method, batch = made(keys, symmetric=True), crops(images, images)
    output = method(batch, progress())
    assert output.loss.item() == pytest.approx(math.log(1 + 6 * math.exp(-10)), rel=1e-9)
    assert torch.equal(method.queue.keys, keys)
    method.after_step(batch.index, output.keep, progress())
    assert method.queue.images.tolist() == [0, 0, 1, 1, -1, -1]
    assert int(method.queue.position) == 4
    torch.testing.assert_close(method.queue.keys[:4], images.repeat_interleave(2, 0))


def test_without_symmetry_the_second_crop_alone_is_a_key():
    first, second = random(2, 4), random(2, 4, seed=1)
    method, batch = made(unit(5, 4, seed=2)), crops(first, second)
    method.after_step(batch.index, method(batch, progress()).keep, progress())
    torch.testing.assert_close(method.queue.keys[:2], F.normalize(second, dim=1))
    assert method.queue.images.tolist() == [0, 1, -1, -1, -1]


# ------------------------------------------------------------------------------------ key encoder


def test_the_key_encoder_follows_the_closed_form():
    """θ_k after t steps = mᵗ·θ₀ + (1 - m)·Σᵢ m^(t-1-i)·θᵢ, with θᵢ after each optimizer step."""
    layer, momentum, steps = Layer(4), 0.9, 7
    method = made(unit(5, 4), ("projector", layer), momentum=momentum)
    key = method.key_encoder["projector"].layer.weight
    start, history = layer.layer.weight.detach().clone(), []
    for step in range(steps):
        weight = random(4, 4, seed=step)
        layer.layer.weight.data.copy_(weight)
        history.append(weight)
        method.after_step(torch.arange(2), {"keys": random(2, 1, 4)}, progress(step))
    expected = momentum**steps * start
    for i, weight in enumerate(history):
        expected = expected + (1 - momentum) * momentum ** (steps - 1 - i) * weight
    torch.testing.assert_close(key, expected, rtol=1e-12, atol=1e-14)


def test_the_momentum_may_rise_along_a_cosine():
    """0.5 at the first step, 0.75 at half of the steps, towards 1."""
    layer = Layer(4)
    method = made(unit(5, 4), ("projector", layer), momentum=0.5, final_momentum=1.0)
    key, start = method.key_encoder["projector"].layer.weight, layer.layer.weight.detach().clone()
    layer.layer.weight.data.zero_()
    method.after_step(torch.arange(2), {"keys": random(2, 1, 4)}, progress(0))
    torch.testing.assert_close(key, 0.5 * start)
    method.after_step(torch.arange(2), {"keys": random(2, 1, 4)}, progress(5))
    torch.testing.assert_close(key, 0.75 * 0.5 * start)


def test_the_copy_averages_parameters_and_not_batch_norm_statistics():
    norm = nn.BatchNorm1d(3)
    copy = Momentum(norm=norm)
    norm.weight.data.fill_(3.0)
    norm.running_mean.fill_(5.0)
    copy.follow(0.5, norm=norm)
    assert copy["norm"].weight.tolist() == [2.0] * 3
    assert copy["norm"].running_mean.tolist() == [0.0] * 3


def test_no_gradient_reaches_the_key_encoder():
    """Nor the query encoder through the keys: its gradient is that with constant keys."""
    first, second, keys = random(3, 4), random(3, 4, seed=1), unit(6, 4, seed=2)
    layer = Layer(4)
    method = made(keys, ("projector", layer))
    method(crops(first, second), progress()).loss.backward()
    for value in method.key_encoder.parameters():
        assert not value.requires_grad and value.grad is None

    weight = layer.layer.weight.detach().clone().requires_grad_()
    query = F.normalize(first @ weight.T, dim=1)
    key = F.normalize(second @ weight.detach().T, dim=1)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ keys.T], 1) / 0.1
    F.cross_entropy(logits, torch.zeros(3, dtype=torch.int64)).backward()
    torch.testing.assert_close(layer.layer.weight.grad, weight.grad)


def test_the_optimizer_never_sees_the_key_encoder(images):
    run = build(small(images))
    own = {id(value) for value in run.method.key_encoder.parameters()}
    trained = {id(value) for group in run.optimizer.param_groups for value in group["params"]}
    assert own and not own & trained


# ---------------------------------------------------------------------------------------- shuffling


def test_unshuffled_rows_are_in_the_given_order():
    rows, seen = random(9, 4), []

    def encode(shuffled_rows):
        seen.append(shuffled_rows)
        return 2 * shuffled_rows

    assert torch.equal(shuffled(rows, Draws(1), encode), 2 * rows)
    assert not torch.equal(seen[0], rows)
    assert sorted(seen[0][:, 0].tolist()) == sorted(rows[:, 0].tolist())


def test_ranks_encode_each_others_rows(ranks, tmp_path):
    """Every row of both ranks is encoded once, and comes back to its rank."""
    every = random(8, 3)

    def work(folder):
        rank, seen = distributed.rank(), []

        def encode(rows):
            seen.append(rows)
            return rows.clone()

        rows = every[4 * rank : 4 * rank + 4]
        assert torch.equal(shuffled(rows, Draws(1, rank=rank, world=2), encode), rows)
        torch.save(seen[0], folder / f"{rank}.pt")

    assert ranks(work) == [0, 0]
    seen = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert sorted(torch.cat(seen)[:, 0].tolist()) == sorted(every[:, 0].tolist())
    own = set(every[:4, 0].tolist())
    assert 0 < len(own & set(seen[0][:, 0].tolist())) < 4, "some rows, and not all, are its own"


def test_on_one_rank_shuffling_needs_a_split_norm(images):
    """Without it the order of rows changes no key; with it, a key depends on its slice."""
    difference = {}
    for norm in ("model", "split"):
        run = build(small(images, f"encoder.norm={norm}"))
        batch = run.transform.on_device(next(run.loader.batches(0, 1)), Draws(0))
        view = batch.views["global"][:, :1]
        run.method.shuffle = False
        plain = run.method.keys(view, Draws(0))
        run.method.shuffle = True
        difference[norm] = (run.method.keys(view, Draws(0)) - plain).abs().max().item()
    assert difference["model"] < 1e-4 and difference["split"] > 1e-3


# ------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("symmetric", [False, True])
def test_two_ranks_have_the_gradients_of_one(symmetric, ranks, tmp_path):
    batch, keys = crops(random(6, 5), random(6, 5, seed=1)), unit(12, 5, seed=2)

    def gradient():
        method = made(keys, ("projector", Layer(5)), temperature=0.2, symmetric=symmetric)
        return mean_gradients(method, batch)

    def work(folder):
        torch.save(gradient(), folder / f"{distributed.rank()}.pt")

    (expected,) = gradient()
    assert ranks(work) == [0, 0]
    for rank in (0, 1):
        (found,) = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------------------------------ recipes


def small(images, *more):
    """The recipe of MoCo v2 at small sizes."""
    settings = ["transform.size=32", "encoder.model=test_resnet", "sampler.size=16"]
    settings += ["train.epochs=1", "train.batch_size=8", "train.workers=0", "train.device=cpu"]
    settings += ["train.precision=fp32", *more]
    return recipe.read("moco", data=str(images), overrides=settings)


def test_symmetric_training_fills_the_queue_twice_as_fast(images):
    stored = {}
    for symmetric in ("false", "true"):
        run = build(small(images, f"method.symmetric={symmetric}", "sampler.size=64"))
        list(islice(train(run), 2))
        stored[symmetric] = int((run.method.queue.images >= 0).sum())
    assert stored == {"false": 16, "true": 32}


def test_v1_and_v2_differ_in_head_colours_temperature_and_schedule():
    one, two = recipe.read("imagenet/moco_v1"), recipe.read("imagenet/moco")
    assert one.method == two.method and one.encoder == two.encoder and one.sampler == two.sampler
    assert (one.heads["projector"].use, two.heads["projector"].use) == ("linear", "mlp")
    assert (one.loss.options["temperature"], two.loss.options["temperature"]) == (0.07, 0.2)
    colours = one.transform.options["colours"], two.transform.options["colours"]
    assert colours == ("moco_v1", "moco_v2")
    assert (one.schedule.use, two.schedule.use) == ("multistep", "cosine")


def test_expected_values():
    """At chance ln(1 + K); at first nothing is expected."""
    method = made(unit(255, 4))
    assert method.at_chance(32) == {"accuracy": 1 / 256}
    assert method.at_start(32) is None
