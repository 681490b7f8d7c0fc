"""The kernels of ``fused_moe`` for so few assignments that sorting them would take longer than it saves."""

import triton
import triton.language as tl

from sglang_fl_nvidia.flagos.expert_assignments import experts_of, own_assignments, picked
from sglang_fl_nvidia.flagos.expert_layers import down, gate_up, sums
from sglang_fl_nvidia.flagos.launch import overlap

__all__ = ["down_few_kernel", "gate_up_few_kernel"]


@triton.jit(do_not_specialize=["assignments"])
def gate_up_few_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    weights_ptr,
    ids_ptr,
    h_ptr,
    arrivals_ptr,
    assignments,
    X_STRIDE: tl.constexpr,
    W_EXPERT: tl.constexpr,
    W_ROW: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    ID_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    PLACES: tl.constexpr,
    ARRIVALS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """The first layer: a program for an assignment and some columns; one also clears ``arrivals``."""
    pieces: tl.constexpr = (INNER + COLUMNS - 1) // COLUMNS
    slot, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    column = piece * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.arange(0, PLACES)
    overlap(OVERLAP)
    if tl.program_id(0) == 0:
        tl.store(arrivals_ptr + tl.arange(0, ARRIVALS), 0)
    ids = experts_of(ids_ptr, place, assignments, ID_STRIDE, TOP_K, EXPERTS)
    expert, is_own, count = own_assignments(ids, place, slot, PLACES)
    rank = tl.cumsum(is_own.to(tl.int32), 0) - 1
    for tile in range(tl.cdiv(count, ROWS)):
        number = tile * ROWS + tl.arange(0, ROWS)
        assignment = picked(is_own, rank, place, number)
        gate_up(
            x_ptr,
            w_ptr,
            bias_ptr,
            weights_ptr,
            h_ptr,
            expert,
            column,
            assignment,
            assignment,
            number < count,
            X_STRIDE,
            W_EXPERT,
            W_ROW,
            BIAS_STRIDE,
            WEIGHT_STRIDE,
            WIDTH,
            INNER,
            TOP_K,
            ROWS,
            COLUMNS,
            DEPTH,
            HAS_BIAS,
            WEIGHS_INPUT,
            ALPHA,
            LIMIT,
            PRECISION,
        )


@triton.jit(do_not_specialize=["assignments", "factor"])
def down_few_kernel(
    h_ptr,
    w_ptr,
    bias_ptr,
    weights_ptr,
    ids_ptr,
    y_ptr,
    arrivals_ptr,
    out_ptr,
    assignments,
    factor,
    W_EXPERT: tl.constexpr,
    W_ROW: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    ID_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    PLACES: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """The second layer and the sum over experts: a program for an assignment and some columns.

    Of the programs of the same columns the last one to arrive, with or without an expert's work, adds up what
    all have stored, in the order of the experts: the same bits whichever it is.

    Ids are read before the wait: whoever wrote them was done before the first layer, which runs before this
    kernel, let it onto the chip. Its weights are not asked for there: fetched into the L2 cache ahead, they
    made both layers slower (µs of one of Qwen3-30B-A3B at 16 tokens: 188 and 279).
    """
    pieces: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    slot, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    column = piece * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.arange(0, PLACES)
    ids = experts_of(ids_ptr, place, assignments, ID_STRIDE, TOP_K, EXPERTS)
    expert, is_own, count = own_assignments(ids, place, slot, PLACES)
    rank = tl.cumsum(is_own.to(tl.int32), 0) - 1
    overlap(OVERLAP)
    for tile in range(tl.cdiv(count, ROWS)):
        number = tile * ROWS + tl.arange(0, ROWS)
        assignment = picked(is_own, rank, place, number)
        down(
            h_ptr,
            w_ptr,
            bias_ptr,
            weights_ptr,
            y_ptr,
            expert,
            column,
            assignment,
            assignment,
            number < count,
            W_EXPERT,
            W_ROW,
            BIAS_STRIDE,
            WEIGHT_STRIDE,
            WIDTH,
            INNER,
            TOP_K,
            ROWS,
            COLUMNS,
            DEPTH,
            HAS_BIAS,
            WEIGHS_INPUT,
            PRECISION,
        )
    # All threads have stored before the one that counts says so.
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals_ptr + piece, 1, sem="acq_rel")
    if arrived == assignments - 1:
        token = tl.arange(0, TOKENS)
        tokens = assignments // TOP_K
        sums(y_ptr, ids_ptr, out_ptr, token, column, tokens, factor, ID_STRIDE, WIDTH, EXPERTS, TOP_K)
