"""``layer_norm`` by ``torch_mlu_ops.fused_layer_norm``."""

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl_mlu.library import function

__all__ = ["layer_norm"]

fused_layer_norm = function("fused_layer_norm")


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See ``sglang_fl.ops.layer_norm``.

    Raises
    ------
    UnsupportedError : weight or bias has another dtype than ``x``, or there is a bias and no weight
    """
    if any(t is not None and t.dtype is not x.dtype for t in (weight, bias)):
        raise UnsupportedError(f"fused_layer_norm takes one dtype, {x.dtype}, also for weight and bias")
    if weight is None and bias is not None:
        raise UnsupportedError("fused_layer_norm is not called with a bias and no weight")
    if x.numel() == 0:
        return torch.empty_like(x)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    result: Tensor = fused_layer_norm(rows, None, weight, bias, None, eps, False)
    return result.view(x.shape)
