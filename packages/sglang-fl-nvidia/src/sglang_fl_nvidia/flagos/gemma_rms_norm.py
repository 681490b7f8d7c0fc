"""``gemma_rms_norm`` in one Triton kernel, that of ``rms_norm`` with one added to the weight."""

from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl_nvidia.flagos.root_mean_square import SHIFTED, norm_rows

__all__ = ["gemma_rms_norm"]


def gemma_rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    post_residual_addition: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.gemma_rms_norm``. ``x`` and ``residual`` are overwritten if both are given.

    Raises
    ------
    UnsupportedError : another dtype than float16, bfloat16 and float32, or rows of none or more than 65536
    """
    return norm_rows(x, weight, eps, residual, post_residual_addition, SHIFTED)
