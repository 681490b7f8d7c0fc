"""What the two routers share: how the library calls groups, the weights, and the answer for no tokens.

The library's own division by the sum is not used: nothing says what it does where that is zero.
"""

import torch
from torch import Tensor

from sglang_fl.ops import renormalized

__all__ = ["empty_routing", "group_arguments", "weighted"]


def group_arguments(num_expert_group: int | None, topk_group: int | None) -> tuple[int, int]:
    """Return ``num_expert_group`` and ``topk_group``, the library's defaults where there are no groups."""
    if num_expert_group is None or topk_group is None:
        return -1, 0
    return num_expert_group, topk_group


def weighted(scores: Tensor, renormalize: bool, factor: float) -> Tensor:
    """Return the scores of the chosen experts as weights."""
    weights = renormalized(scores) if renormalize else scores
    return weights if factor == 1.0 else weights * factor


def empty_routing(router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return weights and ids for no tokens."""
    shape, device = (*router_logits.shape[:-1], top_k), router_logits.device
    weights = torch.empty(shape, dtype=torch.float32, device=device)
    return weights, torch.empty(shape, dtype=torch.int32, device=device)
