"""The op ``decode_attention``: attention of one new token for each sequence, over a paged pool."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.attention import (
    LARGE_SCORES,
    check_out,
    check_pools,
    check_temperature,
    gathered,
    may_lack_keys,
    operand_dtype,
    raise_scores,
    rows_of_heads,
    sample_out,
    sample_pools,
    sizes,
    soft_capped,
    temperatures,
)
from sglang_fl.ops.shared.scales import factors

__all__ = ["OP", "check_decode", "decode_attention"]

#: Slots in a block. Sequences are cut into blocks, so that mixed lengths waste no more than a part of one.
_BLOCK = 128
#: Elements of keys that are gathered at a time: about a megabyte, which stays in a cache.
_AT_A_TIME = 2**18
#: The same for PyTorch's kernel, which takes whole sequences: of a long one fewer heads at a time. For more
#: than 32 MB the C library asks the system in each call, which takes longer than attention itself.
_OF_A_SEQUENCE = 2**20


def decode_attention(
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    *,
    logit_cap: float = 0.0,
    temperature_len: int = 0,
    sinks: Tensor | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Outputs:
    """Let one query of each sequence attend to the keys and values in the sequence's slots of a pool.

    ``o = sum_j p_j v_j, p = softmax(t cap tanh(scale q.k / cap))``, with the exponential of the head's sink
    as one more term of the denominator. A window is what the caller leaves out of the slots. A pool may be in
    8 bit; a key is then what lies in its slot times ``k_scale``, and a value that times ``v_scale``.

    Source: SGLang ``kernels/ops/attention/decode_attention.py``, ``decode_attention_fwd``, as
    ``TritonAttnBackend.forward_decode`` calls it.

    Parameters
    ----------
    q : Tensor, (B, H, D), float16, bfloat16 or float32, rows at any stride; not written
    k_buffer : Tensor, (S, KH, D), a floating dtype, in 8 bit float8_e4m3fn or float8_e5m2, the first axis at
        any stride: the pool of keys; H is a multiple of KH, and neighbouring query heads share one of keys;
        not written
    v_buffer : Tensor, (S, KH, DV), like ``k_buffer``, of which it may be a view (latent attention)
    kv_indptr : Tensor, (B + 1,), int32 or int64: sequence b has the slots
        ``kv_indices[kv_indptr[b]:kv_indptr[b + 1]]``; it may have none
    kv_indices : Tensor, (N,), int32 or int64: slots, the new token's own among them; N may be larger than
        ``kv_indptr[-1]``. What lies in a slot that no sequence names is not looked at
    scale : multiplies the scores
    logit_cap : where scores saturate; 0: nowhere
    temperature_len : the scores of a sequence with more keys than so many in its list before its own, n, are
        multiplied by ``t = log(n) / log(temperature_len)``, behind the cap; 0: none are; at least 2
    sinks : Tensor, (H,), a floating dtype: a score without a value
    k_scale, v_scale : what keys and values of the pools are to be multiplied by, both or neither; pools in
        8 bit need them
    return_lse : whether the logarithm of the denominator is returned too
    out : Tensor, (B, H, DV), dtype of ``q``, rows at any stride: a kernel may write it and return it as ``o``

    Returns
    -------
    o : Tensor, (B, H, DV), dtype of ``q``, new or ``out``; formed in float32 and rounded once; 0 for a
        sequence without slots, and where all scores are -inf. Of bfloat16 on a CPU, without options, the
        weights are rounded to bfloat16 too, by PyTorch's kernel: together less than one unit instead of half
        of one
    lse : Tensor, (B, H), float32, only if asked for: the natural logarithm of the denominator, the sink
        included; -inf where nothing is in it

    Raises
    ------
    ContractError : shapes that do not fit; a pool in 8 bit without scales, or one scale alone; a
        ``temperature_len`` of 1 or below 0
    """
    check_decode(
        *(q, k_buffer, v_buffer, kv_indptr, kv_indices, sinks, out),
        *(k_scale, v_scale, temperature_len),
    )
    has_options = logit_cap > 0 or temperature_len > 0 or sinks is not None or k_scale is not None
    if has_options or return_lse:
        options = (logit_cap, temperature_len, sinks, *factors(k_scale, v_scale))
        o, lse = _with_scores(q, k_buffer, v_buffer, kv_indptr, kv_indices, scale, *options)
        return (o, lse) if return_lse else o
    o = _without_scores(q, k_buffer, v_buffer, kv_indptr, kv_indices, scale)
    has_slots = kv_indptr.diff() > 0
    first_keys = k_buffer[kv_indices[kv_indptr[:-1][has_slots]]]
    if (o[..., 0] == 0).any() or not first_keys.isfinite().all():
        again = torch.zeros(o.shape[:2], dtype=torch.bool, device=o.device)
        again[has_slots] = may_lack_keys(o[has_slots], first_keys)
        exact, _ = _with_scores(q, k_buffer, v_buffer, kv_indptr, kv_indices, scale)
        o = torch.where(again.unsqueeze(2), exact, o)
    return o


def _with_scores(
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    logit_cap: float = 0.0,
    temperature_len: int = 0,
    sinks: Tensor | None = None,
    of_keys: float = 1.0,
    of_values: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return results and the logarithms of their denominators, as the op does."""
    dtype = compute_dtype(q, k_buffer, v_buffer)
    kv_heads, values = v_buffer.shape[1:]
    group = q.shape[1] // kv_heads
    grouped = (q.to(dtype) * (scale * of_keys)).reshape(len(q), kv_heads, group, q.shape[2])
    owner, slots, is_slot = _blocks(kv_indptr, kv_indices)
    factor = temperatures(kv_indptr.diff().to(dtype) - 1, temperature_len) if temperature_len else None
    rows = rows_of_heads(slots, kv_heads)
    form = (len(owner), *grouped.shape[1:3])
    peaks, sums = (torch.empty(form, dtype=dtype, device=q.device) for _ in range(2))
    results = torch.empty(*form, values, dtype=dtype, device=q.device)
    step = max(1, _AT_A_TIME // (_BLOCK * kv_heads * q.shape[2]))
    for first in range(0, len(owner), step):
        run = slice(first, first + step)
        scores = grouped[owner[run]] @ gathered(k_buffer, rows[run]).to(dtype).mT
        scores = soft_capped(scores, logit_cap)
        if factor is not None:
            scores *= factor[owner[run], None, None, None]
        scores.masked_fill_(~is_slot[run, None, None], -torch.inf)
        peaks[run] = scores.amax(-1)
        weights = scores.sub_(_finite(peaks[run]).unsqueeze(-1)).exp_()
        sums[run] = weights.sum(-1)
        results[run] = weights @ gathered(v_buffer, rows[run]).to(dtype)

    # Blocks were weighted beside their own peak; beside the sequence's they can be added.
    peak = _largest(peaks, owner, len(q), sinks)
    beside = _finite(peak)
    shares = (peaks - beside[owner]).exp_()
    total = torch.zeros_like(peak).index_add_(0, owner, sums * shares)
    if sinks is not None:
        total += (sinks.to(dtype).reshape(peak.shape[1:]) - beside).exp()
    o = torch.zeros(*peak.shape, values, dtype=dtype, device=q.device)
    o.index_add_(0, owner, results.mul_(shares.unsqueeze(-1)))
    total, beside = total.unsqueeze(-1), beside.unsqueeze(-1)
    # Nothing divided by nothing is 0 here.
    o = torch.where(total == 0, 0.0, o.mul_(of_values) / total).flatten(1, 2).to(q.dtype)
    return o, (beside + total.log()).flatten(1)


def _finite(peaks: Tensor) -> Tensor:
    """Return the largest scores, and 0 where all are -inf: nothing is to be taken away from those."""
    return peaks.masked_fill(peaks == -torch.inf, 0.0)


def _without_scores(
    q: Tensor, k_buffer: Tensor, v_buffer: Tensor, kv_indptr: Tensor, kv_indices: Tensor, scale: float
) -> Tensor:
    """Return results without options, by PyTorch's kernel, which keeps no scores.

    It takes one sequence after the other, so nothing is filled up. The query heads that share keys are
    queries of one head. Keys are copied from the pool slot by slot, because head by head takes up to twice as
    long, and into the same memory each time.
    """
    dtype = operand_dtype(q, k_buffer, v_buffer)
    (_, kv_heads, width), values = k_buffer.shape, v_buffer.shape[2]
    widest, group = max(width, values), q.shape[1] // kv_heads
    grouped = q.to(dtype).view(len(q), kv_heads, group, width)
    o = q.new_zeros(len(q), kv_heads, group, values)
    bounds = kv_indptr.tolist()
    longest = widest * max((last - first for first, last in itertools.pairwise(bounds)), default=0)
    most = max(longest, min(longest * kv_heads, _OF_A_SEQUENCE))
    of_keys, of_values = (pool.new_empty(most) for pool in (k_buffer, v_buffer))

    def by_head(pool: Tensor, memory: Tensor, slots: Tensor) -> Tensor:
        form = (len(slots), *pool.shape[1:])
        found = torch.index_select(pool, 0, slots, out=memory[: math.prod(form)].view(form))
        return found.to(dtype).transpose(0, 1)

    for query, result, (first, last) in zip(grouped, o, itertools.pairwise(bounds), strict=True):
        if first == last:
            continue
        slots = kv_indices[first:last]
        step = max(1, _OF_A_SEQUENCE // (len(slots) * widest))
        for head in range(0, kv_heads, step):
            run = slice(head, head + step)
            keys = by_head(k_buffer[:, run], of_keys, slots)
            result[run] = scaled_dot_product_attention(
                query[run], keys, by_head(v_buffer[:, run], of_values, slots), scale=scale
            )
    return o.flatten(1, 2)


def _blocks(kv_indptr: Tensor, kv_indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the slots of each sequence into blocks.

    The last block of a sequence is filled up with its last slot: another one might hold a NaN, which a weight
    of 0 would not stop.

    Returns
    -------
    owner : Tensor, (N,): the sequence of each block
    slots : Tensor, (N, _BLOCK)
    is_slot : Tensor, (N, _BLOCK), bool: False where it is filled up
    """
    indptr = kv_indptr.long()
    lengths = indptr.diff()
    counts = (lengths + _BLOCK - 1) // _BLOCK
    owner = torch.repeat_interleave(counts)
    within = torch.arange(len(owner), device=indptr.device) - (counts.cumsum(0) - counts)[owner]
    places = within.unsqueeze(1) * _BLOCK + torch.arange(_BLOCK, device=indptr.device)
    length = lengths[owner].unsqueeze(1)
    slots = kv_indices[indptr[owner].unsqueeze(1) + torch.minimum(places, length - 1)]
    return owner, slots.long(), places < length


def _largest(of_blocks: Tensor, owner: Tensor, sequences: int, sinks: Tensor | None) -> Tensor:
    """Return the largest score of each sequence and head, (B, KH, G); -inf where there is none."""
    form = (sequences, *of_blocks.shape[1:])
    largest = torch.full(form, -torch.inf, dtype=of_blocks.dtype, device=of_blocks.device)
    places = owner[:, None, None].expand_as(of_blocks)
    largest.scatter_reduce_(0, places, of_blocks, "amax")
    if sinks is not None:
        largest = torch.maximum(largest, sinks.to(of_blocks.dtype).reshape(form[1:]))
    return largest


def check_decode(
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    sinks: Tensor | None,
    out: Tensor | None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    temperature_len: int = 0,
) -> None:
    """Raise ``ContractError`` where the arguments do not fit."""
    check_pools("decode_attention", q, k_buffer, v_buffer, kv_indices, sinks, k_scale, v_scale)
    if kv_indptr.shape != (len(q) + 1,):
        raise ContractError(
            f"decode_attention: kv_indptr {tuple(kv_indptr.shape)} has not one bound more than the "
            f"{len(q)} sequences"
        )
    check_temperature("decode_attention", temperature_len)
    check_out("decode_attention", out, q, v_buffer)


def _like(
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    *,
    logit_cap: float = 0.0,
    temperature_len: int = 0,
    sinks: Tensor | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Outputs:
    check_decode(
        *(q, k_buffer, v_buffer, kv_indptr, kv_indices, sinks, out),
        *(k_scale, v_scale, temperature_len),
    )
    o = q.new_empty(*q.shape[:2], v_buffer.shape[2])
    return (o, q.new_empty(q.shape[:2], dtype=compute_dtype(q, k_buffer, v_buffer))) if return_lse else o


def _magnitude(truth: Outputs, **arguments: Tensor) -> tuple[Tensor, ...]:
    of_sizes = decode_attention(**arguments | {"v_buffer": arguments["v_buffer"].abs()})  # type: ignore[arg-type]
    return sizes(truth, of_sizes)


def _case(
    name: str,
    *lengths: int,
    heads: tuple[int, int] = (4, 2),
    elements: tuple[int, int] = (64, 64),
    layout: str = "dense",
    before: int = 0,
    beyond: int = 0,
    has_sinks: bool = False,
    has_out: bool = False,
    is_poisoned: bool = False,
    has_large_scores: bool = False,
    bound: Bound | None = None,
    pool_dtype: torch.dtype | None = None,
    scales: tuple[float, float] | None = None,
    **options: float | bool,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        (query_heads, kv_heads), (keys, values), total = heads, elements, before + sum(lengths)
        slots = total + beyond + 5
        form = (slots, (kv_heads, keys, values), pool_dtype or dtype)
        pools = sample_pools(*form, generator, layout, scales or (1.0, 1.0))
        drawn = torch.randperm(slots, generator=generator)
        if is_poisoned:
            for pool in pools:
                pool[drawn[total:]] = torch.inf
        made = {
            "q": torch.randn(len(lengths), query_heads, keys, generator=generator).to(dtype),
            "k_buffer": pools[0],
            "v_buffer": pools[1],
            "kv_indptr": torch.tensor([before, *lengths]).cumsum(0).to(torch.int32),
            "kv_indices": drawn[: total + beyond],
            "scale": keys**-0.5,
            **options,
        }
        if has_large_scores:
            raise_scores(made["q"], pools[0])
        if scales is not None:
            made["k_scale"], made["v_scale"] = scales
        if has_sinks:
            made["sinks"] = torch.randn(query_heads, generator=generator)
        if has_out:
            made["out"] = sample_out(len(lengths), query_heads, values, dtype)
        return made

    return Case(name, make, bound)


_LATENT: Any = {"heads": (4, 1), "elements": (576, 512), "layout": "latent"}

OP = Op(
    decode_attention,
    cases=(
        _case("one-token", 1),
        _case("mixed-lengths", 37, 16, 129, 1, 300),
        _case("whole-blocks", 128, 256),
        _case("no-slots", 0, 9, 0),
        _case("no-sequences"),
        _case("long", 2100, 3),
        _case("many-sequences", *(2, 1, 3) * 30, heads=(2, 1)),
        _case("equal-heads", 37, 5, 9, heads=(3, 3)),
        _case("one-head-of-keys", 5, 40, heads=(7, 1)),
        _case("many-heads-of-queries", 5, 40, heads=(71, 1)),
        _case("wide-values", 21, 5, elements=(32, 96)),
        _case("wide-keys", 21, 5, elements=(192, 128)),
        _case("head-96", 21, 5, elements=(96, 96)),
        _case("head-256", 21, 5, elements=(256, 256)),
        _case("latent", 21, 5, **_LATENT),
        _case("pools-strided", 21, 5, layout="strided"),
        _case("bounds-from-5", 21, 5, 9, before=5),
        _case("longer-list", 21, 5, 9, beyond=30),
        _case("other-slots-not-finite", 21, 130, 9, is_poisoned=True),
        _case("large-scores", 37, 130, has_large_scores=True, bound=LARGE_SCORES),
        _case("soft-cap", 37, 5, logit_cap=0.7),
        _case("temperature", 37, 9, 10, 11, 1, 0, 300, temperature_len=9),
        _case("temperature-behind-the-cap", 37, 5, 130, logit_cap=0.7, temperature_len=2),
        _case("sinks", 37, 5, 0, has_sinks=True),
        _case("lse", 37, 5, 0, 130, return_lse=True),
        _case("result-given", 37, 0, 130, has_out=True),
        _case(
            "everything",
            *(37, 5, 0, 130),
            has_sinks=True,
            return_lse=True,
            logit_cap=1.5,
            temperature_len=20,
        ),
        _case("scales", 37, 5, scales=(0.37, 1.9)),
        _case("e4m3", 37, 0, 130, pool_dtype=torch.float8_e4m3fn, scales=(0.37, 1.9)),
        _case("e5m2", 37, 5, 300, pool_dtype=torch.float8_e5m2, scales=(1.6, 0.45), layout="strided"),
        _case("e4m3-latent", 21, 5, pool_dtype=torch.float8_e4m3fn, scales=(0.7, 0.7), **_LATENT),
        _case(
            "e4m3-everything",
            *(37, 5, 0, 130),
            pool_dtype=torch.float8_e4m3fn,
            scales=(0.3, 2.2),
            has_sinks=True,
            return_lse=True,
            logit_cap=1.5,
        ),
    ),
    # In 16 bit a kernel rounds the weights before they meet the values, and the result. In float32 a score
    # is off by some units of the terms it is made of, and its weight by as many.
    bound=Bound(half=2, single=64),
    rows={"q": 0},
    bounds=("kv_indptr",),
    writes=("out",),
    reads_rows=dict.fromkeys(("k_buffer", "v_buffer"), ("kv_indices", "kv_indptr")),
    magnitude=_magnitude,
    like=_like,
    may_depend_on_batch=True,
)
