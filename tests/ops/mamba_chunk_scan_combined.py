"""All that the tests know of the op ``mamba_chunk_scan_combined``."""

from typing import Any

import numpy as np
import torch

from sglang_fl.ops import Outputs
from sglang_fl.ops.mamba_chunk_scan_combined import mamba_chunk_scan_combined
from tests.ops.shared.delta_rule import sequences
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.shared.state_space import NO_NATIVE, drawn_heads, run_state_space
from tests.ops.subject import Array, Subject, like


def formula(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    dt_bias: Array,
    initial_states: Array,
    cu_seqlens: Array,
) -> tuple[Array, ...]:
    y, states = np.zeros(x.shape), initial_states.copy()
    for number in range(len(states)):
        at = slice(cu_seqlens[number], cu_seqlens[number + 1])
        given = (x[0, at], dt[0, at], A, B[0, at], C[0, at], D, dt_bias)
        y[0, at], states[number] = run_state_space(*given, states[number])
    return y, states


def draw(source: Source) -> Drawn:
    count, bounds = sequences(source, 6)
    shape, given = drawn_heads(source, 1, int(bounds[-1]))
    return Drawn({"initial_states": source.normal(count, *shape), "cu_seqlens": bounds, **given})


@like(mamba_chunk_scan_combined)
def states_forgotten(**given: Any) -> Outputs:
    return mamba_chunk_scan_combined(**given | {"initial_states": torch.zeros_like(given["initial_states"])})


@like(mamba_chunk_scan_combined)
def states_returned_as_they_were(**given: Any) -> Outputs:
    return mamba_chunk_scan_combined(**given)[0], given["initial_states"].clone()


@like(mamba_chunk_scan_combined)
def step_without_its_bias(**given: Any) -> Outputs:
    return mamba_chunk_scan_combined(**given | {"dt_bias": torch.zeros_like(given["dt_bias"])})


@like(mamba_chunk_scan_combined)
def sequences_run_into_each_other(**given: Any) -> Outputs:
    """A sequence begins where the one before it has ended."""
    states = given["initial_states"].clone()
    for number in range(1, len(states)):
        states[number] = mamba_chunk_scan_combined(**given | {"initial_states": states})[1][number - 1]
    return mamba_chunk_scan_combined(**given | {"initial_states": states})


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=NO_NATIVE,
    wrong={
        "cases": (
            states_forgotten,
            states_returned_as_they_were,
            step_without_its_bias,
            sequences_run_into_each_other,
        ),
    },
)
