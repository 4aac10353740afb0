"""Detection: the network, the schedule, what is frozen, and going on after a kill."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import BatchNormAct2d
from torch import nn
from typer.testing import CliRunner
from voc_folder import write_voc

from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import DataError, RecipeError, SslkitError
from sslkit.evaluation import resumable
from sslkit.evaluation.candidates import Network, RawPixels, normaliser
from sslkit.evaluation.plan import plan
from sslkit.evaluation.probe import ImageProbe
from sslkit.interfaces import Boxes, Encoder, ImageSource
from sslkit_plugins.evaluations.box_training import Schedule, Training, flipped, order
from sslkit_plugins.evaluations.detect import PRESETS, Detect, scaled
from sslkit_plugins.evaluations.detector import Scale, build

CPU = torch.device("cpu")


class Squares(ImageSource):
    """Dark noise with one or two bright squares, red or green."""

    classes = ("red", "green")

    def __init__(self, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.arrays = rng.integers(0, 60, (count, 72, 96, 3)).astype(np.uint8)
        self.names = [f"{number}.png" for number in range(count)]
        self.boxes = [self.draw(pixels, rng) for pixels in self.arrays]

    def draw(self, pixels: np.ndarray, rng: np.random.Generator) -> Boxes:
        corners, labels = [], rng.integers(0, 2, rng.integers(1, 3))
        for label in labels:
            side = int(rng.integers(24, 44))
            left, top = int(rng.integers(96 - side)), int(rng.integers(72 - side))
            pixels[top : top + side, left : left + side, label] = 230
            corners.append((left, top, left + side, top + side))
        return Boxes(np.array(corners, np.float32), labels, np.zeros(len(labels), bool))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.arrays[index])


def stage(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Small(Encoder):
    """Three stages of stride 4, 2 and 2."""

    def __init__(self, stages: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(stage(3, 16, 4), stage(16, 32, 2), stage(32, 32, 2))
        self.dim, self.has_stages = 32, stages

    def forward(self, images):
        return self.layers(images).mean((2, 3))

    def maps(self, images):
        return {}

    def sequence(self):
        if not self.has_stages:
            return super().sequence()
        return {f"conv{number}": layer for number, layer in enumerate(self.layers, 1)}


def network(name="trained", **options) -> Network:
    encoder = Small(**options)
    plain = normaliser(encoder.normalisation, 8, CPU)
    return Network(name, encoder, plain, size=64, device=CPU, fits=True)


def made(train=4, val=12, candidates=None, **options) -> ImageProbe:
    found = candidates or [network()]
    probe = ImageProbe(
        Squares(train), Squares(val, 1), Squares.classes, found, 64, CPU, chosen_size=72, **options
    )
    probe.fit_statistics()
    return probe


def stages_of_resnet() -> list[nn.Module]:
    model = timm.create_model("test_resnet")
    first = nn.Sequential(model.conv1, model.bn1, model.act1)
    second = nn.Sequential(model.maxpool, model.layer1)
    return [first, second, model.layer2, model.layer3, model.layer4]


# ------------------------------------------------------------------------- network


EXAMPLE = torch.zeros(1, 3, 64, 64)


def test_c4_is_all_stages_but_the_last_and_the_last_is_the_head():
    stages = stages_of_resnet()
    detector = build(stages, EXAMPLE, 2, Scale.of(None))
    assert list(detector.backbone) == stages[:-1]
    assert detector.roi_heads.box_head[0] is stages[-1]
    assert detector.roi_heads.box_roi_pool.output_size == (14, 14)
    assert detector.roi_heads.box_predictor.cls_score.out_features == 3
    assert detector.rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    assert detector.rpn.anchor_generator.aspect_ratios == ((0.5, 1.0, 2.0),)


def test_fpn_has_the_outputs_of_the_last_four_stages():
    detector = build(stages_of_resnet(), EXAMPLE, 2, Scale.of(None), neck="fpn")
    maps = detector.backbone(torch.zeros(1, 3, 128, 128))
    sides = {name: values.shape[-1] for name, values in maps.items()}
    assert sides == {"0": 32, "1": 16, "2": 8, "3": 4, "pool": 2}
    assert {values.shape[1] for values in maps.values()} == {256}


def test_images_keep_the_normalisation_of_the_encoder():
    detector = build(list(Small().layers), EXAMPLE, 2, Scale.of(64)).eval()
    image = torch.randn(3, 64, 64)
    (shown,) = detector.transform([image])[0].tensors
    torch.testing.assert_close(shown, image)


@pytest.mark.parametrize(
    "size, sides, longest, regions",
    [(None, tuple(range(480, 801, 32)), 1333, 512), (400, (400,), 666, 128), (96, (96,), 160, 64)],
    ids=["papers", "half", "tiny"],
)
def test_size_sets_short_side_and_number_of_regions(size, sides, longest, regions):
    scale = Scale.of(size)
    assert (scale.short_sides, scale.long_side, scale.regions) == (sides, longest, regions)


def test_frozen_batch_norms_keep_statistics_and_activation():
    """timm's BatchNormAct2d holds the activation."""
    norm = BatchNormAct2d(4)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 16, 1), norm)
    with torch.no_grad():
        norm.weight.fill_(-1.0)
    images = torch.randn(2, 3, 64, 64)
    before = body.eval()(images)
    detector = build([body, nn.Conv2d(4, 4, 1)], EXAMPLE, 1, Scale.of(64), frozen_stages=0)
    after = detector.train().backbone(images)
    assert torch.equal(before, after) and before.min() == 0 and not norm.weight.requires_grad
    assert body[0].weight.requires_grad


# ------------------------------------------------------------------------ training


def test_the_rate_rises_and_drops_where_the_preset_says():
    schedule = Schedule(steps=100, batch_size=16, lr=1.0, warm_up=10, drops=(60, 80))
    rates = [schedule.rate(step) for step in (0, 5, 10, 59, 60, 80)]
    assert rates == pytest.approx([0.001, 0.5005, 1.0, 1.0, 0.1, 0.01])


def test_fewer_steps_and_images_scale_the_preset():
    schedule = scaled(PRESETS["pirl"], 200, 2, None)
    assert (schedule.warm_up, schedule.drops) == (8, (136,))
    assert schedule.lr == pytest.approx(0.002 / 8)
    whole = scaled(PRESETS["moco"], None, 16, 0.01)
    assert whole == Schedule(24000, 16, 0.01, 100, (18000, 22000))


def test_the_order_of_images_is_a_function_of_the_place():
    whole = list(order(5, 0, 15, seed=3))
    assert [sorted(whole[first : first + 5]) for first in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert list(order(5, 7, 15, seed=3)) == whole[7:] and list(order(5, 0, 15, seed=4)) != whole


def test_a_flip_mirrors_boxes_with_the_image():
    image = torch.zeros(1, 4, 10)
    image[:, 1:3, 2:5] = 1
    mirrored, corners = flipped(image, torch.tensor([[2.0, 1.0, 5.0, 3.0]]))
    assert corners.tolist() == [[5.0, 1.0, 8.0, 3.0]]
    assert mirrored[:, 1:3, 5:8].min() == 1 and mirrored.sum() == image.sum()


@pytest.mark.parametrize("preset", ["pirl", "moco"])
def test_a_preset_trains_what_it_says(preset):
    """PIRL: norms and the first two stages frozen. MoCo: everything is trained."""
    probe = made()
    candidate, evaluation = probe.candidates[0], Detect(preset=preset, steps=2, batch_size=2)
    assert evaluation.replaced == ["batch_size", "steps"]
    given = copy.deepcopy(candidate.encoder.state_dict())
    detector, normalise = evaluation.detector(candidate, probe, Scale.of(72))
    before = copy.deepcopy(detector.state_dict())
    training = Training(detector, normalise, evaluation.schedule, probe.train, seed=0, device=CPU)
    training.run(probe.pictures, None, lambda done, total: None)
    after = detector.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    stem = {name for name in changed if name.startswith("backbone.0.")}
    assert "backbone.1.0.weight" in changed or preset == "pirl"
    assert bool(stem) == (preset == "moco")
    assert any(name.startswith("roi_heads.box_head.0.0") for name in changed)
    norms = {name for name in changed if "running" in name or ".0.1." in name}
    assert bool(norms) == (preset == "moco")
    assert ("roi_heads.box_head.1.running_mean" in changed) == (preset == "moco")
    now = candidate.encoder.state_dict()
    assert all(torch.equal(given[name], now[name]) for name in given)


def test_a_box_outside_the_decoded_image_is_refused():
    probe = made(train=2)
    probe.train.arrays = probe.train.arrays[:, :20, :20]
    with pytest.raises(DataError, match=r"\.png is 20×20 px, but a box of it ends at"):
        Detect(steps=1, batch_size=1).measure(probe)


def test_loader_workers_change_nothing():
    results = [Detect(steps=1, batch_size=2).measure(made(workers=count)) for count in (0, 2)]
    first, second = ([entry.scores for entry in result.entries] for result in results)
    assert first == second


def test_difficult_objects_are_trained_and_ignored_in_the_test():
    probe = made(train=2, val=2)
    for boxes in (*probe.train.boxes, *probe.val.boxes):
        boxes.difficult[:] = True
    evaluation = Detect(steps=1, batch_size=2)
    detector, normalise = evaluation.detector(probe.candidates[0], probe, Scale.of(72))
    seen = []
    detector.forward = lambda images, targets: seen.extend(targets) or {"x": torch.ones(1)}
    training = Training(detector, normalise, evaluation.schedule, probe.train, seed=0, device=CPU)
    training.losses([(0, torch.zeros(3, 72, 96)), (1, torch.zeros(3, 72, 96))], 0)
    assert [len(target["labels"]) for target in seen] == [len(b.labels) for b in probe.train.boxes]
    assert min(target["labels"].min() for target in seen) >= 1  # 0 is the background


def test_an_infinite_loss_ends_a_training_with_a_note():
    result = Detect(steps=30, batch_size=2, lr=1e9).measure(made())
    assert np.isnan(result.entries[0].scores["AP50"].value)
    assert result.protocol["notes"] == ["trained: the loss was not finite; use a smaller --lr"]


def test_squares_are_found_after_a_short_training():
    result = Detect(preset="moco", steps=60, batch_size=2, lr=0.2).measure(made(train=40))
    (entry, chance) = result.entries
    (interval,) = entry.scores["AP50"].intervals
    assert entry.scores["AP50"].value > 0.1 and chance.scores["AP50"].value == 0
    assert interval.low < entry.scores["AP50"].value < interval.high
    assert interval.of == "12 images, bootstrap of 1000"
    assert [metric.name for metric in result.metrics] == ["AP50", "AP", "AP75"]


@pytest.mark.parametrize("preset, images", [("pirl", 2 * 8 + 12), ("moco", 2 * 8 + 2 * 8 + 12)])
def test_a_detector_is_planned_from_its_steps(preset, images):
    """MoCo's batch norms get their statistics from as many batches as there are steps."""
    probe = made()
    given = copy.deepcopy(probe.candidates[0].encoder.state_dict())
    options = {"preset": preset, "steps": "8", "batch_size": "2"}
    found = plan(recipe.read_evaluation("detect", options), probe)
    lines = dict(found.lines)
    assert "1 seed of 8 steps of 2 images" in lines["time of the evaluation itself"]
    assert f"({images} images)" in lines["time to decode images again"]
    assert found.seconds > 0 and found.memory > 10**6
    now = probe.candidates[0].encoder.state_dict()
    assert all(torch.equal(given[name], now[name]) for name in given)


# ---------------------------------------------------------------------- the result


@pytest.fixture(scope="module")
def measured():
    candidates = [network(), network("other"), RawPixels()]
    probe = made(candidates=candidates)
    return Detect(steps=2, batch_size=1, seeds=2).measure(probe)


def test_pixels_are_left_out_with_a_note(measured):
    assert [entry.candidate for entry in measured.entries] == ["trained", "other", "chance"]
    assert measured.protocol["notes"] == ["raw pixels: left out, no network to train"]


def test_equal_encoders_differ_by_nothing(measured):
    ours, other, _ = measured.entries
    assert ours.scores["AP50"].values == other.scores["AP50"].values
    assert len(ours.scores["AP50"].values) == 2
    difference = ours.differences["other"]["AP50"]
    assert (difference.low, difference.high) == (0.0, 0.0) and difference.of.endswith("paired")


def test_the_figure_has_the_points_whose_mean_is_ap50(measured):
    (figure,) = measured.figures
    recall, points = figure.lines["trained"]
    assert np.mean(points) == pytest.approx(measured.entries[0].scores["AP50"].value)
    assert len(recall) == 11


# ------------------------------------------------------------------------ refusals


def test_an_encoder_without_stages_is_refused_before_training():
    candidates = [network(), network("flat", stages=False)]
    probe = made(candidates=candidates)
    with pytest.raises(SslkitError, match=r"flat cannot become a detector: .* not a sequence"):
        Detect(steps=10**9).measure(probe)


def test_the_rule_of_coco_names_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"--rule.*pip install 'sslkit\[coco\]'; or use voc07"):
        Detect(rule="coco")


# ------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    things = {f"{number}": [("red", (5, 5, 36, 34), False)] for number in range(4)}
    tested = {f"test{number}": [("red", (10, 6, 44, 38), False)] for number in range(2)}
    folder = tmp_path_factory.mktemp("voc")
    return write_voc(folder, {"trainval": things, "test": tested})


def detect(voc: Path, out: Path, *words: object) -> tuple[int, str]:
    words = ["eval", "detect", "--encoder", "timm:test_resnet", "--weights", "none", *words]
    words += ["--data", voc, "--out", out, "--size", 40, "--workers", 0]
    ran = CliRunner().invoke(app, [str(word) for word in words])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, " ".join(ran.output.split())


def test_a_killed_command_goes_on_with_the_same_numbers(voc, tmp_path, monkeypatch):
    options = ["--preset", "moco", "--steps", 3, "--batch-size", 2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, out = detect(voc, whole, *options)
    assert code == 0 and "AP50 % ↑" in out and "raw pixels: left out" in out
    monkeypatch.setattr(resumable, "SAVE_SECONDS", 0.0)
    take, taken = Training.take, []

    def stop(training, batch, step):
        if step == 2:
            raise KeyboardInterrupt
        take(training, batch, step)

    def count(training, batch, step):
        taken.append(step)
        take(training, batch, step)

    monkeypatch.setattr(Training, "take", stop)
    code, out = detect(voc, parts, *options)
    assert code == 130 and "run the same command again to go on" in out
    assert [path.name for path in parts.iterdir()] == ["unfinished"]
    monkeypatch.setattr(Training, "take", count)
    code, out = detect(voc, parts, *options)
    assert code == 0 and taken == [2]
    first, second = (json.loads((one / "detect.json").read_text("utf-8")) for one in (whole, parts))
    assert first == second and not (parts / "unfinished").exists()


def test_a_folder_without_boxes_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "0.png")
        Image.new("RGB", (40, 40)).save(tmp_path / name / "1.png")
    code, out = detect(tmp_path, tmp_path / "out")
    assert code == 2 and "have no boxes" in out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "test, said",
    [
        ([("blue", (5, 5, 20, 20), False)], "validation objects of blue, but no training objects"),
        ([("red", (5, 5, 20, 20), True)], "no validation image of .* has an object that counts"),
    ],
    ids=["unknown-class", "only-difficult"],
)
def test_objects_that_cannot_be_scored_are_refused(tmp_path, test, said):
    folder = write_voc(
        tmp_path / "voc", {"trainval": {"a": [("red", (5, 5, 20, 20), False)]}, "test": {"b": test}}
    )
    code, out = detect(folder, tmp_path / "out")
    assert code == 2 and re.search(said, out)
    assert not (tmp_path / "out").exists()
