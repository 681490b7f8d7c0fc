"""``RotaryEmbedding`` and ``DeepseekScalingRotaryEmbedding`` to the op ``rotary_embedding``.

SGLang: ``forward(positions, query, key, offsets=None, fused_set_kv_buffer_arg=None)``, the second class
without the last. Contract: ``rotary_embedding(positions, query, key, cos_sin_cache, head_size,
is_neox_style, offsets=None, *, value=None, k_buffer=None, v_buffer=None, cache_loc=None)``; the last four
are the fields of ``fused_set_kv_buffer_arg``.

Falls through: calls that also write the KV cache, where the kernel cannot or where they say so in ROCm's
way, and layers to which SGLang's NPU code has attached rows picked beforehand (``sin_cos_cache``).
"""

from typing import Any

from sglang_fl.dispatch.own_path import OwnPath
from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import KV_CACHE, OPS, Kernel, lacking
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own, buffer

__all__ = ["ADAPTERS", "IN_PLACE", "ROTATION", "cache_options", "store"]

ROTATION = "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding"

#: The paths on which SGLang rotates query and key where they lie. ``models/llama4.py`` takes no notice of
#: what is returned, so in their place we must write there too.
IN_PLACE = (OwnPath.CUDA, OwnPath.HIP)


def store(rotated: Any, query: Any, key: Any) -> Any:
    """Bring the results to where SGLang's own path would have written them, if they are elsewhere."""
    if rotated[0] is not query:
        query.copy_(rotated[0])
        key.copy_(rotated[1])
    return query, key


def cache_options(argument: Any) -> dict[str, Any] | None:
    """Return the options for a call that writes the KV cache; SGLang's fields have their names.

    Parameters
    ----------
    argument : what SGLang passes as ``fused_set_kv_buffer_arg``

    Returns
    -------
    dict, or None for what has not these fields: ROCm's has pages, scales and a mapping for sliding windows
    """
    options = {name: getattr(argument, name, None) for name in KV_CACHE}
    return None if any(value is None for value in options.values()) else options


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the cache at each call; SGLang replaces it when it grows."""
    is_in_place = own.path in IN_PLACE
    writes_cache = not lacking(kernel, KV_CACHE)

    def forward(
        layer: Any,
        positions: Any,
        query: Any,
        key: Any,
        offsets: Any = None,
        fused_set_kv_buffer_arg: Any = None,
    ) -> Any:
        cache: dict[str, Any] | None = {}
        if fused_set_kv_buffer_arg is not None:
            cache = cache_options(fused_set_kv_buffer_arg) if writes_cache else None
        if cache is None or "sin_cos_cache" in layer.__dict__:
            return _leave(own, layer, positions, query, key, offsets, fused_set_kv_buffer_arg)
        q = query.clone() if query is key else query  # dsa_indexer.py, off CUDA: else it would turn twice
        facts = buffer(layer, "cos_sin_cache"), layer.head_size, layer.is_neox_style, offsets
        try:
            rotated = kernel(positions, q, key, *facts, **cache)
        except REFUSALS as refusal:
            own.because(refusal)
        else:
            return store(rotated, q, key) if is_in_place else rotated
        return _leave(own, layer, positions, query, key, offsets, fused_set_kv_buffer_arg)

    return forward


def _leave(own: Own, layer: Any, positions: Any, query: Any, key: Any, offsets: Any, cache: Any) -> Any:
    """Leave a call to SGLang; ``DeepseekScalingRotaryEmbedding`` takes no argument for the KV cache."""
    written = () if cache is None else (cache,)
    return own(layer, positions, query, key, offsets, *written)


_OP = OPS["rotary_embedding"]

ADAPTERS = (
    Adapter(ROTATION, _OP, bind),
    Adapter("sglang.srt.layers.rotary_embedding.rope_variant:DeepseekScalingRotaryEmbedding", _OP, bind),
)
