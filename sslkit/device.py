"""Devices and number formats by name."""

import torch

from sslkit import distributed
from sslkit.errors import Fault, RecipeError


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU of this process where there is one, Apple's next, else the CPU."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        usable = ", ".join(kind for kind, there in available.items() if there)
        raise RecipeError(
            Fault(
                "train.device", f"this machine has no '{name}' device; use auto or one of: {usable}"
            )
        )
    if name != "cuda":
        return torch.device(name)
    number, count = distributed.local_rank(), torch.cuda.device_count()
    if number >= count:
        raise RecipeError(
            Fault(
                "train.device",
                f"this machine has {count} GPUs, too few for one to each process; start at most "
                f"{count}",
            )
        )
    return torch.device(name, number)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it, else float32."""
    fast = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }.get(device.type, lambda: False)
    if name == "auto":
        name = "bf16" if fast() else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
