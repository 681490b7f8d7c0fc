"""``new_gelu`` by ``flag_gems.gelu`` in its approximation by the hyperbolic tangent."""

import flag_gems
import torch
from torch import Tensor

__all__ = ["new_gelu"]


def new_gelu(x: Tensor) -> Tensor:
    """See ``sglang_fl.ops.new_gelu``."""
    if x.numel() == 0:
        return torch.empty_like(x)
    result: Tensor = flag_gems.gelu(x, approximate="tanh")
    return result
