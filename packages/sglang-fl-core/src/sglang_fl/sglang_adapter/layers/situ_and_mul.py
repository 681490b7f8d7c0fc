"""``SituAndMul`` (0.5.17 on) to the op ``situ_and_mul``.

SGLang: ``forward(x)``, and the attributes ``beta`` and ``linear_beta``. Contract:
``situ_and_mul(x, beta, linear_beta=None)``.
"""

from typing import Any

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward with the layer's two limits."""

    def forward(layer: Any, x: Any) -> Any:
        try:
            return kernel(x, layer.beta, layer.linear_beta)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, x)

    return forward


ADAPTERS = (Adapter("sglang.srt.layers.activation:SituAndMul", OPS["situ_and_mul"], bind),)
