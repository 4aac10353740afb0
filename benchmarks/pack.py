"""What packing gains: the same images as a folder of files and as a packed set, opened and read,
cold and warm.

    python benchmarks/pack.py                                  # drawn images, 10,000 and 100,000
    files
    python benchmarks/pack.py --data DIR --files 10000         # copies of the JPEGs below DIR

Folder and packed set in turn; the fastest of `--repeats` counts. `cold`: before it the pages of
every file are given up (posix_fadvise), and directory entries too where the system lets this
user drop them. `open` lists the images,
`bytes` reads files in random order, `views` are batches of jigsaw views as training reads them,
with 0 and 2 worker processes.
"""

import argparse
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sslkit.data.loader import Loader
from sslkit_plugins.datasets import ImageFolder
from sslkit_plugins.datasets.packed import Packed
from sslkit_plugins.methods.pirl import Jigsaw

WORKERS, BATCH = (0, 2), 50
TRANSFORM = Jigsaw(size=64, grid=3, resize=64, patch=18)


def drawn(count: int) -> list[bytes]:
    """JPEG files of 160 px: clouds of many scales, about as large as photographs of that size."""
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        layers = [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
                    (160, 160)
                ),
                np.float32,
            )
            for side in (3, 10, 40)
        ]
        file = io.BytesIO()
        Image.fromarray(np.average(layers, axis=0, weights=(4, 2, 1)).astype(np.uint8)).save(
            file, "JPEG", quality=87
        )
        files.append(file.getvalue())
    return files


def copies(data: Path | None, count: int, folder: Path) -> None:
    """`count` files in ten class folders."""
    sources = (
        [path.read_bytes() for path in sorted(data.rglob("*.[jJ][pP]*"))]
        if data
        else drawn(min(count, 500))
    )
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(count):
        (folder / f"class{number % 10}" / f"{number:07}.jpg").write_bytes(
            sources[number % len(sources)]
        )


def give_up(root: Path) -> bool:
    """Let the system forget what is below `root`; True where directory entries are dropped as
    well.
    """
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("2")
    except OSError:
        return False
    return True


def measure(
    make: type[ImageFolder | Packed], what: str, root: Path, cold: bool, images: int, workers: int
) -> float:
    """Seconds to open, or images per second."""
    seconds = 0.0
    for _ in range(1 if cold else 2):
        began = time.perf_counter()
        source = make("pretrain", root=str(root))
        seconds = time.perf_counter() - began
        if what == "bytes":
            order = np.random.default_rng(0).permutation(len(source))[:images].tolist()
            began = time.perf_counter()
            for index in order:
                stored = source.stored(index)
                _ = stored.read_bytes() if isinstance(stored, Path) else stored.getvalue()
            seconds = (time.perf_counter() - began) / len(order)
        elif what == "views":
            batches = Loader(source, TRANSFORM, batch_size=BATCH, seed=0, workers=workers)
            steps = min(max(1, images // BATCH), batches.steps_per_epoch)
            began = time.perf_counter()
            for _ in batches.batches(0, steps):
                pass
            seconds = (time.perf_counter() - began) / (steps * BATCH)
        del source
    return seconds if what == "open" else 1 / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="a folder of JPEGs to copy; drawn ones if left out"
    )
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--images", type=int, default=10_000, help="read for `bytes`; a fifth of them for `views`"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [
        ("open", 0, 0),
        ("bytes", options.images, 0),
        *(("views", options.images // 5, workers) for workers in WORKERS),
    ]
    print("| files | cache | what | folder | packed | gain |\n|---|---|---|---|---|---|")
    notes = []
    for count in options.files:
        with tempfile.TemporaryDirectory(prefix="sslkit-pack-") as name:
            home = Path(name)
            copies(options.data, count, home / "folder")
            began = time.perf_counter()
            photos = ImageFolder("train", root=str(home / "folder"))
            Packed.write({"train": photos}, str(home / "packed"), workers=os.cpu_count() or 1)
            seconds = time.perf_counter() - began
            size = sum(path.stat().st_size for path in (home / "packed").iterdir()) / 2**20
            entries = False
            for cache in ("cold", "warm"):
                for what, images, workers in jobs:
                    found: dict[type[ImageFolder | Packed], list[float]] = {
                        ImageFolder: [],
                        Packed: [],
                    }
                    for _ in range(options.repeats):
                        for make, values in found.items():
                            root = home / ("packed" if make is Packed else "folder")
                            if cache == "cold":
                                entries = give_up(root)
                            values.append(
                                measure(make, what, root, cache == "cold", images, workers)
                            )
                    label = {"views": f"views, {workers} workers"}.get(what, what)
                    if what == "open":
                        folder, packed = min(found[ImageFolder]), min(found[Packed])
                        cells, gain = f"{folder:.3f} s | {packed:.3f} s", folder / packed
                    else:
                        folder, packed = max(found[ImageFolder]), max(found[Packed])
                        cells, gain = f"{folder:,.0f} /s | {packed:,.0f} /s", packed / folder
                    print(f"| {count:,} | {cache} | {label} | {cells} | {gain:.2f} × |", flush=True)
            dropped = "pages and directory entries" if entries else "pages alone"
            notes.append(
                f"{count:,} files: packed in {seconds:.0f} s to {size:,.0f} MiB; cold: {dropped} "
                "were given up"
            )
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
