"""``MRotaryEmbedding`` to the op ``mrope``.

SGLang: ``forward(positions, query, key, fused_set_kv_buffer_arg=None)``. Contract: ``mrope(positions,
query, key, cos_sin_cache, head_size, is_neox_style, mrope_section, mrope_interleaved=False, *,
mrope_interleaved_glm=False)``.

Falls through: layers without sections, and calls that also write the KV cache
(``fused_set_kv_buffer_arg``).
"""

from typing import Any

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import OPS, Kernel, with_options
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own, buffer
from sglang_fl.sglang_adapter.layers.rotary_embedding import IN_PLACE, store

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the cache at each call; SGLang replaces it when it grows."""
    is_glm: bool = layer.mrope_interleaved_glm
    run = _run(kernel, is_glm)
    is_in_place = own.path in IN_PLACE

    def forward(layer: Any, positions: Any, query: Any, key: Any, fused_set_kv_buffer_arg: Any = None) -> Any:
        nonlocal is_glm, run
        if fused_set_kv_buffer_arg is not None:
            return own(layer, positions, query, key, fused_set_kv_buffer_arg)
        section = layer.mrope_section
        if not section:
            return own(layer, positions, query, key)
        facts = layer.head_size, layer.is_neox_style, section, layer.mrope_interleaved
        try:
            if layer.mrope_interleaved_glm is not is_glm:
                run = _run(kernel, layer.mrope_interleaved_glm)
                is_glm = layer.mrope_interleaved_glm
            rotated = run(positions, query, key, buffer(layer, "cos_sin_cache"), *facts)
        except REFUSALS as refusal:
            own.because(refusal)
        else:
            return store(rotated, query, key) if is_in_place else rotated
        return own(layer, positions, query, key)

    return forward


def _run(kernel: Kernel, is_glm: bool) -> Kernel:
    return with_options(kernel, {"mrope_interleaved_glm": True} if is_glm else {})


def why_not(layer: Any) -> str | None:
    """Say whether the layer has no sections: then it only rotates by one position."""
    return None if layer.mrope_section else "no mrope_section"


ADAPTERS = (
    Adapter("sglang.srt.layers.rotary_embedding.mrope:MRotaryEmbedding", OPS["mrope"], bind, why_not),
)
