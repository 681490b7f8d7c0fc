"""All that the tests know of the op ``gelu_and_mul``."""

from typing import Any

from torch import Tensor

from sglang_fl.ops.gelu_and_mul import gelu_and_mul
from tests.ops.shared.activations import draw_gated, gelu
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Arguments, Array, Subject


def formula(x: Array, approximate: str = "tanh") -> tuple[Array, ...]:
    d = x.shape[-1] // 2
    return (gelu(x[..., :d], approximate) * x[..., d:],)


def draw(source: Source) -> Drawn:
    return Drawn(draw_gated(source).arguments | {"approximate": source.one_of("tanh", "none")})


def native(arguments: Arguments) -> Any:
    from sglang.srt.layers import activation

    return activation.GeluAndMul(arguments["approximate"]).forward_native(arguments["x"])


def by_the_hyperbolic_tangent_only(x: Tensor, approximate: str = "tanh") -> Tensor:
    return gelu_and_mul(x, "tanh")


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (by_the_hyperbolic_tangent_only,),
    },
)
