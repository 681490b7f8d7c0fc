"""The op ``gelu_and_mul``: the gated activation of GeGLU feed-forward layers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype

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


def _case(name: str, *shape: int, scale: float = 1.0, padding: int = 0, lowered: float = 0.0) -> list[Case]:
    def make(approximate: str) -> Case:
        def arguments(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
            *rows, width = shape
            x = torch.randn(*rows, width + padding, generator=generator) * scale
            x[1:] -= lowered
            return {"x": x.to(dtype)[..., :width], "approximate": approximate}

        return Case(f"{name}-{approximate}", arguments)

    return [make(approximate) for approximate in APPROXIMATE]


OP = Op(
    gelu_and_mul,
    cases=(
        *_case("empty", 0, 256),
        *_case("one-token", 1, 1792),
        *_case("odd-width", 7, 2 * 37),
        *_case("three-axes", 2, 3, 128),
        *_case("many-tokens", 129, 4096),
        *_case("large-values", 16, 512, scale=8.0),
        *_case("row-strided", 5, 256, padding=64),
        *_case("underflowing", 5, 256, lowered=200.0),
    ),
    # One rounding of a float32 product, in units of the two terms that make the GELU. In float32 a fast tanh
    # (sgl_kernel's: 30 units) shows.
    bound=Bound(half=0.55, single=64),
    rows={"x": 0},
    magnitude=_magnitude,
)
