"""What a recipe costs, estimated without its data and without training."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import RecipeError
from sslkit.training import plan, rehearsal

IMAGENET = Path(__file__).parents[1] / "recipes" / "imagenet" / "pirl_jigsaw.yaml"
QUICK = [
    "encoder.model=test_resnet",
    "transform.size=64",
    "transform.resize=66",
    "transform.patch=16",
    "sampler.negatives=64",
]


def settings(*more: str) -> list[str]:
    return [
        word
        for setting in (*QUICK, "train.device=cpu", "train.precision=fp32", *more)
        for word in ("--set", setting)
    ]


def sslkit(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.stdout.split()), result.stderr


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal, "LARGEST_BANK", 2048)
    yield
    assert not list(tmp_path.glob("*")) or (tmp_path / "given").exists(), "a plan writes nothing"


def test_imagenet_is_planned_without_its_images():
    code, out, err = sslkit("plan", IMAGENET, *settings())
    assert code == 0, err
    assert "1,281,167 (as published" in out
    assert "bank [1281167, 128]: 655,957,504 bytes" in out, "1,281,167 · 128 · 4"
    assert "1,251 per epoch × 800 epochs = 1,000,800" in out
    assert "1024 in total, 1024 on each of 1 cpu device" in out
    assert "0.12 at step 0" in out and "0.00012 at step 1,000,799" in out
    assert "per 256 images 0.03 " in out
    assert "view patches uint8 [1024, 9, 3, 16, 16]" in out
    assert re.search(r"an epoch [\d.,]+ (seconds|minutes|hours|days)", out)
    assert re.search(r"rehearsed: 8 images [\d.,]+( to [\d.,]+)? images/s on cpu, float32", out)


@pytest.mark.parametrize(("epochs", "words"), [(1, "1 epoch = "), (2, "2 epochs = ")])
def test_one_is_counted_as_one(epochs, words):
    assert words in sslkit("plan", IMAGENET, *settings(f"train.epochs={epochs}"))[1]


def test_the_loaders_memory_is_told():
    """1024 images of 64² px and 9 patches of 16², of 3 bytes a pixel: 18.75 MiB a batch."""
    code, out, err = sslkit("plan", IMAGENET, *settings("train.workers=4"))
    assert code == 0, err
    assert "75.0 MiB: 4 workers, each with 1 prefetched batch of 18.8 MiB" in out or (
        "300.0 MiB: 4 workers, each with 4 prefetched batches of 18.8 MiB" in out
    )
    assert (
        "none, without loader workers" in sslkit("plan", IMAGENET, *settings("train.workers=0"))[1]
    )


def test_a_range_is_one_value_where_both_read_alike():
    assert plan.between("2 hours", "2 hours") == "2 hours"
    assert plan.between("2 hours", "3 hours") == "2 hours to 3 hours"


def test_devices_share_the_batch():
    code, out, err = sslkit("plan", IMAGENET, *settings(), "--devices", 32)
    assert code == 0, err
    assert "1024 in total, 32 on each of 32 cpu devices" in out
    assert "view image uint8 [32, 3, 64, 64]" in out
    assert "655,957,504 bytes (625.6 MiB) on every device" in out


def test_devices_share_a_sharded_bank():
    code, out, err = sslkit(
        "plan",
        IMAGENET,
        *settings("sampler.shards=auto", "sampler.dtype=bfloat16"),
        "--devices",
        32,
    )
    assert code == 0, err
    assert "10,249,336 bytes (9.8 MiB) on every device" in out, "1,281,167 · 128 · 2 / 32"


def test_the_number_of_images_may_be_given():
    code, out, err = sslkit("plan", IMAGENET, *settings("train.epochs=10"), "--images", 5000)
    assert code == 0, err
    assert "5,000 (given)" in out and "4 per epoch × 10 epochs = 40" in out
    assert "bank [5000, 128]: 2,560,000 bytes" in out


def test_images_at_hand_are_counted():
    code, out, err = sslkit(
        "plan", IMAGENET, *settings("data.use=shapes", "data.images=130", "train.batch_size=64")
    )
    assert code == 0, err
    assert "130 (counted)" in out and "2 per epoch" in out


def test_warm_up_shows_in_the_rates():
    code, out, err = sslkit(
        "plan",
        IMAGENET,
        *settings("schedule.warmup_epochs=10", "schedule.warmup_lr=0.001", "schedule.per=step"),
    )
    assert code == 0, err
    assert "0.001 at step 0, 0.12 at step 12,510" in out


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--devices", "3"], "cannot be shared by 3 processes; take a multiple of 3"),
        (["--images", "1000"], "1000 images do not fill a batch of 1024; use smaller batches"),
        (["--set", "train.device=mps"], "this machine has no 'mps' device"),
        (
            ["--set", "data.use=image_folder", "--set", "data.root=gone"],
            "the folder of images gone does not exist",
        ),
        (["--set", "data.use=image_folder", "--set", "data.root=gone"], "--images N"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(words, sentence):
    code, _, err = sslkit("plan", IMAGENET, *settings(), *words)
    assert code == 2
    assert sentence in err and "Traceback" not in err


def test_a_method_without_a_sampler_is_planned():
    path = IMAGENET.parents[1] / "rotnet.yaml"
    words = [
        "encoder.model=test_resnet",
        "transform.size=32",
        "train.device=cpu",
        "train.batch_size=16",
        "data.images=200",
    ]
    code, out, err = sslkit(
        "plan", path, *(word for setting in words for word in ("--set", setting))
    )
    assert code == 0, err
    assert "view rotated uint8 [16, 3, 32, 32]" in out
    assert "sampler" not in out


@pytest.mark.parametrize("images", [2_000, 1_000_000])
def test_memory_counts_a_bank_of_the_method(images):
    """DeepCluster v2, per image: two crops of 32 float32 numbers, three assignments of 8 bytes."""
    path = IMAGENET.parents[1] / "deepcluster_v2.yaml"
    words = ["--set", "encoder.model=test_resnet", "--set", "train.device=cpu", "--images", images]
    code, out, err = sslkit("plan", path, *words)
    assert code == 0, err
    shown = float(re.search(r"buffers, such as memory banks ([\d.,]+) MiB", out)[1])
    assert shown == pytest.approx(images * 280 / 2**20, abs=0.2)


def test_a_momentum_encoder_has_no_gradients():
    """AdamW needs 16 bytes a weight, the average 4."""
    path = IMAGENET.parents[1] / "moco.yaml"
    words = ["--set", "encoder.model=test_resnet", "--set", "train.device=cpu"]
    code, out, err = sslkit("plan", path, *words)
    assert code == 0, err
    counts = re.findall(r"(?:timm|\(mlp\)) ([\d,]+) parameters", out)
    weights = sum(int(count.replace(",", "")) for count in counts)
    shown = float(re.search(r"weights, gradients and optimizer ([\d.,]+) MiB", out)[1])
    assert shown == pytest.approx((16 + 4) * weights / 2**20, abs=0.1)


def test_memory_counts_what_the_optimizer_keeps():
    """SGD with momentum keeps one number a weight, Adam two: weights and gradients are two more."""

    def held(*more: str) -> float:
        code, out, err = sslkit("plan", IMAGENET, *settings(*more), "--images", 2048)
        assert code == 0, err
        return float(re.search(r"weights, gradients and optimizer ([\d.,]+) MiB", out)[1])

    sgd, adam = held(), held("optimizer.use=adamw", "optimizer.momentum=null")
    assert adam / sgd == pytest.approx(4 / 3, abs=0.06)


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.5, "0.5 seconds"),
        (119, "119.0 seconds"),
        (120, "2.0 minutes"),
        (8000, "2.2 hours"),
        (864000, "10.0 days"),
    ],
)
def test_durations_read_well(seconds, words):
    assert plan.duration(seconds) == words


def test_every_shipped_recipe_can_be_counted():
    for path in IMAGENET.parents[1].rglob("*.yaml"):
        made = recipe.read(path)
        if made.data.use == "image_folder":
            with pytest.raises(RecipeError, match="--images N"):
                plan.find_data(made)
        else:
            data, _, how = plan.find_data(made)
            assert data.images > 0 and how
