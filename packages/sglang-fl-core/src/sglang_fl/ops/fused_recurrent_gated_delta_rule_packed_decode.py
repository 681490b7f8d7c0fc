"""The op ``fused_recurrent_gated_delta_rule_packed_decode``: one token of linear attention a request."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.delta_rule import (
    beside_peak,
    check_gates,
    check_states,
    gates,
    recur,
    unit_rows,
    without_padding,
)

__all__ = ["OP", "check_packed_decode", "fused_recurrent_gated_delta_rule_packed_decode"]


def fused_recurrent_gated_delta_rule_packed_decode(
    mixed_qkv: Tensor,
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    scale: float,
) -> Tensor:
    """Take one step of the gated delta rule for each request, from one packed projection.

    ``g = -exp(A_log) softplus(a + dt_bias); beta = sigmoid(b)``, then as ``chunk_gated_delta_rule``.

    Source: SGLang ``kernels/ops/attention/fla/fused_recurrent.py``,
    ``fused_recurrent_gated_delta_rule_packed_decode`` with ``use_qk_l2norm_in_kernel=True``, as
    ``TritonGDNKernel.packed_decode`` calls it.

    Parameters
    ----------
    mixed_qkv : Tensor, (B, 2 * H * K + HV * V), float16, bfloat16 or float32, rows at any stride: the
        query heads, the key heads, the value heads; not written
    a, b : Tensors, (B, HV), dtype of ``mixed_qkv``, rows at any stride; not written
    A_log, dt_bias : Tensors, (HV,), float32 or the dtype of ``mixed_qkv``; not written
    initial_state : Tensor, (slots, HV, V, K), see ``chunk_gated_delta_rule``; row
        ``initial_state_indices[n]`` is **updated in place**
    initial_state_indices : Tensor, (B,), int32 or int64, no row twice; a negative one is padding: no state
        is read or written, and its result is left open
    scale : multiplies q after it was scaled to unit length

    Returns
    -------
    o : Tensor, (B, HV, V), dtype of ``mixed_qkv``

    Raises
    ------
    ContractError : shapes that do not fit, or states that share memory
    """
    check_packed_decode(mixed_qkv, a, b, A_log, dt_bias, initial_state, initial_state_indices)
    heads, values, keys = initial_state.shape[1:]
    mixed = mixed_qkv.shape[1] - heads * values
    dtype = compute_dtype(mixed_qkv, initial_state)
    q, k, v = torch.split(mixed_qkv.to(dtype), [mixed // 2, mixed // 2, heads * values], dim=-1)
    q, k = (unit_rows(x.view(len(x), mixed // 2 // keys, keys)) for x in (q, k))
    v = v.view(len(v), heads, values)
    g, beta = gates(A_log, a, dt_bias, b, dtype)
    o = torch.zeros(len(mixed_qkv), heads, values, dtype=dtype, device=mixed_qkv.device)
    for row, index in enumerate(initial_state_indices.tolist()):
        if index < 0:
            continue
        steps = (x[row] for x in (q * scale, k, v, g, beta))
        state, o[row] = recur(initial_state[index].to(dtype), *steps)
        initial_state[index] = state.to(initial_state.dtype)
    return o.to(mixed_qkv.dtype)


def check_packed_decode(
    mixed_qkv: Tensor,
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
) -> None:
    """Raise ``ContractError`` where the arguments do not fit each other, or states share memory."""
    name = "fused_recurrent_gated_delta_rule_packed_decode"
    check_states(name, initial_state)
    heads, values, keys = initial_state.shape[1:]
    requests, width = mixed_qkv.shape
    mixed = width - heads * values
    if mixed <= 0 or mixed % (2 * keys) or heads % (mixed // 2 // keys):
        raise ContractError(
            f"{name}: mixed_qkv {tuple(mixed_qkv.shape)} does not fit states {(heads, values, keys)}"
        )
    check_gates(name, requests, heads, A_log, a, dt_bias, b)
    if initial_state_indices.shape != (requests,):
        raise ContractError(
            f"{name}: initial_state_indices {tuple(initial_state_indices.shape)}, but there are "
            f"{requests} requests"
        )


def _like(*, scale: float, **tensors: Tensor) -> Tensor:
    check_packed_decode(**tensors)
    mixed_qkv = tensors["mixed_qkv"]
    return mixed_qkv.new_empty(len(mixed_qkv), *tensors["initial_state"].shape[1:3])


def _magnitude(truth: Outputs, **arguments: Any) -> tuple[Tensor, ...]:
    o, state = truth
    return beside_peak(o.unsqueeze(-1)).squeeze(-1), beside_peak(state)


def _case(
    name: str,
    batch: int,
    *,
    heads: tuple[int, int] = (2, 4),
    sizes: tuple[int, int] = (64, 64),
    absent: bool = False,
    state_dtype: torch.dtype | None = torch.float32,
    padding: int = 0,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        (query_heads, value_heads), (keys, values) = heads, sizes

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        width = 2 * query_heads * keys + value_heads * values
        indices = torch.randperm(batch + 3, generator=generator)[:batch].to(torch.int32)
        if absent:
            indices[::2] = -1
        return {
            "mixed_qkv": normal(batch, width + padding).to(dtype)[:, :width],
            "a": normal(batch, value_heads).to(dtype),
            "b": normal(batch, value_heads).to(dtype),
            "A_log": normal(value_heads),
            "dt_bias": normal(value_heads),
            "initial_state": (0.1 * normal(batch + 3, value_heads, values, keys)).to(state_dtype or dtype),
            "initial_state_indices": indices,
            "scale": keys**-0.5,
        }

    return Case(name, make)


OP = Op(
    fused_recurrent_gated_delta_rule_packed_decode,
    cases=(
        _case("empty", 0),
        _case("one-request", 1),
        _case("odd-requests", 7),
        _case("equal-heads", 5, heads=(2, 2)),
        _case("wide-values", 5, sizes=(32, 64)),
        _case("state-in-dtype", 5, state_dtype=None),
        _case("padding", 5, absent=True),
        _case("row-strided", 5, padding=64),
    ),
    # The learning rate may be rounded to the dtype; then the output, beside its head's largest element.
    bound=Bound(half=4, single=128),
    rows={"mixed_qkv": 0, "a": 0, "b": 0, "initial_state_indices": 0},
    updates=("initial_state",),
    writes_rows={"initial_state": "initial_state_indices"},
    magnitude=_magnitude,
    comparable=without_padding,
    like=_like,
    may_depend_on_batch=True,
)
