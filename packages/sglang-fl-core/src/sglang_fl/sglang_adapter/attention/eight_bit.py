"""KV caches in 8 bit: which of SGLang's the attention backend takes, and with which scales."""

from typing import Any

from torch import Tensor

from sglang_fl.ops.shared.scales import EIGHT_BIT

__all__ = ["NEEDS", "is_latent", "scales_of", "why_not_pools"]

#: The options of the ops that calls with such a cache need.
NEEDS = frozenset(("k_scale", "v_scale"))


def why_not_pools(runner: Any) -> str | None:
    """Return why a runner's pools of keys and values cannot be read, or None.

    Parameters
    ----------
    runner : SGLang's ``ModelRunner``
    """
    dtype = runner.kv_cache_dtype
    if dtype.itemsize > 1:
        return None
    if runner.server_args.kv_cache_dtype == "mxfp8":  # its scales are those of blocks, in a pool beside it
        return "a KV cache in mxfp8"
    return None if dtype in EIGHT_BIT else f"a KV cache in {str(dtype).removeprefix('torch.')}"


def is_latent(pools: tuple[Tensor, Tensor]) -> bool:
    """Whether the values are a part of the keys, as those of latents are."""
    keys, values = pools
    return keys.data_ptr() == values.data_ptr()


def scales_of(layer: Any, pools: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the options of the ops by which a layer's keys and values in 8 bit are read and written.

    SGLang's models write latents without a scale, whatever the checkpoint has; so they are read without one.

    Parameters
    ----------
    layer : a ``RadixAttention``, with the scales of the checkpoint or none
    pools : its keys and values
    """
    if pools[0].dtype not in EIGHT_BIT:
        return {}
    if is_latent(pools):
        return {"k_scale": 1.0, "v_scale": 1.0}
    return {name: _number(layer, name) for name in ("k_scale", "v_scale")}


def _number(layer: Any, name: str) -> float:
    """Return a scale; it stands as a number beside that on the device, but not where a file had it."""
    number = getattr(layer, f"{name}_float")
    scale = getattr(layer, name) if number is None else number
    return 1.0 if scale is None else float(scale)
