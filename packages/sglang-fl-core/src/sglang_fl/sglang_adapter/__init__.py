"""All that knows SGLang. ``ADAPTERS`` is the catalogue of layer classes: one line for each."""

from sglang_fl.sglang_adapter import rms_norm, rotary_embedding, silu_and_mul
from sglang_fl.sglang_adapter.adapter import Adapter

__all__ = ["ADAPTERS", "Adapter"]

ADAPTERS: dict[str, Adapter] = {
    adapter.layer_class: adapter
    for adapter in (
        silu_and_mul.ADAPTER,
        rms_norm.ADAPTER,
        rotary_embedding.ADAPTER,
    )
}
