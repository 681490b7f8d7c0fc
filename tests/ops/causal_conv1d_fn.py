"""All that the tests know of the op ``causal_conv1d_fn``."""

from typing import Any

import numpy as np
import torch

from sglang_fl.ops import Outputs
from sglang_fl.ops.causal_conv1d_fn import causal_conv1d_fn
from tests.ops.shared.convolution import NO_NATIVE, convolve, drawn_convolution
from tests.ops.shared.delta_rule import sequences
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Array, Subject, like


def formula(
    x: Array,
    weight: Array,
    bias: Array | None,
    conv_states: Array,
    query_start_loc: Array,
    cache_indices: Array,
    has_initial_state: Array,
    activation: str | None,
) -> tuple[Array, ...]:
    y, pool = np.zeros(x.shape), conv_states.copy()
    for number, index in enumerate(cache_indices):
        at = slice(query_start_loc[number], query_start_loc[number + 1])
        if index < 0 or at.start == at.stop:
            continue
        before = pool[index] if has_initial_state[number] else np.zeros(pool.shape[1:])
        y[:, at], pool[index] = convolve(x[:, at], weight, bias, before, activation)
    return y, pool


def draw(source: Source) -> Drawn:
    count, bounds = sequences(source, source.one_of(4, 70))
    channels, given, rows = drawn_convolution(source, count)
    return Drawn(
        {
            "x": source.strided(channels, int(bounds[-1]) + source.one_of(0, 3)),
            "query_start_loc": bounds,
            "cache_indices": rows,
            "has_initial_state": source.uniform(count) < 0.5,
            **given,
        }
    )


@like(causal_conv1d_fn)
def states_left_as_they_were(**given: Any) -> Outputs:
    return causal_conv1d_fn(**given | {"conv_states": given["conv_states"].clone()})


@like(causal_conv1d_fn)
def state_forgotten(**given: Any) -> Outputs:
    return causal_conv1d_fn(**given | {"has_initial_state": torch.zeros_like(given["has_initial_state"])})


@like(causal_conv1d_fn)
def state_taken_where_there_is_none(**given: Any) -> Outputs:
    return causal_conv1d_fn(**given | {"has_initial_state": torch.ones_like(given["has_initial_state"])})


@like(causal_conv1d_fn)
def taps_in_the_other_order(**given: Any) -> Outputs:
    return causal_conv1d_fn(**given | {"weight": given["weight"].flip(1)})


@like(causal_conv1d_fn)
def activation_forgotten(**given: Any) -> Outputs:
    return causal_conv1d_fn(**given | {"activation": None})


@like(causal_conv1d_fn)
def state_of_the_new_tokens_alone(**given: Any) -> Outputs:
    """A sequence shorter than the state leaves nothing of what was before it."""
    y = causal_conv1d_fn(**given)
    states, bounds = given["conv_states"], given["query_start_loc"].tolist()
    for number, index in enumerate(given["cache_indices"].tolist()):
        missing = states.shape[2] - (bounds[number + 1] - bounds[number])
        if index >= 0 and 0 < missing < states.shape[2]:
            states[index, :, :missing] = 0
    return y


@like(causal_conv1d_fn)
def state_multiplied_by_whether_there_is_one(**given: Any) -> Outputs:
    """A NaN in a row that is not to be read survives the 0."""
    states = given["conv_states"]
    for index, has in zip(given["cache_indices"].tolist(), given["has_initial_state"], strict=True):
        if index >= 0:
            states[index] *= has
    return state_taken_where_there_is_none(**given)


@like(causal_conv1d_fn)
def sequences_run_into_each_other(**given: Any) -> Outputs:
    """The first tokens of a sequence meet the last ones of the sequence before."""
    states, bounds = given["conv_states"], given["query_start_loc"].tolist()
    before = given["x"].new_zeros(len(given["x"]), states.shape[2])
    inputs = torch.cat([before, given["x"]], dim=1)
    for number, index in enumerate(given["cache_indices"].tolist()):
        if index >= 0 and number and bounds[number] < bounds[number + 1]:
            states[index] = inputs[:, bounds[number] : bounds[number] + states.shape[2]].to(states.dtype)
    return state_taken_where_there_is_none(**given)


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=NO_NATIVE,
    wrong={
        "cases": (
            states_left_as_they_were,
            state_forgotten,
            state_taken_where_there_is_none,
            taps_in_the_other_order,
            activation_forgotten,
            state_of_the_new_tokens_alone,
            state_multiplied_by_whether_there_is_one,
            sequences_run_into_each_other,
        ),
    },
)
