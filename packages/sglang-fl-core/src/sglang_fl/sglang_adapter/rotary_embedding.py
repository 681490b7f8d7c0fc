"""``RotaryEmbedding`` to the op ``rotary_embedding``.

SGLang: ``forward(positions, query, key, offsets=None, fused_set_kv_buffer_arg=None)``. Contract:
``rotary_embedding(positions, query, key, cos_sin_cache, head_size, is_neox_style, offsets=None)``.

Falls through: calls that also write the KV cache (``fused_set_kv_buffer_arg``), and layers to which
SGLang's NPU code has attached rows picked beforehand (``sin_cos_cache``).
"""

from collections.abc import Callable
from typing import Any

from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.adapter import Adapter

__all__ = ["ADAPTER"]


#: SGLang's own paths that rotate query and key where they lie. ``models/llama4.py`` takes no notice of
#: what they return, so under them we must write there too.
IN_PLACE = ("forward_cuda", "forward_hip")


def bind(layer: Any, kernel: Kernel, fall_through: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that reads the cache at each call; SGLang replaces it when it grows."""
    head_size: int = layer.head_size
    is_neox_style: bool = layer.is_neox_style
    state = vars(layer)
    is_in_place = fall_through.__name__ in IN_PLACE

    def forward(
        positions: Any, query: Any, key: Any, offsets: Any = None, fused_set_kv_buffer_arg: Any = None
    ) -> Any:
        if fused_set_kv_buffer_arg is not None:
            return fall_through(positions, query, key, offsets, fused_set_kv_buffer_arg)
        if "sin_cos_cache" in state:
            return fall_through(positions, query, key, offsets)
        if query is key:  # dsa_indexer.py, off CUDA: a kernel that writes would rotate it twice
            query = query.clone()
        rotated = kernel(positions, query, key, layer.cos_sin_cache, head_size, is_neox_style, offsets)
        if is_in_place and rotated[0] is not query:
            query.copy_(rotated[0])
            key.copy_(rotated[1])
            return query, key
        return rotated

    return forward


ADAPTER = Adapter("sglang.srt.layers.rotary_embedding.base:RotaryEmbedding", OPS["rotary_embedding"], bind)
