"""Views as recipes write them: presets, mappings, lists and groups, `--set` into them, the CLI."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import sslkit
from PIL import Image

from sslkit import parts, recipe
from sslkit.interfaces import Batch, Draws
from sslkit.recipe import registry
from sslkit_plugins.views import Colours, colours_of

LOOKS = '''\
"""A stranger's method that looks at every view of any transform."""

from sslkit.interfaces import Method, Output


class Looks(Method):
    """Pulls the outputs of all views towards zero. arXiv:0000.00000."""

    reads = None

    def forward(self, batch, progress):
        outputs = [head(self.encode(batch.views[name])) for name, head in self.heads.items()]
        return Output(sum(output.square().mean() for output in outputs))
'''

RECIPE = """\
name: looks
method:    {{use: looks}}
data:      {{use: shapes, images: 8, val_images: 10}}
transform:{transform}
encoder:   {{use: timm, model: test_resnet}}
heads:     {{{heads}}}
loss:      {{use: cross_entropy}}
optimizer: {{use: sgd, lr: 0.01}}
train:     {{epochs: 1, batch_size: 4, precision: fp32, device: cpu, workers: 0}}
"""

DOC = (Path(__file__).parents[1] / "docs" / "views.md").read_text("utf-8")
BLOCK = re.search(r"^```yaml\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)[1]
LINES = dict(re.findall(r"^# ([^\n]+)\ntransform:(.*?)(?=^#|\Z)", BLOCK, re.MULTILINE | re.DOTALL))
"""The views of the papers, as docs/views.md has them."""

SHAPES = {
    "PIRL": {"image": (3, 224, 224), "patches": (9, 3, 64, 64)},
    "PIRL, rotation": {"image": (3, 224, 224), "rotated": (3, 224, 224)},
    "NPID": {"image": (3, 224, 224)},
    "SimCLR": {"global": (2, 3, 224, 224)},
    "SimCLR, CIFAR": {"global": (2, 3, 32, 32)},
    "MoCo v1": {"global": (2, 3, 224, 224)},
    "MoCo v2": {"global": (2, 3, 224, 224)},
    "BYOL, Barlow Twins, VICReg": {"global": (2, 3, 224, 224)},
    "AMDIM": {"global": (2, 3, 128, 128)},
    "SwAV, DeepCluster v2": {"global": (2, 3, 224, 224), "local": (6, 3, 96, 96)},
    "DINO": {"global": (2, 3, 224, 224), "local": (8, 3, 96, 96)},
    "Jigsaw": {"patches": (9, 3, 64, 64)},
    "RotNet": {"rotated": (4, 3, 224, 224)},
    "CPC v2": {"patches": (49, 3, 64, 64)},
    "CMC": {"image": (3, 224, 224)},
    "MAE": {"image": (3, 224, 224)},
}
BYOL = "BYOL, Barlow Twins, VICReg"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder in which the stranger's distribution is installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "looks.py").write_text(LOOKS)
    about = folder / "looks-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: looks\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[sslkit.methods]\nlooks = looks:Looks\n")
    return folder


@pytest.fixture
def here(site, monkeypatch):
    """The stranger's method in this process."""
    monkeypatch.syspath_prepend(site)
    registry.discover.cache_clear()
    yield
    registry.discover.cache_clear()


def write(folder: Path, transform: str) -> Path:
    """A recipe with one head for every view."""
    cls = registry.find("transforms", yaml.safe_load(transform)["use"]).load()
    heads = ", ".join(f"{view}: {{use: linear, out_dim: 4}}" for view in cls.views)
    path = folder / "looks.yaml"
    path.write_text(RECIPE.format(transform=transform, heads=heads))
    return path


@pytest.mark.parametrize("line", SHAPES)
def test_every_line_is_checked_cut_and_finished(line, here, tmp_path):
    assert LINES.keys() == SHAPES.keys(), "docs/views.md shows others"
    overrides = ["transform.permutations=20"] if line == "Jigsaw" else []
    made = recipe.read(write(tmp_path, LINES[line]), overrides=overrides)
    transform = parts.make_transform(made)
    pixels = np.random.default_rng(0).integers(0, 256, (240, 300, 3), dtype=np.uint8)
    sample = transform(Image.fromarray(pixels), np.random.default_rng(1))
    views = {name: view[None] for name, view in sample.views.items()}
    done = transform.on_device(Batch(views, {}, torch.arange(1)), Draws(0)).views
    shapes = {name: tuple(view.shape[1:]) for name, view in done.items()}
    assert shapes == transform.shapes == SHAPES[line]
    assert all(view.isfinite().all() and view.dtype == torch.float32 for view in done.values())
    again = tmp_path / "again.yaml"
    again.write_text(made.as_yaml())
    assert recipe.read(again).transform.options == made.transform.options


def made_with(folder, line, *overrides):
    return parts.make_transform(recipe.read(write(folder, LINES[line]), overrides=overrides))


def test_set_reaches_into_a_preset(here, tmp_path):
    transform = made_with(tmp_path, "MoCo v2", "transform.colours.jitter=[0.2,0.2,0.2,0.05]")
    (colours,) = transform.colours["global"]
    assert colours == Colours(jitter=(0.2, 0.2, 0.2, 0.05), jitter_chance=0.8, gray=0.2, blur=0.5)


def test_set_reaches_into_a_list(here, tmp_path):
    first, second = made_with(tmp_path, BYOL, "transform.colours.1.solarize=0.4").colours["global"]
    assert (first,) == colours_of("byol_first")
    assert (second.solarize, second.blur, second.jitter) == (0.4, 0.1, (0.4, 0.4, 0.2, 0.1))


def test_set_reaches_into_a_group(here, tmp_path):
    more = ("transform.local.count=4", "transform.local.colours.gray=0.5")
    transform = made_with(tmp_path, "DINO", *more)
    assert transform.shapes["local"] == (4, 3, 96, 96)
    (local,) = transform.colours["local"]
    assert (local.gray, local.blur) == (0.5, 0.5)


def test_a_preset_with_changes_keeps_the_rest(here, tmp_path):
    (colours,) = made_with(tmp_path, "SimCLR, CIFAR").colours["global"]
    assert colours == Colours(jitter=(0.4, 0.4, 0.4, 0.1), jitter_chance=0.8, gray=0.2)


# --------------------------------------------------------------------------------- the command line


def test_multi_crop_trains_from_the_command_line(here, tmp_path):
    sizes = ("size=48", "local.size=24", "local.count=3", "colours.1.solarize=0.4")
    words = [word for size in sizes for word in ("--set", f"transform.{size}")]
    path = write(tmp_path, LINES["DINO"])
    code, _, err = sslkit("train", path, *words, "--runs", tmp_path / "runs")
    assert code == 0, err
    written = (tmp_path / "runs" / "looks" / "latest" / "recipe.yaml").read_text()
    assert "solarize: 0.4" in written and "dino_first" in written
    with Image.open(tmp_path / "runs" / "looks" / "latest" / "views.png") as picture:
        assert picture.width > 500


def test_a_list_of_the_wrong_length_writes_nothing(here, tmp_path):
    path = write(tmp_path, LINES[BYOL])
    words = ("--set", "transform.count=3", "--runs", tmp_path / "runs")
    assert sslkit("check", path, "--quick", *words[:2])[0] == 0, "only the part itself knows"
    tried = ("check", "plan")
    for command in [*((name, path, *words[:2]) for name in tried), ("train", path, *words)]:
        code, _, err = sslkit(*command)
        assert code == 2
        assert (
            "transform.colours  holds 2 lists of colours for 3 crops; write 3, or a single" in err
        )
    assert not (tmp_path / "runs").exists()
