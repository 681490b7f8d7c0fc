"""``rotary_embedding`` by ``torch_mlu_ops.apply_rotary``.

That takes the sines before the cosines, tables as wide as what is rotated, and writes its input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs, unshared
from sglang_fl_mlu.library import function

__all__ = ["rotary_embedding"]

apply_rotary = function("apply_rotary")

WIDEST_HEAD = 256


@dataclass(frozen=True)
class _Tables:
    """What the library wants in place of SGLang's cache; (P, rotary_dim) each.

    Parameters
    ----------
    version : the cache's when these were made
    is_neox_style : see ``rotary_embedding``
    """

    version: int
    is_neox_style: bool
    sin: Tensor
    cos: Tensor


_made = WeakTensorKeyDictionary()


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
    UnsupportedError : the cache has another dtype than the query: rounding it costs more than the contract
        allows; or heads are too wide
    """
    if cos_sin_cache.dtype is not query.dtype:
        raise UnsupportedError(
            f"apply_rotary takes tables of the query's dtype {query.dtype}, not {cos_sin_cache.dtype}"
        )
    if head_size > WIDEST_HEAD:
        raise UnsupportedError(f"apply_rotary takes heads up to {WIDEST_HEAD} elements, not {head_size}")
    tokens = positions.numel()
    if tokens == 0:
        return query, key
    others = positions, offsets, cos_sin_cache
    query, key = unshared(query, key, *others), unshared(key, query, *others)
    if offsets is not None:
        positions = positions + offsets
    places = positions.reshape(-1).to(torch.int32)
    tables = _tables(cos_sin_cache, is_neox_style)
    for x in (query, key):
        heads = x.view(1, tokens, -1, head_size)  # of which as much is rotated as the tables are wide
        apply_rotary(heads, tables.sin, tables.cos, places, None, not is_neox_style, True, False, tokens)
    return query, key


def _tables(cache: Tensor, is_neox_style: bool) -> _Tables:
    """Return the tables of a cache, made once for each of its states."""
    version = 0 if cache.is_inference() else cache._version
    made: _Tables | None = _made.get(cache)  # type: ignore[no-untyped-call] # PyTorch's
    if made is None or (made.version, made.is_neox_style) != (version, is_neox_style):
        cos, sin = cache.chunk(2, dim=-1)
        made = _Tables(version, is_neox_style, _widened(sin, is_neox_style), _widened(cos, is_neox_style))
        _made[cache] = made
    return made


def _widened(half: Tensor, is_neox_style: bool) -> Tensor:
    """Return a value for each element of a head: one half twice, or each of its columns twice."""
    return torch.cat((half, half), -1) if is_neox_style else half.repeat_interleave(2, -1)
