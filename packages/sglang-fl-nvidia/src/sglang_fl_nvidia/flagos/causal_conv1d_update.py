"""``causal_conv1d_update`` in one Triton kernel, from the pool and back to it."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.ops.causal_conv1d_update import check_update
from sglang_fl_nvidia.flagos.convolution import activated, constants
from sglang_fl_nvidia.flagos.launch import Launch, address, compiled, constants_of, multiprocessors, overlap

__all__ = ["causal_conv1d_update"]

#: Channels and warps of a program: with few requests, so that the 8192 channels of one of Qwen3-Next are on
#: all multiprocessors, and with many.
FEW_TILE, MANY_TILE = (64, 2), (256, 4)
#: Programs of the small tile for each multiprocessor up to which there are few.
MOST_FEW = 8


@triton.jit
def update_kernel(
    x_ptr,
    state_ptr,
    weight_ptr,
    bias_ptr,
    index_ptr,
    out_ptr,
    X_STRIDE: tl.constexpr,
    INDEX_STRIDE: tl.constexpr,
    SLOT_STRIDE: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
    TAP_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    WEIGHT_TAP: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SILU: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Convolve a block of channels of one request, and move their states on; a padded one gets zeros."""
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    request = (program // BLOCKS).to(tl.int64)
    channel = (program % BLOCKS).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tap = tl.arange(0, TAPS)[None, :]
    exists = channel < CHANNELS
    inside = exists[:, None] & (tap < WIDTH)
    at = weight_ptr + channel[:, None] * WEIGHT_STRIDE + tap * WEIGHT_TAP
    weight = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel * BIAS_STRIDE, mask=exists, other=0.0).to(tl.float32)
    overlap(OVERLAP)
    slot = tl.load(index_ptr + request * INDEX_STRIDE).to(tl.int64)
    x = tl.load(x_ptr + request * X_STRIDE + channel, mask=exists, other=0.0).to(tl.float32)
    out = out_ptr + request * CHANNELS + channel
    if slot >= 0:
        held = state_ptr + slot * SLOT_STRIDE + channel[:, None] * CHANNEL_STRIDE + tap * TAP_STRIDE
        before = tl.load(held, mask=inside & (tap < WIDTH - 1), other=0.0).to(tl.float32)
        seen = tl.where(tap == WIDTH - 1, x[:, None], before)
        y = tl.sum(seen * weight, axis=1)
        if HAS_BIAS:
            y += bias
        # What one thread stores, another may have to load first.
        tl.debug_barrier()
        tl.store(held - TAP_STRIDE, seen.to(state_ptr.dtype.element_ty), mask=inside & (tap > 0))
        tl.store(out, activated(y, IS_SILU).to(out_ptr.dtype.element_ty), mask=exists)
    else:
        tl.store(out, tl.zeros([BLOCK], out_ptr.dtype.element_ty), mask=exists)


#: For few requests and for many a launch and the programs of each, and after how many requests these begin.
_Updates = tuple[tuple[Launch, int], tuple[Launch, int], int]

_launches: dict[tuple[Any, ...], _Updates] = {}


def causal_conv1d_update(
    x: Tensor,
    conv_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    conv_state_indices: Tensor,
) -> Tensor:
    """See ``sglang_fl.ops.causal_conv1d_update``.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32, more than 16 taps, tensors on the CPU
        or on several devices
    """
    if x.stride(-1) != 1:
        x = x.contiguous()
    # Where there is no bias the kernel reads none, but is given an address.
    tensors = (x, conv_states, weight, weight if bias is None else bias, conv_state_indices)
    start = 0
    for tensor in tensors[:-1]:  # an index is one number, wherever it lies
        start |= tensor.data_ptr()
    shared = (
        *(start % 16 == 0, bias is None, activation, x.stride()[1:], x.dtype, x.device),
        *((tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors[1:-1]),
        *(conv_state_indices.dtype, conv_state_indices.device),
        *(x.shape[1:], conv_states.shape, weight.shape, tensors[3].shape),
        conv_state_indices.shape == x.shape[:1],
    )
    # From one request to the next it is any number where there is one.
    key = shared, (x.stride(0), conv_state_indices.stride()) if len(x) > 1 else None
    found = _launches.get(key)
    if found is None:
        check_update(x, conv_states, weight, bias, activation, conv_state_indices)
        known = constants(x, conv_states, weight, bias, activation)
        found = _launches[key] = _compiled(tensors, start % 16 == 0, known)
        _launches.setdefault((shared, None), found)
    out = x.new_empty(x.shape)
    if out.numel():
        few, many, most = found
        requests = x.shape[0]
        launch, blocks = many if requests > most else few
        launch(requests * blocks, *map(address, tensors), address(out))
    return out


def _compiled(tensors: tuple[Tensor, ...], is_aligned: bool, known: dict[str, int]) -> _Updates:
    x, *_, indices = tensors
    known = known | {"X_STRIDE": x.stride(0), "INDEX_STRIDE": indices.stride(0)}

    def of(tile: tuple[int, int]) -> tuple[Launch, int]:
        known["BLOCK"], warps = tile
        launch = compiled(
            *(update_kernel, *tensors, x),
            is_aligned=is_aligned,
            num_warps=warps,
            **constants_of(update_kernel, known),
        )
        return launch, triton.cdiv(known["CHANNELS"], tile[0])

    few, many = of(FEW_TILE), of(MANY_TILE)
    return few, many, MOST_FEW * multiprocessors(x.get_device()) // max(1, few[1])
