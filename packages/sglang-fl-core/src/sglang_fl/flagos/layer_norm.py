"""``layer_norm`` by ``flag_gems.layer_norm``."""

import flag_gems
import torch
from torch import Tensor

__all__ = ["layer_norm"]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See ``sglang_fl.ops.layer_norm``."""
    if x.numel() == 0:
        return torch.empty_like(x)
    # FlagGems also returns mean and scale of each row, for a backward pass.
    result: Tensor = flag_gems.layer_norm(x, [x.shape[-1]], weight, bias, eps)[0]
    return result
