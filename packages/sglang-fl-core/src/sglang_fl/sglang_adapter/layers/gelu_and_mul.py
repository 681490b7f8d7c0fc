"""``GeluAndMul`` to the op ``gelu_and_mul``.

SGLang: ``forward(x)``, and the attribute ``approximate``. Contract: ``gelu_and_mul(x, approximate="tanh")``.
"""

from typing import Any

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward with the layer's approximation."""

    def forward(layer: Any, x: Any) -> Any:
        try:
            return kernel(x, layer.approximate)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, x)

    return forward


ADAPTERS = (Adapter("sglang.srt.layers.activation:GeluAndMul", OPS["gelu_and_mul"], bind),)
