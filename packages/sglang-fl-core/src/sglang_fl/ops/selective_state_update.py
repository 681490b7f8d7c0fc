"""The op ``selective_state_update``: one more token of Mamba-2 for each request."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.delta_rule import beside_peak
from sglang_fl.ops.shared.overlap import shares_memory
from sglang_fl.ops.shared.state_space import check_heads, step, step_sizes

__all__ = ["OP", "selective_state_update"]


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state_batch_indices: Tensor,
) -> Tensor:
    """Take one step of the state space model for each request, from and to a pool of states.

    ``dt = softplus(dt + dt_bias); S = exp(dt A) S + dt x B^T; y = S C + D x``.

    Source: SGLang ``kernels/ops/mamba/triton_ops/mamba_ssm.py``, ``selective_state_update``, as
    ``MambaMixer2`` calls it: with one step size, one A and one D for all elements of a head.

    Parameters
    ----------
    state : Tensor, (slots, H, P, N), a floating dtype, any strides: the pool of states. Row
        ``state_batch_indices[n]`` is **updated in place**, rounded to the pool's dtype; other rows are
        neither read nor written. No two elements share memory
    x : Tensor, (B, H, P), float16, bfloat16 or float32, any strides; not written
    dt : Tensor, (B, H), a floating dtype, any strides; not written
    A, D, dt_bias : Tensors, (H,), a floating dtype; not written
    B, C : Tensors, (B, G, N), dtype of ``x``, any strides; H is a multiple of G, and neighbouring heads share
        one; not written
    state_batch_indices : Tensor, (B,), int32 or int64, no row twice; a negative one is padding: no state is
        read or written, and its result is left open

    Returns
    -------
    y : Tensor, (B, H, P), dtype of ``x``; formed in float32 and rounded once

    Raises
    ------
    ContractError : shapes that do not fit, or states that share memory
    """
    _check(state, x, dt, A, B, C, D, dt_bias, state_batch_indices)
    dtype = compute_dtype(x, state)
    y = torch.zeros(x.shape, dtype=dtype, device=x.device)
    is_row = state_batch_indices >= 0
    rows = state_batch_indices[is_row].long()
    sizes = step_sizes(dt[is_row], dt_bias, dtype)
    wide_x, wide_A, wide_B, wide_C, wide_D = (t.to(dtype) for t in (x[is_row], A, B[is_row], C[is_row], D))
    after, y[is_row] = step(state[rows].to(dtype), wide_x, sizes, wide_A, wide_B, wide_C, wide_D)
    state[rows] = after.to(state.dtype)
    return y.to(x.dtype)


def _check(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state_batch_indices: Tensor,
) -> None:
    op = "selective_state_update"
    check_heads(op, x, dt, A, B, C, D, dt_bias)
    if state.shape[1:] != (*x.shape[1:], B.shape[2]) or len(state_batch_indices) != len(x):
        raise ContractError(
            f"{op}: state {tuple(state.shape)} is not a pool of states {(*x.shape[1:], B.shape[2])}, or "
            "there is not one index for each request"
        )
    if shares_memory(state):
        raise ContractError(
            f"{op}: elements of state {tuple(state.shape)}, strides {state.stride()}, share memory"
        )


def _like(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state_batch_indices: Tensor,
) -> Tensor:
    _check(state, x, dt, A, B, C, D, dt_bias, state_batch_indices)
    return torch.empty_like(x)


def _magnitude(truth: Outputs, **arguments: Any) -> tuple[Tensor, ...]:
    signed = ("state", "x", "B", "C", "D")
    sizes = arguments | {name: arguments[name].abs() for name in signed}
    y = selective_state_update(**sizes)
    return beside_peak(y), beside_peak(sizes["state"])


def _without_padding(outputs: Outputs, arguments: Arguments) -> tuple[Tensor, ...]:
    """Set to zero what belongs to padding; there it is left open."""
    y, *rest = outputs
    is_padding = (arguments["state_batch_indices"] < 0).to(y.device)
    return (y.masked_fill(is_padding[:, None, None], 0), *rest)


def _case(
    name: str,
    batch: int,
    *,
    heads: tuple[int, int] = (4, 2),
    sizes: tuple[int, int] = (32, 64),
    absent: bool = False,
    state_dtype: torch.dtype | None = torch.float32,
    is_poisoned: bool = False,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        (count, groups), (elements, states) = heads, sizes

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        pool = normal(batch + 3, count, elements, states).to(state_dtype or dtype)
        rows = torch.randperm(batch + 3, generator=generator)[:batch].to(torch.int32)
        if is_poisoned:
            pool[[row for row in range(len(pool)) if row not in rows]] = torch.nan
        if absent:
            rows[::2] = -1
        return {
            "state": pool,
            "x": normal(batch, count * elements + 8).to(dtype)[:, :-8].view(batch, count, elements),
            "dt": normal(batch, count).to(dtype),
            "A": -normal(count).exp(),
            "B": normal(batch, groups, states).to(dtype),
            "C": normal(batch, groups, states).to(dtype),
            "D": normal(count),
            "dt_bias": normal(count),
            "state_batch_indices": rows,
        }

    return Case(name, make)


OP = Op(
    selective_state_update,
    cases=(
        _case("empty", 0),
        _case("one-request", 1),
        _case("odd-requests", 7),
        _case("one-group", 5, heads=(3, 1)),
        _case("equal-heads", 5, heads=(2, 2)),
        _case("state-in-dtype", 5, state_dtype=None),
        _case("padding", 5, absent=True),
        _case("other-states-not-finite", 5, is_poisoned=True),
    ),
    # The result is rounded once, beside its head's largest one; the decay is an exponential of a product.
    bound=Bound(half=2, single=64),
    rows={"x": 0, "dt": 0, "B": 0, "C": 0, "state_batch_indices": 0},
    updates=("state",),
    writes_rows={"state": "state_batch_indices"},
    magnitude=_magnitude,
    comparable=_without_padding,
    like=_like,
    may_depend_on_batch=True,
)
