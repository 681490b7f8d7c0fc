"""``fused_recurrent_gated_delta_rule_packed_decode`` in one Triton kernel, from the pool and back to it."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.ops.fused_recurrent_gated_delta_rule_packed_decode import check_packed_decode
from sglang_fl_nvidia.flagos.delta_rule import Pool, Tiled, decay_and_rate, step, tiled, unit
from sglang_fl_nvidia.flagos.launch import address, overlap

__all__ = ["fused_recurrent_gated_delta_rule_packed_decode"]


@triton.jit(do_not_specialize=["scale"])
def packed_decode_kernel(
    mixed_ptr,
    a_ptr,
    b_ptr,
    log_rate_ptr,
    bias_ptr,
    state_ptr,
    index_ptr,
    out_ptr,
    scale,
    MIXED_STRIDE: tl.constexpr,
    A_STRIDE: tl.constexpr,
    B_STRIDE: tl.constexpr,
    LOG_RATE_STRIDE: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    INDEX_STRIDE: tl.constexpr,
    SLOT_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    VALUES: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Take a step with a few rows of one value head of one request; a padded one gets zeros."""
    BLOCKS: tl.constexpr = (VALUES + ROWS - 1) // ROWS
    program = tl.program_id(0)
    head = program // BLOCKS % VALUE_HEADS
    request = (program // BLOCKS // VALUE_HEADS).to(tl.int64)
    row = program % BLOCKS * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)[None, :]
    log_rate = tl.load(log_rate_ptr + head * LOG_RATE_STRIDE).to(tl.float32)
    bias = tl.load(bias_ptr + head * BIAS_STRIDE).to(tl.float32)
    overlap(OVERLAP)
    mixed = mixed_ptr + request * MIXED_STRIDE
    slot = tl.load(index_ptr + request * INDEX_STRIDE).to(tl.int64)
    out = out_ptr + (request * VALUE_HEADS + head) * VALUES + row
    if slot >= 0:
        inside = (row < VALUES)[:, None] & (lane < KEYS)
        start = state_ptr + slot * SLOT_STRIDE + head.to(tl.int64) * (VALUES * KEYS)
        held = start + row[:, None] * KEYS + lane
        state = tl.load(held, mask=inside, other=0.0).to(tl.float32)
        v_at = mixed + 2 * HEADS * KEYS + head * VALUES + row
        v = tl.load(v_at, mask=row < VALUES, other=0.0).to(tl.float32)
        # All rows are on their way before anything is computed with one. Without this the assembler saves
        # registers: it asks for the last rows when the first have been summed.
        tl.debug_barrier()
        at = mixed + head // (VALUE_HEADS // HEADS) * KEYS + lane
        q = tl.load(at, mask=lane < KEYS, other=0.0).to(tl.float32)
        k = tl.load(at + HEADS * KEYS, mask=lane < KEYS, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + request * A_STRIDE + head).to(tl.float32)
        b = tl.load(b_ptr + request * B_STRIDE + head).to(tl.float32)
        decay, rate = decay_and_rate(a, b, log_rate, bias)
        state, result = step(state, unit(q) * scale, unit(k), v, decay, rate)
        tl.store(held, state.to(state_ptr.dtype.element_ty), mask=inside)
        tl.store(out, result.to(out_ptr.dtype.element_ty), mask=row < VALUES)
    else:
        tl.store(out, tl.zeros([ROWS], out_ptr.dtype.element_ty), mask=row < VALUES)


_launches: dict[tuple[Any, ...], Tiled] = {}


def fused_recurrent_gated_delta_rule_packed_decode(
    mixed_qkv: Tensor,
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    scale: float,
) -> Tensor:
    """See ``sglang_fl.ops.fused_recurrent_gated_delta_rule_packed_decode``.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32, states that are not dense or have
        more than 1024 keys, tensors on the CPU or on several devices
    """
    mixed_qkv, a, b = (x if x.stride(1) == 1 else x.contiguous() for x in (mixed_qkv, a, b))
    tensors = (mixed_qkv, a, b, A_log, dt_bias, initial_state, initial_state_indices)
    # All else is read number by number, wherever it begins.
    is_aligned = (mixed_qkv.data_ptr() | initial_state.data_ptr()) % 16 == 0
    requests = mixed_qkv.shape[0]
    of_requests = (mixed_qkv, a, b, initial_state_indices)
    shared = (
        is_aligned,
        initial_state.shape,
        *((tensor.dtype, tensor.device) for tensor in tensors),
        *(tensor.stride() for tensor in tensors[3:-1]),
        *(tensor.stride()[1:] for tensor in of_requests),
        *(mixed_qkv.shape[1], A_log.shape, dt_bias.shape),
        *(len(a) == requests, a.shape[1], len(b) == requests, b.shape[1]),
        initial_state_indices.shape == (requests,),
    )
    # From one request to the next it is any number where there is one.
    key = shared, tuple(tensor.stride()[:1] for tensor in of_requests) if requests > 1 else None
    found = _launches.get(key)
    if found is None:
        check_packed_decode(*tensors)
        found = _launches[key] = _compiled(tensors, is_aligned)
        _launches.setdefault((shared, None), found)
    out = mixed_qkv.new_empty((requests, *initial_state.shape[1:3]))
    if out.numel():
        found.launch(requests, *map(address, tensors), address(out), scale)
    return out


def _compiled(tensors: tuple[Tensor, ...], is_aligned: bool) -> Tiled:
    mixed_qkv, a, b, log_rate, bias, states, indices = tensors
    pool = Pool.of(states)
    return tiled(
        packed_decode_kernel,
        (*tensors, mixed_qkv, 1.0),
        pool,
        is_aligned,
        MIXED_STRIDE=mixed_qkv.stride(0),
        A_STRIDE=a.stride(0),
        B_STRIDE=b.stride(0),
        LOG_RATE_STRIDE=log_rate.stride(0),
        BIAS_STRIDE=bias.stride(0),
        INDEX_STRIDE=indices.stride(0),
        HEADS=(mixed_qkv.shape[1] - pool.heads * pool.values) // (2 * pool.keys),
    )
