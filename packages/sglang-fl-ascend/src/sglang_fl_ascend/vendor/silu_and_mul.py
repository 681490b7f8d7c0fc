"""``silu_and_mul`` by ``torch_npu.npu_swiglu``."""

import torch
import torch_npu
from torch import Tensor

__all__ = ["silu_and_mul"]


def silu_and_mul(x: Tensor) -> Tensor:
    """See ``sglang_fl.ops.silu_and_mul``."""
    if x.numel() == 0:
        return torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
    result: Tensor = torch_npu.npu_swiglu(x)
    return result
