"""``LayerNorm`` to the op ``layer_norm``.

SGLang: ``forward(x)``, and the attributes ``elementwise_affine`` and ``use_bias``, which tell whether the
layer's weight and bias, always there, are meant. Contract: ``layer_norm(x, weight, bias, eps)``.
"""

from typing import Any

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own, parameter

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the layer's parameters at each call; they may be replaced meanwhile."""

    def forward(layer: Any, x: Any) -> Any:
        try:
            weight = parameter(layer, "weight") if layer.elementwise_affine else None
            bias = parameter(layer, "bias") if layer.use_bias else None
            return kernel(x, weight, bias, layer.variance_epsilon)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, x)

    return forward


ADAPTERS = (Adapter("sglang.srt.layers.layernorm:LayerNorm", OPS["layer_norm"], bind),)
