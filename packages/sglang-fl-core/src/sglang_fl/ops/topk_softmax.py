"""The op ``topk_softmax``: the experts of each token by the softmax of the router's logits."""

import functools

import torch
from torch import Tensor

from sglang_fl.ops.op import Op, Outputs, compute_dtype
from sglang_fl.ops.shared.routing import (
    ROUTING_BOUND,
    by_expert,
    choose_experts,
    is_as_good_a_choice,
    routing_cases,
    why_no_choice,
)

__all__ = ["OP", "topk_softmax"]


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
    """Choose the ``top_k`` experts of each token by the softmax of its logits.

    Source: SGLang ``srt/layers/moe/topk.py``, ``fused_topk_torch_native`` and ``grouped_topk_gpu``.

    Parameters
    ----------
    router_logits : Tensor, (T, E), float16, bfloat16, float32 or float64, any strides; not written
    top_k : number of experts of a token
    renormalize : divide the chosen scores by their sum plus 1e-20, so that the weights are zero where all
        chosen scores have underflowed
    correction_bias : Tensor, (E,), float32; added to the scores for the choice, not for the weights
    num_expert_group, topk_group : choose among the experts of the best ``topk_group`` of so many groups of
        equal size; a group counts by its best score, with a bias by the sum of its two best
    routed_scaling_factor : multiplies the weights
    shared_expert_weight : adds an expert that each token has, number E behind the chosen ones, with this
        weight, which neither the sum nor the factor touches

    Returns
    -------
    (weights, ids) : Tensors, (T, top_k), with a shared expert (T, top_k + 1), float32 and int32, in any order
        within a row, the shared expert last; formed in float32. Of scores that only a kernel's rounding tells
        apart any may be chosen.
        Where a row's scores are no numbers (a NaN or a positive infinity among its logits, or nothing but
        negative ones), weights and choice are open; the ids are distinct experts all the same.

    Raises
    ------
    ContractError : ``top_k`` exceeds the eligible experts, the groups do not divide them, or the bias does
        not fit
    """
    return choose_experts(
        "topk_softmax",
        _scores(router_logits),
        top_k,
        renormalize,
        correction_bias,
        num_expert_group,
        topk_group,
        routed_scaling_factor,
        shared_expert_weight,
    )


def _scores(router_logits: Tensor) -> Tensor:
    return torch.softmax(router_logits.to(compute_dtype(router_logits)), dim=-1)


OP = Op(
    topk_softmax,
    cases=routing_cases(is_softmax=True),
    bound=ROUTING_BOUND,
    rows={"router_logits": 0},
    comparable=functools.partial(by_expert, score=_scores),
    as_good=functools.partial(is_as_good_a_choice, score=_scores),
    why_invalid=why_no_choice,
    may_depend_on_batch=True,
)
