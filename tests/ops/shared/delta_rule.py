"""What the ops of the gated delta rule share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.ops.shared.drawing import Source
from tests.ops.subject import Array

__all__ = ["NO_NATIVE", "formed_gates", "run_sequences", "sequences", "sizes_of_states", "states"]

NO_NATIVE = "SGLang has Triton kernels of the gated delta rule, and no path in PyTorch"


def delta_rule(
    q: Array, k: Array, v: Array, decay: Array, beta: Array, state: Array
) -> tuple[Array, list[Array], Array]:
    """Run one sequence: (T, H, K), (T, HV, V), (T, HV) and (HV, V, K); head by head, as sums."""
    state, before, out = state.copy(), [], np.zeros(v.shape)
    for token in range(len(q)):
        if token % 64 == 0:
            before.append(state.copy())
        for head in range(v.shape[1]):
            shared = head // (v.shape[1] // k.shape[1])
            unit_q, unit_k = (
                x[token, shared] / np.sqrt((x[token, shared] ** 2).sum() + 1e-6) for x in (q, k)
            )
            kept = state[head] * decay[token, head]
            wrong = v[token, head] - kept @ unit_k
            state[head] = kept + beta[token, head] * np.outer(wrong, unit_k)
            out[token, head] = state[head] @ unit_q
    return out, before, state


def run_sequences(q: Array, k: Array, v: Array, decay: Array, beta: Array, pool: Array, given: Any) -> Any:
    indices, bounds, scale = given
    pool, out, before = pool.copy(), np.zeros(v.shape), []
    for number, index in enumerate(indices):
        at = slice(bounds[number], bounds[number + 1])
        start = pool[index] if index >= 0 else np.zeros(pool.shape[1:])
        o, states, last = delta_rule(q[at], k[at], v[at], decay[at], beta[at], start)
        before += states
        if index >= 0:
            pool[index], out[at] = last, o * scale
    empty = np.zeros((0, *pool.shape[1:]))
    return out, np.stack(before) if before else empty, pool


def formed_gates(A_log: Array, a: Array, dt_bias: Array, b: Array) -> tuple[Array, Array]:
    """Return decay and learning rate: exp(-exp(A_log) softplus(x)) = (1 + exp(x)) ** -exp(A_log)."""
    return (1 + np.exp(a + dt_bias)) ** -np.exp(A_log), 1 / (1 + np.exp(-b))


def states(source: Source, sequences: int, value_heads: int, values: int, keys: int) -> dict[str, Any]:
    """Return a pool of states, at some stride, and the row of each sequence, or none."""
    slots = sequences + source.number(0, 3)
    pool = source.normal(slots, value_heads + source.one_of(0, 2), values, keys, scale=0.1)
    indices = source.uniform(slots).argsort()[:sequences]
    absent = source.uniform(sequences) < source.one_of(0.0, 0.4)
    return {
        "initial_state": pool.to(source.one_of(torch.float32, source.dtype))[:, :value_heads],
        "initial_state_indices": indices.masked_fill(absent, -1).to(source.one_of(torch.int32, torch.int64)),
        "scale": keys**-0.5,
    }


def sizes_of_states(source: Source) -> tuple[int, int, int, int]:
    """Return heads of queries and of values, values and keys.

    Of few values all may be small beside the terms that they are made of, and then there is no peak to
    measure an error by.
    """
    query_heads = source.number(1, 2)
    return query_heads, query_heads * source.number(1, 2), source.number(4, 8), source.number(2, 8)


def sequences(source: Source, longest: int) -> tuple[int, Tensor]:
    lengths = [source.number(0, longest) for _ in range(source.number(0, 3))]
    return len(lengths), torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
