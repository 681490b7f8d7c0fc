"""The kernels of ``fused_moe`` for sorted assignments: both layers of the chosen experts, and their sum."""

from typing import Any

import triton
import triton.language as tl

from sglang_fl_nvidia.flagos.expert_assignments import rows_of_tile
from sglang_fl_nvidia.flagos.expert_layers import down, gate_up, sums
from sglang_fl_nvidia.flagos.launch import overlap

__all__ = ["down_sorted_kernel", "gate_up_sorted_kernel", "sum_kernel"]


@triton.jit
def _own_tile(
    starts_ptr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> Any:
    """Return of this program's tile the expert, some columns of ``WIDTH``, and where its rows begin and end.

    Tiles of a group take turns at each piece of the columns, so that those of one expert find the piece's
    weights in the L2 cache.
    """
    PIECES: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    group, place = tl.program_id(0) // (GROUP * PIECES), tl.program_id(0) % (GROUP * PIECES)
    tiles = tl.minimum(tl.num_programs(0) // PIECES - group * GROUP, GROUP)
    column = place // tiles * COLUMNS + tl.arange(0, COLUMNS)
    overlap(OVERLAP)
    expert, first, end = rows_of_tile(starts_ptr, group * GROUP + place % tiles, EXPERTS, BLOCK, ROWS)
    return expert, column, first, end


@triton.jit
def _is_enough(left, halvings: tl.constexpr, HALVINGS: tl.constexpr, ROWS: tl.constexpr) -> Any:
    """Return whether so many rows are computed by a tile whose rows are halved so often, and no oftener."""
    is_last = halvings == HALVINGS
    return (left > 0) & (left <= (ROWS >> halvings)) & (is_last | (left > (ROWS >> (halvings + 1))))


@triton.jit
def gate_up_sorted_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    weights_ptr,
    order_ptr,
    starts_ptr,
    h_ptr,
    X_STRIDE: tl.constexpr,
    W_EXPERT: tl.constexpr,
    W_ROW: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HALVINGS: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """The first layer: a program for a tile and some columns; ``h`` in the order of the experts.

    An expert's last tile is computed with half of the rows as often as they are enough, at most ``HALVINGS``
    times.
    """
    expert, column, first, end = _own_tile(starts_ptr, INNER, COLUMNS, GROUP, EXPERTS, BLOCK, ROWS, OVERLAP)
    left = tl.minimum(end - first, ROWS)
    for halvings in tl.static_range(HALVINGS + 1):
        if _is_enough(left, halvings, HALVINGS, ROWS):
            row = first + tl.arange(0, ROWS >> halvings)
            is_row = row < end
            assignment = tl.load(order_ptr + row, mask=is_row, other=0)
            gate_up(
                x_ptr,
                w_ptr,
                bias_ptr,
                weights_ptr,
                h_ptr,
                expert,
                column,
                assignment,
                row,
                is_row,
                X_STRIDE,
                W_EXPERT,
                W_ROW,
                BIAS_STRIDE,
                WEIGHT_STRIDE,
                WIDTH,
                INNER,
                TOP_K,
                ROWS >> halvings,
                COLUMNS,
                DEPTH,
                HAS_BIAS,
                WEIGHS_INPUT,
                ALPHA,
                LIMIT,
                PRECISION,
            )


@triton.jit
def down_sorted_kernel(
    h_ptr,
    w_ptr,
    bias_ptr,
    weights_ptr,
    order_ptr,
    starts_ptr,
    y_ptr,
    W_EXPERT: tl.constexpr,
    W_ROW: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HALVINGS: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """The second layer: a program for a tile and some columns; ``y`` in the order of the assignments.

    Last tiles have fewer rows as in the first layer.
    """
    expert, column, first, end = _own_tile(starts_ptr, WIDTH, COLUMNS, GROUP, EXPERTS, BLOCK, ROWS, OVERLAP)
    left = tl.minimum(end - first, ROWS)
    for halvings in tl.static_range(HALVINGS + 1):
        if _is_enough(left, halvings, HALVINGS, ROWS):
            row = first + tl.arange(0, ROWS >> halvings)
            is_row = row < end
            assignment = tl.load(order_ptr + row, mask=is_row, other=0)
            down(
                h_ptr,
                w_ptr,
                bias_ptr,
                weights_ptr,
                y_ptr,
                expert,
                column,
                row,
                assignment,
                is_row,
                W_EXPERT,
                W_ROW,
                BIAS_STRIDE,
                WEIGHT_STRIDE,
                WIDTH,
                INNER,
                TOP_K,
                ROWS >> halvings,
                COLUMNS,
                DEPTH,
                HAS_BIAS,
                WEIGHS_INPUT,
                PRECISION,
            )


@triton.jit(do_not_specialize=["factor"])
def sum_kernel(
    y_ptr,
    ids_ptr,
    out_ptr,
    factor,
    ID_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """The sum over a token's experts: a program for a token and some columns."""
    pieces: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    token = tl.program_id(0) // pieces + tl.arange(0, 1)
    column = tl.program_id(0) % pieces * COLUMNS + tl.arange(0, COLUMNS)
    overlap(OVERLAP)
    tokens = tl.num_programs(0) // pieces
    sums(y_ptr, ids_ptr, out_ptr, token, column, tokens, factor, ID_STRIDE, WIDTH, EXPERTS, TOP_K)
