"""``rotary_embedding`` by ``flashinfer.rope.apply_rope_with_cos_sin_cache_inplace`` (0.6 and 0.7)."""

import torch
from flashinfer.rope import apply_rope_with_cos_sin_cache_inplace
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs, unshared

__all__ = ["rotary_embedding"]

DTYPES = (torch.float16, torch.bfloat16)
#: Bytes that a thread of FlashInfer's kernel loads at once.
VECTOR = 16


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

    ``query`` and ``key`` are overwritten, each where its memory is its own.

    Raises
    ------
    UnsupportedError : float32 activations, a cache of another dtype than float32, or heads that do not begin
        at multiples of 16 bytes
    """
    if query.dtype not in DTYPES or cos_sin_cache.dtype is not torch.float32:
        raise UnsupportedError(
            f"FlashInfer rotates float16 and bfloat16 by a float32 cache, not {query.dtype} "
            f"by {cos_sin_cache.dtype}"
        )
    tokens = positions.numel()
    if tokens == 0:
        return query, key
    others = positions, offsets, cos_sin_cache
    query, key = unshared(query, key, *others), unshared(key, query, *others)
    if offsets is not None:
        positions = positions + offsets
    # FlashInfer takes the first axis for the tokens and does not compare it with the positions.
    heads = [x.view(tokens, -1, head_size) for x in (query, key)]
    if not all(map(_is_aligned, heads)):
        raise UnsupportedError(f"FlashInfer rotates heads that begin at multiples of {VECTOR} bytes")
    apply_rope_with_cos_sin_cache_inplace(
        positions.reshape(-1), *heads, head_size, cos_sin_cache, is_neox_style
    )
    return query, key


def _is_aligned(heads: Tensor) -> bool:
    begins = (heads.data_ptr(), *(stride * heads.element_size() for stride in heads.stride()[:2]))
    return all(begin % VECTOR == 0 for begin in begins)
