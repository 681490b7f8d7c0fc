"""``fused_sigmoid_gating_delta_rule_update`` in one Triton kernel, from the pool and back to it."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.ops.fused_sigmoid_gating_delta_rule_update import check_gated_runs
from sglang_fl_nvidia.flagos.delta_rule import Pool, Tiled, decay_and_rate, step, tiled, unit
from sglang_fl_nvidia.flagos.launch import address, overlap
from sglang_fl_nvidia.flagos.memory import strides_of

__all__ = ["fused_sigmoid_gating_delta_rule_update"]


@triton.jit(do_not_specialize=["scale"])
def gated_runs_kernel(
    log_rate_ptr,
    a_ptr,
    bias_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    b_ptr,
    state_ptr,
    index_ptr,
    bounds_ptr,
    out_ptr,
    scale,
    LOG_RATE_STRIDE: tl.constexpr,
    A_STRIDE: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    Q_HEAD: tl.constexpr,
    K_STRIDE: tl.constexpr,
    K_HEAD: tl.constexpr,
    V_STRIDE: tl.constexpr,
    V_HEAD: tl.constexpr,
    B_STRIDE: tl.constexpr,
    INDEX_STRIDE: tl.constexpr,
    BOUNDS_STRIDE: tl.constexpr,
    SLOT_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    VALUES: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Run a few rows of one value head over the tokens of one sequence; those of a padded one get zeros.

    Between tokens the rows stay in registers, in float32.
    """
    BLOCKS: tl.constexpr = (VALUES + ROWS - 1) // ROWS
    program = tl.program_id(0)
    head = (program // BLOCKS % VALUE_HEADS).to(tl.int64)
    sequence = (program // BLOCKS // VALUE_HEADS).to(tl.int64)
    row = program % BLOCKS * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)[None, :]
    log_rate = tl.load(log_rate_ptr + head * LOG_RATE_STRIDE).to(tl.float32)
    bias = tl.load(bias_ptr + head * BIAS_STRIDE).to(tl.float32)
    overlap(OVERLAP)
    slot = tl.load(index_ptr + sequence * INDEX_STRIDE).to(tl.int64)
    first = tl.load(bounds_ptr + sequence * BOUNDS_STRIDE).to(tl.int64)
    last = tl.load(bounds_ptr + (sequence + 1) * BOUNDS_STRIDE).to(tl.int64)
    shared = head // (VALUE_HEADS // HEADS)
    q_at, k_at = q_ptr + shared * Q_HEAD + lane, k_ptr + shared * K_HEAD + lane
    v_at, out = v_ptr + head * V_HEAD + row, out_ptr + head * VALUES + row
    if slot >= 0:
        inside = (row < VALUES)[:, None] & (lane < KEYS)
        held = state_ptr + slot * SLOT_STRIDE + head * (VALUES * KEYS) + row[:, None] * KEYS + lane
        state = tl.load(held, mask=inside, other=0.0).to(tl.float32)
        for token in range(first, last):
            q = tl.load(q_at + token * Q_STRIDE, mask=lane < KEYS, other=0.0).to(tl.float32)
            k = tl.load(k_at + token * K_STRIDE, mask=lane < KEYS, other=0.0).to(tl.float32)
            v = tl.load(v_at + token * V_STRIDE, mask=row < VALUES, other=0.0).to(tl.float32)
            a = tl.load(a_ptr + token * A_STRIDE + head).to(tl.float32)
            b = tl.load(b_ptr + token * B_STRIDE + head).to(tl.float32)
            decay, rate = decay_and_rate(a, b, log_rate, bias)
            state, result = step(state, unit(q) * scale, unit(k), v, decay, rate)
            result = result.to(out_ptr.dtype.element_ty)
            tl.store(out + token * (VALUE_HEADS * VALUES), result, mask=row < VALUES)
        tl.store(held, state.to(state_ptr.dtype.element_ty), mask=inside)
    else:
        for token in range(first, last):
            zeros = tl.zeros([ROWS], out_ptr.dtype.element_ty)
            tl.store(out + token * (VALUE_HEADS * VALUES), zeros, mask=row < VALUES)


_launches: dict[tuple[Any, ...], Tiled] = {}


def fused_sigmoid_gating_delta_rule_update(
    A_log: Tensor,
    a: Tensor,
    dt_bias: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    b: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """See ``sglang_fl.ops.fused_sigmoid_gating_delta_rule_update``.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32, states that are not dense or have
        more than 1024 keys, tensors on the CPU or on several devices
    """
    a, q, k, v, b = (x if x.stride(-1) == 1 else x.contiguous() for x in (a, q, k, v, b))
    tensors = (A_log, a, dt_bias, q, k, v, b, initial_state, initial_state_indices, cu_seqlens)
    # All else is read number by number, wherever it begins.
    is_aligned = (q.data_ptr() | k.data_ptr() | v.data_ptr() | initial_state.data_ptr()) % 16 == 0
    tokens, sequences = v.shape[:2], initial_state_indices.shape[0]
    shared = (
        is_aligned,
        # Not the stride of the first axis, which is of one.
        *((x.stride()[2:], x.shape[2:], x.shape[:2] == tokens) for x in (q, k, v)),
        *((x.stride()[1:], x.shape[1:], x.shape[0] == tokens[1]) for x in (a, b)),
        *((x.stride(), x.shape) for x in (A_log, dt_bias, initial_state)),
        *(strides_of(initial_state_indices, sequences), cu_seqlens.stride(), tokens[0]),
        len(cu_seqlens) == sequences + 1,
        *((tensor.dtype, tensor.device) for tensor in tensors),
    )
    # From one token to the next it is any number where there is one.
    strides = (*(x.stride()[1:2] for x in (q, k, v)), *(x.stride()[:1] for x in (a, b)))
    key = shared, strides if tokens[1] > 1 else None
    found = _launches.get(key)
    if found is None:
        check_gated_runs(*tensors)
        found = _launches[key] = _compiled(tensors, is_aligned)
        _launches.setdefault((shared, None), found)
    out = q.new_empty(v.shape)
    if sequences and out.numel():
        found.launch(sequences, *map(address, tensors), address(out), scale)
    return out


def _compiled(tensors: tuple[Tensor, ...], is_aligned: bool) -> Tiled:
    log_rate, a, bias, q, k, v, b, states, indices, bounds = tensors
    return tiled(
        gated_runs_kernel,
        (*tensors, q, 1.0),
        Pool.of(states),
        is_aligned,
        LOG_RATE_STRIDE=log_rate.stride(0),
        A_STRIDE=a.stride(0),
        BIAS_STRIDE=bias.stride(0),
        Q_STRIDE=q.stride(1),
        Q_HEAD=q.stride(2),
        K_STRIDE=k.stride(1),
        K_HEAD=k.stride(2),
        V_STRIDE=v.stride(1),
        V_HEAD=v.stride(2),
        B_STRIDE=b.stride(0),
        INDEX_STRIDE=strides_of(indices, len(indices))[0],
        BOUNDS_STRIDE=bounds.stride(0),
        HEADS=q.shape[2],
    )
