"""One adapter for each layer class of SGLang. ``ADAPTERS`` is the catalogue: one line for each file."""

from sglang_fl.sglang_adapter.layers import (
    fused_moe,
    gated_delta_rule,
    gelu_and_mul,
    gemma_rms_norm,
    layer_norm,
    mrope,
    new_gelu,
    quick_gelu,
    relu2,
    rms_norm,
    rotary_embedding,
    silu_and_mul,
    situ_and_mul,
    topk,
)
from sglang_fl.sglang_adapter.layers.adapter import Adapter, by_layer_class

__all__ = ["ADAPTERS", "Adapter"]

ADAPTERS: dict[str, tuple[Adapter, ...]] = by_layer_class(
    (
        silu_and_mul.ADAPTER,
        gelu_and_mul.ADAPTER,
        situ_and_mul.ADAPTER,
        new_gelu.ADAPTER,
        quick_gelu.ADAPTER,
        relu2.ADAPTER,
        *rms_norm.ADAPTERS,
        *gemma_rms_norm.ADAPTERS,
        layer_norm.ADAPTER,
        *rotary_embedding.ADAPTERS,
        mrope.ADAPTER,
        *topk.ADAPTERS,
        fused_moe.ADAPTER,
        *gated_delta_rule.ADAPTERS,
    )
)
