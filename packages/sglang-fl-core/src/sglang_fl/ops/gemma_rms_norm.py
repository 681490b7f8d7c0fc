"""The op ``gemma_rms_norm``: root-mean-square normalisation by one plus a weight."""

import torch
from torch import Tensor

from sglang_fl.ops.op import Bound, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.norm import check_row_weight, norm_cases, residual_sum, sum_magnitude

__all__ = ["OP", "gemma_rms_norm"]


def gemma_rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    post_residual_addition: Tensor | None = None,
) -> Outputs:
    """Scale each row to unit root mean square, then by ``1 + weight``; first add the residual, if any.

    Source: the norm of Gemma; SGLang ``srt/layers/layernorm.py``, ``GemmaRMSNorm.forward_native``, which
    norms the rounded sum where this norms the exact one.

    Parameters
    ----------
    x : Tensor, (..., n), float16, bfloat16, float32 or float64, any strides;
        never written without ``residual``; with it, a kernel may write the result here, where no other
        argument and no two of its elements share its memory
    weight : Tensor, (n,), any of these dtypes, around zero, as in the checkpoint; not written
    eps : added to the mean square
    residual : Tensor, shape and dtype of ``x``, or None; a kernel may write the sum here, on the same
        condition
    post_residual_addition : Tensor, shape and dtype of ``x``, or None; added to the residual as well,
        which must be given; not written

    Returns
    -------
    Tensor, shape, dtype and device of ``x``: the normed rows; formed in float32, ``1 + weight`` too,
    rounded once. With ``residual``: (normed, sum), as ``rms_norm``.

    Raises
    ------
    ContractError : as ``rms_norm``
    """
    check_row_weight("gemma_rms_norm", x, weight)
    dtype = compute_dtype(x, weight)
    h = residual_sum("gemma_rms_norm", x, residual, post_residual_addition, dtype)
    scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    normed = (h * scale * (1 + weight.to(dtype))).to(x.dtype)
    return normed if residual is None else (normed, h.to(x.dtype))


OP = Op(
    gemma_rms_norm,
    cases=tuple(norm_cases(centre=0.0)),
    # One rounding of a float32 product; in float32 the mean of n squares adds a few units.
    bound=Bound(half=0.55, single=8),
    rows={"x": 0, "residual": 0, "post_residual_addition": 0},
    writes=("x", "residual"),
    writes_if_given="residual",
    magnitude=sum_magnitude,
    may_depend_on_batch=True,
)
