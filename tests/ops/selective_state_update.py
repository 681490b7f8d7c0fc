"""All that the tests know of the op ``selective_state_update``."""

from typing import Any

import numpy as np
import torch

from sglang_fl.ops import Outputs
from sglang_fl.ops.selective_state_update import selective_state_update
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.shared.state_space import NO_NATIVE, drawn_heads, run_state_space
from tests.ops.subject import Array, Subject, like


def formula(
    state: Array,
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    dt_bias: Array,
    state_batch_indices: Array,
) -> tuple[Array, ...]:
    y, pool = np.zeros(x.shape), state.copy()
    for number, index in enumerate(state_batch_indices):
        if index >= 0:
            at = slice(number, number + 1)
            given = (x[at], dt[at], A, B[at], C[at], D, dt_bias)
            (y[number],), pool[index] = run_state_space(*given, pool[index])
    return y, pool


def draw(source: Source) -> Drawn:
    batch = source.number(0, 4)
    shape, given = drawn_heads(source, batch)
    slots = batch + source.number(0, 3)
    absent = source.uniform(batch) < source.one_of(0.0, 0.4)
    rows = source.uniform(slots).argsort()[:batch].masked_fill(absent, -1)
    return Drawn(
        {
            "state": source.normal(slots, *shape).to(source.one_of(torch.float32, source.dtype)),
            "state_batch_indices": rows.to(source.one_of(torch.int32, torch.int64)),
            **given,
        }
    )


@like(selective_state_update)
def states_left_as_they_were(**given: Any) -> Outputs:
    return selective_state_update(**given | {"state": given["state"].clone()})


@like(selective_state_update)
def step_without_its_bias(**given: Any) -> Outputs:
    return selective_state_update(**given | {"dt_bias": torch.zeros_like(given["dt_bias"])})


@like(selective_state_update)
def input_not_passed_by(**given: Any) -> Outputs:
    return selective_state_update(**given | {"D": torch.zeros_like(given["D"])})


@like(selective_state_update)
def groups_mixed_up(**given: Any) -> Outputs:
    return selective_state_update(**given | {name: given[name].flip(1) for name in ("B", "C")})


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=NO_NATIVE,
    wrong={
        "cases": (states_left_as_they_were, step_without_its_bias, input_not_passed_by, groups_mixed_up),
    },
)
