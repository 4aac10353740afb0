"""DeepCluster: clusters of whitened features, equal weight of clusters, a classifier begun anew."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sslkit
from PIL import Image
from test_swav import Means, at
from torch import nn
from torch.nn import functional as F

from sslkit import recipe
from sslkit.interfaces import Batch, Draws, Epoch, Parts, Progress
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.clusters import k_means, whiten
from sslkit_plugins.heads import Linear
from sslkit_plugins.losses import SoftCrossEntropy
from sslkit_plugins.methods.deepcluster import DeepCluster, cluster_weights

RECIPE = Path(__file__).parent.parent / "recipes" / "deepcluster.yaml"
TINY = ["transform.size=32", "encoder.model=test_resnet", "heads.classifier.out_dim=5"]
TINY += ["method.components=8", "train.batch_size=8", "train.workers=0", "train.device=cpu"]
TINY += ["train.precision=fp32", "train.epochs=3"]
IMAGES = 20


class Passes(Epoch):
    """An epoch of given images, in batches of `size`; the last batch begins again."""

    micro_batches = 1

    def __init__(self, images, size=6, epoch=0, watch=None):
        self.images, self.size, self.watch = images, size, watch
        self.progress = Progress(10 * epoch, 100, epoch, 10, Draws(epoch))
        self.forgotten = []

    def plain(self):
        count = len(self.images)
        for first in range(0, count, self.size):
            if self.watch is not None:
                assert not self.watch.training, "features are computed in evaluation mode"
            index = torch.arange(first, first + self.size) % count
            yield self.images[index], index

    def views(self):
        raise AssertionError("features are those of un-augmented images")

    def next_step(self):
        raise AssertionError("not needed")

    def forget(self, *modules):
        self.forgotten += modules


def method(clusters=4, images=IMAGES, **options):
    """DeepCluster of three colours, in float64."""
    torch.manual_seed(0)
    heads = {"classifier": Linear(5, out_dim=clusters)}
    shapes = {"image": (3, 8, 8)}
    parts = Parts(Means(), heads, {}, SoftCrossEntropy(temperature=1.0), images, shapes)
    return DeepCluster(parts, **options).double()


def pictures(count=IMAGES):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64)


@torch.no_grad()
def begun(epoch=0, **options):
    """A method before its first step."""
    made = method(**options)
    made.begin_epoch(Passes(pictures(), epoch=epoch, watch=made))
    return made


def batch(*index):
    return Batch({"image": pictures()[list(index)]}, {}, torch.tensor(index))


def test_clusters_are_those_of_whitened_unit_features():
    found = begun(components=2)
    with torch.no_grad():
        features = found.encoder(pictures()).float()
    rows = F.normalize(whiten(features, 2), dim=1)
    assert torch.equal(found.assigned, k_means(rows, 4, 20, Draws(0)).assigned)
    assert (torch.bincount(found.assigned) > 0).all() and found.training


def test_each_epoch_draws_new_first_centres():
    assert not torch.equal(begun(epoch=0).assigned, begun(epoch=1).assigned)
    assert torch.equal(begun(epoch=1).assigned, begun(epoch=1).assigned)


def test_clusters_count_equally():
    """Each cluster's images weigh N/K together, and all images weigh N."""
    assigned = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    weights = cluster_weights(assigned, 3)
    torch.testing.assert_close(weights, torch.tensor([8 / 15, 8 / 6, 8 / 3]))
    weighed = torch.bincount(assigned, weights[assigned].double())
    torch.testing.assert_close(weighed, torch.full((3,), 8 / 3, dtype=torch.float64))
    assert cluster_weights(torch.tensor([0, 0, 2]), 3).tolist() == [0.75, 0, 1.5]


def test_drawing_by_weight_is_drawing_evenly_over_clusters():
    """The official code draws images so; the histogram of clusters is uniform."""
    found = begun()
    weights = found.weights[found.assigned]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(weights, 40_000, replacement=True, generator=generator)
    histogram = torch.bincount(found.assigned[drawn], minlength=4) / 40_000
    torch.testing.assert_close(histogram, torch.full((4,), 0.25), atol=0.01, rtol=0)


def test_the_loss_is_weighted_cross_entropy():
    """Over all images it is the mean over clusters of the mean loss of a cluster."""
    found = begun()
    every = batch(*range(IMAGES))
    logits = found.heads["classifier"](found.encoder(pictures()))
    losses = F.cross_entropy(logits.double(), found.assigned, reduction="none")
    means = [losses[found.assigned == cluster].mean() for cluster in range(4)]
    torch.testing.assert_close(found(every, at()).loss, torch.stack(means).mean())


def test_targets_follow_the_image_not_its_place_in_the_batch():
    found = begun()
    torch.testing.assert_close(found(batch(3, 17, 9), at()).loss, found(batch(9, 3, 17), at()).loss)
    wrong = Batch(batch(3, 17, 9).views, {}, torch.tensor([9, 3, 17]))
    assert found.assigned[[3, 17, 9]].tolist() != found.assigned[[9, 3, 17]].tolist()
    assert (found(wrong, at()).loss - found(batch(3, 17, 9), at()).loss).abs() > 1e-6


def test_the_names_of_clusters_do_not_matter():
    found, order = begun(), torch.tensor([2, 0, 3, 1])
    before = found(batch(0, 5, 11, 19), at()).loss
    with torch.no_grad():
        for value in found.heads["classifier"].parameters():
            value.copy_(value[order].clone())
    found.assigned.copy_(order.argsort()[found.assigned])
    found.weights.copy_(cluster_weights(found.assigned, 4))
    torch.testing.assert_close(found(batch(0, 5, 11, 19), at()).loss, before)


def test_the_classifier_begins_anew_with_its_optimizer_state():
    made, epoch = method(clusters=18), Passes(pictures())
    with torch.no_grad():
        for value in made.heads["classifier"].parameters():
            value.fill_(7)
        made.begin_epoch(epoch)
    layer = made.heads["classifier"].project
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.3) and not layer.bias.any()
    assert epoch.forgotten == [made.heads["classifier"]]


def test_momentum_of_the_classifier_is_dropped_in_training():
    """After the first step of each epoch, momentum is the gradient of that step."""
    run = build(recipe.read(RECIPE, overrides=[*TINY, "optimizer.weight_decay=0"]))
    run.loader.steps_per_epoch = 2
    weight = run.method.heads["classifier"].project.weight
    for step in islice(train(run), 4):
        momentum = run.optimizer.state[weight]["momentum_buffer"]
        assert torch.allclose(momentum, weight.grad) == (step.number % 2 == 1)


def test_the_first_loss_of_an_epoch_is_log_k():
    found = begun()
    every = batch(*range(IMAGES))
    assert found(every, at()).loss.item() == pytest.approx(math.log(4), abs=0.02)
    assert found.at_start(8) == math.log(4) and found.at_chance(8) == {"loss": math.log(4)}


def test_it_works_before_the_first_clustering():
    found = method()
    assert torch.bincount(found.assigned).tolist() == [5, 5, 5, 5]
    assert found.weights.tolist() == [1, 1, 1, 1]
    assert found(batch(0, 1), at()).loss.isfinite()


def test_images_that_were_not_seen_keep_their_cluster():
    """As in a rehearsal, whose pass has a few images."""
    found = method()
    with torch.no_grad():
        found.begin_epoch(Passes(pictures()[:3], size=3))
    assert sorted(found.assigned[:3].tolist()) == [0, 1, 2]
    assert found.assigned[3:].tolist() == (torch.arange(3, IMAGES) % 4).tolist()


def test_there_are_at_most_as_many_clusters_as_images():
    """Outputs of the classifier beyond them stay out of the loss."""
    found = begun(clusters=10_000)
    assert found.notes == (
        "heads.classifier.out_dim has 10,000 clusters, more than the 20 images, so 20 are used; "
        "set a few per expected class",
    )
    assert sorted(found.assigned.tolist()) == list(range(IMAGES))
    every = batch(*range(IMAGES))
    assert found(every, at()).loss.item() == pytest.approx(math.log(20), abs=0.02)
    found(every, at()).loss.backward()
    assert not found.heads["classifier"].project.weight.grad[20:].any()


def test_batch_norm_of_the_classifier_begins_anew():
    torch.manual_seed(0)
    head = Linear(5, out_dim=4, batch_norm=True)
    head(torch.randn(8, 5) + 3)
    parts = Parts(Means(), {"classifier": head}, {}, SoftCrossEntropy(), IMAGES)
    found = DeepCluster(parts).double()
    with torch.no_grad():
        found.begin_epoch(Passes(pictures()))
    norm = found.heads["classifier"].norm
    assert isinstance(norm, nn.BatchNorm1d)
    assert not norm.running_mean.any() and norm.num_batches_tracked == 0


def test_the_command_says_that_clusters_are_capped(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    words = ["train", RECIPE, "--data", tmp_path, "--runs", tmp_path / "runs"]
    for setting in [*TINY, "heads.classifier.out_dim=300", "train.epochs=1"]:
        words += ["--set", setting]
    code, out, err = sslkit(*words)
    assert code == 0, err
    told = "method: heads.classifier.out_dim has 300 clusters, more than the 12 images"
    assert " ".join((out + err).split()).count(told) == 1
