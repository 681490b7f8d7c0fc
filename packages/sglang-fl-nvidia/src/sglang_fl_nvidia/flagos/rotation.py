"""The kernel of the rotary embeddings: turns the heads of query and key where they lie.

Each program holds both elements of the pairs that it turns, loaded before either is stored.
"""

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import unshared
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, address, compiled, overlap
from sglang_fl_nvidia.flagos.pairs import load_pair, store_pair

__all__ = [
    "FEW_TILE",
    "MANY",
    "MANY_TILE",
    "Layout",
    "are_apart",
    "check_rotation",
    "dense_heads",
    "layout_of",
    "rotate_heads",
    "spans",
    "take_turns",
]

#: Pairs of elements from which on programs are bound by the memory, not by their latency.
MANY = 400_000
#: Pairs that a program turns, and its warps, for a few pairs and for many: µs at 64 and at 4096 tokens of
#: 64 + 8 heads of 128 (bfloat16, H200): 512/4 1.33 and 46.2, 1024/4 1.55 and 39.2, 512/1 1.38 and 45.8.
FEW_TILE, MANY_TILE = (512, 4), (1024, 4)


@triton.jit(do_not_specialize=["tokens", "axis_stride"])
def rotation_kernel(
    positions_ptr,
    offsets_ptr,
    axes_ptr,
    query_ptr,
    key_ptr,
    cache_ptr,
    tokens,
    axis_stride,
    HAS_OFFSETS: tl.constexpr,
    HAS_AXES: tl.constexpr,
    QUERY_STRIDE: tl.constexpr,
    QUERY_HEAD_STRIDE: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    KEY_HEAD_STRIDE: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    IS_NEOX: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Turn a block of the heads of a few tokens; those of the key are numbered after those of the query."""
    BLOCKS: tl.constexpr = (QUERY_HEADS + KEY_HEADS + HEADS - 1) // HEADS
    program = tl.program_id(0)
    token = (program // BLOCKS).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
    head = program % BLOCKS * HEADS + tl.arange(0, HEADS)[None, :, None]
    lane = tl.arange(0, LANES)[None, None, :]
    known = (token < tokens) & (lane < HALF)
    overlap(OVERLAP)
    if HAS_AXES:
        axis = tl.load(axes_ptr + lane, mask=lane < HALF, other=0).to(tl.int64)
        position = tl.load(positions_ptr + axis * axis_stride + token, mask=known, other=0).to(tl.int64)
    else:
        position = tl.load(positions_ptr + token, mask=token < tokens, other=0).to(tl.int64)
        if HAS_OFFSETS:
            position += tl.load(offsets_ptr + token, mask=token < tokens, other=0)
    of_query = query_ptr + token * QUERY_STRIDE + head.to(tl.int64) * QUERY_HEAD_STRIDE
    of_key = key_ptr + token * KEY_STRIDE + (head - QUERY_HEADS).to(tl.int64) * KEY_HEAD_STRIDE
    start = tl.where(head < QUERY_HEADS, of_query, of_key)
    inside = (token < tokens) & (head < QUERY_HEADS + KEY_HEADS)
    # The heads are asked for before the cosines, which must wait for the positions.
    left, right = load_pair(start, inside, HALF, LANES, TOKENS, HEADS, IS_NEOX)
    at = cache_ptr + position * (2 * HALF) + lane
    cos = tl.load(at, mask=known, other=0.0).to(tl.float32)
    sin = tl.load(at + HALF, mask=known, other=0.0).to(tl.float32)
    turned_left, turned_right = left * cos - right * sin, right * cos + left * sin
    store_pair(start, turned_left, turned_right, inside, HALF, LANES, TOKENS, HEADS, IS_NEOX)


#: How the heads of a tensor lie: stride of a token and of a head in elements, number of heads.
Layout = tuple[int, int, int]

#: How far apart the rows of a tensor begin, how long one is, and how far all reach, in bytes.
Span = tuple[int, int, int]

#: A launch, the tokens of each program, and the programs of each token.
_Rotation = tuple[Launch, int, int]

#: For few tokens and for many, and after how many these begin.
_launches: dict[tuple[object, ...], tuple[_Rotation, _Rotation, int]] = {}


def rotate_heads(
    op: str,
    positions: Tensor,
    offsets: Tensor | None,
    axes: Tensor | None,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
) -> tuple[Tensor, Tensor]:
    """Rotate the first elements of each head by its token's position, in place.

    Parameters
    ----------
    op : for error messages
    positions : Tensor, int32 or int64: (T,), or (3, T) if ``axes`` is given; rows dense
    offsets : Tensor, like ``positions``, or None; added to them
    axes : Tensor, (rotary_dim / 2,), int32: the row of ``positions`` that turns each pair; or None
    query, key : Tensors, (..., heads * head_size) or (..., heads, head_size) over T tokens; float16, bfloat16
        or float32; overwritten if the elements of a head lie side by side, heads at one stride, and their
        memory is their own
    cos_sin_cache : Tensor, (P, rotary_dim), dense
    head_size, is_neox_style : see ``sglang_fl.ops.rotary_embedding``

    Returns
    -------
    (query, key) : the given tensors, or copies if they lie otherwise

    Raises
    ------
    ContractError : query or key is not T rows of whole heads
    UnsupportedError : another dtype
    """
    tokens = positions.shape[-1]
    if tokens == 0:
        return query, key
    lies, key_lies = layout_of(query, tokens, head_size), layout_of(key, tokens, head_size)
    cos_sin_cache = cos_sin_cache.contiguous()
    rest = cos_sin_cache, head_size, is_neox_style
    if lies is None or key_lies is None:
        dense, dense_key = (dense_heads(op, x, tokens, head_size) for x in (query, key))
        turned = rotate_heads(op, positions, offsets, axes, dense, dense_key, *rest)
        return turned[0].view(query.shape), turned[1].view(key.shape)
    if lies[2] + key_lies[2] == 0:
        return query, key
    if not are_apart(query, key, lies, key_lies, tokens, head_size, cos_sin_cache):
        others = positions, offsets, cos_sin_cache
        query, key = unshared(query, key, *others), unshared(key, query, *others)
        lies = layout_of(query, tokens, head_size) or lies
        key_lies = layout_of(key, tokens, head_size) or key_lies
    if query.dtype != key.dtype:  # a program turns heads of one dtype
        check_rotation(op, query, key, cos_sin_cache, head_size)
        rotate_heads(op, positions, offsets, axes, query, query.new_empty((tokens, 0)), *rest)
        rotate_heads(op, positions, offsets, axes, key.new_empty((tokens, 0)), key, *rest)
        return query, key
    start = positions.data_ptr() | (0 if offsets is None else offsets.data_ptr())
    start |= query.data_ptr() | key.data_ptr() | cos_sin_cache.data_ptr()
    signature = (
        *(lies, key_lies, query.dtype, cos_sin_cache.dtype, cos_sin_cache.shape[1]),
        *(positions.dtype, None if offsets is None else offsets.dtype, axes is None, head_size),
        *(is_neox_style, start % 16 == 0, query.device, key.device, cos_sin_cache.device, positions.device),
    )
    found = _launches.get(signature)
    if found is None:
        check_rotation(op, query, key, cos_sin_cache, head_size)
        found = _launches[signature] = _compiled(
            *(positions, offsets, axes, query, key, cos_sin_cache),
            *(lies, key_lies, is_neox_style, start % 16 == 0),
        )
    few, many, most = found
    launch, tokens_each, blocks = many if tokens > most else few
    launch(
        -(-tokens // tokens_each) * blocks,
        address(positions),
        address(positions if offsets is None else offsets),
        address(positions if axes is None else axes),
        address(query),
        address(key),
        address(cos_sin_cache),
        tokens,
        positions.stride(0),
    )
    return query, key


def layout_of(x: Tensor, tokens: int, head_size: int) -> Layout | None:
    """Return how the heads of ``x`` lie, or None if not at one stride with their elements side by side."""
    shape, stride = x.shape, x.stride()
    if stride[-1] != 1 or shape[0] != tokens:
        return None
    if len(shape) == 2 and shape[1] % head_size == 0:
        return stride[0] if tokens > 1 else shape[1], head_size, shape[1] // head_size
    # Heads further apart than tokens lie at a stride that changes with the number of tokens.
    if len(shape) == 3 and shape[2] == head_size and (stride[1] <= stride[0] or shape[0] == 1):
        heads = shape[1]
        between = stride[1] if heads > 1 else head_size
        return stride[0] if tokens > 1 else heads * between, between, heads  # a single row's is any number
    return None


def are_apart(
    query: Tensor,
    key: Tensor,
    lies: Layout,
    key_lies: Layout,
    tokens: int,
    head_size: int,
    cos_sin_cache: Tensor,
) -> bool:
    """Whether no two heads share memory, nor one and the table; see ``sglang_fl.ops.shares_memory``."""
    item, key_item = query.itemsize, key.itemsize
    row, width, reach = spans(lies, tokens, head_size, item)
    key_row, key_width, key_reach = spans(key_lies, tokens, head_size, key_item)
    if (
        head_size > lies[1]
        or head_size > key_lies[1]
        or (tokens > 1 and (row < width or key_row < key_width))
    ):
        return False
    begin, key_begin, table = query.data_ptr(), key.data_ptr(), cos_sin_cache.data_ptr()
    if -cos_sin_cache.nbytes < table - begin < reach or -cos_sin_cache.nbytes < table - key_begin < key_reach:
        return False
    return take_turns(begin, (row, width, reach), key_begin, (key_row, key_width, key_reach))


def take_turns(begin: int, span: Span, other_begin: int, other_span: Span) -> bool:
    """Whether no row of one tensor shares memory with one of another.

    Parameters
    ----------
    begin, other_begin : addresses of their first elements
    span, other_span : see ``spans``
    """
    (row, width, reach), (other_row, other_width, other_reach) = span, other_span
    distance = other_begin - begin
    if distance >= reach or -distance >= other_reach:
        return True
    # Slices of one packed projection take turns.
    return row == other_row and distance % row >= width and distance % row + other_width <= row


def spans(lies: Layout, tokens: int, head_size: int, item: int) -> Span:
    """Return in bytes how far apart rows begin, how long one is, and how far all reach."""
    stride, between, heads = lies
    width = (heads - 1) * between + head_size if heads else 0
    return stride * item, width * item, ((tokens - 1) * stride + width) * item


def dense_heads(op: str, x: Tensor, tokens: int, head_size: int) -> Tensor:
    """Return ``x`` as (tokens, heads, head_size)."""
    shape = x.shape
    is_whole = len(shape) > 1 and shape[-1] % head_size == 0 and shape[:-1].numel() == tokens
    if not is_whole and (len(shape) < 2 or shape[-1] != head_size or shape[:-2].numel() != tokens):
        raise ContractError(f"{op}: {tuple(x.shape)} is not {tokens} rows of heads of {head_size}")
    return x.reshape(tokens, x.numel() // (tokens * head_size), head_size).contiguous()


def _tile(heads: int, lanes: int, is_many: bool) -> tuple[int, int, int]:
    """Return the tokens and heads that a program turns, and its warps."""
    pairs, warps = MANY_TILE if is_many else FEW_TILE
    block = min(triton.next_power_of_2(heads), max(1, pairs // lanes))
    tokens_each = max(1, pairs // (block * lanes)) if is_many else 1
    return tokens_each, block, max(1, min(warps, tokens_each * block * lanes // (pairs // warps)))


def _compiled(
    positions: Tensor,
    offsets: Tensor | None,
    axes: Tensor | None,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    lies: Layout,
    key_lies: Layout,
    is_neox_style: bool,
    is_aligned: bool,
) -> tuple[_Rotation, _Rotation, int]:
    half = cos_sin_cache.shape[1] // 2
    lanes, heads = triton.next_power_of_2(half), lies[2] + key_lies[2]

    def rotation(is_many: bool) -> _Rotation:
        tokens_each, block, warps = _tile(heads, lanes, is_many)
        launch = compiled(
            rotation_kernel,
            *(positions, positions if offsets is None else offsets),
            *(positions if axes is None else axes, query, key, cos_sin_cache),
            *(positions.shape[-1], positions.stride(0)),
            is_aligned=is_aligned,
            num_warps=warps,
            HAS_OFFSETS=offsets is not None,
            HAS_AXES=axes is not None,
            **dict(zip(("QUERY_STRIDE", "QUERY_HEAD_STRIDE", "QUERY_HEADS"), lies, strict=True)),
            **dict(zip(("KEY_STRIDE", "KEY_HEAD_STRIDE", "KEY_HEADS"), key_lies, strict=True)),
            HEADS=block,
            TOKENS=tokens_each,
            HALF=half,
            LANES=lanes,
            IS_NEOX=is_neox_style,
        )
        return launch, tokens_each, triton.cdiv(heads, block)

    return rotation(False), rotation(True), MANY // (heads * lanes)


def check_rotation(op: str, query: Tensor, key: Tensor, cos_sin_cache: Tensor, head_size: int) -> None:
    """Raise ``ContractError`` or ``UnsupportedError`` unless the kernels take such tensors."""
    rotary_dim = cos_sin_cache.shape[1]
    if rotary_dim % 2 or rotary_dim > head_size:
        raise ContractError(f"{op}: rotary_dim {rotary_dim} must be even and at most head_size {head_size}")
    dtypes = {query.dtype, key.dtype, cos_sin_cache.dtype}
    if not dtypes <= set(DTYPES):
        raise UnsupportedError(
            f"it rotates float16, bfloat16 and float32 by a cache of these, not {query.dtype} and "
            f"{key.dtype} by {cos_sin_cache.dtype}"
        )
