"""An exception of any part is one sentence, exit code 2, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_same
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import DataError, Fault, PluginError, RecipeError
from sslkit.parts import DataFormat
from sslkit.recipe import registry, source
from sslkit.training import rehearsal, session
from sslkit.training.build import build
from sslkit.training.rehearsal import rehearse_recipe

STRANGER = Path(__file__).parent / "stranger" / "stranger.py"

ENTRY_POINTS = """\
[sslkit.heads]
raises = stranger:Raises
exits = stranger:Exits
wide = stranger:Wide
unmade = stranger:Unmade
forgetful = stranger:Forgetful
stubborn = stranger:Stubborn
[sslkit.losses]
nan = stranger:Nan
vector = stranger:Vector
detached = stranger:Detached
late = stranger:Late
[sslkit.methods]
misshaped = stranger:Misshaped
bare = stranger:Bare
clusters = stranger:Clusters
hasty = stranger:Hasty
[sslkit.transforms]
narrow = stranger:Narrow
cropped = stranger:Cropped
[sslkit.datasets]
short_labels = stranger:ShortLabels
text_labels = stranger:TextLabels
"""

NPID = """\
name: small
method:    {{use: npid}}
data:      {{use: image_folder, root: '{root}'}}
transform: {{use: augment, size: 32}}
encoder:   {{use: timm, model: test_resnet}}
heads:
  image:   {{use: linear, out_dim: 16}}
sampler:   {{use: memory_bank, negatives: 12}}
loss:      {{use: info_nce}}
optimizer: {{use: sgd, lr: 0.03}}
train:     {{epochs: 2, batch_size: 8, precision: fp32, device: cpu, workers: 0}}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the distribution `stranger` installed into it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "stranger.py").write_text(STRANGER.read_text("utf-8"))
    information = folder / "stranger-1.0.dist-info"
    information.mkdir()
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture
def small(images: Path, tmp_path: Path) -> Path:
    """A recipe that trains."""
    path = tmp_path / "small.yaml"
    path.write_text(NPID.format(root=images))
    return path


@pytest.fixture
def strangers(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The distribution is installed in this process, which works in an empty folder."""
    caches = (registry.discover, registry._signature, source.find)
    for cached in caches:
        cached.cache_clear()
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    yield
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()
    sys.modules.pop("stranger", None)


def sslkit(command: str, path: Path, *settings: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command in this process."""
    words = [word for setting in settings for word in ("--set", setting)]
    result = CliRunner().invoke(app, [command, str(path), *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def start(site: Path, folder: Path, *words: object) -> tuple[int, str]:
    """Exit code and stderr of the real command in a process of its own, run in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "sslkit", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stderr


BROKEN = {
    "head fails": (
        ("heads.image.use=raises",),
        "head 'raises' of stranger 1.0 (heads.image) fails in forward on [8, 96] (rehearsed with a "
        "batch of 8): ValueError: no features today (stranger.py:",
    ),
    "head exits": (
        ("heads.image.use=exits",),
        "head 'exits' of stranger 1.0 (heads.image) fails in forward on [8, 96] (rehearsed with a "
        "batch of 8): SystemExit: 0 (stranger.py:",
    ),
    "head of another length": (
        ("heads.image.use=wide",),
        "cannot be multiplied (8x96 and 97x16) (heads.py:",
    ),
    "head is not made": (
        ("heads.image.use=unmade",),
        "head 'unmade' of stranger 1.0 (heads.image) fails in __init__: TypeError: ",
    ),
    "head forgets out_dim": (
        ("heads.image.use=forgetful",),
        "head 'forgetful' of stranger 1.0 (heads.image) has no attribute 'out_dim'; set it in",
    ),
    "state is no tensor": (
        ("heads.image.use=stubborn",),
        "has a tensor 'method.heads.image._extra_state' that cannot be saved (",
    ),
    "loss is nan": (
        ("loss.use=nan",),
        "loss 'nan' of stranger 1.0 returns non-finite numbers for generated images: loss, "
        "gradient_norm of method 'npid' is nan; check for divisions",
    ),
    "loss is a vector": (
        ("loss.use=vector",),
        "loss 'vector' of stranger 1.0 returns torch.float32 [8], with gradient; the loss of "
        "method 'npid' must be a float scalar: take the mean over images",
    ),
    "loss is detached": (
        ("loss.use=detached",),
        "method 'npid' with loss 'detached' of stranger 1.0 fails in backward: RuntimeError: "
        "element 0 of tensors does not require grad and does not have a grad_fn; the loss must",
    ),
    "keep has wrong rows": (
        ("method.use=misshaped",),
        "sampler 'memory_bank' fails in update on [8] and [1, 3] (rehearsed with a batch of 8): ",
    ),
    "method returns a tensor": (
        ("method.use=bare",),
        "method 'bare' of stranger 1.0 returned Tensor; it must return an Output",
    ),
    "begin_epoch fails": (
        ("method.use=hasty",),
        "method 'hasty' of stranger 1.0 fails in begin_epoch (rehearsed with a batch of 8): "
        "ZeroDivisionError: division by zero (stranger.py:",
    ),
    "view of another shape": (
        ("transform.use=cropped", "transform.size=32"),
        "transform 'cropped' of stranger 1.0 returned a view 'image' that is a Tensor of "
        "torch.uint8 [3, 31, 32]; its `shapes` promise torch.uint8 or torch.uint16 of [3, 32, 32]",
    ),
    "labels too few": (
        ("data={use: short_labels}",),
        "data set 'short_labels' of stranger 1.0 has 40 images and 10 classes, but labels of "
        "shape [39] instead of [40]",
    ),
    "labels are text": (
        ("data={use: text_labels}",),
        "data set 'text_labels' of stranger 1.0 has labels as <U3; they must be an integer",
    ),
    "batch of one with batch norm": (
        ("train.batch_size=1", "transform.size=16"),
        "encoder 'timm' fails in forward on [1, 3, 16, 16] (rehearsed with a batch of 1): "
        "ValueError: "
        "Expected more than 1 value per channel",
    ),
    "its remedy in the encoder": (
        ("train.batch_size=1", "transform.size=16"),
        "larger views, or encoder.norm=group; ",
    ),
    "its remedy in a head": (
        ("train.batch_size=1", "heads.image.batch_norm=true", "encoder.norm=group"),
        "fewer micro-batches), or heads.image.batch_norm=false; ",
    ),
    "patch larger than its cell": (
        ("transform={use: jigsaw, size: 32, grid: 2, resize: 32, patch: 20}",),
        "patch",
    ),
}


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(("settings", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_broken_part_is_one_sentence(strangers, small, tmp_path, command, settings, sentence):
    before = sorted(path.name for path in tmp_path.iterdir())
    code, _, err = sslkit(command, small, *settings)
    assert code == 2
    assert sentence in err and len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_transform_that_fails_in_a_worker(strangers, small, tmp_path):
    """Real images, unlike those of the rehearsal, break it."""
    settings = ("transform={use: narrow, size: 32}", "train.workers=2")
    code, _, err = sslkit("train", small, *settings)
    assert code == 2 and len(err.splitlines()) == 1
    assert err.startswith("transform 'narrow' of stranger 1.0 fails in __call__ on")
    assert " px (image " in err and "g): IndexError: this picture is too small (str" in err
    assert not (tmp_path / "runs").exists()


def test_two_ranks_tell_it_once_and_are_not_started_again(site, small, tmp_path):
    settings = ("--set", "transform.use=narrow", "--set", "train.workers=0")
    code, err = start(site, tmp_path, "train", small, "--devices", 2, *settings)
    assert code == 2 and len(err.splitlines()) == 1
    assert " of stranger 1.0 " in err and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_debugging_shows_the_traceback(strangers, small, monkeypatch):
    monkeypatch.setenv("SSLKIT_DEBUG", "1")
    code, _, err = sslkit("train", small, "heads.image.use=raises")
    *trace, sentence = err.splitlines()
    assert code == 2 and sentence.startswith("head 'raises' of stranger 1.0")
    assert trace[0].startswith("Traceback") and "    raise ValueError(" in "".join(trace)


def test_a_failure_before_the_first_step_leaves_latest(strangers, small, tmp_path):
    assert sslkit("train", small, "train.epochs=1")[0] == 0
    latest = tmp_path / "runs" / "small" / "latest"
    before = (latest.resolve(), sorted(latest.parent.iterdir()))
    assert sslkit("train", small, "transform={use: narrow, size: 32}")[0] == 2
    assert (latest.resolve(), sorted(latest.parent.iterdir())) == before


def test_a_failure_after_steps_keeps_the_checkpoints(strangers, small, tmp_path):
    code, _, err = sslkit("train", small, "loss={use: late}", "train.save_minutes=0")
    assert code == 2
    assert err.startswith("loss 'late' of stranger 1.0 fails in forward on [1, 8, 16] and [8, 16]")
    folder = (tmp_path / "runs" / "small" / "latest").resolve()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "checkpoints" / "step-00000002").is_dir()


def test_an_error_of_the_toolkit_keeps_its_traceback(strangers, small, monkeypatch):
    def broken(*given, **options):
        raise KeyError("a bug")

    monkeypatch.setattr("sslkit.training.trainer._update", broken)
    result = CliRunner().invoke(app, ["train", str(small)])
    assert type(result.exception) is KeyError


def test_a_resumed_run_is_not_rehearsed(strangers, small, tmp_path, monkeypatch):
    assert sslkit("train", small, "train.epochs=1")[0] == 0

    def rehearsed(*given, **options):
        raise AssertionError

    monkeypatch.setattr(session, "rehearse_recipe", rehearsed)
    run = str(tmp_path / "runs" / "small" / "latest")
    assert CliRunner().invoke(app, ["train", "--resume", run]).exit_code == 0


def test_a_pass_over_few_images_proves_nothing(strangers, small):
    """`clusters` needs 16 images before an epoch: the 24 of the data set, not the 8 rehearsed."""
    for command in ("plan", "train"):
        code, _, err = sslkit(command, small, "method.use=clusters")
        assert (code, err) == (0, "")


@pytest.mark.parametrize(("batch", "images"), [(1, 1), (2, 2), (8, 2)])
def test_at_most_two_images_are_rehearsed_on_a_cpu(strangers, small, batch, images):
    settings = [f"train.batch_size={batch}", "transform.size=64"]
    made = recipe.read(small, overrides=settings)
    assert rehearse_recipe(made, DataFormat(24)).images == images


def test_a_rehearsal_leaves_the_generator_and_the_next_run(strangers, small):
    made = recipe.read(small)
    before = build(made).method.state_dict()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    rehearse_recipe(made, DataFormat(24))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(before, build(made).method.state_dict())


def test_a_loss_that_needs_more_images_gets_them(strangers, small, monkeypatch):
    """The first attempt on a CPU has two images, the second up to 32."""
    sizes = []
    rehearse = rehearsal.rehearse

    def counted(run, repeats, *, ranks):
        sizes.append(run.loader.batch_size)
        if run.loader.batch_size < 8:
            raise PluginError("too few")
        return rehearse(run, repeats, ranks=ranks)

    monkeypatch.setattr(rehearsal, "rehearse", counted)
    assert rehearse_recipe(recipe.read(small), DataFormat(24)).images == 8
    assert sizes == [2, 8]


def test_weights_without_gradient_are_refused_for_several_ranks(strangers, small):
    made = recipe.read(small)
    run = rehearse_recipe(made, DataFormat(24)).run
    run.method.unused = torch.nn.Linear(1, 1)
    rehearsal._check_gradients(run, 1)
    with pytest.raises(
        PluginError, match=r"leaves 2 weights without gradient, such as unused.weight"
    ):
        rehearsal._check_gradients(run, 2)


def test_images_that_do_not_fill_a_batch_are_refused_alike(strangers, small):
    sentence = "24 images do not fill a batch of 30; use smaller batches: --set train.batch_size="
    for command in ("plan", "train"):
        code, _, err = sslkit(command, small, "train.batch_size=30")
        assert code == 2 and err.startswith(sentence)


def test_faults_survive_the_way_out_of_a_worker():
    import pickle

    fault = Fault("sampler", "too small")
    assert pickle.loads(pickle.dumps(RecipeError(fault))).faults == (fault,)
    assert str(pickle.loads(pickle.dumps(DataError("gone")))) == "gone"
