"""``rotary_embedding`` by ``torch_npu.npu_mrope`` without sections; see ``rotation``."""

from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl_ascend.vendor.rotation import rotated

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
    """See ``sglang_fl.ops.rotary_embedding``. Nothing is overwritten.

    Raises
    ------
    UnsupportedError : as ``rotation.rotated``
    """
    if offsets is not None:
        positions = positions + offsets
    return rotated(positions.reshape(-1), query, key, cos_sin_cache, head_size, is_neox_style)
