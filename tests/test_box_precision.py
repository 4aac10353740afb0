"""Average precision of boxes: hand cases, VOC's arithmetic, COCO's implementations."""

import numpy as np
import pytest

from sslkit.interfaces import Boxes
from sslkit_plugins.evaluations.box_precision import (
    CHOSEN,
    OVERLAPS,
    Detections,
    coco_precision,
    mean_curve,
    overlap,
    precision,
    rank,
)


def boxes(corners, labels=None, difficult=()) -> Boxes:
    """Objects of one image, of class 0 and not difficult by default."""
    count = len(corners)
    flags = np.isin(np.arange(count), difficult)
    numbers = np.zeros(count, np.int64) if labels is None else np.array(labels, np.int64)
    return Boxes(np.array(corners, np.float32).reshape(-1, 4), numbers, flags)


def detections(corners, scores, labels=None) -> Detections:
    found = boxes(corners, labels)
    return Detections(found.corners, found.labels, np.array(scores, np.float32))


ONE, TWO = (0, 0, 100, 100), (200, 200, 300, 300)
HAND = [detections([ONE, (200, 200, 300, 262), (500, 500, 600, 600)], [0.9, 0.8, 0.1])]


def voc07(found, truth, classes=1) -> dict[str, float]:
    ranked = rank(found, truth, classes)
    return {metric: precision(ranked, metric) for metric in CHOSEN}


def test_hand_case_by_the_eleven_point_rule():
    """One exact box, and one of overlap .62: a hit at .5, .55 and .6."""
    found = voc07(HAND, [boxes([ONE, TWO])])
    assert found == pytest.approx({"AP50": 1, "AP75": 6 / 11, "AP": (3 + 7 * 6 / 11) / 10})
    assert found["AP"] == pytest.approx(0.6818, abs=5e-5)


def test_hand_case_by_the_rule_of_coco():
    pytest.importorskip("faster_coco_eval")
    found = coco_precision(HAND, [boxes([ONE, TWO])], 1)
    assert found == pytest.approx({"AP50": 1, "AP75": 51 / 101, "AP": (3 + 7 * 51 / 101) / 10})


def test_overlap_is_that_of_vocs_inclusive_pixels():
    """VOC's "+1" on corners from 1, as in py-faster-rcnn's `voc_eval`."""
    rng = np.random.default_rng(0)
    first = rng.integers(1, 30, (40, 2))
    pixels = np.concatenate([first, first + rng.integers(0, 30, (40, 2))], 1)
    for one in pixels[:10]:
        low = np.maximum(pixels[:, :2], one[:2])
        high = np.minimum(pixels[:, 2:], one[2:])
        inside = (high - low + 1).clip(min=0).prod(1)
        areas = (pixels[:, 2:] - pixels[:, :2] + 1).prod(1)
        expected = inside / (areas + (one[2:] - one[:2] + 1).prod() - inside)
        corners = pixels - [1, 1, 0, 0]
        ours = overlap((one - [1, 1, 0, 0])[None], corners)[0]
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_an_overlap_equal_to_the_threshold_is_a_miss():
    half = detections([(0, 0, 100, 50)], [0.9])
    assert voc07([half], [boxes([ONE])])["AP50"] == 0
    more = detections([(0, 0, 100, 51)], [0.9])
    assert voc07([more], [boxes([ONE])])["AP50"] == 1


def test_the_second_detection_of_an_object_is_a_miss():
    """Ranks 1 and 3 are hits: precision 1 up to recall .5, then 2/3."""
    twice = detections([ONE, ONE, TWO], [0.9, 0.8, 0.7])
    assert voc07([twice], [boxes([ONE, TWO])])["AP50"] == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_difficult_object_is_neither_hit_nor_miss():
    found = detections([TWO, ONE], [0.9, 0.8])
    assert voc07([found], [boxes([ONE, TWO], difficult=[1])])["AP50"] == 1
    missed = detections([(400, 400, 500, 500), ONE], [0.9, 0.8])
    expected = pytest.approx(1 / 2)
    assert voc07([missed], [boxes([ONE, TWO], difficult=[1])])["AP50"] == expected


def test_scores_are_rounded_to_three_decimals():
    """.9004 and .9001 are equal, so their order stays; a fourth decimal would reverse it."""
    found = detections([ONE, (400, 400, 500, 500)], [0.9001, 0.9004])
    assert voc07([found], [boxes([ONE])])["AP50"] == 1


def test_classes_are_averaged_and_those_without_objects_left_out():
    truth = [boxes([ONE, TWO], [0, 1])]
    found = [detections([ONE], [0.9], [0])]
    assert voc07(found, truth, classes=2)["AP50"] == 0.5
    assert voc07(found, truth, classes=3)["AP50"] == 0.5
    assert np.isnan(voc07(found, [boxes([])], classes=1)["AP50"])


def test_no_detection_at_all_is_zero():
    nothing = [detections([], [])]
    assert set(voc07(nothing, [boxes([ONE])]).values()) == {0.0}
    pytest.importorskip("faster_coco_eval")
    assert set(coco_precision(nothing, [boxes([ONE])], 1).values()) == {0.0}


def test_a_weight_counts_an_image_that_often():
    found, truth = scattered()
    ranked = rank(found, truth, 2)
    weights = np.arange(len(truth)) % 3
    rows = np.repeat(np.arange(len(truth)), weights)
    again = rank([found[row] for row in rows], [truth[row] for row in rows], 2)
    for metric in CHOSEN:
        expected = precision(again, metric)
        # Equal scores of different images may change places.
        assert precision(ranked, metric, weights) == pytest.approx(expected, abs=5e-3)


def test_a_crowd_of_coco_forgives_what_voc_counts_as_a_miss():
    """A tiny detection inside a difficult object overlaps it little."""
    pytest.importorskip("faster_coco_eval")
    found = [detections([(210, 210, 220, 220), ONE], [0.9, 0.8])]
    truth = [boxes([ONE, TWO], difficult=[1])]
    assert voc07(found, truth)["AP50"] == pytest.approx(0.5)
    assert coco_precision(found, truth, 1)["AP50"] == pytest.approx(1)


def scattered(images: int = 12) -> tuple[list[Detections], list[Boxes]]:
    """Objects that do not overlap each other, and detections near and far, in two classes."""
    rng, found, truth = np.random.default_rng(1), [], []
    for _ in range(images):
        places = np.stack(np.meshgrid([0, 200, 400], [0, 200, 400]), -1).reshape(-1, 2)
        kept = places[rng.permutation(9)[:6]]
        corners = np.concatenate([kept, kept + rng.integers(60, 150, (6, 2))], 1)
        labels = rng.integers(0, 2, 6)
        moved = corners[:5] + rng.normal(0, 9, (5, 4))
        far = [[600, 600, 700, 700], [0, 600, 90, 700]]
        truth.append(boxes(corners, labels))
        mixed = np.concatenate([labels[:5], [0, 1]])
        found.append(detections(np.concatenate([moved, far]), rng.random(7), mixed))
    return found, truth


def rounded(found: list[Detections]) -> list[Detections]:
    """What the rule of VOC sees: scores of 3 decimals, corners of 1."""
    return [one._replace(corners=one.corners.round(1), scores=one.scores.round(3)) for one in found]


def test_eleven_levels_agree_with_pycocotools():
    """COCO's evaluation with 11 levels of recall, where no object overlaps another."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    found, truth = scattered()
    scorer = cocoeval.COCOeval(*in_coco(coco, rounded(found), truth), "bbox")
    scorer.params.recThrs = np.arange(0.0, 1.1, 0.1)
    scorer.evaluate()
    scorer.accumulate()
    table = scorer.eval["precision"][:, :, :, 0, -1]  # overlaps, levels, classes
    ranked = rank(found, truth, 2)
    for row in range(len(OVERLAPS)):
        curve = mean_curve(ranked, slice(row, row + 1))
        np.testing.assert_allclose(curve, table[row].mean(-1), atol=1e-9)


def test_the_rule_of_coco_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    pytest.importorskip("faster_coco_eval")
    pytest.importorskip("pycocotools")
    detection = pytest.importorskip("torchmetrics.detection")
    found, truth = scattered()
    metric = detection.MeanAveragePrecision()
    predicted, targets = [], []
    for one, objects in zip(found, truth, strict=True):
        values = {"boxes": one.corners, "scores": one.scores, "labels": one.labels}
        predicted.append({name: torch.from_numpy(value) for name, value in values.items()})
        values = {"boxes": objects.corners, "labels": objects.labels}
        targets.append({name: torch.from_numpy(value) for name, value in values.items()})
    metric.update(predicted, targets)
    theirs = metric.compute()
    ours = coco_precision(found, truth, 2)
    for name, other in {"AP": "map", "AP50": "map_50", "AP75": "map_75"}.items():
        assert ours[name] == pytest.approx(theirs[other].item(), abs=1e-6)


def in_coco(coco, found: list[Detections], truth: list[Boxes]):
    """The objects and the detections as pycocotools wants them."""
    known, scored = coco.COCO(), []
    annotations = []
    for image, (objects, one) in enumerate(zip(truth, found, strict=True), 1):
        for corners, label in zip(objects.corners, objects.labels, strict=True):
            more = {"id": len(annotations) + 1, "iscrowd": 0}
            annotations.append({**described(image, corners, label), **more})
        for corners, label, score in zip(*one, strict=True):
            scored.append({**described(image, corners, label), "score": float(score)})
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    images = [{"id": image} for image in range(1, len(truth) + 1)]
    known.dataset = {"images": images, "annotations": annotations, "categories": categories}
    known.createIndex()
    return known, known.loadRes(scored)


def described(image, corners, label) -> dict:
    left, top, right, bottom = map(float, corners)
    box = [left, top, right - left, bottom - top]
    return {
        "image_id": image,
        "category_id": int(label) + 1,
        "bbox": box,
        "area": box[2] * box[3],
    }
