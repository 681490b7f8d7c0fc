"""The op ``mamba_chunk_scan_combined``: Mamba-2 over whole prompts."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.delta_rule import beside_peak
from sglang_fl.ops.shared.runs import sequences
from sglang_fl.ops.shared.state_space import check_heads, step, step_sizes

__all__ = ["OP", "mamba_chunk_scan_combined"]


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    initial_states: Tensor,
    cu_seqlens: Tensor,
) -> Outputs:
    """Run the state space model over sequences that lie one after the other.

    ``dt = softplus(dt + dt_bias); S = exp(dt A) S + dt x B^T; y = S C + D x`` for each token.

    Source: SGLang ``kernels/ops/mamba/triton_ops/ssd_combined.py``, ``mamba_chunk_scan_combined``, as
    ``MambaMixer2`` calls it. The size of the chunks changes nothing but rounding, and is left out.

    Parameters
    ----------
    x : Tensor, (1, T, H, P), float16, bfloat16 or float32, any strides; not written
    dt : Tensor, (1, T, H), a floating dtype, any strides; not written
    A, D, dt_bias : Tensors, (H,), a floating dtype; not written
    B, C : Tensors, (1, T, G, N), dtype of ``x``, any strides; H is a multiple of G, and neighbouring heads
        share one; not written
    initial_states : Tensor, (S, H, P, N), a floating dtype: the state before each sequence; not written
    cu_seqlens : Tensor, (S + 1,), int32 or int64: where each sequence begins and the last one ends

    Returns
    -------
    (y, states) : y is (1, T, H, P), dtype of ``x``, formed in float32 and rounded once. states is
        (S, H, P, N), dtype of ``initial_states``: the state after each sequence; of one without tokens, the
        one before it

    Raises
    ------
    ContractError : shapes that do not fit
    """
    _check(x, dt, A, B, C, D, dt_bias, initial_states, cu_seqlens)
    dtype = compute_dtype(x, initial_states)
    sizes = step_sizes(dt[0], dt_bias, dtype)
    wide_x, wide_A, wide_B, wide_C, wide_D = (t.to(dtype) for t in (x[0], A, B[0], C[0], D))
    y = torch.zeros(x.shape[1:], dtype=dtype, device=x.device)
    states = initial_states.clone()
    numbers = torch.arange(len(states))
    for first, last, number in sequences(cu_seqlens, numbers):
        state = initial_states[number].to(dtype)
        for token in range(first, last):
            inputs = (wide_x[token], sizes[token], wide_A, wide_B[token], wide_C[token], wide_D)
            state, y[token] = step(state, *inputs)
        states[number] = state.to(states.dtype)
    return y.unsqueeze(0).to(x.dtype), states


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    initial_states: Tensor,
    cu_seqlens: Tensor,
) -> None:
    op = "mamba_chunk_scan_combined"
    check_heads(op, x, dt, A, B, C, D, dt_bias)
    shape = (*x.shape[2:], B.shape[3])
    if len(x) != 1 or initial_states.shape[1:] != shape or len(cu_seqlens) != len(initial_states) + 1:
        raise ContractError(
            f"{op}: initial_states {tuple(initial_states.shape)} is not one state {shape} for each of the "
            f"sequences of x {tuple(x.shape)}, cu_seqlens {tuple(cu_seqlens.shape)}"
        )


def _like(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    initial_states: Tensor,
    cu_seqlens: Tensor,
) -> Outputs:
    _check(x, dt, A, B, C, D, dt_bias, initial_states, cu_seqlens)
    return torch.empty_like(x), torch.empty_like(initial_states)


def _magnitude(truth: Outputs, **arguments: Any) -> tuple[Tensor, ...]:
    signed = ("x", "B", "C", "D", "initial_states")
    y, states = mamba_chunk_scan_combined(**arguments | {name: arguments[name].abs() for name in signed})
    return beside_peak(y), beside_peak(states)


def _case(
    name: str,
    *lengths: int,
    heads: tuple[int, int] = (4, 2),
    sizes: tuple[int, int] = (32, 64),
    has_states: bool = True,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        (count, groups), (elements, states), tokens = heads, sizes, sum(lengths)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        return {
            "x": normal(1, tokens, count * elements + 8).to(dtype)[..., :-8].view(1, tokens, count, elements),
            "dt": normal(1, tokens, count).to(dtype),
            "A": -normal(count).exp(),
            "B": normal(1, tokens, groups, states).to(dtype),
            "C": normal(1, tokens, groups, states).to(dtype),
            "D": normal(count),
            "dt_bias": normal(count),
            "initial_states": has_states * normal(len(lengths), count, elements, states),
            "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        }

    return Case(name, make)


OP = Op(
    mamba_chunk_scan_combined,
    cases=(
        _case("one-token", 1),
        _case("odd-tokens", 37),
        _case("several-sequences", 5, 1, 70),
        _case("several-chunks", 270),
        _case("no-states", 5, 9, has_states=False),
        _case("no-tokens", 0, 4, 0),
        _case("no-sequences"),
        _case("one-group", 9, 3, heads=(3, 1)),
        _case("equal-heads", 9, 3, heads=(2, 2)),
    ),
    # The kernels round products of a chunk to the dtype, beside the largest element of a head.
    bound=Bound(half=8, single=128),
    rows={"x": 1, "dt": 1, "B": 1, "C": 1},
    sequences="cu_seqlens",
    of_sequences=("initial_states",),
    magnitude=_magnitude,
    like=_like,
    captured=False,  # it is for prompts
    may_depend_on_batch=True,
)
