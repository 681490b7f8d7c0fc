"""``gemma_rms_norm`` by ``sgl_kernel.gemma_rmsnorm`` and ``gemma_fused_add_rmsnorm``, 0.4.5 to 0.4.10.

Both hand float16 and bfloat16 on to FlashInfer where it is installed.
"""

import sgl_kernel
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl_nvidia.vendor.root_mean_square import norm_rows

__all__ = ["gemma_rms_norm"]


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    """See ``sglang_fl.ops.gemma_rms_norm``. ``x`` and ``residual`` are overwritten if both are given.

    Each only where its memory is its own.

    Raises
    ------
    UnsupportedError : ``x`` is float32, or ``weight`` has another dtype than ``x``
    """
    return norm_rows(sgl_kernel.gemma_rmsnorm, sgl_kernel.gemma_fused_add_rmsnorm, x, weight, eps, residual)
