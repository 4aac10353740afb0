"""Data sets: folders of images, arrays, and the customary sets."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sslkit.errors import DataError
from sslkit.interfaces import ImageSource

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def decode(file: Path) -> Image.Image:
    """The first frame, upright, as RGB: 16 bits scaled to 8, transparency laid on white."""
    with Image.open(file) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        values = np.asarray(upright, dtype=np.float64)
        upright = Image.fromarray((values / (257 if values.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    if upright.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in upright.info:
        solid = upright.convert("RGBA")
        ground = Image.new("RGBA", solid.size, "white")
        return Image.alpha_composite(ground, solid).convert("RGB")
    return upright.convert("RGB")


class ImageFolder(ImageSource):
    """A folder of images, flat or nested, of any size and mode.

    Where `train/` (and `val/`) lie below `root`, they are the two halves; otherwise all is one. An image's class is the first folder
    below the half, as in torchvision; where there is at most one such folder, or images lie beside it, nothing is known of classes.
    """

    def __init__(self, split: str, /, *, root: str, follow_links: bool = False) -> None:
        top = Path(root).expanduser()
        if not top.is_dir():
            raise DataError(f"there is no folder {root}; name one that holds images: --data DIR")
        halves = (top / "train").is_dir()
        self.has_val = halves and (top / "val").is_dir()
        if split == "val" and not self.has_val:
            raise DataError(f"{root} has no folder val/ below it")
        self.root = top / ("val" if split == "val" else "train") if halves else top
        self.follow_links = follow_links
        found = sorted(self._walk(self.root, ""))
        if not found:
            raise DataError(f"no image below {self.root}; files that end in {', '.join(sorted(ENDINGS))} count")
        self.names = found
        tops = [name.split("/", 1)[0] if "/" in name else "" for name in found]
        classes = sorted(set(tops))
        if "" not in classes and len(classes) > 1:
            self.classes = classes
            self.labels = np.searchsorted(np.array(classes), np.array(tops)).astype(np.int64)

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if (
                    entry.is_symlink()
                    and not self.follow_links
                    and not Path(entry.path).resolve().is_relative_to(self.root.resolve())
                ):
                    continue
                if entry.is_dir():
                    yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
                    yield prefix + entry.name

    def image(self, index: int) -> Image.Image:
        """Decoded as RGB."""
        return decode(self.root / self.names[index])
