"""The op ``layer_norm``: normalisation to zero mean and unit variance."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.norm import check_row_weight

__all__ = ["OP", "layer_norm"]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Shift and scale each row to zero mean and unit variance, then scale by a weight and add a bias.

    Source: Ba et al., "Layer Normalization", 2016; SGLang ``srt/layers/layernorm.py``,
    ``LayerNorm.forward_native``.

    Parameters
    ----------
    x : Tensor, (..., n), float16, bfloat16, float32 or float64, any strides; not written
    weight : Tensor, (n,), any of these dtypes, not necessarily that of ``x``; None multiplies nothing
    bias : Tensor, likewise; None adds nothing
    eps : added to the variance

    Returns
    -------
    Tensor, shape, dtype and device of ``x``, new; formed in float32, rounded once

    Raises
    ------
    ContractError : ``weight`` or ``bias`` does not fit the last axis of ``x``
    """
    check_row_weight("layer_norm", x, weight)
    check_row_weight("layer_norm", x, bias, "bias")
    dtype = compute_dtype(x, *(t for t in (weight, bias) if t is not None))
    scale, shift = (None if t is None else t.to(dtype) for t in (weight, bias))
    return F.layer_norm(x.to(dtype), x.shape[-1:], scale, shift, eps).to(x.dtype)


def _magnitude(truth: Outputs, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return the size of the terms of ``(x - mean) * scale * weight + bias``."""
    mean = x.mean(-1, keepdim=True)
    scale = torch.rsqrt((x - mean).square().mean(-1, keepdim=True) + eps)
    size = (x.abs() + x.abs().mean(-1, keepdim=True)) * scale
    if weight is not None:
        size = size * weight.abs()
    return size if bias is None else size + bias.abs()


def _case(
    name: str,
    *shape: int,
    weight: bool = True,
    bias: bool = True,
    parameter_dtype: torch.dtype | None = torch.float32,
    padding: int = 0,
    offset: float = 0.0,
    eps: float = 1e-5,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        *rows, width = shape
        x = offset + torch.randn(*rows, width + padding, generator=generator)
        scale = 1 + 0.1 * torch.randn(width, generator=generator)
        shift = 0.1 * torch.randn(width, generator=generator)
        return {
            "x": x.to(dtype)[..., :width],
            "weight": scale.to(parameter_dtype or dtype) if weight else None,
            "bias": shift.to(parameter_dtype or dtype) if bias else None,
            "eps": eps,
        }

    return Case(name, make)


OP = Op(
    layer_norm,
    cases=(
        _case("empty", 0, 256),
        _case("one-axis", 64),
        _case("one-token", 1, 896),
        _case("odd-width", 7, 37),
        _case("three-axes", 2, 3, 128),
        _case("many-tokens", 129, 4096),
        _case("row-strided", 5, 256, padding=64),
        _case("without-bias", 5, 256, bias=False),
        _case("without-weight", 5, 256, weight=False),
        _case("bare", 5, 256, weight=False, bias=False),
        _case("parameters-in-dtype", 5, 256, parameter_dtype=None),
        _case("far-from-zero", 5, 256, offset=4.0),
        _case("large-eps", 5, 256, eps=1e-2),
    ),
    # One rounding of a float32 sum; in float32 mean and variance of n elements add a few units.
    bound=Bound(half=0.55, single=8),
    rows={"x": 0},
    magnitude=_magnitude,
    may_depend_on_batch=True,
)
