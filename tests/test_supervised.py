"""Supervised training: chance, labels that change places, memorising, and missing labels."""

import math
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from bare import Bare
from conftest import sslkit
from PIL import Image

from sslkit import recipe
from sslkit.interfaces import Batch, Draws, Parts, Progress
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.heads import Linear
from sslkit_plugins.losses import CrossEntropy
from sslkit_plugins.methods.supervised import Supervised


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """64 images of noise in four classes."""
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for number in range(64):
        place = folder / "abcd"[number % 4]
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    return folder


def bare(classes=5, dim=6):
    torch.manual_seed(0)
    return Supervised(
        Parts(Bare(dim), {"label": Linear(dim, out_dim=classes)}, {}, CrossEntropy(), 9)
    )


def batch(labels, dim=6):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(labels), dim, 1, 1, generator=generator)
    return Batch({"image": images}, {"label": labels}, torch.arange(len(labels)))


PROGRESS = Progress(0, 1, 0, 1, Draws(0))


def test_a_head_of_zeros_gives_log_of_the_classes():
    method = bare(classes=5)
    for value in method.heads.parameters():
        value.data.zero_()
    output = method(batch(torch.tensor([0, 1, 4, 4])), PROGRESS)
    assert output.loss.item() == pytest.approx(math.log(5), rel=1e-6)
    assert method.at_start(8) == method.at_chance(8)["loss"] == pytest.approx(math.log(5))
    assert method.at_chance(8)["accuracy"] == 1 / 5


def test_renaming_classes_permutes_the_head_alone():
    """Same loss; the gradient of row c of the head is that of row order[c] of the other."""
    labels, order = torch.tensor([0, 3, 1, 4, 2, 2]), torch.tensor([2, 0, 4, 1, 3])
    one, other = bare(), bare()
    head, renamed = one.heads["label"].project, other.heads["label"].project
    renamed.weight.data[order] = head.weight.data
    renamed.bias.data[order] = head.bias.data
    first, second = one(batch(labels), PROGRESS), other(batch(order[labels]), PROGRESS)
    torch.testing.assert_close(second.loss, first.loss)
    assert torch.equal(second.metrics["accuracy"], first.metrics["accuracy"])
    first.loss.backward()
    second.loss.backward()
    torch.testing.assert_close(renamed.weight.grad[order], head.weight.grad)


def test_64_images_of_noise_are_memorised(labelled):
    """Un-augmented images, all in one batch."""
    settings = ["encoder.model=test_resnet", "transform.size=32", "transform.min_area=1.0"]
    settings += ["transform.flip=0.0", "train.batch_size=64", "train.epochs=60"]
    settings += ["train.workers=0", "train.device=cpu", "optimizer.lr=0.1"]
    run = build(recipe.read("supervised", data=str(labelled), overrides=settings))
    assert run.method.head("label").out_dim == 4, "out_dim: auto"
    reached = [step.metrics["accuracy"].item() for step in islice(train(run), 60)]
    assert max(reached) == 1.0


def test_images_without_labels_are_refused(labelled, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in labelled.glob("*/*.png"):
        shutil.copy(path, flat)
    options = ["--data", flat, "--run", tmp_path / "run"]
    code, _, err = sslkit("train", "supervised", *options)
    assert code == 2 and not (tmp_path / "run").exists()
    assert err == (
        "data  method 'supervised' predicts labels, but the images of 'image_folder' have none; "
        "name a folder with one subfolder per class: --data DIR\n"
    )
