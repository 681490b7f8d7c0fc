"""``fused_moe`` by ``flag_gems.fused_experts_impl``."""

import flag_gems
import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops.fused_moe import present_experts

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
    # FlagGems counts tokens by their id and would count one of no expert outside of its buffer.
    weights, ids, has_none = present_experts(topk_weights, topk_ids, len(w13_weight))
    result: Tensor = flag_gems.fused_experts_impl(
        hidden_states.contiguous(),
        w13_weight,
        w2_weight,
        weights,
        ids,
        apply_router_weight_on_input=apply_router_weight_on_input,
    )
    result.masked_fill_(has_none, 0.0)
    return result if routed_scaling_factor == 1.0 else result * routed_scaling_factor
