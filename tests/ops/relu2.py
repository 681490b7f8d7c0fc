"""All that the tests know of the op ``relu2``."""

import numpy as np
from torch import Tensor

from tests.ops.shared.activations import draw_pointwise, native_of
from tests.ops.subject import Array, Subject


def formula(x: Array) -> tuple[Array, ...]:
    return (np.where(x > 0, x, 0) ** 2,)


def negative_values_squared_too(x: Tensor) -> Tensor:
    return x * x


SUBJECT = Subject(
    formula=formula,
    draw=draw_pointwise,
    native=native_of("ReLU2"),
    wrong={
        "cases": (negative_values_squared_too,),
    },
)
