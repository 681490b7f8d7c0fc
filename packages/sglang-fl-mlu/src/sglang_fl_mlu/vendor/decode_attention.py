"""``decode_attention`` by ``torch_mlu_ops.single_query_cached_kv_attn``.

The pool is its cache, with one key in a block: nothing of it is copied.
"""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs
from sglang_fl.ops.decode_attention import check_decode
from sglang_fl.ops.shared.attention import shares_keys
from sglang_fl.ops.shared.slots import longest, table_of_slots
from sglang_fl_mlu.library import function
from sglang_fl_mlu.vendor.attention import (
    as_float,
    refuse_lse_beside_sinks,
    require_one_dtype,
    result_for,
)

__all__ = ["decode_attention"]

NAME = "single_query_cached_kv_attn"
single_query_cached_kv_attn = function("single_query_cached_kv_attn", "return_lse", "sink")

#: Query heads for one of keys.
MOST_SHARING = 128


def decode_attention(
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    *,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.decode_attention``.

    The longest length is read on the host, but for a graph that is captured: there tables are as wide as
    ``kv_indices`` is long.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : several dtypes; pools that are not dense, but for values that are the first elements
        of the keys; more than 128 query heads for one of keys; a logarithm beside sinks
    """
    check_decode(q, k_buffer, v_buffer, kv_indptr, kv_indices, sinks, out)
    require_one_dtype(NAME, q=q, k_buffer=k_buffer, v_buffer=v_buffer)
    refuse_lse_beside_sinks(NAME, sinks, return_lse)
    if q.shape[1] > MOST_SHARING * k_buffer.shape[1]:
        raise UnsupportedError(
            f"{NAME} takes {MOST_SHARING} query heads for one of keys, not {q.shape[1]} for "
            f"{k_buffer.shape[1]}"
        )
    keys, values = _caches(k_buffer, v_buffer)
    result = result_for(q, v_buffer, out, k_buffer, kv_indptr, kv_indices, sinks)
    most = longest(kv_indptr, kv_indices)
    if most == 0:
        result.zero_()
        return (result, _nothing(q)) if return_lse else result
    lengths = kv_indptr.diff()
    table, _ = table_of_slots(kv_indptr, kv_indices, most)
    answer: Any = single_query_cached_kv_attn(
        q.contiguous().unsqueeze(1),
        keys,
        values,
        result.unsqueeze(1),
        table.to(torch.int32),
        lengths.clamp(min=1).to(torch.int32),  # of an empty sequence a key is taken, and the result dropped
        None,
        None,
        None,
        most,
        -1,
        -1,
        scale,
        return_lse=return_lse,
        sink=as_float(sinks),
    )
    is_empty = (lengths == 0).unsqueeze(1)
    result.masked_fill_(is_empty.unsqueeze(2), 0.0)
    if not return_lse:
        return result
    return result, answer[1].squeeze(2).masked_fill_(is_empty, -torch.inf)


def _caches(k_buffer: Tensor, v_buffer: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the pools as the library's caches; without one of values where those are a part of the keys."""
    is_part = shares_keys(k_buffer, v_buffer)
    if not k_buffer.is_contiguous() or not (is_part or v_buffer.is_contiguous()):
        raise UnsupportedError(
            f"{NAME} takes dense pools, not strides {k_buffer.stride()} and {v_buffer.stride()} of "
            f"{tuple(k_buffer.shape)} and {tuple(v_buffer.shape)}"
        )
    return k_buffer.unsqueeze(2), None if is_part else v_buffer.unsqueeze(2)


def _nothing(q: Tensor) -> Tensor:
    return torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device)
