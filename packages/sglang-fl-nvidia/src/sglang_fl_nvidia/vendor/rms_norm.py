"""``rms_norm`` by ``sgl_kernel.rmsnorm`` and ``sgl_kernel.fused_add_rmsnorm`` (kernels 0.4.5 to 0.4.10).

Both hand float16 and bfloat16 on to FlashInfer where it is installed.
"""

import sgl_kernel
import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs, unshared
from sglang_fl_nvidia.vendor.alignment import dense

__all__ = ["rms_norm"]

DTYPES = (torch.float16, torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    """See ``sglang_fl.ops.rms_norm``. ``x`` and ``residual`` are overwritten if both are given.

    Each only where its memory is its own.

    Raises
    ------
    UnsupportedError : ``x`` is float32, or ``weight`` has another dtype than ``x``
    """
    if x.dtype not in DTYPES or weight.dtype is not x.dtype:
        raise UnsupportedError(
            f"sgl_kernel.rmsnorm takes float16 or bfloat16 for both, not x {x.dtype}, weight {weight.dtype}"
        )
    if x.numel() == 0:
        return torch.empty_like(x) if residual is None else (x, residual)
    rows = x.reshape(-1, x.shape[-1])  # the kernels take two axes; a copy only if x is strided oddly
    if residual is None:
        result: Tensor = sgl_kernel.rmsnorm(dense(rows), weight, eps)
        return result.view(x.shape)
    rows = dense(unshared(x, weight, residual).reshape(rows.shape))
    sums = dense(unshared(residual, weight, x).reshape(rows.shape))
    sgl_kernel.fused_add_rmsnorm(rows, sums, weight, eps)
    return rows.view(x.shape), sums.view(x.shape)
