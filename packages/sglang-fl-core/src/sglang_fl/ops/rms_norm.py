"""The op ``rms_norm``: root-mean-square normalisation, alone or after adding a residual."""

import torch
from torch import Tensor

from sglang_fl.ops.op import Bound, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.norm import check_row_weight, norm_cases, residual_sum, sum_magnitude

__all__ = ["OP", "rms_norm"]


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
    """Scale each row to unit root mean square, then by a weight; first add the residual, if any.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; SGLang
    ``srt/layers/layernorm.py``, ``RMSNorm.forward_native``.

    Parameters
    ----------
    x : Tensor, (..., n), float16, bfloat16, float32 or float64, any strides;
        never written without ``residual``; with it, a kernel may write the result here, where no other
        argument and no two of its elements share its memory
    weight : Tensor, (n,), any of these dtypes, not necessarily that of ``x``; not written
    eps : added to the mean square
    residual : Tensor, shape and dtype of ``x``, or None; a kernel may write the sum here, on the same
        condition
    post_residual_addition : Tensor, shape and dtype of ``x``, or None; added to the residual as well,
        which must be given; not written
    variance_size_override : the mean square is that of the first so many elements of a row
    cast_x_before_out_mul : round to the dtype of ``x`` before the weight is multiplied, as Hugging
        Face does
    fp32_residual : the sum is returned in float32, and ``residual`` may be float32

    Returns
    -------
    Tensor, shape, dtype and device of ``x``: the normed rows; formed in float32, rounded once; with
    ``cast_x_before_out_mul`` rounded twice, and of the dtype to which ``x`` and ``weight`` promote.
    With ``residual``: (normed, sum), where sum is ``x + residual`` rounded to the dtype and the
    mean square is that of the sum before rounding. Either may be the very tensor that was passed.

    Raises
    ------
    ContractError : ``weight`` does not fit the last axis of ``x``, ``residual`` or
        ``post_residual_addition`` does not fit ``x``, or the latter is given without the former
    """
    check_row_weight("rms_norm", x, weight)
    dtype = compute_dtype(x, weight)
    h = residual_sum("rms_norm", x, residual, post_residual_addition, dtype, fp32_residual)
    variance = h[..., :variance_size_override].square().mean(-1, keepdim=True)
    normed = h * torch.rsqrt(variance + eps)
    if cast_x_before_out_mul:
        promoted = torch.promote_types(x.dtype, weight.dtype)
        normed = (normed.to(x.dtype).to(dtype) * weight.to(dtype)).to(promoted)
    else:
        normed = (normed * weight.to(dtype)).to(x.dtype)
    return normed if residual is None else (normed, h if fp32_residual else h.to(x.dtype))


#: Two roundings: before the weight, and after.
_TWICE = Bound(half=1.1, single=8)
#: By a float32 weight the product is float32, of a factor that was rounded to 8 bits: 2**16 / 2 units.
_ROUNDED = Bound(half=1.1, single=0.55 * 2**16)

OP = Op(
    rms_norm,
    cases=(
        *norm_cases(),
        *norm_cases("variance-half", options={"variance_size_override": 128}, width=256),
        *norm_cases(
            "cast", options={"cast_x_before_out_mul": True}, bound=_TWICE, bound_float32_weight=_ROUNDED
        ),
        *norm_cases("fp32-residual", options={"fp32_residual": True}, residual_only=True),
    ),
    # One rounding of a float32 product; in float32 the mean of n squares adds a few units.
    bound=Bound(half=0.55, single=8),
    rows={"x": 0, "residual": 0, "post_residual_addition": 0},
    writes=("x", "residual"),
    writes_if_given="residual",
    magnitude=sum_magnitude,
    may_depend_on_batch=True,
)
