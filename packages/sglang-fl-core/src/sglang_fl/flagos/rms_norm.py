"""``rms_norm`` by ``flag_gems.rms_norm`` and ``flag_gems.fused_add_rms_norm``."""

import flag_gems
import torch
from torch import Tensor

from sglang_fl.ops import Outputs, unshared

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    """See ``sglang_fl.ops.rms_norm``. Dense ``x`` and ``residual`` are overwritten if both are given.

    Each only where its memory is its own.
    """
    if x.numel() == 0:
        return torch.empty_like(x) if residual is None else (x, residual)
    shape = list(weight.shape)
    result: Outputs
    if residual is None:
        result = flag_gems.rms_norm(x, shape, weight, eps)
    else:
        x, residual = unshared(x, weight, residual), unshared(residual, weight, x)
        # Of a strided tensor FlagGems writes a copy, so only what it returns counts.
        result = flag_gems.fused_add_rms_norm(x, residual, shape, weight, eps)
    return result
