"""What methods may be wired like: `check` refuses what does not fit, and the rest does what it
says.
"""

import json
import re
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from strangers import install, present
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.evaluation import build as evaluation_build
from sslkit.evaluation import candidates
from sslkit.training.build import build
from sslkit.training.trainer import train

WIRINGS = Path(__file__).parent / "wirings"


@pytest.fixture(scope="module", autouse=True)
def strangers(tmp_path_factory):
    """The wirings are installed."""
    with present(install(WIRINGS, tmp_path_factory.mktemp("site")), "wirings"):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of three classes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(12):
        place = folder / "abc"[number % 3]
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    return folder


def made(name, photos, *overrides):
    path = WIRINGS / "recipes" / f"{name}.yaml"
    return build(recipe.read(path, overrides=overrides, data=str(photos)))


def sslkit(*words):
    """Exit code and all that was printed, in lines as wide as they are."""
    done = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "1000"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.output


def aligned(output):
    """Without the spaces that put faults below each other."""
    return re.sub("  +", "  ", output)


# ---------------------------------------------------------------------------------- what is refused

REFUSED = {
    "a head is missing": (
        "joined",
        ("  projector: {use: mlp, hidden_dim: 16, out_dim: 16}", "  {}"),
        ":5  heads  method 'joined' needs a head named 'projector'",
    ),
    "a head too many": (
        "joined",
        ("loss:", "  image: {use: linear}\nloss:"),
        ":7  heads.image  method 'joined' has no use for a head named 'image'; it needs: projector",
    ),
    "a view that the transform does not make": (
        "joined",
        ("use: crops", "use: augment"),
        ":3  transform  method 'joined' reads the view 'global', which transform 'augment' does "
        "not make; transforms that do: crops, multi_crop",
    ),
    "a view that only a stranger makes": (
        "joined",
        ("{use: joined}", "{use: upwards}"),
        "transforms that do: upside_down",
    ),
    "a transform that names no views": (
        "joined",
        ("{use: crops, size: 32}", "{use: wordless}"),
        ":3  transform.use  the class of 'wordless' does not name its views; give it a literal "
        "attribute `views`, a tuple of names",
    ),
    "a sampler that remembers no image": (
        "two_memories",
        ("{use: memory_bank, negatives: 6}", "{use: forgetful}"),
        ":8  sampler.use  method 'two_memories' reads the stored vector of each image, and "
        "'forgetful' keeps none; take memory_bank",
    ),
    "no sampler": (
        "two_memories",
        ("sampler:   {use: memory_bank, negatives: 6}\n", ""),
        "sampler  method 'two_memories' stores the output of head 'first' and needs a sampler; "
        "there are: forgetful, memory_bank",
    ),
    "a sampler that nobody asks": (
        "joined",
        ("loss:", "sampler: {use: memory_bank}\nloss:"),
        ":7  sampler  method 'joined' uses no sampler, this one would be ignored; remove the "
        "section",
    ),
    "a loss that needs negatives": (
        "labels",
        ("use: cross_entropy", "use: info_nce"),
        ":7  loss.use  loss 'info_nce' needs negatives, and method 'labels' has none",
    ),
    "a loss that takes no negatives": (
        "joined",
        ("{use: info_nce, temperature: 0.5}", "{use: distance}"),
        ":7  loss.use  method 'joined' compares with negatives, and loss 'distance' takes none",
    ),
    "lengths that cannot be compared": (
        "companion",
        ("patch_dim: 8, out_dim: 16", "patch_dim: 8, out_dim: 12"),
        ":5  heads  these heads are compared and must have the same out_dim: image 16, pretext 12",
    ),
    "auto without a target": (
        "companion",
        ("{use: linear, out_dim: 16}", "{use: linear, out_dim: auto}"),
        ":6  heads.image.out_dim  'auto' is the number of classes of a target, and method "
        "'companion' predicts none with head 'image'; give a number",
    ),
    "micro-batches of a loss across the batch": (
        "joined",
        ("batch_size: 4", "batch_size: 4, accumulate: 2"),
        ":11  train.accumulate  the loss of method 'joined' looks across the batch, so "
        "micro-batches would change it; set it to 1",
    ),
    "an encoder without tokens": (
        "two_memories",
        ("{use: two_memories}", "{use: tokens}"),
        ":4  encoder.use  method 'tokens' needs an encoder with the role 'tokens', which 'halves' "
        "does not have; use: timm",
    ),
    "heads that read each other": (
        "joined",
        ("{use: joined}", "{use: circle}"),
        ":2  method.use  the heads of 'circle' read each other in a circle: a, b",
    ),
    "a stored head that nobody reads": (
        "joined",
        ("{use: joined}", "{use: misnamed}"),
        ":2  method.use  the class of 'misnamed' names head 'projetor' in `stores`, but not in "
        "`reads`",
    ),
    "a name of a view and of a head": (
        "joined",
        ("{use: joined}", "{use: ambiguous}"),
        ":2  method.use  head 'order' of 'ambiguous' reads 'patches', the name of a view and of a "
        "head; give that head another name in `reads`",
    ),
    "a runtime argument of another kind": (
        "joined",
        ("{use: info_nce, temperature: 0.5}", "{use: curious}"),
        ":7  loss.use  curious requires the runtime argument 'num_images', which losses do not "
        "get; allowed: none",
    ),
}


@pytest.mark.parametrize(("name", "change", "sentence"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("command", ["check", "plan", "train"])
def test_what_does_not_fit_is_refused_before_anything(
    name, change, sentence, command, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    text = (WIRINGS / "recipes" / f"{name}.yaml").read_text()
    assert text.count(change[0]) == 1
    Path("recipe.yaml").write_text(text.replace(*change))
    code, output = sslkit(command, "recipe.yaml", "--data", photos)
    assert code == 2 and sentence in aligned(output), output
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"], "nothing is written"


@pytest.mark.parametrize("path", sorted((WIRINGS / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_fits_can_be_planned(path, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = sslkit("plan", path, "--data", photos)
    assert code == 0, output
    assert not list(tmp_path.iterdir()), "nothing is written"


MADE = {
    "a segment that the encoder lacks": (
        "two_memories",
        "encoder={use: channel_groups, model: test_resnet}",
        "encoder  method 'two_memories' reads the segment 'left' of the features, which "
        "'channel_groups' does not have; it has: l, ab",
    ),
    "a number of classes that is wrong": (
        "labels",
        "heads.label.out_dim=7",
        "heads.label.out_dim  is 7, but target 'label' has 3 classes; set it to auto",
    ),
    "a target that the transform does not draw": (
        "companion",
        "transform.permutations=all",
        "transform  'jigsaw' provides no target 'order', which method 'companion' predicts",
    ),
}


@pytest.mark.parametrize(("name", "setting", "sentence"), MADE.values(), ids=MADE.keys())
@pytest.mark.parametrize("command", ["plan", "train"])
def test_parts_that_do_not_fit_are_refused_when_made(
    name, setting, sentence, command, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = WIRINGS / "recipes" / f"{name}.yaml"
    code, output = sslkit(command, path, "--data", photos, "--set", setting)
    assert code == 2 and sentence in output, output
    assert not list(tmp_path.iterdir()), "nothing is written"


# ------------------------------------------------------------------------------------------- labels


def unlabelled(photos, folder):
    """The same images without subfolders."""
    folder.mkdir()
    for path in photos.glob("*/*.png"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("command", ["plan", "train"])
def test_labels_that_are_missing_are_missed_in_one_sentence(command, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = unlabelled(photos, tmp_path / "flat")
    path = WIRINGS / "recipes" / "labels.yaml"
    code, output = sslkit(command, path, "--data", folder)
    assert code == 2
    serves, _, refused = output.strip().partition("\n")
    assert serves.endswith("flat (12 images, no classes)")
    assert refused == (
        "data  method 'labels' predicts labels, but the images of 'image_folder' have none; "
        "name a folder with one subfolder per class: --data DIR"
    )
    assert not (tmp_path / "runs").exists()


def test_only_a_method_that_predicts_labels_gets_them(photos):
    found = {}
    for name in ("labels", "clusters"):
        run = made(name, photos)
        batch = next(run.loader.batches(0, 1))
        found[name] = batch.targets
        labels = torch.from_numpy(run.source.labels)[batch.index]
    assert found["clusters"] == {}
    assert found["labels"]["label"].dtype == torch.int64
    assert torch.equal(found["labels"]["label"], labels)


def test_a_run_on_labels_lives_on_without_its_labels(photos, tmp_path, monkeypatch, loaded_here):
    """The number of classes is kept: export needs no images, an evaluation its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    path = WIRINGS / "recipes" / "labels.yaml"
    code, output = sslkit("train", path, "--data", "photos")
    assert code == 0, output
    run = Path("runs/labels/latest")
    checkpoint = next((run / "checkpoints").glob("step-*"))
    assert json.loads((checkpoint / "state.json").read_text())["classes"] == 3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all(0 <= row["accuracy"] <= 1 for row in rows)
    shutil.rmtree("photos")
    code, output = sslkit("export", run, "--to", "timm")
    assert code == 0, output
    code, output = sslkit("eval", "knn", run, "--data", photos)
    assert code == 0, output


# ----------------------------------------------------------------------------- heads and memories


def test_a_classifier_stands_beside_two_projections(photos):
    """Projections share a length; the classifier has that of its target, whatever it is."""
    heads = made("companion", photos).method.heads
    lengths = {name: head.out_dim for name, head in heads.items()}
    assert lengths == {"image": 16, "pretext": 16, "order": 5}


def test_one_sampler_of_the_recipe_is_made_for_each_stored_head(photos):
    """With rows of its own, and the first as it would be alone."""
    method = made("two_memories", photos).method
    first, second = method.samplers.values()
    assert list(method.samplers) == ["first", "second"]
    assert first.bank.shape == second.bank.shape == (12, 16)
    assert not torch.isclose(first.bank, second.bank).any(1).all()
    again = made("two_memories", photos).method
    assert torch.equal(second.bank, again.samplers["second"].bank)
    other = made("two_memories", photos, "train.seed=1").method
    assert not torch.equal(second.bank, other.samplers["second"].bank)


def test_each_memory_keeps_the_outputs_of_its_head(photos):
    run = made("two_memories", photos)
    before = {name: sampler.bank.clone() for name, sampler in run.method.samplers.items()}
    step = next(train(run))
    for name, sampler in run.method.samplers.items():
        moved = (sampler.bank != before[name]).any(1).nonzero().flatten()
        assert moved.tolist() == sorted(step.index.tolist())
    one, two = (sampler.bank[step.index] for sampler in run.method.samplers.values())
    assert not torch.isclose(one, two).all(1).any()


def test_a_head_reads_a_segment_of_the_features(photos):
    """`left` are the first six numbers, `right` the last eight."""
    method = made("two_memories", photos).method
    assert method.heads["first"].project.in_features == 6
    assert method.heads["second"].project.in_features == 8
    features = torch.arange(28).view(2, 14)
    assert method.encoder.segment(features, "left").tolist() == features[:, :6].tolist()
    assert method.encoder.segment(features, "right").tolist() == features[:, 6:].tolist()


# --------------------------------------------------------------------------------- turns, and ranks


def test_a_step_trains_what_its_loss_reaches(photos):
    """Momentum and decay leave a weight without gradient alone."""
    run = made("turns", photos)
    parts_of = {"encoder": run.method.encoder, **run.method.heads}

    def numbers():
        return {
            name: torch.cat([value.detach().flatten() for value in module.parameters()])
            for name, module in parts_of.items()
        }

    before = numbers()
    for step in islice(train(run), 4):
        after = numbers()
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved == ({"encoder", "even"} if step.number % 2 else {"odd"})
        before = after


def test_a_method_that_leaves_weights_out_has_to_say_so(photos, ranks, capfd):
    run = made("turns", photos, "method.use=claims")
    assert not next(train(run)).skipped, "one process does not mind"

    def work(folder):
        list(train(made("turns", photos, "method.use=claims")))

    assert sorted(ranks(work)) == [1, 2]
    assert (
        "method 'claims' of wirings 1.0 leaves 2 weights without gradient, such as "
        "heads.odd.project.weight; to train it on several ranks, set the class attribute "
        "uses_every_parameter = False"
    ) in capfd.readouterr().err


# --- the exported encoder


def test_a_teacher_is_what_is_written_evaluated_and_exported(
    photos, tmp_path, monkeypatch, loaded_here
):
    monkeypatch.chdir(tmp_path)
    path = WIRINGS / "recipes" / "teacher.yaml"
    code, output = sslkit("train", path, "--data", photos)
    assert code == 0, output
    run = Path("runs/teacher/latest")
    weights = load_file(run / "encoder.safetensors")
    kept = load_file(next((run / "checkpoints").glob("*/method.safetensors")))
    prefix = "method.teacher.encoder.model."
    teacher = {key.removeprefix(prefix): value for key, value in kept.items() if prefix in key}
    assert weights.keys() == teacher.keys()
    assert all(torch.equal(value, teacher[key]) for key, value in weights.items())
    student = {key: kept[f"method.encoder.model.{key}"] for key in weights}
    assert any(not torch.equal(value, student[key]) for key, value in weights.items())

    code, output = sslkit("export", run, "--to", "timm")
    assert code == 0, output
    (file,) = (run / "export" / "timm").glob("*.safetensors")
    exported = load_file(file)
    assert all(torch.equal(exported[key], value) for key, value in weights.items())


def test_evaluations_see_the_teacher(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = WIRINGS / "recipes" / "teacher.yaml"
    assert sslkit("train", path, "--data", photos, "--set", "train.epochs=1")[0] == 0
    seen = {}

    class Noted(candidates.Network):
        def __init__(self, name, encoder, *given, **options):
            seen[name] = {key: value.clone() for key, value in encoder.weights().items()}
            super().__init__(name, encoder, *given, **options)

    monkeypatch.setattr(evaluation_build, "Network", Noted)
    run = Path("runs/teacher/latest")
    code, output = sslkit("eval", "knn", run, "--data", photos)
    assert code == 0, output
    weights = load_file(run / "encoder.safetensors")
    assert seen["trained"].keys() == weights.keys()
    assert all(torch.equal(seen["trained"][key], value) for key, value in weights.items())
    first = made("teacher", photos).method.exported.weights()
    assert all(torch.equal(seen["untrained"][key], value) for key, value in first.items())


def test_statistics_are_what_a_forward_pass_may_change(photos):
    """Batch norms of the network and of copies; neither memories nor a method's own buffers."""
    teacher = made("teacher", photos)
    norms = [module for module in teacher.method.modules() if hasattr(module, "running_mean")]
    kept = set(map(id, teacher.statistics()))
    assert norms and all(id(norm.running_mean) in kept for norm in norms)
    clusters, memories = made("clusters", photos), made("two_memories", photos)
    assert id(clusters.method.assigned) not in set(map(id, clusters.statistics()))
    assert memories.statistics() == []


# --- between two epochs


def test_clusters_and_head_are_reset_before_each_epoch(photos):
    run = made("clusters", photos)
    method, states = run.method, []
    begin = method.begin_epoch

    def noted(epoch):
        begin(epoch)
        head = method.heads["cluster"].project.weight
        momenta = {id(value) for value in run.optimizer.state}
        assert id(head) not in momenta, "its momentum is forgotten"
        states.append((method.assigned.clone(), head.detach().clone(), len(momenta)))

    method.begin_epoch = noted
    list(train(run))
    (assigned, head, momenta), (later, other, others) = states
    assert set(later.tolist()) <= {0, 1, 2} and not torch.equal(assigned, later)
    assert not torch.equal(head, other) and (head.abs().max() - other.abs().max()).abs() < 0.1
    assert momenta == 0 < others, "the encoder keeps its momentum"
