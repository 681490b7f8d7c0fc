"""``rms_norm`` by ``torch_mlu_ops.fused_rms_norm``."""

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs
from sglang_fl_mlu.library import function

__all__ = ["rms_norm"]

fused_rms_norm = function("fused_rms_norm")


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    """See ``sglang_fl.ops.rms_norm``. Nothing is overwritten.

    Raises
    ------
    UnsupportedError : ``weight`` has another dtype than ``x``
    """
    if weight.dtype is not x.dtype:
        raise UnsupportedError(f"fused_rms_norm takes one dtype, not x {x.dtype} and weight {weight.dtype}")
    if x.numel() == 0:
        return torch.empty_like(x) if residual is None else (x, residual)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if residual is None:
        result: Tensor = fused_rms_norm(rows, None, weight, None, None, eps, False)
        return result.view(x.shape)
    added = residual.reshape(rows.shape).contiguous()
    normed, total = fused_rms_norm(rows, added, weight, None, None, eps, True)
    return normed.view(x.shape), total.view(x.shape)
