"""Fine-tuning: lists of images, layer groups, published settings, and what stays frozen."""

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import CPU, NPID, Noise, made
from PIL import Image
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import sslkit
from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import RecipeError, SslkitError
from sslkit.evaluation.candidates import Network, RawPixels, normaliser
from sslkit.evaluation.result import fault
from sslkit.interfaces import Encoder, Normalisation
from sslkit.runs import checkpoint
from sslkit.training import build as training
from sslkit_plugins.encoders import Timm
from sslkit_plugins.encoders.alexnet import AlexNet
from sslkit_plugins.encoders.amdim import AmdimEncoder
from sslkit_plugins.encoders.channel_groups import ChannelGroups
from sslkit_plugins.evaluations import image_lists, layer_groups
from sslkit_plugins.evaluations.drop_path import set_drop_path
from sslkit_plugins.evaluations.finetune import Finetune
from sslkit_plugins.evaluations.finetune_presets import PRESETS


def timm(model: str = "test_resnet", **options) -> Timm:
    torch.manual_seed(0)
    return Timm((32,), 3, model=model, **options)


def candidate(encoder: Encoder, name: str = "trained", *, baseline: bool = False) -> Network:
    plain = normaliser(Normalisation(), 8, CPU)
    return Network(name, encoder, plain, size=32, device=CPU, baseline=baseline)


def tuned(encoder: Encoder, *, seed: int = 0, **options):
    """The classifier after fine-tuning on 30 noisy pictures."""
    given = candidate(encoder)
    probe = made([given, RawPixels()])
    evaluation = Finetune(**{"epochs": 2, "batch_size": 10, "lr": 2.0, **options})
    return evaluation.train(probe, given, probe.train, seed)


def moved(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# ------------------------------------------------------------------------------ lists of images

LABELS = np.repeat(np.arange(4), [200, 55, 12, 3])


@pytest.mark.parametrize(
    "share, counts",
    [(0.01, [2, 1, 1, 1]), (0.1, [20, 6, 1, 1]), (0.5, [100, 28, 6, 2])],
    ids=["1%", "10%", "50%"],
)
def test_a_share_is_taken_of_every_class(share, counts):
    rows = image_lists.draw(LABELS, share, 0)
    assert np.bincount(LABELS[rows]).tolist() == counts
    assert len(set(rows.tolist())) == len(rows) and (np.diff(rows) > 0).all()


def test_a_smaller_share_is_inside_a_larger_one():
    one, ten, half = (
        set(image_lists.draw(LABELS, share, 3).tolist()) for share in (0.01, 0.1, 0.5)
    )
    assert one < ten < half
    assert one != set(image_lists.draw(LABELS, 0.01, 4).tolist())


@pytest.mark.parametrize(
    "text, share", [("1%", 0.01), ("10%", 0.1), ("100%", 1), (0.1, 0.1), ("0.05", 0.05)]
)
def test_shares_are_percentages_or_fractions(text, share):
    assert image_lists.read_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["1", 1, 10, "0%", "101%", "ten", -0.1, "nan", "nan%"])
def test_other_shares_are_refused(text):
    with pytest.raises(RecipeError, match=r"write 1%, 10%, 100% or 0\.1"):
        Finetune(share=text)


class Named(Noise):
    """Pictures in folders of classes, two of them with the same file name."""

    def __init__(self) -> None:
        super().__init__(6)
        self.names = ["a/1.jpg", "b/2.jpg", "c/3.jpg", "a/4.jpg", "b/4.jpg", "c/5.jpg"]


def listed(folder: Path, *names: str) -> Path:
    (folder / "list.txt").write_text("\n".join(names))
    return folder / "list.txt"


def test_a_list_may_leave_folders_out(tmp_path):
    file = listed(tmp_path, "5.jpg", "", "a/1.jpg", " b/4.jpg ", "5.jpg")
    assert image_lists.read(file, Named(), "abc").tolist() == [0, 4, 5]


@pytest.mark.parametrize(
    "names, sentence",
    [
        (
            ["1.jpg", "2.jpg", "3.jpg", "9.jpg"],
            "1 image that the training images do not have: 9.jpg",
        ),
        (["1.jpg", "2.jpg", "3.jpg", "4.jpg"], "do not have: 4.jpg"),
        (["1.jpg"], "names no image of b, c; add one of every class"),
    ],
    ids=["strange", "ambiguous", "class-missing"],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, names, sentence):
    with pytest.raises(RecipeError, match=r"^--list") as caught:
        image_lists.read(listed(tmp_path, *names), Named(), "abc")
    assert sentence in str(caught.value)


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        image_lists.read(tmp_path / "none.txt", Named(), "abc")


def test_a_written_list_is_sorted_and_reads_back(tmp_path):
    text, digest = image_lists.written(Named(), np.array([5, 0, 1]))
    assert text == "a/1.jpg\nb/2.jpg\nc/5.jpg\n"
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    rows = image_lists.read(listed(tmp_path, *text.splitlines()), Named(), "abc")
    assert image_lists.written(Named(), rows) == (text, digest)


# --------------------------------------------------------------------------------- layer groups

ENCODERS = {
    "resnet": timm,
    "vit": lambda: timm("test_vit"),
    "convnext": lambda: timm("test_convnext"),
    "alexnet": lambda: AlexNet(3, width=0.1, fc=8),
    "amdim": lambda: AmdimEncoder((32,), 3, base_width=4, out_dim=8, depth=1),
    "channel_groups": lambda: ChannelGroups((32,), 3, model="test_resnet"),
}
encoders = pytest.mark.parametrize("name", ENCODERS)


@encoders
def test_stages_hold_every_parameter_and_buffer_once(name):
    encoder = ENCODERS[name]()
    parameters, buffers = [], []
    for modules in encoder.stages().values():
        for module in modules:
            parameters += map(id, module.parameters())
            buffers += map(id, module.buffers())
    assert sorted(parameters) == sorted(map(id, encoder.parameters()))
    assert sorted(buffers) == sorted(map(id, encoder.buffers()))


@encoders
def test_groups_are_disjoint_and_hold_every_parameter(name):
    encoder, head = ENCODERS[name](), nn.Linear(4, 2)
    groups = layer_groups.groups(encoder, head, (0.1, 1.0), layer_decay=0.5)
    found = [id(value) for group in groups for value in group["params"]]
    every = [*encoder.parameters(), *head.parameters()]
    assert sorted(found) == sorted(map(id, every))


def test_head_and_encoder_have_their_rates():
    model = Finetune(preset="swav-10%").classifier(timm(), None, 3)
    groups = Finetune(preset="swav-10%").optimizer(model, 64).param_groups
    rates = {group["stage"]: group["lr"] for group in groups}
    assert rates == {"encoder": 0.01, "head": 0.2}


def test_rates_decay_with_the_distance_from_the_head():
    groups = layer_groups.groups(
        timm("test_vit"), nn.Linear(4, 2), (1.0, 1.0), layer_decay=0.65, weight_decay=0.05
    )
    rates = {group["stage"]: group["lr"] for group in groups}
    assert list(rates) == ["stem", *(f"stage{i}" for i in range(1, 7)), "head"]
    for number, rate in enumerate(rates.values()):
        assert rate == pytest.approx(0.65 ** (7 - number))


def test_vectors_and_tokens_have_no_weight_decay():
    encoder, head = timm("test_vit"), nn.Linear(4, 2)
    names = {id(value): name for name, value in encoder.named_parameters()}
    groups = layer_groups.groups(encoder, head, (1.0, 1.0), weight_decay=0.05)
    decays = {
        names.get(id(value), "head"): group["weight_decay"]
        for group in groups
        for value in group["params"]
        if value.ndim > 1
    }
    free = {name for name, decay in decays.items() if decay == 0}
    assert free == {name for name in names.values() if name.endswith(("cls_token", "pos_embed"))}
    assert all(group["weight_decay"] == 0 for group in groups if group["params"][0].ndim == 1)


@pytest.mark.parametrize(
    "encoder, name, stage",
    [
        ("resnet", "res2", "res2"),
        ("resnet", "layer1", "res2"),
        ("resnet", "conv1", "conv1"),
        ("vit", "blocks.3", "stage4"),
        ("convnext", "stages.0", "stage1"),
        ("alexnet", "conv2", "conv2"),
    ],
)
def test_stages_have_the_names_of_papers_and_libraries(encoder, name, stage):
    assert layer_groups.find_stage(ENCODERS[encoder](), name) == stage


@pytest.mark.parametrize(
    "encoder, name, sentence",
    [
        ("resnet", "rse2", "did you mean 'res2'? the stages are conv1, res2, res3, res4, res5"),
        ("resnet", "layer9", "the stages are conv1, res2"),
        ("alexnet", "res2", "the stages are conv1, conv2, conv3, conv4, conv5, fc6, fc7"),
    ],
)
def test_unknown_stages_are_refused_with_the_list(encoder, name, sentence):
    with pytest.raises(RecipeError, match=r"^--freeze") as caught:
        layer_groups.find_stage(ENCODERS[encoder](), name)
    assert sentence in str(caught.value)


def test_stochastic_depth_rises_to_its_rate():
    for encoder in (timm("test_vit"), timm()):
        assert set_drop_path(encoder, 0.2)
        rates = [one.drop_prob for one in encoder.modules() if hasattr(one, "drop_prob")]
        assert rates == sorted(rates) and (rates[0], rates[-1]) == pytest.approx((0, 0.2))
    assert not set_drop_path(AlexNet(3, width=0.1), 0.2)


# ------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "preset, batch, rates",
    [
        ("pirl", 256, (0.01, 0.01)),
        ("vissl", 512, (0.2, 0.2)),
        ("swav-1%", 64, (0.02, 5.0)),
        ("barlow", 256, (0.005, 0.5)),
        ("vicreg-1%", 256, (0.03, 0.08)),
        ("simclr_v2", 1024, (0.16, 0.16)),
        ("mae", 1024, (0.002, 0.002)),
    ],
)
def test_rates_scale_with_the_batch_as_published(preset, batch, rates):
    assert PRESETS[preset].rates(batch) == pytest.approx(rates)


def test_lars_adapts_the_matrices_of_the_encoder_only():
    model = Finetune(preset="simclr_v2").classifier(timm(), lambda images: images, 3)
    assert not model.head.weight.any() and not model.head.bias.any()
    adapted = set()
    for group in Finetune(preset="simclr_v2").optimizer(model, 256).param_groups:
        if group["always_adapt"]:
            adapted.update(group["params"])
    matrices = {value for value in model.encoder.parameters() if value.ndim > 1}
    assert adapted == matrices


def scheduled(preset: str, make) -> None:
    """Compare the factors of a preset with a scheduler of torch, epoch by epoch."""
    plan, value = PRESETS[preset], nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([value], lr=1.0)
    schedule = make(optimizer)
    for epoch in range(plan.epochs):
        assert plan.factor(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_schedules_are_those_of_torch():
    rules = torch.optim.lr_scheduler
    scheduled("swav-10%", lambda it: rules.MultiStepLR(it, [12, 16], 0.2))
    scheduled("pirl", lambda it: rules.MultiStepLR(it, [30]))
    scheduled("vissl", lambda it: rules.MultiStepLR(it, [30, 60, 90, 100]))
    scheduled("barlow", lambda it: rules.CosineAnnealingLR(it, 20))
    scheduled("simclr_v2", lambda it: rules.CosineAnnealingLR(it, 60))


def test_a_schedule_by_epoch_is_constant_within_one():
    assert PRESETS["barlow"].factor(3.9) == PRESETS["barlow"].factor(3)
    assert PRESETS["simclr_v2"].factor(3.9) < PRESETS["simclr_v2"].factor(3)


def test_warm_up_rises_to_the_highest_rate():
    plan = PRESETS["mae"]
    assert [plan.factor(epoch) for epoch in (0, 2.5, 5)] == [0, 0.5, 1]
    assert plan.factor(52.5) == pytest.approx(0.5) and plan.factor(100) == pytest.approx(0)


def test_drops_scale_with_the_epochs():
    plan = Finetune(preset="swav-10%", epochs=10).plan
    factors = [plan.factor(epoch) for epoch in (5, 6, 8)]
    assert factors == pytest.approx([1, 0.2, 0.04])


@pytest.mark.parametrize("preset", PRESETS)
def test_explicit_options_replace_those_of_a_preset(preset):
    made_with = Finetune(preset=preset, lr=0.7, epochs=3)
    assert (made_with.plan.lr, made_with.plan.epochs) == (0.7, 3)
    assert made_with.plan.batch_size == PRESETS[preset].batch_size
    assert sorted(made_with.given) == ["epochs", "lr"]


# ------------------------------------------------------------------------------------- training


def test_one_step_is_that_of_nesterovs_momentum():
    encoder = timm()
    model = tuned(encoder, epochs=1, batch_size=30, lr=0.5, head_lr=2.0)
    probe = made([candidate(encoder)])
    torch.manual_seed(0)
    fresh = Finetune().classifier(copy.deepcopy(encoder), normaliser(Normalisation(), 8, CPU), 3)
    ((images, index),) = probe.augmented(probe.train, batch_size=30, steps=1, seed=0, size=32)
    fresh.train()
    labels = torch.as_tensor(probe.train.labels)[index]
    F.cross_entropy(fresh(fresh.normalise(images)), labels).backward()
    scale = 1.9 * 30 / 256  # first step of momentum 0.9; linear scaling
    expected = fresh.head.weight - 2.0 * scale * fresh.head.weight.grad
    torch.testing.assert_close(model.head.weight, expected)
    name = "encoder.model.layer4.0.conv1.weight"
    before = dict(fresh.named_parameters())[name]
    torch.testing.assert_close(
        dict(model.named_parameters())[name], before - 0.5 * scale * before.grad
    )


@pytest.mark.parametrize("freeze", ["res2", "layer1"])
def test_frozen_stages_keep_every_bit(freeze):
    encoder = timm()
    before = copy.deepcopy(encoder.state_dict())
    model = tuned(encoder, freeze=freeze)
    changed = moved(before, model.encoder.state_dict())
    first = ("model.conv1", "model.bn1", "model.layer1")
    assert changed == {name for name in before if not name.startswith(first)}
    for name, value in model.encoder.named_parameters():
        assert (value.grad is None) == name.startswith(first)
    assert not moved(before, encoder.state_dict()), "the candidate itself"


def test_alexnet_freezes_up_to_conv2():
    encoder = AlexNet(3, width=0.1)
    before = copy.deepcopy(encoder.state_dict())
    changed = moved(before, tuned(encoder, freeze="conv2").encoder.state_dict())
    assert {name.partition(".")[0] for name in changed} == {"conv3", "conv4", "conv5"}


def test_with_everything_frozen_only_the_head_moves():
    encoder = timm("test_vit")
    before = copy.deepcopy(encoder.state_dict())
    model = tuned(encoder, freeze="stage6")
    assert not moved(before, model.encoder.state_dict())
    untrained = tuned(encoder, freeze="stage6", epochs=0)
    assert not torch.equal(model.head.weight, untrained.head.weight)


def test_no_epoch_leaves_the_encoder_with_a_random_head():
    encoder = timm()
    model = tuned(encoder, epochs=0)
    assert not moved(encoder.state_dict(), model.encoder.state_dict())
    assert (
        model.head.weight.std().item() == pytest.approx(0.01, rel=0.2) and not model.head.bias.any()
    )


def test_batch_norms_train():
    encoder = timm()
    model = tuned(encoder, lr=1e-12)
    assert not torch.equal(model.encoder.model.bn1.running_mean, encoder.model.bn1.running_mean)


def test_a_momentum_encoder_without_gradients_trains():
    encoder = timm().requires_grad_(False)
    model = tuned(encoder)
    assert moved(encoder.state_dict(), model.encoder.state_dict()) >= {"model.conv1.0.weight"}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_repeats(preset):
    encoder = timm("test_vit")
    options = {"preset": preset, "lr": None, "epochs": 1, "batch_size": 15}
    one, same, other = (tuned(encoder, seed=seed, **options) for seed in (0, 0, 1))
    assert not moved(one.state_dict(), same.state_dict())
    assert moved(one.state_dict(), other.state_dict())
    assert all(value.isfinite().all() for value in one.state_dict().values())


class Fixed(Encoder):
    """Colour means, as an encoder without weights."""

    dim = 3

    def forward(self, images):
        return images.mean((2, 3))

    def maps(self, images):
        return {"pixels": images}


def test_an_encoder_without_weights_gets_a_logistic_regression():
    probe = made([candidate(timm()), candidate(Fixed(), "fixed"), RawPixels()])
    result = Finetune(epochs=1, seeds=2, freeze="res5").measure(probe)
    rows = [(entry.row, entry.candidate) for entry in result.entries]
    assert rows == [
        ("layers after res5", "trained"),
        (None, "fixed"),
        (None, "raw pixels"),
        (None, "chance"),
    ]
    trained, fixed, *_ = result.entries
    assert len(trained.scores["top-1"].values) == len(fixed.scores["top-1"].values) == 2
    assert set(trained.differences) == {"fixed", "raw pixels"}
    notes = result.protocol["notes"]
    assert "fixed: no weights to train, logistic regression instead" in notes


def test_encoders_without_stages_train_as_one_group():
    result = Finetune(epochs=1, share="50%").measure(made())
    assert [entry.candidate for entry in result.entries][:2] == ["trained", "untrained"]
    with pytest.raises(SslkitError, match="is not a sequence of stages"):
        Finetune(freeze="conv").measure(made())
    with pytest.raises(SslkitError, match="is not a sequence of stages"):
        Finetune(layer_decay=0.5).measure(made())


def test_stochastic_depth_that_is_missing_is_noted():
    result = Finetune(epochs=0, drop_path=0.1).measure(made())
    note = "trained: has no stochastic depth, trained without --drop-path"
    assert note in result.protocol["notes"]


def test_files_beside_a_result_have_plain_names():
    result = Finetune(epochs=0, share="50%").measure(made())
    (name,) = result.files
    assert fault(result) is None and name == result.protocol["list"]
    for files in ({"../list.txt": "a"}, {"list.txt": b"a"}):
        assert "not text with a plain name" in fault(replace(result, files=files))


# ----------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    """25 pictures of each of two colours."""
    folder, rng = tmp_path_factory.mktemp("painted"), np.random.default_rng(0)
    for name, colour in {"blue": (20, 30, 200), "red": (220, 30, 20)}.items():
        (folder / name).mkdir()
        for number in range(25):
            pixels = np.array(colour) + rng.integers(-15, 16, (36, 40, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{name}_{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, painted) -> Path:
    """A run folder of zero steps."""
    folder = tmp_path_factory.mktemp("runs") / "tuned" / "now"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(NPID.format(root=painted))
    checkpoint.save(training.build(recipe.read(folder / "recipe.yaml")), folder)
    return folder


def finetune(run: Path, *words: object) -> tuple[int, str, str]:
    given = ["eval", "finetune", run, *words]
    result = CliRunner().invoke(app, [str(word) for word in given])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_learns_and_writes_its_list(run, painted, tmp_path):
    words = ("--data", painted, "--share", "10%", "--epochs", 20, "--freeze", "res2")
    code, out, err = finetune(run, *words, "--out", tmp_path)
    assert code == 0, err
    assert "untrained: trained from scratch, on the same images and budget" in out
    result = json.loads((tmp_path / "finetune.json").read_text())
    protocol = result["protocol"]
    expected = {
        "preset": "small",
        "replaced": ["epochs"],
        "epochs": 20,
        "freeze": "res2",
        "share": 0.1,
        "available_images": 40,
        "train_images": 4,
        "images_per_step": 4,
        "steps": 20,
        "scored": "after the last epoch",
    }
    assert {name: protocol[name] for name in expected} == expected
    names = (tmp_path / protocol["list"]).read_text()
    assert hashlib.sha256(names.encode()).hexdigest() == protocol["list_sha256"]
    assert [name.split("/")[0] for name in names.splitlines()] == ["blue"] * 2 + ["red"] * 2
    found = {entry["candidate"]: entry for entry in result["entries"]}
    assert found["trained"]["row"] == "layers after res2"
    assert found["trained"]["scores"]["top-1"]["value"] == 1
    assert found["raw pixels"]["scores"]["top-1"]["value"] == 1
    assert found["chance"]["scores"]["top-1"]["value"] == 0.5
    assert (tmp_path / "finetune.png").read_bytes()[:4] == b"\x89PNG"


def test_a_written_list_trains_the_same(run, tmp_path):
    one = sslkit.evaluate(run, "finetune", share=0.2, epochs=1, out=tmp_path, progress=False)
    file = tmp_path / one.protocol["list"]
    short = "\n".join(name.split("/")[1] for name in file.read_text().splitlines())
    file.write_text(short)
    other = sslkit.evaluate(run, "finetune", list_=file, epochs=1, progress=False)
    assert other.entries == one.entries and other.files == one.files
    assert other.protocol["list_sha256"] == one.protocol["list_sha256"]
    assert (one.protocol["share"], other.protocol["share"]) == (0.2, None)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--share", "1"], "--share  1 is not above 0 and below 1; write 1%, 10%, 100% or 0.1"),
        (["--share", "0%"], "--share  0% is not above 0 and below 1"),
        (["--share", "10%", "--list", "x.txt"], "--list names the images already"),
        (["--list", "none.txt"], "--list  none.txt cannot be read"),
        (["--freeze", "res9"], "--freeze  there is no stage 'res9'; did you mean 'res"),
        (["--preset", "swav"], "expected one of 'small', 'pirl'"),
        (["--epochs", "-1"], "--epochs"),
        (["--batch-size", "1"], "expected int ≥ 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_in_a_sentence(run, words, sentence, tmp_path):
    code, _, err = finetune(run, *words, "--out", tmp_path / "out")
    assert code == 2 and sentence in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
