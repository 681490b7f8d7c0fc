"""``gelu_and_mul`` by ``torch_npu.npu_geglu``, which activates the right half unless it is told to."""

import torch
import torch_npu
from torch import Tensor

__all__ = ["gelu_and_mul"]


def gelu_and_mul(x: Tensor, approximate: str = "tanh") -> Tensor:
    """See ``sglang_fl.ops.gelu_and_mul``."""
    if x.numel() == 0:
        return torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
    result, _ = torch_npu.npu_geglu(x, -1, int(approximate == "tanh"), True)
    activated: Tensor = result
    return activated
