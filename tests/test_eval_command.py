"""`sslkit eval` as a group of commands, and an evaluation of a stranger's distribution."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sslkit
from PIL import Image

from sslkit.recipe import registry, source

HERE = Path(__file__).parent
STRANGER = HERE / "silhouette"
DOC = (HERE.parent / "docs" / "write-an-evaluation.md").read_text("utf-8")

OPTIONS = '''\
"""An evaluation with options of every kind."""

from typing import Annotated, Literal

from pydantic import Field

from sslkit.interfaces import Entry, Evaluation, Metric, Probe, Result, Score


class Costly(Evaluation):
    """Returns what it was given."""

    needs = ""

    def __init__(
        self,
        *,
        costs: Annotated[list[float], Field(description="Costs to try.")] = [0.1],  # noqa: B006
        whiten: Annotated[bool, Field(description="Whiten the features first.")] = False,
        {name}: Annotated[Literal["a", "b"], Field(description="Which one.")] = "a",
    ) -> None:
        self.protocol = {{"costs": costs, "whiten": whiten, "which": {name}}}

    def measure(self, probe: Probe) -> Result:
        """Return the options as the protocol."""
        entry = Entry(None, "trained", {{"sum": Score((sum(self.protocol["costs"]),))}})
        return Result((Metric("sum"),), [entry], probe.protocol() | self.protocol)
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install("name", "source")`: a distribution with one evaluation, on this process's path."""
    caches = (registry.discover, registry._signature, source.find)

    def add(name: str, text: str) -> Path:
        site = tmp_path / f"site-{name}"
        information = site / f"{name}-1.0.dist-info"
        information.mkdir(parents=True)
        entry = f"[sslkit.evaluations]\n{name} = {name}_plugin:Costly\n"
        (information / "entry_points.txt").write_text(entry)
        (site / f"{name}_plugin.py").write_text(text)
        monkeypatch.syspath_prepend(site)
        for cached in caches:
            cached.cache_clear()
        return site

    yield add
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()
    for name in [name for name in sys.modules if name.endswith("_plugin")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Two classes: dark and bright pictures."""
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for name, level in (("bright", 180), ("dark", 40)):
        (folder / name).mkdir()
        for number in range(60):
            pixels = rng.integers(level - 40, level + 40, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def encoder(labelled: Path) -> list[object]:
    """The words that measure a small encoder without a run."""
    return ["--encoder", "timm:test_resnet", "--weights", "none", "--data", labelled, "--size", 32]


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_eval_alone_lists_the_evaluations_with_their_summaries():
    code, out, _ = sslkit("eval")
    assert code == 0
    assert "baselines are the untrained encoder, raw pixels and chance." in one_line(out)
    assert "linear Linear classifier on frozen features" in one_line(out)
    assert "knn Vote of the k nearest training images" in one_line(out)


@pytest.mark.parametrize(
    "words",
    [["eval"], ["eval", "linear", "--help"], ["eval", "knn", "--x"]],
    ids=["list", "help", "unknown_option"],
)
def test_help_and_wrong_options_import_no_torch(words):
    """Of sslkit and its plugins, nothing heavy is imported."""
    program = (
        f"import sys; from sslkit.cli import app\n"
        f"try: app({words!r})\n"
        f"except SystemExit: pass\n"
        f"print(sorted({{'torch', 'timm', 'matplotlib', 'sslkit_plugins'}} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip().endswith("[]")


def test_help_shows_descriptions_defaults_and_choices():
    code, out, _ = sslkit("eval", "linear", "--help")
    text = one_line(out)
    assert code == 0
    assert "--solver lbfgs|sgd" in text and "lbfgs (default): logistic regression" in text
    assert "--preset pirl|moco|swav|simclr|byol|" in text
    assert "--epochs VALUE Epochs of `sgd`, by default the preset's; 28 in VISSL." in text
    for common in ("--data", "--encoder", "--weights", "--size", "--against", "--split-seed"):
        assert common in text
    assert "--device" in text and "--out" in text and "[RUN]" in text


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("svm", "a folder in VOC layout (JPEGImages, Annotations, ImageSets/Main)"),
        ("detect", "Images with boxes: a folder in VOC layout"),
        ("knn", "a folder with one folder per class"),
        ("quality", "Images, with or without labels"),
    ],
)
def test_help_describes_the_images_that_are_needed(name, images):
    assert images in one_line(sslkit("eval", name, "--help")[1])


def test_values_are_read_as_by_set_and_booleans_are_flags(install, labelled, tmp_path):
    install("costly", OPTIONS.format(name="which_one"))
    out = tmp_path / "out"
    words = ["eval", "costly", *encoder(labelled), "--out", out]
    code, _, err = sslkit(*words, "--costs", "[0.1, 1]", "--whiten", "--which-one", "b")
    assert code == 0, err
    protocol = json.loads((out / "costly.json").read_text())["protocol"]
    assert (protocol["costs"], protocol["whiten"], protocol["which"]) == ([0.1, 1.0], True, "b")
    assert protocol["options"]["costs"] == [0.1, 1.0] and protocol["options"]["which_one"] == "b"
    help_text = one_line(sslkit("eval", "costly", "--help")[1])
    flag = "--whiten / --no-whiten Whiten the features first. [default: no]"
    assert flag in help_text
    assert "--costs VALUE Costs to try. (a list" in help_text and "[default: [0.1]]" in help_text
    code, _, err = sslkit(*words, "--costs", "[a]")
    assert code == 2 and err.startswith("--costs  ") and "a list" in err
    code, _, err = sslkit(*words, "--whitening")
    assert code == 2 and "did you mean '--whiten'" in err


@pytest.mark.parametrize(
    "name",
    [
        "data",
        "labels",
        "encoder",
        "weights",
        "size",
        "against",
        "split_seed",
        "skip_unreadable",
        "workers",
    ],
)
def test_an_option_with_a_common_name_is_refused(install, name):
    install("costly", OPTIONS.format(name=name))
    for words in ((), ("runs/latest", "--seeds", "3")):
        code, _, err = sslkit("eval", "costly", *words)
        assert code == 2
        assert f"evaluation 'costly' of costly 1.0 has an option '{name}'" in err
    code, out, _ = sslkit("eval")
    assert code == 0 and "linear" in out and "broken: evaluation 'costly'" in one_line(out)


def test_our_own_evaluations_use_no_common_name():
    for name in ("linear", "knn"):
        code, out, _ = sslkit("eval", name, "--help")
        assert code == 0 and "broken" not in out


# --------------------------------------------------------------------- the stranger's


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the stranger's distribution installed into it, as pip does it."""
    for needed in ("pip", "hatchling"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed, so the distribution cannot be built")
    folder = tmp_path_factory.mktemp("installed")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    words = ["-m", "pip", "install", *offline, "--disable-pip-version-check"]
    ran = subprocess.run(
        [sys.executable, *words, "--target", str(folder), str(STRANGER)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


def test_the_documentation_shows_its_files():
    pattern = r"^`tests/silhouette/(\S+)`\n\n```\w+\n(.*?)^```$"
    shown = dict(re.findall(pattern, DOC, re.MULTILINE | re.DOTALL))
    files = [path for path in STRANGER.iterdir() if path.is_file()]
    assert shown == {path.name: path.read_text("utf-8") for path in files}
    assert len((STRANGER / "silhouette.py").read_text("utf-8").splitlines()) <= 40


@pytest.fixture
def installed(site, monkeypatch):
    """The stranger's distribution is found in this process."""
    monkeypatch.syspath_prepend(site)
    registry.discover.cache_clear()
    yield
    registry.discover.cache_clear()
    sys.modules.pop("silhouette", None)


def test_it_gives_a_table_an_interval_and_a_picture(installed, labelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = sslkit("eval", "silhouette", *encoder(labelled))
    assert code == 0, err
    assert "silhouette ↑" in out and "95 % CI over 24 images" in out
    home = tmp_path / "eval" / "timm_test_resnet"
    assert (home / "silhouette.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((home / "silhouette.json").read_text())
    assert result["metrics"][0] == {
        "name": "silhouette",
        "unit": "",
        "better": "higher",
        "low": -1,
        "high": 1,
    }
    first, pixels, chance = result["entries"]
    (interval,) = first["scores"]["silhouette"]["intervals"]
    assert interval["low"] < first["scores"]["silhouette"]["value"] < interval["high"]
    assert set(first["differences"]["raw pixels"]) == {"silhouette"}
    assert pixels["candidate"] == "raw pixels" and chance["scores"]["silhouette"]["value"] == 0


def test_it_is_that_of_scikit_learn(monkeypatch):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    monkeypatch.syspath_prepend(STRANGER)
    found = importlib.import_module("silhouette")
    torch.manual_seed(0)
    labels = torch.tensor([0] * 20 + [1] * 9 + [2] + [4] * 5)
    rows = torch.randn(35, 16).abs() + torch.nn.functional.one_hot(labels, 16)
    given = found.Features(rows, labels, rows, labels)
    ours = found.Silhouette().score(given, 0)["silhouette"]
    theirs = metrics.silhouette_samples(rows.numpy(), labels.numpy(), metric="cosine")
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
