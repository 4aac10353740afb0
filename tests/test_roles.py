"""`sslkit check` refuses the parts with which training fails, and no others."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import RecipeError
from sslkit.recipe import registry
from sslkit.training.build import build
from sslkit.training.trainer import train

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
BY_METHOD = {yaml.safe_load(path.read_text())["method"]["use"]: path for path in RECIPES[::-1]}
PAIRS = ("simclr", "byol", "simsiam", "barlow_twins", "vicreg", "nnclr", "moco", "amdim")
SHORT = (
    "data.use=shapes",
    "data.images=8",
    "train.batch_size=4",
    "train.workers=0",
    "train.device=cpu",
    "train.precision=fp32",
)


def other(kind, used):
    """Names of the installed parts of a kind except `used`."""
    return [part.name for part in registry.parts(kind) if part.name != used]


def check(method, *settings):
    """Exit code and output of `sslkit check` for the recipe of a method."""
    words = ["check", str(BY_METHOD[method])]
    for setting in settings:
        words += ["--set", setting]
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.output.strip()


@pytest.mark.parametrize("method", PAIRS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("use", ["crops", "multi_crop"])
def test_two_crops_are_two(method, count, use):
    code, output = check(method, f"transform={{use: {use}, count: {count}}}")
    assert code == 2
    assert f"transform.count  method '{method}' compares 2 crops of an image, not {count}" in output


@pytest.mark.parametrize("method", ["swav", "dino"])
def test_large_and_small_crops_count_together(method):
    code, output = check(method, "transform={use: crops, count: 1}")
    assert code == 2 and "compares at least 2 crops of an image, not 1; set it to 2" in output
    words = (
        "transform={use: multi_crop, count: 1, local: {count: 1}}",
        "encoder.model=test_resnet",
    )
    assert check(method, *words)[0] == 0


@pytest.mark.parametrize("setting", ["transform.count=[1]", "transform.local.count={a: [1]}"])
def test_a_count_that_is_no_number_is_said_once(setting):
    code, output = check("dino", setting)
    assert code == 2 and "expected int between 1 and 100" in output and "compares" not in output


@pytest.mark.parametrize("method", ["moco", "pirl_moco", "nnclr"])
def test_a_queue_is_no_bank(method):
    code, output = check(method, "sampler={use: memory_bank}")
    assert code == 2 and output == (
        f"--set  sampler.use  method '{method}' needs a sampler with the role 'queue', which "
        "'memory_bank' does not have; use: queue"
    )


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_a_convolutional_network_has_no_tokens(model):
    code, output = check("mae", f"encoder={{use: timm, model: {model}}}", "transform.size=32")
    assert code == 2 and output == (
        f"--set  encoder.model  '{model}' has no tokens; use a vision transformer, such as "
        "vit_small_patch16_224"
    )


WRONG_SIZES = {
    ("simclr", "transform.size=33", "encoder.model=test_vit"): "encoder.model  'test_vit' does not",
    ("amdim", "transform.size=48"): "encoder  'amdim' takes images of one size, 32, 64 or 128 px",
    ("cpc", "transform.size=16"): "transform.patch  20 px do not fit into a crop of 16 px",
    ("cpc", "transform.size=20"): "heads.predictor.steps  an offset of 3 leaves a grid of 1 × 1",
    ("jigsaw", "transform.grid=7"): "transform.patch  18 pixels do not fit into a cell of 9",
    ("bigan", "transform.size=48"): "heads.generator  needs images of 8, 16, 32, 64",
    ("mae", "transform.size=20"): "heads.decoder.patch_size  8 does not divide the image side",
    ("rotnet", "heads.rotation.out_dim=5"): "heads.rotation.out_dim  is 5, but target 'rotation'",
}


@pytest.mark.parametrize("settings", WRONG_SIZES, ids=" ".join)
def test_sizes_that_do_not_fit_are_refused(settings):
    code, output = check(*settings)
    assert code == 2 and output.count("\n") == 0
    assert WRONG_SIZES[settings] in output and "; " in output, output


@pytest.mark.parametrize("method", BY_METHOD)
def test_special_heads_are_for_their_methods(method):
    heads = yaml.safe_load(BY_METHOD[method].read_text()).get("heads", {})
    for name, head in heads.items():
        for use in ("mae_decoder", "bigan_generator", "bigan_discriminator", "cpc_context"):
            if use != head["use"]:
                code, output = check(method, f"heads.{name}={{use: {use}}}")
                assert code == 2 and ("role" in output or "serves as" in output), output


def test_a_head_joins_the_crops_that_are_one_target():
    code, output = check("pirl", "heads.patches={use: linear, out_dim: 128}")
    assert code == 2 and "keeps the crops of the view 'patches' apart" in output
    code, output = check("simclr", "heads.projector={use: concat_patches, out_dim: 128}")
    assert code == 2 and "joins the crops of a view, but it gets one image of 'global'" in output


def small(path):
    """The content of a recipe, with small networks."""
    content = yaml.safe_load(path.read_text())
    if path.stem != "mae" and "model" in content["encoder"]:
        content["encoder"]["model"] = "test_resnet"
    for head in content.get("heads", {}).values():
        if isinstance(head.get("out_dim"), int):
            head["out_dim"] = 4
    return content


def variants(content):
    """Yield the name and content of recipes in which one part is replaced by another."""
    sections = [("sampler", "samplers"), ("loss", "losses")]
    sections = [(section, kind) for section, kind in sections if section in content]
    for section, kind in sections:
        for use in other(kind, content[section]["use"]):
            yield f"{section} {use}", content | {section: {"use": use}}
    for name, head in content.get("heads", {}).items():
        for use in other("heads", head["use"]):
            known = registry.find("heads", use).signature().options
            chosen = {"use": use}
            if "out_dim" in head and "out_dim" in known:
                chosen["out_dim"] = head["out_dim"]
            yield f"{name} {use}", content | {"heads": content["heads"] | {name: chosen}}


@pytest.mark.slow
@pytest.mark.parametrize("method", BY_METHOD)
def test_what_check_accepts_takes_a_step(method):
    for name, changed in variants(small(BY_METHOD[method])):
        try:
            made = recipe.read(changed, overrides=SHORT)
        except RecipeError:
            continue
        step = next(train(build(made)))
        assert step.loss.shape == (), name
