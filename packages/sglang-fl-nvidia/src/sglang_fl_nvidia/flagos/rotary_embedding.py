"""``rotary_embedding`` in one Triton kernel, in place on query and key, with or without the KV cache."""

from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops import Outputs, shares_memory, unshared
from sglang_fl_nvidia.flagos.heads import Heads, turn_heads
from sglang_fl_nvidia.flagos.kv_cache import KVCache, kv_cache
from sglang_fl_nvidia.flagos.rotation import (
    Layout,
    are_apart,
    check_rotation,
    dense_heads,
    layout_of,
    rotate_heads,
    spans,
    take_turns,
)

__all__ = ["rotary_embedding"]


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    offsets: Tensor | None = None,
    *,
    value: Tensor | None = None,
    k_buffer: Tensor | None = None,
    v_buffer: Tensor | None = None,
    cache_loc: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.rotary_embedding``.

    ``query`` and ``key`` are overwritten, each where its memory is its own.

    Raises
    ------
    ContractError : query, key or offsets are not one for each position, or the KV cache does not fit
    UnsupportedError : another dtype than float16, bfloat16 and float32, or slots that are not dense
    """
    tokens = positions.numel()
    cache = kv_cache("rotary_embedding", tokens, key, value, k_buffer, v_buffer, cache_loc)
    positions, offsets = _in_a_row(positions, offsets)
    if cache is None or not tokens:
        heads = query, key, cos_sin_cache, head_size, is_neox_style
        return rotate_heads("rotary_embedding", positions, offsets, None, *heads)
    if offsets is not None:
        positions = positions + offsets
    return _rotate_and_write(positions, query, key, cos_sin_cache, head_size, is_neox_style, cache)


def _in_a_row(positions: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return positions and offsets as dense rows."""
    if positions.dim() != 1 or positions.stride(0) != 1:
        positions = positions.reshape(-1).contiguous()
    if offsets is not None:
        if offsets.numel() != positions.numel():
            raise ContractError(
                f"rotary_embedding: offsets {tuple(offsets.shape)} are not one for each of {len(positions)} "
                f"tokens"
            )
        offsets = offsets.reshape(-1).contiguous()
    return positions, offsets


def _rotate_and_write(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    cache: KVCache,
) -> Outputs:
    """Rotate in place, and write keys and values into the KV cache."""
    check_rotation("rotary_embedding", query, key, cos_sin_cache, head_size)
    tokens = positions.shape[0]
    lies, key_lies = layout_of(query, tokens, head_size), layout_of(key, tokens, head_size)
    if lies is None or key_lies is None:
        dense, dense_key = (dense_heads("rotary_embedding", x, tokens, head_size) for x in (query, key))
        rest = cos_sin_cache, head_size, is_neox_style, cache
        turned = _rotate_and_write(positions, dense, dense_key, *rest)
        return turned[0].view(query.shape), turned[1].view(key.shape)
    cos_sin_cache = cos_sin_cache.contiguous()
    if not _is_own(query, key, lies, key_lies, tokens, head_size, cos_sin_cache, cache):
        others = positions, cos_sin_cache, *cache
        query, key = unshared(query, key, *others), unshared(key, query, *others)
        lies = layout_of(query, tokens, head_size) or lies
        key_lies = layout_of(key, tokens, head_size) or key_lies
    if lies[2] + key_lies[2]:
        layouts = (lies, key_lies, lies, key_lies)
        turn_heads(
            Heads(
                query,
                key,
                query,
                key,
                layouts,
                None,
                positions,
                cos_sin_cache,
                head_size,
                is_neox_style,
                cache,
            )
        )
    return query, key


def _is_own(
    query: Tensor,
    key: Tensor,
    lies: Layout,
    key_lies: Layout,
    tokens: int,
    head_size: int,
    cos_sin_cache: Tensor,
    cache: KVCache,
) -> bool:
    """Whether no head shares memory with another one, the table, a value, or a slot."""
    if not are_apart(query, key, lies, key_lies, tokens, head_size, cos_sin_cache):
        return False
    value, item = cache.value, cache.value.element_size()
    row, width = value.stride(0) * item if tokens > 1 else 0, value.shape[1] * item
    of_value = value.data_ptr(), (row, width, (tokens - 1) * row + width)
    for x, layout in ((query, lies), (key, key_lies)):
        begin, span = x.data_ptr(), spans(layout, tokens, head_size, x.element_size())
        if not take_turns(begin, span, *of_value):
            return False
        for pool in (cache.k_buffer, cache.v_buffer):
            size = pool.stride(0) * pool.shape[0] * item
            if -size < pool.data_ptr() - begin < span[2] and shares_memory(x, pool):
                return False
    return True
