"""``SituAndMul`` (0.5.17 on) to the op ``situ_and_mul``.

SGLang: ``forward(x)``, and the attributes ``beta`` and ``linear_beta``. Contract:
``situ_and_mul(x, beta, linear_beta=None)``.
"""

from collections.abc import Callable
from typing import Any

from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, fall_through: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward with the layer's two limits, which are fixed when the layer is built."""
    beta: float = layer.beta
    linear_beta: float | None = layer.linear_beta

    def forward(x: Any) -> Any:
        return kernel(x, beta, linear_beta)

    return forward


ADAPTERS = (Adapter("sglang.srt.layers.activation:SituAndMul", OPS["situ_and_mul"], bind),)
