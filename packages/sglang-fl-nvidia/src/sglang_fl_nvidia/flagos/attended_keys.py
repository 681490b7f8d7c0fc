"""What both kernels of attention do again and again: rows of queries attend to a run of keys and values."""

from typing import Any

import triton
import triton.language as tl

from sglang_fl_nvidia.flagos.attention import inside, scaled

__all__ = ["attend"]


@triton.jit
def attend(
    peak,
    total,
    result,
    q,
    q_rest,
    k_ptr,
    v_ptr,
    slots_ptr,
    row_place,
    temperature,
    start,
    end,
    scale,
    cap,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUE_LANES: tl.constexpr,
    SHARES_KEYS: tl.constexpr,
    IS_POOL: tl.constexpr,
    IS_MASKED: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    LOG_LEN: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> Any:
    """Let rows attend to the keys from ``start`` to ``end``; return their new peaks, sums and results.

    Keys and values in 8 bit are brought to the dtype of the queries, which is exact.

    Parameters
    ----------
    peak, total, result : (rows,), (rows,) and (rows, values): of the keys before
    q, q_rest : (rows, MAIN) and (rows, REST)
    k_ptr, v_ptr : the head's key and value of number 0; of a pool, in slot 0
    slots_ptr : of a pool, where the slot of key 0 stands
    row_place : (rows,), the number that a row's own key has, or would have, among these
    temperature : (rows,), as ``temperatures`` returns them
    scale : of the scores; one, or (rows, 1)
    """
    main, place = tl.arange(0, MAIN), tl.arange(0, TILE)
    value = tl.arange(0, VALUE_LANES)
    if IS_POOL:
        at_key = tl.load(slots_ptr + start + place, mask=start + place < end, other=0).to(tl.int64)
    else:
        at_key = start.to(tl.int64) + place
    for at in range(start, end, TILE):
        number = at + place
        is_one = number < end
        k_at = k_ptr + at_key[:, None] * K_STRIDE
        keys = tl.load(k_at + main[None, :], mask=inside(is_one, main, KEYS, MAIN), other=0.0).to(q.dtype)
        products = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        if REST > 0:
            rest = MAIN + tl.arange(0, REST)
            k_rest = tl.load(k_at + rest[None, :], mask=inside(is_one, rest, KEYS, MAIN + REST), other=0.0)
            products = tl.dot(q_rest, tl.trans(k_rest.to(q.dtype)), products, input_precision=PRECISION)
        scores = scaled(products, scale, cap, HAS_CAP)
        if LOG_LEN > 0:
            scores *= temperature[:, None]
        if IS_MASKED:
            is_seen = is_one[None, :]
            if IS_CAUSAL:
                is_seen = is_seen & (number[None, :] <= row_place[:, None])
            if WINDOW >= 0:
                is_seen = is_seen & (number[None, :] >= row_place[:, None] - WINDOW)
            scores = tl.where(is_seen, scores, -float("inf"))
        risen = tl.maximum(peak, tl.max(scores, 1))
        # A row may see none of these keys, and none before: then there is no peak to take away.
        base = tl.where(risen == -float("inf"), 0.0, risen)
        weights = tl.exp2(scores - base[:, None])
        fading = tl.exp2(peak - base)
        total = total * fading + tl.sum(weights, 1)
        peak = risen
        if SHARES_KEYS:
            values = keys
        else:
            is_value = inside(is_one, value, VALUES, VALUE_LANES)
            values = tl.load(v_ptr + at_key[:, None] * V_STRIDE + value[None, :], mask=is_value, other=0.0)
            values = values.to(q.dtype)
        result = tl.dot(weights.to(q.dtype), values, result * fading[:, None], input_precision=PRECISION)
        if IS_POOL:
            is_next = number + TILE < end
            at_key = tl.load(slots_ptr + number + TILE, mask=is_next, other=0).to(tl.int64)
        else:
            at_key += TILE
    return peak, total, result
