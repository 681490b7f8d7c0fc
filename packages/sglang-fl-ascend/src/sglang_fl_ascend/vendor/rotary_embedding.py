"""``rotary_embedding`` by ``torch_npu.npu_mrope``, whose section of zeros means plain rotation.

``npu_apply_rotary_pos_emb`` is not used: it writes its arguments although its schema denies it.
"""

import torch_npu
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs

__all__ = ["rotary_embedding"]

#: The rotary dimension is a multiple of so many bytes.
BYTES = 64


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    offsets: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.rotary_embedding``. Nothing is overwritten.

    Raises
    ------
    UnsupportedError : the cache has another dtype than the query: rounding it costs more than the contract
        allows; or the rotary dimension is no multiple of 32 (in float32 16)
    """
    if cos_sin_cache.dtype is not query.dtype:
        raise UnsupportedError(
            f"npu_mrope takes a cache of the query's dtype {query.dtype}, not {cos_sin_cache.dtype}"
        )
    if cos_sin_cache.shape[-1] * query.element_size() % BYTES:
        raise UnsupportedError(
            f"npu_mrope rotates multiples of {BYTES // query.element_size()} elements, "
            f"not {cos_sin_cache.shape[-1]}"
        )
    tokens = positions.numel()
    if tokens == 0:
        return query, key
    if offsets is not None:
        positions = positions + offsets
    rotated = torch_npu.npu_mrope(
        positions.reshape(-1),
        query.reshape(tokens, -1),
        key.reshape(tokens, -1),
        cos_sin_cache,
        head_size,
        mrope_section=[0, 0, 0],
        rotary_mode="half" if is_neox_style else "interleave",
    )
    return rotated[0].view(query.shape), rotated[1].view(key.shape)
