"""Average precision of detected boxes, by the 11-point rule of VOC 2007."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sslkit.interfaces import Boxes

OVERLAPS = np.arange(50, 100, 5) / 100
"""Thresholds of intersection over union. AP is the mean over all of them."""
CHOSEN = {"AP50": slice(0, 1), "AP": slice(None), "AP75": slice(5, 6)}
"""Thresholds of each metric, in OVERLAPS."""
LEVELS = np.arange(0.0, 1.1, 0.1)
"""The eleven levels of recall, with the rounding of Detectron2's `voc_ap`."""


class Detections(NamedTuple):
    """Detected objects of one image.

    `corners` are float32 [n,4] in pixels (left, top, right, bottom), `labels` int64 [n], `scores`
    float32 [n].
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class Ranking(NamedTuple):
    """The detections of one class in all images, best first.

    `image` is int64 [n]. `hits` and `misses` are bool [overlaps,n]; a detection of a difficult
    object is neither. `objects` int64 [images] counts the objects that are not difficult.
    """

    image: np.ndarray
    hits: np.ndarray
    misses: np.ndarray
    objects: np.ndarray


def overlap(corners: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of two sets of boxes, [n,4] and [m,4] → float64 [n,m].

    Corners are positions between pixels. VOC's code counts a box from pixel 1 to pixel w as w
    pixels wide (its "+1"), which is the same number.
    """
    corners, others = corners.astype(np.float64)[:, None], others.astype(np.float64)[None]
    low = np.maximum(corners[..., :2], others[..., :2])
    high = np.minimum(corners[..., 2:], others[..., 2:])
    inside = (high - low).clip(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (corners, others)]
    return inside / np.maximum(areas[0] + areas[1] - inside, np.finfo(np.float64).tiny)


def rank(detections: Sequence[Detections], truth: Sequence[Boxes], classes: int) -> list[Ranking]:
    """Match the detections of each image with its objects, and rank them by class.

    As in Detectron2's `pascal_voc_evaluation.py`: scores are rounded to 3 decimals and corners to
    1. A detection belongs to the object that it overlaps most. It is a hit if the overlap exceeds
    the threshold and no better detection hits the object. Equal scores keep their order.
    """
    return [_rank_class(detections, truth, label) for label in range(classes)]


def _rank_class(detections: Sequence[Detections], truth: Sequence[Boxes], label: int) -> Ranking:
    images, scores, hits, misses, objects = [], [], [], [], []
    for number, (found, boxes) in enumerate(zip(detections, truth, strict=True)):
        own = boxes.labels == label
        objects.append(int((own & ~boxes.difficult).sum()))
        rows = np.flatnonzero(found.labels == label)
        score = found.scores[rows].astype(np.float64).round(3)
        order = np.argsort(-score, kind="stable")
        corners = found.corners[rows[order]].astype(np.float64).round(1)
        matched = _match(corners, boxes.corners[own], boxes.difficult[own])
        images.append(np.full(len(rows), number))
        scores.append(score[order])
        hits.append(matched[0])
        misses.append(matched[1])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return Ranking(
        np.concatenate(images)[order],
        np.concatenate(hits, 1)[:, order],
        np.concatenate(misses, 1)[:, order],
        np.array(objects, np.int64),
    )


def _match(
    corners: np.ndarray, objects: np.ndarray, difficult: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return hits and misses, bool [overlaps,n], of detections [n,4] of one image, best first."""
    hits = np.zeros((len(OVERLAPS), len(corners)), bool)
    misses = np.ones_like(hits)
    if not len(corners) or not len(objects):
        return hits, misses
    found = overlap(corners, objects)
    nearest, best = found.argmax(1), found.max(1)
    for row, threshold in enumerate(OVERLAPS):
        above = best > threshold
        ignored = above & difficult[nearest]
        counted = np.flatnonzero(above & ~ignored)
        _, first = np.unique(nearest[counted], return_index=True)
        hits[row, counted[first]] = True
        misses[row] = ~hits[row] & ~ignored
    return hits, misses


def curves(
    ranking: Ranking, chosen: slice = slice(None), weights: np.ndarray | None = None
) -> np.ndarray | None:
    """Return the highest precision at each recall or above: float64 [chosen overlaps, LEVELS].

    Its mean over LEVELS is the 11-point average precision. `weights` [images] say how often each
    image counts, by default once. Returns None for a class without objects.
    """
    if weights is None:
        weights = np.ones(len(ranking.objects), np.int64)
    objects = int(weights @ ranking.objects)
    if not objects:
        return None
    weight = weights[ranking.image]
    hits = np.cumsum(ranking.hits[chosen] * weight, 1)
    misses = np.cumsum(ranking.misses[chosen] * weight, 1)
    recall = hits / objects
    precision = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
    highest = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    highest = np.pad(highest, ((0, 0), (0, 1)))  # a recall that is not reached: precision 0
    places = [np.searchsorted(row, LEVELS) for row in recall]
    return np.take_along_axis(highest, np.array(places), 1)


def mean_curve(
    rankings: Sequence[Ranking], chosen: slice = slice(None), weights: np.ndarray | None = None
) -> np.ndarray:
    """Return `curves` averaged over the classes with objects and the overlaps: [LEVELS].

    It is NaN if no class has objects.
    """
    found = [curves(ranking, chosen, weights) for ranking in rankings]
    present = [curve.mean(0) for curve in found if curve is not None]
    return np.mean(present, 0) if present else np.full(len(LEVELS), np.nan)


def precision(rankings: Sequence[Ranking], metric: str, weights: np.ndarray | None = None) -> float:
    """Return AP50, AP75 or AP (the mean over OVERLAPS), averaged over the classes, 0 … 1."""
    return float(mean_curve(rankings, CHOSEN[metric], weights).mean())


def coco_precision(
    detections: Sequence[Detections], truth: Sequence[Boxes], classes: int
) -> dict[str, float]:
    """Return AP50, AP and AP75 by COCO's rule, with the package faster-coco-eval.

    Precision is averaged over 101 levels of recall, and an overlap equal to the threshold counts.
    Difficult objects become crowd regions, which detections may hit any number of times.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    described: list[dict] = []
    found: list[dict] = []
    for image, (boxes, detected) in enumerate(zip(truth, detections, strict=True), 1):
        for corners, label, difficult in zip(*boxes, strict=True):
            known = {**_of_coco(image, corners, label), "iscrowd": int(difficult)}
            described.append({**known, "id": len(described) + 1})
        for corners, label, score in zip(*detected, strict=True):
            found.append({**_of_coco(image, corners, label), "score": float(score)})
    if not found:
        return dict.fromkeys(CHOSEN, 0.0)
    categories = [{"id": label + 1, "name": str(label)} for label in range(classes)]
    images = [{"id": image + 1, "width": 1, "height": 1} for image in range(len(truth))]
    known_boxes = COCO({"images": images, "categories": categories, "annotations": described})
    scored = COCOeval_faster(known_boxes, known_boxes.loadRes(found), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    every, half, three_quarters = scored.stats[:3]
    return {"AP50": float(half), "AP": float(every), "AP75": float(three_quarters)}


def _of_coco(image: int, corners: np.ndarray, label: int) -> dict:
    """Return a box in COCO's form: left, top, width, height."""
    left, top, right, bottom = (float(value) for value in corners)
    sides = [right - left, bottom - top]
    area = sides[0] * sides[1]
    return {
        "image_id": image,
        "category_id": int(label) + 1,
        "bbox": [left, top, *sides],
        "area": area,
    }
