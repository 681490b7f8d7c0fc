"""What the activations share."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Arguments, Array

__all__ = ["draw_gated", "draw_pointwise", "gelu", "native_of"]


def gelu(x: Array, approximate: str) -> Array:
    if approximate == "none":
        return x * 0.5 * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2))
    # 1 + tanh(u) = 2 / (1 + exp(-2 u)), which does not cancel
    return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def draw_gated(source: Source) -> Drawn:
    x = source.strided(*source.shape(2 * source.number(1, 40)), scale=source.scale())
    return Drawn({"x": x})


def draw_pointwise(source: Source) -> Drawn:
    return Drawn({"x": source.strided(*source.shape(source.number(1, 80)), scale=source.scale())})


def native_of(layer_class: str) -> Callable[[Arguments], Any]:
    """Return SGLang's own path of an activation without settings."""

    def native(arguments: Arguments) -> Any:
        from sglang.srt.layers import activation

        return getattr(activation, layer_class)().forward_native(arguments["x"])

    return native
