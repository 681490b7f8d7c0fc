"""``topk_sigmoid`` by ``torch_mlu_ops.moe_sigmoid_topk``."""

from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl_mlu.library import function
from sglang_fl_mlu.vendor.routing import empty_routing, group_arguments, weighted

__all__ = ["topk_sigmoid"]

moe_sigmoid_topk = function("moe_sigmoid_topk", "normalize", "num_expert_group", "topk_group", "score_bias")


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
    """See ``sglang_fl.ops.topk_sigmoid``."""
    if router_logits.numel() == 0:
        return empty_routing(router_logits, top_k)
    weights, ids = moe_sigmoid_topk(
        router_logits.contiguous(),
        top_k,
        False,
        *group_arguments(num_expert_group, topk_group),
        score_bias=correction_bias,
    )
    return weighted(weights, renormalize, routed_scaling_factor), ids
