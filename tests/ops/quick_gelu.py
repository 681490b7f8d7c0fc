"""All that the tests know of the op ``quick_gelu``."""

import numpy as np
import torch
from torch import Tensor

from tests.ops.shared.activations import draw_pointwise, native_of
from tests.ops.subject import Array, Subject


def formula(x: Array) -> tuple[Array, ...]:
    return (x / (1 + np.exp(-1.702 * x)),)


def rounded_factor(x: Tensor) -> Tensor:
    return (x.float() * torch.sigmoid(1.7 * x.float())).to(x.dtype)


SUBJECT = Subject(
    formula=formula,
    draw=draw_pointwise,
    native=native_of("QuickGELU"),
    wrong={
        "cases": (rounded_factor,),
    },
)
