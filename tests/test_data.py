"""The loader: what is in a batch depends on seed and step alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslkit.data.loader import Loader, auto_workers, fingerprint
from sslkit.data.plain import plain_box, plain_view
from sslkit.data.splits import split_by_class
from sslkit.errors import DataError
from sslkit.interfaces import Batch, Draws, ImageSource, PretextTransform, Sample


class Numbered(ImageSource):
    """Image i is 4×4 of value i; those in `broken` cannot be read."""

    def __init__(self, count: int, broken: tuple[int, ...] = (), side: int = 4) -> None:
        self.names = [f"{number:03d}.png" for number in range(count)]
        self.broken, self.side = broken, side

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise OSError("image file is truncated")
        return Image.new("RGB", (self.side, self.side), (index, index, index))


class Noted(PretextTransform):
    """The image as it is, and one drawn number as the target."""

    views = ("image",)

    def __init__(self) -> None:
        self.size, self.shapes, self.num_targets = 4, {"image": (3, 4, 4)}, {"drawn": 2**31}

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Sample:
        pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())
        return Sample({"image": pixels}, {"drawn": torch.tensor(int(rng.integers(2**31)))})

    def on_device(self, batch: Batch, draws: Draws) -> Batch:
        return batch

    def plain(self, images: Tensor) -> Tensor:
        return images.float()


class Faulty(Noted):
    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Sample:
        raise KeyError("a mistake of the transform")


def loader(
    source: ImageSource,
    batch_size: int = 4,
    workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Loader:
    return Loader(
        source, Noted(), batch_size=batch_size, seed=seed, workers=workers, rank=rank, world=world
    )


def content(batches) -> list[tuple[list[int], list[int], list[int], tuple]]:
    return [
        (
            b.index.tolist(),
            b.views["image"][:, 0, 0, 0].tolist(),
            b.targets["drawn"].tolist(),
            b.unreadable,
        )
        for b in batches
    ]


def test_every_image_once_an_epoch_and_the_rest_left_out():
    made = loader(Numbered(14))
    assert made.steps_per_epoch == 3
    epochs = [
        [i for batch in made.batches(3 * e, 3 * e + 3) for i in batch.index.tolist()]
        for e in range(3)
    ]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert set().union(*epochs) == set(range(14))


def test_views_belong_to_the_index():
    for index, pixel, _, unreadable in content(loader(Numbered(14)).batches(0, 6)):
        assert index == pixel and unreadable == ()


def test_views_differ_by_epoch_and_seed():
    drawn = {}
    for seed in (0, 1):
        for epoch, (index, _, numbers, _) in enumerate(
            content(loader(Numbered(4), seed=seed).batches(0, 2))
        ):
            drawn[seed, epoch] = dict(zip(index, numbers, strict=True))
    assert len({numbers[0] for numbers in drawn.values()}) == 4
    assert len(set(drawn[0, 0].values())) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    source = Numbered(22, broken=(3, 7, 20))
    assert content(loader(source, workers=workers).batches(0, 12)) == content(
        loader(source).batches(0, 12)
    )


@pytest.mark.parametrize("start", [1, 4, 5, 9, 10])
def test_any_step_can_be_the_first(start):
    source = Numbered(22, broken=(3,))
    assert (
        content(loader(source).batches(start, 12)) == content(loader(source).batches(0, 12))[start:]
    )


def test_no_steps_no_batches():
    assert list(loader(Numbered(8)).batches(2, 2)) == []
    assert list(loader(Numbered(8), workers=1).batches(2, 2)) == []


@pytest.mark.parametrize("way", ["batches", "full_pass"])
def test_ranks_share_the_batch_of_one_process(way):
    source = Numbered(22, broken=(5,))

    def all_of(made: Loader):
        return content(made.full_pass(0) if way == "full_pass" else made.batches(0, 8))

    halves = [all_of(loader(source, batch_size=2, rank=rank, world=2)) for rank in (0, 1)]
    joined = [
        tuple(a + b for a, b in zip(first, second, strict=True))
        for first, second in zip(*halves, strict=True)
    ]
    assert joined == all_of(loader(source))


def test_a_full_pass_goes_in_order_and_fills_up():
    batches = content(loader(Numbered(10)).full_pass(0))
    assert [index for index, *_ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


def test_a_full_pass_draws_views_of_its_own():
    made = loader(Numbered(4))
    (order, _, trained, _), (_, _, first, _) = (
        content(made.batches(0, 1))[0],
        content(made.full_pass(0))[0],
    )
    assert not set(trained) & set(first) and sorted(order) == [0, 1, 2, 3]


def test_unreadable_images_are_named_and_replaced_by_others():
    source = Numbered(30, broken=(1, 2, 3))
    named = set()
    for index, pixel, _, unreadable in content(loader(source, batch_size=10).batches(0, 9)):
        assert index == pixel, "a replacement goes by its own index"
        assert len(set(index)) == 10 and not {1, 2, 3} & set(index)
        assert {reason for _, reason in unreadable} <= {"OSError: image file is truncated"}
        named |= {name for name, _ in unreadable}
    assert named == {"001.png", "002.png", "003.png"}


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_left_to_replace_with(workers):
    with pytest.raises(
        DataError,
        match=r"^00\d\.png cannot be read \(OSError: image file is truncated\), and no image is "
        r"left",
    ) as caught:
        list(loader(Numbered(4, broken=(0, 1, 2, 3)), batch_size=2, workers=workers).batches(0, 1))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_s_mistake_is_not_blamed_on_the_image(workers):
    with pytest.raises(KeyError, match="a mistake of the transform"):
        list(Loader(Numbered(4), Faulty(), batch_size=2, seed=0, workers=workers).batches(0, 1))


def test_too_few_images():
    with pytest.raises(
        DataError,
        match=r"^5 images do not fill a batch of 8; use smaller batches: --set "
        r"train\.batch_size=4$",
    ):
        loader(Numbered(5), batch_size=4, world=2)


def test_fingerprint_tells_lists_apart():
    one, two = Numbered(3), Numbered(3)
    assert fingerprint(one) == fingerprint(two) and len(fingerprint(one)) == 64
    two.names = ["000.png", "002.png", "001.png"]
    assert fingerprint(one) != fingerprint(two) != fingerprint(Numbered(4))
    two.names = ["000.png001.png", "002.png", ""]
    assert fingerprint(one) != fingerprint(two)
    two.names = [os.fsdecode(b"caf\xe9.png"), "b", "c"]
    assert len(fingerprint(two)) == 64


def test_split_by_class():
    labels = np.array([0] * 10 + [1] * 5 + [2] * 2 + [3])
    first, second = split_by_class(labels, 0.2, seed=3)
    assert sorted([*first, *second]) == list(range(18))
    assert np.bincount(labels[second], minlength=4).tolist() == [2, 1, 1, 0]
    again, other = split_by_class(labels, 0.2, seed=3)[1], split_by_class(labels, 0.2, seed=4)[1]
    assert again.tolist() == second.tolist() != other.tolist()


def test_auto_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)), raising=False)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (auto_workers("cuda"), auto_workers("cpu")) == (16, 12)
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (auto_workers("cuda"), auto_workers("cpu")) == (16, 12), "no rank: a scheduler's"
    monkeypatch.setenv("RANK", "0")
    assert (auto_workers("cuda"), auto_workers("cpu")) == (3, 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert (auto_workers("cuda"), auto_workers("cpu")) == (1, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_pass_goes_in_order_and_fills_up(workers):
    batches = list(loader(Numbered(5), batch_size=2, workers=workers).plain_pass(4))
    assert [index.tolist() for _, index in batches] == [[0, 1], [2, 3], [4, 0]]
    for images, index in batches:
        assert images.dtype == torch.uint8 and images.shape == (len(index), 3, 4, 4)
        assert (images == index.view(-1, 1, 1, 1)).all()


def test_an_unreadable_image_is_black_in_a_plain_pass():
    images = torch.cat([rows for rows, _ in loader(Numbered(4, broken=(3,))).plain_pass(4)])
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 0]


def ramp(width: int, height: int) -> Image.Image:
    """Red rises by 1 a column, green by 1 a row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8))


def test_an_image_of_the_right_size_is_shown_as_it_is():
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    )
    assert np.array_equal(plain_view(picture, 32), picture)


def test_a_small_image_keeps_its_whole_short_side():
    shown = np.asarray(plain_view(ramp(46, 36), 36))
    assert shown.shape == (36, 36, 3)
    assert shown[:, 0, 1].tolist() == list(range(36)), "all rows"
    assert shown[0, :, 0].tolist() == list(range(5, 41)), "the middle 36 columns of 46"


def test_how_much_of_an_image_is_shown():
    """Rows of a landscape image: 7/8 of them are in the centre, or all. A short side of 256 px that
    was reduced to that counts as longer than any size."""
    shown = {
        (500, 224, None): 0.875,
        (256, 224, None): 0.875,
        (225, 224, None): 0.875,
        (224, 224, None): 1,
        (64, 64, None): 1,
        (256, 256, None): 1,
        (256, 256, 256): 0.875,
        (256, 384, 256): 0.875,
        (200, 224, 256): 1,
    }
    for (short, size, reduced_to), share in shown.items():
        _, top, _, bottom = plain_box(2 * short, short, size, reduced_to)
        assert top == pytest.approx(short - bottom)
        assert (bottom - top) / short == pytest.approx(share, abs=0.002)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3)], ids=["1x1", "3x500", "500x3"])
def test_odd_shapes_are_shown(size):
    assert plain_view(Image.new("RGB", size, "red"), 8).size == (8, 8)


def training(told) -> None:
    """A process group that trains, is told to stop, and still takes 50 batches."""
    os.setsid()
    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: caught.append(number))
    batches = loader(Numbered(64), workers=2).batches(0, 10**6)
    next(batches)
    told.send("going")
    while not caught:
        next(batches)
    for _ in range(50):
        next(batches)
    told.send("finished its work")


LEFT_OPEN = """
import sys
sys.path.insert(0, sys.argv[1])
from test_data import Faulty, Loader, Numbered, loader
kept = loader(Numbered(64), workers=1).batches(0, 10**6)
next(kept)
list(Loader(Numbered(4), Faulty(), batch_size=2, seed=0, workers=1).batches(0, 1))
"""


def script(text: str) -> subprocess.Popen:
    command = [sys.executable, "-c", text, str(Path(__file__).parent)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.skipif(sys.platform != "linux", reason="signals of a process group")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_stops_only_the_process_that_trains(sent, capfd):
    forking = multiprocessing.get_context("fork")
    told, telling = forking.Pipe(duplex=False)
    process = forking.Process(target=training, args=(telling,))
    process.start()
    assert told.poll(60) and told.recv() == "going"
    os.killpg(process.pid, sent)
    assert told.poll(60) and told.recv() == "finished its work"
    process.join(60)
    assert process.exitcode == 0 and capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="workers by fork")
def test_workers_end_with_the_process_that_trains():
    process = script(LEFT_OPEN)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "a mistake of the transform" in err
