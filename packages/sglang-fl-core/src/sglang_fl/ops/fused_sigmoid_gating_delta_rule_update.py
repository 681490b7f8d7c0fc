"""The op ``fused_sigmoid_gating_delta_rule_update``: linear attention over short runs of tokens."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.delta_rule import (
    beside_peak,
    check_gates,
    check_runs,
    gates,
    recur,
    unit_rows,
    without_padding,
)
from sglang_fl.ops.shared.runs import sequences

__all__ = ["OP", "check_gated_runs", "fused_sigmoid_gating_delta_rule_update"]


def fused_sigmoid_gating_delta_rule_update(
    A_log: Tensor,
    a: Tensor,
    dt_bias: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    b: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """Run the gated delta rule over sequences that lie one after the other, and form its gates.

    ``g = -exp(A_log) softplus(a + dt_bias); beta = sigmoid(b)``, then as ``chunk_gated_delta_rule``.

    Source: SGLang ``kernels/ops/attention/linear/fused_sigmoid_gating_recurrent.py`` (0.5.23; before under
    ``fla``), ``fused_sigmoid_gating_delta_rule_update`` with ``use_qk_l2norm_in_kernel=True``,
    ``softplus_beta=1`` and ``softplus_threshold=20``, as ``TritonGDNKernel.decode`` calls it.

    Parameters
    ----------
    A_log, dt_bias : Tensors, (HV,), float32 or the dtype of ``q``; not written
    a, b : Tensors, (T, HV), dtype of ``q``, rows at any stride; not written
    q, k, v : see ``chunk_gated_delta_rule``
    initial_state, initial_state_indices, cu_seqlens : see ``chunk_gated_delta_rule``; the rows of
        ``initial_state`` are **updated in place**
    scale : multiplies q after it was scaled to unit length

    Returns
    -------
    o : Tensor, (1, T, HV, V), dtype of ``q``; left open where the index is negative,
        and for a token that is in no run

    Raises
    ------
    ContractError : shapes that do not fit, or states that share memory
    """
    check_gated_runs(A_log, a, dt_bias, q, k, v, b, initial_state, initial_state_indices, cu_seqlens)
    tokens, values = k.shape[1], v.shape[2:]
    dtype = compute_dtype(q, initial_state)
    wide_q, wide_k = unit_rows(q[0].to(dtype)) * scale, unit_rows(k[0].to(dtype))
    wide_v = v[0].to(dtype)
    g, beta = gates(A_log, a, dt_bias, b, dtype)
    o = torch.zeros(tokens, *values, dtype=dtype, device=q.device)
    for first, last, index in sequences(cu_seqlens, initial_state_indices):
        if index < 0:
            continue
        state = initial_state[index].to(dtype)
        for token in range(first, last):
            steps = (x[token] for x in (wide_q, wide_k, wide_v, g, beta))
            state, o[token] = recur(state, *steps)
        initial_state[index] = state.to(initial_state.dtype)
    return o.unsqueeze(0).to(q.dtype)


def check_gated_runs(
    A_log: Tensor,
    a: Tensor,
    dt_bias: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    b: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
) -> None:
    """Raise ``ContractError`` where the arguments do not fit each other, or states share memory."""
    name = "fused_sigmoid_gating_delta_rule_update"
    check_runs(name, q, k, v, initial_state, initial_state_indices, cu_seqlens)
    check_gates(name, v.shape[1], v.shape[2], A_log, a, dt_bias, b)


def _like(*, scale: float, **tensors: Tensor) -> Tensor:
    check_gated_runs(**tensors)
    return torch.empty_like(tensors["v"], dtype=tensors["q"].dtype)


def _magnitude(truth: Outputs, **arguments: Any) -> tuple[Tensor, ...]:
    return tuple(beside_peak(result) for result in truth)


def _case(
    name: str,
    *lengths: int,
    heads: tuple[int, int] = (2, 4),
    sizes: tuple[int, int] = (64, 64),
    indices: tuple[int, ...] | None = None,
    state_dtype: torch.dtype | None = torch.float32,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        tokens, (query_heads, value_heads), (keys, values) = sum(lengths), heads, sizes

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        slots = len(lengths) + 3
        drawn = torch.randperm(slots, generator=generator)[: len(lengths)].to(torch.int32)
        return {
            "A_log": normal(value_heads),
            "a": normal(tokens, value_heads).to(dtype),
            "dt_bias": normal(value_heads),
            "q": normal(1, tokens, query_heads, keys).to(dtype),
            "k": normal(1, tokens, query_heads, keys).to(dtype),
            "v": normal(1, tokens, value_heads, values).to(dtype),
            "b": normal(tokens, value_heads).to(dtype),
            "initial_state": (0.1 * normal(slots, value_heads, values, keys)).to(state_dtype or dtype),
            "initial_state_indices": drawn if indices is None else torch.tensor(indices, dtype=torch.int32),
            "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
            "scale": keys**-0.5,
        }

    return Case(name, make)


OP = Op(
    fused_sigmoid_gating_delta_rule_update,
    cases=(
        _case("empty", 0),
        _case("one-token", 1),
        _case("odd-requests", 1, 1, 1, 1, 1, 1, 1),
        _case("short-runs", 3, 1, 5),
        _case("equal-heads", 1, 1, heads=(2, 2)),
        _case("wide-values", 1, 2, sizes=(32, 64)),
        _case("state-in-dtype", 1, 2, state_dtype=None),
        _case("padding", 1, 1, 1, indices=(4, -1, 0)),
    ),
    # The learning rate may be rounded to the dtype; then the output, beside its head's largest element.
    bound=Bound(half=4, single=128),
    rows={"a": 0, "q": 1, "k": 1, "v": 1, "b": 0},
    sequences="cu_seqlens",
    updates=("initial_state",),
    writes_rows={"initial_state": "initial_state_indices"},
    magnitude=_magnitude,
    comparable=without_padding,
    like=_like,
    may_depend_on_batch=True,
)
