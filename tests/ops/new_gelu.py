"""All that the tests know of the op ``new_gelu``."""

import torch.nn.functional as F
from torch import Tensor

from tests.ops.shared.activations import draw_pointwise, gelu, native_of
from tests.ops.subject import Array, Subject


def formula(x: Array) -> tuple[Array, ...]:
    return (gelu(x, "tanh"),)


def hands_back_its_input(x: Tensor) -> Tensor:
    return x


def by_the_error_function(x: Tensor) -> Tensor:
    return F.gelu(x.float()).to(x.dtype)


SUBJECT = Subject(
    formula=formula,
    draw=draw_pointwise,
    native=native_of("NewGELU"),
    wrong={
        "cases": (
            hands_back_its_input,
            by_the_error_function,
        ),
    },
)
