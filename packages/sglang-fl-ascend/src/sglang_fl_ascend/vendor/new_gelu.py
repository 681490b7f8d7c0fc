"""``new_gelu`` by ``torch_npu.npu_gelu``."""

import torch
import torch_npu
from torch import Tensor

__all__ = ["new_gelu"]


def new_gelu(x: Tensor) -> Tensor:
    """See ``sglang_fl.ops.new_gelu``."""
    if x.numel() == 0:
        return torch.empty_like(x)
    result: Tensor = torch_npu.npu_gelu(x, approximate="tanh")
    return result
