"""All that the tests know of the op ``causal_conv1d_update``."""

from typing import Any

import numpy as np

from sglang_fl.ops import Outputs
from sglang_fl.ops.causal_conv1d_update import causal_conv1d_update
from tests.ops.shared.convolution import NO_NATIVE, convolve, drawn_convolution
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Array, Subject, like


def formula(
    x: Array,
    conv_states: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    conv_state_indices: Array,
) -> tuple[Array, ...]:
    y, pool = np.zeros(x.shape), conv_states.copy()
    for number, index in enumerate(conv_state_indices):
        if index >= 0:
            new, pool[index] = convolve(x[number][:, None], weight, bias, pool[index], activation)
            y[number] = new[:, 0]
    return y, pool


def draw(source: Source) -> Drawn:
    batch = source.number(0, 5)
    channels, given, rows = drawn_convolution(source, batch)
    return Drawn({"x": source.strided(batch, channels), "conv_state_indices": rows, **given})


@like(causal_conv1d_update)
def states_left_as_they_were(**given: Any) -> Outputs:
    return causal_conv1d_update(**given | {"conv_states": given["conv_states"].clone()})


@like(causal_conv1d_update)
def oldest_input_kept(**given: Any) -> Outputs:
    """The new input takes the place of the last one; nothing moves."""
    kept = given["conv_states"].clone()
    y = causal_conv1d_update(**given)
    given["conv_states"][..., :-1] = kept[..., :-1]
    return y


@like(causal_conv1d_update)
def state_of_the_result(**given: Any) -> Outputs:
    """What is kept is the result, not the input."""
    y = causal_conv1d_update(**given)
    for number, index in enumerate(given["conv_state_indices"].tolist()):
        if index >= 0:
            given["conv_states"][index, :, -1] = y[number]
    return y


@like(causal_conv1d_update)
def padding_taken_for_the_last_row(**given: Any) -> Outputs:
    rows = given["conv_state_indices"]
    return causal_conv1d_update(
        **given | {"conv_state_indices": rows.where(rows >= 0, len(given["conv_states"]) - 1)}
    )


@like(causal_conv1d_update)
def bias_forgotten(**given: Any) -> Outputs:
    return causal_conv1d_update(**given | {"bias": None})


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=NO_NATIVE,
    wrong={
        "cases": (
            states_left_as_they_were,
            oldest_input_kept,
            state_of_the_result,
            padding_taken_for_the_last_row,
            bias_forgotten,
        ),
    },
)
