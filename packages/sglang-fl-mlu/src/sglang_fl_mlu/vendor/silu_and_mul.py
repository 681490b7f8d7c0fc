"""``silu_and_mul`` by ``torch_mlu_ops.active``."""

import torch
from torch import Tensor

from sglang_fl_mlu.library import function

__all__ = ["silu_and_mul"]

active = function("active")


def silu_and_mul(x: Tensor) -> Tensor:
    """See ``sglang_fl.ops.silu_and_mul``."""
    if x.numel() == 0:
        return torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
    result: Tensor = active(x.contiguous(), "silu", True)
    return result
