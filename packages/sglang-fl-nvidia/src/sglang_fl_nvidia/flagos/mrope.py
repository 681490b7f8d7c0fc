"""``mrope`` in one Triton kernel, that of ``rotary_embedding`` with a position for each pair."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops import Outputs
from sglang_fl.ops.mrope import lane_axes
from sglang_fl_nvidia.flagos.rotation import rotate_heads

__all__ = ["mrope"]


def mrope(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    mrope_section: Sequence[int],
    mrope_interleaved: bool = False,
    *,
    mrope_interleaved_glm: bool = False,
) -> Outputs:
    """See ``sglang_fl.ops.mrope``.

    ``query`` and ``key`` are overwritten, each where its memory is its own.

    Raises
    ------
    UnsupportedError : another dtype than float16, bfloat16 and float32
    """
    section = tuple(mrope_section)
    if len(section) != 3 or 2 * sum(section) != cos_sin_cache.shape[-1]:
        raise ContractError(
            f"mrope: mrope_section {list(section)} is not three numbers with the sum "
            f"{cos_sin_cache.shape[-1] // 2}"
        )
    if positions.dim() != 1 and (positions.dim() != 2 or positions.shape[0] != 3):
        raise ContractError(f"mrope: positions {tuple(positions.shape)} is neither (3, T) nor (T,)")
    if positions.stride(-1) != 1:
        positions = positions.contiguous()
    axes = None
    if positions.dim() == 2:
        axes = _axes(section, mrope_interleaved, mrope_interleaved_glm, positions.device)
    return rotate_heads("mrope", positions, None, axes, query, key, cos_sin_cache, head_size, is_neox_style)


@functools.cache
def _axes(section: tuple[int, ...], interleaved: bool, glm: bool, device: torch.device) -> Tensor:
    """Return the axis of each pair, made once: before any graph is captured."""
    return torch.tensor(lane_axes(section, interleaved, glm), dtype=torch.int32, device=device)
