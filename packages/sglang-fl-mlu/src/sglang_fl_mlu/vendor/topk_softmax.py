"""``topk_softmax`` by ``torch_mlu_ops.moe_softmax_topk``."""

from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs
from sglang_fl_mlu.library import function
from sglang_fl_mlu.vendor.routing import empty_routing, group_arguments, weighted

__all__ = ["topk_softmax"]

moe_softmax_topk = function("moe_softmax_topk", "normalize", "num_expert_group", "topk_group", "score_bias")


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
    UnsupportedError : a bias and groups: the library lets a group count by one expert there, not by two
    """
    if correction_bias is not None and num_expert_group is not None:
        raise UnsupportedError("moe_softmax_topk ranks groups with a bias in another way")
    if router_logits.numel() == 0:
        return empty_routing(router_logits, top_k)
    weights, ids = moe_softmax_topk(
        router_logits.contiguous(),
        top_k,
        False,
        *group_arguments(num_expert_group, topk_group),
        score_bias=correction_bias,
    )
    return weighted(weights, renormalize, routed_scaling_factor), ids
