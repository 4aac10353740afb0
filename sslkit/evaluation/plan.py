"""Plans an evaluation: rows, lengths of features, memory, disk and time, from a few images."""

import time
from dataclasses import dataclass, replace

import torch

from sslkit import faults, memory
from sslkit.errors import counted
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


@dataclass(frozen=True, repr=False)
class EvaluationPlan:
    """What an evaluation needs. `print` shows the lines of `sslkit eval … --plan`."""

    lines: Lines
    """Name and value of each line."""
    seconds: float | None
    """Time in total, s; None if the evaluation cannot be estimated."""
    memory: int
    """Features in memory and what the evaluation fits or trains, bytes."""
    disk: int
    """Features on disk during the evaluation, bytes."""

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self.lines)
        return "\n".join(f"{name:{width}}  {value}" for name, value in self.lines)


def plan(choice: Choice, probe: ImageProbe) -> EvaluationPlan:
    """Plan an evaluation. Writes nothing.

    Reads two batches of images, embeds them with every candidate, and adds the evaluation's own
    estimate.
    """
    evaluation: Evaluation = make(choice)
    layered = embedding(probe, layers=True)
    counts = (len(probe.train), len(probe.val), len(probe.classes))
    work = Work(*counts, layered.widths, probe.device, replace(probe, workers=0))
    with faults.telling(f"{choice.part.shown} fails in estimate"):
        needs = evaluation.estimate(work)
    measured = layered if needs.layers else embedding(probe, layers=False)
    kept, disk = _features(work, needs)
    spent = _times(probe, work, needs, measured)
    total = None if needs.seconds is None else sum(spent.values()) + needs.seconds
    lines = [_images(probe), *_widths(work, needs), *_storage(probe, needs, kept, disk)]
    lines += [(name, _with(duration(seconds), how)) for (name, how), seconds in spent.items()]
    own = "not estimated" if needs.seconds is None else duration(needs.seconds)
    lines.append(("time of the evaluation itself", _with(own, needs.how)))
    if total is not None:
        lines.append(("time in total", f"{duration(total)} on {probe.device.type}"))
    lines += [("note", note) for note in needs.notes]
    return EvaluationPlan(lines, total, kept + needs.bytes, disk)


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
    if probe.classes:
        text += f", {counted(len(probe.classes), 'class', 'classes')}"
    return "rows", text


def _widths(work: Work, needs: Estimate) -> Lines:
    """Return a line for each candidate with the lengths of its features."""
    by_name: dict[str, list[str]] = {}
    for (row, name), width in work.widths(needs.layers).items():
        text = f"{width:,}" if row is None else f"{row} {width:,}"
        by_name.setdefault(name, []).append(text)
    return [(f"features of {name}", ", ".join(texts)) for name, texts in by_name.items()]


def _features(work: Work, needs: Estimate) -> tuple[int, int]:
    """Return the sizes of the features in memory and on disk, bytes."""
    if not needs.features:
        return 0, 0
    widths, rows = work.widths(needs.layers).values(), (work.train, work.val)
    size, room = FeatureStore.size(widths, rows), memory.total() // 4
    if size <= room:
        return size, 0
    return min(room, FeatureStore.size([max(widths)], rows)), size // 2


def _storage(probe: ImageProbe, needs: Estimate, kept: int, disk: int) -> Lines:
    """Return the lines of memory and disk."""
    needed = f"{_size(kept)} of features, {_size(needs.bytes)} of the evaluation"
    place_of = f"of features in float16, in {place(probe.home)}, deleted at the end"
    return [
        ("memory", f"{needed}; {_size(memory.total())} installed"),
        ("disk", f"{_size(disk)} {place_of}" if disk else "none"),
    ]


def _times(
    probe: ImageProbe, work: Work, needs: Estimate, measured: Sample
) -> dict[tuple[str, str], float]:
    """Return the time of reading and embedding by name and explanation, s."""
    reading = measured.reading / max(1, probe.workers)
    embedded = sum(measured.embedding.values())
    images = work.train + work.val
    once = images * (reading + embedded if needs.features else reading)
    for candidate in probe.candidates:
        if isinstance(candidate, Network) and candidate.fits and candidate.unfitted():
            once += work.train * measured.embedding[candidate.name]
    found = {("time to read and embed", ""): once}
    passed = needs.passes * work.train + needs.val_passes * work.val
    if passed:
        split, count = "training", needs.passes
        if not needs.passes:
            split, count = "validation", needs.val_passes
        how = f"{counted(round(count), 'pass', 'passes')} over the {split} images"
        per_image = len(probe.candidates) * reading + embedded
        found["time of further passes", how] = passed * per_image
    if needs.reads:
        how = counted(needs.reads, "image")
        found["time to decode images again", how] = needs.reads * reading
    return found


def _with(text: str, how: str) -> str:
    return f"{text} ({how})" if how else text


def duration(seconds: float) -> str:
    """Format seconds in the largest unit with a value of at least 2."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"


def _size(count: float) -> str:
    """Format bytes in MiB or GiB."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"
