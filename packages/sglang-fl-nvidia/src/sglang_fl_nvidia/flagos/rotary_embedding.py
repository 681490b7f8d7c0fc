"""``rotary_embedding`` in one Triton kernel, in place on query and key."""

from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops import Outputs
from sglang_fl_nvidia.flagos.rotation import rotate_heads

__all__ = ["rotary_embedding"]


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    offsets: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.rotary_embedding``.

    ``query`` and ``key`` are overwritten, each where its memory is its own.

    Raises
    ------
    ContractError : query, key or offsets are not one for each position
    UnsupportedError : another dtype than float16, bfloat16 and float32
    """
    if positions.dim() != 1 or positions.stride(0) != 1:
        positions = positions.reshape(-1).contiguous()
    if offsets is not None:
        if offsets.numel() != positions.numel():
            raise ContractError(
                f"rotary_embedding: offsets {tuple(offsets.shape)} are not one for each of {len(positions)} "
                f"tokens"
            )
        offsets = offsets.reshape(-1).contiguous()
    return rotate_heads(positions, offsets, None, query, key, cos_sin_cache, head_size, is_neox_style)
