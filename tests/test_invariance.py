"""Distances between images and their transformed copies: figure 4 of PIRL."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import TINY, sslkit
from noise import NPID, Noise, made, network
from torch import nn
from torch.nn import functional as F

from sslkit import recipe
from sslkit.evaluation.build import Request, build
from sslkit.evaluation.candidates import RawPixels
from sslkit.runs import checkpoint
from sslkit.training import build as training
from sslkit_plugins.evaluations import invariance
from sslkit_plugins.evaluations.invariance import Invariance, between, distances
from sslkit_plugins.evaluations.pretext import compared_heads, embed_views

STANDARD = ["jigsaw", "rotation", "crop", "colour", "blur", "flip"]


def run_of(text: str, root: Path, folder: Path) -> Path:
    """A run folder of zero steps."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(text.format(root=root))
    checkpoint.save(training.build(recipe.read(folder / "recipe.yaml")), folder)
    return folder


@pytest.fixture(scope="module")
def pirl(tmp_path_factory, images) -> Path:
    return run_of(TINY, images, tmp_path_factory.mktemp("runs") / "pirl" / "now")


@pytest.fixture(scope="module")
def npid(tmp_path_factory, images) -> Path:
    return run_of(NPID, images, tmp_path_factory.mktemp("runs") / "npid" / "then")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values(result, metric: str = "relative distance") -> dict:
    return {(one.row, one.candidate): one.scores[metric].value for one in result.entries}


# ------------------------------------------------------------------------------------ distances


def test_the_distance_is_symmetric_and_ignores_scale():
    one, other = normal(20, 8), normal(20, 8, seed=1)
    found = distances(one, other)
    torch.testing.assert_close(found, distances(other, one))
    torch.testing.assert_close(found, distances(3 * one, 0.1 * other))
    assert distances(one, one).max() == 0
    cosine = F.cosine_similarity(one.double(), other.double())
    torch.testing.assert_close(found, (2 - 2 * cosine).sqrt())


def test_independent_gaussians_and_their_relu():
    one, other = normal(4000, 128), normal(4000, 128, seed=1)
    found = distances(one, other)
    assert found.mean().item() == pytest.approx(1.414, abs=0.005)
    assert found.std().item() == pytest.approx(0.063, abs=0.005)
    assert distances(one.relu(), other.relu()).mean().item() == pytest.approx(1.168, abs=0.005)


def test_the_distance_between_images_leaves_out_the_image():
    features = normal(5, 8)
    full = torch.stack([distances(one.expand(5, 8), features) for one in features])
    torch.testing.assert_close(between(features), full.sum(1) / 4)
    other = normal(5, 8, seed=1)
    crossed = torch.stack([distances(one.expand(5, 8), other) for one in features])
    torch.testing.assert_close(between(features, other), (crossed.sum(1) - crossed.diagonal()) / 4)
    assert between(features[:1]).isnan().all()


# ----------------------------------------------------------------------------------- references


def test_the_same_image_is_0_and_different_images_are_1():
    result = Invariance().measure(made())
    found = values(result)
    for name in ("trained", "untrained", "raw pixels"):
        assert found["same image", name] == 0
        assert found["different images", name] == pytest.approx(1)
        assert 0 < found["flip", name] < 2
    absolute = values(result, "distance")
    ratio = absolute["flip", "trained"] / absolute["different images", "trained"]
    assert found["flip", "trained"] == pytest.approx(ratio)


@pytest.mark.parametrize("kind", ["batch norm", "dropout"])
def test_a_network_in_training_mode_does_not_pass_unnoticed(kind):
    candidate = network()
    if kind == "dropout":
        candidate.encoder.layers.append(nn.Dropout(0.5))
    candidate.encoder.train()
    found = values(Invariance().measure(made([candidate])))
    assert found["same image", "trained"] > 0.01


def test_equal_features_have_no_relative_distance():
    class Constant(RawPixels):
        def embed(self, images, *, layers=False):
            return {"features": torch.ones(len(images), 4)}

    result = Invariance().measure(made([network(), Constant()]))
    assert math.isnan(values(result)["flip", "raw pixels"])
    assert values(result, "distance")["flip", "raw pixels"] == 0


def test_a_further_transform_changes_no_other(monkeypatch):
    before = values(Invariance().measure(made()))
    monkeypatch.setattr(invariance, "NAMES", ["jpeg", *reversed(STANDARD)])
    after = values(Invariance().measure(made()))
    assert {key: after[key] for key in before} == before
    assert ("jpeg", "trained") in after


# --------------------------------------------------------------------------------------- result


def test_rows_metrics_intervals_and_histograms():
    result = Invariance().measure(made())
    rows = list(dict.fromkeys(entry.row for entry in result.entries))
    assert rows == [*STANDARD, "same image", "different images"]
    trained = next(one for one in result.entries if (one.row, one.candidate) == ("flip", "trained"))
    assert trained.scores["relative distance"].intervals[0].of == "12 images"
    assert set(trained.differences) == {"untrained", "raw pixels"}
    assert [figure.title.split(":")[0] for figure in result.figures] == [
        *STANDARD,
        "different images",
    ]
    for figure in result.figures:
        assert {name: sum(counts) for name, counts in figure.counts.items()} == {
            "trained": 12,
            "untrained": 12,
            "raw pixels": 12,
        }
        assert figure.edges[0] == 0 and figure.edges[-1] >= 1


def test_it_limits_its_images_and_needs_no_labels():
    source = Noise(12, seed=1)
    source.labels, source.groups = None, [f"site {number}" for number in range(12)]
    result = Invariance(images=11).measure(made([RawPixels()], val=source))
    assert result.protocol["images"] == 11
    interval = result.entries[0].scores["distance"].intervals[0]
    assert interval.of == "11 groups, bootstrap of 1000"


def test_images_of_five_channels_and_16_bits():
    source = Noise(12, channels=5, bits=16)
    found = values(Invariance().measure(made([RawPixels(16)], train=source, val=source)))
    assert found["same image", "raw pixels"] == 0 and found["colour", "raw pixels"] > 0


# ----------------------------------------------------------------------- the views of the recipe


def test_heads_of_pirl_see_the_recipe_views(pirl):
    probe = build(Request(run=pirl, device="cpu"), "").probe
    trained = probe.candidates[0]
    method, transform = trained.pretext()
    assert not method.training
    assert compared_heads(method, transform) == {"image": "image", "patches": "patches"}
    pairs = embed_views(probe, trained, probe.val)
    assert list(pairs) == ["recipe: heads image, patches", "recipe: image", "recipe: patches"]
    f, g = pairs["recipe: heads image, patches"]
    (batch, *_) = probe.pretext(probe.val, transform)
    with torch.no_grad():
        torch.testing.assert_close(f, method.head("image")(method.encode(batch.views["image"])))
        patches = method.encode(batch.views["patches"])
        torch.testing.assert_close(g, method.head("patches")(patches))
        torch.testing.assert_close(pairs["recipe: patches"][1], patches.mean(1))
    assert batch.index.tolist() == list(range(len(probe.val)))


def test_the_untrained_method_has_the_fitted_statistics(pirl):
    probe = build(Request(run=pirl, device="cpu"), "").probe
    untrained = probe.candidates[1]
    method, _ = untrained.pretext()
    for name, value in untrained.encoder.state_dict().items():
        assert torch.equal(method.exported.state_dict()[name], value), name
    assert method.exported is not untrained.encoder
    assert RawPixels().pretext() is None and network().pretext() is None


def test_two_runs_in_one_result_and_picture(pirl, npid, tmp_path):
    out = tmp_path / "out"
    code, text, err = sslkit("eval", "invariance", pirl, "--against", npid, "--out", out)
    assert code == 0, err
    assert "relative distance (1: different images)" in text and "recipe: patches" in text
    assert (out / "invariance.png").read_bytes()[:4] == b"\x89PNG"
    saved = json.loads((out / "invariance.json").read_text())
    rows: dict[str, list[str]] = {}
    for entry in saved["entries"]:
        rows.setdefault(entry["row"], []).append(entry["candidate"])
    assert rows["recipe: heads image, patches"] == ["trained", "untrained"]
    assert rows["recipe: patches"] == ["trained", "untrained"]
    assert rows["recipe: image"] == ["trained", "untrained", "then"]
    assert rows["jigsaw"] == ["trained", "untrained", "raw pixels", "then"]
    described = saved["protocol"]["transforms"]
    assert described["recipe: heads image, patches"] == "outputs of both heads"
    assert described["flip"] == "horizontal"


def test_views_are_the_same_twice(pirl):
    probe = build(Request(run=pirl, device="cpu"), "").probe
    _, transform = probe.candidates[0].pretext()
    one, other = (list(probe.pretext(probe.val, transform)) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        for name in first.views:
            assert torch.equal(first.views[name], second.views[name])
    (third, *_) = probe.pretext(probe.val, transform, seed=1)
    assert not torch.equal(third.views["image"], one[0].views["image"])
