"""What evaluations measure: the features of labelled images, from the trained encoder and from its floors."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sslkit import recipe
from sslkit.data.loader import auto_workers
from sslkit.data.plain import plain_batches
from sslkit.data.splits import split_by_class
from sslkit.device import pick_device
from sslkit.errors import CheckpointError, DataError
from sslkit.interfaces import ImageSource, Method, Pixels, PretextTransform
from sslkit.parts import make_method, make_source, make_transform
from sslkit.report import figures
from sslkit.runs import checkpoint, files

PIXELS = 32
"""Side of the images whose raw pixels are the floor, as in the customary CIFAR-size baseline."""
FEATURES = 9216
"""A layer's map is pooled to about this many numbers (Goyal et al. 2019, arXiv:1905.01235, section 6.1)."""
PAPER_POOLS = {112: (10, 10, 4), 56: (16, 8, 0), 28: (13, 5, 0), 14: (8, 3, 0), 7: (6, 1, 0)}
"""Side of a map → (kernel, stride, padding) of the average pooling that PIRL's linear protocol uses at 224 px."""


def pool(maps: Tensor) -> Tensor:
    """[N,c,h,w] → [N,features] by the paper's average pooling at its map sizes, else by adaptive pooling to about as many numbers."""
    channels, side = maps.shape[1], maps.shape[-1]
    if side in PAPER_POOLS and maps.shape[-2] == side and channels * side * side > FEATURES:
        kernel, stride, padding = PAPER_POOLS[side]
        return F.avg_pool2d(maps, kernel, stride, padding).flatten(1)
    return F.adaptive_avg_pool2d(maps, min(side, max(1, math.isqrt(FEATURES // channels)))).flatten(
        1
    )


class Subset(ImageSource):
    """Some images of a source, with their labels."""

    def __init__(self, source: ImageSource, rows: np.ndarray) -> None:
        assert source.labels is not None
        self.source, self.rows = source, rows
        self.names = [source.names[i] for i in rows]
        self.labels = source.labels[rows]
        self.classes = source.classes

    def image(self, index: int) -> Image.Image:
        return self.source.image(int(self.rows[index]))

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        return self.source.pixels(int(self.rows[index]), reduction)


@dataclass(frozen=True)
class Features:
    """float32 [N,D] of the training and the validation half, with labels int64 [N]."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor


class Probe:
    """A trained run and two labelled halves of images.

    `data` replaces the recipe's images. A set with validation images of its own is used as it is; any other is split by class with
    `seed`, a fifth for validation.
    """

    def __init__(
        self, folder: Path, *, data: str | None = None, seed: int = 0, device: str = "auto"
    ) -> None:
        self.folder, self.seed = folder, seed
        self.recipe = recipe.read(folder / "recipe.yaml", data=data)
        self.device = pick_device(device)
        self.workers = auto_workers(self.device.type)
        self.checkpoint, self.state, self.notes = checkpoint.newest(folder)
        self.transform: PretextTransform = make_transform(self.recipe)
        self.train, self.val, self.split = self._halves()
        assert self.train.labels is not None and self.val.labels is not None
        self.classes = list(self.train.classes) or [
            str(c) for c in sorted(set(self.train.labels.tolist()))
        ]
        self._kept: dict[tuple[str, bool], dict[str, Features]] = {}

    def _halves(self) -> tuple[ImageSource, ImageSource, str]:
        train = make_source(self.recipe, "train")
        if train.labels is None:
            raise DataError(
                f"the images of {self._place()} have no labels, and this evaluation needs them: name a folder that holds nothing but one "
                f"subfolder per class, two at least (or train/ and val/ with these): --data DIR"
            )
        if train.has_val:
            val = make_source(self.recipe, "val")
            if val.labels is None or list(val.classes) != list(train.classes):
                raise DataError(
                    f"train and val of {self._place()} have different classes: {list(train.classes)} and {list(val.classes)}"
                )
            return train, val, "the data set's own validation images"
        rows = split_by_class(train.labels, 0.2, self.seed)
        if not len(rows[1]):
            raise DataError(
                "every class has a single image, so none is left to validate on; name a folder with more, --data DIR"
            )
        return (
            Subset(train, rows[0]),
            Subset(train, rows[1]),
            f"a fifth of every class, split with seed {self.seed}",
        )

    def _place(self) -> str:
        """The folder or file of the images, or the name of their data set."""
        options = self.recipe.data.options
        return str(options.get("root") or options.get("file") or f"'{self.recipe.data.use}'")

    def method(self, trained: bool) -> Method:
        """The run's method with the checkpoint's weights, or as it was before the first step."""
        method = make_method(self.recipe, self.transform, checkpoint.data_format(self.state))
        if trained:
            checkpoint.load_method(method, self.checkpoint)
        return method.to(self.device).to(memory_format=torch.channels_last).eval()

    def features(self, of: str, *, layers: bool = False) -> dict[str, Features]:
        """`of`: "trained", "untrained" or "pixels" → features by layer; "features" is what the run exports."""
        key = (of, layers)
        if key not in self._kept:
            if of == "pixels":
                extract: Callable[[Tensor], dict[str, Tensor]] = _pixels
            else:
                extract = self._extractor(self.method(of == "trained"), layers)
            halves = [self._extract(source, extract) for source in (self.train, self.val)]
            labels = [
                torch.as_tensor(source.labels, device=self.device)
                for source in (self.train, self.val)
            ]
            self._kept[key] = {
                name: Features(halves[0][name], labels[0], halves[1][name], labels[1])
                for name in halves[0]
            }
        return self._kept[key]

    def _extractor(self, method: Method, layers: bool) -> Callable[[Tensor], dict[str, Tensor]]:
        def extract(images: Tensor) -> dict[str, Tensor]:
            pixels = self.transform.plain(images).contiguous(memory_format=torch.channels_last)
            found = {"features": method.exported(pixels)}
            if layers:
                found |= {name: pool(maps) for name, maps in method.exported.maps(pixels).items()}
            return found

        return extract

    @torch.inference_mode()
    def _extract(
        self, source: ImageSource, extract: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for images, _ in plain_batches(
            source, self.transform.size, batch_size=128, workers=self.workers
        ):
            for name, rows in extract(images.to(self.device)).items():
                found.setdefault(name, []).append(rows.float())
        return {name: torch.cat(rows) for name, rows in found.items()}

    def protocol(self) -> dict[str, Any]:
        """What every evaluation records."""
        return {
            "run": str(self.folder),
            "checkpoint": self.checkpoint.name,
            "step": self.state["step"],
            "data": {"use": self.recipe.data.use, **self.recipe.data.options},
            "train_images": len(self.train),
            "val_images": len(self.val),
            "classes": len(self.classes),
            "split": self.split,
            "size": self.transform.size,
            "view": "short side resized, centre crop, normalised; no augmentation; encoder in evaluation mode, float32",
        }


def _pixels(images: Tensor) -> dict[str, Tensor]:
    """uint8 [N,3,H,W] → the pixels at 32×32."""
    return {
        "features": F.interpolate(
            images.float(), (PIXELS, PIXELS), mode="bilinear", antialias=True
        ).flatten(1)
        / 255
    }


def topk(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """[N,C], [N] → top-1 and top-5 in per cent (top-5 of fewer than five classes is 100)."""
    order = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = order == labels.unsqueeze(1)
    return 100 * hits[:, 0].float().mean().item(), 100 * hits.any(1).float().mean().item()


T_95 = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26]
"""Student's t for a two-sided 95 % interval with 1 … 9 degrees of freedom."""


def t_95(freedom: int) -> float:
    """The same for any number of degrees of freedom, from 10 on by the Cornish-Fisher series to the second order."""
    return (
        T_95[freedom - 1] if freedom <= len(T_95) else 1.96 + 2.372 / freedom + 2.823 / freedom**2
    )


def summary(scores: Sequence[tuple[float, float]], count: int) -> dict[str, Any]:
    """Scores (top-1, top-5) of several seeds on `count` images → mean, the 95 % interval over seeds (Student's t), and the 95 %
    interval of a share measured on so few images (Wilson 1927)."""
    first = [top1 for top1, _ in scores]
    result: dict[str, Any] = {
        "top1": fmean(first),
        "top5": fmean(top5 for _, top5 in scores),
        "per_seed": first,
    }
    if len(first) > 1:
        result["interval_seeds"] = t_95(len(first) - 1) * stdev(first) / math.sqrt(len(first))
    share, z = result["top1"] / 100, 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
        / (1 + z * z / count)
    )
    result["interval_images"] = [100 * (middle - half), 100 * (middle + half)]
    return result


def measure(
    probe: Probe,
    name: str,
    score: Callable[[Features, int], tuple[float, float]],
    *,
    seeds: int,
    layers: bool,
    protocol: dict[str, Any],
) -> dict[str, Any]:
    """Score the trained encoder, layer by layer if asked, and the floors with the same `score(features, seed)`."""

    def over_seeds(features: Features) -> dict[str, Any]:
        return summary([score(features, seed) for seed in range(seeds)], len(probe.val))

    trained = {
        layer: over_seeds(features)
        for layer, features in probe.features("trained", layers=layers).items()
    }
    floors = {of: over_seeds(probe.features(of)["features"]) for of in ("pixels", "untrained")}
    assert probe.val.labels is not None
    return {
        "evaluation": name,
        "layers": trained,
        "floors": {
            "chance": 100 * float(np.bincount(probe.val.labels).max() / len(probe.val)),
            f"raw pixels ({PIXELS}×{PIXELS})": floors["pixels"]["top1"],
            "the same encoder untrained": floors["untrained"]["top1"],
        },
        "protocol": {**probe.protocol(), **protocol, "seeds": seeds},
    }


def _protocol(path: Path) -> Any:
    """The protocol of a written result; None where the file holds no result."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["protocol"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def write(folder: Path, result: dict[str, Any]) -> Path:
    """eval/<evaluation>.json with the whole protocol, and a picture beside it. A result of another protocol that stands there is kept
    under the next free number."""
    path = folder / "eval" / f"{result['evaluation']}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        if path.exists() and _protocol(path) != json.loads(json.dumps(result["protocol"])):
            number = next(
                n for n in itertools.count(1) if not path.with_suffix(f".{n}.json").exists()
            )
            path.replace(path.with_suffix(f".{number}.json"))
    except OSError as error:
        raise CheckpointError(f"cannot keep or replace {path}: {error}") from error
    files.write_text(path, json.dumps(result, indent=1, ensure_ascii=False))
    figures.scores(result, path.with_suffix(".png"))
    return path
