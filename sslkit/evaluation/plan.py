"""Plans an evaluation: rows, lengths of features, memory, disk and time, from one batch."""

import time

import torch

from sslkit import faults
from sslkit.evaluation import memory
from sslkit.evaluation.candidates import Network
from sslkit.evaluation.compare import embed_batch
from sslkit.evaluation.features import GIB, FeatureStore, Row, place
from sslkit.evaluation.images import Order, Resized, read_images
from sslkit.evaluation.probe import ImageProbe
from sslkit.interfaces import Estimate, Evaluation, Work
from sslkit.parts import make
from sslkit.recipe import Choice

SAMPLE = 32
"""Images that are read and embedded to measure their time."""
BATCHES = 2
"""Number of batches: the first one warms up."""

Lines = list[tuple[str, str]]


def plan(choice: Choice, probe: ImageProbe) -> Lines:
    """Return name and value of each line of a plan. Writes nothing.

    Reads two batches of images, embeds them with every candidate, and adds the evaluation's own
    estimate.
    """
    evaluation: Evaluation = make(choice)
    layered = embedding(probe, layers=True)
    work = Work(len(probe.train), len(probe.val), len(probe.classes), layered.widths, probe.device)
    with faults.telling(f"{choice.part.shown} fails in estimate"):
        needs = evaluation.estimate(work)
    measured = layered if needs.layers else embedding(probe, layers=False)
    lines = [_images(probe), *_widths(work, needs)]
    lines += _storage(probe, work, needs)
    lines += _time(probe, work, needs, measured)
    return lines + [("note", note) for note in needs.notes]


class Sample:
    """Seconds per image for reading and for every candidate, and lengths of features."""

    def __init__(self) -> None:
        self.reading = 0.0
        self.embedding: dict[str, float] = {}
        self.widths: dict[Row, int] = {}


def embedding(probe: ImageProbe, *, layers: bool) -> Sample:
    """Measure reading and embedding on the second of two batches."""
    found = Sample()
    sizes = sorted({candidate.size for candidate in probe.candidates})
    cut = Resized(tuple(sizes), "crop", probe.train.reduced_to)
    count = min(SAMPLE, len(probe.train))
    rows = torch.linspace(0, len(probe.train) - 1, BATCHES * count).long().numpy()
    orders = [Order(0, rows[first : first + count]) for first in range(0, len(rows), count)]
    start = time.perf_counter()
    for images, _ in read_images(probe.train, cut, orders):
        found.reading = (time.perf_counter() - start) / count
        sized = dict(zip(sizes, images, strict=True))
        for candidate in probe.candidates:
            took = _seconds(probe, sized, candidate.name, found, layers=layers)
            found.embedding[candidate.name] = took / count
        start = time.perf_counter()
    return found


def _seconds(
    probe: ImageProbe, images: dict[int, torch.Tensor], name: str, found: Sample, *, layers: bool
) -> float:
    """Return the time of one candidate for a batch, s, and note the lengths of its features."""
    alone = [candidate for candidate in probe.candidates if candidate.name == name]
    start = time.perf_counter()
    features = embed_batch(probe, images, layers=layers, candidates=alone)
    took = time.perf_counter() - start
    found.widths |= {key: rows.shape[1] for key, rows in features.items()}
    return took


def _images(probe: ImageProbe) -> tuple[str, str]:
    text = f"{len(probe.train):,} training and {len(probe.val):,} validation images"
    return "rows", f"{text}, {len(probe.classes)} classes" if probe.classes else text


def _widths(work: Work, needs: Estimate) -> Lines:
    """Return a line for each candidate with the lengths of its features."""
    by_name: dict[str, list[str]] = {}
    for (row, name), width in work.widths(needs.layers).items():
        text = f"{width:,}" if row is None else f"{row} {width:,}"
        by_name.setdefault(name, []).append(text)
    return [(f"features of {name}", ", ".join(texts)) for name, texts in by_name.items()]


def _storage(probe: ImageProbe, work: Work, needs: Estimate) -> Lines:
    """Return the lines of memory and disk."""
    total, room = memory.total(), memory.total() // 4
    size, disk = 0, "none"
    if needs.features:
        widths = work.widths(needs.layers).values()
        size = FeatureStore.size(widths, (work.train, work.val))
        if size > room:
            disk = (
                f"{_size(size / 2)} of features in float16, in {place(probe.home)}, deleted at "
                "the end"
            )
            size = 4 * max(widths) * (work.train + work.val)
            size = min(size, room)
    needed = f"{_size(size)} of features, {_size(needs.bytes)} of the evaluation"
    return [("memory", f"{needed}; {_size(total)} installed"), ("disk", disk)]


def _time(probe: ImageProbe, work: Work, needs: Estimate, measured: Sample) -> Lines:
    """Return the lines of time."""
    reading = measured.reading / max(1, probe.workers)
    embedded = sum(measured.embedding.values())
    images = work.train + work.val
    once = images * (reading + embedded if needs.features else reading)
    for candidate in probe.candidates:
        if isinstance(candidate, Network) and candidate.fits and candidate.unfitted():
            once += work.train * measured.embedding[candidate.name]
    lines = [("time to read and embed", duration(once))]
    passed = needs.passes * work.train + needs.val_passes * work.val
    per_image = len(probe.candidates) * reading + embedded
    if passed:
        value = f"{duration(passed * per_image)} ({needs.passes:g} passes over the training images)"
        lines.append(("time of further passes", value))
    if needs.seconds is None:
        lines.append(("time of the evaluation itself", "not estimated"))
        return lines
    assumed = f" ({needs.how})" if needs.how else ""
    lines.append(("time of the evaluation itself", f"{duration(needs.seconds)}{assumed}"))
    total = once + passed * per_image + needs.seconds
    lines.append(("time in total", f"{duration(total)} on {probe.device.type}"))
    return lines


def duration(seconds: float) -> str:
    """Format seconds in the largest unit with a value of at least 2."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"


def _size(count: float) -> str:
    """Format bytes in MiB or GiB."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"
