"""All that the tests know of the op ``layer_norm``."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fl.ops.layer_norm import layer_norm
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Arguments, Array, Subject


def formula(x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, ...]:
    mean, variance = np.mean(x, axis=-1, keepdims=True), np.var(x, axis=-1, keepdims=True)
    scale = 1.0 if weight is None else weight
    return ((x - mean) / np.sqrt(variance + eps) * scale + (0.0 if bias is None else bias),)


def draw(source: Source) -> Drawn:
    shape = source.shape(source.number(2, 96))

    def parameter(centre: float) -> Tensor | None:
        if source.one_of(False, True):
            return None
        return (centre + source.normal(shape[-1], scale=0.1)).to(source.one_of(source.dtype, torch.float32))

    x = source.strided(*shape, scale=source.one_of(0.25, 1.0, 4.0))
    eps = source.one_of(1e-6, 1e-2)
    return Drawn({"x": x, "weight": parameter(1.0), "bias": parameter(0.0), "eps": eps})


def native(arguments: Arguments) -> Any:
    from sglang.srt.layers import layernorm

    width, weight, bias = arguments["x"].shape[-1], arguments["weight"], arguments["bias"]
    if weight is None and bias is not None:
        return None
    layer = layernorm.LayerNorm(
        width, arguments["eps"], elementwise_affine=weight is not None, bias=bias is not None
    )
    if weight is not None:
        layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer.forward_native(arguments["x"])


def without_bias(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return layer_norm(x, weight, None, eps)


def variance_by_difference(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    single = x.float() + 1000
    mean = single.mean(-1, keepdim=True)
    variance = single.square().mean(-1, keepdim=True) - mean.square()
    normed = (single - mean) * torch.rsqrt(variance.clamp_min(0) + eps)
    normed = normed if weight is None else normed * weight.float()
    return (normed if bias is None else normed + bias.float()).to(x.dtype)


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (
            without_bias,
            variance_by_difference,
        ),
    },
)
