"""A plugin of SGLang with an attention backend that is right but in one layer."""

from collections.abc import Callable
from typing import Any

#: Each with the layer that it makes wrong, and in which calls.
NAMES = {"wrong_decode": (1, "forward_decode"), "wrong_extend": (0, "forward_extend")}


def _spoiled(own: Callable[..., Any], layer_id: int) -> Callable[..., Any]:
    def spoiled(self: Any, q: Any, k: Any, v: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
        result = own(self, q, k, v, layer, *args, **kwargs)
        if layer.layer_id == layer_id:
            result[..., : result.shape[-1] // 2] *= 1.1
        return result

    return spoiled


def register() -> None:
    """Offer the backends to SGLang."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.server_args import add_attention_backend_choices

    add_attention_backend_choices([*NAMES])
    for name, (layer_id, method) in NAMES.items():
        spoiled = _spoiled(getattr(TorchNativeAttnBackend, method), layer_id)
        made = type(name, (TorchNativeAttnBackend,), {method: spoiled})
        register_attention_backend(name)(made)
