"""The emulated operators for attention."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl_ascend.simulated.experts import demand

__all__ = ["npu_fused_infer_attention_score", "npu_fusion_attention"]

#: Options that are emulated; the others must be left out.
OF_INFERENCE = {
    "atten_mask",
    "num_heads",
    "scale",
    "input_layout",
    "num_key_value_heads",
    "softmax_lse_flag",
}
NO_END = 2**31 - 1


def npu_fused_infer_attention_score(
    query: Tensor, key: Tensor, value: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Let one query of each sequence attend to the keys that a mask leaves."""
    name = "npu_fused_infer_attention_score"
    demand(options.keys() <= OF_INFERENCE, f"{name}: {sorted(options.keys() - OF_INFERENCE)} not emulated")
    batch, queries, heads, width = query.shape
    kv_heads, most = options["num_key_value_heads"], key.shape[1]
    demand(options["input_layout"] == "BSND" and queries == 1, f"{name}: decoding in BSND is emulated")
    demand(heads == options["num_heads"] <= min(256, 64 * kv_heads), f"{name}: {heads} heads for {kv_heads}")
    demand(query.dtype in (torch.float16, torch.bfloat16), f"{name}: query is {query.dtype}")
    demand(query.dtype is key.dtype is value.dtype, f"{name}: several dtypes")
    demand(width <= 512, f"{name}: heads of {width}")
    demand(key.shape == value.shape == (batch, most, kv_heads, width), f"{name}: key {tuple(key.shape)}")
    mask = options["atten_mask"]
    demand(mask.dtype is torch.bool and mask.shape == (batch, 1, 1, most), f"{name}: atten_mask")
    demand(all(x.is_contiguous() for x in (query, key, value, mask)), f"{name}: strided tensors")
    demand(not bool(mask.all(-1).any()), f"{name}: a query that sees nothing")
    result, lse = torch.empty_like(query), torch.empty(batch, heads, 1, 1)
    for number, is_masked in enumerate(mask):
        attended, peak, total = _attended(
            query[number], key[number], value[number], ~is_masked[0], options.get("scale", 1.0)
        )
        result[number] = attended
        lse[number] = (peak + total.log()).unsqueeze(-1)
    return result, lse if options.get("softmax_lse_flag", False) else torch.zeros(1)


def npu_fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = NO_END,
    next_tockens: int = NO_END,
    inner_precise: int = 0,
    prefix: list[int] | None = None,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    *rest: Any,
) -> tuple[Any, ...]:
    """Attend to the keys of packed sequences; each row of the second and third result is repeated.

    A row whose scores are all minus infinity gives zeros, which is not documented.
    """
    name = "npu_fusion_attention"
    others = (pse, padding_mask, prefix, *rest)
    is_plain = keep_prob == 1 and inner_precise == 0 and not any(other is not None for other in others)
    demand(is_plain, f"{name}: other options than those of packed sequences are not emulated")
    demand(input_layout == softmax_layout == "TND", f"{name}: packed sequences alone are emulated")
    assert actual_seq_qlen is not None
    assert actual_seq_kvlen is not None
    (tokens, heads, width), (total, kv_heads, _) = query.shape, key.shape
    demand(heads == head_num <= 256 and heads % kv_heads == 0, f"{name}: {heads} heads for {kv_heads}")
    demand(query.dtype is key.dtype is value.dtype, f"{name}: several dtypes")
    demand(value.shape[-1] <= width <= 768 and key.shape[2] == width, f"{name}: heads of {width}")
    demand(len(value) == total, f"{name}: {len(value)} values for {total} keys")
    ends = [0, *actual_seq_qlen], [0, *actual_seq_kvlen]
    demand((ends[0][-1], ends[1][-1]) == (tokens, total), f"{name}: {ends} for {tokens} and {total} rows")
    demand(len(ends[0]) == len(ends[1]) <= 1025, f"{name}: {len(ends[0]) - 1} sequences")
    before, after = _band(name, atten_mask, sparse_mode, (pre_tockens, next_tockens))
    result = query.new_empty(tokens, heads, value.shape[-1])
    peaks, sums = torch.empty(tokens, heads, 8), torch.empty(tokens, heads, 8)
    for rows, of_keys in zip(*(list(map(slice, bounds, bounds[1:])) for bounds in ends), strict=True):
        queries, keys = rows.stop - rows.start, of_keys.stop - of_keys.start
        place = torch.arange(queries).unsqueeze(1) + keys - queries
        distance = torch.arange(keys) - place
        is_seen = (distance <= after) & (distance >= -before)
        demand(bool(is_seen.any(1).all()), f"{name}: a query that sees nothing")
        attended = _attended(query[rows], key[of_keys], value[of_keys], is_seen, scale)
        result[rows] = attended[0]
        peaks[rows], sums[rows] = (x.t().unsqueeze(-1) for x in attended[1:])
    return result, peaks, sums, query.new_empty(0), 0, 0, 0


def _band(name: str, mask: Tensor | None, mode: int, tokens: tuple[int, int]) -> tuple[int, int]:
    """Return how many keys before and behind its own a query sees."""
    if mask is None:
        return NO_END, NO_END
    demand(mode in (3, 4), f"{name}: sparse_mode {mode} is not emulated")
    is_triangle = mask.shape == (2048, 2048) and bool((mask.bool() == torch.ones(2048, 2048).triu(1)).all())
    demand(is_triangle, f"{name}: the mask of this mode is a triangle")
    return (NO_END, 0) if mode == 3 else tokens


def _attended(
    q: Tensor, keys: Tensor, values: Tensor, is_seen: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return results, (N, H, DV), and the largest scores and the sums beside them, (H, N).

    Parameters
    ----------
    q : Tensor, (N, H, D)
    keys, values : Tensors, (L, KH, D) and (L, KH, DV)
    is_seen : Tensor, (N, L), bool
    scale : of the scores
    """
    sharing = q.shape[1] // keys.shape[1]
    of_heads, kept = (x.float().repeat_interleave(sharing, 1).transpose(0, 1) for x in (keys, values))
    scores = (q.float().transpose(0, 1) @ of_heads.mT * scale).masked_fill_(~is_seen, -torch.inf)
    peaks = scores.amax(-1, keepdim=True)
    weights = (scores - peaks).exp()
    sums = weights.sum(-1, keepdim=True)
    weights = (weights / sums).masked_fill(peaks == -torch.inf, 0.0)
    return (weights @ kept).transpose(0, 1).to(q.dtype), peaks.squeeze(-1), sums.squeeze(-1)
