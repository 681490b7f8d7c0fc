"""The kernels of ``fused_moe``: both layers of the chosen experts, and their sum."""

import triton
import triton.language as tl

from sglang_fl_nvidia.flagos.expert_assignments import experts_of, own_assignments, picked, rows_of_tile
from sglang_fl_nvidia.flagos.launch import overlap

__all__ = [
    "down_few_kernel",
    "down_sorted_kernel",
    "gate_up_few_kernel",
    "gate_up_sorted_kernel",
    "sum_kernel",
]


@triton.jit
def _gate_up(
    x_ptr,
    w_ptr,
    bias_ptr,
    weights_ptr,
    h_ptr,
    expert,
    column,
    assignment,
    out_row,
    is_row,
    X_STRIDE: tl.constexpr,
    W_EXPERT: tl.constexpr,
    W_ROW: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the activated rows of these assignments, some columns of one expert.

    With ``ALPHA`` above zero the activation is that of GPT-OSS, and the rows of gate and other factor take
    turns.
    """
    STEP: tl.constexpr = 2 if ALPHA > 0 else 1
    APART: tl.constexpr = 1 if ALPHA > 0 else INNER
    IS_EVEN: tl.constexpr = WIDTH % DEPTH == 0 and INNER % COLUMNS == 0
    token = (assignment // TOP_K).to(tl.int64)
    depth = tl.arange(0, DEPTH)
    x = x_ptr + token[:, None] * X_STRIDE + depth[None, :]
    of_gate = column.to(tl.int64) * STEP
    gate = w_ptr + expert.to(tl.int64) * W_EXPERT + of_gate[None, :] * W_ROW + depth[:, None]
    up = gate + APART * W_ROW
    is_column = column < INNER
    gates = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    ups = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, WIDTH, DEPTH):
        if IS_EVEN:
            rows = tl.load(x + start, mask=is_row[:, None], other=0.0)
            gate_tile = tl.load(gate + start)
            up_tile = tl.load(up + start)
        else:
            is_deep = depth < WIDTH - start
            is_weight = is_deep[:, None] & is_column[None, :]
            rows = tl.load(x + start, mask=is_row[:, None] & is_deep[None, :], other=0.0)
            gate_tile = tl.load(gate + start, mask=is_weight, other=0.0)
            up_tile = tl.load(up + start, mask=is_weight, other=0.0)
        gates = tl.dot(rows, gate_tile, gates, input_precision=PRECISION)
        ups = tl.dot(rows, up_tile, ups, input_precision=PRECISION)
    if WEIGHS_INPUT:
        at = weights_ptr + token * WEIGHT_STRIDE + assignment % TOP_K
        weight = tl.load(at, mask=is_row, other=0.0).to(tl.float32)
        gates *= weight[:, None]
        ups *= weight[:, None]
    if HAS_BIAS:
        bias = bias_ptr + expert.to(tl.int64) * BIAS_STRIDE + of_gate
        gates += tl.load(bias, mask=is_column, other=0.0).to(tl.float32)[None, :]
        ups += tl.load(bias + APART, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if ALPHA > 0:
        # NaN stays NaN, as in PyTorch's clamp.
        gates = tl.where(gates > LIMIT, LIMIT, gates)
        ups = tl.where(ups > LIMIT, LIMIT, tl.where(ups < -LIMIT, -LIMIT, ups))
        h = gates / (1.0 + tl.exp(-ALPHA * gates)) * (ups + 1.0)
    else:
        h = gates / (1.0 + tl.exp(-gates)) * ups
    at = h_ptr + out_row.to(tl.int64)[:, None] * INNER + column[None, :]
    tl.store(at, h.to(h_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit
def _down(
    h_ptr,
    w_ptr,
    bias_ptr,
    weights_ptr,
    y_ptr,
    expert,
    column,
    in_row,
    assignment,
    is_row,
    W_EXPERT: tl.constexpr,
    W_ROW: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store what one expert makes of these rows, by the weights of their assignments."""
    IS_EVEN: tl.constexpr = INNER % DEPTH == 0 and WIDTH % COLUMNS == 0
    depth = tl.arange(0, DEPTH)
    h = h_ptr + in_row.to(tl.int64)[:, None] * INNER + depth[None, :]
    w = w_ptr + expert.to(tl.int64) * W_EXPERT + column[None, :].to(tl.int64) * W_ROW + depth[:, None]
    is_column = column < WIDTH
    y = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, INNER, DEPTH):
        if IS_EVEN:
            rows = tl.load(h + start, mask=is_row[:, None], other=0.0)
            tile = tl.load(w + start)
        else:
            is_deep = depth < INNER - start
            rows = tl.load(h + start, mask=is_row[:, None] & is_deep[None, :], other=0.0)
            tile = tl.load(w + start, mask=is_deep[:, None] & is_column[None, :], other=0.0)
        y = tl.dot(rows, tile, y, input_precision=PRECISION)
    if HAS_BIAS:
        bias = bias_ptr + expert.to(tl.int64) * BIAS_STRIDE + column
        y += tl.load(bias, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if not WEIGHS_INPUT:
        at = weights_ptr + (assignment // TOP_K).to(tl.int64) * WEIGHT_STRIDE + assignment % TOP_K
        y *= tl.load(at, mask=is_row, other=0.0).to(tl.float32)[:, None]
    at = y_ptr + assignment.to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


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
        _gate_up(
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


@triton.jit
def _sum(
    y_ptr,
    ids_ptr,
    out_ptr,
    token,
    column,
    tokens,
    factor,
    ID_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
):
    """Store the sums over the experts of these tokens, some columns of them."""
    is_token, is_column = (token < tokens)[:, None], (column < WIDTH)[None, :]
    token = token.to(tl.int64)[:, None]
    at = token * WIDTH + column[None, :]
    total = tl.zeros(at.shape, dtype=tl.float32)
    for slot in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + token * ID_STRIDE + slot, mask=is_token, other=-1)
        # What no expert has stored is read too, and left out: asking first would take as long as reading.
        # Not from the L1 cache, which does not hear of what other programs have stored meanwhile.
        of_slot = y_ptr + (token * TOP_K + slot) * WIDTH + column[None, :]
        y = tl.load(of_slot, mask=is_token & is_column, other=0.0, cache_modifier=".cg")
        total += tl.where((expert >= 0) & (expert < EXPERTS), y.to(tl.float32), 0.0)
    tl.store(out_ptr + at, (total * factor).to(out_ptr.dtype.element_ty), mask=is_token & is_column)


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
        _down(
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
        _sum(y_ptr, ids_ptr, out_ptr, token, column, tokens, factor, ID_STRIDE, WIDTH, EXPERTS, TOP_K)


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
    _sum(y_ptr, ids_ptr, out_ptr, token, column, tokens, factor, ID_STRIDE, WIDTH, EXPERTS, TOP_K)


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
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """The first layer: a program for a tile and some columns; ``h`` in the order of the experts."""
    pieces: tl.constexpr = (INNER + COLUMNS - 1) // COLUMNS
    column = tl.program_id(0) % pieces * COLUMNS + tl.arange(0, COLUMNS)
    overlap(OVERLAP)
    expert, first, end = rows_of_tile(starts_ptr, tl.program_id(0) // pieces, EXPERTS, BLOCK, ROWS)
    if first < end:
        row = first + tl.arange(0, ROWS)
        is_row = row < end
        assignment = tl.load(order_ptr + row, mask=is_row, other=0)
        _gate_up(
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
            ROWS,
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
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """The second layer: a program for a tile and some columns; ``y`` in the order of the assignments."""
    pieces: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    column = tl.program_id(0) % pieces * COLUMNS + tl.arange(0, COLUMNS)
    overlap(OVERLAP)
    expert, first, end = rows_of_tile(starts_ptr, tl.program_id(0) // pieces, EXPERTS, BLOCK, ROWS)
    if first < end:
        row = first + tl.arange(0, ROWS)
        is_row = row < end
        assignment = tl.load(order_ptr + row, mask=is_row, other=0)
        _down(
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
            ROWS,
            COLUMNS,
            DEPTH,
            HAS_BIAS,
            WEIGHS_INPUT,
            PRECISION,
        )
