"""Candidates, images and features: what a probe gives to evaluations."""

import copy
import weakref
from itertools import chain

import numpy as np
import pytest
import torch
from noise import Noise, made, network

from sslkit.errors import SslkitError
from sslkit.evaluation import Rows, split_by_class
from sslkit.evaluation import probe as probes
from sslkit.evaluation.candidates import RawPixels
from sslkit.evaluation.rows import split
from sslkit.interfaces import Candidate, Metric

# -------------------------------------------------------------------------------- candidates


def test_a_twin_gets_the_statistics_of_the_training_split():
    twin = network("untrained", baseline=True, fits=True)
    probe = made([network(), twin])
    before = copy.deepcopy(twin.encoder.state_dict())
    probe.fit_statistics()
    norm = twin.encoder.layers[1]
    shown = torch.cat([images for images, _ in probe.images(probe.train, size=16)])
    maps = twin.encoder.layers[0](twin.normalise(shown))
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, maps.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert norm.momentum == 0.3 and not norm.training
    after = twin.encoder.state_dict()
    weights = [name for name in before if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], after[name]) for name in weights)


@pytest.mark.parametrize("fits", [True, False], ids=["trained-elsewhere", "of-the-run"])
def test_statistics_that_an_encoder_brings_are_left_alone(fits):
    candidate = network(fits=fits)
    if fits:
        candidate.encoder.layers[1].running_mean.fill_(0.5)
    before = copy.deepcopy(candidate.encoder.state_dict())
    made([candidate, RawPixels()]).fit_statistics()
    after = candidate.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_network_to_train_is_a_copy():
    candidate = network()
    encoder, normalise = candidate.network()
    encoder.layers[0].weight.data.zero_()
    assert candidate.encoder.layers[0].weight.abs().sum() > 0
    assert normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).shape == (1, 3, 2, 2)
    assert RawPixels().network() is None


def test_raw_pixels_are_the_small_picture():
    (images, _), *_ = made().images(Noise(2), size=32)
    rows = RawPixels().embed(images)["features"]
    assert rows.shape == (2, 3 * 32 * 32)
    torch.testing.assert_close(rows, images.flatten(1) / 255)
    deep = torch.full((1, 5, 32, 32), 65535, dtype=torch.uint16)
    assert RawPixels(16).embed(deep)["features"].unique().tolist() == [1.0]


def test_what_an_encoder_cannot_take_is_told_with_a_remedy():
    with pytest.raises(SslkitError, match=r"trained cannot embed .*; try another --size"):
        network().embed(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


# -------------------------------------------------------------------------------------- probe


def test_every_image_is_decoded_once_whatever_the_sizes():
    sizes = {"trained": 16, "untrained": 16, "other": 24}
    candidates: list[Candidate] = [
        network(name, size, fits=name == "untrained") for name, size in sizes.items()
    ]
    probe = made([*candidates, RawPixels()])
    probe.fit_statistics()
    seen = {candidate.name: set() for candidate in probe.candidates}
    for candidate in probe.candidates:
        embed = candidate.embed

        def spy(images, *, layers=False, embed=embed, name=candidate.name):
            seen[name].add(tuple(images.shape[-2:]))
            return embed(images, layers=layers)

        candidate.embed = spy
    probe.compare(lambda features, seed: {"x": 0.0}, [Metric("x")], layers=True)
    assert set(probe.train.decoded.values()) == set(probe.val.decoded.values()) == {1}
    assert seen["other"] == {(24, 24)} and seen["raw pixels"] == {(32, 32)}


def test_images_beyond_the_memory_are_decoded_for_each_pass(monkeypatch):
    kept, streamed = made(), made()
    whole = [images for images, _ in kept.images(kept.train, view="squash")]
    monkeypatch.setattr(probes, "KEPT", 1000)
    parts_of = [images for images, _ in streamed.images(streamed.train, view="squash")]
    assert torch.equal(torch.cat(whole), torch.cat(parts_of))
    list(streamed.images(streamed.train, view="squash"))
    assert set(streamed.train.decoded.values()) == {2} and not streamed.kept.get("squash")


@pytest.mark.parametrize("channels, bits", [(3, 8), (5, 8), (5, 16)])
def test_crop_and_squash_show_the_centre_and_the_whole(channels, bits):
    source = Noise(3, channels=channels, bits=bits)
    source.arrays[:, :, :, :4] = 0  # the left edge is cut away by "crop" alone
    source.arrays[:, :, :, 4:] = 200
    probe = made(train=source)
    ((crop, index),) = probe.images(source, size=40)
    ((squash, _),) = probe.images(source, size=40, view="squash")
    assert crop.shape == squash.shape == (3, channels, 40, 40) and index.tolist() == [0, 1, 2]
    assert crop.dtype == (torch.uint8 if bits == 8 else torch.uint16)
    assert crop.to(torch.int64).min() == 200 and squash[..., 0].to(torch.int64).max() < 20


def test_views_are_crops_of_every_image_in_order():
    probe = made()
    found = list(probe.views(probe.val, count=3, size=16))
    again = list(probe.views(probe.val, count=3, size=16))
    assert torch.cat([index for _, index in found]).tolist() == list(range(12))
    views = torch.cat([crops for crops, _ in found])
    assert views.shape == (12, 3, 3, 16, 16) and views.dtype == torch.uint8
    assert torch.equal(views, torch.cat([crops for crops, _ in again]))
    assert not torch.equal(views[:, 0], views[:, 1])
    other = torch.cat([crops for crops, _ in probe.views(probe.val, count=3, size=16, seed=1)])
    assert not torch.equal(views, other)


def test_augmented_batches_meet_every_image_once_an_epoch():
    probe = made()
    batches = list(probe.augmented(probe.train, batch_size=10, steps=6, seed=0, size=16))
    orders = [index.tolist() for _, index in batches]
    first, second = ([*chain(*half)] for half in (orders[:3], orders[3:]))
    assert sorted(first) == sorted(second) == list(range(30)) and first != second
    one, two = (
        {row: images[place] for images, index in half for place, row in enumerate(index.tolist())}
        for half in (batches[:3], batches[3:])
    )
    assert one[0].shape == (3, 16, 16) and not torch.equal(one[0], two[0])


def test_features_of_a_layer_are_dropped_after_use():
    probe, seen = made(), []

    def scorer(features, seed):
        assert all(earlier() is None for earlier in seen)
        seen.append(weakref.ref(features.train))
        return {"x": 0.0}

    result = probe.compare(scorer, [Metric("x")], layers=True)
    rows = [(entry.row, entry.candidate) for entry in result.entries]
    assert rows == [
        ("features", "trained"),
        ("conv", "trained"),
        ("features", "untrained"),
        ("conv", "untrained"),
        (None, "raw pixels"),
    ]
    assert len(seen) == 5


def test_seeds_reach_the_score_and_the_difference_is_paired():
    def scorer(features, seed):
        right = torch.zeros(12, dtype=torch.bool)
        right[: 6 + seed + (features.train.shape[1] == 4)] = True
        return {"hits": right, "x": float(seed)}

    result = made().compare(scorer, [Metric("hits", "%"), Metric("x")], seeds=2)
    trained, untrained, pixels = result.entries
    assert trained.scores["hits"].values == (7 / 12, 8 / 12)
    assert trained.scores["x"].values == (0.0, 1.0)
    assert set(trained.differences) == {"untrained", "raw pixels"}
    assert trained.differences["untrained"]["hits"].of == "no image differs"
    assert trained.differences["raw pixels"]["hits"].of == "12 images, paired"
    assert not untrained.differences and not pixels.differences
    assert result.protocol["seeds"] == 2


def test_rows_keep_everything_that_a_source_has():
    source = Noise(6)
    source.tags = np.eye(6, 3, dtype=np.int8)
    source.groups = list("aabbcc")
    some = Rows(source, np.array([4, 1]))
    assert some.names == ["004.png", "001.png"] and some.labels.tolist() == [1, 1]
    assert some.tags.tolist() == [[0, 0, 0], [0, 1, 0]] and some.groups == ["c", "a"]
    assert np.array_equal(some.image(0), source.image(4))


def test_a_set_with_groups_is_split_by_group():
    source = Noise(40)
    source.groups = [f"patient {number // 4}" for number in range(40)]
    train, val, how = split(source, 0)
    assert not set(train.groups) & set(val.groups) and (len(train), len(val)) == (32, 8)
    assert how == "a fifth of the groups, split with seed 0"


def test_split_by_class_leaves_an_image_on_either_side():
    labels = np.array([0, 0, 1, 1, 1, 2])
    first, second = split_by_class(labels, 0.2, 0)
    assert sorted([*first, *second]) == list(range(6))
    assert np.bincount(labels[second], minlength=3).tolist() == [1, 1, 0]
