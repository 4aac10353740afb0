"""Similarities with negatives of a memory bank: time and peak memory, and how both grow with the
bank and with the draws.

    python benchmarks/negatives.py                      # CPU: banks of 10³ … 10⁷ rows, 64
    images, 4,096 negatives to each and term
    python benchmarks/negatives.py --device cuda        # GPU: the paper's 32,000 negatives, 256
    images, ImageNet's 1,281,167 rows too
    python benchmarks/negatives.py --step resnet50      # the share that memory and loss take of
    a PIRL-jigsaw step
    torchrun --nproc-per-node 2 benchmarks/negatives.py # a bank spread over processes beside one
    that each of them holds

Compared are `ours` (rows gathered in chunks or products with the whole bank, whichever
`memory_bank` takes), the `naive` gather of all
T·B·M rows at once (bank.index_select, then a batched product, as the official code does), and
negatives `shared` by the batch
(`draws: batch`). Forward and backward pass in turn, way by way; the fastest of `--repeats`
counts. Peak memory is what a pass needs
beside the bank, the queries and the draws: on a CPU by the resident set of a forked process
(Linux), on a GPU by PyTorch's allocator.
"""

import argparse
import ctypes
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Batch, Draws, Parts, Progress
from sslkit_plugins import samplers
from sslkit_plugins.encoders import Timm
from sslkit_plugins.heads import ConcatPatches, Linear
from sslkit_plugins.losses import LambdaNCE
from sslkit_plugins.methods.pirl import Pirl
from sslkit_plugins.samplers import BankNegatives, MemoryBank

IMAGENET = 1_281_167


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, nargs="+", help="rows of the banks")
    parser.add_argument(
        "--negatives",
        type=int,
        nargs="+",
        help="draws of the second table; the first takes the default of the device",
    )
    parser.add_argument("--images", type=int, help="images of a batch")
    parser.add_argument(
        "--memory",
        type=float,
        default=10,
        help="GiB that a bank or a gather may take; what needs more is left out",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--step", metavar="MODEL", help="time a training step with this encoder of timm instead"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=224,
        help="pixels of the images of that step; patches take 2/7 of it",
    )
    options = parser.parse_args()
    large = options.device == "cuda" or options.step is not None
    options.images = options.images or (256 if options.device == "cuda" else 64)
    options.draws = 32_000 if large else 4_096
    if options.negatives:
        options.draws = options.negatives[-1]
    options.negatives = options.negatives or (
        [1_000, 4_096, 16_384, 65_536] if large else [256, 1_024, 4_096, 16_384]
    )
    if options.step is not None:
        options.rows = options.rows or [IMAGENET]
    options.rows = options.rows or [10**3, 10**4, 50_000, 10**5, 10**6, *[IMAGENET] * large, 10**7]
    return options


class Timer:
    """Seconds of device work; of one thread on a CPU, so that other programs do not count."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def passes(self, work: Callable[[Tensor], Tensor], query: Tensor) -> tuple[float, float]:
        """Seconds of a forward and of a backward pass."""
        leaf = query.clone().requires_grad_()
        began = self.now()
        scores = work(leaf)
        middle = self.now()
        scores.backward(scores.detach())
        return middle - began, self.now() - middle


def peak(work: Callable[[Tensor], Tensor], query: Tensor, device: str) -> float:
    """MiB that a forward and backward pass takes beside what was there."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        Timer(device).passes(work, query)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def enter() -> None:
        small = torch.ones(2, 1, 128), torch.zeros(2, 1, 4, dtype=torch.int64), torch.ones(99, 128)
        for code in (
            BankNegatives(small[2], small[1], None).similarity,
            partial(naive, small[2], small[1]),
        ):
            Timer(device).passes(code, small[0])
        # Memory that is free but still the process's own would be used again without being seen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        Timer(device).passes(work, query)
        send.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)

    process = context.Process(target=enter)
    process.start()
    found = receive.recv()
    process.join()
    return found


def best(
    ways: dict[str, Callable[[Tensor], Tensor]], query: Tensor, options: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Milliseconds of forward and backward pass of each way, tried in turn."""
    timer, found = Timer(options.device), {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, work in ways.items():
            found[name].append(timer.passes(work, query))
    return {
        name: min((1e3 * ahead, 1e3 * back) for ahead, back in times)
        for name, times in found.items()
    }


def naive(bank: Tensor, picks: Tensor, query: Tensor) -> Tensor:
    rows = bank.index_select(0, picks.flatten()).unflatten(0, (-1, picks.shape[-1]))
    return torch.bmm(rows, query.reshape(-1, query.shape[-1], 1)).view(picks.shape)


def forced(gather: float, bank: Tensor, picks: Tensor, query: Tensor) -> Tensor:
    """Ours with another price of a gathered row: 0 gathers always, infinity never; the backward
    pass runs inside, at the same price.
    """
    kept = samplers.COSTS[bank.device.type]
    samplers.COSTS[bank.device.type] = kept._replace(gather=gather)
    leaf = query.detach().requires_grad_()
    with torch.enable_grad():
        scores = BankNegatives(bank, picks, None).similarity(leaf)
        scores.backward(scores.detach())
    samplers.COSTS[bank.device.type] = kept
    return scores


def problem(
    rows: int, negatives: int, options: argparse.Namespace, dtype: str = "float32"
) -> tuple[MemoryBank, Tensor, Tensor]:
    """A bank, queries [2,B,128] of unit norm and draws [2,B,M]."""
    torch.manual_seed(0)
    bank = MemoryBank(128, rows, negatives=negatives, dtype=dtype).to(options.device)
    query = F.normalize(torch.randn(2, options.images, 128, device=options.device), dim=-1)
    index = torch.arange(options.images, device=options.device) % rows
    return bank, query, bank.draw(index, Draws(0), terms=2).picks


HEAD = f"{'rows':>10} {'draws':>7} | " + " | ".join(
    f"{name:>6}: {'fwd':>8} {'bwd':>8} ms {'MiB':>8}" for name in ("ours", "naive", "shared")
)


def compare(rows: int, negatives: int, options: argparse.Namespace) -> None:
    """One line of the first two tables."""
    wanted = {"bank": 512 * rows, "naive": 3 * 2 * options.images * negatives * 512}
    if wanted["bank"] > options.memory * 2**30:
        print(
            f"{rows:>10,} {negatives:>7,} | left out: the bank alone takes "
            f"{wanted['bank'] / 2**30:.1f} GiB"
        )
        return
    bank, query, picks = problem(rows, negatives, options)
    ways = {
        "ours": BankNegatives(bank.bank, picks, None).similarity,
        "naive": partial(naive, bank.bank, picks),
        "shared": BankNegatives(bank.bank, picks[0, 0], None).similarity,
    }
    if wanted["naive"] > options.memory * 2**30:
        del ways["naive"]
    taken = {name: peak(work, query, options.device) for name, work in ways.items()}
    times = best(ways, query, options)
    cells = [
        f"{'':>7} {times[name][0]:8.1f} {times[name][1]:8.1f} {'':2} {taken[name]:8.1f}"
        if name in ways
        else f"{'too large':>37}"
        for name in ("ours", "naive", "shared")
    ]
    ratio = (
        f" | naive/ours {sum(times['naive']) / sum(times['ours']):5.1f}" if "naive" in ways else ""
    )
    print(f"{rows:>10,} {negatives:>7,} | " + " | ".join(cells) + ratio, flush=True)


def choose(options: argparse.Namespace) -> None:
    """Both of our ways about where they cost the same: what `samplers.COSTS` should say."""
    print(
        "\nrows / draws |   gathered   products ms, forward + backward |  gathering a row : a dot "
        "product of the matrix product"
    )
    for ratio in (2, 8, 16, 32, 64, 128):
        rows = ratio * options.draws
        if 512 * rows > options.memory * 2**30:
            break
        bank, query, picks = problem(rows, options.draws, options)
        ways = {
            "gathered": partial(forced, 0.0, bank.bank, picks),
            "products": partial(forced, float("inf"), bank.bank, picks),
        }
        timer, times = Timer(options.device), {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, work in ways.items():
                began = timer.now()
                work(query)
                times[name].append(timer.now() - began)
        gathered, products = (min(seconds) for seconds in times.values())
        price = gathered / options.draws / (products / rows)
        print(
            f"{ratio:>12} | {1e3 * gathered:10.1f} {1e3 * products:10.1f} {'':22} | {price:6.1f}",
            flush=True,
        )
    print(
        "`memory_bank` takes products where rows / draws ≤ 1 + "
        f"{samplers.COSTS[options.device].gather:g}"
    )


def half(options: argparse.Namespace) -> None:
    """What half precision saves and costs: time, memory, and the change of PIRL's loss (τ = 0.07)
    and of its gradient.
    """
    rows = min(max(options.rows), 10**6)
    print(
        f"\n{rows:,} rows kept as |  bank MiB   fwd + bwd ms | change of the loss, of its "
        "gradient: official, paper, info_nce"
    )
    exact: list[tuple[float, Tensor, Tensor]] = []
    for dtype in ("float32", "float16", "bfloat16"):
        bank, query, picks = problem(rows, options.draws, options, dtype)
        milliseconds = sum(
            best({"ours": BankNegatives(bank.bank, picks, None).similarity}, query, options)["ours"]
        )
        found = []
        for form in ("official", "paper", "info_nce"):
            own = torch.arange(options.images, device=options.device) % rows
            prediction = (
                (exact[0][2] if exact else query + bank.recall(own)).detach().requires_grad_()
            )
            value = LambdaNCE(form=form).to(options.device)(
                prediction, bank.recall(own), BankNegatives(bank.bank, picks, own)
            )
            found.append((value.item(), torch.autograd.grad(value, prediction)[0], prediction))
        exact = exact or found
        changes = [
            f"{abs(value / one - 1):.0e}, {((slope - other).norm() / other.norm()).item():.0e}"
            for (value, slope, _), (one, other, _) in zip(found, exact, strict=True)
        ]
        size = bank.bank.numel() * bank.bank.element_size() / 2**20
        print(f"{dtype:>22} | {size:9.1f} {milliseconds:14.1f} | " + "; ".join(changes), flush=True)


def step(options: argparse.Namespace) -> None:
    """The share of a PIRL-jigsaw step: draws, memory, similarities, loss and update, beside the
    step with all of it.
    """
    device, timer = torch.device(options.device), Timer(options.device)
    torch.manual_seed(0)
    sizes = (options.size, round(options.size * 2 / 7))
    encoder, rows = Timm(sizes, 3, model=options.step), options.rows[0]
    heads = {
        "image": Linear(encoder.dim, out_dim=128),
        "patches": ConcatPatches(encoder.dim, 9, out_dim=128),
    }
    sampler = MemoryBank(128, rows, negatives=options.draws)
    method = (
        Pirl(Parts(encoder, heads, {"image": sampler}, LambdaNCE(), rows))
        .to(device)
        .to(memory_format=torch.channels_last)
    )
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    patch = round(options.size * 2 / 7)
    index = torch.arange(options.images, device=device) % rows
    views = {
        "image": torch.randn(options.images, 3, options.size, options.size, device=device),
        "patches": torch.randn(options.images, 9, 3, patch, patch, device=device),
    }
    batch, outputs = Batch(views, {}, index), torch.randn(2, options.images, 128, device=device)
    low = torch.cuda.is_bf16_supported() if device.type == "cuda" else False

    def whole(number: int) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            output = method(batch, Progress(number, 9, 0, 1, Draws(number)))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            method.after_step(index, output.keep, Progress(number, 9, 0, 1, Draws(number)))

    def memory(number: int) -> None:
        prediction = outputs.clone().requires_grad_()
        method.loss(
            prediction, sampler.recall(index), sampler.draw(index, Draws(number), terms=2)
        ).backward()
        sampler.update(index, prediction[1].detach())

    times: dict[str, list[float]] = {"memory": [], "whole": []}
    for number in range(options.repeats + 2):
        for name, work in (("memory", memory), ("whole", whole)):
            began = timer.now()
            work(number)
            times[name].append(timer.now() - began)
    part, all_of_it = (1e3 * median(seconds[2:]) for seconds in times.values())
    print(
        f"PIRL-jigsaw, {options.step}, {options.images} images of {options.size} px, bank of "
        f"{rows:,} × 128, {options.draws:,} negatives"
    )
    print(
        f"step {all_of_it:.1f} ms, of which memory, negatives and loss {part:.1f} ms: "
        f"{100 * part / all_of_it:.1f} % (goal: at most 3 %)"
    )


def spread(options: argparse.Namespace) -> None:
    """The same draws of every process against a bank that each holds and against one of which each
    holds a part.
    """
    device = (
        torch.device("cuda", distributed.local_rank())
        if options.device == "cuda"
        else torch.device("cpu")
    )
    with distributed.joined(device):
        rank, world = distributed.rank(), distributed.world()
        tell = print if rank == 0 else (lambda *_, **__: None)
        tell(
            f"{world} processes of {options.images} images, {options.draws:,} negatives; ms of "
            "one process, fwd and bwd"
        )
        tell(
            f"{'rows':>10} | {'replicated':>17} | {'spread':>17} | ratio | MiB of the bank in a "
            "process: replicated, spread"
        )
        for rows in options.rows:
            if 512 * rows > options.memory * 2**30:
                continue
            index = (torch.arange(options.images) + rank * options.images).to(device) % rows
            query = F.normalize(torch.randn(2, options.images, 128), dim=-1).to(device)
            ways, sizes = {}, []
            for shards in ("none", "auto"):
                torch.manual_seed(0)
                bank = MemoryBank(128, rows, negatives=options.draws, shards=shards).to(device)
                ways[shards] = bank.draw(
                    index, Draws(0, rank=rank, world=world), terms=2
                ).similarity
                sizes.append(f"{bank.bank.numel() * 4 / 2**20:8.1f}")
            times = best(ways, query, options)
            cells = " | ".join(f"{ahead:8.1f} {back:8.1f}" for ahead, back in times.values())
            tell(
                f"{rows:>10,} | {cells} | {sum(times['auto']) / sum(times['none']):5.2f} | "
                f"{' '.join(sizes)}",
                flush=True,
            )


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    if distributed.launched():
        spread(options)
        return
    where = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{platform.processor() or platform.machine()}, one thread"
    )
    print(
        f"torch {torch.__version__} on {where}; {options.images} images, 2 terms, 128 numbers a "
        "row, float32"
    )
    if options.step is not None:
        step(options)
        return
    print(f"\nThe bank grows\n{HEAD}")
    for rows in options.rows:
        compare(rows, options.draws, options)
    print(f"\nThe draws grow\n{HEAD}")
    for negatives in options.negatives:
        compare(min(max(options.rows), 10**6), negatives, options)
    choose(options)
    half(options)


if __name__ == "__main__":
    main()
