"""``causal_conv1d_fn`` in one Triton kernel, from the pool and back to it."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.ops.causal_conv1d_fn import check_prompts
from sglang_fl_nvidia.flagos.convolution import MOST_TAPS, activated, constants
from sglang_fl_nvidia.flagos.launch import Launch, address, compiled, constants_of, overlap

__all__ = ["causal_conv1d_fn"]

#: Tokens and channels of a program, and its warps. Not fewer tokens than taps: the first tile of a sequence
#: alone meets its state.
TOKENS, BLOCK, WARPS = MOST_TAPS, 128, 4
#: Sequences whose beginnings a program reads at a time.
SEQUENCES = 64


@triton.jit
def _sequence_of(tile, bounds_ptr, sequences, STRIDE: tl.constexpr, TOKENS: tl.constexpr, MANY: tl.constexpr):
    """Return which sequence a tile is of; tiles may be empty, but none is of two.

    Sequence n gets the tiles from ``begin // TOKENS + n`` on, up to those of the next: at least as many as it
    has tokens for, wherever it begins. So tiles are counted without a sum over the sequences before, and as
    many are launched as the host knows without looking.
    """
    sequence = -1
    for start in range(0, sequences, MANY):
        number = start + tl.arange(0, MANY)
        exists = number < sequences
        begin = tl.load(bounds_ptr + number.to(tl.int64) * STRIDE, mask=exists, other=0).to(tl.int32)
        sequence += tl.sum((exists & (begin // TOKENS + number <= tile)).to(tl.int32), 0)
    return sequence


@triton.jit(do_not_specialize=["sequences"])
def prompts_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    state_ptr,
    bounds_ptr,
    index_ptr,
    has_ptr,
    out_ptr,
    sequences,
    X_STRIDE: tl.constexpr,
    BOUNDS_STRIDE: tl.constexpr,
    INDEX_STRIDE: tl.constexpr,
    HAS_STRIDE: tl.constexpr,
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
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    SEQUENCES: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Convolve a block of channels of a few tokens; those of a sequence's first ones also store its state."""
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    tile = program // BLOCKS
    channel = (program % BLOCKS).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    exists = channel < CHANNELS
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel * BIAS_STRIDE, mask=exists, other=0.0).to(tl.float32)
    overlap(OVERLAP)
    sequence = _sequence_of(tile, bounds_ptr, sequences, BOUNDS_STRIDE, TOKENS, SEQUENCES)
    if sequence >= 0:
        begin = tl.load(bounds_ptr + sequence.to(tl.int64) * BOUNDS_STRIDE).to(tl.int64)
        end = tl.load(bounds_ptr + (sequence.to(tl.int64) + 1) * BOUNDS_STRIDE).to(tl.int64)
        slot = tl.load(index_ptr + sequence.to(tl.int64) * INDEX_STRIDE).to(tl.int64)
        is_continued = tl.load(has_ptr + sequence.to(tl.int64) * HAS_STRIDE)
        number = tile - (begin // TOKENS + sequence)
        first = begin + number * TOKENS
        if (slot >= 0) & (first < end):
            token = first + tl.arange(0, TOKENS)[:, None]
            known = exists & (token < end)
            of_weight = weight_ptr + channel * WEIGHT_STRIDE
            held = state_ptr + slot * SLOT_STRIDE + channel * CHANNEL_STRIDE
            y = tl.zeros([TOKENS, BLOCK], tl.float32)
            for tap in tl.static_range(WIDTH):
                at = token + (tap - WIDTH + 1)
                weight = tl.load(of_weight + tap * WEIGHT_TAP, mask=exists, other=0.0).to(tl.float32)
                seen = tl.load(x_ptr + at * X_STRIDE + channel, mask=known & (at >= begin), other=0.0)
                seen = seen.to(tl.float32)
                if number == 0:
                    before = at - begin + (WIDTH - 1)
                    is_held = known & (at < begin) & is_continued
                    seen += tl.load(held + before * TAP_STRIDE, mask=is_held, other=0.0).to(tl.float32)
                y += seen * weight
            if HAS_BIAS:
                y += bias
            y = activated(y, IS_SILU).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + token * CHANNELS + channel, y, mask=known)
            if number == 0:
                place = tl.arange(0, TAPS)[:, None]
                kept = exists & (place < WIDTH - 1)
                source = end - (WIDTH - 1) + place
                is_new = source >= begin
                new = tl.load(x_ptr + source * X_STRIDE + channel, mask=kept & is_new, other=0.0)
                old_at = held + (source - begin + (WIDTH - 1)) * TAP_STRIDE
                old = tl.load(old_at, mask=kept & (source < begin) & is_continued, other=0.0)
                # The other of the two is zero.
                window = new.to(tl.float32) + old.to(tl.float32)
                # What one thread stores, another may have to load first.
                tl.debug_barrier()
                tl.store(held + place * TAP_STRIDE, window.to(state_ptr.dtype.element_ty), mask=kept)


#: A launch, and the programs of each tile.
_Prompts = tuple[Launch, int]

_launches: dict[tuple[Any, ...], _Prompts] = {}


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Tensor,
    has_initial_state: Tensor,
    activation: str | None,
) -> Tensor:
    """See ``sglang_fl.ops.causal_conv1d_fn``. The channels of a token lie side by side in the result.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32, more than 16 taps, tensors on the CPU
        or on several devices
    """
    if x.stride(0) != 1:
        x = x.t().contiguous().t()
    # Where there is no bias the kernel reads none, but is given an address.
    bias_or_any = weight if bias is None else bias
    tensors = (x, weight, bias_or_any, conv_states, query_start_loc, cache_indices, has_initial_state)
    start = 0
    for tensor in tensors[:-2]:  # the others are read number by number, wherever they begin
        start |= tensor.data_ptr()
    sequences, tokens = cache_indices.shape[0], x.shape[-1]
    key = (
        *(start % 16 == 0, bias is None, activation, x.dim(), x.shape[0]),
        *((tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors),
        *(weight.shape, tensors[2].shape, conv_states.shape),
        *(query_start_loc.shape == (sequences + 1,), has_initial_state.shape == (sequences,)),
    )
    found = _launches.get(key)
    if found is None:
        check_prompts(
            x, weight, bias, conv_states, query_start_loc, cache_indices, has_initial_state, activation
        )
        known = constants(x, conv_states, weight, bias, activation)
        found = _launches[key] = _compiled(tensors, start % 16 == 0, known)
    out = x.new_empty((tokens, x.shape[0]))
    if sequences and out.numel():
        launch, blocks = found
        launch((tokens // TOKENS + sequences) * blocks, *map(address, tensors), address(out), sequences)
    return out.t()


def _compiled(tensors: tuple[Tensor, ...], is_aligned: bool, known: dict[str, int]) -> _Prompts:
    x, *_, bounds, indices, has = tensors
    known = known | {
        "X_STRIDE": x.stride(1),
        "BOUNDS_STRIDE": bounds.stride(0),
        "INDEX_STRIDE": indices.stride(0),
        "HAS_STRIDE": has.stride(0),
        "TOKENS": TOKENS,
        "BLOCK": BLOCK,
        "SEQUENCES": SEQUENCES,
    }
    launch = compiled(
        *(prompts_kernel, *tensors, x, 1),
        is_aligned=is_aligned,
        num_warps=WARPS,
        **constants_of(prompts_kernel, known),
    )
    return launch, triton.cdiv(known["CHANNELS"], BLOCK)
