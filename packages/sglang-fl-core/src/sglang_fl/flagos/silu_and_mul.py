"""``silu_and_mul`` by ``flag_gems.silu_and_mul``, which takes the two halves apart."""

import flag_gems
from torch import Tensor

__all__ = ["silu_and_mul"]


def silu_and_mul(x: Tensor) -> Tensor:
    """See ``sglang_fl.ops.silu_and_mul``. The halves are views; FlagGems honours their strides."""
    gate, up = x.chunk(2, dim=-1)
    if x.numel() == 0:
        return gate.new_empty(gate.shape)
    result: Tensor = flag_gems.silu_and_mul(gate, up)
    return result
