"""``topk_sigmoid`` by ``torch_npu.npu_moe_gating_top_k``; see ``routing``."""

import torch
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl_ascend.vendor.routing import SIGMOID, chosen_experts, empty_routing, weighted

__all__ = ["topk_sigmoid"]


def topk_sigmoid(
    router_logits: Tensor,
    top_k: int,
    renormalize: bool,
    *,
    correction_bias: Tensor | None = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
) -> Outputs:
    """See ``sglang_fl.ops.topk_sigmoid``.

    Raises
    ------
    UnsupportedError : groups of one or two experts
    """
    if router_logits.numel() == 0:
        return empty_routing(router_logits, top_k)
    logits = router_logits.to(torch.float32).contiguous()
    ids = chosen_experts(logits, top_k, SIGMOID, correction_bias, num_expert_group, topk_group)
    return weighted(torch.sigmoid(logits), ids, renormalize, routed_scaling_factor)
