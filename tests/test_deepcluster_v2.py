"""DeepCluster v2: bank, clusterings in turn, fixed centres, caps."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sslkit
from PIL import Image
from test_swav import LOCAL, Means, at, unit_projections
from torch.nn import functional as F

from sslkit import recipe
from sslkit.interfaces import Batch, Draws, Epoch, Parts, Progress
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.clusters import k_means
from sslkit_plugins.heads import Linear
from sslkit_plugins.losses import SoftCrossEntropy
from sslkit_plugins.methods.deepcluster_v2 import DeepClusterV2

RECIPE = Path(__file__).parent.parent / "recipes" / "deepcluster_v2.yaml"
TINY = ["transform.size=32", "encoder.model=test_resnet", "heads.projector.hidden_dim=16"]
TINY += ["heads.projector.out_dim=8", "method.clusters=[5,4,3]", "train.batch_size=8"]
TINY += ["train.workers=0", "train.device=cpu", "train.precision=fp32", "train.epochs=2"]
IMAGES = 20


class Passes(Epoch):
    """An epoch of given batches."""

    micro_batches = 1

    def __init__(self, batches, step=0, seed=0):
        self.batches, self.progress = batches, Progress(step, 100, 0, 10, Draws(seed))
        self.passes = 0

    def views(self):
        self.passes += 1
        yield from self.batches

    def plain(self):
        raise AssertionError("not needed")

    def next_step(self):
        raise AssertionError("not needed")

    def forget(self, *modules):
        raise AssertionError("nothing begins anew")


def method(clusters=(5, 4, 3), images=IMAGES, shapes=LOCAL, **options):
    """DeepCluster v2 of three colours, in float64."""
    torch.manual_seed(0)
    heads = {"projector": Linear(5, out_dim=6)}
    parts = Parts(Means(), heads, {}, SoftCrossEntropy(), images, shapes)
    return DeepClusterV2(parts, clusters=clusters, **options).double()


def batches(size=5, images=IMAGES):
    generator = torch.Generator().manual_seed(3)
    found = []
    for first in range(0, images, size):
        views = {}
        for name, shape in LOCAL.items():
            views[name] = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
        found.append(Batch(views, {}, torch.arange(first, first + size)))
    return found


@torch.no_grad()
def begun(clusters=(5, 4, 3), **options):
    """A method before its first step."""
    made = method(clusters, **options)
    made.begin_epoch(Passes(batches()))
    return made


def centres(found):
    return [found.get_buffer(f"centres_{number}") for number in range(len(found.clusters))]


def test_augmented_views_fill_the_bank_before_the_first_step():
    found = begun()
    for batch in batches():
        expected = unit_projections(found, batch.views["global"]).detach().float()
        stored = found.bank[:, batch.index].transpose(0, 1).float()
        torch.testing.assert_close(stored, expected)


def test_later_epochs_do_not_pass_over_the_images():
    found, later = begun(), Passes(batches(), step=10)
    before = found.bank.clone()
    with torch.no_grad():
        found.begin_epoch(later)
    assert later.passes == 0 and torch.equal(found.bank, before)


def test_clusterings_take_the_crops_in_turn():
    """Clusterings 0 and 2 use crop 0, clustering 1 uses crop 1; each starts elsewhere."""
    found, draws = begun(clusters=(4, 4, 4)), Draws(0)
    for number, crop in enumerate((0, 1, 0)):
        expected = k_means(found.bank[crop], 4, 10, draws, spherical=True)
        assert torch.equal(found.assigned[number], expected.assigned)
        torch.testing.assert_close(centres(found)[number], expected.centres)
    assert not torch.equal(centres(found)[0], centres(found)[2])


def test_every_image_has_the_nearest_centre():
    found = begun()
    for number, place in enumerate(centres(found)):
        torch.testing.assert_close(place.norm(dim=1), torch.ones(len(place), dtype=torch.float64))
        cosines = found.bank[number % 2] @ place.T
        assert torch.equal(found.assigned[number], cosines.argmax(1))
        assert (torch.bincount(found.assigned[number], minlength=len(place)) > 0).all()


def test_the_loss_is_cross_entropy_of_all_crops_and_clusterings():
    found, batch = begun(), batches()[1]
    rows = torch.cat([unit_projections(found, view) for view in batch.views.values()], 1)
    terms = []
    for number, place in enumerate(centres(found)):
        target = found.assigned[number, batch.index]
        for crop in range(5):
            terms.append(F.cross_entropy(rows[:, crop] @ place.T / 0.1, target))
    loss = found(batch, at()).loss
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert loss.dtype == torch.float64


def test_targets_follow_the_image_not_its_place_in_the_batch():
    found, batch = begun(), batches()[1]
    order = torch.tensor([3, 0, 4, 1, 2])
    views = {name: view[order] for name, view in batch.views.items()}
    shuffled = Batch(views, {}, batch.index[order])
    torch.testing.assert_close(found(shuffled, at()).loss, found(batch, at()).loss)
    wrong = Batch(views, {}, batch.index)
    assert (found(wrong, at()).loss - found(batch, at()).loss).abs() > 1e-3


def test_the_names_of_clusters_do_not_matter():
    found, batch, order = begun(), batches()[1], torch.tensor([2, 0, 3, 1])
    before = found(batch, at()).loss
    centres(found)[1].copy_(centres(found)[1][order].clone())
    found.assigned[1] = order.argsort()[found.assigned[1]]
    torch.testing.assert_close(found(batch, at()).loss, before)


def test_centres_are_fixed_during_an_epoch():
    run = build(recipe.read(RECIPE, overrides=TINY))
    trained = {id(value) for value in run.weights}
    assert not trained & {id(value) for value in centres(run.method)}
    list(islice(train(run), 1))
    before = [value.clone() for value in (*centres(run.method), run.method.assigned)]
    list(islice(train(run), 2))
    after = [*centres(run.method), run.method.assigned]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_step_writes_the_projections_of_its_images():
    found, batch = begun(), batches()[2]
    output = found(Batch(batch.views, {}, torch.tensor([19, 3, 7, 0, 11])), at())
    before = found.bank.clone()
    with torch.no_grad():
        found.after_step(torch.tensor([19, 3, 7, 0, 11]), output.keep, at())
    expected = unit_projections(found, batch.views["global"])
    torch.testing.assert_close(found.bank[:, [19, 3, 7, 0, 11]].transpose(0, 1), expected)
    others = [image for image in range(IMAGES) if image not in (19, 3, 7, 0, 11)]
    assert torch.equal(found.bank[:, others], before[:, others])


def test_images_that_were_not_seen_are_not_clustered():
    """As in a rehearsal, whose pass has a few images: the clusters are fewer as well."""
    found = method()
    before = found.assigned.clone()
    with torch.no_grad():
        found.begin_epoch(Passes(batches()[:1]))
    assert torch.equal(found.assigned[:, 5:], before[:, 5:])
    assert sorted(found.assigned[0, :5].tolist()) == [0, 1, 2, 3, 4]


def test_it_works_before_the_first_clustering():
    """`plan` has no images to cluster: clusters are used evenly, centres are random."""
    found = method()
    assert torch.bincount(found.assigned[0]).tolist() == [4, 4, 4, 4, 4]
    assert found(batches()[0], at()).loss.isfinite()


def test_equal_projections_have_the_loss_of_chance():
    """Mean of log 5, log 4 and log 3, if all centres are equal as well."""
    found = begun()
    for place in centres(found):
        place.copy_(place[:1].clone().expand_as(place))
    expected = (math.log(5) + math.log(4) + math.log(3)) / 3
    assert found(batches()[0], at()).loss.item() == pytest.approx(expected, rel=1e-9)
    assert found.at_chance(5) == {"accuracy": pytest.approx((1 / 5 + 1 / 4 + 1 / 3) / 3)}
    assert found.at_start(5) is None, "the clusters are those of the same projections"


def test_there_are_at_most_as_many_clusters_as_images():
    found = begun(clusters=(3000, 4, 3000))
    assert found.clusters == (IMAGES, 4, IMAGES)
    assert found.notes == (
        "method.clusters has 3,000 clusters, more than the 20 images, so 20 are used; "
        "set a few per expected class",
    )
    assert sorted(found.assigned[0].tolist()) == list(range(IMAGES))
    assert method().notes == ()


def test_one_crop_is_enough():
    shapes = {"global": (1, 3, 8, 8)}
    found = method(shapes=shapes)
    assert found.bank.shape == (1, IMAGES, 6)


def test_the_command_says_that_clusters_are_capped(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    words = ["train", RECIPE, "--data", tmp_path, "--runs", tmp_path / "runs"]
    for setting in [*TINY, "method.clusters=[3000,3000]", "train.epochs=1"]:
        words += ["--set", setting]
    code, out, err = sslkit(*words)
    assert code == 0, err
    told = "method: method.clusters has 3,000 clusters, more than the 12 images, so 12 are used"
    assert " ".join((out + err).split()).count(told) == 1


@pytest.mark.parametrize("value", ["[]", "[0]", "[3, -1]"])
def test_clusters_out_of_range_are_refused(value):
    code, _, err = sslkit("check", RECIPE, "--set", f"method.clusters={value}")
    assert code == 2 and "method.clusters" in err and "Traceback" not in err
