"""What the kernels write into the KV cache: checked, and laid as they take it."""

from typing import NamedTuple

from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import check_kv_cache

__all__ = ["KVCache", "kv_cache"]


class KVCache(NamedTuple):
    """What is written into the KV cache.

    Parameters
    ----------
    value : Tensor, (T, n), rows dense
    k_buffer, v_buffer : Tensors, (S, ...): slots that are dense in themselves
    cache_loc : Tensor, (T,), dense
    """

    value: Tensor
    k_buffer: Tensor
    v_buffer: Tensor
    cache_loc: Tensor


def kv_cache(
    op: str,
    tokens: int,
    key: Tensor,
    value: Tensor | None,
    k_buffer: Tensor | None,
    v_buffer: Tensor | None,
    cache_loc: Tensor | None,
) -> KVCache | None:
    """Return what is to be written into the KV cache, as the kernel takes it; None: nothing.

    Parameters
    ----------
    op, tokens, key, value, k_buffer, v_buffer, cache_loc : see ``sglang_fl.ops.check_kv_cache``

    Raises
    ------
    ContractError : as the check says
    UnsupportedError : the elements of a slot do not lie side by side
    """
    check_kv_cache(op, tokens, key, value, k_buffer, v_buffer, cache_loc)
    if value is None or k_buffer is None or v_buffer is None or cache_loc is None:
        return None
    for pool in (k_buffer, v_buffer):
        shape, stride = pool.shape, pool.stride()
        if stride[-1] != 1 or (len(shape) == 3 and shape[1] > 1 and stride[1] != shape[2]) or len(shape) > 3:
            raise UnsupportedError(f"it writes slots that are dense, not with strides {stride}")
    if value.dim() != 2 or value.stride(1) != 1:
        value = value.flatten(1).contiguous()
    return KVCache(value, k_buffer, v_buffer, cache_loc.contiguous())
