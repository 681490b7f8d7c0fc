"""``GeluAndMul`` to the op ``gelu_and_mul``.

SGLang: ``forward(x)``, and the attribute ``approximate``. Contract: ``gelu_and_mul(x, approximate="tanh")``.
"""

from collections.abc import Callable
from typing import Any

from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, fall_through: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward with the layer's approximation, which is fixed when the layer is built."""
    approximate: str = layer.approximate

    def forward(x: Any) -> Any:
        return kernel(x, approximate)

    return forward


ADAPTERS = (Adapter("sglang.srt.layers.activation:GeluAndMul", OPS["gelu_and_mul"], bind),)
