"""``mrope`` by ``torch_npu.npu_mrope``; see ``rotation``."""

from collections.abc import Sequence

from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs
from sglang_fl_ascend.vendor.rotation import PLAIN, rotated

__all__ = ["SECTIONS", "mrope"]

#: Which sections there are, by CANN's documentation of ``aclnnRopeWithSinCosCacheV2``; they are compiled in.
SECTIONS = ((11, 11, 10), (16, 24, 24), (24, 20, 20), (8, 12, 12))


def mrope(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    mrope_section: Sequence[int],
    mrope_interleaved: bool = False,
) -> Outputs:
    """See ``sglang_fl.ops.mrope``. Nothing is overwritten.

    Interleaved sections need a CANN that has ``aclnnRopeWithSinCosCacheV2``.

    Raises
    ------
    UnsupportedError : other sections than ``SECTIONS``; or as ``rotation.rotated``
    """
    if tuple(mrope_section) not in SECTIONS:
        known = ", ".join(map(str, SECTIONS))
        raise UnsupportedError(f"npu_mrope knows the sections {known}, not {tuple(mrope_section)}")
    if positions.dim() == 1:
        return rotated(positions, query, key, cos_sin_cache, head_size, is_neox_style, sections=PLAIN)
    return rotated(
        positions,
        query,
        key,
        cos_sin_cache,
        head_size,
        is_neox_style,
        sections=mrope_section,
        cache_mode="interleave" if mrope_interleaved else "default",
    )
