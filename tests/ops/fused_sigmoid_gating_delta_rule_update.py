"""All that the tests know of the op ``fused_sigmoid_gating_delta_rule_update``."""

from typing import Any

import torch

from sglang_fl.ops import Outputs
from sglang_fl.ops.fused_sigmoid_gating_delta_rule_update import fused_sigmoid_gating_delta_rule_update
from tests.ops.shared.delta_rule import (
    NO_NATIVE,
    formed_gates,
    run_sequences,
    sequences,
    sizes_of_states,
    states,
)
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Array, Subject, like


def formula(
    A_log: Array,
    a: Array,
    dt_bias: Array,
    q: Array,
    k: Array,
    v: Array,
    b: Array,
    initial_state: Array,
    initial_state_indices: Array,
    cu_seqlens: Array,
    scale: float,
) -> tuple[Array, ...]:
    given = (initial_state_indices, cu_seqlens, scale)
    out, _, pool = run_sequences(q[0], k[0], v[0], *formed_gates(A_log, a, dt_bias, b), initial_state, given)
    return out[None], pool


def draw(source: Source) -> Drawn:
    query_heads, value_heads, values, keys = sizes_of_states(source)
    count, bounds = sequences(source, 4)
    tokens = int(bounds[-1])
    return Drawn(
        {
            "A_log": source.normal(value_heads),
            "a": source.rows(tokens, value_heads),
            "dt_bias": source.normal(value_heads).to(source.one_of(torch.float32, source.dtype)),
            "q": source.rows(1, tokens, query_heads, keys),
            "k": source.rows(1, tokens, query_heads, keys),
            "v": source.rows(1, tokens, value_heads, values),
            "b": source.rows(tokens, value_heads),
            "cu_seqlens": bounds,
            **states(source, count, value_heads, values, keys),
        }
    )


@like(fused_sigmoid_gating_delta_rule_update)
def decay_ignored(**given: Any) -> Outputs:
    none = torch.full_like(given["A_log"], -torch.inf)
    return fused_sigmoid_gating_delta_rule_update(**given | {"A_log": none})


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=NO_NATIVE,
    wrong={
        "cases": (decay_ignored,),
    },
)
