"""``gelu_and_mul`` by ``torch_mlu_ops.active``, by the error function only.

Older releases of the library do not know the approximation, and no caller of it was seen.
"""

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl_mlu.library import function

__all__ = ["gelu_and_mul"]

active = function("active")


def gelu_and_mul(x: Tensor, approximate: str = "tanh") -> Tensor:
    """See ``sglang_fl.ops.gelu_and_mul``.

    Raises
    ------
    UnsupportedError : ``approximate`` is not ``none``
    """
    if approximate != "none":
        raise UnsupportedError(f"torch_mlu_ops.active is called for the exact GELU, not for {approximate!r}")
    if x.numel() == 0:
        return torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
    result: Tensor = active(x.contiguous(), "gelu", True)
    return result
