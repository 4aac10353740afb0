"""A stranger's distribution adds parts by entry point, trains, and harms nobody;
docs/write-a-plugin.md shows exactly its files.
"""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sslkit
from PIL import Image
from strangers import present

from sslkit import parts, recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Negatives
from sslkit.recipe import registry, source

HERE = Path(__file__).parent
OUTSIDER = HERE / "outsider"
RECIPE = OUTSIDER / "recipe.yaml"
DOC = (HERE.parent / "docs" / "write-a-plugin.md").read_text("utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outsider installed into it, as pip does it, without network."""
    for needed in ("pip", "hatchling"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(
                f"{needed} is not installed, so the outsider cannot be built; pip install -e "
                "'.[dev]'"
            )
    folder = tmp_path_factory.mktemp("installed")
    offline = [
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--quiet",
    ]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *offline,
        "--target",
        str(folder / "site"),
        str(OUTSIDER),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder / "site"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(16):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            folder / f"{number:02}.png"
        )
    return folder


def plugins(site: Path, *words: str) -> str:
    """What `sslkit plugins` prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "sslkit", "plugins", *words],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(sentence: str, *settings: str, site: Path) -> None:
    """The recipe is refused with a sentence that the documentation quotes."""
    with present(site, "outsider"):
        code, _, err = sslkit("check", RECIPE, *settings)
    assert code == 2 and sentence in err, err
    assert sentence in DOC, "docs/write-a-plugin.md quotes another sentence"


def variant(site: Path, folder: Path, old: str, new: str) -> Path:
    """The installed outsider with one slip in its source."""
    copy = folder / "slip"
    shutil.copytree(site, copy)
    source = copy / "outsider" / "channels.py"
    assert old in source.read_text("utf-8")
    source.write_text(source.read_text("utf-8").replace(old, new), "utf-8")
    return copy


def test_the_documentation_shows_the_files() -> None:
    shown = dict(
        re.findall(r"^`tests/outsider/(\S+)`\n\n```\w+\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    )
    files = {
        path.relative_to(OUTSIDER).as_posix(): path
        for path in OUTSIDER.rglob("*")
        if path.is_file()
    }
    assert shown == {
        name: path.read_text("utf-8") for name, path in files.items() if "__pycache__" not in name
    }


def test_the_documentation_shows_the_method() -> None:
    shown = r"^```\w+\n(class Bootstrap.*?|# BYOL.*?)^```$"
    code = re.findall(shown, DOC, re.MULTILINE | re.DOTALL)
    method, made = code
    assert method in (HERE / "bootstrap" / "bootstrap" / "bootstrap.py").read_text("utf-8")
    assert made == (HERE / "bootstrap" / "recipe.yaml").read_text("utf-8")


def test_its_parts_are_listed_and_shown(site: Path) -> None:
    rows = {tuple(line.split()[:4]) for line in plugins(site).splitlines()}
    assert rows >= {
        ("transforms", "channel_order", "outsider", "1.0"),
        ("heads", "cosine", "outsider", "1.0"),
        ("heads", "hyperbolic", "outsider", "1.0"),
        ("losses", "hinge", "outsider", "1.0"),
    }
    shown = plugins(site, "show", "hinge")
    assert "\n".join(map(str.rstrip, shown.rstrip().splitlines())) in DOC


def test_its_recipe_trains_though_another_part_is_broken(
    site: Path, here: pytest.MonkeyPatch, images: Path, tmp_path: Path
) -> None:
    small: list[str | Path] = ["--data", images, "--runs", tmp_path / "runs"]
    for setting in ("epochs=1", "batch_size=8", "workers=0", "device=cpu"):
        small += ["--set", f"train.{setting}"]
    here.syspath_prepend(site)
    code, _, err = sslkit("train", RECIPE, *small, "--set", "heads.image.use=hyperbolic")
    sentence = (
        "head 'hyperbolic' of outsider 1.0 cannot be imported from outsider.hyperbolic: "
        "ModuleNotFoundError: "
        "No module named 'hyperbolic_layers_that_nobody_has'; repair or reinstall outsider"
    )
    assert code == 2 and sentence in err and sentence in DOC
    assert not (tmp_path / "runs").exists()

    code, out, err = sslkit("train", RECIPE, *small)
    assert code == 0, err
    assert "0.50 expected of random vectors: as expected" in out + err
    run = tmp_path / "runs" / "channel_order" / "latest"
    assert (run / "encoder.safetensors").is_file()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "transform.use=chanel_order",
            "no transform named 'chanel_order' is installed; did you mean 'channel_order'?",
        ),
        ("loss.margn=1", "no such option of hinge; did you mean 'margin'?"),
        ("loss.margin=-1", "expected float ≥ 0, got -1"),
        ("heads={image: {use: cosine}}", "method 'pirl' needs a head named 'permuted'"),
        ("method.use=rotnet", "loss 'hinge' needs negatives, and method 'rotnet' has none"),
    ],
    ids=["name", "option", "bound", "head", "negatives"],
)
def test_faults_are_told_as_for_our_own_parts(site: Path, setting: str, sentence: str) -> None:
    told(sentence, "--set", setting, site=site)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "in_dim: int,\n        /,\n        *,\n",
            "in_dim: int,\n",
            "parameter 'in_dim' of head 'cosine' of outsider 1.0 must stand before '/', as a "
            "runtime argument, or after '*', as an option",
        ),
        (
            "class Cosine(Head)",
            "Cosine = lambda: None\nclass Renamed(Head)",
            "head 'cosine' of outsider 1.0 is no class",
        ),
    ],
    ids=["option-before-star", "no-class"],
)
def test_slips_of_the_author(site: Path, tmp_path: Path, old: str, new: str, sentence: str) -> None:
    told(sentence, site=variant(site, tmp_path, old, new))


def test_a_name_claimed_twice_harms_only_those_who_use_it(site: Path, tmp_path: Path) -> None:
    information = tmp_path / "rival" / "rival-2.0.dist-info"
    information.mkdir(parents=True)
    (information / "entry_points.txt").write_text("[sslkit.heads]\ncosine = rival:Cosine\n")
    heads = "heads={image: {use: linear}, permuted: {use: linear}}"
    with present(tmp_path / "rival"):
        told(
            "head 'cosine' is claimed by outsider (outsider.channels:Cosine) and rival "
            "(rival:Cosine); uninstall one of them",
            site=site,
        )
        with present(site, "outsider"):
            assert sslkit("check", RECIPE, "--quick", "--set", heads)[0] == 0


@pytest.fixture
def here(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Parts are looked for anew in this process, and the outsider is forgotten afterwards."""
    caches = (registry.discover, registry._signature, source.find)
    for cached in caches:
        cached.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "outsider"]:
        del sys.modules[name]


def test_a_runtime_argument_that_heads_do_not_get(
    site: Path, here: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here.syspath_prepend(variant(site, tmp_path, "in_dim: int,\n", "dim: int,\n"))
    sentence = (
        "cosine requires the runtime argument 'dim', which heads do not get; "
        "allowed: in_dim, crops, shape"
    )
    with pytest.raises(RecipeError, match=f"heads.image.use  {sentence}"):
        recipe.read(RECIPE)
    assert sentence in DOC


class Fixed(Negatives):
    """The same two cosines for every query, one of them its own image's."""

    count = 1

    def similarity(self, query: torch.Tensor) -> torch.Tensor:
        return torch.tensor([-math.inf, 0.4]).expand(*query.shape[:-1], 2)


def test_its_parts_do_what_they_say(site: Path, here: pytest.MonkeyPatch) -> None:
    here.syspath_prepend(site)
    made = recipe.read(RECIPE)
    loss = parts.make(made.loss)
    target = torch.tensor([[1.0, 0.0]])
    # margin 0.5 - cos⁺ + 0.4: cos⁺ = 1 leaves nothing, cos⁺ = 0.6 leaves 0.3.
    assert loss(5 * target, target, Fixed()) == 0
    assert loss(torch.tensor([[3.0, 4.0]]), target, Fixed()).item() == pytest.approx(0.3)
    assert type(loss).needs_negatives is True
    # Without a margin, half of a normal variable of variance 2/D: sqrt(2/D) / sqrt(2 pi).
    loss.margin = 0.0
    assert loss.at_start(dim=8, negatives=5) == pytest.approx(0.5 / math.sqrt(2 * math.pi))

    head = parts.make(made.heads["image"], in_dim=3, crops=1)
    cosines = head(torch.eye(3))
    assert cosines.shape == (3, 128)
    torch.testing.assert_close(cosines.square().sum(0), torch.ones(128))

    transform = parts.make_transform(made)
    sample = transform(Image.new("RGB", (40, 40), (10, 20, 30)), np.random.default_rng(0))
    order = importlib.import_module("outsider.channels").ORDERS[int(sample.targets["order"])]
    assert sample.views["image"][:, 0, 0].tolist() == [10, 20, 30]
    assert sample.views["permuted"][:, 0, 0].tolist() == [[10, 20, 30][i] for i in order]
