"""``topk_softmax`` in one Triton kernel, with groups, bias and factor."""

from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl_nvidia.flagos.routing import choose_experts

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
    shared_expert_weight: float | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.topk_softmax``.

    Raises
    ------
    UnsupportedError : more than 2048 experts, or another dtype than float16, bfloat16 and float32
    """
    return choose_experts(
        *(router_logits, top_k, renormalize, correction_bias, num_expert_group, topk_group),
        routed_scaling_factor,
        shared_expert_weight,
        is_softmax=True,
    )
