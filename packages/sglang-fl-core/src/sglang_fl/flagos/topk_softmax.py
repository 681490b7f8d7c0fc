"""``topk_softmax`` by ``flag_gems.topk_softmax``, which knows neither groups nor a bias nor a factor."""

import flag_gems
import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs

__all__ = ["topk_softmax"]

#: Experts past this number are silently ignored by FlagGems 5.0.2.
MOST_EXPERTS = 1024
MOST_CHOSEN = 32


def topk_softmax(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    """See ``sglang_fl.ops.topk_softmax``.

    Raises
    ------
    UnsupportedError : more than 1024 experts, or more than 32 chosen
    """
    tokens, experts = router_logits.shape
    if experts > MOST_EXPERTS or top_k > MOST_CHOSEN:
        raise UnsupportedError(
            f"FlagGems chooses at most {MOST_CHOSEN} of {MOST_EXPERTS} experts, not {top_k} of {experts}"
        )
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=router_logits.device)
    ids = torch.empty(tokens, top_k, dtype=torch.int32, device=router_logits.device)
    if tokens:
        positions = torch.empty_like(ids)  # must be there; nobody reads it
        flag_gems.topk_softmax(weights, ids, positions, router_logits.contiguous(), renormalize)
    return weights, ids
