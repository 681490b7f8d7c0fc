"""The op ``topk_sigmoid``: the experts of each token by the sigmoid of the router's logits."""

import torch
from torch import Tensor

from sglang_fl.ops.op import Bound, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.routing import as_good, by_expert, choose_experts, routing_cases

__all__ = ["OP", "topk_sigmoid"]


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
    """Choose the ``top_k`` experts of each token by the sigmoid of its logits.

    Source: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 2.1.2; SGLang
    ``srt/layers/moe/topk.py``, ``biased_topk_impl`` and ``biased_grouped_topk_impl``.

    Parameters and results are those of ``topk_softmax``, with the sigmoid for the softmax.

    Parameters
    ----------
    router_logits : Tensor, (T, E), float16, bfloat16, float32 or float64, any strides; not written
    top_k : number of experts of a token
    renormalize : divide the chosen scores by their sum
    correction_bias : Tensor, (E,), float32; added to the scores for the choice, not for the weights
    num_expert_group, topk_group : choose among the experts of the best ``topk_group`` of so many groups
    routed_scaling_factor : multiplies the weights

    Returns
    -------
    (weights, ids) : Tensors, (T, top_k), float32 and int32, in any order within a row

    Raises
    ------
    ContractError : as ``topk_softmax``
    """
    scores = torch.sigmoid(router_logits.to(compute_dtype(router_logits)))
    return choose_experts(
        "topk_sigmoid",
        scores,
        top_k,
        renormalize,
        correction_bias,
        num_expert_group,
        topk_group,
        routed_scaling_factor,
    )


OP = Op(
    topk_sigmoid,
    cases=routing_cases(is_softmax=False),
    # The weights are float32 for any input; a fast exp rounds its argument, here at most 4.
    bound=Bound(half=32, single=32),
    comparable=by_expert,
    as_good=as_good,
)
