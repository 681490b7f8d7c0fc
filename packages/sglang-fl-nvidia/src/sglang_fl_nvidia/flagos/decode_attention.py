"""``decode_attention`` in two Triton kernels: partial results over ranges of slots, and their merge.

A batch may be one long sequence or many short ones, and the host does not know: lengths are on the device,
and a graph must replay with others. So all sequences together are cut into ranges of equal work, as many as
fill the GPU. A program has one range and the query heads that share a head of keys, so that keys are read
once; it goes from sequence to sequence and leaves a partial result of each. The second kernel merges those of
each head.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.ops.decode_attention import check_decode
from sglang_fl.ops.shared.attention import shares_keys
from sglang_fl.ops.shared.scales import factors
from sglang_fl_nvidia.flagos import attention_tiles as tiles
from sglang_fl_nvidia.flagos.attended_keys import attend
from sglang_fl_nvidia.flagos.attention import (
    LOG2E,
    Lanes,
    in_half,
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
    multiprocessors,
    overlap,
    precision_of,
    shared_memory,
)
from sglang_fl_nvidia.flagos.memory import aligned, stride_of_rows

__all__ = ["decode_attention"]


@triton.jit
def _tiles_of_a_range(indptr_ptr, first, sequences, ranges, TILE: tl.constexpr):
    """Return how many tiles each range has, and how many there are."""
    tiles = tile_of(tl.load(indptr_ptr + sequences).to(tl.int32), first, sequences, TILE)
    return tl.maximum(tl.cdiv(tiles, ranges), 1), tiles


@triton.jit(do_not_specialize=["scale", "cap", "v_scale", "sequences", "ranges"])
def ranges_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    indptr_ptr,
    indices_ptr,
    partial_ptr,
    scale,
    cap,
    v_scale,
    sequences,
    ranges,
    Q_STRIDE: tl.constexpr,
    Q_HEAD: tl.constexpr,
    K_SLOT: tl.constexpr,
    K_HEAD: tl.constexpr,
    V_SLOT: tl.constexpr,
    V_HEAD: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUE_LANES: tl.constexpr,
    IS_LATENT: tl.constexpr,
    HAS_CAP: tl.constexpr,
    LOG_LEN: tl.constexpr,
    HEADS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Store partial results of some query heads over one range: values, and the denominator's logarithm.

    The scale of the keys in the pool is in ``scale``; ``v_scale`` is that of its values.
    """
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    ALL: tl.constexpr = KV_HEADS * GROUP
    block = tl.program_id(0) % (KV_HEADS * PARTS)
    number_of_range = tl.program_id(0) // (KV_HEADS * PARTS)
    kv_head = (block // PARTS).to(tl.int64)
    in_group = block % PARTS * HEADS + tl.arange(0, HEADS)
    is_head = in_group < GROUP
    head = kv_head * GROUP + in_group
    main, value = tl.arange(0, MAIN), tl.arange(0, VALUE_LANES)
    of_keys, of_values = k_ptr + kv_head * K_HEAD, v_ptr + kv_head * V_HEAD
    overlap(OVERLAP)
    first = tl.load(indptr_ptr).to(tl.int32)
    per_range, tiles = _tiles_of_a_range(indptr_ptr, first, sequences, ranges, TILE)
    tile = number_of_range * per_range
    last = tl.minimum(tile + per_range, tiles)
    number = sequence_of(indptr_ptr, first, tile, sequences, 1, TILE)
    while tile < last:
        begin = tl.load(indptr_ptr + number).to(tl.int32)
        bound = tl.load(indptr_ptr + number + 1).to(tl.int32)
        own = tile_of(begin, first, number, TILE)
        start = (tile - own) * TILE
        end = tl.minimum(bound - begin, (last - own) * TILE)
        if start < end:
            q_at = q_ptr + number.to(tl.int64) * Q_STRIDE + head[:, None] * Q_HEAD
            q = tl.load(q_at + main[None, :], mask=inside(is_head, main, KEYS, MAIN), other=0.0)
            q_rest = q
            if REST > 0:
                rest = MAIN + tl.arange(0, REST)
                q_rest = tl.load(
                    q_at + rest[None, :], mask=inside(is_head, rest, KEYS, MAIN + REST), other=0.0
                )
            IS_EIGHT_BIT: tl.constexpr = k_ptr.dtype.element_ty.primitive_bitwidth == 8
            q, q_rest, unit = in_half(q, q_rest, IS_EIGHT_BIT)
            peak = tl.full([HEADS], -float("inf"), tl.float32)
            total = tl.zeros([HEADS], tl.float32)
            result = tl.zeros([HEADS, VALUE_LANES], tl.float32)
            place = tl.full([HEADS], 0, tl.int32) + (bound - begin - 1)
            peak, total, result = attend(
                peak,
                total,
                result,
                q,
                q_rest,
                of_keys,
                of_values,
                indices_ptr + begin,
                place,
                temperatures(place, LOG_LEN),
                start,
                end,
                scale * unit,
                cap,
                K_SLOT,
                V_SLOT,
                KEYS,
                VALUES,
                MAIN,
                REST,
                VALUE_LANES,
                IS_LATENT,
                True,
                True,
                False,
                -1,
                HAS_CAP,
                LOG_LEN,
                TILE,
                PRECISION,
            )
            row = (number_of_range + number).to(tl.int64) * ALL + head
            is_result = inside(is_head, value, VALUES, VALUE_LANES)
            to = partial_ptr + row[:, None] * VALUES + value[None, :]
            # Scores may all be -inf in this range: then it has no weight, and must have a number.
            result = result / tl.where(total == 0.0, 1.0, total)[:, None]
            tl.store(to, result * v_scale, mask=is_result)
            logs = partial_ptr + (ranges + sequences).to(tl.int64) * (ALL * VALUES)
            tl.store(logs + row, peak + tl.log2(total), mask=is_head)
        number += 1
        tile = tile_of(bound, first, number, TILE)


@triton.jit(do_not_specialize=["sequences", "ranges"])
def merge_kernel(
    partial_ptr,
    indptr_ptr,
    sinks_ptr,
    out_ptr,
    lse_ptr,
    sequences,
    ranges,
    OUT_STRIDE: tl.constexpr,
    OUT_HEAD: tl.constexpr,
    ALL: tl.constexpr,
    VALUES: tl.constexpr,
    TILE: tl.constexpr,
    PARTIALS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Merge the partial results of one head of one sequence, some columns.

    Bounds and sinks are read before the wait: whoever wrote them was done before the kernel of the ranges,
    which runs before this one, let it onto the chip.
    """
    PIECES: tl.constexpr = (VALUES + COLUMNS - 1) // COLUMNS
    piece = tl.program_id(0) % PIECES
    head = (tl.program_id(0) // PIECES % ALL).to(tl.int64)
    number = tl.program_id(0) // PIECES // ALL
    column = piece * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(indptr_ptr).to(tl.int32)
    per_range, _ = _tiles_of_a_range(indptr_ptr, first, sequences, ranges, TILE)
    begin = tl.load(indptr_ptr + number).to(tl.int32)
    length = tl.load(indptr_ptr + number + 1).to(tl.int32) - begin
    own = tile_of(begin, first, number, TILE)
    start = own // per_range
    end = tl.cdiv(own + tl.cdiv(length, TILE), per_range)
    end = tl.where(length > 0, end, start)
    if HAS_SINKS:
        peak = tl.load(sinks_ptr + head).to(tl.float32) * LOG2E
        total = 1.0
    else:
        peak = -float("inf")
        total = 0.0
    overlap(OVERLAP)
    logs = partial_ptr + (ranges + sequences).to(tl.int64) * (ALL * VALUES)
    result = tl.zeros([COLUMNS], tl.float32)
    for at in range(start, end, PARTIALS):
        range_ = at + tl.arange(0, PARTIALS)
        row = (range_ + number).to(tl.int64) * ALL + head
        is_one = range_ < end
        log = tl.load(logs + row, mask=is_one, other=-float("inf"))
        is_part = is_one[:, None] & (column < VALUES)[None, :]
        part = tl.load(partial_ptr + row[:, None] * VALUES + column[None, :], mask=is_part, other=0.0)
        risen = tl.maximum(peak, tl.max(log, 0))
        base = tl.where(risen == -float("inf"), 0.0, risen)
        weights = tl.exp2(log - base)
        fading = tl.exp2(peak - base)
        total = total * fading + tl.sum(weights, 0)
        result = result * fading + tl.sum(part * weights[:, None], 0)
        peak = risen
    result = result / tl.where(total == 0.0, 1.0, total)  # without slots both are 0, and so is the result
    to = out_ptr + number.to(tl.int64) * OUT_STRIDE + head * OUT_HEAD + column
    tl.store(to, result.to(out_ptr.dtype.element_ty), mask=column < VALUES)
    if HAS_LSE:
        at = lse_ptr + number.to(tl.int64) * ALL + head
        tl.store(at, (peak + tl.log2(total)) / LOG2E, mask=piece == 0)


class _Options(NamedTuple):
    """What of a call, beside its tensors' shapes and strides, kernels are compiled for."""

    is_latent: bool
    has_cap: bool
    temperature_len: int
    has_sinks: bool
    has_lse: bool
    is_aligned: bool


_launches: dict[tuple[Any, ...], "_Kernels"] = {}


def decode_attention(
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    *,
    logit_cap: float = 0.0,
    temperature_len: int = 0,
    sinks: Tensor | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See ``sglang_fl.ops.decode_attention``. Weights are rounded to the dtype before they meet the values.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32, or several, but for pools in
        float8_e5m2, or in float8_e4m3fn from compute capability 8.9 on; heads of more than 1023 keys or 512
        values; heads in the pools that are not dense; tensors on the CPU or on several devices
    """
    if q.stride(-1) != 1:
        q = q.contiguous()
    kv_indptr, kv_indices = kv_indptr.contiguous(), kv_indices.contiguous()
    shape = *q.shape[:2], v_buffer.shape[-1]
    # Where there are no sinks none are read, but an address is given.
    given = (q, k_buffer, v_buffer, kv_indptr, kv_indices, q if sinks is None else sinks.contiguous())
    result = place_of_result(out, shape, *given)
    tensors = (*given, result)
    options = _Options(
        is_latent=shares_keys(k_buffer, v_buffer),
        has_cap=logit_cap > 0,
        temperature_len=temperature_len,
        has_sinks=sinks is not None,
        has_lse=return_lse,
        is_aligned=aligned(q, k_buffer, v_buffer, kv_indptr, result),
    )
    sequences = len(q)
    key = (
        options,
        *((tensor.dtype, tensor.device) for tensor in tensors),
        *(q.shape[1:], stride_of_rows(q), q.stride()[1:], stride_of_rows(result), result.stride()[1:]),
        *(k_buffer.shape[1:], k_buffer.stride(), v_buffer.shape[1:], v_buffer.stride()),
        *(kv_indptr.shape == (sequences + 1,), kv_indices.dim(), len(k_buffer) == len(v_buffer)),
        *(out is None or (out.shape, out.dtype) == (shape, q.dtype), None if sinks is None else sinks.shape),
        *(k_scale is None, v_scale is None),
    )
    found = _launches.get(key)
    if found is None:
        check_decode(
            *(q, k_buffer, v_buffer, kv_indptr, kv_indices, sinks, out),
            *(k_scale, v_scale, temperature_len),
        )
        found = _launches[key] = _Kernels(tensors, options)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if return_lse else None
    if sequences:
        of_keys, of_values = factors(k_scale, v_scale)
        found(tensors, float(scale * of_keys), float(logit_cap), of_values, lse)
    return result if lse is None else (result, lse)


class _Kernels:
    """The kernels for all calls of one layout, compiled when the first of them is computed."""

    def __init__(self, tensors: tuple[Tensor, ...], options: _Options) -> None:
        q, k_buffer, v_buffer, indptr, indices, sinks, out = tensors
        require_dtypes((k_buffer, v_buffer), q)
        heads, keys = q.shape[1:]
        kv_heads, values = v_buffer.shape[1:]
        lanes, group = Lanes.of(keys, values, k_buffer, v_buffer), heads // kv_heads
        is_latent = options.is_latent and values == lanes.main == lanes.values
        tile = tiles.decode_tile(lanes.most, group, is_latent, k_buffer.element_size() == 1)
        slots = max(16, tile.slots * 2 // q.element_size())
        blocks = kv_heads * triton.cdiv(group, tile.heads)
        device = q.get_device()
        self._ranges = tiles.ranges_for(blocks, tile.per_multiprocessor * multiprocessors(device))
        self._blocks, self._heads, self._values = blocks, heads, values
        self._is_aligned = options.is_aligned
        self._constants = {
            **lanes.constants(),
            "Q_STRIDE": stride_of_rows(q),
            "Q_HEAD": q.stride(1),
            "K_SLOT": k_buffer.stride(0),
            "K_HEAD": k_buffer.stride(1),
            "V_SLOT": v_buffer.stride(0),
            "V_HEAD": v_buffer.stride(1),
            "OUT_STRIDE": stride_of_rows(out),
            "OUT_HEAD": out.stride(1),
            "KV_HEADS": kv_heads,
            "GROUP": group,
            "ALL": heads,
            "KEYS": keys,
            "VALUES": values,
            "IS_LATENT": is_latent,
            "HAS_CAP": options.has_cap,
            "LOG_LEN": log_of(options.temperature_len),
            "HAS_SINKS": options.has_sinks,
            "HAS_LSE": options.has_lse,
            "HEADS": tile.heads,
            "TILE": slots,
            "PRECISION": precision_of(q.dtype),
        }
        of_keys = lanes.main + lanes.rest
        bytes_of_slot = (of_keys + (0 if is_latent else lanes.values)) * q.element_size()
        num_stages = tiles.stages_that_fit(
            tile.num_stages,
            slots * bytes_of_slot,
            tile.heads * (of_keys + slots) * q.element_size(),
            shared_memory(device),
        )
        partial = q.new_empty(1, dtype=torch.float32)
        arguments = (q, k_buffer, v_buffer, indptr, indices, partial, 1.0, 1.0, 1.0, 1, 1)
        self._of_ranges = self._compiled(ranges_kernel, arguments, tile.num_warps, num_stages)
        merging = (partial, indptr, sinks, out, partial, 1, 1)
        self._few, self._many = (self._merge(merging, tile) for tile in (tiles.MERGE_FEW, tiles.MERGE))

    def __call__(
        self, tensors: tuple[Tensor, ...], scale: float, cap: float, v_scale: float, lse: Tensor | None
    ) -> None:
        """Compute the results of sequences, of which there is at least one."""
        sequences = len(tensors[0])
        *of_ranges, sinks, out = map(address, tensors)
        sizes = sequences, self._ranges
        rows = sum(sizes) * self._heads
        partial = tensors[0].new_empty(rows * (self._values + 1), dtype=torch.float32)
        at = address(partial)
        # Nothing may come between these two: the second reads bounds before it waits for the first.
        self._of_ranges(self._ranges * self._blocks, *of_ranges, at, scale, cap, v_scale, *sizes)
        heads = sequences * self._heads
        launch, pieces = self._few if heads <= tiles.MERGE_FEW_HEADS else self._many
        lse_at = at if lse is None else address(lse)
        launch(heads * pieces, at, of_ranges[3], sinks, out, lse_at, *sizes)

    def _merge(self, arguments: tuple[Any, ...], tile: tiles.MergeTile) -> tuple[Launch, int]:
        """Return the second kernel for a tile, and how many programs each head has."""
        columns = min(tile.columns, triton.next_power_of_2(self._values))
        sizes = {"PARTIALS": tile.partials, "COLUMNS": columns}
        launch = self._compiled(merge_kernel, arguments, tile.num_warps, **sizes)
        return launch, triton.cdiv(self._values, columns)

    def _compiled(
        self,
        kernel: Any,
        arguments: tuple[Any, ...],
        num_warps: int,
        num_stages: int | None = None,
        **constants: int,
    ) -> Launch:
        return compiled(
            *(kernel, *arguments),
            is_aligned=self._is_aligned,
            num_warps=num_warps,
            num_stages=num_stages,
            **constants_of(kernel, self._constants | constants),
        )
