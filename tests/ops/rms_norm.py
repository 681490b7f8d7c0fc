"""All that the tests know of the op ``rms_norm``."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fl.ops import Bound, Outputs
from sglang_fl.ops.rms_norm import rms_norm
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.shared.norms import draw_norm, normed
from tests.ops.subject import Arguments, Array, Subject

#: Two roundings of the dtype; and one of 8 bits in a float32 result, 2**16 of its units.
TWICE, ROUNDED_TO_8_BITS = Bound(half=1.1, single=8), Bound(half=1.1, single=0.55 * 2**16)


def formula(
    x: Array,
    weight: Array,
    eps: float,
    residual: Array | None = None,
    post_residual_addition: Array | None = None,
    variance_size_override: int | None = None,
    cast_x_before_out_mul: bool = False,
    fp32_residual: bool = False,
) -> tuple[Array, ...]:
    total = x if residual is None else x + residual
    total = total if post_residual_addition is None else total + post_residual_addition
    counted = total[..., :variance_size_override]
    root = np.sqrt(np.sum(counted**2, axis=-1, keepdims=True) / counted.shape[-1] + eps)
    return (weight * total / root,) if residual is None else (weight * total / root, total)


def draw(source: Source) -> Drawn:
    arguments, bound = draw_norm(source, 1.0)
    width = arguments["weight"].shape[0]
    if source.one_of(False, True):
        arguments["variance_size_override"] = source.number(1, width)
    if "residual" in arguments and source.one_of(False, True):
        arguments["fp32_residual"] = True
    if "post_residual_addition" not in arguments and source.one_of(False, True):
        arguments["cast_x_before_out_mul"] = True
        same = arguments["weight"].dtype is source.dtype
        bound = TWICE if same else ROUNDED_TO_8_BITS
    return Drawn(arguments, bound)


def native(arguments: Arguments) -> Any:
    from sglang.srt.layers import layernorm

    width, weight = arguments["x"].shape[-1], arguments["weight"]
    options = {
        name: arguments[name] for name in ("cast_x_before_out_mul", "fp32_residual") if name in arguments
    }
    size = arguments.get("variance_size_override")
    layer = layernorm.RMSNorm(
        width, arguments["eps"], var_hidden_size=size, weight_dtype=weight.dtype, **options
    )
    return normed(layer, arguments)


def without_eps(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    return rms_norm(x, weight, 0.0, residual)


def squares_in_half(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    if residual is not None:
        return rms_norm(x, weight, eps, residual)
    mean = (x * x).mean(-1, keepdim=True).float()
    return (x.float() * torch.rsqrt(mean + eps) * weight.float()).to(x.dtype)


def norms_the_rounded_sum(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    if residual is None:
        return rms_norm(x, weight, eps)
    return rms_norm(x + residual, weight, eps), x + residual


def results_swapped(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    outputs = rms_norm(x, weight, eps, residual)
    return outputs if isinstance(outputs, Tensor) else outputs[::-1]


def always_in_place(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    outputs = rms_norm(x, weight, eps, residual)
    return x.copy_(outputs) if isinstance(outputs, Tensor) else outputs


def over_its_weight(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    outputs = rms_norm(x, weight, eps, residual)
    weight.add_(1)
    return outputs


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (
            without_eps,
            squares_in_half,
            norms_the_rounded_sum,
            results_swapped,
            always_in_place,
            over_its_weight,
        ),
    },
)
