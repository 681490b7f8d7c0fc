"""The op ``extend_attention``: attention of new tokens to each other and to a prefix in a paged pool."""

import itertools
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
    may_lack_keys,
    operand_dtype,
    raise_scores,
    sample_out,
    sample_pools,
    sizes,
    soft_capped,
)
from sglang_fl.ops.shared.scales import factors
from sglang_fl.ops.shared.seen import Seen, trees_of

__all__ = ["OP", "check_extend", "extend_attention"]


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
    temperature_len: int = 0,
    sinks: Tensor | None = None,
    custom_mask: Tensor | None = None,
    mask_indptr: Tensor | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Outputs:
    """Let the new tokens of each sequence attend to its prefix in a pool, and to each other.

    ``o = sum_j p_j v_j, p = softmax(t cap tanh(scale q.k / cap))`` over the keys that a query sees, with the
    exponential of the head's sink as one more term of the denominator. A pool may be in 8 bit; a key of the
    prefix is then what lies in its slot times ``k_scale``, and a value that times ``v_scale``. New keys and
    values have no scale.

    Source: SGLang ``kernels/ops/attention/extend_attention.py``, ``extend_attention_fwd``, as
    ``TritonAttnBackend.forward_extend`` calls it. Its custom mask has columns for the prefix too, which it
    does not read; here it has none.

    Parameters
    ----------
    q : Tensor, (T, H, D), float16, bfloat16 or float32, rows at any stride; not written
    k : Tensor, (T, KH, D), dtype of ``q``, rows at any stride: the keys of the new tokens; H is a multiple of
        KH, and neighbouring query heads share one of keys; not written
    v : Tensor, (T, KH, DV), like ``k``
    k_buffer : Tensor, (S, KH, D), a floating dtype, in 8 bit float8_e4m3fn or float8_e5m2, the first axis at
        any stride: the pool with the keys of the prefix; what it has of the new tokens is not looked at; not
        written
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
    temperature_len : the scores of a query with more keys than so many before its own in its list and its
        text, n, seen or not, are multiplied by ``t = log(n) / log(temperature_len)``, behind the cap; 0: none
        are; at least 2
    sinks : Tensor, (H,), a floating dtype: a score without a value
    custom_mask : Tensor, (M,), bool: for new tokens that are a tree of drafts instead of a text, which new
        tokens of its sequence each one sees, row by row; ``is_causal`` is not looked at then. Each sees the
        whole prefix, itself, and none after itself; the others that it sees stand before it in the text, and
        a window and a temperature count them alone
    mask_indptr : Tensor, (B + 1,), int32 or int64, beside ``custom_mask``: of N new tokens of sequence b the
        (N, N) elements begin at ``mask_indptr[b]``
    k_scale, v_scale : what keys and values of the pools are to be multiplied by, both or neither; pools in
        8 bit need them
    return_lse : whether the logarithm of the denominator is returned too
    out : Tensor, (T, H, DV), dtype of ``q``, rows at any stride: a kernel may write it and return it as ``o``

    Returns
    -------
    o : Tensor, (T, H, DV), dtype of ``q``, new or ``out``; formed in float32 and rounded once; 0 in padding,
        and where all scores are -inf. Of bfloat16 on a CPU with AMX, without options but masks, the
        weights are rounded to bfloat16 too, as in ``decode_attention``
    lse : Tensor, (T, H), float32, only if asked for: the natural logarithm of the denominator, the sink
        included; -inf in padding

    Raises
    ------
    ContractError : shapes that do not fit; a pool in 8 bit without scales, or one scale alone; a
        ``temperature_len`` of 1 or below 0
    """
    check_extend(
        *(q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, sinks, out),
        *(custom_mask, mask_indptr, k_scale, v_scale, temperature_len),
    )
    of_keys, of_values = factors(k_scale, v_scale)
    dtype = compute_dtype(q, k, v, k_buffer, v_buffer)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=dtype, device=q.device)
    needs_scores = return_lse or sinks is not None or logit_cap > 0 or temperature_len > 0
    if not needs_scores and k_scale is None and _multiplies_bfloat16():
        dtype = operand_dtype(q, k, v, k_buffer, v_buffer)
    o, bounds = q.new_empty(*q.shape[:2], v.shape[2]), qo_indptr.tolist()
    o[: bounds[0]], o[bounds[-1] :] = 0.0, 0.0
    of_head = None if sinks is None else sinks.to(dtype).unsqueeze(1)
    prefixes = kv_indptr.tolist()
    trees = trees_of(custom_mask, mask_indptr, qo_indptr)
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first == last:
            continue
        slots = kv_indices[prefixes[number] : prefixes[number + 1]].long()
        keys = _by_head(k_buffer, slots, of_keys, k[first:last], dtype)
        values = _by_head(v_buffer, slots, of_values, v[first:last], dtype)
        seen = Seen(is_causal, sliding_window, keys.shape[1], trees[number])
        new = q[first:last].to(dtype).transpose(0, 1)
        if not needs_scores:
            o[first:last] = _attend_without_scores(new, keys, values, seen, scale).transpose(0, 1)
            again = may_lack_keys(o[first:last], keys[:, :1].transpose(0, 1))
            if not again.any():
                continue
            new, keys, values = (x.to(lse.dtype) for x in (new, keys, values))
        factors_of = seen.temperatures(last - first, temperature_len, new) if temperature_len else None
        for rows, block, is_seen in seen.steps(last - first, q.shape[1], q.device):
            factor = None if factors_of is None else factors_of[rows]
            given = (new[:, rows], keys[:, block], values[:, block], is_seen)
            result, sums = _attend(*given, scale, logit_cap, factor, of_head)
            result, there = result.transpose(0, 1), o[first:last][rows]
            there.copy_(result if needs_scores else torch.where(again[rows, :, None], result, there))
            lse[first:last][rows] = sums.transpose(0, 1)
    return (o, lse) if return_lse else o


def _attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    is_seen: Tensor | None,
    scale: float,
    logit_cap: float,
    factor: Tensor | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return results, (H, N, DV), and the logarithm of their denominators, (H, N).

    Parameters
    ----------
    q : Tensor, (H, N, D)
    keys, values : Tensors, (KH, L, D) and (KH, L, DV)
    is_seen : Tensor, (N, L), bool; None: all
    scale, logit_cap : as of the op
    factor : Tensor, (N,), of capped scores; None: 1
    sinks : Tensor, (H, 1), or None
    """
    kv_heads, queries = keys.shape[0], q.shape[1]
    grouped = (q * scale).reshape(kv_heads, -1, q.shape[2])
    scores = soft_capped(grouped @ keys.mT, logit_cap).view(len(q), queries, -1)
    if factor is not None:
        scores *= factor.unsqueeze(1)
    if is_seen is not None:
        scores.masked_fill_(~is_seen, -torch.inf)
    sums = scores.logsumexp(-1)
    if sinks is not None:
        sums = torch.logaddexp(sums, sinks.expand_as(sums))
    weights = scores.sub_(sums.unsqueeze(-1)).exp_()
    # Where all scores are -inf nothing is seen; PyTorch's own attention takes it so too.
    weights = weights.masked_fill_((sums == -torch.inf).unsqueeze(-1), 0.0).view(
        kv_heads, -1, scores.shape[2]
    )
    return (weights @ values).view(len(q), queries, -1), sums


def _attend_without_scores(q: Tensor, keys: Tensor, values: Tensor, seen: Seen, scale: float) -> Tensor:
    """Return results as ``_attend`` does of plain scores, by PyTorch's kernel, which keeps none.

    Of a causal text that of a CPU leaves out what no query sees, if values are as wide as keys; all else is
    told by masks. Then the heads that share keys get views of the same, because not every chip's kernel takes
    fewer key heads than query heads.
    """
    if seen.is_text(q.shape[1]) and q.device.type == "cpu" and keys.shape == values.shape:
        q, keys, values = (x.unsqueeze(0) for x in (q, keys, values))
        result = scaled_dot_product_attention(q, keys, values, is_causal=True, scale=scale, enable_gqa=True)
        return result[0]
    group = len(q) // len(keys)
    grouped = q.view(len(keys), group, *q.shape[1:])
    keys, values = (x.unsqueeze(1).expand(-1, group, -1, -1) for x in (keys, values))
    results = [
        scaled_dot_product_attention(
            grouped[:, :, rows], keys[:, :, block], values[:, :, block], is_seen, scale=scale
        )
        for rows, block, is_seen in seen.steps(q.shape[1], len(q), q.device)
    ]
    return torch.cat(results, 2).flatten(0, 1)


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has units for products in bfloat16 (AMX).

    Without them a prompt of 1024 tokens takes up to 1.7 times as long in bfloat16 as in float32.
    """
    # PyTorch 2.11 may not tell.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16", False))


def _by_head(pool: Tensor, slots: Tensor, factor: float, new: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the keys or values of a sequence, (KH, L, D); those in the pool are multiplied by a factor."""
    together = new.to(dtype)
    if len(slots):
        together = torch.cat((pool.index_select(0, slots).to(dtype).mul_(factor), together))
    return together.transpose(0, 1)


def check_extend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    sinks: Tensor | None,
    out: Tensor | None,
    custom_mask: Tensor | None = None,
    mask_indptr: Tensor | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    temperature_len: int = 0,
) -> None:
    """Raise ``ContractError`` where the arguments do not fit."""
    check_pools("extend_attention", q, k_buffer, v_buffer, kv_indices, sinks, k_scale, v_scale)
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
    check_temperature("extend_attention", temperature_len)
    check_out("extend_attention", out, q, v)
    if custom_mask is None and mask_indptr is None:
        return
    if custom_mask is None or mask_indptr is None:
        raise ContractError("extend_attention: of custom_mask and mask_indptr one alone is given")
    if custom_mask.dim() != 1 or custom_mask.dtype != torch.bool or mask_indptr.shape != qo_indptr.shape:
        raise ContractError(
            f"extend_attention: custom_mask {tuple(custom_mask.shape)} in {custom_mask.dtype} needs one axis "
            f"of bools, and mask_indptr {tuple(mask_indptr.shape)} the shape of qo_indptr "
            f"{tuple(qo_indptr.shape)}"
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
    temperature_len: int = 0,
    sinks: Tensor | None = None,
    custom_mask: Tensor | None = None,
    mask_indptr: Tensor | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Outputs:
    check_extend(
        *(q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, sinks, out),
        *(custom_mask, mask_indptr, k_scale, v_scale, temperature_len),
    )
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
    tokens_before: int = 0,
    has_sinks: bool = False,
    has_out: bool = False,
    is_poisoned: bool = False,
    has_trees: bool = False,
    has_large_scores: bool = False,
    bound: Bound | None = None,
    pool_dtype: torch.dtype | None = None,
    scales: tuple[float, float] | None = None,
    **options: float | bool,
) -> Case:
    """Return a case; ``lengths`` are those of the prefix and the new tokens of each sequence."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        (query_heads, kv_heads), (keys, values) = heads, elements
        prefixes, new = [length for length, _ in lengths], [length for _, length in lengths]
        slots, tokens = before + sum(prefixes) + 5, tokens_before + sum(new) + padding
        form = (kv_heads, keys, values)
        stored = (pool_dtype or dtype, generator, layout, scales or (1.0, 1.0))
        pools = sample_pools(slots, form, *stored)
        drawn = torch.randperm(slots, generator=generator)
        if is_poisoned:
            for pool in pools:
                pool[drawn[before + sum(prefixes) :]] = torch.inf
        k, v = sample_pools(tokens, form, dtype, generator, layout)
        made = {
            "q": torch.randn(tokens, query_heads, keys, generator=generator).to(dtype),
            "k": k,
            "v": v,
            "k_buffer": pools[0],
            "v_buffer": pools[1],
            "qo_indptr": torch.tensor([tokens_before, *new]).cumsum(0),
            "kv_indptr": torch.tensor([before, *prefixes]).cumsum(0).to(torch.int32),
            "kv_indices": drawn[: before + sum(prefixes)],
            "scale": keys**-0.5,
            **options,
        }
        if has_large_scores:
            raise_scores(made["q"], k, pools[0])
        if scales is not None:
            made["k_scale"], made["v_scale"] = scales
        if has_sinks:
            made["sinks"] = torch.randn(query_heads, generator=generator)
        if has_out:
            made["out"] = sample_out(tokens, query_heads, values, dtype)
        if has_trees:
            trees = [_sample_tree(count, generator).flatten() for count in new]
            made["custom_mask"] = torch.cat((torch.ones(before, dtype=torch.bool), *trees))
            made["mask_indptr"] = torch.tensor([before, *map(len, trees)]).cumsum(0)
        return made

    return Case(name, make, bound)


def _sample_tree(count: int, generator: torch.Generator) -> Tensor:
    """Return which nodes of a tree each of its nodes has above itself, and itself, (N, N), bool."""
    is_seen = torch.eye(count, dtype=torch.bool)
    for node in range(1, count):
        parent = int(torch.randint(max(0, node - 3), node, (), generator=generator))
        is_seen[node] |= is_seen[parent]
    return is_seen


_LATENT: Any = {"heads": (4, 1), "elements": (576, 512), "layout": "latent"}

OP = Op(
    extend_attention,
    cases=(
        _case("one-token", (0, 1)),
        _case("no-prefix", (0, 37), (0, 1), (0, 20)),
        _case("prefixes", (9, 20), (0, 5), (40, 1), (3, 9)),
        _case("several-blocks", (200, 300)),
        _case("many-keys", (100, 600), (1100, 3)),
        _case("many-sequences", *((2, 1), (0, 2)) * 40),
        _case("no-tokens", (7, 0), (3, 4), (0, 0)),
        _case("no-sequences"),
        _case("padding", (5, 9), (0, 3), padding=4),
        _case("padding-in-front", (5, 9), (0, 3), tokens_before=3),
        _case("equal-heads", (5, 9), (2, 6), heads=(3, 3)),
        _case("many-heads-of-queries", (5, 9), (2, 6), heads=(71, 1)),
        _case("wide-values", (5, 9), elements=(32, 96)),
        _case("wide-keys", (5, 9), elements=(192, 128)),
        _case("head-96", (5, 9), elements=(96, 96)),
        _case("head-256", (5, 9), elements=(256, 256)),
        _case("latent", (5, 9), (0, 3), **_LATENT),
        _case("pools-strided", (5, 9), (0, 3), layout="strided"),
        _case("bounds-from-5", (5, 9), (2, 3), before=5),
        _case("other-slots-not-finite", (5, 9), (0, 3), is_poisoned=True),
        _case("not-causal", (0, 17), (0, 5), is_causal=False),
        _case("not-causal-with-prefixes", (9, 17), (30, 5), is_causal=False),
        _case("not-causal-in-a-window", (9, 17), (30, 5), is_causal=False, sliding_window=7),
        _case("window", (20, 30), (2, 9), sliding_window=7),
        _case("window-wider-than-texts", (20, 30), (2, 9), sliding_window=4095),
        _case("own-key-alone", (5, 9), sliding_window=0),
        _case("large-scores", (37, 20), (0, 50), has_large_scores=True, bound=LARGE_SCORES),
        _case("soft-cap", (9, 20), (0, 5), logit_cap=0.7),
        _case("temperature", (5, 9), (0, 12), (40, 3), (9, 1), temperature_len=9),
        _case("temperature-behind-the-cap", (9, 20), (0, 5), logit_cap=0.7, temperature_len=2),
        _case("temperature-in-a-window", (20, 30), (2, 9), temperature_len=12, sliding_window=7),
        _case("sinks", (9, 20), (0, 5), has_sinks=True),
        _case("lse", (9, 20), (0, 5), padding=2, return_lse=True),
        _case("result-given", (9, 20), (0, 5), padding=2, has_out=True),
        _case("trees", (9, 12), (0, 5), (40, 1), (3, 8), has_trees=True),
        _case("trees-in-a-window", (20, 12), (2, 9), (5, 0), has_trees=True, sliding_window=3, before=3),
        _case("trees-with-a-temperature", (9, 12), (0, 5), (3, 8), has_trees=True, temperature_len=4),
        _case(
            "everything",
            (9, 20),
            has_sinks=True,
            return_lse=True,
            logit_cap=1.5,
            temperature_len=15,
            sliding_window=6,
        ),
        _case("scales", (20, 9), (0, 5), scales=(0.37, 1.9)),
        _case("e4m3", (20, 9), (0, 5), (40, 1), pool_dtype=torch.float8_e4m3fn, scales=(0.37, 1.9)),
        _case("e5m2", (20, 9), (3, 30), pool_dtype=torch.float8_e5m2, scales=(1.6, 0.45), layout="strided"),
        _case("e4m3-latent", (9, 5), (0, 3), pool_dtype=torch.float8_e4m3fn, scales=(0.7, 0.7), **_LATENT),
        _case(
            "e4m3-everything",
            *((9, 20), (30, 4)),
            pool_dtype=torch.float8_e4m3fn,
            scales=(0.3, 2.2),
            has_sinks=True,
            return_lse=True,
            logit_cap=1.5,
            sliding_window=16,
        ),
    ),
    # As of ``decode_attention``.
    bound=Bound(half=2, single=64),
    rows={"q": 0, "k": 0, "v": 0},
    sequences="qo_indptr",
    bounds=("kv_indptr", "mask_indptr"),
    writes=("out",),
    reads_rows=dict.fromkeys(("k_buffer", "v_buffer"), ("kv_indices", "kv_indptr")),
    magnitude=_magnitude,
    like=_like,
    captured=False,  # it is for prompts
    may_depend_on_batch=True,
)
