"""``RotaryEmbedding`` and ``DeepseekScalingRotaryEmbedding`` to the op ``rotary_embedding``.

SGLang: ``forward(positions, query, key, offsets=None, fused_set_kv_buffer_arg=None)``, the second class
without the last. Contract: ``rotary_embedding(positions, query, key, cos_sin_cache, head_size,
is_neox_style, offsets=None)``.

Falls through: calls that also write the KV cache (``fused_set_kv_buffer_arg``), and layers to which
SGLang's NPU code has attached rows picked beforehand (``sin_cos_cache``).
"""

from collections.abc import Callable
from typing import Any

from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter

__all__ = ["ADAPTERS", "rotates_in_place", "store"]


def rotates_in_place(own: Callable[..., Any]) -> bool:
    """Whether SGLang's own path rotates query and key where they lie.

    ``models/llama4.py`` takes no notice of what is returned, so under those paths we must write there too.
    """
    return own.__name__ in ("forward_cuda", "forward_hip")


def store(rotated: Any, query: Any, key: Any) -> Any:
    """Bring the results to where SGLang's own path would have written them, if they are elsewhere."""
    if rotated[0] is not query:
        query.copy_(rotated[0])
        key.copy_(rotated[1])
    return query, key


def bind(layer: Any, kernel: Kernel, fall_through: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that reads the cache at each call; SGLang replaces it when it grows."""
    head_size: int = layer.head_size
    is_neox_style: bool = layer.is_neox_style
    state = vars(layer)
    is_in_place = rotates_in_place(fall_through)

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
        return store(rotated, query, key) if is_in_place else rotated

    return forward


_OP = OPS["rotary_embedding"]

ADAPTERS = (
    Adapter("sglang.srt.layers.rotary_embedding.base:RotaryEmbedding", _OP, bind),
    Adapter("sglang.srt.layers.rotary_embedding.rope_variant:DeepseekScalingRotaryEmbedding", _OP, bind),
)
