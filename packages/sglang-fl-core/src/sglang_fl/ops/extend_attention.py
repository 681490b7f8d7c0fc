"""The op ``extend_attention``: attention of new tokens to each other and to a prefix in a paged pool."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.attention import check_pools, sample_pools, sizes, soft_capped

__all__ = ["OP", "extend_attention"]

#: Scores that are formed at a time: a few megabytes, which stay in a cache.
_AT_A_TIME = 2**20


def extend_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    *,
    is_causal: bool = True,
    sliding_window: int = -1,
    logit_cap: float = 0.0,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Outputs:
    """Let the new tokens of each sequence attend to its prefix in a pool, and to each other.

    ``o = sum_j p_j v_j, p = softmax(cap tanh(scale q.k / cap))`` over the keys that a query sees, with the
    exponential of the head's sink as one more term of the denominator.

    Source: SGLang ``kernels/ops/attention/extend_attention.py``, ``extend_attention_fwd``, as
    ``TritonAttnBackend.forward_extend`` calls it. Its custom mask, for drafted tokens, is not part of this
    contract yet.

    Parameters
    ----------
    q : Tensor, (T, H, D), float16, bfloat16 or float32, rows at any stride; not written
    k : Tensor, (T, KH, D), dtype of ``q``, rows at any stride: the keys of the new tokens; H is a multiple of
        KH, and neighbouring query heads share one of keys; not written
    v : Tensor, (T, KH, DV), like ``k``
    k_buffer : Tensor, (S, KH, D), a floating dtype, the first axis at any stride: the pool with the keys of
        the prefix; what it has of the new tokens is not looked at; not written
    v_buffer : Tensor, (S, KH, DV), like ``k_buffer``, of which it may be a view (latent attention)
    qo_indptr : Tensor, (B + 1,), int32 or int64: the new tokens of sequence b are the rows
        ``qo_indptr[b]:qo_indptr[b + 1]``; it may have none. Rows that belong to no sequence are padding
    kv_indptr : Tensor, (B + 1,), int32 or int64: its prefix has the slots
        ``kv_indices[kv_indptr[b]:kv_indptr[b + 1]]``, in the order of the text and without a gap before the
        new tokens; of a prefix beyond the window they may be left out
    kv_indices : Tensor, (N,), int32 or int64: slots; N may be larger than ``kv_indptr[-1]``
    scale : multiplies the scores
    is_causal : whether a query sees no new token after its own
    sliding_window : how many keys before its own a query sees; -1: all
    logit_cap : where scores saturate; 0: nowhere
    sinks : Tensor, (H,), a floating dtype: a score without a value
    return_lse : whether the logarithm of the denominator is returned too

    Returns
    -------
    o : Tensor, (T, H, DV), dtype of ``q``, new; formed in float32 and rounded once; 0 in padding
    lse : Tensor, (T, H), float32, only if asked for: the natural logarithm of the denominator, the sink
        included; -inf in padding

    Raises
    ------
    ContractError : shapes that do not fit
    """
    _check(q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, sinks)
    dtype = compute_dtype(q, k, v, k_buffer, v_buffer)
    kv_heads, groups = k.shape[1], q.shape[1] // k.shape[1]
    o = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=dtype, device=q.device)
    by_group = sinks if sinks is None else sinks.to(dtype).reshape(kv_heads, groups, 1)
    seen = _Seen(is_causal, sliding_window)
    prefixes = kv_indptr.tolist()
    for number, (first, last) in enumerate(_spans(qo_indptr)):
        if first == last:
            continue
        slots = kv_indices[prefixes[number] : prefixes[number + 1]].long()
        keys = _by_head(k_buffer.index_select(0, slots), k[first:last], dtype)
        values = _by_head(v_buffer.index_select(0, slots), v[first:last], dtype)
        step = max(16, _AT_A_TIME // (q.shape[1] * keys.shape[1]))
        for begin in range(first, last, step):
            rows = slice(begin, min(begin + step, last))
            block = seen.by(begin - first + len(slots), rows.stop - first + len(slots), keys.shape[1])
            count = rows.stop - begin
            queries = (q[rows].to(dtype) * scale).reshape(count, kv_heads, groups, -1).movedim(0, 2)
            scores = queries.flatten(1, 2) @ keys[:, block].mT
            scores = soft_capped(scores, logit_cap).view(kv_heads, groups, count, -1)
            seen.hide(scores, begin - first + len(slots) - block.start)
            weights, sums = _softmax(scores, by_group, return_lse)
            result = (weights.flatten(1, 2) @ values[:, block]).view(kv_heads, groups, count, -1)
            o[rows] = result.movedim(2, 0).flatten(1, 2)
            if sums is not None:
                lse[rows] = sums.movedim(2, 0).flatten(1, 2)
    return (o, lse) if return_lse else o


@dataclass(frozen=True)
class _Seen:
    """Which keys of a sequence a query sees; both are counted from the first key."""

    is_causal: bool
    window: int

    def by(self, first: int, last: int, keys: int) -> slice:
        """Return the keys that any query from ``first`` to before ``last`` sees."""
        begin = max(0, first - self.window) if self.window >= 0 else 0
        return slice(begin, last if self.is_causal else keys)

    def hide(self, scores: Tensor, first: int) -> None:
        """Set scores to -inf where the query, of which ``first`` is the first one's place, sees no key."""
        queries, keys = scores.shape[-2:]
        ones = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
        if self.is_causal and queries > 1:  # one query alone was given the keys that it sees
            scores.masked_fill_(ones.triu(first + 1), -torch.inf)
        if self.window >= 0:
            scores.masked_fill_(ones.tril(first - self.window - 1), -torch.inf)


def _spans(indptr: Tensor) -> Iterator[tuple[int, int]]:
    return itertools.pairwise(indptr.tolist())


def _by_head(prefix: Tensor, new: Tensor, dtype: torch.dtype) -> Tensor:
    """Return keys or values of a sequence, (KH, L, D), dense."""
    together = torch.cat((prefix.to(dtype), new.to(dtype))) if len(prefix) else new.to(dtype)
    return together.transpose(0, 1).contiguous()


def _softmax(scores: Tensor, sinks: Tensor | None, needs_sum: bool) -> tuple[Tensor, Tensor | None]:
    """Return weights and, where it is needed, the logarithm of the denominator.

    Parameters
    ----------
    scores : Tensor, (KH, G, N, L); overwritten
    sinks : Tensor, (KH, G, 1), or None
    needs_sum : whether the second is
    """
    if sinks is None and not needs_sum:
        return scores.softmax(-1), None
    sums = scores.logsumexp(-1)
    if sinks is not None:
        sums = torch.logaddexp(sums, sinks.expand_as(sums))
    return scores.sub_(sums.unsqueeze(-1)).exp_(), sums


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    sinks: Tensor | None,
) -> None:
    check_pools("extend_attention", q, k_buffer, v_buffer, kv_indices, sinks)
    if k.shape != (len(q), *k_buffer.shape[1:]) or v.shape != (len(q), *v_buffer.shape[1:]):
        raise ContractError(
            f"extend_attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, k_buffer "
            f"{tuple(k_buffer.shape)} and v_buffer {tuple(v_buffer.shape)} do not fit"
        )
    if qo_indptr.dim() != 1 or not len(qo_indptr) or qo_indptr.shape != kv_indptr.shape:
        raise ContractError(
            f"extend_attention: qo_indptr {tuple(qo_indptr.shape)} and kv_indptr {tuple(kv_indptr.shape)} "
            "are not for the same sequences"
        )


def _like(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    *,
    is_causal: bool = True,
    sliding_window: int = -1,
    logit_cap: float = 0.0,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Outputs:
    _check(q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, sinks)
    o = q.new_empty(*q.shape[:2], v.shape[2])
    dtype = compute_dtype(q, k, v, k_buffer, v_buffer)
    return (o, q.new_empty(q.shape[:2], dtype=dtype)) if return_lse else o


def _magnitude(truth: Outputs, **arguments: Tensor) -> tuple[Tensor, ...]:
    positive = {name: arguments[name].abs() for name in ("v", "v_buffer")}
    return sizes(truth, extend_attention(**arguments | positive))  # type: ignore[arg-type]


def _case(
    name: str,
    *lengths: tuple[int, int],
    heads: tuple[int, int] = (4, 2),
    elements: tuple[int, int] = (64, 64),
    layout: str = "dense",
    padding: int = 0,
    before: int = 0,
    has_sinks: bool = False,
    is_poisoned: bool = False,
    **options: float | bool,
) -> Case:
    """Return a case; ``lengths`` are those of the prefix and the new tokens of each sequence."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        (query_heads, kv_heads), (keys, values) = heads, elements
        prefixes, new = [length for length, _ in lengths], [length for _, length in lengths]
        slots, tokens = before + sum(prefixes) + 5, sum(new) + padding
        pools = sample_pools(slots, (kv_heads, keys, values), dtype, generator, layout)
        drawn = torch.randperm(slots, generator=generator)
        if is_poisoned:
            for pool in pools:
                pool[drawn[before + sum(prefixes) :]] = torch.nan
        k, v = sample_pools(tokens, (kv_heads, keys, values), dtype, generator, layout)
        made = {
            "q": torch.randn(tokens, query_heads, keys, generator=generator).to(dtype),
            "k": k,
            "v": v,
            "k_buffer": pools[0],
            "v_buffer": pools[1],
            "qo_indptr": torch.tensor([0, *new]).cumsum(0),
            "kv_indptr": torch.tensor([before, *prefixes]).cumsum(0).to(torch.int32),
            "kv_indices": drawn[: before + sum(prefixes)],
            "scale": keys**-0.5,
            **options,
        }
        if has_sinks:
            made["sinks"] = torch.randn(query_heads, generator=generator)
        return made

    return Case(name, make)


OP = Op(
    extend_attention,
    cases=(
        _case("one-token", (0, 1)),
        _case("no-prefix", (0, 37), (0, 1), (0, 20)),
        _case("prefixes", (9, 20), (0, 5), (40, 1), (3, 9)),
        _case("several-blocks", (200, 300)),
        _case("no-tokens", (7, 0), (3, 4), (0, 0)),
        _case("no-sequences"),
        _case("padding", (5, 9), (0, 3), padding=4),
        _case("equal-heads", (5, 9), (2, 6), heads=(3, 3)),
        _case("wide-values", (5, 9), elements=(32, 96)),
        _case("latent", (5, 9), (0, 3), heads=(4, 1), elements=(576, 512), layout="latent"),
        _case("pools-strided", (5, 9), (0, 3), layout="strided"),
        _case("bounds-from-5", (5, 9), (2, 3), before=5),
        _case("other-slots-not-finite", (5, 9), (0, 3), is_poisoned=True),
        _case("not-causal", (0, 17), (0, 5), is_causal=False),
        _case("window", (20, 30), (2, 9), sliding_window=7),
        _case("own-key-alone", (5, 9), sliding_window=0),
        _case("soft-cap", (9, 20), (0, 5), logit_cap=0.7),
        _case("sinks", (9, 20), (0, 5), has_sinks=True),
        _case("lse", (9, 20), (0, 5), padding=2, return_lse=True),
        _case("everything", (9, 20), has_sinks=True, return_lse=True, logit_cap=1.5, sliding_window=6),
    ),
    # As of ``decode_attention``.
    bound=Bound(half=2, single=64),
    rows={"q": 0, "k": 0, "v": 0},
    sequences="qo_indptr",
    bounds=("kv_indptr",),
    magnitude=_magnitude,
    like=_like,
    captured=False,  # it is for prompts
)
