"""Communication between ranks; the only module that uses torch.distributed.

Without a launcher the world size is 1, and collectives return their argument. With several ranks,
DistributedDataParallel keeps parameters equal. `gather` keeps memory banks equal, since every rank
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
"""Largest number of restarts by `launch` after the loss of a rank."""

PATIENCE = timedelta(minutes=30)
"""Timeout of collectives."""

ENDED = "SSLKIT_ENDED"
"""Environment variable with the path of a file for the exit code of errors without restart."""

FOLDER = "SSLKIT_FOLDER"
"""Environment variable with the folder of a new run, set by `launch`."""

GRACE = 10
"""Time that a rank with the same error waits for the launcher to end it, s."""

_stopped: list[BaseException] = []
"""Signals that ended a launch.

Their tracebacks keep the rendezvous. PyTorch does not shut it down after a signal. Its thread would
fail to join itself if it held the last reference.
"""

_parent = os.getppid()


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launch(devices: int, arguments: list[str], folder: Path | None = None) -> int:
    """Run `sslkit` with these arguments in `devices` ranks on this machine, like `torchrun`.

    Forwards signals to all ranks. After the loss of a rank, restarts all ranks from the last
    checkpoint, at most RESTARTS times. `folder` is the folder in which a new run resumes after a
    restart; None if the arguments name it. An SslkitError ends all ranks. Returns the exit code of
    the first failed rank, or 0.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher's reports would hide the error message of the failed rank.
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
            # `python -m` also imports from the current folder, which may contain other code.
            safe = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
            elastic_launch(config, sys.executable)(*safe, "-m", "sslkit", *arguments)
        except SignalException as stopped:
            _stopped.append(stopped)
            return int(ended.read_text()) if ended.exists() else 128 + stopped.sigval
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            return code if code >= 0 else 128 - code
    return 0


def launched_folder() -> Path | None:
    """Return the folder of a new run that `launch` set, or None."""
    if launched() and ENDED in os.environ and FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    return None


def _end_launcher(code: int) -> None:
    """End the launcher at the exit of this process, because a restart would fail again."""

    def end() -> None:
        Path(os.environ[ENDED]).write_text(str(code))
        os.kill(_parent, signal.SIGTERM)

    if ENDED in os.environ:
        atexit.register(end)


def abandoned() -> bool:
    """Tell whether the launcher of this process has died."""
    return launched() and os.getppid() != _parent


def local_rank() -> int:
    """Return the number of this rank on its machine, the index of its GPU.

    Raises SslkitError if there are several GPUs and the launcher does not set LOCAL_RANK.
    """
    number, gpus = launcher.number("LOCAL_RANK"), torch.cuda.device_count()
    if number is None and launched() and gpus > 1:
        raise SslkitError(
            f"LOCAL_RANK is not set, so this rank cannot select one of {gpus} GPUs; start ranks "
            "with torchrun or `sslkit train --devices N`"
        )
    return number or 0


def _own_part(store: dist.Store, number: int, count: int) -> dist.Store:
    """Return a section of the launcher's store for the ranks of this start only.

    After a restart, the store still has the addresses of dead ranks, and launchers on several
    machines count restarts differently. So every rank stores a unique name, and rank 0 replies to
    these names until all of its ranks have joined.
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
                "the other ranks of this run did not join; check their output, and start all of "
                "them again"
            )
        time.sleep(0.02)


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the process group of this launch, with NCCL on GPUs, else with gloo.

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
            f"cannot reach the other ranks at {printable(where)} ({faults.describe(error)}); "
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
                # The first failed rank ends the launcher, which must not see this exit before.
                time.sleep(GRACE)
            raise SystemExit(2) from error
        if lost:
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
            raise LostProcess(
                f"another rank of this run was lost ({reason}); unless the launcher restarts all "
                "ranks now, start the same command again, with --run DIR"
            ) from error
        if isinstance(error, SslkitError):
            _end_launcher(2)
        raise
    dist.destroy_process_group()


def _first_to_fail(store: dist.Store, number: int) -> int:
    """Return the rank that failed first; rank 0, which owns the store, if the store is gone."""
    try:
        return int(store.compare_set("failed", "", str(number)))
    except RuntimeError:
        return 0


def gather(rows: Tensor) -> Tensor:
    """[B,…] of every rank → [world·B,…], in the order of ranks, without gradient."""
    if world() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """[B,…] of every rank → [world·B,…]; sums the gradients of a row over all ranks."""
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
    """Wait for all ranks."""
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
    """Copy the values of rank 0 to all ranks; a mean of banks would not have unit norm."""
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
    """Return a context for a micro-batch, which averages gradients over ranks after the last one.

    It encloses the forward and the backward pass.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


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
    """Return `method`, wrapped to average gradients if there are several ranks.

    Does not broadcast buffers in forward passes: memory banks are equal on all ranks, and
    checkpoints have the batch-norm statistics of rank 0.
    """
    if world() == 1:
        return method
    if sync_batchnorm:
        # PyTorch's function would drop the activations of timm's batch norms.
        from timm.layers import convert_sync_batchnorm

        method = convert_sync_batchnorm(method)
    method.to(device)
    with warnings.catch_warnings():
        # The oldest supported PyTorch lacks the new name of the option.
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.parallel.DistributedDataParallel(
            method,
            broadcast_buffers=False,
            find_unused_parameters=not uses_every_parameter,
        )


def largest(number: Tensor) -> int:
    """Return the maximum over ranks of a scalar."""
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
