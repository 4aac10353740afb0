"""Ranks: the only file that knows torch.distributed.

One process is a world of one; every function then returns its argument. With several ranks,
DistributedDataParallel keeps parameters equal, and `gather` keeps memory banks equal: every rank
writes the same rows in the same order.
"""

import atexit
import logging
import os
import re
import signal
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslkit import faults, launcher
from sslkit.errors import LostProcess, SslkitError, printable
from sslkit.launcher import launched

RESTARTS = 3
"""How often `launch` starts all ranks again where one was lost."""

PATIENCE = timedelta(minutes=30)
"""How long ranks wait for each other."""

ENDED = "SSLKIT_ENDED"
"""The environment variable that names a file. `launch` finds in it the exit code of an error that
no restart can mend."""

FOLDER = "SSLKIT_FOLDER"
"""The environment variable in which `launch` passes on the folder of a new run."""

GRACE = 10
"""Seconds that a rank with the same fault waits to be ended by the launcher."""

_parent = os.getppid()


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return how many ranks train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launch(devices: int, arguments: list[str], folder: Path | None = None) -> int:
    """Run `sslkit` with these arguments in `devices` ranks on this machine, as `torchrun` would.

    Passes signals on to all ranks. Where one is lost, starts all again from the last checkpoint,
    RESTARTS times at most. `folder` is where a new run goes on after a restart; None where the
    arguments name it. An SslkitError ends all ranks at once. Returns the exit code of the first
    rank that failed, else 0.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Its reports on a rank that failed would bury the sentence that the rank has printed.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RESTARTS,
        monitor_interval=0.1,
    )
    with tempfile.TemporaryDirectory(prefix="sslkit-") as place:
        ended = Path(place) / "exit"
        os.environ[ENDED] = str(ended)
        if folder is not None:
            os.environ[FOLDER] = str(folder)
        try:
            # `python -m` would also import from the current folder, which may hold foreign code.
            safe = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
            elastic_launch(config, sys.executable)(*safe, "-m", "sslkit", *arguments)
        except SignalException as stopped:
            return int(ended.read_text()) if ended.exists() else 128 + stopped.sigval
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            return code if code >= 0 else 128 - code
    return 0


def launched_folder() -> Path | None:
    """Return the folder that `launch` has chosen for a new run; None without it."""
    if launched() and ENDED in os.environ and FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    return None


def _end_launcher(code: int) -> None:
    """End the launcher when this process exits, after printing the error: no restart mends it."""

    def end() -> None:
        Path(os.environ[ENDED]).write_text(str(code))
        os.kill(_parent, signal.SIGTERM)

    if ENDED in os.environ:
        atexit.register(end)


def abandoned() -> bool:
    """Return whether the launcher of this process is gone, and nothing would end it any more."""
    return launched() and os.getppid() != _parent


def local_rank() -> int:
    """Return the number of this rank on its machine: the index of its GPU.

    Raises SslkitError where several GPUs are there and the launcher does not say which to take.
    """
    number, gpus = launcher.number("LOCAL_RANK"), torch.cuda.device_count()
    if number is None and launched() and gpus > 1:
        raise SslkitError(
            f"LOCAL_RANK does not say which of {gpus} GPUs this rank takes; start ranks with "
            "torchrun or `sslkit train --devices N`"
        )
    return number or 0


def _own_part(store: dist.Store, number: int, count: int) -> dist.Store:
    """Return a part of the launcher's store that only the ranks of this start use.

    The store outlives a restart and still holds the addresses of dead ranks, and launchers on
    several machines do not count restarts alike. So every rank stores a unique name, and rank 0
    replies to these names until all of its ranks have joined.
    """
    name = uuid.uuid4().hex
    if number > 0:
        store.set(f"sslkit/rank {number}", name)
        _wait_until(lambda: store.check([f"sslkit/{name}"]))
        start = store.get(f"sslkit/{name}").decode()
        store.add(f"sslkit/{start}", 1)
        return dist.PrefixStore(start, store)

    def all_came() -> bool:
        for other in range(1, count):
            if store.check([f"sslkit/rank {other}"]):
                store.set(f"sslkit/{store.get(f'sslkit/rank {other}').decode()}", name)
        return store.add(f"sslkit/{name}", 0) == count - 1

    _wait_until(all_came)
    return dist.PrefixStore(name, store)


def _wait_until(done: Callable[[], bool]) -> None:
    """Wait until `done()`. Raises LostProcess after PATIENCE."""
    until = time.monotonic() + PATIENCE.total_seconds()
    while not done():
        if time.monotonic() > until:
            raise LostProcess(
                "the other ranks of this run did not come; look at what they printed, and start "
                "all of them again"
            )
        time.sleep(0.02)


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the ranks that were launched together, by NCCL on GPUs and gloo elsewhere.

    The first rank that fails reports its error. The others, which lost a partner or had the same
    error, exit without a message. Does nothing for a single process.
    """
    launcher.check()
    if not launched() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        shared, number, count = next(dist.rendezvous("env://"))
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise SslkitError(
            f"cannot meet the other ranks at {printable(where)} ({faults.describe(error)}); "
            "MASTER_ADDR and MASTER_PORT must name the machine of rank 0 and a free port of it"
        ) from error
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = _own_part(shared, number, count)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(backend, store),
        rank=number,
        world_size=count,
        timeout=PATIENCE,
    )
    try:
        yield
        dist.barrier()
    except Exception as error:
        # No collectives on the error path: other ranks may never join.
        lost = faults.lost(error)
        if _first_to_fail(store, number) != number:
            if isinstance(error, SslkitError) and ENDED in os.environ:
                # The first one ends the launcher, which must not see this exit before that.
                time.sleep(GRACE)
            raise SystemExit(2) from error
        if lost:
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
            raise LostProcess(
                f"another process of this run was lost ({reason}); where the launcher does not "
                "start all of them again by itself, go on with: sslkit train --resume RUN"
            ) from error
        if isinstance(error, SslkitError):
            _end_launcher(2)
        raise
    dist.destroy_process_group()


def _first_to_fail(store: dist.Store, number: int) -> int:
    """Return the rank that failed first; rank 0 where the store is gone, since it held it."""
    try:
        return int(store.compare_set("failed", "", str(number)))
    except RuntimeError:
        return 0


def gather(rows: Tensor) -> Tensor:
    """[B,…] of every rank → [world·B,…], in the order of ranks, without gradient."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """[B,…] of every rank → [world·B,…]; sums the gradient of a row over the ranks that used it."""
    return rows if world() == 1 else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world())[rank()]


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        dist.barrier()


def mean(value: Tensor) -> Tensor:
    """Return the mean over ranks of a tensor without gradient."""
    if world() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world()


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every rank rank 0's values. A mean of memory banks would lose their unit norms."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


def broadcast_text(text: str) -> str:
    """Return rank 0's text on every rank."""
    if world() == 1:
        return text
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )
    letters = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8)
    length = torch.tensor(len(letters), device=device)
    dist.broadcast(length, src=0)
    box = (
        letters.to(device)
        if rank() == 0
        else torch.empty(int(length), dtype=torch.uint8, device=device)
    )
    dist.broadcast(box, src=0)
    return bytes(box.tolist()).decode()[:-1]


def summing(model: torch.nn.Module, last: bool) -> AbstractContextManager:
    """Average gradients over ranks at the last micro-batch only.

    Use it around the forward and backward pass of a micro-batch.
    """
    return (
        model.no_sync()
        if isinstance(model, torch.nn.parallel.DistributedDataParallel) and not last
        else nullcontext()
    )


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return True on every rank if `flag` is True on one."""
    if world() == 1:
        return flag
    raised = torch.tensor(float(flag), device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def parallel(
    method: torch.nn.Module,
    *,
    sync_batchnorm: bool,
    device: torch.device,
    uses_every_parameter: bool = True,
) -> torch.nn.Module:
    """Return `method`, wrapped with several ranks so that gradients are the mean over ranks.

    Buffers are not broadcast at each forward pass: memory banks are equal on all ranks already, and
    rank 0's batch-norm statistics are the ones that are saved.
    """
    if world() == 1:
        return method
    if sync_batchnorm:
        # PyTorch's own function would drop the activations that timm's batch norms hold.
        from timm.layers import convert_sync_batchnorm

        method = convert_sync_batchnorm(method)
    method.to(device)
    with warnings.catch_warnings():
        # The option's new name is not in the oldest PyTorch that we support.
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.parallel.DistributedDataParallel(
            method,
            broadcast_buffers=False,
            find_unused_parameters=not uses_every_parameter,
        )


def largest(number: Tensor) -> int:
    """Return the largest of the ranks' numbers."""
    if world() == 1:
        return int(number.item())
    found = number.clone()
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found.item())


def exchange(rows: Tensor) -> Tensor:
    """Exchange rows between all ranks: [world·B,…] → [world·B,…], with gradients.

    Block i of B rows goes to rank i. The result has the blocks for this rank in rank order.
    """
    return rows if world() == 1 else _Exchange.apply(rows)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        received = torch.empty_like(rows, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, rows.contiguous())
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Exchange.forward(ctx, gradient)
