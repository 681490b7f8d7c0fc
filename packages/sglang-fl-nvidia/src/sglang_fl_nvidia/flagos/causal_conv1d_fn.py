"""``causal_conv1d_fn`` in one Triton kernel, from the pool and back to it."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.ops.causal_conv1d_fn import check_prompts
from sglang_fl_nvidia.flagos.convolution import activated, constants
from sglang_fl_nvidia.flagos.launch import Launch, address, compiled, constants_of, overlap
from sglang_fl_nvidia.flagos.memory import strides_of

__all__ = ["causal_conv1d_fn"]

#: Tokens and channels of a program, and its warps. A thread has 4 channels and loads all tokens of them at a
#: time. Of ten tiles the fastest (H200, bfloat16): µs at 16 x 1024 tokens of Qwen3-Next with 4, 8, 16 and 32
#: tokens 219, 161, 164 and 219; SGLang's own takes 241, a copy 128.
TOKENS, BLOCK, WARPS = 8, 256, 2
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


@triton.jit
def _taps(at, exists, TAP_STRIDE: tl.constexpr, TAPS: tl.constexpr):
    """Load taps of some channels in float32, as a tuple."""
    taps: tl.tuple = ()
    for tap in tl.static_range(TAPS):
        taps += (tl.load(at + tap * TAP_STRIDE, mask=exists, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def _inputs(
    x_at,
    held,
    is_held,
    first,
    begin,
    end,
    exists,
    X_STRIDE: tl.constexpr,
    TAP_STRIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Load the inputs that a tile sees: a tuple of those before it, in float32, and its own.

    Before the first token of a sequence they are 0, or what its state holds. All are on their way before one
    is needed, and each is loaded once: a tile is one wait for memory. Its own are left as they are, because
    in float32 they would take twice the registers.
    """
    loaded: tl.tuple = ()
    for row in tl.static_range(TOKENS + WIDTH - 1):
        token = first + (row - WIDTH + 1)
        is_seen = exists & (token >= begin) & (token < end)
        loaded += (tl.load(x_at + token * X_STRIDE, mask=is_seen, other=0.0),)
    inputs: tl.tuple = ()
    for row in tl.static_range(WIDTH - 1):
        x = loaded[row].to(tl.float32)
        if is_held:
            x += tl.load(held + row * TAP_STRIDE, mask=exists, other=0.0).to(tl.float32)
        inputs += (x,)
    return inputs + loaded[WIDTH - 1 :]


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
    channel = (program % BLOCKS).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = channel < CHANNELS
    weights = _taps(weight_ptr + channel * WEIGHT_STRIDE, exists, WEIGHT_TAP, WIDTH)
    bias = tl.zeros([BLOCK], tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channel * BIAS_STRIDE, mask=exists, other=0.0).to(tl.float32)
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
            held = state_ptr + slot * SLOT_STRIDE + channel * CHANNEL_STRIDE
            begins, x_at = (number == 0) & is_continued, x_ptr + channel
            seen = _inputs(x_at, held, begins, first, begin, end, exists, X_STRIDE, TAP_STRIDE, TOKENS, WIDTH)
            for row in tl.static_range(TOKENS):
                y = bias
                for tap in tl.static_range(WIDTH):
                    y += seen[row + tap].to(tl.float32) * weights[tap]
                y = activated(y, IS_SILU).to(out_ptr.dtype.element_ty)
                tl.store(out_ptr + (first + row) * CHANNELS + channel, y, mask=exists & (first + row < end))
            if number == 0:
                place = tl.arange(0, TAPS)[:, None]
                source = end - (WIDTH - 1) + place
                is_kept, is_new = exists[None, :] & (place < WIDTH - 1), source >= begin
                new_at = x_at[None, :] + source * X_STRIDE
                new = tl.load(new_at, mask=is_kept & is_new, other=0.0).to(tl.float32)
                old_at = held[None, :] + (source - begin + (WIDTH - 1)) * TAP_STRIDE
                old = tl.load(old_at, mask=is_kept & (source < begin) & is_continued, other=0.0)
                # One of the two is zero.
                kept = (new + old.to(tl.float32)).to(state_ptr.dtype.element_ty)
                # What one thread stores, another may have to load first.
                tl.debug_barrier()
                tl.store(held[None, :] + place * TAP_STRIDE, kept, mask=is_kept)


#: A launch, the tokens of a tile, and its programs.
_Prompts = tuple[Launch, int, int]

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
    shared = (
        *(start % 16 == 0, bias is None, activation, x.dim(), x.shape[0], x.stride(0)),
        *((tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors[1:-2]),
        *((strides_of(each, sequences), each.dtype, each.device) for each in tensors[-2:]),
        *(x.dtype, x.device, weight.shape, tensors[2].shape, conv_states.shape),
        *(query_start_loc.shape == (sequences + 1,), has_initial_state.shape == (sequences,)),
    )
    # From one token to the next it is any number where there is one.
    key = shared, x.stride()[1:] if tokens > 1 else None
    found = _launches.get(key)
    if found is None:
        check_prompts(
            x, weight, bias, conv_states, query_start_loc, cache_indices, has_initial_state, activation
        )
        known = constants(x, conv_states, weight, bias, activation)
        found = _launches[key] = _compiled(tensors, start % 16 == 0, known)
        _launches.setdefault((shared, None), found)
    out = x.new_empty((tokens, x.shape[0]))
    if sequences and out.numel():
        launch, of_tile, blocks = found
        launch((tokens // of_tile + sequences) * blocks, *map(address, tensors), address(out), sequences)
    return out.t()


def _compiled(tensors: tuple[Tensor, ...], is_aligned: bool, known: dict[str, int]) -> _Prompts:
    x, *_, bounds, indices, has = tensors
    known = known | {
        "X_STRIDE": x.stride(1),
        "BOUNDS_STRIDE": bounds.stride(0),
        "INDEX_STRIDE": strides_of(indices, len(indices))[0],
        "HAS_STRIDE": strides_of(has, len(has))[0],
        # The first tile of a sequence alone meets its state.
        "TOKENS": max(TOKENS, known["WIDTH"] - 1),
        "BLOCK": BLOCK,
        "SEQUENCES": SEQUENCES,
    }
    launch = compiled(
        *(prompts_kernel, *tensors, x, 1),
        is_aligned=is_aligned,
        num_warps=WARPS,
        **constants_of(prompts_kernel, known),
    )
    return launch, known["TOKENS"], triton.cdiv(known["CHANNELS"], BLOCK)
