"""``qk_norm_rope`` in one Triton kernel, with the write of the KV cache."""

from torch import Tensor

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import Outputs
from sglang_fl_nvidia.flagos.heads import Heads, Norms, turn_heads
from sglang_fl_nvidia.flagos.kv_cache import kv_cache
from sglang_fl_nvidia.flagos.rotation import Layout, dense_heads, layout_of

__all__ = ["qk_norm_rope"]


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    positions: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    *,
    add_unit_offset: bool = False,
    value: Tensor | None = None,
    k_buffer: Tensor | None = None,
    v_buffer: Tensor | None = None,
    cache_loc: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.qk_norm_rope``.

    The results are new, so arguments need not be checked for shared memory.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32, weights or slots that are not dense,
        tensors on the CPU or on several devices
    """
    _check(positions, q_weight, k_weight, cos_sin_cache, head_size)
    tokens = positions.shape[0]
    cache = kv_cache("qk_norm_rope", tokens, key, value, k_buffer, v_buffer, cache_loc)
    outs = query.new_empty(query.shape), key.new_empty(key.shape)
    if tokens == 0:
        return outs
    lies, key_lies = layout_of(query, tokens, head_size), layout_of(key, tokens, head_size)
    if lies is None or key_lies is None:
        query, key = (dense_heads("qk_norm_rope", x, tokens, head_size) for x in (query, key))
        lies, key_lies = _densely(query.shape[1], head_size), _densely(key.shape[1], head_size)
    if lies[2] + key_lies[2] == 0:
        return outs
    layouts = (lies, key_lies, _densely(lies[2], head_size), _densely(key_lies[2], head_size))
    norms = Norms(q_weight, k_weight, eps, 1.0 if add_unit_offset else 0.0)
    turn_heads(
        Heads(
            query,
            key,
            outs[0],
            outs[1],
            layouts,
            norms,
            positions.contiguous(),
            cos_sin_cache.contiguous(),
            head_size,
            is_neox_style,
            cache,
        )
    )
    return outs


def _densely(heads: int, head_size: int) -> Layout:
    return heads * head_size, head_size, heads


def _check(
    positions: Tensor, q_weight: Tensor, k_weight: Tensor, cos_sin_cache: Tensor, head_size: int
) -> None:
    rotary_dim, row = cos_sin_cache.shape[1], (head_size,)
    if rotary_dim % 2 or rotary_dim > head_size:
        raise ContractError(
            f"qk_norm_rope: rotary_dim {rotary_dim} must be even and at most head_size {head_size}"
        )
    if q_weight.shape != row or k_weight.shape != row:
        shapes = f"{tuple(q_weight.shape)} and {tuple(k_weight.shape)}"
        raise ContractError(f"qk_norm_rope: weights {shapes} are no rows of a head of {head_size}")
    if positions.dim() != 1:
        raise ContractError(f"qk_norm_rope: positions {tuple(positions.shape)} are not one for each token")
    # The kernel loads weights before it waits for its predecessor, which the copy of a strided one would be.
    if not (q_weight.is_contiguous() and k_weight.is_contiguous()):
        strides = f"{q_weight.stride()} and {k_weight.stride()}"
        raise UnsupportedError(f"it takes weights that are dense, not with strides {strides}")
