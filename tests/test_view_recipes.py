"""Views as recipes write them: presets, mappings, lists and groups, `--set` into them, the CLI."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
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
transform: {transform}
encoder:   {{use: timm, model: test_resnet}}
heads:     {{{heads}}}
loss:      {{use: cross_entropy}}
optimizer: {{use: sgd, lr: 0.01}}
train:     {{epochs: 1, batch_size: 4, precision: fp32, device: cpu, workers: 0}}
"""

MULTI = "local: {count: 6, size: 96, min_area: 0.05, max_area: 0.14, colours: swav}"
DINO = """
  use: multi_crop
  size: 224
  min_area: 0.4
  colours: [dino_first, dino_second]
  local: {count: 8, size: 96, min_area: 0.05, max_area: 0.4, colours: dino_local}
"""

LINES = {
    "pirl": "{use: jigsaw, size: 224, image_min_area: 0.08, min_area: 0.6, colours: official}",
    "pirl rotation": "{use: rotation, size: 224, colours: official}",
    "npid": "{use: augment, size: 224, min_area: 0.2, colours: npid}",
    "simclr": "{use: crops, size: 224, colours: simclr}",
    "simclr cifar": "{use: crops, size: 32, colours: {preset: simclr, "
    "jitter: [0.4, 0.4, 0.4, 0.1], blur: 0.0}}",
    "moco v1": "{use: crops, size: 224, min_area: 0.2, colours: moco_v1}",
    "moco v2": "{use: crops, size: 224, min_area: 0.2, colours: moco_v2}",
    "byol": "{use: crops, size: 224, colours: [byol_first, byol_second], interpolation: bicubic}",
    "amdim": "{use: crops, size: 128, min_area: 0.3, aspect: [0.7, 1.4], colours: amdim, shared: flip}",
    "jigsaw": "{use: puzzle, size: 224, permutations: 20, colours: gray}",
    "rotnet": "{use: rotate, size: 224, colours: none}",
    "cpc": "{use: patch_grid, size: 256, patch: 64, stride: 32, min_area: 0.3, colours: simclr}",
    "cmc": "{use: lab, size: 224, min_area: 0.2, colours: none}",
    "mae": "{use: augment, size: 224, min_area: 0.2, colours: none, interpolation: bicubic}",
    "swav": f"{{use: multi_crop, size: 224, min_area: 0.14, colours: swav, {MULTI}}}",
    "dino": DINO,
}

SHAPES = {
    "pirl": {"image": (3, 224, 224), "patches": (9, 3, 64, 64)},
    "simclr": {"global": (2, 3, 224, 224)},
    "simclr cifar": {"global": (2, 3, 32, 32)},
    "byol": {"global": (2, 3, 224, 224)},
    "amdim": {"global": (2, 3, 128, 128)},
    "cpc": {"patches": (49, 3, 64, 64)},
    "cmc": {"image": (3, 224, 224)},
    "swav": {"global": (2, 3, 224, 224), "local": (6, 3, 96, 96)},
    "dino": {"global": (2, 3, 224, 224), "local": (8, 3, 96, 96)},
}


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


@pytest.mark.parametrize("line", LINES)
def test_every_line_is_checked_cut_and_finished(line, here, tmp_path):
    made = recipe.read(write(tmp_path, LINES[line]))
    transform = parts.make_transform(made)
    pixels = np.random.default_rng(0).integers(0, 256, (240, 300, 3), dtype=np.uint8)
    sample = transform(Image.fromarray(pixels), np.random.default_rng(1))
    views = {name: view[None] for name, view in sample.views.items()}
    done = transform.on_device(Batch(views, {}, torch.arange(1)), Draws(0)).views
    shapes = {name: tuple(view.shape[1:]) for name, view in done.items()}
    assert shapes == transform.shapes == SHAPES.get(line, shapes)
    assert all(view.isfinite().all() and view.dtype == torch.float32 for view in done.values())
    again = tmp_path / "again.yaml"
    again.write_text(made.as_yaml())
    assert recipe.read(again).transform.options == made.transform.options


def made_with(folder, line, *overrides):
    return parts.make_transform(recipe.read(write(folder, LINES[line]), overrides=overrides))


def test_set_reaches_into_a_preset(here, tmp_path):
    transform = made_with(tmp_path, "moco v2", "transform.colours.jitter=[0.2,0.2,0.2,0.05]")
    (colours,) = transform.colours["global"]
    assert colours == Colours(jitter=(0.2, 0.2, 0.2, 0.05), jitter_chance=0.8, gray=0.2, blur=0.5)


def test_set_reaches_into_a_list(here, tmp_path):
    first, second = made_with(tmp_path, "byol", "transform.colours.1.solarize=0.4").colours[
        "global"
    ]
    assert (first,) == colours_of("byol_first")
    assert (second.solarize, second.blur, second.jitter) == (0.4, 0.1, (0.4, 0.4, 0.2, 0.1))


def test_set_reaches_into_a_group(here, tmp_path):
    more = ("transform.local.count=4", "transform.local.colours.gray=0.5")
    transform = made_with(tmp_path, "dino", *more)
    assert transform.shapes["local"] == (4, 3, 96, 96)
    (local,) = transform.colours["local"]
    assert (local.gray, local.blur) == (0.5, 0.5)


def test_a_preset_with_changes_keeps_the_rest(here, tmp_path):
    (colours,) = made_with(tmp_path, "simclr cifar").colours["global"]
    assert colours == Colours(jitter=(0.4, 0.4, 0.4, 0.1), jitter_chance=0.8, gray=0.2)


# ------------------------------------------------------------------------ the command line


def sslkit(site, *arguments):
    command = [sys.executable, "-m", "sslkit", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_multi_crop_trains_from_the_command_line(site, tmp_path):
    sizes = ("size=48", "local.size=24", "local.count=3", "colours.1.solarize=0.4")
    words = [word for size in sizes for word in ("--set", f"transform.{size}")]
    path = write(tmp_path, LINES["dino"])
    code, _, err = sslkit(site, "train", path, *words, "--runs", tmp_path / "runs")
    assert code == 0, err
    written = (tmp_path / "runs" / "looks" / "latest" / "recipe.yaml").read_text()
    assert "solarize: 0.4" in written and "dino_first" in written
    with Image.open(tmp_path / "runs" / "looks" / "latest" / "views.png") as picture:
        assert picture.width > 500


def test_a_list_of_the_wrong_length_writes_nothing(site, tmp_path):
    path = write(tmp_path, LINES["byol"])
    words = ("--set", "transform.count=3", "--runs", tmp_path / "runs")
    assert sslkit(site, "check", path, *words[:2])[0] == 0, "only the part itself knows"
    for command in (("plan", path, *words[:2]), ("train", path, *words)):
        code, _, err = sslkit(site, *command)
        assert code == 2
        assert (
            "transform.colours  holds 2 lists of colours for 3 crops; write 3, or a single" in err
        )
    assert not (tmp_path / "runs").exists()
