"""``torch_mlu_ops`` for the simulated MLU, from what is documented of it; see ``signatures``.

Results are formed in float32 and rounded once; how a chip rounds is not known. What the documentation demands
of arguments is demanded here, and options that nobody uses here are refused.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl_mlu import signatures
from sglang_fl_mlu.simulated.attention import flash_attention, single_query_cached_kv_attn
from sglang_fl_mlu.simulated.demands import demand, demand_dense, demand_like, emulates
from sglang_fl_mlu.simulated.experts import (
    group_gemm,
    moe_combine_result,
    moe_expand_input,
    moe_gen_idx,
    moe_sigmoid_topk,
    moe_softmax_topk,
)

__all__ = [
    "__version__",
    "active",
    "apply_rotary",
    "flash_attention",
    "fused_layer_norm",
    "fused_rms_norm",
    "group_gemm",
    "moe_combine_result",
    "moe_expand_input",
    "moe_gen_idx",
    "moe_sigmoid_topk",
    "moe_softmax_topk",
    "single_query_cached_kv_attn",
]

__version__ = "1.12.1+simulated"

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@emulates(signatures.active)
def active(
    input: Tensor,  # noqa: A002 - the library's name, here and below
    act_mode: str,
    is_gated: bool,
) -> Tensor:
    """Activate, and multiply by the second half where it is gated."""
    demand(act_mode in _ACTIVATIONS, f"active: act_mode {act_mode!r} is not emulated")
    demand_dense("active", input=input)
    x = input.float()
    if not is_gated:
        return _ACTIVATIONS[act_mode](x).to(input.dtype)
    demand(x.shape[-1] % 2 == 0, f"active: the last axis of {tuple(x.shape)} cannot be halved")
    gate, up = x.chunk(2, dim=-1)
    return (_ACTIVATIONS[act_mode](gate) * up).to(input.dtype)


@emulates(signatures.fused_rms_norm)
def fused_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    bias: Tensor | None,
    eps: float,
    store_output_before_norm: bool,
) -> Any:
    """Norm ``x + bias + residual`` to unit root mean square."""
    total = _sum("fused_rms_norm", x, residual, gamma, beta, bias)
    normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    return _scaled(normed, total, x.dtype, gamma, beta, store_output_before_norm)


@emulates(signatures.fused_layer_norm)
def fused_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    bias: Tensor | None,
    eps: float,
    store_output_before_norm: bool,
) -> Any:
    """Norm ``x + bias + residual`` to zero mean and unit variance."""
    total = _sum("fused_layer_norm", x, residual, gamma, beta, bias)
    normed = F.layer_norm(total, total.shape[-1:], eps=eps)
    return _scaled(normed, total, x.dtype, gamma, beta, store_output_before_norm)


def _sum(
    name: str,
    x: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    demand_dense(name, x=x, residual=residual)
    demand_like(name, x.dtype, x.shape, residual=residual)
    demand_like(name, x.dtype, x.shape[-1:], gamma=gamma, beta=beta, bias=bias)
    total = x.float()
    for summand in (bias, residual):
        if summand is not None:
            total = total + summand.float()
    return total


def _scaled(
    normed: Tensor,
    total: Tensor,
    dtype: torch.dtype,
    gamma: Tensor | None,
    beta: Tensor | None,
    with_sum: bool,
) -> Any:
    if gamma is not None:
        normed = normed * gamma.float()
    if beta is not None:
        normed = normed + beta.float()
    return (normed.to(dtype), total.to(dtype)) if with_sum else normed.to(dtype)


@emulates(signatures.apply_rotary)
def apply_rotary(
    input: Tensor,  # noqa: A002
    sin_cache: Tensor,
    cos_cache: Tensor,
    position_ids: Tensor | None,
    interleaved: bool,
    discrete: bool,
    dynamic_ntk: bool,
    max_seqlen: int,
) -> Tensor:
    """Rotate in place, one position for each token."""
    demand(not dynamic_ntk, "apply_rotary: dynamic_ntk is not emulated")
    demand(discrete and position_ids is not None, "apply_rotary: only discrete positions are emulated")
    assert position_ids is not None
    batch, length, _, width = input.shape
    demand(length == max_seqlen, f"apply_rotary: {length} tokens, but max_seqlen={max_seqlen}")
    rotary_dim = sin_cache.shape[-1]
    is_possible = 2 <= rotary_dim <= width <= 256 and rotary_dim % 2 == 0
    demand(is_possible, f"apply_rotary: a rotary width of {rotary_dim} for heads of {width}")
    demand(input.stride(-1) == 1, "apply_rotary: the elements of a head must be dense")
    demand_like("apply_rotary", torch.int32, (batch * length,), position_ids=position_ids)
    rows = (len(sin_cache), rotary_dim)
    demand_like("apply_rotary", input.dtype, rows, sin_cache=sin_cache, cos_cache=cos_cache)
    places = position_ids.long().view(batch, length, 1)
    sin, cos = sin_cache[places].float(), cos_cache[places].float()
    part = input[..., :rotary_dim]
    x = part.float()
    part.copy_(x * cos + _turned(x, interleaved) * sin)
    return input


def _turned(x: Tensor, interleaved: bool) -> Tensor:
    """Return for each element the other one of its pair, the second of a pair with its sign changed."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
