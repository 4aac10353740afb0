"""The exported encoder loads in its own library, without sslkit, and gives the same features."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import sslkit
from hub import on_hub, serving
from safetensors.torch import load_file, save_file

from sslkit import recipe
from sslkit.errors import SslkitError
from sslkit.runs import card, checkpoint
from sslkit.runs import hub as hub_client
from sslkit.runs import onnx as onnx_file
from sslkit.training import build
from sslkit_plugins.encoders import Timm

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
import runpy, sys, torch
from safetensors.torch import load_file, save_file
found = {}
for library in sys.argv[1:]:
    model = runpy.run_path(f"export/{library}/load.py")["model"]
    with torch.no_grad():
        found[library] = model(load_file("images")["images"]).clone()
assert not any(name.partition(".")[0] in ("sslkit", "sslkit_plugins") for name in sys.modules)
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


def compare(folder: Path, encoder: torch.nn.Module, side: int, *libraries: str) -> None:
    """Run each load.py in a process without sslkit, and compare features."""
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(2))
    save_file({"images": images}, folder / "images")
    with torch.no_grad():
        expected = encoder(images)
    command = [sys.executable, "-c", READER, *libraries]
    subprocess.run(command, check=True, cwd=folder)
    for library, features in load_file(folder / "features").items():
        bound = 1e-4 if library == "onnx" else 1e-6
        assert (features - expected).abs().max() <= bound * expected.abs().max(), library


def test_both_libraries_give_the_features_of_the_run(tmp_path, loaded_here):
    folder, encoder = run_folder(tmp_path)
    for library in ("timm", "torchvision"):
        home = folder / "export" / library
        home.mkdir(parents=True)
        (home / "load.py").write_text("of an export before")
        code, out, err = sslkit("export", folder, "--to", library)
        assert code == 0, err
        lines = (home / "load.py").read_text().partition("resolve().parent\n")[2]
        assert lines.strip() in out, "what is printed is what was checked"
        assert f"folder = '{home}'" in out and "sslkit" not in lines
        for path in home.glob("*[!s]"):
            assert str(tmp_path) not in path.read_text(), "names no folder of this machine"
    names = sorted(path.name for path in (folder / "export/timm").iterdir())
    assert names == ["README.md", "config.json", "load.py", "model.safetensors"]
    compare(folder, encoder, 48, "timm", "torchvision")


def test_a_vision_transformer_is_exported_at_the_size_of_its_images(tmp_path, loaded_here):
    settings = ("encoder.model=vit_tiny_patch16_224", "transform.size=96")
    folder, encoder = run_folder(tmp_path, *settings)
    code, out, err = sslkit("export", folder, "--to", "timm")
    assert code == 0, err
    assert "local-dir:" in out
    config = json.loads((folder / "export/timm/config.json").read_text())
    assert config["model_args"] == {"img_size": 96, "dynamic_img_size": True}
    assert config["pretrained_cfg"]["input_size"] == [3, 96, 96]
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    model = runpy.run_path(str(folder / "export/timm/load.py"))["model"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (model(images) - encoder(images)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "settings, library, sentence",
    [
        (["encoder.model=resnet18d"], "torchvision", "torchvision has no model 'resnet18d'"),
        (["encoder.model=test_resnet"], "torchvision", "export --to timm"),
        ([], "keras", "'keras'; choose timm, torchvision, onnx or hub:USER/NAME"),
        ([], "../outside", "choose timm, torchvision, onnx or hub:USER/NAME"),
        ([], "hub:me", "'hub:me' is not of the form hub:USER/NAME"),
        ([], "hub:../../me", "is not of the form hub:USER/NAME"),
    ],
)
def test_what_a_library_does_not_have_leaves_nothing_behind(tmp_path, settings, library, sentence):
    folder, _ = run_folder(tmp_path, *settings)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = sslkit("export", folder, "--to", library)
    assert code == 2
    assert sentence in err and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_features_that_differ_are_not_exported(tmp_path, monkeypatch, loaded_here):
    folder, _ = run_folder(tmp_path)
    export = Timm.export

    def spoilt(self, *words):
        return export(self, *words) + "\nmodel.layer4[1].bn2.bias.data += 0.01"

    monkeypatch.setattr(Timm, "export", spoilt)
    code, _, err = sslkit("export", folder)
    assert code == 2
    assert "features through timm differ" in err and "nothing was exported" in err
    assert not (folder / "export").exists()


def test_lines_that_fail_are_told_in_a_sentence(tmp_path, monkeypatch):
    folder, _ = run_folder(tmp_path)
    monkeypatch.setattr(Timm, "export", lambda self, *words: "raise SystemExit(3)")
    code, _, err = sslkit("export", folder)
    assert code == 2 and "could not load the exported encoder" in err
    assert not (folder / "export").exists()


# ----------------------------------------------------------------------------------- model card


def test_the_card_holds_what_a_stranger_needs(tmp_path):
    folder, encoder = run_folder(tmp_path)
    score = {"value": 0.452, "values": [0.452], "intervals": [{"low": 0.4, "high": 0.5, "of": "x"}]}
    result = {
        "format": 1,
        "evaluation": "knn",
        "metrics": [{"name": "top-1", "unit": "%"}],
        "entries": [{"row": None, "candidate": "trained", "scores": {"top-1": score}}],
    }
    (folder / "eval").mkdir()
    (folder / "eval/knn.json").write_text(json.dumps(result))
    (folder / "eval/old.json").write_text("[1]")
    (folder / "eval/broken.json").write_text("{")
    made = recipe.read(
        folder / "recipe.yaml", overrides=["data={use: image_folder, root: /home/ada/birds}"]
    )
    _, state, _ = checkpoint.newest(folder)
    given = {"size": 32, "library": "timm", "lines": "LINES", "scales": "pixels in 0 … 1"}
    text = card.write(folder, made, encoder, state, **given)
    assert "| knn |  | trained | top-1 | 45.2 [40, 50] |" in text
    assert text.startswith("---\nlibrary_name: timm\n") and "\nlicense:" not in text
    assert "20 images of `image_folder`, 0 steps of 4 images" in text
    assert "model: resnet18" in text and "[N, 3, 32, 32]: pixels" in text and "LINES" in text
    assert "root: birds" in text and "/home/ada" not in text


# ------------------------------------------------------------------------------------------ onnx


@pytest.mark.slow
def test_onnx_gives_the_features_of_the_run(tmp_path):
    for name in onnx_file.PACKAGES:
        pytest.importorskip(name)
    folder, encoder = run_folder(tmp_path, "encoder.model=test_resnet")
    code, out, err = sslkit("export", folder, "--to", "onnx")
    assert code == 0, err
    assert "onnxruntime.InferenceSession" in out
    names = sorted(path.name for path in (folder / "export/onnx").iterdir())
    assert names == ["README.md", "encoder.onnx", "load.py"]
    compare(folder, encoder, 32, "onnx")


def test_without_onnx_a_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    folder, _ = run_folder(tmp_path, "encoder.model=test_resnet")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = sslkit("export", folder, "--to", "onnx")
    assert code == 2 and "pip install 'sslkit[onnx]'" in err
    assert not (folder / "export").exists()


# ------------------------------------------------------------------------------------------- hub

OPEN = """
import sys, timm, torch
from safetensors.torch import load_file, save_file
model = timm.create_model("hf-hub:me/mine", pretrained=True).eval()
with torch.no_grad():
    save_file({"timm": model(load_file("images")["images"])}, "features")
"""


def test_an_uploaded_encoder_opens_from_the_hub(tmp_path, monkeypatch, loaded_here):
    folder, encoder = run_folder(tmp_path, "encoder.model=test_resnet")
    images = torch.randn(3, 3, 32, 32)
    save_file({"images": images}, tmp_path / "images")
    with serving() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        code, out, err = sslkit("export", folder, "--to", "hub:me/mine")
        assert code == 0, err
        assert f"written: {hub.address}/me/mine" in out
        assert sorted(hub.files) == ["README.md", "config.json", "load.py", "model.safetensors"]
        private = hub.made.get("private", hub.made.get("visibility") == "private")
        assert private and hub.tokens == {"Bearer hf_none"}
        opened = on_hub(tmp_path, hub.address, "-c", OPEN)
        assert opened.returncode == 0, opened.stderr
    with torch.no_grad():
        expected = encoder(images)
    assert (load_file(tmp_path / "features")["timm"] - expected).abs().max() <= 1e-5
    assert not (folder / "export").exists()


def test_a_hub_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        SslkitError, match=r"cannot upload to http://127\.0\.0\.1:1/me/mine: "
    ) as told:
        hub_client.upload(tmp_path, "me/mine", public=False)
    assert "\n" not in str(told.value)


def test_an_upload_needs_a_token(tmp_path, monkeypatch):
    folder, _ = run_folder(tmp_path, "encoder.model=test_resnet")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, _, err = sslkit("export", folder, "--to", "hub:me/mine")
    assert code == 2 and "you are not logged in to" in err and "set HF_TOKEN" in err
