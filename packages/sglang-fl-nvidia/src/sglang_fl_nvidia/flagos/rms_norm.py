"""``rms_norm`` in one Triton kernel, with all options of its contract."""

import functools

from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl_nvidia.flagos.root_mean_square import PLAIN, Style, norm_rows

__all__ = ["rms_norm"]

_style = functools.cache(Style)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    post_residual_addition: Tensor | None = None,
    variance_size_override: int | None = None,
    cast_x_before_out_mul: bool = False,
    fp32_residual: bool = False,
) -> Outputs:
    """See ``sglang_fl.ops.rms_norm``. ``x`` and ``residual`` are overwritten if both are given.

    Raises
    ------
    UnsupportedError : another dtype than float16, bfloat16 and float32, or rows of none or more than 65536
    """
    style = PLAIN
    if cast_x_before_out_mul or fp32_residual or variance_size_override is not None:
        style = _style(0.0, cast_x_before_out_mul, variance_size_override, fp32_residual)
    return norm_rows(x, weight, eps, residual, post_residual_addition, style)
