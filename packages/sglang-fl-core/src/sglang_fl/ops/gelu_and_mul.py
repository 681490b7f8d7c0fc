"""The op ``gelu_and_mul``: the gated activation of GeGLU feed-forward layers."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.pointwise import activation_case

__all__ = ["OP", "gelu_and_mul"]

APPROXIMATE = ("none", "tanh")


def gelu_and_mul(x: Tensor, approximate: str = "tanh") -> Tensor:
    """Multiply the GELU of the first half of the last axis by the second half.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; Shazeer, "GLU Variants Improve
    Transformer", 2020; SGLang ``srt/layers/activation.py``, ``GeluAndMul.forward_native``.

    Parameters
    ----------
    x : Tensor, (..., 2 * d), float16, bfloat16, float32 or float64, any strides; not written
    approximate : ``none`` for the error function, ``tanh`` for its usual approximation

    Returns
    -------
    Tensor, (..., d), dtype and device of ``x``, new; formed in float32 and rounded once

    Raises
    ------
    ContractError : the last axis of ``x`` is missing or odd, or ``approximate`` is another word
    """
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ContractError(f"gelu_and_mul: x needs an even last axis, got shape {tuple(x.shape)}")
    if approximate not in APPROXIMATE:
        raise ContractError(f"gelu_and_mul: approximate={approximate!r}. Valid: {', '.join(APPROXIMATE)}.")
    gate, up = x.to(compute_dtype(x)).chunk(2, dim=-1)
    return (F.gelu(gate, approximate=approximate) * up).to(x.dtype)


def _magnitude(truth: Outputs, x: Tensor, approximate: str = "tanh") -> Tensor:
    """Return the size of ``gate / 2 * up``, twice: left of zero the two terms of the GELU cancel."""
    gate, up = x.abs().chunk(2, dim=-1)
    return gate * up


def _cases(name: str, *shape: int, **options: Any) -> list[Case]:
    return [activation_case(f"{name}-{how}", *shape, approximate=how, **options) for how in APPROXIMATE]


OP = Op(
    gelu_and_mul,
    cases=(
        *_cases("empty", 0, 256),
        *_cases("one-token", 1, 1792),
        *_cases("odd-width", 7, 2 * 37),
        *_cases("three-axes", 2, 3, 128),
        *_cases("many-tokens", 129, 4096),
        *_cases("large-values", 16, 512, scale=8.0),
        *_cases("row-strided", 5, 256, padding=64),
        *_cases("underflowing", 5, 256, lowered=200.0),
    ),
    # One rounding of a float32 product, in units of the two terms that make the GELU. In float32 a fast tanh
    # (sgl_kernel's: 30 units) shows.
    bound=Bound(half=0.55, single=64),
    rows={"x": 0},
    magnitude=_magnitude,
)
