"""``fused_moe`` by ``torch_mlu_ops``: sort, expand, multiply, activate, multiply, combine."""

import torch
from torch import Tensor

from sglang_fl.ops.fused_moe import present_experts
from sglang_fl_mlu.library import function

__all__ = ["fused_moe"]

active = function("active")
group_gemm = function("group_gemm")
moe_combine_result = function("moe_combine_result")
moe_expand_input = function("moe_expand_input")
moe_gen_idx = function("moe_gen_idx")


def fused_moe(
    hidden_states: Tensor,
    w13_weight: Tensor,
    w2_weight: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    routed_scaling_factor: float = 1.0,
) -> Tensor:
    """See ``sglang_fl.ops.fused_moe``. The activated rows and each expert's result are rounded."""
    if hidden_states.numel() == 0:
        return torch.empty_like(hidden_states)
    experts = len(w13_weight)
    weights, ids, has_none = present_experts(topk_weights, topk_ids, experts)
    ids, weights = ids.to(torch.int32).contiguous(), weights.to(torch.float32) * routed_scaling_factor
    expand_idx, combine_idx, token_count, _ = moe_gen_idx(ids, experts)
    rows = moe_expand_input(hidden_states.contiguous(), expand_idx)
    most = len(rows)  # of one expert
    both = group_gemm(rows, w13_weight, token_count, None, None, None, None, most)
    results = group_gemm(active(both, "silu", True), w2_weight, token_count, None, None, None, None, most)
    combined: Tensor = moe_combine_result(results, weights, combine_idx, None, None, 0, experts)
    return combined.masked_fill_(has_none, 0.0)
