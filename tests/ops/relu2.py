"""All that the tests know of the op ``relu2``."""

import numpy as np
import torch
from torch import Tensor

from tests.ops.shared.activations import draw_pointwise, native_of
from tests.ops.subject import Array, Layers, Subject


def formula(x: Array) -> tuple[Array, ...]:
    return (np.where(x > 0, x, 0) ** 2,)


def negative_values_squared_too(x: Tensor) -> Tensor:
    return x * x


def layers() -> Layers:
    from sglang.srt.layers.activation import ReLU2

    x = torch.randn(3, 64)
    return {"ReLU2": (ReLU2(), (x,))}


SUBJECT = Subject(
    formula=formula,
    draw=draw_pointwise,
    native=native_of("ReLU2"),
    layers=layers,
    wrong={
        "cases": (negative_values_squared_too,),
    },
)
