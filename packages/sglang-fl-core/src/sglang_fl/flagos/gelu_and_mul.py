"""``gelu_and_mul`` by ``flag_gems.gelu_and_mul``, which takes the two halves apart."""

import flag_gems
from torch import Tensor

__all__ = ["gelu_and_mul"]


def gelu_and_mul(x: Tensor, approximate: str = "tanh") -> Tensor:
    """See ``sglang_fl.ops.gelu_and_mul``. The halves are views; FlagGems honours their strides."""
    gate, up = x.chunk(2, dim=-1)
    if x.numel() == 0:
        return gate.new_empty(gate.shape)
    result: Tensor = flag_gems.gelu_and_mul(gate, up, approximate)
    return result
