"""Selects device and precision by name."""

import torch

from sslkit import distributed
from sslkit.errors import Fault, RecipeError


def pick_device(name: str) -> torch.device:
    """Return a device by name; `auto` selects this rank's GPU, else Apple's, else the CPU.

    Raises RecipeError if the machine does not have the device.
    """
    exists = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    available = [kind for kind, found in exists.items() if found]
    if name == "auto":
        name = available[0]
    if name not in available:
        message = f"this machine has no '{name}' device; use auto or one of: {', '.join(available)}"
        raise RecipeError(Fault("train.device", message))
    if name != "cuda":
        return torch.device(name)
    number, count = distributed.local_rank(), torch.cuda.device_count()
    if number >= count:
        raise RecipeError(
            Fault(
                "train.device",
                f"this machine has {count} GPUs, too few for one per rank; start at most {count} "
                "ranks",
            )
        )
    return torch.device(name, number)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return a dtype by name; `auto` selects bfloat16 if the hardware supports it, else float32."""
    fast = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }.get(device.type, lambda: False)
    if name == "auto":
        name = "bf16" if fast() else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
