"""``kv_cache_write`` in one Triton kernel: a program has a piece of one token's keys and values."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops.kv_cache_write import check_write
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, address, compiled, overlap
from sglang_fl_nvidia.flagos.memory import aligned, has_dense_rows, stride_of_rows

__all__ = ["kv_cache_write"]

#: Elements of keys, and of values, that a program has, and its warps.
PIECE, WARPS = 1024, 4


@triton.jit
def write_kernel(
    k_ptr,
    v_ptr,
    k_pool_ptr,
    v_pool_ptr,
    loc_ptr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    K_SLOT: tl.constexpr,
    V_SLOT: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write a piece of one token."""
    token = (tl.program_id(0) // PIECES).to(tl.int64)
    column = tl.program_id(0) % PIECES * BLOCK + tl.arange(0, BLOCK)
    is_key, is_value = column < KEYS, column < VALUES
    overlap(OVERLAP)
    slot = tl.load(loc_ptr + token).to(tl.int64)
    if slot >= 0:
        key = tl.load(k_ptr + token * K_STRIDE + column, mask=is_key)
        value = tl.load(v_ptr + token * V_STRIDE + column, mask=is_value)
        k_at, v_at = k_pool_ptr + slot * K_SLOT + column, v_pool_ptr + slot * V_SLOT + column
        tl.store(k_at, key.to(k_pool_ptr.dtype.element_ty), mask=is_key)
        tl.store(v_at, value.to(v_pool_ptr.dtype.element_ty), mask=is_value)


_launches: dict[tuple[Any, ...], tuple[Launch, int]] = {}


def kv_cache_write(k: Tensor, v: Tensor, k_buffer: Tensor, v_buffer: Tensor, cache_loc: Tensor) -> tuple[()]:
    """See ``sglang_fl.ops.kv_cache_write``, of whose options it has none: it writes nothing in 8 bit.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32; slots that are not dense; tensors on
        the CPU or on several devices
    """
    k, v = (x if has_dense_rows(x) else x.contiguous() for x in (k, v))
    loc = cache_loc.contiguous()
    tensors = (k, v, k_buffer, v_buffer, loc)
    is_aligned = aligned(*tensors)
    key = (
        *((x.dtype, x.device, x.shape[1:], x.stride()[1:]) for x in tensors),
        *(x.stride(0) if len(x) > 1 else 0 for x in (k, v)),
        *(k_buffer.stride(0), v_buffer.stride(0), len(k) == len(loc), len(v) == len(loc), is_aligned),
        len(k_buffer) == len(v_buffer),
    )
    found = _launches.get(key)
    if found is None:
        check_write(k, v, k_buffer, v_buffer, loc)
        found = _launches[key] = _compiled(tensors, is_aligned)
    if len(loc):
        launch, pieces = found
        launch(len(loc) * pieces, *map(address, tensors))
    return ()


def _compiled(tensors: tuple[Tensor, ...], is_aligned: bool) -> tuple[Launch, int]:
    """Return the launch for all calls of one layout, and how many programs each token has."""
    k, v, k_buffer, v_buffer, _ = tensors
    dtypes = {x.dtype for x in tensors[:4]}
    if not dtypes <= set(DTYPES):
        named = ", ".join(sorted(map(str, dtypes)))
        raise UnsupportedError(f"it writes float16, bfloat16 and float32, not {named}")
    if not (has_dense_rows(k_buffer) and has_dense_rows(v_buffer)):
        raise UnsupportedError("it takes pools whose slots are dense")
    keys, values = (x.shape[1] * x.shape[2] for x in (k, v))
    widest = max(keys, values, 1)
    block = min(PIECE, triton.next_power_of_2(widest))
    pieces = triton.cdiv(widest, block)
    launch = compiled(
        *(write_kernel, *tensors),
        is_aligned=is_aligned,
        num_warps=WARPS,
        K_STRIDE=stride_of_rows(k),
        V_STRIDE=stride_of_rows(v),
        K_SLOT=k_buffer.stride(0),
        V_SLOT=v_buffer.stride(0),
        KEYS=keys,
        VALUES=values,
        PIECES=pieces,
        BLOCK=block,
    )
    return launch, pieces
