"""What the ops of Mamba-2 share: one sequence in float64."""

from typing import Any

import numpy as np

from tests.ops.shared.drawing import Source
from tests.ops.subject import Array

__all__ = ["NO_NATIVE", "drawn_heads", "run_state_space"]

NO_NATIVE = "SGLang has Triton kernels of the state space model, and no path in PyTorch"


def run_state_space(
    x: Array, dt: Array, A: Array, B: Array, C: Array, D: Array, bias: Array, state: Array
) -> tuple[Array, Array]:
    """Run one sequence: (T, H, P), (T, H), (T, G, N) and (H, P, N); head by head, as outer products."""
    state, y = state.copy(), np.zeros(x.shape)
    sizes = np.log1p(np.exp(dt + bias))
    for token in range(len(x)):
        for head in range(x.shape[1]):
            shared, size = head * B.shape[1] // x.shape[1], sizes[token, head]
            state[head] *= np.exp(size * A[head])
            state[head] += size * np.outer(x[token, head], B[token, shared])
            y[token, head] = state[head] @ C[token, shared] + D[head] * x[token, head]
    return y, state


def drawn_heads(source: Source, *rows: int) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Return the shape of a state, and what both ops take of some rows of tokens."""
    groups = source.number(1, 2)
    heads, elements, states = groups * source.number(1, 2), source.number(1, 6), source.number(1, 6)
    given = {
        "x": source.rows(*rows, heads, elements),
        "dt": source.rows(*rows, heads),
        "A": -source.normal(heads).exp(),
        "B": source.rows(*rows, groups, states),
        "C": source.rows(*rows, groups, states),
        "D": source.normal(heads),
        "dt_bias": source.normal(heads),
    }
    return (heads, elements, states), given
