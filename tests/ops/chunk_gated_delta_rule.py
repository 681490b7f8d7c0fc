"""All that the tests know of the op ``chunk_gated_delta_rule``."""

from typing import Any

import numpy as np
import torch

from sglang_fl.ops import Outputs
from sglang_fl.ops.chunk_gated_delta_rule import chunk_gated_delta_rule
from tests.ops.shared.delta_rule import NO_NATIVE, run_sequences, sequences, sizes_of_states, states
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Array, Subject, like


def formula(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    initial_state: Array,
    initial_state_indices: Array,
    cu_seqlens: Array,
    scale: float,
) -> tuple[Array, ...]:
    given = (initial_state_indices, cu_seqlens, scale)
    out, before, pool = run_sequences(q[0], k[0], v[0], np.exp(g[0]), beta[0], initial_state, given)
    return out[None], before[None], pool


def draw(source: Source) -> Drawn:
    query_heads, value_heads, values, keys = sizes_of_states(source)
    count, bounds = sequences(source, source.one_of(4, 70))
    tokens = int(bounds[-1])
    beta = torch.sigmoid(source.normal(1, tokens, value_heads))
    return Drawn(
        {
            "q": source.rows(1, tokens, query_heads, keys),
            "k": source.rows(1, tokens, query_heads, keys),
            "v": source.rows(1, tokens, value_heads, values),
            "g": torch.nn.functional.logsigmoid(3 + source.normal(1, tokens, value_heads)),
            "beta": beta.to(source.one_of(torch.float32, source.dtype)),
            "cu_seqlens": bounds,
            **states(source, count, value_heads, values, keys),
        }
    )


@like(chunk_gated_delta_rule)
def states_left_as_they_were(**given: Any) -> Outputs:
    return chunk_gated_delta_rule(**given | {"initial_state": given["initial_state"].clone()})


@like(chunk_gated_delta_rule)
def decay_of_a_chunk_inverted(**given: Any) -> Outputs:
    """``exp(-sum)`` of a chunk is infinite where the decays are strong."""
    results = chunk_gated_delta_rule(**given)
    sums = given["g"].float().sum(1)
    if sums.numel() and bool((sums < -88).any()):
        results[0].fill_(torch.nan)
    return results


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=NO_NATIVE,
    wrong={
        "cases": (states_left_as_they_were, decay_of_a_chunk_inverted),
    },
)
