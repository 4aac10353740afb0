"""The queue of keys: a ring, its negatives, its neighbours, and its place in a checkpoint."""

from itertools import islice

import pytest
import torch
from torch.nn import functional as F

from sslkit import recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Draws
from sslkit.runs import checkpoint
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.losses import InfoNCE
from sslkit_plugins.samplers import MemoryBank, Queue, as_queue

DIM = 6


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pushed(size, batch, times, **options):
    """A queue after `times` batches, and all keys that were pushed, oldest first."""
    queue, keys = Queue(DIM, 100, size=size, **options), unit(batch * times, DIM)
    for first in range(0, batch * times, batch):
        index = torch.arange(first, first + batch)
        queue.update(index, keys[first : first + batch])
    return queue, keys


def in_order(queue):
    """The images of the queue, oldest first."""
    return queue.images.roll(-int(queue.position)).tolist()


def test_a_ring_holds_the_latest_keys():
    """K = 8, B = 3: after 7 batches the keys 13 … 20 of 0 … 20."""
    queue, keys = pushed(8, 3, 7)
    assert int(queue.position) == 21 % 8 == 5
    assert in_order(queue) == list(range(13, 21))
    torch.testing.assert_close(queue.keys, keys[queue.images])


def test_keys_of_a_batch_wrap_around():
    """K = 4, B = 3: the second batch takes places 3, 0 and 1."""
    queue, _ = pushed(4, 3, 2)
    assert queue.images.tolist() == [4, 5, 2, 3]
    assert int(queue.position) == 2


def test_a_queue_that_is_not_full_holds_random_vectors():
    queue, _ = pushed(8, 3, 1)
    assert queue.images.tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("batch", [4, 5, 11])
def test_of_a_batch_larger_than_the_queue_the_last_keys_stay(batch):
    queue, keys = pushed(4, batch, 3)
    assert sorted(queue.images.tolist()) == list(range(3 * batch - 4, 3 * batch))
    assert in_order(queue) == list(range(3 * batch - 4, 3 * batch))
    torch.testing.assert_close(queue.keys, keys[queue.images])


def test_keys_are_normalised():
    queue = Queue(DIM, 100, size=3)
    queue.update(torch.arange(3), 7 * unit(3, DIM))
    torch.testing.assert_close(queue.keys, unit(3, DIM))


@pytest.mark.parametrize("exclude_own", [True, False])
def test_own_earlier_keys_are_no_negatives(exclude_own):
    queue, _ = pushed(8, 4, 2, exclude_own=exclude_own)
    scores = queue.draw(torch.tensor([3, 50]), Draws(0)).similarity(unit(2, DIM, seed=1))
    expected = torch.zeros(2, 8, dtype=torch.bool)
    expected[0, 3] = exclude_own
    assert torch.equal(scores.isinf(), expected)
    assert queue.candidates == 8


def test_all_keys_are_negatives_of_every_query_and_term():
    queue, _ = pushed(8, 4, 2)
    query = unit(2, 3, DIM, seed=1)
    negatives = queue.draw(torch.tensor([97, 98, 99]), Draws(0), terms=2)
    torch.testing.assert_close(negatives.similarity(query), query @ queue.keys.T)


def test_equal_vectors_give_log_of_one_more_than_the_keys():
    queue = Queue(DIM, 100, size=8).double()
    same = F.normalize(torch.ones(1, DIM, dtype=torch.float64), dim=1)
    queue.keys.copy_(same.expand(8, -1))
    rows = same.expand(4, -1)
    loss = InfoNCE(temperature=0.07)(rows, rows, queue.draw(torch.arange(4), Draws(0)))
    torch.testing.assert_close(loss, torch.tensor(9.0, dtype=torch.float64).log())


OTHERS = torch.arange(1000, 1020)
"""Images without keys in the queue."""


def test_the_nearest_key_has_the_largest_cosine():
    """For unit vectors it is also the key at the smallest distance."""
    queue, _ = pushed(50, 50, 1)
    rows = 3 * unit(20, DIM, seed=1)
    found = queue.nearest(rows, OTHERS)
    cosines = F.cosine_similarity(rows.unsqueeze(1), queue.keys, dim=-1)
    distances = torch.cdist(F.normalize(rows, dim=1), queue.keys)
    assert torch.equal(found, queue.keys[cosines.argmax(1)])
    assert torch.equal(found, queue.keys[distances.argmin(1)])


def test_a_vector_in_the_queue_is_its_own_neighbour_bit_for_bit():
    queue = Queue(DIM, 100, size=32)
    rows = 5 * torch.randn(8, DIM, generator=torch.Generator().manual_seed(2))
    queue.update(torch.arange(8), rows)
    assert torch.equal(queue.nearest(rows, torch.arange(50, 58)), F.normalize(rows, dim=1))


def test_neighbours_have_no_gradient():
    queue, _ = pushed(8, 4, 2)
    assert not queue.nearest(unit(3, DIM).requires_grad_(), OTHERS[:3]).requires_grad


def test_neighbours_are_float32_under_autocast():
    queue, _ = pushed(64, 64, 1)
    rows = unit(20, DIM, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = queue.nearest(rows, OTHERS)
    assert torch.equal(found, queue.nearest(rows, OTHERS))


@pytest.mark.parametrize("exclude_own", [True, False])
def test_an_image_is_not_its_own_neighbour(exclude_own):
    queue = Queue(DIM, 100, size=8, exclude_own=exclude_own)
    rows = unit(2, DIM, seed=3)
    queue.update(torch.tensor([4, 5]), rows)
    found = queue.nearest(rows[:1], torch.tensor([4]))
    assert torch.allclose(found, rows[:1]) is not exclude_own


def test_its_state_is_three_buffers():
    assert list(Queue(DIM, 100, size=4).state_dict()) == ["keys", "images", "position"]


def test_a_checkpoint_restores_the_queue(images, tmp_path):
    made = recipe.read(
        "moco",
        data=str(images),
        overrides=[
            "transform.size=32",
            "encoder.model=test_resnet",
            "sampler.size=10",
            "train.batch_size=4",
            "train.workers=0",
            "train.device=cpu",
        ],
    )
    run, other = build(made), build(made)
    list(islice(train(run), 4))
    checkpoint.save(run, tmp_path)
    checkpoint.resume(other, tmp_path)
    before, after = run.method.sampler.state_dict(), other.method.sampler.state_dict()
    assert int(before["position"]) == 16 % 10 and int(before["images"].min()) >= 0
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_method_that_needs_a_queue_refuses_a_bank():
    queue = Queue(DIM, 100, size=4)
    assert as_queue(queue, "moco") is queue
    with pytest.raises(RecipeError) as raised:
        as_queue(MemoryBank(DIM, 9), "moco")
    assert str(raised.value) == (
        "sampler  method 'moco' stores keys in a queue; use: sampler: {use: queue}"
    )
