"""The op ``situ_and_mul``: a gated activation whose two factors are softly clipped."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Bound, Case, Op, compute_dtype
from sglang_fl.ops.shared.pointwise import activation_case

__all__ = ["OP", "situ_and_mul"]


def situ_and_mul(x: Tensor, beta: float, linear_beta: float | None = None) -> Tensor:
    """Multiply ``beta tanh(gate / beta) sigmoid(gate)`` by the second half of the last axis.

    Source: SGLang ``srt/layers/activation.py``, ``SituAndMul.forward_native`` (0.5.17 on).

    Parameters
    ----------
    x : Tensor, (..., 2 * d), float16, bfloat16, float32 or float64, any strides; the gate is the first
        half; not written
    beta : where the gate's linear factor saturates
    linear_beta : where the second half saturates, by the same tanh; None leaves it as it is

    Returns
    -------
    Tensor, (..., d), dtype and device of ``x``, new; formed in float32 and rounded once

    Raises
    ------
    ContractError : the last axis of ``x`` is missing or odd
    """
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ContractError(f"situ_and_mul: x needs an even last axis, got shape {tuple(x.shape)}")
    gate, up = x.to(compute_dtype(x)).chunk(2, dim=-1)
    if linear_beta is not None:
        up = linear_beta * torch.tanh(up / linear_beta)
    return (beta * torch.tanh(gate / beta) * torch.sigmoid(gate) * up).to(x.dtype)


def _case(
    name: str, *shape: int, beta: float = 4.0, linear_beta: float | None = None, **options: Any
) -> Case:
    return activation_case(name, *shape, beta=beta, linear_beta=linear_beta, **options)


OP = Op(
    situ_and_mul,
    cases=(
        _case("empty", 0, 256),
        _case("one-token", 1, 1792),
        _case("odd-width", 7, 2 * 37),
        _case("three-axes", 2, 3, 128, beta=1.0),
        _case("clipped", 9, 256, linear_beta=25.0, scale=8.0),
        _case("many-tokens", 129, 4096, linear_beta=25.0),
        _case("row-strided", 5, 256, padding=64),
        _case("underflowing", 5, 256, lowered=200.0),
    ),
    # One rounding of a float32 product. In float32 a fast exp rounds its argument: |x| / 2 units.
    bound=Bound(half=0.55, single=32),
    rows={"x": 0},
)
