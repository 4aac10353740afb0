"""Features that exceed the memory: float16 on disk, the same scores, nothing left behind."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import Noise, made, network
from torch.nn import functional as F

from sslkit import memory, recipe
from sslkit.errors import SslkitError
from sslkit.evaluation import compare, features, store
from sslkit.evaluation.candidates import RawPixels
from sslkit.evaluation.features import FeatureStore
from sslkit.interfaces import Features, Metric
from sslkit_plugins.evaluations import knn, logistic
from sslkit_plugins.evaluations.knn import Knn
from sslkit_plugins.evaluations.logistic import choose_strength, logistic_regression, standardise

CPU = torch.device("cpu")


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A machine of 4 KB, so that all features go to disk and no layer fits into memory."""
    monkeypatch.setattr(memory, "total", lambda: 4096)
    monkeypatch.delenv("TMPDIR", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options"),
    [("linear", {"layers": "all"}), ("knn", {"layers": "all", "k": "5"})],
    ids=["linear", "knn"],
)
def test_scores_from_disk_are_those_from_memory(short, name, options):
    choice = recipe.read_evaluation(name, options)
    probe = made([network(), network("untrained", baseline=True), RawPixels()])
    probe.home = short
    stored = store.run(choice, probe)
    assert stored["protocol"]["features"] == "float16 on disk"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "total", lambda: 2**40)
        plain = store.run(choice, made())
    assert "features" not in plain["protocol"]
    for one, other in zip(stored["entries"], plain["entries"], strict=True):
        first, second = (found["scores"]["top-1"]["value"] for found in (one, other))
        assert abs(first - second) <= 2 / 12, "rounding moves an image or two"
    assert not list(short.iterdir())


def test_other_evaluations_get_float32_of_one_layer(short):
    probe, seen = made(), []
    probe.home = short

    def score(given, seed):
        seen.append((given.train.dtype, given.val.dtype))
        return {"x": 0.0}

    probe.compare(score, [Metric("x")], layers=True)
    assert set(seen) == {(torch.float32, torch.float32)}


def test_features_within_a_quarter_of_the_memory_stay_there(monkeypatch, tmp_path):
    rows = torch.randn(10, 8)
    size = 4 * 8 * (10 + 2)
    for total, on_disk in ((4 * size, False), (4 * size - 4, True)):
        monkeypatch.setattr(memory, "total", lambda total=total: total)
        kept = FeatureStore((10, 2), tmp_path)
        kept.write(0, torch.arange(10), {("conv1", "trained"): rows})
        kept.write(1, torch.arange(2), {("conv1", "trained"): rows[:2]})
        assert kept.on_disk is on_disk and not list(tmp_path.iterdir())
        train, val = kept.take(("conv1", "trained"), CPU, chunked=False)
        assert train.dtype == val.dtype == torch.float32 and not len(kept)
        torch.testing.assert_close(train, rows, rtol=2**-10, atol=1e-6)


def test_a_layer_that_fits_alone_is_read_into_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "total", lambda: 4 * 4 * 8 * 12)
    kept = FeatureStore((10, 2), tmp_path)
    found = {(row, "trained"): torch.randn(10, 8) for row in ("conv1", "conv2")}
    kept.write(0, torch.arange(10), found)
    assert kept.on_disk
    assert kept.take(("conv1", "trained"), CPU, chunked=True)[0].dtype == torch.float32


def test_a_value_beyond_half_precision_is_refused(short):
    kept = FeatureStore((600, 2), short)
    with pytest.raises(SslkitError, match="trained exceed 65,504, the range of half precision"):
        kept.write(0, torch.arange(600), {("conv1", "trained"): torch.full((600, 4), 1e5)})


def test_a_full_disk_is_told_in_a_sentence(short, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(SslkitError, match=r"No space left on device.*TMPDIR.*--plan"):
        FeatureStore((600, 2), short).write(0, torch.arange(600), {(None, "x"): torch.ones(600, 4)})
    assert not list(short.iterdir())


def test_files_go_below_the_results_or_to_tmpdir(monkeypatch, tmp_path):
    monkeypatch.delenv("TMPDIR", raising=False)
    assert features.place(tmp_path / "run" / "eval") == tmp_path
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "run").mkdir()
    assert features.place(tmp_path / "run") == tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_after_a_kill(tmp_path):
    """The files have no name, so the system deletes them however the process ends."""
    program = f"""
    import sys, time
    from pathlib import Path
    import torch
    from sslkit import memory
    from sslkit.evaluation.features import FeatureStore
    memory.total = lambda: 64
    kept = FeatureStore((100, 2), Path({str(tmp_path)!r}))
    kept.write(0, torch.arange(100), {{(None, "x"): torch.ones(100, 4)}})
    print(kept.on_disk, flush=True)
    time.sleep(60)
    """
    environment = {key: value for key, value in os.environ.items() if key != "TMPDIR"}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as child:
        assert child.stdout.readline().strip() == "True"
        maps = Path(f"/proc/{child.pid}/maps").read_text()
        assert str(tmp_path) in maps, "mapped from this folder"
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- chunks of features


def clusters(count=300, rest=60, width=20, classes=4) -> Features:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count + rest) % classes
    rows = 3 * F.one_hot(labels, width).float() + torch.randn(count + rest, width, generator=rng)
    rows = rows.half().float()
    return Features(rows[:count], labels[:count], rows[count:], labels[count:])


def test_stored_features_are_fitted_as_those_in_memory(monkeypatch):
    """The same values in float16: the fit differs by rounding alone."""
    monkeypatch.setattr(logistic, "CHUNK", 64)
    given = clusters()
    train, val = standardise(given.train, given.val)
    stored, other = standardise(given.train.half(), given.val.half())
    assert stored.stored and stored.features.dtype == torch.float16 and not train.stored
    torch.testing.assert_close(stored.mean, train.mean)
    torch.testing.assert_close(stored.scale, train.scale)
    strength = choose_strength(train, given.train_labels, 4)
    assert choose_strength(stored, given.train_labels, 4) == strength
    one = logistic_regression(train, given.train_labels, 4, strength)
    two = logistic_regression(stored, given.train_labels, 4, strength)
    torch.testing.assert_close(val.predicted(*one), other.predicted(*two), rtol=1e-2, atol=1e-2)


def test_wide_stored_features_are_rotated_in_memory():
    rows, labels = torch.randn(12, 40).half(), torch.arange(12) % 3
    train, _ = standardise(rows, rows)
    assert train.features.shape == (12, 12) and train.features.dtype == torch.float32
    weights, bias = logistic_regression(train, labels, 3, 1e-8)
    assert train.logits(weights, bias).argmax(1).equal(labels), "fewer rows than numbers"


def test_rows_of_stored_features_are_picked_twice():
    rows = torch.arange(12.0).view(6, 2).half()
    stored = logistic.Standardised(rows, torch.zeros(2), torch.ones(2))
    some = stored.some(torch.tensor([5, 3, 1])).some(slice(1, 3))
    assert some.features is rows
    assert some.logits(torch.eye(2), torch.zeros(2)).tolist() == [[6, 7], [2, 3]]


def test_permuted_features_are_fitted_alike():
    given = clusters()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    logits = []
    for columns in (torch.arange(20), order):
        train, val = standardise(given.train[:, columns], given.val[:, columns])
        fitted = logistic_regression(train, given.train_labels, 4, 0.01)
        logits.append(val.logits(*fitted))
    torch.testing.assert_close(*logits, rtol=1e-2, atol=1e-2)


def test_votes_of_blocks_are_those_of_the_full_matrix(monkeypatch):
    given = clusters()
    whole = Knn(k=50).vote(given, 4)
    for size in (4 * 7**2, 4 * 33**2):
        monkeypatch.setattr(knn, "BLOCK_BYTES", size)
        torch.testing.assert_close(Knn(k=50).vote(given, 4), whole, rtol=1e-5, atol=1e-6)
    half = given._replace(train=given.train.half(), val=given.val.half())
    torch.testing.assert_close(Knn(k=50).vote(half, 4), whole, rtol=1e-5, atol=1e-6)


def test_no_block_exceeds_its_budget(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK_BYTES", 4 * 10**2)
    largest = []
    topk = torch.Tensor.topk

    def spy(rows, k):
        largest.append(rows.numel())
        return topk(rows, k)

    monkeypatch.setattr(torch.Tensor, "topk", spy)
    Knn(k=3).vote(clusters(), 4)
    assert max(largest) <= 100


def test_features_are_dropped_layer_by_layer(short):
    probe = made(train=Noise(30))
    probe.home = short
    kept = compare.embed(probe, layers=True, view="crop")
    rows = list(kept)
    left = []

    def scorer(given, seed):
        left.append(len(kept))
        return {"x": 0.0}

    compare.score_all(probe, kept, scorer, [Metric("x")], 1, chunked=True)
    assert left == list(range(len(rows) - 1, -1, -1))
    assert np.isfinite(left).all()
