"""A memory bank spread over processes: each holds a block of rows, and all together give what one
bank gives to one process.
"""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from sslkit import distributed, recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Draws
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins import samplers
from sslkit_plugins.losses import InfoNCE, LambdaNCE
from sslkit_plugins.samplers.memory_bank import BLOCK, MemoryBank

DIM, IMAGES, BATCH, TERMS, STEPS = 6, 43, 8, 2, 3
"""43 rows: blocks of 22 and 21, or of 11, 11, 11 and 10."""


def some_steps(folder, loss, **options):
    """Three steps of a head of one layer over numbers that stand for images; what comes of them
    under this rank's name.
    """
    torch.manual_seed(0)
    images, weight = torch.randn(IMAGES, DIM), torch.randn(TERMS, DIM, DIM, requires_grad=True)
    sampler = MemoryBank(DIM, IMAGES, **options)
    order, rank, world = torch.randperm(IMAGES), distributed.rank(), distributed.world()
    sampler.fill(order, images[order] + 1)
    found = {}
    for step in range(STEPS):
        index = order[step * BATCH :][:BATCH].chunk(world)[rank]
        weight.grad = None
        prediction = images[index] @ weight
        prediction.retain_grad()
        recalled = sampler.recall(index)
        negatives = sampler.draw(index, Draws(step, rank=rank, world=world), terms=TERMS)
        value = loss(prediction, recalled, negatives)
        value.backward()
        found |= {
            f"{step}.loss": distributed.mean(value),
            f"{step}.recalled": distributed.gather(recalled),
            f"{step}.prediction": distributed.gather(prediction.grad.transpose(0, 1) / world),
            f"{step}.weight": distributed.mean(weight.grad),
            f"{step}.count": torch.tensor(negatives.count),
        }
        with torch.no_grad():
            weight -= 0.1 * distributed.mean(weight.grad)
        sampler.update(distributed.gather(index), distributed.gather(prediction[1].detach()))
    spread = sampler.shard().get("bank", (0, IMAGES, IMAGES))
    found |= {"bank": sampler.bank, "spread": torch.tensor(spread)}
    save_file(
        {name: value.detach().contiguous() for name, value in found.items()},
        folder / f"{world}-{rank}.safetensors",
    )


SETTINGS = [
    {"negatives": 30},
    {"negatives": 30, "draws": "image"},
    {"negatives": 30, "draws": "batch"},
    {"negatives": "all"},
    {"negatives": 30, "exclude_own": False},
    {"negatives": "all", "exclude_own": False},
    {"negatives": 2, "dtype": "bfloat16"},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("world", [2, 4])
def test_a_spread_bank_gives_what_one_bank_gives(ranks, tmp_path, world, options):
    """Loss, gradients and rows after three steps; in the official form, whose constant is one for
    all.
    """
    some_steps(tmp_path, LambdaNCE(lambda_=0.3, temperature=0.2), **options)
    assert (
        ranks(
            lambda folder: some_steps(
                folder, LambdaNCE(lambda_=0.3, temperature=0.2), shards="auto", **options
            ),
            world,
        )
        == [0] * world
    )
    one = load_file(tmp_path / "1-0.safetensors")
    parts = [load_file(tmp_path / f"{world}-{rank}.safetensors") for rank in range(world)]

    size = math.ceil(IMAGES / world)
    expected = [(rank * size, min(IMAGES, (rank + 1) * size), IMAGES) for rank in range(world)]
    assert [tuple(part.pop("spread").tolist()) for part in parts] == expected
    assert one.pop("spread").tolist() == [0, IMAGES, IMAGES]
    torch.testing.assert_close(torch.cat([part.pop("bank") for part in parts]), one.pop("bank"))
    for part in parts:
        for name, value in part.items():
            torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "costs", [samplers.Costs(1, 1, 0), samplers.Costs(1, 1, 1e9)], ids=["gathered", "products"]
)
def test_gathered_rows_and_whole_products_agree_across_processes(
    ranks, tmp_path, costs, monkeypatch
):
    some_steps(tmp_path, InfoNCE(), negatives=20)
    monkeypatch.setitem(samplers.COSTS, "cpu", costs)
    assert ranks(lambda folder: some_steps(folder, InfoNCE(), shards="auto", negatives=20), 2) == [
        0,
        0,
    ]
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-1"))
    for name in one.keys() - {"bank", "spread"}:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_rows_begin_alike_however_they_are_spread(ranks, tmp_path):
    """Nobody makes the rows of others: each block of rows has a generator of its own."""
    images = 3 * BLOCK + 5

    def work(folder):
        torch.manual_seed(7)
        save_file(
            {"bank": MemoryBank(2, images, shards="auto").bank},
            folder / f"{distributed.rank()}.safetensors",
        )

    assert ranks(work, 4) == [0] * 4
    torch.manual_seed(7)
    whole = MemoryBank(2, images).bank
    assert torch.equal(
        torch.cat([load_file(tmp_path / f"{rank}.safetensors")["bank"] for rank in range(4)]), whole
    )


def test_one_process_holds_all_rows(tmp_path):
    some_steps(tmp_path, LambdaNCE(), negatives=30)
    one = load_file(tmp_path / "1-0.safetensors")
    some_steps(tmp_path, LambdaNCE(), negatives=30, shards="auto")
    other = load_file(tmp_path / "1-0.safetensors")
    assert MemoryBank(DIM, IMAGES, shards="auto").shard() == {"bank": (0, IMAGES, IMAGES)}
    assert MemoryBank(DIM, IMAGES).shard() == {}
    for name, value in one.items():
        torch.testing.assert_close(other[name], value)


def test_fewer_images_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    with pytest.raises(
        RecipeError,
        match=r"sampler.shards.*5 images are too few for 4 ranks; set it to none",
    ):
        MemoryBank(DIM, 5, shards="auto")


def test_exchange_sends_rows_to_ranks_and_gradients_back(ranks):
    def work(folder):
        rank = distributed.rank()
        rows = (10.0 * rank + torch.arange(3.0)).unsqueeze(1).requires_grad_()
        received = distributed.exchange(rows)
        assert received.flatten().tolist() == [rank, 10 + rank, 20 + rank]
        (received * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
        assert rows.grad.flatten().tolist() == [rank + 1] * 3, (
            "the weight that every receiver gave to what came from this rank"
        )
        assert distributed.largest(torch.tensor(rank)) == 2

    assert ranks(work, 3) == [0] * 3


WITHOUT_BATCH_NORM = "encoder.model=test_efficientnet_ln"


@pytest.mark.parametrize(
    "more",
    [(), ("sampler.init=forward", "sampler.negatives=all", "train.accumulate=2")],
    ids=["drawn", "all"],
)
def test_training_with_a_spread_bank_is_training_with_one_bank(ranks, tiny, tmp_path, more):
    def work(folder, *settings):
        made = build(recipe.read(tiny, overrides=(WITHOUT_BATCH_NORM, *more, *settings)))
        for _ in zip(range(3), train(made), strict=False):
            pass
        tensors = {name: value.contiguous() for name, value in made.method.state_dict().items()}
        save_file(tensors, folder / f"{distributed.world()}-{distributed.rank()}.safetensors")

    work(tmp_path)
    assert ranks(lambda folder: work(folder, "sampler.shards=auto"), 2) == [0, 0]
    one, first, second = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1")
    )
    assert len(first["samplers.image.bank"]) == len(second["samplers.image.bank"]) == 12
    first["samplers.image.bank"] = torch.cat(
        [first["samplers.image.bank"], second["samplers.image.bank"]]
    )
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
