"""How fast are views made? PIRL's official list of operations, with PIL in a worker, against ours.

    python benchmarks/views.py [--data DIR]             # images/s on one core, where our time goes
    python benchmarks/views.py --decode [--data DIR]    # decoders on JPEG, PNG and WebP

DIR holds images of about 160 pixels; without it some are made. The same are enlarged to 500 pixels.
All times are CPU time of one thread, the least of several repeats; what is compared takes turns.
"""

import argparse
import contextlib
import importlib
import io
import random
import shutil
import tempfile
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision import transforms as T

from sslkit.data.loader import Loader
from sslkit.interfaces import Batch, Draws
from sslkit_plugins.datasets import ImageFolder, decode_pixels
from sslkit_plugins.datasets.decoding import ENDINGS
from sslkit_plugins.methods.pirl import Jigsaw
from sslkit_plugins.views import Normaliser, steps

# ----------------------------------------------- the official list, as VISSL's configuration has it


def photometric(image: Image.Image) -> Image.Image:
    if random.random() >= 0.66:
        return image
    image = ImageOps.posterize(image, random.randint(4, 8))
    image = ImageEnhance.Sharpness(image).enhance(random.uniform(0.1, 1.9))
    image = ImageOps.solarize(image, random.randint(0, 256))
    return ImageOps.autocontrast(image)


CROP = T.RandomResizedCrop(224)
PUZZLE = T.RandomResizedCrop(255, scale=(0.6, 1))
COLOURS = T.Compose(
    [
        T.ColorJitter(0.4, 0.4, 0.4, 0.2),
        photometric,
        T.RandomGrayscale(0.2),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def official(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [3,224,224] and [9,3,64,64]."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    whole, puzzle = COLOURS(CROP(image)), PUZZLE(image)
    patches = []
    for column in range(3):
        for row in range(3):
            left, top = 85 * column + random.randint(0, 20), 85 * row + random.randint(0, 20)
            patches.append(puzzle.crop((left, top, left + 64, top + 64)))
    random.shuffle(patches)
    return whole, torch.stack([COLOURS(patch) for patch in patches])


# ------------------------------------------------------------------------------------------- images


def write_pictures(folder: Path, data: Path | None, count: int) -> None:
    """Write `count` images from below `data`, or made ones of 160 pixels: soft spots and noise."""
    folder.mkdir()
    if data is not None:
        found = sorted(path for path in data.rglob("*") if path.suffix.lower() in ENDINGS)
        if not found:
            raise SystemExit(f"no images below {data}")
        for number, path in enumerate(found[:: max(1, len(found) // count)][:count]):
            shutil.copy(path, folder / f"{number:05}{path.suffix}")
        return
    rng = np.random.default_rng(0)
    for number in range(count):
        soft = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
            (213, 160), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(soft, float) + rng.normal(0, 6, (160, 213, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg")


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The long side resized to `side`."""
    scale = side / max(image.size)
    return image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )


def consume(made: Iterable[object]) -> None:
    """Keep nothing, as training keeps no batch."""
    deque(made, maxlen=0)


def cpu_time(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def least(repeats: int, **works: Callable[[], object]) -> dict[str, float]:
    """The least CPU time of each of `works`, which take turns."""
    times = defaultdict(list)
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(cpu_time(work))
    return {name: min(found) for name, found in times.items()}


# ------------------------------------------------------------------------------------------- tables


def compare(folder: Path, batch_size: int, repeats: int) -> None:
    source, transform, rng = (
        ImageFolder("pretrain", root=str(folder)),
        Jigsaw(),
        np.random.default_rng,
    )
    loader = Loader(source, transform, batch_size=min(batch_size, len(source)), seed=0)
    count = loader.steps_per_epoch * loader.step_size
    paths = [folder / name for name in source.names[:count]]
    pixels = [transform.fetch(source, index, rng(index)) for index in range(count)]
    batches = list(loader.batches(0, loader.steps_per_epoch))
    found = least(
        repeats,
        official=lambda: consume(official(path) for path in paths),
        worker=lambda: consume(loader.batches(0, loader.steps_per_epoch)),
        device=lambda: consume(
            transform.on_device(batch, Draws(0, step)) for step, batch in enumerate(batches)
        ),
        fetch=lambda: consume(transform.fetch(source, index, rng(index)) for index in range(count)),
        cut=lambda: consume(list(transform.cut(image, rng(0))) for image in pixels),
        call=lambda: consume(transform(image, rng(0)) for image in pixels),
    )
    found = {name: 1000 * seconds / count for name, seconds in found.items()}
    theirs, worker, device = found["official"], found["worker"], found["device"]
    both = worker + device
    print(f"\n{folder.name} px: {count} images, batches of {loader.batch_size}")
    print(f"{'':34} ms/image  images/s  against the official list")
    print(f"{'official list, PIL in the worker':34} {theirs:8.2f} {1000 / theirs:9.1f}")
    share = f"1/{theirs / worker:.1f} of its CPU time"
    print(f"{'ours, worker':34} {worker:8.2f} {1000 / worker:9.1f}  {share}")
    print(f"{'ours, device phase on the CPU':34} {device:8.2f} {1000 / device:9.1f}")
    times = f"{theirs / both:.1f} times its images/s"
    print(f"{'ours, both on one core':34} {both:8.2f} {1000 / both:9.1f}  {times}")
    parts = {
        "read and decode": found["fetch"],
        "resize": found["cut"],
        "patches": found["call"] - found["cut"],
    }
    parts["batch, random numbers"] = worker - sum(parts.values())
    parts |= operations(transform, batches, count, repeats)
    print(f"{'inside ours':34} ms/image     share")
    for name, spent in parts.items():
        print(f"  {name:32} {spent:8.3f} {spent / sum(parts.values()):9.0%}")


def operations(
    transform: Jigsaw, batches: list[Batch], count: int, repeats: int
) -> dict[str, float]:
    """Return ms an image of each operation of the device phase and of the rest of it.

    Those of the fastest of several runs.
    """
    runs = []
    for _ in range(repeats):
        spent: dict[str, float] = defaultdict(float)
        with timed(spent):
            total = cpu_time(
                lambda: consume(
                    transform.on_device(batch, Draws(0, step)) for step, batch in enumerate(batches)
                )
            )
        runs.append({"gather, convert, put in place": total - sum(spent.values()), **spent})
    return {
        name: 1000 * seconds / count
        for name, seconds in min(runs, key=lambda run: sum(run.values())).items()
    }


@contextlib.contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Within it, every operation of the device phase adds its CPU time to `spent`."""

    def clock(operation: Callable, name: str = "") -> Callable:
        def run(*arguments):
            before = time.process_time()
            done = operation(*arguments)
            spent[name or operation.__name__] += time.process_time() - before
            return done

        return run

    def draw(*arguments) -> list[steps.Step]:
        return [step._replace(operation=clock(step.operation)) for step in draw_steps(*arguments)]

    draw_steps, normalise = steps.draw_steps, Normaliser.__call__
    steps.draw_steps = draw
    setattr(Normaliser, "__call__", clock(normalise, "normalise"))  # noqa: B010
    yield
    steps.draw_steps = draw_steps
    setattr(Normaliser, "__call__", normalise)  # noqa: B010


def decoders(images: list[Image.Image], repeats: int) -> None:
    """ms an image to uint8 pixels in memory, by library, format and size."""

    def pillow(file: bytes, divisor: int = 1) -> np.ndarray:
        with Image.open(io.BytesIO(file)) as opened:
            if divisor > 1:
                opened.draft("RGB", (opened.width // divisor, opened.height // divisor))
            return np.asarray(opened.convert("RGB"))

    def with_torch(library: str) -> Callable[[bytes], object]:
        module = importlib.import_module(library)
        return lambda file: module.decode_image(
            torch.frombuffer(bytearray(file), dtype=torch.uint8), mode=module.ImageReadMode.RGB
        )

    def opencv() -> Callable[[bytes], object]:
        module = importlib.import_module("cv2")
        module.setNumThreads(1)
        return lambda file: module.imdecode(np.frombuffer(file, np.uint8), module.IMREAD_COLOR_RGB)

    def simplejpeg() -> Callable[[bytes], object]:
        module = importlib.import_module("simplejpeg")
        return lambda file: module.decode_jpeg(file, "RGB")

    ways: dict[str, Callable[[bytes], object]] = {
        "Pillow": pillow,
        "draft 1/2": lambda file: pillow(file, 2),
        "draft 1/4": lambda file: pillow(file, 4),
        "decode_pixels": lambda file: decode_pixels(io.BytesIO(file), lambda width, height: 1),
    }
    others = {
        "torchvision": lambda: with_torch("torchvision.io"),
        "TorchCodec": lambda: with_torch("torchcodec.decoders"),
        "OpenCV": opencv,
        "simplejpeg": simplejpeg,
    }
    for name, make in others.items():
        with contextlib.suppress(ImportError):
            ways[name] = make()
    warnings.filterwarnings("ignore", ".*TorchCodec", UserWarning)
    print(f"{'ms/image':14}", *(f"{name:>14}" for name in ways))
    for side in (160, 500, 2000):
        for file_format, options in (
            ("JPEG", {"quality": 90}),
            ("PNG", {}),
            ("WEBP", {"quality": 90}),
        ):
            if (side, file_format) in ((2000, "PNG"), (2000, "WEBP")):
                continue
            files = []
            for image in images[: max(1, len(images) * 160 // side)]:
                stream = io.BytesIO()
                enlarged(image, side).save(stream, file_format, **options)
                files.append(stream.getvalue())
            usable = {
                name: partial(lambda way, files: consume(way(file) for file in files), way, files)
                for name, way in ways.items()
                if file_format == "JPEG" or not ("draft" in name or name == "simplejpeg")
            }
            found = least(repeats, **usable)
            cells = (
                f"{1000 * found[name] / len(files):14.2f}" if name in found else f"{'':14}"
                for name in ways
            )
            print(f"{side:5} {file_format:8}", *cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of images of about 160 pixels")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decode", action="store_true", help="compare decoders instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        small, large = Path(temporary, "160"), Path(temporary, "500")
        write_pictures(small, options.data, options.images)
        images = [Image.open(path).convert("RGB") for path in sorted(small.iterdir())]
        if options.decode:
            decoders(images, options.repeats)
            return
        large.mkdir()
        for number, image in enumerate(images):
            enlarged(image, 500).save(large / f"{number:05}.jpg", quality=90)
        for folder in (small, large):
            compare(folder, options.batch_size, options.repeats)


if __name__ == "__main__":
    main()
