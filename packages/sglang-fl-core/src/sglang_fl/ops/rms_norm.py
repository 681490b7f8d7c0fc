"""The op ``rms_norm``: root-mean-square normalisation, alone or after adding a residual."""

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype

__all__ = ["OP", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    """Scale each row to unit root mean square, then by a weight; first add the residual, if any.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; SGLang
    ``srt/layers/layernorm.py``, ``RMSNorm.forward_native``.

    Parameters
    ----------
    x : Tensor, (..., n), float16, bfloat16, float32 or float64, any strides;
        never written without ``residual``; with it, a kernel may write the result here
    weight : Tensor, (n,), any of these dtypes, not necessarily that of ``x``; not written
    eps : added to the mean square
    residual : Tensor, shape and dtype of ``x``, or None; a kernel may write the sum here

    Returns
    -------
    Tensor, shape, dtype and device of ``x``: the normed rows; formed in float32, rounded once.
    With ``residual``: (normed, sum), where sum is ``x + residual`` rounded to the dtype and the
    mean square is that of the sum before rounding. Either may be the very tensor that was passed.

    Raises
    ------
    ContractError : ``weight`` does not fit the last axis of ``x``, or ``residual`` does not fit ``x``
    """
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ContractError(
            f"rms_norm: weight {tuple(weight.shape)} does not fit the last axis of x {tuple(x.shape)}"
        )
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ContractError(
            f"rms_norm: residual {tuple(residual.shape)} {residual.dtype} is not like "
            f"x {tuple(x.shape)} {x.dtype}"
        )
    dtype = compute_dtype(x, weight)
    h = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    normed = (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight.to(dtype)).to(x.dtype)
    return normed if residual is None else (normed, h.to(x.dtype))


def _case(
    name: str,
    *shape: int,
    residual: bool = False,
    weight_dtype: torch.dtype | None = None,
    padding: int = 0,
    scale: float = 1.0,
    eps: float = 1e-6,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        *rows, width = shape

        def activation() -> Tensor:
            rand = torch.randn(*rows, width + padding, generator=generator) * scale
            return rand.to(dtype)[..., :width]

        weight = 1 + 0.1 * torch.randn(width, generator=generator)
        arguments: Arguments = {
            "x": activation(),
            "weight": weight.to(weight_dtype or dtype),
            "eps": eps,
        }
        return arguments | ({"residual": activation()} if residual else {})

    return Case(name, make)


def _cases() -> tuple[Case, ...]:
    cases = [_case("one-axis", 64)]
    for residual in (False, True):
        suffix = "-residual" if residual else ""
        cases += [
            _case(f"empty{suffix}", 0, 256, residual=residual),
            _case(f"one-token{suffix}", 1, 896, residual=residual),
            _case(f"odd-width{suffix}", 7, 37, residual=residual),
            _case(f"three-axes{suffix}", 2, 3, 128, residual=residual),
            _case(f"many-tokens{suffix}", 129, 4096, residual=residual),
            _case(f"row-strided{suffix}", 5, 256, residual=residual, padding=64),
            _case(f"tiny-values{suffix}", 4, 512, residual=residual, scale=1e-4),
            _case(f"large-eps{suffix}", 4, 512, residual=residual, eps=1e-2),
            _case(f"float32-weight{suffix}", 4, 256, residual=residual, weight_dtype=torch.float32),
        ]
    return tuple(cases)


OP = Op(
    rms_norm,
    cases=_cases(),
    # One rounding of a float32 product; in float32 the mean of n squares adds a few units.
    bound=Bound(half=0.55, single=8),
    writes=("x", "residual"),
    writes_if_given="residual",
)
