"""``quick_gelu`` by ``torch_mlu_ops.active``."""

import torch
from torch import Tensor

from sglang_fl_mlu.library import function

__all__ = ["quick_gelu"]

active = function("active")


def quick_gelu(x: Tensor) -> Tensor:
    """See ``sglang_fl.ops.quick_gelu``."""
    if x.numel() == 0:
        return torch.empty_like(x)
    result: Tensor = active(x.contiguous(), "quick_gelu", False)
    return result
