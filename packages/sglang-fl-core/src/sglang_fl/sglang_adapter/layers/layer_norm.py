"""``LayerNorm`` to the op ``layer_norm``.

SGLang: ``forward(x)``, and the attributes ``elementwise_affine`` and ``use_bias``, which tell whether the
layer's weight and bias, always there, are meant. Contract: ``layer_norm(x, weight, bias, eps)``.
"""

from collections.abc import Callable
from typing import Any

from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, fall_through: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that reads the layer's parameters at each call; they may be replaced meanwhile."""
    eps: float = layer.variance_epsilon
    is_scaled: bool = layer.elementwise_affine
    is_shifted: bool = layer.use_bias

    def forward(x: Any) -> Any:
        return kernel(x, layer.weight if is_scaled else None, layer.bias if is_shifted else None, eps)

    return forward


ADAPTERS = (Adapter("sglang.srt.layers.layernorm:LayerNorm", OPS["layer_norm"], bind),)
