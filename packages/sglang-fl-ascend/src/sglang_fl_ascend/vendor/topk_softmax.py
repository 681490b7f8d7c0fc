"""``topk_softmax`` by ``torch_npu.npu_moe_gating_top_k_softmax``; with bias or groups see ``routing``."""

import torch
import torch_npu
from torch import Tensor

from sglang_fl.ops import Outputs, renormalized
from sglang_fl_ascend.vendor.routing import SOFTMAX, chosen_experts, empty_routing, weighted

__all__ = ["topk_softmax"]


def topk_softmax(
    router_logits: Tensor,
    top_k: int,
    renormalize: bool,
    *,
    correction_bias: Tensor | None = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
) -> Outputs:
    """See ``sglang_fl.ops.topk_softmax``.

    Raises
    ------
    UnsupportedError : groups of one or two experts
    """
    if router_logits.numel() == 0:
        return empty_routing(router_logits, top_k)
    logits = router_logits.to(torch.float32).contiguous()
    if correction_bias is None and num_expert_group is None:
        weights, ids, _ = torch_npu.npu_moe_gating_top_k_softmax(logits, None, top_k)
        if renormalize:
            weights = renormalized(weights)
        return weights * routed_scaling_factor, ids
    ids = chosen_experts(logits, top_k, SOFTMAX, correction_bias, num_expert_group, topk_group)
    return weighted(torch.softmax(logits, dim=-1), ids, renormalize, routed_scaling_factor)
