"""All that the tests know of the op ``fused_recurrent_gated_delta_rule_packed_decode``."""

from typing import Any

import numpy as np
import torch

from sglang_fl.ops import Outputs
from sglang_fl.ops.fused_recurrent_gated_delta_rule_packed_decode import (
    fused_recurrent_gated_delta_rule_packed_decode,
)
from tests.ops.shared.delta_rule import NO_NATIVE, formed_gates, run_sequences, sizes_of_states, states
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Array, Subject, like


def formula(
    mixed_qkv: Array,
    a: Array,
    b: Array,
    A_log: Array,
    dt_bias: Array,
    initial_state: Array,
    initial_state_indices: Array,
    scale: float,
) -> tuple[Array, ...]:
    batch, (_, heads, values, keys) = len(mixed_qkv), initial_state.shape
    width = (mixed_qkv.shape[1] - heads * values) // 2
    q, k, v = np.split(mixed_qkv, [width, 2 * width], axis=1)
    q, k, v = (x.reshape(batch, x.shape[1] // size, size) for x, size in ((q, keys), (k, keys), (v, values)))
    given = (initial_state_indices, np.arange(batch + 1), scale)
    out, _, pool = run_sequences(q, k, v, *formed_gates(A_log, a, dt_bias, b), initial_state, given)
    return out, pool


def draw(source: Source) -> Drawn:
    query_heads, value_heads, values, keys = sizes_of_states(source)
    batch = source.number(0, 5)
    return Drawn(
        {
            "mixed_qkv": source.rows(batch, 2 * query_heads * keys + value_heads * values),
            "a": source.rows(batch, value_heads),
            "b": source.rows(batch, value_heads),
            "A_log": source.normal(value_heads),
            "dt_bias": source.normal(value_heads).to(source.one_of(torch.float32, source.dtype)),
            **states(source, batch, value_heads, values, keys),
        }
    )


@like(fused_recurrent_gated_delta_rule_packed_decode)
def without_update(**given: Any) -> Outputs:
    kept = given["initial_state"].clone()
    return fused_recurrent_gated_delta_rule_packed_decode(**given | {"initial_state": kept})


@like(fused_recurrent_gated_delta_rule_packed_decode)
def over_a_foreign_row(**given: Any) -> Outputs:
    outputs = fused_recurrent_gated_delta_rule_packed_decode(**given)
    taken = given["initial_state_indices"].tolist()
    given["initial_state"][next(row for row in range(len(taken) + 1) if row not in taken)] += 1
    return outputs


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=NO_NATIVE,
    wrong={
        "cases": (
            without_update,
            over_a_foreign_row,
        ),
    },
)
