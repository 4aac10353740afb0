"""PIRL with MoCo's key encoder and queue: the terms by hand, the copy, the queue."""

import pytest
import torch
from bare import Layer, bare, mean_gradients, progress, random
from torch.nn import functional as F

from sslkit import distributed, recipe
from sslkit.interfaces import Batch
from sslkit.training.build import build
from sslkit_plugins.losses import LambdaNCE
from sslkit_plugins.methods.pirl_moco import PirlMoco, accuracy
from sslkit_plugins.samplers import KeyNegatives

TAU = 0.2


def made(keys, image, pretext, lambda_=0.5, **options):
    heads = (("image", image), ("rotated", pretext))
    loss = LambdaNCE(lambda_=lambda_, temperature=TAU, form="info_nce")
    return bare(PirlMoco, keys.shape[1], *heads, keys=keys, loss=loss, **options)


def batch(image, rotated):
    views = {"image": image[..., None, None], "rotated": rotated[..., None, None]}
    return Batch(views, {}, torch.arange(len(image)))


def unit(*shape, seed=0):
    return F.normalize(random(*shape, seed=seed), dim=-1)


def term(prediction, target, keys):
    """InfoNCE of one view, as a cross-entropy."""
    query = F.normalize(prediction, dim=1)
    logits = torch.cat([(query * target).sum(1, keepdim=True), query @ keys.T], 1) / TAU
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_both_heads_are_compared_with_the_image_s_key(weight):
    image, rotated, keys = random(4, 6), random(4, 6, seed=1), unit(9, 6, seed=2)
    pretext = Layer(6)
    method = made(keys, Layer(6), pretext, lambda_=weight)
    pretext.layer.weight.data.copy_(random(6, 6, seed=3))
    key_weight = method.key_encoder["image"].layer.weight
    key_weight.data.copy_(random(6, 6, seed=4))
    target = F.normalize(image @ key_weight.T, dim=1)
    both = [
        term(rotated @ pretext.layer.weight.T, target, keys),
        term(image @ method.heads["image"].layer.weight.T, target, keys),
    ]
    found = method(batch(image, rotated), progress()).loss
    torch.testing.assert_close(found, weight * both[0] + (1 - weight) * both[1], rtol=1e-12, atol=0)


def test_the_key_encoder_copies_encoder_and_image_head():
    method = made(unit(9, 6), Layer(6), Layer(6), momentum=0.75)
    assert set(method.key_encoder) == {"encoder", "image"}
    start = method.heads["image"].layer.weight.detach().clone()
    method.heads["image"].layer.weight.data.zero_()
    method.after_step(torch.arange(2), {"image": unit(2, 6)}, progress())
    torch.testing.assert_close(method.key_encoder["image"].layer.weight, 0.75 * start)


def test_keys_of_the_image_enter_the_queue_after_the_step():
    keys, data = unit(9, 6), batch(random(2, 6, seed=1), random(2, 6, seed=2))
    method = made(keys, Layer(6), Layer(6))
    output = method(data, progress())
    output.loss.backward()
    for value in method.key_encoder.parameters():
        assert not value.requires_grad and value.grad is None
    assert torch.equal(method.queue.keys, keys)
    expected = method.keys(data.views["image"], progress().draws)
    method.after_step(data.index, output.keep, progress())
    torch.testing.assert_close(method.queue.keys[:2], expected)
    assert method.queue.images.tolist() == [0, 1, *[-1] * 7]


def test_two_ranks_have_the_gradients_of_one(ranks, tmp_path):
    data, keys = batch(random(6, 5), random(6, 5, seed=1)), unit(12, 5, seed=2)

    def gradient():
        return mean_gradients(made(keys, Layer(5), Layer(5)), data)

    def work(folder):
        torch.save(gradient(), folder / f"{distributed.rank()}.pt")

    expected = gradient()
    assert ranks(work) == [0, 0]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_expected_values():
    """At chance one of 1 + K keys is right; the loss has no such level."""
    method = made(unit(255, 4), Layer(4), Layer(4))
    assert method.at_chance(32) == {"accuracy": 1 / 256}
    assert method.at_start(32) is None


def test_accuracy_counts_keys_that_are_nearest_by_hand():
    queries = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    keys = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    negatives = KeyNegatives(torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert accuracy(queries, keys, negatives).item() == 0.5


@pytest.mark.parametrize("transform", ["rotation", "jigsaw_rotation"])
def test_any_pretext_transform_of_pirl_fits(transform, images):
    settings = ["encoder.model=test_resnet", "train.batch_size=8", "train.device=cpu"]
    settings += [f"transform={{use: {transform}, size: 32}}"]
    if transform == "rotation":
        mlp = "{use: mlp, hidden_dim: 16, out_dim: 128}"
        settings += [f"heads={{image: {mlp}, rotated: {mlp}}}"]
    run = build(recipe.read("pirl_moco", data=str(images), overrides=settings))
    assert isinstance(run.method, PirlMoco)
