"""``MRotaryEmbedding`` to the op ``mrope``.

SGLang: ``forward(positions, query, key, fused_set_kv_buffer_arg=None)``. Contract: ``mrope(positions,
query, key, cos_sin_cache, head_size, is_neox_style, mrope_section, mrope_interleaved=False, *,
mrope_interleaved_glm=False)``.

Falls through: layers without sections, and calls that also write the KV cache
(``fused_set_kv_buffer_arg``).
"""

from collections.abc import Callable
from typing import Any

from sglang_fl.ops import OPS, Kernel, with_options
from sglang_fl.sglang_adapter.layers.adapter import Adapter
from sglang_fl.sglang_adapter.layers.rotary_embedding import rotates_in_place, store

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, fall_through: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that reads the cache at each call; SGLang replaces it when it grows."""
    run = with_options(kernel, {"mrope_interleaved_glm": True} if layer.mrope_interleaved_glm else {})
    head_size: int = layer.head_size
    style = (layer.is_neox_style, layer.mrope_section, layer.mrope_interleaved)
    is_in_place = rotates_in_place(fall_through)

    def forward(positions: Any, query: Any, key: Any, fused_set_kv_buffer_arg: Any = None) -> Any:
        if fused_set_kv_buffer_arg is not None:
            return fall_through(positions, query, key, fused_set_kv_buffer_arg)
        rotated = run(positions, query, key, layer.cos_sin_cache, head_size, *style)
        return store(rotated, query, key) if is_in_place else rotated

    return forward


def why_not(layer: Any) -> str | None:
    """Say whether the layer has no sections: then it only rotates by one position."""
    return None if layer.mrope_section else "no mrope_section"


ADAPTERS = (
    Adapter("sglang.srt.layers.rotary_embedding.mrope:MRotaryEmbedding", OPS["mrope"], bind, why_not),
)
