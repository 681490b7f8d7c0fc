"""What all kernels of ``fused_moe`` do: both layers of an expert for some rows, and the sum over experts."""

import triton
import triton.language as tl

__all__ = ["down", "gate_up", "sums"]


@triton.jit
def gate_up(
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
) -> None:
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
def down(
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
) -> None:
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


@triton.jit
def sums(
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
) -> None:
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
