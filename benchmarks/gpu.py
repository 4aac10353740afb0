"""What a GPU makes of PIRL-jigsaw with ResNet-50 at the paper's sizes, in bf16, beside what it
could: run by gpu.sh.

    benchmarks/gpu.sh                       # nine minutes at most; prints Markdown, writes gpu.json
    benchmarks/gpu.sh --data DIR            # photographs of DIR, packed at 160 px, instead of
    drawn ones
    benchmarks/gpu.sh --tiny --device cpu   # everything at tiny sizes, in a minute

Images per second, of one device, of: the bare encoder, forward and backward, on the pixels of a
step (one crop of 224 px and nine patches
of 64 px an image); our step on views that lie finished on the device; the same with uint8 views
from pinned memory, whose colours are
drawn on the device; and end to end from a packed set. A bank of 1,281,167 images, 32,000
negatives. In turn, twice; the faster counts.
"""

import argparse
import copy
import gc
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from pack import copies
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sslkit import parts, recipe
from sslkit.interfaces import Batch, Draws, ImageSource, Pixels
from sslkit.runs.run import Run
from sslkit.training import build, profile, trainer
from sslkit_plugins.datasets import ImageFolder
from sslkit_plugins.datasets.packed import Packed

RECIPE = Path(__file__).parent.parent / "recipes" / "imagenet" / "pirl_jigsaw.yaml"
PAPER = 1_281_167
TINY = (
    "encoder.model=test_resnet",
    "transform.size=32",
    "transform.resize=32",
    "transform.patch=8",
    "sampler.negatives=64",
)
LOADED, WARM = 3, 5
"""How much longer the last rate is measured, for a loader reads ahead, and calls that are not
measured.
"""


class Repeated(ImageSource):
    """`count` images, those of a smaller set again and again."""

    def __init__(self, source: ImageSource, count: int) -> None:
        self.source, self.names = source, range(count)  # type: ignore[assignment]

    def image(self, index: int):
        return self.source.image(index % len(self.source))

    def pixels(
        self, index: int, reduction: Callable[[int, int], float] = lambda width, height: 1
    ) -> Pixels:
        return self.source.pixels(index % len(self.source), reduction)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(device: torch.device, work: Callable[[], object], seconds: float) -> float:
    """Seconds of one call, over as many as fill `seconds`."""

    for _ in range(WARM):
        work()
    began = now(device)
    work()
    calls = max(3, round(seconds / max(now(device) - began, 1e-6)))
    began = now(device)
    for _ in range(calls):
        work()
    return (now(device) - began) / calls


def ceilings(device: torch.device, side: int, size: int, seconds: float) -> dict[str, float]:
    """bf16 TFLOP/s of a product of two matrices, GB/s of a copy on the device and of one from
    pinned memory.
    """
    one, two = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    return {
        "matmul_tflops": 2 * side**3 / timed(device, lambda: one @ two, seconds) / 1e12,
        "copy_gb_s": 2 * size / timed(device, lambda: target.copy_(source), seconds) / 1e9,
        "from_host_gb_s": size
        / timed(device, lambda: target.copy_(host, non_blocking=True), seconds)
        / 1e9,
    }


def made(options: argparse.Namespace, packed: Path, batch: int, compiled: bool) -> Run:
    """Everything that `sslkit train` would make, with a bank of the paper's size."""
    count = 500 if options.tiny else PAPER
    overrides = [
        "train.precision=bf16",
        f"train.batch_size={batch}",
        f"train.device={options.device}",
        f"train.compile={str(compiled).lower()}",
        *([f"train.workers={options.workers}"] if options.workers is not None else []),
        *(TINY if options.tiny else ()),
    ]
    build.make_source = lambda chosen, split: Repeated(parts.make(chosen.data, split=split), count)
    return build.build(recipe.read(RECIPE, overrides=overrides, data=str(packed)))


def fixed(run: Run, batch: Batch, finished: bool) -> Run:
    """The same run on one batch again and again, its views `finished` on the device or uint8 in
    pinned memory.
    """
    run = copy.copy(run)
    run.loader = copy.copy(run.loader)
    run.loader.batches = lambda start, stop: itertools.repeat(batch, stop - start)  # type: ignore[method-assign]
    if finished:
        run.transform = copy.copy(run.transform)
        run.transform.on_device = lambda batch, draws: batch  # type: ignore[method-assign]
    return run


def bare(run: Run, views: Sequence[Tensor]) -> None:
    """The encoder's forward and backward pass."""
    encoder = run.method.encoder.train()
    with run.autocast():
        loss = torch.stack([encoder(view).float().square().mean() for view in views]).sum()
    loss.backward()
    encoder.zero_grad(set_to_none=True)


def operations(run: Run, views: Sequence[Tensor]) -> float:
    """Floating-point operations of the two passes for one image, as PyTorch counts them."""
    few = [view[: 2 * len(view) // len(views[0])] for view in views]
    with FlopCounterMode(display=False) as counter:
        bare(run, few)
    return counter.get_total_flops() / 2


def rates(
    run: Run, rounds: int, seconds: float, report: "Report", enough: Callable[[], bool]
) -> None:
    """Measure the four of them, until it is `enough`."""
    device, batch, compiled = run.device, run.loader.batch_size, run.recipe.train.compile
    taken = next(run.loader.batches(0, 1))
    if device.type == "cuda":
        taken = replace(
            taken, views={name: view.pin_memory() for name, view in taken.views.items()}
        )
    finished = run.transform.on_device(taken.to(device), Draws(0))
    crops = [view.flatten(0, 1) if view.dim() == 5 else view for view in finished.views.values()]
    views = [view.contiguous(memory_format=torch.channels_last) for view in crops]
    if not compiled:
        report.known["gflop"] = operations(run, views) / 1e9
    kinds = {
        "step": fixed(run, finished, True),
        "views": fixed(run, taken, False),
        "end to end": run,
    }
    for _ in range(rounds):
        reset(device)
        step = timed(device, lambda: bare(run, views), seconds)
        report.add(compiled, "encoder", batch / step, peak(device), None)
        for what, measured in kinds.items():
            if enough():
                return
            reset(device)
            steps = max(3, round(seconds / step)) * (LOADED if what == "end to end" else 1)
            report.add(compiled, what, *trained(measured, steps))
    if not compiled:
        for what, measured in kinds.items():
            found = profile.measure(measured, max(3, round(seconds / step / 4)))
            report.known["sections"][what] = {
                name: value / found.total for name, value in found.seconds.items()
            }


def trained(run: Run, count: int) -> tuple[float, float | None, float]:
    """Images per second of `count` steps of `sslkit train`, GiB at the most, and the share of the
    time spent waiting for data.
    """
    waited = 0.0

    @contextmanager
    def watch(section: str) -> Iterator[None]:
        nonlocal waited
        began = time.perf_counter()
        yield
        waited += (time.perf_counter() - began) * (section == profile.WAITING)

    run.step = 1
    steps = trainer.train(run, watch)
    for _ in itertools.islice(steps, WARM):
        pass
    waited, began = 0.0, now(run.device)
    for _ in itertools.islice(steps, count):
        pass
    spent = now(run.device) - began
    steps.close()
    return count * run.loader.batch_size / spent, peak(run.device), waited / spent


def reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float | None:
    """GiB."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


class Report:
    """What has been measured so far, as JSON on the disk and as Markdown."""

    def __init__(self, path: Path, known: dict) -> None:
        self.path, self.known = path, known | {"rates": {}, "sections": {}, "notes": []}

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self.known["notes"].append(text)

    def add(
        self, compiled: bool, what: str, rate: float, memory: float | None, waiting: float | None
    ) -> None:
        kind = self.known["rates"].setdefault("compiled" if compiled else "eager", {})
        print(
            f"{'compiled' if compiled else 'eager'}, {what}: {rate:,.1f} images/s",
            file=sys.stderr,
            flush=True,
        )
        if rate > kind.get(what, {}).get("images_per_second", 0):
            kind[what] = {"images_per_second": rate, "peak_gib": memory, "waiting": waiting}
        self.path.write_text(json.dumps(self.known, indent=1))

    def __str__(self) -> str:
        known = self.known
        lines = [
            f"{known['device']}, torch {known['torch']}, {known['cores']} cores; batch "
            f"{known['batch']}, bf16, channels_last; {known['date']}",
            "",
            f"ceilings: {known['matmul_tflops']:.3g} TFLOP/s of a bf16 product, "
            f"{known['copy_gb_s']:,.0f} GB/s copied on the device, "
            f"{known['from_host_gb_s']:,.1f} GB/s from pinned memory; an image costs "
            f"{known['gflop']:.3g} GFLOP",
            "",
            "| | images/s | of the encoder's | of the product's ceiling | peak GiB | waiting for "
            "data |",
            "|---|---|---|---|---|---|",
        ]
        for kind, found in known["rates"].items():
            for what, row in found.items():
                rate, memory, waiting = row["images_per_second"], row["peak_gib"], row["waiting"]
                lines.append(
                    f"| {kind}: {what} | {rate:,.0f} | "
                    f"{100 * rate / found['encoder']['images_per_second']:.1f} % "
                    f"| {rate * known['gflop'] / known['matmul_tflops'] / 10:.1f} % | "
                    f"{'-' if memory is None else f'{memory:.1f}'} "
                    f"| {'-' if waiting is None else f'{100 * waiting:.1f} %'} |"
                )
        names = list(
            dict.fromkeys(name for sections in known["sections"].values() for name in sections)
        )
        lines += [
            "",
            f"| eager, each section waited for | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for what, sections in known["sections"].items():
            lines.append(
                f"| {what} | "
                f"{' | '.join(f'{100 * sections.get(name, 0):.1f} %' for name in names)} |"
            )
        return "\n".join([*lines, "", *known["notes"]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of photographs; drawn ones if left out")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--batch", type=int, default=256, help="images a step; halved until it fits"
    )
    parser.add_argument(
        "--workers", type=int, help="loader processes; as sslkit train chooses if left out"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="begin nothing new after so many"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--eager", action="store_true", help="nothing compiled")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run?")
    options = parser.parse_args()
    began = time.monotonic()
    rounds, seconds, batch = (1, 0.1, 8) if options.tiny else (2, 8.0, options.batch)

    def enough() -> bool:
        return time.monotonic() - began > 60 * options.minutes

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "PyTorch sees no GPU here; to try the command without one: benchmarks/gpu.sh --tiny "
            "--device cpu"
        )
    device = torch.device(options.device)
    known = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "cores": build.auto_workers("cuda"),
        "date": time.strftime("%Y-%m-%d"),
        **ceilings(
            device, 256 if options.tiny else 8192, 2**20 if options.tiny else 2**30, seconds / 4
        ),
    }
    report = Report(options.out, known)
    with tempfile.TemporaryDirectory(prefix="sslkit-gpu-") as home:
        folder, packed = Path(home, "photos"), Path(home, "packed")
        if options.data is None:
            copies(None, 40 if options.tiny else 20_000, folder)
        photos = ImageFolder("train", root=str(options.data or folder))
        Packed.write(
            {"train": photos},
            str(packed),
            short_side=160,
            skip_unreadable=True,
            workers=build.auto_workers("cuda"),
        )
        report.note(f"packed after {time.monotonic() - began:.0f} s")
        for compiled in (False,) if options.eager else (False, True):
            while True:
                if device.type == "cuda":
                    gc.collect()
                    torch.cuda.empty_cache()
                try:
                    report.known["batch"] = batch
                    rates(made(options, packed, batch, compiled), rounds, seconds, report, enough)
                except torch.OutOfMemoryError:
                    report.note(
                        f"{batch} images do not fit into the device's memory; trying {batch // 2}"
                    )
                    report.known["rates"].clear()
                    batch //= 2
                    if batch < 2:
                        sys.exit("not even two images fit into the device's memory")
                    continue
                except Exception as error:
                    if not compiled:
                        raise
                    report.note(f"compiled: {type(error).__name__}: {str(error).splitlines()[0]}")
                break
            if enough():
                report.note(
                    f"stopped after {options.minutes:g} minutes: what is missing was not measured"
                )
                break
    report.note(f"{time.monotonic() - began:.0f} s in all")
    report.path.write_text(json.dumps(report.known, indent=1))
    print(report)


if __name__ == "__main__":
    main()
