"""The RMS norms that a gate multiplies, in plain PyTorch, with the signatures of SGLang's two functions."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops.op import compute_dtype

__all__ = ["layernorm_fn", "rms_norm_gated"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


def rms_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Return ``norm(x) weight act(g)``, as SGLang's ``fused_norm_gate.rms_norm_gated``."""
    if bias is not None or residual is not None or prenorm:
        raise UnsupportedError("a gated norm with a bias or a residual has no plain PyTorch path")
    return _gated(x, g.reshape(x.shape), weight, activation, eps, None, norm_before_gate=True)


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    activation: str = "swish",
) -> Tensor:
    """Return ``norm(x) weight act(z)``, or ``norm(x act(z)) weight``: ``layernorm_gated.layernorm_fn``."""
    if bias is not None or not is_rms_norm:
        raise UnsupportedError(
            "a gated norm with a bias, or one that is no RMS norm, has no plain PyTorch path"
        )
    gate = None if z is None else z.reshape(x.shape)
    return _gated(x, gate, weight, activation, eps, group_size, norm_before_gate)


def _gated(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    activation: str,
    eps: float,
    group_size: int | None,
    norm_before_gate: bool,
) -> Tensor:
    """Compute it in float32 and round once."""
    dtype = compute_dtype(x)
    wide = x.to(dtype)
    factor: Any = 1.0 if gate is None else _ACTIVATIONS[activation](gate.to(dtype))
    if not norm_before_gate:
        wide = wide * factor
    groups = wide.reshape(-1, group_size or x.shape[-1])
    wide = (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)).reshape(x.shape)
    if weight is not None:
        wide = wide * weight.to(dtype)
    if norm_before_gate:
        wide = wide * factor
    return wide.to(x.dtype)
