"""The kernel that norms and rotates the heads of query and key, and writes the KV cache.

Each program has a few heads of one tensor and a few tokens: some turn heads of the query, some heads of the
key, which they also write into the cache, and some copy values there. A head is loaded before any of it is
stored, so a result may take the place of its argument.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl_nvidia.flagos.kv_cache import KVCache
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, address, compiled, overlap
from sglang_fl_nvidia.flagos.pairs import load_pair, store_pair
from sglang_fl_nvidia.flagos.rotation import FEW_TILE, MANY, MANY_TILE, Layout

__all__ = ["Heads", "Norms", "turn_heads"]


class Norms(NamedTuple):
    """How the heads are normed before they are rotated.

    Parameters
    ----------
    q_weight, k_weight : Tensors, (head_size,), dense, float16, bfloat16 or float32
    eps : added to the mean squares
    shift : added to the weights
    """

    q_weight: Tensor
    k_weight: Tensor
    eps: float
    shift: float


class Heads(NamedTuple):
    """What is turned, by what, and where the results go.

    Parameters
    ----------
    query, key : Tensors over T tokens, one at least; float16, bfloat16 or float32
    query_out, key_out : Tensors of the same dtypes for the results: without norms ``query`` and ``key``
        themselves, with them memory that no argument lies in
    layouts : how the heads of these four lie
    norms : None: the heads are not normed
    positions : Tensor, (T,), int32 or int64, dense
    cos_sin_cache : Tensor, (P, rotary_dim), dense
    head_size, is_neox_style : see ``sglang_fl.ops.qk_norm_rope``
    cache : None: nothing is written there
    """

    query: Tensor
    key: Tensor
    query_out: Tensor
    key_out: Tensor
    layouts: tuple[Layout, Layout, Layout, Layout]
    norms: Norms | None
    positions: Tensor
    cos_sin_cache: Tensor
    head_size: int
    is_neox_style: bool
    cache: KVCache | None


@triton.jit
def _turn(
    x_ptr,
    weight_ptr,
    out_ptr,
    buffer_ptr,
    positions_ptr,
    cache_ptr,
    loc_ptr,
    token,
    first_head,
    tokens,
    eps,
    STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    COUNT: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    OUT_HEAD_STRIDE: tl.constexpr,
    SLOT_STRIDE: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    REST_LANES: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    SHIFT: tl.constexpr,
    HAS_BUFFER: tl.constexpr,
    IS_NEOX: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Turn a block of heads of one tensor."""
    head = first_head + tl.arange(0, HEADS)[None, :, None]
    lane = tl.arange(0, LANES)[None, None, :]
    rest = 2 * HALF + tl.arange(0, REST_LANES)[None, None, :]
    HAS_REST: tl.constexpr = 2 * HALF < SIZE
    if HAS_NORM:
        always = tl.full((1, 1, 1), 1, tl.int1)
        weight_left, weight_right = load_pair(weight_ptr, always, HALF, LANES, 1, 1, IS_NEOX)
        if HAS_REST:
            weight_rest = tl.load(weight_ptr + rest, mask=rest < SIZE, other=0.0).to(tl.float32)
    overlap(OVERLAP)
    known = token < tokens
    inside = known & (head < COUNT)
    in_rest = inside & (rest < SIZE)
    position = tl.load(positions_ptr + token, mask=known, other=0).to(tl.int64)
    start = x_ptr + token * STRIDE + head.to(tl.int64) * HEAD_STRIDE
    # The heads are asked for before the cosines, which must wait for the positions.
    left, right = load_pair(start, inside, HALF, LANES, TOKENS, HEADS, IS_NEOX)
    if HAS_REST:
        others = tl.load(start + rest, mask=in_rest, other=0.0).to(tl.float32)
    at = cache_ptr + position * (2 * HALF) + lane
    in_table = known & (lane < HALF)
    cos = tl.load(at, mask=in_table, other=0.0).to(tl.float32)
    sin = tl.load(at + HALF, mask=in_table, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(left * left + right * right, axis=2, keep_dims=True)
        if HAS_REST:
            squares += tl.sum(others * others, axis=2, keep_dims=True)
        scale = tl.rsqrt(squares / SIZE + eps)
        left, right = left * scale * (weight_left + SHIFT), right * scale * (weight_right + SHIFT)
        if HAS_REST:
            others = others * scale * (weight_rest + SHIFT)
    turned_left, turned_right = left * cos - right * sin, right * cos + left * sin
    out = out_ptr + token * OUT_STRIDE + head.to(tl.int64) * OUT_HEAD_STRIDE
    store_pair(out, turned_left, turned_right, inside, HALF, LANES, TOKENS, HEADS, IS_NEOX)
    if HAS_REST and HAS_NORM:  # without a norm a result takes the place of its argument
        tl.store(out + rest, others, mask=in_rest)
    if HAS_BUFFER:
        slot = tl.load(loc_ptr + token, mask=known, other=0).to(tl.int64)
        kept = buffer_ptr + slot * SLOT_STRIDE + head * SIZE
        is_kept = slot >= 0
        store_pair(kept, turned_left, turned_right, inside & is_kept, HALF, LANES, TOKENS, HEADS, IS_NEOX)
        if HAS_REST:
            tl.store(kept + rest, others, mask=in_rest & is_kept)


@triton.jit(do_not_specialize=["tokens", "eps"])
def heads_kernel(
    query_ptr,
    key_ptr,
    query_weight_ptr,
    key_weight_ptr,
    query_out_ptr,
    key_out_ptr,
    positions_ptr,
    cache_ptr,
    value_ptr,
    k_buffer_ptr,
    v_buffer_ptr,
    loc_ptr,
    tokens,
    eps,
    QUERY_STRIDE: tl.constexpr,
    QUERY_HEAD_STRIDE: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    KEY_HEAD_STRIDE: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    QUERY_OUT_STRIDE: tl.constexpr,
    QUERY_OUT_HEAD_STRIDE: tl.constexpr,
    KEY_OUT_STRIDE: tl.constexpr,
    KEY_OUT_HEAD_STRIDE: tl.constexpr,
    K_SLOT_STRIDE: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    V_SLOT_STRIDE: tl.constexpr,
    VALUES: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    REST_LANES: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    SHIFT: tl.constexpr,
    HAS_CACHE: tl.constexpr,
    IS_NEOX: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Turn a block of heads of the query, or one of the key, or copy a block of values, of a few tokens."""
    QUERY_BLOCKS: tl.constexpr = (QUERY_HEADS + HEADS - 1) // HEADS
    KEY_BLOCKS: tl.constexpr = (KEY_HEADS + HEADS - 1) // HEADS
    BLOCKS: tl.constexpr = QUERY_BLOCKS + KEY_BLOCKS + (VALUES + VALUE_BLOCK - 1) // VALUE_BLOCK
    program = tl.program_id(0)
    block = program % BLOCKS
    first = (program // BLOCKS).to(tl.int64) * TOKENS
    token = first + tl.arange(0, TOKENS)[:, None, None]
    if block < QUERY_BLOCKS:
        _turn(
            query_ptr,
            query_weight_ptr,
            query_out_ptr,
            k_buffer_ptr,
            positions_ptr,
            cache_ptr,
            loc_ptr,
            token,
            block * HEADS,
            tokens,
            eps,
            QUERY_STRIDE,
            QUERY_HEAD_STRIDE,
            QUERY_HEADS,
            QUERY_OUT_STRIDE,
            QUERY_OUT_HEAD_STRIDE,
            K_SLOT_STRIDE,
            SIZE,
            HALF,
            LANES,
            REST_LANES,
            TOKENS,
            HEADS,
            HAS_NORM,
            SHIFT,
            False,
            IS_NEOX,
            OVERLAP,
        )
    elif block < QUERY_BLOCKS + KEY_BLOCKS:
        _turn(
            key_ptr,
            key_weight_ptr,
            key_out_ptr,
            k_buffer_ptr,
            positions_ptr,
            cache_ptr,
            loc_ptr,
            token,
            (block - QUERY_BLOCKS) * HEADS,
            tokens,
            eps,
            KEY_STRIDE,
            KEY_HEAD_STRIDE,
            KEY_HEADS,
            KEY_OUT_STRIDE,
            KEY_OUT_HEAD_STRIDE,
            K_SLOT_STRIDE,
            SIZE,
            HALF,
            LANES,
            REST_LANES,
            TOKENS,
            HEADS,
            HAS_NORM,
            SHIFT,
            HAS_CACHE,
            IS_NEOX,
            OVERLAP,
        )
    elif HAS_CACHE:
        overlap(OVERLAP)
        row = first + tl.arange(0, TOKENS)[:, None]
        column = (block - QUERY_BLOCKS - KEY_BLOCKS) * VALUE_BLOCK + tl.arange(0, VALUE_BLOCK)[None, :]
        known = row < tokens
        inside = known & (column < VALUES)
        slot = tl.load(loc_ptr + row, mask=known, other=0).to(tl.int64)
        values = tl.load(value_ptr + row * VALUE_STRIDE + column, mask=inside)
        tl.store(v_buffer_ptr + slot * V_SLOT_STRIDE + column, values, mask=inside & (slot >= 0))


#: A launch, the tokens of each program, and the programs of each token.
_Turning = tuple[Launch, int, int]

#: For few tokens and for many, and after how many these begin.
_launches: dict[tuple[object, ...], tuple[_Turning, _Turning, int]] = {}


def turn_heads(heads: Heads) -> None:
    """Norm each head if asked to, rotate its first elements, and write the KV cache if asked to.

    Raises
    ------
    UnsupportedError : another dtype, tensors on the CPU or on several devices
    """
    tensors, norms = _tensors(heads), heads.norms
    start = 0
    for tensor in tensors:
        start |= tensor.data_ptr()
    is_aligned = start % 16 == 0
    strides = _strides(heads)
    signature = (
        *(strides, heads.head_size, heads.is_neox_style, is_aligned, heads.cache is None),
        *(heads.cos_sin_cache.shape[1], None if norms is None else norms.shift),
        *((tensor.dtype, tensor.device) for tensor in tensors),
    )
    found = _launches.get(signature)
    if found is None:
        found = _launches[signature] = _compiled(heads, tensors, strides, is_aligned)
    few, many, most = found
    tokens = heads.positions.shape[0]
    launch, tokens_each, blocks = many if tokens > most else few
    launch(
        -(-tokens // tokens_each) * blocks,
        *map(address, tensors),
        tokens,
        0.0 if norms is None else norms.eps,
    )


def _tensors(heads: Heads) -> tuple[Tensor, ...]:
    """Return the tensors of the kernel in its order; others stand in for those that it does not read."""
    query, key, positions = heads.query, heads.key, heads.positions
    weights = (query, key) if heads.norms is None else heads.norms[:2]
    written = (key, key, key, positions) if heads.cache is None else heads.cache
    return (
        *(query, key, *weights, heads.query_out, heads.key_out),
        *(positions, heads.cos_sin_cache, *written),
    )


#: The constants of the kernel that say how its arguments lie, in its order.
_STRIDES = (
    *("QUERY_STRIDE", "QUERY_HEAD_STRIDE", "QUERY_HEADS", "KEY_STRIDE", "KEY_HEAD_STRIDE", "KEY_HEADS"),
    *("QUERY_OUT_STRIDE", "QUERY_OUT_HEAD_STRIDE", "KEY_OUT_STRIDE", "KEY_OUT_HEAD_STRIDE"),
    *("K_SLOT_STRIDE", "VALUE_STRIDE", "V_SLOT_STRIDE", "VALUES"),
)


def _strides(heads: Heads) -> tuple[int, ...]:
    (query, key, query_out, key_out), cache = heads.layouts, heads.cache
    strides = (*query, *key, *query_out[:2], *key_out[:2])
    if cache is None:
        return (*strides, 0, 0, 0, 0)
    width = cache.value.shape[1]
    # The stride of a single row is any number; that of dense rows is what many tokens mostly have.
    row = cache.value.stride(0) if heads.positions.shape[0] > 1 else width
    return (*strides, cache.k_buffer.stride(0), row, cache.v_buffer.stride(0), width)


def _compiled(
    heads: Heads, tensors: tuple[Tensor, ...], strides: tuple[int, ...], is_aligned: bool
) -> tuple[_Turning, _Turning, int]:
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if not dtypes <= set(DTYPES):
        named = ", ".join(sorted(map(str, dtypes)))
        raise UnsupportedError(f"it turns heads of float16, bfloat16 and float32, not of {named}")
    size, half = heads.head_size, heads.cos_sin_cache.shape[1] // 2
    counts, values = (heads.layouts[0][2], heads.layouts[1][2]), strides[-1]
    of_head = triton.next_power_of_2(size)

    def turning(is_many: bool) -> _Turning:
        pairs, warps = MANY_TILE if is_many else FEW_TILE
        elements = 2 * pairs
        # Blocks of the query have as many heads as the key's, so that these are not half empty.
        most = min(filter(None, counts), default=1)
        each = min(triton.next_power_of_2(most), max(1, elements // of_head))
        tokens_each = max(1, elements // (each * of_head)) if is_many else 1
        value_block = max(1, min(triton.next_power_of_2(max(1, values)), elements // tokens_each))
        launch = compiled(
            heads_kernel,
            *(*tensors, 1, 1e-6),
            is_aligned=is_aligned,
            num_warps=max(1, min(warps, tokens_each * each * of_head // (elements // warps))),
            **dict(zip(_STRIDES, strides, strict=True)),
            SIZE=size,
            HALF=half,
            LANES=triton.next_power_of_2(half),
            REST_LANES=triton.next_power_of_2(max(1, size - 2 * half)),
            TOKENS=tokens_each,
            HEADS=each,
            VALUE_BLOCK=value_block,
            HAS_NORM=heads.norms is not None,
            SHIFT=0.0 if heads.norms is None else heads.norms.shift,
            HAS_CACHE=heads.cache is not None,
            IS_NEOX=heads.is_neox_style,
        )
        blocks = sum(triton.cdiv(count, each) for count in counts) + triton.cdiv(values, value_block)
        return launch, tokens_each, blocks

    width = max(1, sum(counts) * size + values)
    return turning(False), turning(True), 2 * MANY // width
