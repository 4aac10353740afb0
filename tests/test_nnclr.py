"""NNCLR: N candidates by hand, neighbours, the order of search and store, two ranks."""

import math

import pytest
import torch
from bare import Layer, bare, crops, mean_gradients, progress, random
from torch.nn import functional as F

from sslkit_plugins.methods.nnclr import Nnclr

HEADS = ("projector", "predictor")


def made(keys, *heads, **options):
    return bare(Nnclr, keys.shape[1], *(heads or HEADS), keys=keys, **options)


def by_hand(first, second, keys, temperature):
    """The loss of section 3.2 for both crops, as double loops in plain floats."""
    first, second = F.normalize(first, dim=1).tolist(), F.normalize(second, dim=1).tolist()
    keys = keys.tolist()

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    total = 0.0
    for here, there in ((first, second), (second, first)):
        for i, row in enumerate(here):
            neighbour = max(keys, key=lambda key, row=row: dot(key, row))
            exponentials = [math.exp(dot(neighbour, other) / temperature) for other in there]
            total -= math.log(exponentials[i] / sum(exponentials))
    return total / (2 * len(first))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_a_softmax_over_n_candidates(temperature):
    first, second, keys = random(5, 8), random(5, 8, seed=1), F.normalize(random(20, 8, seed=2))
    found = made(keys, temperature=temperature)(crops(first, second), progress()).loss
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(by_hand(first, second, keys, temperature), rel=1e-12)


@pytest.mark.parametrize("images", [2, 3, 8])
def test_equal_rows_give_log_n(images):
    """N candidates; the form of SimCLR would give log(2N - 1)."""
    same = F.normalize(torch.ones(images, 4, dtype=torch.float64), dim=1)
    loss = made(same)(crops(same, same), progress()).loss
    assert loss.item() == pytest.approx(math.log(images), rel=1e-12)


@pytest.mark.parametrize("images", [2, 3, 8])
def test_aligned_orthonormal_rows_have_a_closed_form(images):
    rows = torch.eye(images, dtype=torch.float64)
    loss = made(rows, temperature=0.5)(crops(rows, rows), progress()).loss
    expected = math.log(1 + (images - 1) * math.exp(-1 / 0.5))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_queue_takes_the_first_crops_after_both_searches():
    keys = F.normalize(random(6, 4), dim=1)
    first, second = random(2, 4, seed=1), random(2, 4, seed=2)
    method, batch = made(keys), crops(first, second)
    output = method(batch, progress())
    assert torch.equal(method.queue.keys, keys), "nothing is stored before the step"
    assert torch.equal(output.keep["projector"], first)
    method.after_step(batch.index, output.keep, progress())
    torch.testing.assert_close(method.queue.keys[:2], F.normalize(first, dim=1))
    assert torch.equal(method.queue.keys[2:], keys[2:])
    assert method.queue.images.tolist() == [0, 1, -1, -1, -1, -1]


def test_the_gradient_passes_the_predictions_alone():
    """Neighbours are constants: the same gradient as with neighbours that are computed apart."""
    keys = F.normalize(random(9, 4), dim=1)
    views = [random(3, 4, seed=seed) for seed in (1, 2)]
    layer = Layer(4)
    made(keys, ("projector", layer), "predictor")(crops(*views), progress()).loss.backward()

    weight = layer.layer.weight.detach().clone().requires_grad_()
    projected = [view @ weight.T for view in views]
    total = 0
    for here, there in ((0, 1), (1, 0)):
        nearest = keys[(projected[here].detach() @ keys.T).argmax(1)]
        logits = nearest @ F.normalize(projected[there], dim=1).T / 0.1
        total = total + F.cross_entropy(logits, torch.arange(3)) / 2
    total.backward()
    torch.testing.assert_close(layer.layer.weight.grad, weight.grad)


def test_two_ranks_have_the_gradients_of_one(ranks, tmp_path):
    """Predictions of all ranks are candidates, and their gradients are summed."""
    batch = crops(random(6, 5), random(6, 5, seed=1))
    keys = F.normalize(random(12, 5, seed=2), dim=1)

    def gradient():
        heads = (("projector", Layer(5)), ("predictor", Layer(5)))
        return mean_gradients(made(keys, *heads, temperature=0.2), batch)

    def work(folder):
        torch.save(gradient(), folder / f"{torch.distributed.get_rank()}.pt")

    expected = gradient()
    assert ranks(work) == [0, 0]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_expected_values():
    """At first ln(N - 1) + 1/(2·D·τ²), at chance ln N."""
    method = made(F.normalize(random(4, 64), dim=1), temperature=0.1)
    assert method.at_start(512) == pytest.approx(math.log(511) + 1 / 1.28, abs=0.05)
    assert method.at_chance(512)["loss"] == pytest.approx(math.log(512))
    assert method.at_start(1) == method.at_chance(1)["loss"] == 0, "one image has no negatives"


def test_micro_batches_would_lack_candidates():
    """`check` refuses `train.accumulate` for methods whose loss looks across the batch."""
    assert Nnclr.joins and Nnclr.contrasts and Nnclr.stores == ("projector",)
