"""``layer_norm`` by ``torch_npu.npu_layer_norm_eval``."""

import torch
import torch_npu
from torch import Tensor

from sglang_fl.errors import UnsupportedError

__all__ = ["layer_norm"]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See ``sglang_fl.ops.layer_norm``.

    Raises
    ------
    UnsupportedError : weight or bias has another dtype than ``x``
    """
    if any(t is not None and t.dtype is not x.dtype for t in (weight, bias)):
        raise UnsupportedError(f"npu_layer_norm_eval takes one dtype, {x.dtype}, also for weight and bias")
    if x.numel() == 0:
        return torch.empty_like(x)
    result: Tensor = torch_npu.npu_layer_norm_eval(x.contiguous(), [x.shape[-1]], weight, bias, eps)
    return result
