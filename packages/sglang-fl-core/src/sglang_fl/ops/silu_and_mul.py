"""The op ``silu_and_mul``: the gated activation of SwiGLU feed-forward layers."""

import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Bound, Op, compute_dtype
from sglang_fl.ops.shared.pointwise import activation_case

__all__ = ["OP", "silu_and_mul"]


def silu_and_mul(x: Tensor) -> Tensor:
    """Multiply the SiLU of the first half of the last axis by the second half.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020; SGLang
    ``srt/layers/activation.py``, ``SiluAndMul.forward_native``.

    Parameters
    ----------
    x : Tensor, (..., 2 * d), float16, bfloat16, float32 or float64, any strides; not written

    Returns
    -------
    Tensor, (..., d), dtype and device of ``x``, new; formed in float32 and rounded once

    Raises
    ------
    ContractError : the last axis of ``x`` is missing or odd
    """
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ContractError(f"silu_and_mul: x needs an even last axis, got shape {tuple(x.shape)}")
    gate, up = x.to(compute_dtype(x)).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x.dtype)


OP = Op(
    silu_and_mul,
    cases=(
        activation_case("empty", 0, 256),
        activation_case("one-token", 1, 1792),
        activation_case("odd-width", 7, 2 * 37),
        activation_case("three-axes", 2, 3, 128),
        activation_case("one-axis", 64),
        activation_case("many-tokens", 129, 9728),
        activation_case("large-values", 16, 512, scale=8.0),
        activation_case("row-strided", 5, 256, padding=64),
        activation_case("underflowing", 5, 256, lowered=200.0),
    ),
    # One rounding of a float32 product. In float32 a fast exp rounds its argument: |x| / 2 units.
    bound=Bound(half=0.55, single=32),
    rows={"x": 0},
)
