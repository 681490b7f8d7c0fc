"""What the two routers share: the choice by ``torch_npu.npu_moe_gating_top_k``, the weights by PyTorch.

The operator's own weights are not used: its documentation leaves open when it divides by their sum.
"""

import torch
import torch_npu
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import renormalized

__all__ = ["SIGMOID", "SOFTMAX", "chosen_experts", "empty_routing", "weighted"]

SOFTMAX, SIGMOID = 0, 1  # the operator's norm_type
BEST, TWO_BEST = 0, 1  # its group_select_mode
#: A group has more experts than so many.
SMALL_GROUP = 2


def chosen_experts(
    logits: Tensor,
    top_k: int,
    norm_type: int,
    correction_bias: Tensor | None,
    num_expert_group: int | None,
    topk_group: int | None,
) -> Tensor:
    """Return the ids of the chosen experts, (T, top_k), int32; ``logits`` in float32.

    Raises
    ------
    UnsupportedError : groups of one or two experts
    """
    groups, kept = num_expert_group or 1, topk_group or 1
    if logits.shape[-1] // groups <= SMALL_GROUP:
        raise UnsupportedError(
            f"npu_moe_gating_top_k takes no groups of {logits.shape[-1] // groups} experts"
        )
    _, ids, _ = torch_npu.npu_moe_gating_top_k(
        logits,
        top_k,
        bias=None if correction_bias is None else correction_bias.to(torch.float32),
        k_group=kept,
        group_count=groups,
        group_select_mode=BEST if correction_bias is None else TWO_BEST,
        norm_type=norm_type,
    )
    chosen: Tensor = ids
    return chosen


def weighted(scores: Tensor, ids: Tensor, renormalize: bool, factor: float) -> tuple[Tensor, Tensor]:
    """Return the scores of the chosen experts as weights, and their ids."""
    weights = scores.gather(-1, ids.long())
    if renormalize:
        weights = renormalized(weights)
    return weights * factor, ids


def empty_routing(router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return weights and ids for no tokens."""
    shape, device = (*router_logits.shape[:-1], top_k), router_logits.device
    weights = torch.empty(shape, dtype=torch.float32, device=device)
    return weights, torch.empty(shape, dtype=torch.int32, device=device)
