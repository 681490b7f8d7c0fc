"""The functions for attention of the emulated ``torch_mlu_ops``.

Not documented, and assumed: a sink is one more score without a value, and not in the logarithm; a query that
sees nothing, or scores of minus infinity alone, gets zeros from ``flash_attention``.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sglang_fl_mlu import signatures
from sglang_fl_mlu.simulated.demands import demand, demand_dense, demand_like, emulates

__all__ = ["flash_attention", "single_query_cached_kv_attn"]

BLOCKS = (1, 2, 4, 8, 16, 32, 64)
MOST_SHARING = 128


@emulates(signatures.single_query_cached_kv_attn)
def single_query_cached_kv_attn(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor | None,
    out: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    max_context_len: int,
    windows_size_left: int,
    windows_size_right: int,
    softmax_scale: float,
    return_lse: bool,
    sink: Tensor | None,
) -> Any:
    """Attend to the keys in the blocks of a table."""
    name = "single_query_cached_kv_attn"
    demand(windows_size_left == windows_size_right == -1, f"{name}: windows are not emulated")
    batch, queries, heads, width = q.shape
    blocks, kv_heads, size, _ = k_cache.shape
    demand(queries == 1, f"{name}: {queries} queries of a sequence are not emulated")
    demand(size in BLOCKS, f"{name}: blocks of {size} keys")
    demand(heads <= MOST_SHARING * kv_heads, f"{name}: {heads} query heads for {kv_heads} of keys")
    demand_dense(name, q=q, k_cache=k_cache, v_cache=v_cache, out=out, context_lens=context_lens)
    values = k_cache[..., : out.shape[-1]] if v_cache is None else v_cache
    demand_like(name, q.dtype, (blocks, kv_heads, size, k_cache.shape[-1]), k_cache=k_cache)
    demand_like(name, q.dtype, (blocks, kv_heads, size, out.shape[-1]), v_cache=v_cache)
    demand_like(name, q.dtype, (batch, 1, heads, values.shape[-1]), out=out)
    demand_like(name, torch.int32, (batch, block_tables.shape[-1]), block_tables=block_tables)
    demand_like(name, torch.int32, (batch,), context_lens=context_lens)
    demand_like(name, torch.float32, (heads,), sink=sink)
    is_there = bool(((block_tables >= 0) & (block_tables < blocks)).all())
    demand(is_there, f"{name}: block_tables outside of 0 to {blocks - 1}")
    lengths = context_lens.tolist()
    demand(0 < min(lengths) <= max(lengths) <= max_context_len, f"{name}: lengths of {lengths}")
    lse = torch.empty(batch, heads, 1)
    for number, length in enumerate(lengths):
        table = block_tables[number, : math.ceil(length / size)].long()
        keys, kept = (cache[table].transpose(1, 2).flatten(0, 1)[:length] for cache in (k_cache, values))
        is_seen = torch.ones(1, length, dtype=torch.bool)
        result, sums = _attended(q[number], keys[..., :width], kept, is_seen, softmax_scale, sink)
        out[number], lse[number] = result, sums
    return (out, lse) if return_lse else out


@emulates(signatures.flash_attention)
def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    cu_seq_lens_q: Tensor | None,
    cu_seq_lens_kv: Tensor | None,
    max_seq_len_q: int,
    max_seq_len_kv: int,
    softmax_scale: float,
    is_causal: bool,
    window_size_left: int,
    return_lse: bool,
    sink: Tensor | None,
) -> Any:
    """Attend to the keys of packed sequences; the last query of one sees its last key."""
    name = "flash_attention"
    assert out is not None
    assert cu_seq_lens_q is not None
    assert cu_seq_lens_kv is not None
    (tokens, heads, width), (kv_tokens, kv_heads, _) = q.shape, k.shape
    demand(heads % kv_heads == 0, f"{name}: {heads} query heads for {kv_heads} of keys")
    demand_dense(name, q=q, k=k, v=v, out=out)
    demand_like(name, q.dtype, (kv_tokens, kv_heads, width), k=k)
    demand_like(name, q.dtype, (kv_tokens, kv_heads, v.shape[-1]), v=v)
    demand_like(name, q.dtype, (tokens, heads, v.shape[-1]), out=out)
    demand_like(name, torch.int32, cu_seq_lens_q.shape, sums_q=cu_seq_lens_q, sums_kv=cu_seq_lens_kv)
    demand_like(name, torch.float32, (heads,), sink=sink)
    demand(out.data_ptr() != q.data_ptr(), f"{name}: out is q")
    bounds, kv_bounds = cu_seq_lens_q.tolist(), cu_seq_lens_kv.tolist()
    ends = (bounds[0], bounds[-1], kv_bounds[0], kv_bounds[-1])
    demand(ends == (0, tokens, 0, kv_tokens), f"{name}: sums {ends} for {tokens} and {kv_tokens} rows")
    lse = torch.empty(heads, tokens)
    for (first, last), (kv_first, kv_last) in zip(pairwise(bounds), pairwise(kv_bounds), strict=True):
        queries, keys = last - first, kv_last - kv_first
        demand(0 < queries <= max_seq_len_q, f"{name}: {queries} queries, max_seq_len_q={max_seq_len_q}")
        demand(0 < keys <= max_seq_len_kv, f"{name}: {keys} keys, max_seq_len_kv={max_seq_len_kv}")
        is_seen = torch.ones(queries, keys, dtype=torch.bool)
        if is_causal:
            is_seen = is_seen.tril(keys - queries)
        if window_size_left >= 0:
            is_seen = is_seen.triu(keys - queries - window_size_left)
        rows, kv_rows = slice(first, last), slice(kv_first, kv_last)
        result, sums = _attended(q[rows], k[kv_rows], v[kv_rows], is_seen, softmax_scale, sink)
        out[rows] = result.masked_fill((sums.t() == -torch.inf).unsqueeze(2), 0.0)
        lse[:, rows] = sums
    return (out, lse) if return_lse else out


def _attended(
    q: Tensor, keys: Tensor, values: Tensor, is_seen: Tensor, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return results, (N, H, DV), and the logarithms of their sums, (H, N).

    Parameters
    ----------
    q : Tensor, (N, H, D)
    keys, values : Tensors, (L, KH, D) and (L, KH, DV)
    is_seen : Tensor, (N, L), bool
    scale : of the scores
    sink : Tensor, (H,), or None
    """
    sharing = q.shape[1] // keys.shape[1]
    of_heads, kept = (x.float().repeat_interleave(sharing, 1).transpose(0, 1) for x in (keys, values))
    scores = (q.float().transpose(0, 1) @ of_heads.mT * scale).masked_fill_(~is_seen, -torch.inf)
    sums = scores.logsumexp(-1)
    total = sums if sink is None else torch.logaddexp(sums, sink.unsqueeze(1).expand_as(sums))
    weights = (scores - total.unsqueeze(-1)).exp()
    return (weights @ kept).transpose(0, 1).to(q.dtype), sums
