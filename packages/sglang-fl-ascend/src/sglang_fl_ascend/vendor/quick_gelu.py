"""``quick_gelu`` by ``torch_npu.npu_fast_gelu``, which is that, whatever its name says.

Its two formulas, for older chips and for newer ones, are the same function.
"""

import torch
import torch_npu
from torch import Tensor

__all__ = ["quick_gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """See ``sglang_fl.ops.quick_gelu``."""
    if x.numel() == 0:
        return torch.empty_like(x)
    result: Tensor = torch_npu.npu_fast_gelu(x)
    return result
