"""Precision of losses and similarities."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32; other dtypes do not change."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
