"""What the two rotary ops share: ``torch_npu.npu_mrope`` and what it takes.

``npu_apply_rotary_pos_emb`` is not used: it writes its arguments although its schema denies it. The limits
are those of ``npu_mrope`` in the wheel, and of ``aclnnRopeWithSinCosCacheV2``, which it calls, in CANN's
documentation.
"""

from collections.abc import Sequence

import torch_npu
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs
from sglang_fl_ascend.vendor.products import require

__all__ = ["PLAIN", "rotated"]

require("npu_mrope")

#: Heads, and the part of them that is rotated, are multiples of so many bytes.
BYTES = 64
#: No sections: one position for each token.
PLAIN = (0, 0, 0)


def rotated(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    *,
    sections: Sequence[int] = PLAIN,
    cache_mode: str = "default",
) -> Outputs:
    """Rotate query and key by positions (T,), or (3, T) with sections. Nothing is overwritten.

    Raises
    ------
    UnsupportedError : the cache has another dtype than the query: rounding it costs more than the contract
        allows; or heads or their rotated part are no multiple of 32 (in float32 16)
    """
    if cos_sin_cache.dtype is not query.dtype:
        raise UnsupportedError(
            f"npu_mrope takes a cache of the query's dtype {query.dtype}, not {cos_sin_cache.dtype}"
        )
    for width in (head_size, cos_sin_cache.shape[-1]):
        if width * query.element_size() % BYTES:
            raise UnsupportedError(
                f"npu_mrope takes multiples of {BYTES // query.element_size()} elements, not {width}"
            )
    tokens = positions.shape[-1]
    if tokens == 0:
        return query, key
    results = torch_npu.npu_mrope(
        positions,
        query.reshape(tokens, -1),
        key.reshape(tokens, -1),
        cos_sin_cache,
        head_size,
        mrope_section=list(sections),
        rotary_mode="half" if is_neox_style else "interleave",
        cache_mode=cache_mode,
    )
    return results[0].view(query.shape), results[1].view(key.shape)
