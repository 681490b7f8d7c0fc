"""``gemma_rms_norm`` by ``torch_npu.npu_gemma_rms_norm``.

There is no operator that adds a residual first and takes a weight around zero. Rounding ``1 + weight`` for
``npu_add_rms_norm``, as SGLang does, costs more than the contract allows; so the sum is normed in float32.
"""

import torch
import torch_npu
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl_ascend.vendor.products import require

__all__ = ["gemma_rms_norm"]

require("npu_gemma_rms_norm")


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    """See ``sglang_fl.ops.gemma_rms_norm``. Nothing is overwritten."""
    if x.numel() == 0:
        return torch.empty_like(x) if residual is None else (x, residual)
    rows = x.reshape(-1, x.shape[-1])
    if residual is None and weight.dtype is x.dtype:
        return _normed(rows, weight, eps).view(x.shape)
    total = rows.to(torch.float32)
    if residual is not None:
        total = total + residual.reshape(rows.shape)
    normed = _normed(total, weight.to(torch.float32), eps).to(x.dtype).view(x.shape)
    return normed if residual is None else (normed, total.to(x.dtype).view(x.shape))


def _normed(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed, _ = torch_npu.npu_gemma_rms_norm(rows.contiguous(), weight.contiguous(), eps)
    result: Tensor = normed
    return result
