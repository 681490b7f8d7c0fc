"""All that the tests know of the op ``gelu_and_mul``."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.ops.gelu_and_mul import gelu_and_mul
from tests.ops.shared.activations import draw_gated, gelu
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Arguments, Array, Layers, Subject


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


def layers() -> Layers:
    from sglang.srt.layers.activation import GeluAndMul

    x = torch.randn(3, 64)
    return {"GeluAndMul": (GeluAndMul(), (x,)), "GeluAndMul, erf": (GeluAndMul("none"), (x,))}


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    layers=layers,
    wrong={
        "cases": (by_the_hyperbolic_tangent_only,),
    },
)
