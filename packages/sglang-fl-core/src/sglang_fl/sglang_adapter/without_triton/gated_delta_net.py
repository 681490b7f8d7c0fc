"""What SGLang's gated delta net computes around its convolution, in plain PyTorch, with SGLang's signatures.

The delta rule itself is the references of three ops. Layer 2 replaces the methods that call these functions,
so they run where it is off, or leaves a call to SGLang.
"""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS
from sglang_fl.ops.shared.delta_rule import gates

__all__ = [
    "chunk_gated_delta_rule",
    "fused_gdn_gating",
    "fused_qkvzba_split_reshape_cat",
    "fused_qkvzba_split_reshape_cat_contiguous",
    "fused_recurrent_gated_delta_rule_packed_decode",
    "fused_sigmoid_gating_delta_rule_update",
]


def fused_gdn_gating(
    A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, beta: float = 1.0, threshold: float = 20.0
) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the decay and the learning rate, (1, T, HV), float32."""
    if (beta, threshold) != (1.0, 20.0):
        raise UnsupportedError(
            f"a softplus with beta {beta} and threshold {threshold} has no plain PyTorch path"
        )
    decay, rate = gates(A_log, a, dt_bias, b, torch.float32)
    return decay.unsqueeze(0), rate.unsqueeze(0)


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    inplace_update: bool = True,
    **given: Any,
) -> tuple[Tensor, None, Tensor]:
    """Return the result, no last state, because it lies in the pool, and the states before each chunk."""
    pool = initial_state if inplace_update else initial_state.clone()
    states = (pool, initial_state_indices, cu_seqlens)
    o, h = OPS["chunk_gated_delta_rule"].reference(q, k, v, g, beta, *states, k.shape[-1] ** -0.5)
    return o, None, h


def fused_sigmoid_gating_delta_rule_update(
    *,
    A_log: Tensor,
    a: Tensor,
    dt_bias: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    b: Tensor,
    initial_state_source: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    disable_state_update: bool = False,
    **given: Any,
) -> Any:
    """Return the result; the pool is updated in place."""
    if disable_state_update:
        raise UnsupportedError(
            "the check of drafted tokens by the gated delta rule has no plain PyTorch path"
        )
    states = (initial_state_source, initial_state_indices, cu_seqlens)
    reference = OPS["fused_sigmoid_gating_delta_rule_update"].reference
    return reference(A_log, a, dt_bias, q, k, v, b, *states, k.shape[-1] ** -0.5)


def fused_recurrent_gated_delta_rule_packed_decode(
    *,
    mixed_qkv: Tensor,
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    scale: float,
    initial_state: Tensor,
    out: Tensor,
    ssm_state_indices: Tensor,
    **given: Any,
) -> None:
    """Write the result to ``out``, (B, 1, HV, V); the pool is updated in place."""
    reference = OPS["fused_recurrent_gated_delta_rule_packed_decode"].reference
    o: Any = reference(mixed_qkv, a, b, A_log, dt_bias, initial_state, ssm_state_indices, scale)
    out.copy_(o.unsqueeze(1))


def fused_qkvzba_split_reshape_cat(
    mixed_qkvz: Tensor, mixed_ba: Tensor, num_heads_qk: int, num_heads_v: int, head_qk: int, head_v: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort what lies key head by key head: q, k, v and z of it, and b and a.

    Returns
    -------
    (mixed_qkv, z, b, a) : (T, 2 HK K + HV V): all q, all k, all v; (T, HV, V); (T, HV) twice
    """
    shared = num_heads_v // num_heads_qk
    tokens = len(mixed_qkvz)
    by_head = mixed_qkvz.reshape(tokens, num_heads_qk, 2 * (head_qk + shared * head_v))
    parts = torch.split(by_head, [head_qk, head_qk, shared * head_v, shared * head_v], dim=-1)
    q, k, v, z = (part.flatten(1) for part in parts)
    b, a = (part.flatten(1) for part in mixed_ba.reshape(tokens, num_heads_qk, 2 * shared).chunk(2, dim=-1))
    return torch.cat([q, k, v], dim=-1), z.view(tokens, num_heads_v, head_v), b, a


def fused_qkvzba_split_reshape_cat_contiguous(
    mixed_qkvz: Tensor, mixed_ba: Tensor, num_heads_qk: int, num_heads_v: int, head_qk: int, head_v: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do the same where all q lie together, then all k, all v, all z; and all b, then all a."""
    values = num_heads_v * head_v
    mixed_qkv, z = torch.split(mixed_qkvz, [mixed_qkvz.shape[1] - values, values], dim=-1)
    b, a = mixed_ba.chunk(2, dim=-1)
    z = z.reshape(len(z), num_heads_v, head_v)
    return mixed_qkv.contiguous(), z, b.contiguous(), a.contiguous()
