"""All that the tests know of the op ``situ_and_mul``."""

from typing import Any

import numpy as np
from torch import Tensor

from sglang_fl.ops.situ_and_mul import situ_and_mul
from tests.ops.shared.activations import draw_gated
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Arguments, Array, Subject


def formula(x: Array, beta: float, linear_beta: float | None = None) -> tuple[Array, ...]:
    d = x.shape[-1] // 2
    gate, up = x[..., :d], x[..., d:]
    if linear_beta is not None:
        up = np.tanh(up / linear_beta) * linear_beta
    return (np.tanh(gate / beta) * beta / (1 + np.exp(-gate)) * up,)


def draw(source: Source) -> Drawn:
    betas = {"beta": source.one_of(1.0, 4.0), "linear_beta": source.one_of(None, 2.0, 25.0)}
    return Drawn(draw_gated(source).arguments | betas)


def native(arguments: Arguments) -> Any:
    from sglang.srt.layers import activation

    layer = activation.SituAndMul(arguments["beta"], arguments["linear_beta"])
    return layer.forward_native(arguments["x"])


def second_half_never_clipped(x: Tensor, beta: float, linear_beta: float | None = None) -> Tensor:
    return situ_and_mul(x, beta)


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (second_half_never_clipped,),
    },
)
