"""``fused_moe`` by ``torch_npu``: sort and expand, grouped products, SwiGLU, combine."""

import torch
import torch_npu
from torch import Tensor

from sglang_fl.ops.fused_moe import present_experts
from sglang_fl_ascend.vendor.products import require

__all__ = ["fused_moe"]

require("npu_moe_init_routing_v2")

COUNTS = 1  # expert_tokens_num_type and group_list_type: rows of each expert, not their running sum
ONE_TENSOR = 2  # split_item
ROWS = 0  # group_type


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
    experts, (tokens, top_k) = len(w13_weight), topk_ids.shape
    weights, ids, has_none = present_experts(topk_weights, topk_ids, experts)
    ids, weights = ids.to(torch.int32).contiguous(), weights.to(torch.float32) * routed_scaling_factor
    rows, places, counts, _ = torch_npu.npu_moe_init_routing_v2(
        hidden_states.contiguous(),
        ids,
        active_num=ids.numel(),
        expert_num=experts,
        expert_tokens_num_type=COUNTS,
        expert_tokens_num_flag=True,
        active_expert_range=[0, experts],
        quant_mode=-1,
    )
    results = _products(torch_npu.npu_swiglu(_products(rows, w13_weight, counts)), w2_weight, counts)
    # The places come token by token and are wanted slot by slot. Rows and weights must have one dtype, and
    # rounding the weights would cost more than the contract allows.
    by_slot = places.view(tokens, top_k).t().reshape(-1)
    combined = torch_npu.npu_moe_finalize_routing(
        results.to(torch.float32), None, None, None, weights, by_slot, ids, 0
    )
    result: Tensor = combined.to(hidden_states.dtype).masked_fill_(has_none, 0.0)
    return result


def _products(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply the rows of each expert with its matrix, (E, n, k)."""
    (product,) = torch_npu.npu_grouped_matmul(
        [rows],
        [weight.transpose(1, 2)],
        group_list=counts,
        split_item=ONE_TENSOR,
        group_type=ROWS,
        group_list_type=COUNTS,
    )
    result: Tensor = product
    return result
