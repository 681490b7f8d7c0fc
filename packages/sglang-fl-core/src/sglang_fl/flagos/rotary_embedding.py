"""``rotary_embedding`` by ``flag_gems.apply_rotary_pos_emb``, out of place.

Its in-place form loads a pair and stores one half of it without a barrier between the threads that
hold the two (FlagGems 5.0.2, head size 128), so it is not used.
"""

import flag_gems
import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs

__all__ = ["rotary_embedding"]

#: FlagGems' kernel counts elements in 32 bits, and reads other memory past that.
FAR = 2**31


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    offsets: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.rotary_embedding``.

    Raises
    ------
    UnsupportedError : elements of query or key lie 2**31 and more apart
    """
    tokens = positions.numel()
    if tokens == 0:
        return query, key
    if any(_extent(x) >= FAR for x in (query, key)):
        raise UnsupportedError("FlagGems' rotation counts elements in 32 bits, and these lie further apart")
    if offsets is not None:
        positions = positions + offsets
    # Both halves of the cache are views with a dense last axis, which is all that FlagGems asks for.
    cos, sin = cos_sin_cache.chunk(2, dim=-1)
    heads = [x.view(tokens, -1, head_size) for x in (query, key)]
    rotary_dim = cos_sin_cache.shape[-1]
    rotated = flag_gems.apply_rotary_pos_emb(
        *(x[..., :rotary_dim] for x in heads),
        cos,
        sin,
        position_ids=positions.reshape(-1).long(),  # it multiplies them in their own dtype
        rotary_interleaved=not is_neox_style,
    )
    if rotary_dim != head_size:
        rotated = [torch.cat((r, x[..., rotary_dim:]), -1) for r, x in zip(rotated, heads, strict=True)]
    return rotated[0].reshape(query.shape), rotated[1].reshape(key.shape)


def _extent(x: Tensor) -> int:
    return sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
