"""``extend_attention`` in one Triton kernel.

A row is one query head of one new token. A program has rows of the query heads that share a head of keys,
token by token, and so reads keys once for all of them. The host knows how many tokens there are, but not to
which sequence each belongs: programs find that on the device. What belongs to none is zeroed by the last of
them.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.ops.extend_attention import check_extend
from sglang_fl.ops.shared.attention import shares_keys
from sglang_fl.ops.shared.scales import factors
from sglang_fl_nvidia.flagos import attention_tiles as tiles
from sglang_fl_nvidia.flagos.attended_keys import attend
from sglang_fl_nvidia.flagos.attention import (
    LOG2E,
    Lanes,
    inside,
    log_of,
    place_of_result,
    require_dtypes,
    sequence_of,
    temperatures,
    tile_of,
)
from sglang_fl_nvidia.flagos.launch import (
    Launch,
    address,
    compiled,
    constants_of,
    overlap,
    precision_of,
    shared_memory,
)
from sglang_fl_nvidia.flagos.memory import aligned, stride_of_rows

__all__ = ["extend_attention"]


@triton.jit
def _times(number, factor, HAS_FACTOR: tl.constexpr) -> Any:
    return number * factor if HAS_FACTOR else number


@triton.jit(do_not_specialize=["scale", "cap", "k_scale", "v_scale", "sequences", "tokens", "tiles"])
def extend_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_pool_ptr,
    v_pool_ptr,
    starts_ptr,
    indptr_ptr,
    indices_ptr,
    sinks_ptr,
    out_ptr,
    lse_ptr,
    scale,
    cap,
    k_scale,
    v_scale,
    sequences,
    tokens,
    tiles,
    Q_STRIDE: tl.constexpr,
    Q_HEAD: tl.constexpr,
    K_STRIDE: tl.constexpr,
    K_HEAD: tl.constexpr,
    V_STRIDE: tl.constexpr,
    V_HEAD: tl.constexpr,
    K_SLOT: tl.constexpr,
    K_POOL_HEAD: tl.constexpr,
    V_SLOT: tl.constexpr,
    V_POOL_HEAD: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    OUT_HEAD: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUE_LANES: tl.constexpr,
    NEW_SHARES: tl.constexpr,
    POOL_SHARES: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_CAP: tl.constexpr,
    LOG_LEN: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Compute some rows of one sequence, or zero some of none.

    Programs of the last tokens come first: of a long text they have the most to do. ``k_scale`` and
    ``v_scale`` are those of the pools.
    """
    kv_head = (tl.program_id(0) % KV_HEADS).to(tl.int64)
    tile = tiles - 1 - tl.program_id(0) // KV_HEADS
    main, value = tl.arange(0, MAIN), tl.arange(0, VALUE_LANES)
    overlap(OVERLAP)
    first = tl.load(starts_ptr).to(tl.int32)
    # What belongs to no sequence counts as one more, the last.
    number = sequence_of(starts_ptr, first * GROUP, tile, sequences + 1, GROUP, ROWS)
    begin = tl.load(starts_ptr + number).to(tl.int32)
    first_row = (tile - tile_of(begin * GROUP, first * GROUP, number, ROWS)) * ROWS
    row = first_row + tl.arange(0, ROWS)
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    if number < sequences:
        new = tl.load(starts_ptr + number + 1).to(tl.int32) - begin
        at_token = (begin + token).to(tl.int64)
    else:
        new = tokens - (begin - first)
        at_token = tl.where(token < first, token, token + begin - first).to(tl.int64)
    is_row = token < new
    out_at = out_ptr + at_token[:, None] * OUT_STRIDE + head[:, None] * OUT_HEAD + value[None, :]
    is_result = inside(is_row, value, VALUES, VALUE_LANES)
    lse_at = lse_ptr + at_token * (KV_HEADS * GROUP) + head
    if number < sequences:
        if first_row < new * GROUP:
            q_at = q_ptr + at_token[:, None] * Q_STRIDE + head[:, None] * Q_HEAD
            q = tl.load(q_at + main[None, :], mask=inside(is_row, main, KEYS, MAIN), other=0.0)
            q_rest = q
            if REST > 0:
                rest = MAIN + tl.arange(0, REST)
                q_rest = tl.load(
                    q_at + rest[None, :], mask=inside(is_row, rest, KEYS, MAIN + REST), other=0.0
                )
            if HAS_SINKS:
                peak = tl.load(sinks_ptr + head).to(tl.float32) * LOG2E
                total = tl.full([ROWS], 1.0, tl.float32)
            else:
                peak = tl.full([ROWS], -float("inf"), tl.float32)
                total = tl.zeros([ROWS], tl.float32)
            result = tl.zeros([ROWS, VALUE_LANES], tl.float32)
            first_token = first_row // GROUP
            end = tl.minimum((first_row + ROWS - 1) // GROUP + 1, new) if IS_CAUSAL else new
            in_list = tl.load(indptr_ptr + number).to(tl.int32)
            prefix = tl.load(indptr_ptr + number + 1).to(tl.int32) - in_list
            temperature = temperatures(prefix + token, LOG_LEN)
            slots = indices_ptr + in_list
            k_pool, v_pool = k_pool_ptr + kv_head * K_POOL_HEAD, v_pool_ptr + kv_head * V_POOL_HEAD
            k_new = k_ptr + begin.to(tl.int64) * K_STRIDE + kv_head * K_HEAD
            v_new = v_ptr + begin.to(tl.int64) * V_STRIDE + kv_head * V_HEAD
            # New keys that all rows see need no mask. With a window there are few of them, and all have one.
            if WINDOW >= 0:
                pool_start = tl.maximum(prefix + first_token - WINDOW, 0) // TILE * TILE
                new_start = tl.maximum(first_token - WINDOW, 0) // TILE * TILE
            else:
                pool_start = prefix * 0
                new_start = (tl.minimum(first_token + 1, new) if IS_CAUSAL else new) // TILE * TILE
            peak, total, result = attend(
                peak,
                total,
                result,
                q,
                q_rest,
                k_pool,
                v_pool,
                slots,
                prefix + token,
                temperature,
                pool_start,
                prefix,
                _times(scale, k_scale, HAS_SCALES),
                cap,
                K_SLOT,
                V_SLOT,
                KEYS,
                VALUES,
                MAIN,
                REST,
                VALUE_LANES,
                POOL_SHARES,
                True,
                True,
                False,
                WINDOW,
                HAS_CAP,
                LOG_LEN,
                TILE,
                PRECISION,
            )
            result = _times(result, v_scale, HAS_SCALES)
            if WINDOW < 0:
                peak, total, result = attend(
                    peak,
                    total,
                    result,
                    q,
                    q_rest,
                    k_new,
                    v_new,
                    slots,
                    token,
                    temperature,
                    new * 0,
                    new_start,
                    scale,
                    cap,
                    K_STRIDE,
                    V_STRIDE,
                    KEYS,
                    VALUES,
                    MAIN,
                    REST,
                    VALUE_LANES,
                    NEW_SHARES,
                    False,
                    False,
                    False,
                    WINDOW,
                    HAS_CAP,
                    LOG_LEN,
                    TILE,
                    PRECISION,
                )
            peak, total, result = attend(
                peak,
                total,
                result,
                q,
                q_rest,
                k_new,
                v_new,
                slots,
                token,
                temperature,
                new_start,
                end,
                scale,
                cap,
                K_STRIDE,
                V_STRIDE,
                KEYS,
                VALUES,
                MAIN,
                REST,
                VALUE_LANES,
                NEW_SHARES,
                False,
                True,
                IS_CAUSAL,
                WINDOW,
                HAS_CAP,
                LOG_LEN,
                TILE,
                PRECISION,
            )
            result = result / tl.where(total == 0.0, 1.0, total)[:, None]
            tl.store(out_at, result.to(out_ptr.dtype.element_ty), mask=is_result)
            if HAS_LSE:
                tl.store(lse_at, (peak + tl.log2(total)) / LOG2E, mask=is_row)
    else:
        tl.store(out_at, tl.zeros([ROWS, VALUE_LANES], out_ptr.dtype.element_ty), mask=is_result)
        if HAS_LSE:
            tl.store(lse_at, tl.full([ROWS], -float("inf"), tl.float32), mask=is_row)


class _Options(NamedTuple):
    """What of a call, beside its tensors' shapes and strides, kernels are compiled for."""

    is_causal: bool
    window: int
    new_shares: bool
    pool_shares: bool
    has_scales: bool
    has_cap: bool
    temperature_len: int
    has_sinks: bool
    has_lse: bool
    is_aligned: bool


_launches: dict[tuple[Any, ...], "_Kernels"] = {}


def extend_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    *,
    is_causal: bool = True,
    sliding_window: int = -1,
    logit_cap: float = 0.0,
    temperature_len: int = 0,
    sinks: Tensor | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See ``sglang_fl.ops.extend_attention``. Weights are rounded to the dtype before they meet the values.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32, or several, but for pools in
        float8_e5m2, or in float8_e4m3fn from compute capability 8.9 on; heads of more than 1023 keys or 512
        values; heads in the pools that are not dense; tensors on the CPU or on several devices
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    starts, bounds, slots = (numbers.contiguous() for numbers in (qo_indptr, kv_indptr, kv_indices))
    shape = *q.shape[:2], v.shape[-1]
    # Where there are no sinks none are read, but an address is given.
    of_heads = q if sinks is None else sinks.contiguous()
    given = (q, k, v, k_buffer, v_buffer, starts, bounds, slots, of_heads)
    result = place_of_result(out, shape, *given)
    tensors = (*given, result)
    options = _Options(
        is_causal=bool(is_causal),
        window=max(sliding_window, -1),
        new_shares=shares_keys(k, v),
        pool_shares=shares_keys(k_buffer, v_buffer),
        has_scales=k_scale is not None,
        has_cap=logit_cap > 0,
        temperature_len=temperature_len,
        has_sinks=sinks is not None,
        has_lse=return_lse,
        is_aligned=aligned(q, k, v, k_buffer, v_buffer, starts, bounds, of_heads, result),
    )
    tokens, sequences = len(q), len(starts) - 1
    key = (
        options,
        *((tensor.dtype, tensor.device) for tensor in tensors),
        *((x.shape[1:], stride_of_rows(x), x.stride()[1:], len(x) == tokens) for x in (q, k, v, result)),
        out is None or (out.shape, out.dtype) == (shape, q.dtype),
        *((pool.shape[1:], pool.stride(), len(pool) == len(k_buffer)) for pool in (k_buffer, v_buffer)),
        *(starts.dim(), starts.shape == bounds.shape, sequences < 0, slots.dim()),
        *(None if sinks is None else sinks.shape, v_scale is None),
    )
    found = _launches.get(key)
    if found is None:
        check_extend(
            *(q, k, v, k_buffer, v_buffer, starts, bounds, slots, sinks, out),
            *(None, None, k_scale, v_scale, temperature_len),
        )
        found = _launches[key] = _Kernels(tensors, options)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if return_lse else None
    if tokens:
        found(tensors, (float(scale), float(logit_cap), *factors(k_scale, v_scale)), lse)
    return result if lse is None else (result, lse)


class _Kernels:
    """The kernel for all calls of one layout, with each of its tiles, compiled when the first is computed."""

    def __init__(self, tensors: tuple[Tensor, ...], options: _Options) -> None:
        q, k, v, k_buffer, v_buffer, *_, out = tensors
        require_dtypes((k_buffer, v_buffer), q, k, v)
        heads, keys = q.shape[1:]
        self._kv_heads, values = v.shape[1:]
        self._group = heads // self._kv_heads
        lanes = Lanes.of(keys, values, k_buffer, v_buffer)
        can_share = values == lanes.main == lanes.values
        self._options = options
        self._constants = {
            **lanes.constants(),
            "Q_STRIDE": stride_of_rows(q),
            "Q_HEAD": q.stride(1),
            "K_STRIDE": stride_of_rows(k),
            "K_HEAD": k.stride(1),
            "V_STRIDE": stride_of_rows(v),
            "V_HEAD": v.stride(1),
            "K_SLOT": k_buffer.stride(0),
            "K_POOL_HEAD": k_buffer.stride(1),
            "V_SLOT": v_buffer.stride(0),
            "V_POOL_HEAD": v_buffer.stride(1),
            "OUT_STRIDE": stride_of_rows(out),
            "OUT_HEAD": out.stride(1),
            "KV_HEADS": self._kv_heads,
            "GROUP": self._group,
            "KEYS": keys,
            "VALUES": values,
            "NEW_SHARES": options.new_shares and can_share,
            "POOL_SHARES": options.pool_shares and can_share,
            "IS_CAUSAL": options.is_causal,
            "WINDOW": options.window,
            "HAS_SCALES": options.has_scales,
            "HAS_CAP": options.has_cap,
            "LOG_LEN": log_of(options.temperature_len),
            "HAS_SINKS": options.has_sinks,
            "HAS_LSE": options.has_lse,
            "PRECISION": precision_of(q.dtype),
        }
        arguments = (*tensors, q.new_empty(1, dtype=torch.float32), *[1.0] * 4, 1, 1, 1)
        # The loops over the pool and over new keys take the same memory, the larger one's.
        both_share = self._constants["POOL_SHARES"] and self._constants["NEW_SHARES"]
        of_slot = lanes.main + lanes.rest + (0 if both_share else lanes.values)
        found = (tiles.fitting(tile, q.element_size()) for tile in tiles.extend_tiles(lanes.most))
        self._tiles = {tile.rows: self._compiled(tile, arguments, lanes, of_slot) for tile in found}

    def __call__(
        self, tensors: tuple[Tensor, ...], numbers: tuple[float, float, float, float], lse: Tensor | None
    ) -> None:
        """Compute the results of tokens, of which there is at least one.

        Parameters
        ----------
        tensors : all but ``lse``, in the order of the kernel
        numbers : ``scale``, ``cap`` and the scales of the pools
        lse : where logarithms go, if anywhere
        """
        tokens, sequences = len(tensors[0]), len(tensors[5]) - 1
        all_rows = tokens * self._group
        rows = next((rows for rows in self._tiles if all_rows <= rows * sequences), max(self._tiles))
        # As many as there can be: the last tile of a sequence need not be full, and padding has one too.
        count = all_rows // rows + sequences + 1
        given = [address(tensor) for tensor in tensors]
        lse_at = given[-1] if lse is None else address(lse)
        self._tiles[rows](count * self._kv_heads, *given, lse_at, *numbers, sequences, tokens, count)

    def _compiled(
        self, tile: tiles.ExtendTile, arguments: tuple[Any, ...], lanes: Lanes, of_slot: int
    ) -> Launch:
        q = arguments[0]
        num_stages = tiles.stages_that_fit(
            tile.num_stages,
            tile.keys * of_slot * q.element_size(),
            tile.rows * (lanes.main + lanes.rest + tile.keys) * q.element_size(),
            shared_memory(q.get_device()),
        )
        known = self._constants | {"ROWS": tile.rows, "TILE": tile.keys}
        return compiled(
            *(extend_kernel, *arguments),
            is_aligned=self._options.is_aligned,
            num_warps=tile.num_warps,
            num_stages=num_stages,
            **constants_of(extend_kernel, known),
        )
