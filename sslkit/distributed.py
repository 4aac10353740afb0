"""The only file that knows ranks. One process is a world of one; every function then returns its argument.

With many processes, parameters are kept equal by PyTorch's DistributedDataParallel, memory banks by `gather`: every rank writes
the same rows in the same order.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional as differentiable


def rank() -> int:
    """This process's number among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launched() -> bool:
    """True in a process that `torchrun` started, before it has joined the others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(devices: int, arguments: list[str]) -> int:
    """Run `sslkit` with these arguments in `devices` processes under PyTorch's elastic launcher; its exit code."""
    return subprocess.call(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", "-m", "sslkit", *arguments]
    )


def local_rank() -> int:
    """This process's number on its machine: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started (NCCL on GPUs, gloo elsewhere); nothing to join where there is one."""
    if not launched() or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def gather(rows: Tensor) -> Tensor:
    """[B,…] of every rank → [world·B,…], in the order of ranks, without gradient."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """[B,…] of every rank → [world·B,…]; the gradient of a row is summed over the ranks that used it."""
    return rows if world() == 1 else torch.cat(differentiable.all_gather(rows.contiguous()))


def mean(value: Tensor) -> Tensor:
    """The mean over ranks of a tensor without gradient."""
    if world() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world()


def share(module: torch.nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers (a memory bank averaged over ranks would lose its unit norms)."""
    if world() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, src=0)


def share_text(text: str) -> str:
    """Rank 0's text on every rank."""
    if world() == 1:
        return text
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if it is True on one."""
    if world() == 1:
        return flag
    raised = torch.tensor(float(flag), device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def parallel(method: torch.nn.Module, *, sync_batchnorm: bool, device: torch.device) -> torch.nn.Module:
    """`method` as it is in one process; wrapped so that gradients are the mean over ranks in many.

    Buffers are not broadcast at each forward pass: the memory bank is one, equal on all ranks already, and rank 0's batch-norm
    statistics are the ones that are saved.
    """
    if world() == 1:
        return method
    if sync_batchnorm:
        method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
    method.to(device)
    return torch.nn.parallel.DistributedDataParallel(method, broadcast_buffers=False)
