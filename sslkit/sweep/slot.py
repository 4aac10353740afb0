"""Shares the devices of this machine among the cells that run at the same time."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Slot:
    """A place for one cell at a time."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of its processes."""
    workers: int | None = None
    """Loader workers of a recipe that leaves them to the machine; None keeps its rule."""


def slots(jobs: int | None, device: str, gpus: int) -> list[Slot]:
    """Return `jobs` slots: by default one for each GPU, or one on a CPU.

    `device` is the recipe's train.device, `gpus` the number of GPUs. The slots share the GPUs in
    turn; on a CPU they share its threads, or those of OMP_NUM_THREADS. They share the loader
    workers.
    """
    cores = _cores()
    if device in ("auto", "cuda") and gpus:
        count = gpus if jobs is None else jobs
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if len(visible) >= gpus else [str(number) for number in range(gpus)]
        workers = None if count == 1 else max(1, min(16, cores // count))
        return [_gpu(names[number % gpus].strip(), workers) for number in range(count)]
    count = 1 if jobs is None else jobs
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, (int(given) if given.isdecimal() else cores) // count)
    workers = None if count == 1 else cores // count // 2
    name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return [Slot(name, {"OMP_NUM_THREADS": str(threads)}, workers) for _ in range(count)]


def _gpu(name: str, workers: int | None) -> Slot:
    return Slot(f"GPU {name}", {"CUDA_VISIBLE_DEVICES": name}, workers)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def work_at(
    slots: Sequence[Slot],
    work: Callable[[Slot], None],
    stopped: Callable[[], bool],
    stop: threading.Event,
) -> None:
    """Run `work(slot)` in a thread for each slot, until all return or `stopped()`.

    Sets `stop` at the end, also after an exception of `work`, which is raised.
    """
    with futures.ThreadPoolExecutor(len(slots)) as pool:
        try:
            running = {pool.submit(work, slot) for slot in slots}
            while running and not stopped():
                ended, running = futures.wait(running, 0.2, futures.FIRST_EXCEPTION)
                for one in ended:
                    one.result()
        finally:
            stop.set()
