"""``fused_moe`` by ``flag_gems.fused_experts_impl``."""

import flag_gems
import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError

__all__ = ["fused_moe"]


def fused_moe(
    hidden_states: Tensor,
    w13_weight: Tensor,
    w2_weight: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
) -> Tensor:
    """See ``sglang_fl.ops.fused_moe``.

    Raises
    ------
    UnsupportedError : float32, which the matrix units of a GPU would round to TF32
    """
    if hidden_states.dtype is torch.float32:
        raise UnsupportedError("FlagGems multiplies float32 in TF32 here")
    if hidden_states.numel() == 0:
        return torch.empty_like(hidden_states)
    # FlagGems counts tokens by their id and would count one below zero outside of its buffer.
    absent = topk_ids < 0
    result: Tensor = flag_gems.fused_experts_impl(
        hidden_states.contiguous(),
        w13_weight,
        w2_weight,
        topk_weights.masked_fill(absent, 0.0),
        topk_ids.masked_fill(absent, 0),
        apply_router_weight_on_input=apply_router_weight_on_input,
    )
    return result if routed_scaling_factor == 1.0 else result * routed_scaling_factor
