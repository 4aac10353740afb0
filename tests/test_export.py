"""The exported encoder really loads in its own library, without sslkit, and gives the same features."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.runs import checkpoint
from sslkit.training import build

RECIPE = """\
name: exported
method: {use: npid}
data: {use: shapes, images: 20}
transform: {use: augment, size: 32}
encoder: {use: timm, model: resnet18}
heads: {image: {use: linear, out_dim: 16}}
sampler: {use: memory_bank, negatives: 4}
loss: {use: lambda_nce}
optimizer: {lr: 0.1}
train: {epochs: 1, batch_size: 4, device: cpu, precision: fp32, workers: 0}
"""

READER = """
import sys
found = {}
for library in ("timm", "torchvision"):
    exec(open(f"export/{library}/load.py").read())
    with torch.no_grad():
        found[library] = model(load_file("images")["images"])
assert not any(name.partition(".")[0] in ("sslkit", "sslkit_plugins") for name in sys.modules)
from safetensors.torch import save_file
save_file(found, "features")
"""


def run_folder(where: Path, *settings: str) -> tuple[Path, torch.nn.Module]:
    folder = where / "runs" / "exported" / "now"
    folder.mkdir(parents=True)
    (where / "recipe.yaml").write_text(RECIPE)
    made = recipe.read(where / "recipe.yaml", overrides=settings)
    (folder / "recipe.yaml").write_text(made.as_yaml())
    run = build.build(made)
    for value in run.method.encoder.buffers():  # running statistics as training would leave them
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(1)))
    checkpoint.save(run, folder)
    return folder, run.method.encoder.eval()


def sslkit(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_both_libraries_give_the_features_of_the_run(tmp_path, stem):
    folder, encoder = run_folder(tmp_path, f"encoder.stem={stem}")
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    save_file({"images": images}, folder / "images")
    with torch.no_grad():
        expected = encoder(images)
    for library in ("timm", "torchvision"):
        home = folder / "export" / library
        home.mkdir(parents=True)
        (home / "encoder.safetensors").write_text("of an export before")
        code, out, err = sslkit("export", folder, "--to", library)
        assert code == 0, err
        assert sorted(path.name for path in home.iterdir()) == ["encoder.safetensors", "load.py"]
        lines = (home / "load.py").read_text()
        assert lines.strip() in out, "what is printed is what was checked"
        assert str(home / "encoder.safetensors") in out and "sslkit" not in lines.replace(
            str(folder), ""
        )
    subprocess.run([sys.executable, "-c", READER], check=True, cwd=folder)
    for features in load_file(folder / "features").values():
        assert (features - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize(
    "settings, library, sentence",
    [
        (["encoder.model=resnet18d"], "torchvision", "torchvision has no model 'resnet18d'"),
        (["encoder.model=test_resnet"], "torchvision", "export --to timm instead"),
        ([], "keras", "cannot export to 'keras'; choose timm or torchvision"),
        ([], "../outside", "choose timm or torchvision"),
    ],
)
def test_what_a_library_does_not_have_leaves_nothing_behind(tmp_path, settings, library, sentence):
    folder, _ = run_folder(tmp_path, *settings)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = sslkit("export", folder, "--to", library)
    assert code == 2
    assert sentence in err and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_features_that_differ_are_not_exported(tmp_path, monkeypatch):
    from sslkit_plugins.encoders import Timm

    folder, _ = run_folder(tmp_path)
    loading = Timm.loading
    monkeypatch.setattr(
        Timm,
        "loading",
        lambda self, *words: loading(self, *words) + "\nmodel.layer4[1].bn2.bias.data += 0.01",
    )
    code, _, err = sslkit("export", folder)
    assert code == 2
    assert "features through timm differ" in err and "nothing was exported" in err
    assert not (folder / "export").exists()


def test_lines_that_fail_are_told_in_a_sentence(tmp_path, monkeypatch):
    from sslkit_plugins.encoders import Timm

    folder, _ = run_folder(tmp_path)
    monkeypatch.setattr(Timm, "loading", lambda self, *words: "raise SystemExit(3)")
    code, _, err = sslkit("export", folder)
    assert code == 2 and "could not load the exported encoder" in err
    assert not (folder / "export").exists()
