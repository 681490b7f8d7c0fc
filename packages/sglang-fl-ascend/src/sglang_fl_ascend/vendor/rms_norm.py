"""``rms_norm`` by ``torch_npu.npu_rms_norm`` and ``torch_npu.npu_add_rms_norm``."""

import torch
import torch_npu
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    """See ``sglang_fl.ops.rms_norm``. Nothing is overwritten.

    Raises
    ------
    UnsupportedError : ``weight`` has another dtype than ``x``
    """
    if weight.dtype is not x.dtype:
        raise UnsupportedError(f"npu_rms_norm takes one dtype, not x {x.dtype} and weight {weight.dtype}")
    if x.numel() == 0:
        return torch.empty_like(x) if residual is None else (x, residual)
    rows = x.reshape(-1, x.shape[-1])
    if residual is None:
        normed, _ = torch_npu.npu_rms_norm(rows, weight, eps)
        result: Tensor = normed.view(x.shape)
        return result
    # Three results: the norm, the reciprocal root for a backward pass, the sum.
    normed, _, total = torch_npu.npu_add_rms_norm(rows, residual.reshape(rows.shape), weight, eps)
    return normed.view(x.shape), total.view(x.shape)
