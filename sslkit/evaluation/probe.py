"""The probe of evaluations: images of two splits, and the candidates to score."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslkit.data.loader import Loader
from sslkit.evaluation import compare as comparison
from sslkit.evaluation import unreadable
from sslkit.evaluation.candidates import Network
from sslkit.evaluation.images import (
    BATCH,
    PIECE,
    Cut,
    Order,
    Progress,
    RandomCrops,
    Resized,
    UnreadableImage,
    View,
    entire,
    in_order,
    in_pieces,
    in_random_order,
    read_images,
    shown,
    shuffled,
)
from sslkit.evaluation.state import content, discard, unfinished_folder
from sslkit.interfaces import (
    Batch,
    Candidate,
    Draws,
    Features,
    ImageSource,
    Metric,
    Outcome,
    PretextTransform,
    Probe,
    Result,
)
from sslkit.version import __version__

KEPT = 2**31
"""Cache of resized images, bytes. Images that do not fit are decoded in each pass."""


def silent(title: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Show no progress."""
    return nullcontext(lambda done, total: None)


@dataclass
class ImageProbe(Probe):
    """Two splits of a data set, and candidates. `protocol` returns `facts`."""

    train: ImageSource
    val: ImageSource
    classes: Sequence[str]
    candidates: Sequence[Candidate]
    size: int
    device: torch.device
    facts: dict[str, Any] = field(default_factory=dict)
    workers: int = 0
    progress: Progress = silent
    home: Path | None = None
    """Folder of results and of unfinished evaluations; None if nothing may be written."""
    kept: dict[tuple[ImageSource, View], dict[int, np.ndarray]] = field(
        default_factory=dict, repr=False
    )
    """Resized images by (source, view) and size, uint8 or uint16 [N,C,S,S]."""
    chosen_size: int | None = None
    unfinished_folders: list[Path] = field(default_factory=list)
    """Folders that `unfinished` returned."""
    skippable: bool = True
    """False if there is no option --skip-unreadable."""

    def fit_statistics(self, seed: int = 0) -> None:
        """Fit the untrained batch norms of networks with `fits`.

        Uses one pass over the training split in random order, since folders are sorted by class.
        """
        for candidate in self.candidates:
            if isinstance(candidate, Network) and candidate.fits and candidate.unfitted():
                size = candidate.size
                orders = in_random_order(len(self.train), seed)
                passed = self._sized(self.train, "crop", orders, self._sizes())
                candidate.fit_statistics(images[size] for images, _ in passed)

    def images(
        self, source: ImageSource, *, view: View = "crop", size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order: integer [N,C,S,S] on the device, index [N]."""
        size = self.size if size is None else size
        for images, index in self._sized(source, view, in_order(len(source)), [size]):
            yield images[size].to(self.device), index

    def augmented(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        size: int | None = None,
        first: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches of random crops and flips: [B,C,S,S], index [B].

        They are those of the steps first … steps−1, functions of `seed` and the step.
        """
        batches = shuffled(len(source), batch_size=batch_size, steps=steps, seed=seed, first=first)
        orders = in_pieces(batches)
        cut = RandomCrops(self.size if size is None else size, 1)
        count = -(-min(batch_size, len(source)) // PIECE)
        read = self._read(source, cut, orders, seed)
        for (crops,), index in read:
            batch, indices = [crops[:, 0].to(self.device)], [index]
            for (more,), rows in itertools.islice(read, count - 1):
                batch.append(more[:, 0].to(self.device))
                indices.append(rows)
            yield torch.cat(batch), torch.cat(indices)

    def views(
        self, source: ImageSource, *, count: int, seed: int = 0, size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `count` random crops of every image once, in order: [N,count,C,S,S], index [N]."""
        orders = in_order(len(source), max(1, BATCH // count))
        cut = RandomCrops(self.size if size is None else size, count)
        for (crops,), index in self._read(source, cut, orders, seed):
            yield crops.to(self.device), index

    def pictures(self, source: ImageSource, rows: Iterable[int]) -> Iterator[Tensor]:
        """Yield entire decoded images in the order of `rows`: integer [C,h,w] in CPU memory."""
        orders = (Order(0, np.array([row])) for row in rows)
        for (images,), _ in self._read(source, entire, orders, batch=1):
            yield images[0]

    def unfinished(self, name: str, conditions: Mapping[str, Any]) -> Path | None:
        """Return a folder for the state of an unfinished evaluation, if there is a `home`.

        Its name depends on the conditions, the images, the weights and the versions.
        """
        if self.home is None:
            return None
        stated = {
            **self.protocol(),
            **conditions,
            "content": [content(source) for source in (self.train, self.val)],
            "weights": [one.digest() for one in self.candidates if isinstance(one, Network)],
            "versions": [__version__, torch.__version__],
        }
        folder = unfinished_folder(self.home, name, stated)
        self.unfinished_folders.append(folder)
        return folder

    def discard(self) -> None:
        """Remove the folders of `unfinished`, after the result is written."""
        for folder in self.unfinished_folders:
            discard(folder)

    def pretext(
        self, source: ImageSource, transform: PretextTransform, *, seed: int = 0
    ) -> Iterator[Batch]:
        """Yield the augmented views of `transform` for every image once, in order, on the device.

        The last batch is padded with the first images.
        """
        size = min(BATCH, len(source))
        loader = Loader(source, transform, batch_size=size, seed=seed, workers=self.workers)
        for number, batch in enumerate(loader.full_pass(0)):
            yield transform.on_device(batch.to(self.device), Draws(seed, number))

    def compare(
        self,
        score: Callable[[Features, int], dict[str, Outcome]],
        metrics: Sequence[Metric],
        *,
        seeds: int = 1,
        layers: bool = False,
        view: Literal["crop", "squash"] = "crop",
        chance: dict[str, float] | None = None,
        protocol: dict[str, Any] | None = None,
        chunked: bool = False,
    ) -> Result:
        """Score every candidate, and every layer against the same layer of the baselines."""
        kept = comparison.embed(self, layers=layers, view=view)
        half = {"features": "float16 on disk"} if kept.on_disk else {}
        outcomes = comparison.score_all(self, kept, score, metrics, seeds, chunked=chunked)
        stated = {
            **half,
            "seeds": seeds,
            "view": shown(view, self.val),
            "layers": "all" if layers else "last",
        }
        return comparison.combine(
            self, outcomes, metrics, chance=chance, protocol={**stated, **(protocol or {})}
        )

    def protocol(self) -> dict[str, Any]:
        """Return data and fingerprint, splits, classes and counts, candidates, checkpoint, view."""
        candidates = [
            {"name": one.name, "baseline": one.baseline, "size": one.size}
            for one in self.candidates
        ]
        return {**self.facts, "view": shown("crop", self.val), "candidates": candidates}

    def passes(self, source: ImageSource, view: View) -> Iterator[tuple[dict[int, Tensor], Tensor]]:
        """Yield every image once, in order: images by size for all candidates, and the index."""
        return self._sized(source, view, in_order(len(source)), self._sizes())

    def _read(
        self,
        source: ImageSource,
        cut: Cut,
        orders: Iterable[Order],
        seed: int = 0,
        batch: int = BATCH,
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield cuts and index. Raises DataError with all unreadable images of both splits."""
        try:
            yield from read_images(
                source, cut, orders, seed=seed, workers=self.workers, batch=batch
            )
        except UnreadableImage:
            splits = {"train": self.train, "val": self.val}
            found = unreadable.find(splits, self.workers, self.progress)
            if not found:
                raise
            because = "an evaluation replaces no image"
            raise unreadable.refusal(found, because, skippable=self.skippable) from None

    def _sizes(self) -> list[int]:
        return sorted({candidate.size for candidate in self.candidates})

    def _sized(
        self, source: ImageSource, view: View, orders: Sequence[Order], sizes: list[int]
    ) -> Iterator[tuple[dict[int, Tensor], Tensor]]:
        """Yield the images of `orders` by size, and their index."""
        kept = self._keep(source, view, sizes)
        if kept is None:
            cut = Resized(tuple(sizes), view, source.reduced_to)
            for images, index in self._read(source, cut, orders):
                yield dict(zip(sizes, images, strict=True)), index
            return
        for order in orders:
            found = {size: torch.from_numpy(kept[size][order.indices]) for size in sizes}
            yield found, torch.from_numpy(order.indices)

    def _keep(
        self, source: ImageSource, view: View, sizes: list[int]
    ) -> dict[int, np.ndarray] | None:
        """Return all images by size from the cache, after filling it; None if they do not fit."""
        kept = self.kept.setdefault((source, view), {})
        missing = [size for size in sizes if size not in kept]
        if not missing:
            return kept
        dtype = np.dtype(np.uint8 if source.bits == 8 else np.uint16)
        shapes = {size: (len(source), source.channels, size, size) for size in missing}
        cached = 0
        for views in self.kept.values():
            cached += sum(images.nbytes for images in views.values())
        if cached + dtype.itemsize * sum(map(math.prod, shapes.values())) > KEPT:
            return None
        made = {size: np.empty(shape, dtype) for size, shape in shapes.items()}
        with self.progress("reading images") as advance:
            cut = Resized(tuple(missing), view, source.reduced_to)
            orders = in_order(len(source))
            for images, index in self._read(source, cut, orders):
                for size, pixels in zip(missing, images, strict=True):
                    made[size][index.numpy()] = pixels.numpy()
                advance(len(index), len(source))
        kept |= made
        return kept
