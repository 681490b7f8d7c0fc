"""Which assignments of tokens to experts an expert has, for the kernels of ``fused_moe``.

An assignment is a place in ``topk_ids``, counted through its rows. Few need no sorting: each program reads
all of them and takes those of one expert. Many are sorted first, in one launch, and cut into tiles of one
expert's rows.
"""

from typing import Any

import triton
import triton.language as tl

from sglang_fl_nvidia.flagos.launch import overlap

__all__ = ["experts_of", "own_assignments", "picked", "rows_of_tile", "sort_kernel"]


@triton.jit
def experts_of(
    ids_ptr, place, assignments, ID_STRIDE: tl.constexpr, TOP_K: tl.constexpr, EXPERTS: tl.constexpr
) -> Any:
    """Return the experts of these assignments, -1 for one of no expert."""
    at = ids_ptr + (place // TOP_K).to(tl.int64) * ID_STRIDE + place % TOP_K
    raw = tl.load(at, mask=place < assignments, other=-1)
    return tl.where((raw >= 0) & (raw < EXPERTS), raw, -1).to(tl.int32)


@triton.jit
def own_assignments(ids, place, slot, PLACES: tl.constexpr) -> Any:
    """Return the expert of an assignment, which assignments it has, and their number.

    The first assignment of an expert takes all of that expert's, the others none.
    """
    expert = tl.max(tl.where(place == slot, ids, -1), 0)
    is_own = (ids == expert) & (expert >= 0)
    first = tl.min(tl.where(is_own, place, PLACES), 0)
    return expert, is_own, tl.where(first == slot, tl.sum(is_own.to(tl.int32), 0), 0)


@triton.jit
def picked(is_own, rank, place, number) -> Any:
    """Return the assignments of these numbers among a program's own."""
    is_picked = is_own[None, :] & (rank[None, :] == number[:, None])
    return tl.sum(tl.where(is_picked, place[None, :], 0), 1)


@triton.jit(do_not_specialize=["assignments"])
def sort_kernel(
    ids_ptr,
    order_ptr,
    starts_ptr,
    assignments,
    ID_STRIDE: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Sort assignments by expert, in their order: one program for each expert.

    ``order`` gets the assignments, ``starts`` where those of each expert begin; one more program stores where
    the last expert's end.
    """
    expert = tl.program_id(0)
    block = tl.arange(0, BLOCK)
    overlap(OVERLAP)
    before = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, assignments, BLOCK):
        ids = experts_of(ids_ptr, start + block, assignments, ID_STRIDE, TOP_K, EXPERTS)
        before += ((ids >= 0) & (ids < expert)).to(tl.int32)
    at = tl.sum(before, 0)
    tl.store(starts_ptr + expert, at)
    if expert < EXPERTS:
        for start in range(0, assignments, BLOCK):
            ids = experts_of(ids_ptr, start + block, assignments, ID_STRIDE, TOP_K, EXPERTS)
            is_own = (ids == expert).to(tl.int32)
            rank = tl.cumsum(is_own, 0) - 1
            tl.store(order_ptr + at + rank, start + block, mask=is_own == 1)
            at += tl.sum(is_own, 0)


@triton.jit
def rows_of_tile(starts_ptr, tile, EXPERTS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr) -> Any:
    """Return the expert of a tile, where its rows begin and its expert's end; past the last there is none."""
    expert = tl.arange(0, BLOCK)
    is_expert = expert < EXPERTS
    begin = tl.load(starts_ptr + expert, mask=is_expert, other=0)
    end = tl.load(starts_ptr + expert + 1, mask=is_expert, other=0)
    tiles = (end - begin + ROWS - 1) // ROWS
    upto = tl.cumsum(tiles, 0)
    own = tl.sum(((upto <= tile) & is_expert).to(tl.int32), 0)
    is_own = expert == own
    first = tl.sum(tl.where(is_own, begin + (tile - upto + tiles) * ROWS, 0), 0)
    return own, first, tl.sum(tl.where(is_own & is_expert, end, 0), 0)
