"""``RotaryEmbedding`` and ``DeepseekScalingRotaryEmbedding`` to the op ``rotary_embedding``.

SGLang: ``forward(positions, query, key, offsets=None, fused_set_kv_buffer_arg=None)``, the second class
without the last. Contract: ``rotary_embedding(positions, query, key, cos_sin_cache, head_size,
is_neox_style, offsets=None)``.

Falls through: calls that also write the KV cache (``fused_set_kv_buffer_arg``), and layers to which
SGLang's NPU code has attached rows picked beforehand (``sin_cos_cache``).
"""

from typing import Any

from sglang_fl.dispatch.own_path import OwnPath
from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own

__all__ = ["ADAPTERS", "IN_PLACE", "store"]

#: The paths on which SGLang rotates query and key where they lie. ``models/llama4.py`` takes no notice of
#: what is returned, so in their place we must write there too.
IN_PLACE = (OwnPath.CUDA, OwnPath.HIP)


def store(rotated: Any, query: Any, key: Any) -> Any:
    """Bring the results to where SGLang's own path would have written them, if they are elsewhere."""
    if rotated[0] is not query:
        query.copy_(rotated[0])
        key.copy_(rotated[1])
    return query, key


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the cache at each call; SGLang replaces it when it grows."""
    head_size: int = layer.head_size
    is_neox_style: bool = layer.is_neox_style
    is_in_place = own.path in IN_PLACE

    def forward(
        layer: Any,
        positions: Any,
        query: Any,
        key: Any,
        offsets: Any = None,
        fused_set_kv_buffer_arg: Any = None,
    ) -> Any:
        if fused_set_kv_buffer_arg is not None:
            return own(layer, positions, query, key, offsets, fused_set_kv_buffer_arg)
        if "sin_cos_cache" in layer.__dict__:
            return own(layer, positions, query, key, offsets)
        q = query.clone() if query is key else query  # dsa_indexer.py, off CUDA: else it would turn twice
        try:
            rotated = kernel(positions, q, key, layer.cos_sin_cache, head_size, is_neox_style, offsets)
        except REFUSALS as refusal:
            own.because(refusal)
        else:
            return store(rotated, q, key) if is_in_place else rotated
        return own(layer, positions, query, key, offsets)

    return forward


_OP = OPS["rotary_embedding"]

ADAPTERS = (
    Adapter("sglang.srt.layers.rotary_embedding.base:RotaryEmbedding", _OP, bind),
    Adapter("sglang.srt.layers.rotary_embedding.rope_variant:DeepseekScalingRotaryEmbedding", _OP, bind),
)
