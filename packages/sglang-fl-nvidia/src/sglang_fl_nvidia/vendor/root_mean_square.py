"""What the norms of ``sgl_kernel`` share: they take two dense axes, and write over what they are given."""

from collections.abc import Callable

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs, unshared
from sglang_fl_nvidia.vendor.alignment import dense

__all__ = ["norm_rows"]

DTYPES = (torch.float16, torch.bfloat16)


def norm_rows(
    norm: Callable[[Tensor, Tensor, float], Tensor],
    fused_add_norm: Callable[[Tensor, Tensor, Tensor, float], None],
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None,
) -> Outputs:
    """Norm rows by one of two kernels.

    Parameters
    ----------
    norm : ``norm(x, weight, eps)`` returns the result
    fused_add_norm : ``fused_add_norm(x, residual, weight, eps)`` writes the result into ``x``, and the sum
        into ``residual``
    x, weight, eps, residual : see ``sglang_fl.ops.rms_norm``; overwritten if both are given, each only where
        its memory is its own

    Raises
    ------
    UnsupportedError : ``x`` is float32, or ``weight`` has another dtype than ``x``
    """
    if x.dtype not in DTYPES or weight.dtype is not x.dtype:
        raise UnsupportedError(
            f"it takes float16 or bfloat16 for both, not x {x.dtype}, weight {weight.dtype}"
        )
    if x.numel() == 0:
        return torch.empty_like(x) if residual is None else (x, residual)
    rows = x.reshape(-1, x.shape[-1])  # a copy only if x is strided oddly
    if residual is None:
        return norm(dense(rows), weight, eps).view(x.shape)
    rows = dense(unshared(x, weight, residual).reshape(rows.shape))
    sums = dense(unshared(residual, weight, x).reshape(rows.shape))
    fused_add_norm(rows, sums, weight, eps)
    return rows.view(x.shape), sums.view(x.shape)
