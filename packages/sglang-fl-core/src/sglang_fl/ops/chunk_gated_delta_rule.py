"""The op ``chunk_gated_delta_rule``: linear attention over whole prompts, from and to a pool of states."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.delta_rule import (
    beside_peak,
    check_runs,
    recur,
    unit_rows,
    without_padding,
)
from sglang_fl.ops.shared.runs import sequences

__all__ = ["CHUNK_SIZE", "OP", "check_chunks", "chunk_gated_delta_rule"]

#: Tokens between two states that are returned.
CHUNK_SIZE = 64


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    scale: float,
) -> Outputs:
    """Run the gated delta rule over sequences that lie one after the other.

    ``S *= exp(g); S += beta (v - S k) k^T; o = scale S q`` for each token, with q and k of unit length.

    Source: Yang et al., "Gated Delta Networks", 2024; SGLang
    ``kernels/ops/attention/fla/chunk.py``, ``chunk_gated_delta_rule`` with
    ``use_qk_l2norm_in_kernel=True``, as ``TritonGDNKernel.extend`` calls it.

    Parameters
    ----------
    q, k : Tensors, (1, T, H, K), float16, bfloat16 or float32, any strides; scaled to unit length here;
        not written
    v : Tensor, (1, T, HV, V), dtype of ``q``, any strides; HV is a multiple of H, and neighbouring value
        heads share a query head; not written
    g : Tensor, (1, T, HV), float32, any strides: the logarithm of the decay; not written
    beta : Tensor, (1, T, HV), float32 or the dtype of ``q``, any strides: the learning rate; not written
    initial_state : Tensor, (slots, HV, V, K), float32 or a 16-bit dtype, the first axis at any stride: the
        pool of states. Row ``initial_state_indices[n]`` is read before sequence n and **updated in place**
        after it, rounded to the pool's dtype; other rows are neither read nor written. No two elements share
        memory
    initial_state_indices : Tensor, (N,), int32 or int64, no row twice; a negative one is padding: no state
        is read or written, and the sequence's results are left open
    cu_seqlens : Tensor, (N + 1,), int32 or int64: where each sequence begins and the last one ends
    scale : multiplies q after it was scaled to unit length

    Returns
    -------
    (o, h) : o is (1, T, HV, V), dtype of ``q``; left open for a token that is in no sequence. h is
        (1, C, HV, V, K), dtype of ``k``: the states before each chunk of 64 tokens of each sequence, sequence
        after sequence. C is the number of chunks or more; what is behind the last is left open, so that no
        host has to wait for ``cu_seqlens``

    Raises
    ------
    ContractError : shapes that do not fit, or states that share memory
    """
    check_chunks(q, k, v, g, beta, initial_state, initial_state_indices, cu_seqlens)
    tokens, keys, values = k.shape[1], k.shape[3], v.shape[2:]
    dtype = compute_dtype(q, initial_state)
    wide_q, wide_k = unit_rows(q[0].to(dtype)) * scale, unit_rows(k[0].to(dtype))
    wide_v, wide_g, wide_beta = (x[0].to(dtype) for x in (v, g, beta))
    o = torch.zeros(tokens, *values, dtype=dtype, device=q.device)
    states = []
    for first, last, index in sequences(cu_seqlens, initial_state_indices):
        # A copy: the row is overwritten below, and h keeps the state before.
        state = initial_state[max(index, 0)].to(dtype, copy=True)
        if index < 0:
            state.zero_()
        for token in range(first, last):
            if (token - first) % CHUNK_SIZE == 0:
                states.append(state)
            steps = (x[token] for x in (wide_q, wide_k, wide_v, wide_g, wide_beta))
            state, o[token] = recur(state, *steps)
        if index >= 0:
            initial_state[index] = state.to(initial_state.dtype)
    empty = torch.zeros(0, *values, keys, dtype=dtype, device=q.device)
    h = torch.stack(states) if states else empty
    return o.unsqueeze(0).to(q.dtype), h.unsqueeze(0).to(k.dtype)


def check_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
) -> None:
    """Raise ``ContractError`` where prompts, their gates and a pool of states do not fit."""
    check_runs("chunk_gated_delta_rule", q, k, v, initial_state, initial_state_indices, cu_seqlens)
    if not g.shape == beta.shape == v.shape[:-1]:
        raise ContractError(
            f"chunk_gated_delta_rule: g {tuple(g.shape)} and beta {tuple(beta.shape)} are not for each value "
            f"head of each token of v {tuple(v.shape)}"
        )


def _like(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    check_chunks(q, k, v, g, beta, initial_state, initial_state_indices, cu_seqlens)
    return torch.empty_like(v, dtype=q.dtype), k.new_empty(1, 0, *initial_state.shape[1:])


def _comparable(outputs: Outputs, arguments: Arguments) -> tuple[Tensor, ...]:
    """Leave out of the states what belongs to no chunk, or to a sequence without a state."""
    o, h, *pool = without_padding(outputs, arguments)
    runs = sequences(arguments["cu_seqlens"], arguments["initial_state_indices"])
    has_state = [index >= 0 for first, last, index in runs for _ in range(first, last, CHUNK_SIZE)]
    h = h[:, : len(has_state)].clone()  # of too few states those that there are
    h[:, ~torch.tensor(has_state[: h.shape[1]], dtype=torch.bool, device=h.device)] = 0
    return o, h, *pool


def _magnitude(truth: Outputs, **arguments: Any) -> tuple[Tensor, ...]:
    """Return the peaks of states, and of results the peak of the head in the whole sequence.

    Where keys are alike, a query may lie across all of them: its result is small beside what it is a sum of.
    """
    o, *states = truth
    size = torch.zeros_like(o)
    for first, last, _ in sequences(arguments["cu_seqlens"], arguments["initial_state_indices"]):
        size[:, first:last] = beside_peak(o[:, first:last], dim=(1, 3))
    return size, *map(beside_peak, states)


def _case(
    name: str,
    *lengths: int,
    heads: tuple[int, int] = (2, 4),
    sizes: tuple[int, int] = (64, 64),
    indices: tuple[int, ...] | None = None,
    state_dtype: torch.dtype | None = torch.float32,
    padding: int = 0,
    before: int = 0,
    behind: int = 0,
    decay: float = 0.0,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        tokens = before + sum(lengths) + behind
        (query_heads, value_heads), (keys, values) = heads, sizes

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        bounds = torch.tensor([before, *lengths]).cumsum(0).to(torch.int32)
        slots = len(lengths) + 3
        drawn = torch.randperm(slots, generator=generator)[: len(lengths)].to(torch.int32)
        pool = 0.1 * normal(slots, value_heads + padding, values, keys)
        return {
            "q": normal(1, tokens, query_heads, keys).to(dtype),
            "k": normal(1, tokens, query_heads, keys).to(dtype),
            "v": normal(1, tokens, value_heads, values).to(dtype),
            "g": torch.nn.functional.logsigmoid(3 + normal(1, tokens, value_heads)) - decay,
            "beta": torch.sigmoid(normal(1, tokens, value_heads)),
            "initial_state": pool.to(state_dtype or dtype)[:, :value_heads],
            "initial_state_indices": drawn if indices is None else torch.tensor(indices, dtype=torch.int32),
            "cu_seqlens": bounds,
            "scale": keys**-0.5,
        }

    return Case(name, make)


OP = Op(
    chunk_gated_delta_rule,
    cases=(
        _case("one-token", 1),
        _case("one-chunk", 64),
        _case("odd-tokens", 37),
        _case("several-chunks", 130),
        _case("several-sequences", 5, 1, 70, heads=(1, 2)),
        _case("padding", 5, 9, indices=(3, -1)),
        _case("equal-heads", 37, heads=(2, 2)),
        _case("wide-values", 37, sizes=(32, 64)),
        _case("odd-sizes", 37, sizes=(48, 80)),
        # The decays of a chunk multiply to so little that one over that overflows.
        _case("strong-decays", 70, 9, decay=4.0),
        _case("state-in-dtype", 37, state_dtype=None),
        _case("pool-strided", 9, 3, padding=2),
        _case("tokens-in-no-sequence", 5, 70, before=3, behind=66),
        _case("empty", 0),
    ),
    # The kernels round products of a chunk to the dtype, beside the largest element of a head.
    bound=Bound(half=8, single=128),
    rows={"q": 1, "k": 1, "v": 1, "g": 1, "beta": 1},
    sequences="cu_seqlens",
    updates=("initial_state",),
    writes_rows={"initial_state": "initial_state_indices"},
    operands="q",
    magnitude=_magnitude,
    comparable=_comparable,
    like=_like,
    longer={1: 1},
    captured=False,  # it is for prompts, and the number of chunks depends on the values of cu_seqlens
    may_depend_on_batch=True,
)
