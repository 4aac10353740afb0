"""Every benchmark runs, on a tiny case of its own making; what it measures is not judged here."""

import importlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from sslkit import recipe
from sslkit.draws import Draws
from sslkit.interfaces import Progress
from sslkit.training.build import build
from sslkit_plugins.clusters import sinkhorn
from sslkit_plugins.losses import Cosine, InfoNCE, SoftCrossEntropy
from sslkit_plugins.methods.barlow_twins import CrossCorrelation
from sslkit_plugins.methods.vicreg import VarianceCovariance
from sslkit_plugins.samplers import in_batch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def printed(monkeypatch, capfd):
    """`printed("views.py", "--images", "4")`: what a benchmark prints, run in this process."""

    def run(name: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *options])
        monkeypatch.syspath_prepend(BENCHMARKS)
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return capfd.readouterr().out

    return run


@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
@pytest.mark.parametrize(
    ("options", "shown"), [((), "ours, both on one core"), (("--decode",), "WEBP")]
)
def test_views(printed, options, shown):
    assert shown in printed("views.py", "--images", "4", "--repeats", "1", *options)


@pytest.mark.parametrize("more", [(), ("--wide",)], ids=["closure", "wide"])
def test_probe(printed, more):
    small = ("--rows", "100", "--classes", "3", "--dim", "8", "--repeats", "1")
    assert "| ratio |" in printed("probe.py", *small, *more)


def test_evaluations(printed):
    table = printed("evaluations.py", "--rows", "60", "--classes", "3", "--dim", "8")
    assert "| linear, one closure | 60 | 3 |" in table and "| knn --k 20, 1,000 queries |" in table


def test_step(printed):
    cases = ("tiny", "tiny-simclr", "tiny-moco", "tiny-swav")
    small = ("--cases", ",".join(cases), "--steps", "2", "--set", "train.precision=fp32")
    shown = printed("step.py", *small)
    for case in cases:
        assert f"| {case} | float32 |" in shown


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("method", ["simclr", "moco", "swav"])
def test_hand_written_steps_have_sslkits_loss(benchmark_modules, method):
    """Both have the same weights and pixels, so the first losses differ by rounding alone."""
    by_hand, step = (importlib.import_module(name) for name in ("by_hand", "step"))
    path, more = step.CASES[f"tiny-{method}"][0], step.MORE[f"tiny-{method}"]
    common = ["train.batch_size=4", "train.workers=0", "train.precision=fp32", "data.images=64"]
    run = build(recipe.read(step.ROOT / path, overrides=[*common, *more]))
    (batch, *_) = step.finished_batches(run)
    hand = by_hand.METHODS[method](run)
    hand.encoder.load_state_dict(run.method.encoder.model.state_dict())
    for name, head in run.method.heads.items():
        for copy, original in zip(hand.heads[name].parameters(), head.parameters(), strict=True):
            copy.data.copy_(original)
    if method == "moco":
        hand.prepare()
        hand.queue.copy_(run.method.sampler.keys)
    ours = run.method(batch, Progress(0, 9, 0, 3, Draws(0))).loss
    torch.testing.assert_close(hand.loss(batch), ours, rtol=1e-4, atol=1e-4)


def test_parity_without_lightly(printed, tmp_path, capfd):
    if importlib.util.find_spec("lightly") is not None:
        pytest.skip("lightly is installed")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    with pytest.raises(SystemExit, match="2"):
        printed("parity.py", "--data", str(tmp_path))
    assert "python -m pip install lightly" in capfd.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("lightly") is None, reason="lightly is optional")
def test_losses_equal_lightlys():
    """Of the same outputs. BYOL's is 4 times lightly's, plus 4."""
    lightly = importlib.import_module("lightly.loss")
    first, second = torch.randn(8, 16), torch.randn(8, 16)
    pairs = F.normalize(torch.stack([first, second], 1), dim=-1)
    rows, partners = pairs.flatten(0, 1), pairs.flip(1).flatten(0, 1)
    scores = [F.normalize(torch.randn(8, 5), dim=1) for _ in range(3)]
    swapped = []
    for crop in range(2):
        others = torch.cat([scores[other] for other in range(3) if other != crop])
        code = sinkhorn(scores[crop], 0.05, 3).repeat(2, 1)
        swapped.append(SoftCrossEntropy(temperature=0.1)(others, code))
    cosine = lightly.NegativeCosineSimilarity()(first, second)
    expected = {
        "simclr": lightly.NTXentLoss(temperature=0.2)(first, second),
        "byol": 4 + 4 * cosine,
        "barlow_twins": lightly.BarlowTwinsLoss()(first, second),
        "vicreg": lightly.VICRegLoss()(first, second),
        "swav": lightly.SwaVLoss()(scores[:2], scores[2:])[0],
    }
    found = {
        "simclr": InfoNCE(temperature=0.2)(rows, partners, in_batch(rows)),
        "byol": Cosine()(first, second) + Cosine()(second, first),
        "barlow_twins": CrossCorrelation(off_diagonal=0.005)(first, second),
        "vicreg": VarianceCovariance()(first, second),
        "swav": torch.stack(swapped).mean(),
    }
    torch.testing.assert_close(found, expected)


def test_parity_table_compares_seeds_that_both_sides_have(benchmark_modules):
    report = importlib.import_module("parity_report")
    common = {"method": "simclr", "date": "2026-01-01", "knn": [30.0, 27.0, 33.0]}
    lines = [
        {**common, "side": "lightly", "seed": 0, "version": "1", "linear": [40.0, 37.0, 43.0]},
        {**common, "side": "sslkit", "seed": 0, "linear": [46.0, 42.0, 50.0]},
        {**common, "side": "sslkit", "seed": 1, "linear": [90.0, 88.0, 92.0]},
    ]
    row = report.row(lines, "simclr")
    assert row.startswith("| SimCLR | 40.0 ± 3.0 | 46.0 ± 4.0 | **+6.0 ± 5.0** | 30.0 ± 3.0 |")
    assert "| +0.0 ± 4.2 | 1 | – | – | – |" in row
    assert report.row([], "byol") == "| BYOL |" + " – |" * 10


def test_parity_recipes_are_valid(benchmark_modules, tmp_path):
    settings = importlib.import_module("parity_settings")
    for method in settings.METHODS:
        written = settings.Settings(20, 64).recipe(method, tmp_path, tmp_path / "w", 3)
        path = tmp_path / f"{method}.yaml"
        path.write_text(yaml.safe_dump(written))
        made = recipe.read(path)
        assert made.schedule.warmup_epochs == 2 and made.train.seed == 3
        assert not made.optimizer.exempt_norms_and_biases


@pytest.mark.slow
def test_parity_trains_evaluates_and_goes_on(printed, tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for name in ("red", "blue"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (64, 64), name).save(folder / f"{number}.png")
    words = ("--data", str(tmp_path / "data"), "--sides", "sslkit", "--methods", "simclr")
    words += ("--epochs", "1", "--batch-size", "4", "--runs", str(tmp_path / "runs"))
    words += ("--results", str(tmp_path / "lines"))
    lines = [json.loads(line) for line in printed("parity.py", *words).splitlines()]
    assert [line["side"] for line in lines] == ["initial", "sslkit"]
    assert all(len(line["linear"]) == 3 for line in lines)
    assert printed("parity.py", *words) == ""


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), "`memory_bank` takes products where rows / draws"),
        (("--step", "test_resnet", "--size", "64"), "goal: at most 3 %"),
    ],
)
def test_negatives(printed, options, shown):
    assert shown in printed(
        "negatives.py",
        "--rows",
        "300",
        "--images",
        "2",
        "--negatives",
        "8",
        "--repeats",
        "1",
        *options,
    )


def test_pack(printed):
    shown = printed("pack.py", "--files", "60", "--images", "50", "--repeats", "1")
    assert "| 60 | cold | bytes |" in shown and "| 60 | warm | views, 2 workers |" in shown


@pytest.mark.slow
def test_start(printed):
    shown = printed(
        "start.py", "--repeats", "1", "--set=train.batch_size=4", "--set=data.images=40"
    )
    assert "| `sslkit --help` |" in shown and "| the first step |" in shown


@pytest.mark.slow
def test_gpu_without_one(tmp_path):
    words = [
        BENCHMARKS / "gpu.sh",
        "--tiny",
        "--device",
        "cpu",
        "--eager",
        "--out",
        tmp_path / "gpu.json",
    ]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, env=environment, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "| eager: end to end |" in done.stdout and "compiled" not in done.stdout
    assert (
        json.loads((tmp_path / "gpu.json").read_text())["rates"]["eager"]["end to end"][
            "images_per_second"
        ]
        > 0
    )


@pytest.mark.slow
def test_kill(printed):
    said = printed("kill.py", "--kills", "2", "--lives", "2")
    assert "0 workers: identical" in said and "identical end" in said
