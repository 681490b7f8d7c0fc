"""The gated delta rule over whole chunks of 64 tokens: products of matrices in the place of single steps.

With the logarithms of the decay summed up within a chunk, ``G``, and the state ``S`` before it, the step of
token i is ``S_i = exp(G_i) S + sum_j<=i exp(G_i - G_j) u_j k_j^T``, where ``u`` is what each token adds::

    (1 + A) u = beta (v - exp(G) S k),    A_ij = beta_i exp(G_i - G_j) (k_i k_j) for j < i, else 0

So ``u = U - W S`` with ``U = (1 + A)^-1 beta v`` and ``W = (1 + A)^-1 beta exp(G) k``, which no state enters:

1. ``without_states`` computes U and W, all chunks at once, and writes k of unit length and G for the others,
   of which the second has no time to lose: its chunks come one after the other;
2. ``states`` walks from chunk to chunk of a sequence, for a few values of one head: it keeps the state before
   each chunk, puts u in the place of U, and takes the state on;
3. ``results`` computes ``o_i = S_i q_i``, all chunks at once.

The inverse is that of blocks twice as large, again and again: of ``[[P, 0], [M, Q]]`` with known inverses it
is ``[[P^-1, 0], [-Q^-1 M P^-1, Q^-1]]``, which is for all blocks together ``T - T M T``. A sum of powers of A
would need fewer products, but the powers grow where the keys of a chunk are alike.

Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, and
"Gated Delta Networks", 2024.
"""

from typing import Any

import triton
import triton.language as tl

from sglang_fl.ops.chunk_gated_delta_rule import CHUNK_SIZE
from sglang_fl_nvidia.flagos.delta_rule import unit
from sglang_fl_nvidia.flagos.launch import overlap

__all__ = ["results_kernel", "states_kernel", "without_states_kernel"]

#: Tokens of a chunk, a power of two, and the exponent of that.
CHUNK, LEVELS = tl.constexpr(CHUNK_SIZE), tl.constexpr(CHUNK_SIZE.bit_length() - 1)
#: Sequences whose beginnings a program reads at a time.
MANY = tl.constexpr(64)
#: The logarithm of a decay that is 0 in float32.
LEAST = tl.constexpr(-128.0)


@triton.jit
def _chunk_of(tile, bounds_ptr, sequences, STRIDE: tl.constexpr) -> Any:
    """Return the sequence of a chunk, and its number there.

    What belongs to no sequence counts as one more, the last: it is ``sequences``.
    """
    sequence = 0
    before = 0
    known = 0
    for start in range(0, sequences, MANY):
        chunks = _chunks(start, bounds_ptr, sequences, STRIDE)
        is_passed = known + tl.cumsum(chunks, 0) <= tile
        exists = start + tl.arange(0, MANY) < sequences
        sequence += tl.sum((is_passed & exists).to(tl.int32), 0)
        before += tl.sum(tl.where(is_passed, chunks, 0), 0)
        known += tl.sum(chunks, 0)
    return sequence, tile - before


@triton.jit
def _chunks_before(sequence, bounds_ptr, STRIDE: tl.constexpr) -> Any:
    """Return how many chunks the sequences before this one have."""
    before = 0
    for start in range(0, sequence, MANY):
        before += tl.sum(_chunks(start, bounds_ptr, sequence, STRIDE), 0)
    return before


@triton.jit
def _chunks(start, bounds_ptr, sequences, STRIDE: tl.constexpr) -> Any:
    """Return the numbers of chunks of some sequences; 0 behind the last."""
    number = start + tl.arange(0, MANY)
    exists = number < sequences
    at = bounds_ptr + number.to(tl.int64) * STRIDE
    begin = tl.load(at, mask=exists, other=0).to(tl.int32)
    end = tl.load(at + STRIDE, mask=exists, other=0).to(tl.int32)
    return (end - begin + (CHUNK - 1)) // CHUNK


@triton.jit
def _rows(at, token, exists, STRIDE: tl.constexpr, KEYS: tl.constexpr, LANES: tl.constexpr) -> Any:
    """Load a chunk's rows of one head as they are; zeros where there is no token."""
    lane = tl.arange(0, LANES)
    inside = exists[:, None] & (lane < KEYS)[None, :]
    return tl.load(at + token[:, None] * STRIDE + lane[None, :], mask=inside, other=0.0)


@triton.jit
def _unit_rows(at, token, exists, STRIDE: tl.constexpr, KEYS: tl.constexpr, LANES: tl.constexpr) -> Any:
    """Load them, scaled to unit length, in float32."""
    return unit(_rows(at, token, exists, STRIDE, KEYS, LANES).to(tl.float32))


@triton.jit
def _faded(products, decay, is_seen) -> Any:
    """Return ``exp(G_i - G_j) products_ij`` where token i sees token j, else 0."""
    fading = tl.exp(tl.where(is_seen, decay[:, None] - decay[None, :], 0.0))
    return tl.where(is_seen, products * fading, 0.0)


@triton.jit
def _inverse(a, PRECISION: tl.constexpr) -> Any:
    """Return ``(1 + a)^-1`` for a matrix with nothing on its diagonal and above."""
    row, column = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    inverse = tl.where(row == column, 1.0, 0.0) - tl.where(row // 2 == column // 2, a, 0.0)
    for level in tl.static_range(1, LEVELS):
        is_of_pair = (row >> (level + 1)) == (column >> (level + 1))
        is_below = is_of_pair & ((row >> level) > (column >> level))
        below = tl.dot(inverse, tl.where(is_below, a, 0.0), input_precision=PRECISION)
        inverse -= tl.dot(below, inverse, input_precision=PRECISION)
    return inverse


@triton.jit(do_not_specialize=["sequences"])
def without_states_kernel(
    k_ptr,
    v_ptr,
    g_ptr,
    beta_ptr,
    bounds_ptr,
    keys_ptr,
    decays_ptr,
    changes_ptr,
    weights_ptr,
    sequences,
    K_STRIDE: tl.constexpr,
    K_HEAD: tl.constexpr,
    V_STRIDE: tl.constexpr,
    V_HEAD: tl.constexpr,
    G_STRIDE: tl.constexpr,
    G_HEAD: tl.constexpr,
    BETA_STRIDE: tl.constexpr,
    BETA_HEAD: tl.constexpr,
    BOUNDS_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    VALUES: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Compute U (changes) and W (weights) of one chunk of one value head, with its keys and decays."""
    overlap(OVERLAP)
    program = tl.program_id(0)
    head = (program % VALUE_HEADS).to(tl.int64)
    sequence, number = _chunk_of(program // VALUE_HEADS, bounds_ptr, sequences, BOUNDS_STRIDE)
    if sequence < sequences:
        at = bounds_ptr + sequence.to(tl.int64) * BOUNDS_STRIDE
        begin, end = tl.load(at).to(tl.int64), tl.load(at + BOUNDS_STRIDE).to(tl.int64)
        place = tl.arange(0, CHUNK)
        token = begin + number * CHUNK + place
        exists = token < end
        shared = head // (VALUE_HEADS // HEADS)
        k = _unit_rows(k_ptr + shared * K_HEAD, token, exists, K_STRIDE, KEYS, LANES)
        dtype = changes_ptr.dtype.element_ty
        beta = tl.load(beta_ptr + token * BETA_STRIDE + head * BETA_HEAD, mask=exists, other=0.0)
        beta = beta.to(tl.float32)
        g = tl.load(g_ptr + token * G_STRIDE + head * G_HEAD, mask=exists, other=0.0).to(tl.float32)
        # The sums of the others keep their digits beside that of a token that wipes a state out.
        decay = tl.cumsum(tl.where(g < LEAST, LEAST, g), 0)
        narrow = k.to(dtype)
        products = tl.dot(narrow, tl.trans(narrow), input_precision=PRECISION)
        a = _faded(products * beta[:, None], decay, place[:, None] > place[None, :])
        inverse = _inverse(a, PRECISION).to(dtype)

        lane, row = tl.arange(0, LANES), token * VALUE_HEADS + head
        inside = exists[:, None] & (lane < KEYS)[None, :]
        tl.store(decays_ptr + row, decay, mask=exists)
        if head % (VALUE_HEADS // HEADS) == 0:
            of_token = (token * HEADS + shared)[:, None] * KEYS
            tl.store(keys_ptr + of_token + lane[None, :], narrow, mask=inside)
        of_key = (k * (beta * tl.exp(decay))[:, None]).to(dtype)
        weights = tl.dot(inverse, of_key, input_precision=PRECISION)
        tl.store(weights_ptr + row[:, None] * KEYS + lane[None, :], weights.to(dtype), mask=inside)
        for first in tl.static_range(0, VALUES, BLOCK):
            value = first + tl.arange(0, BLOCK)
            inside = exists[:, None] & (value < VALUES)[None, :]
            v_at = v_ptr + token[:, None] * V_STRIDE + head * V_HEAD + value[None, :]
            v = tl.load(v_at, mask=inside, other=0.0).to(tl.float32)
            changes = tl.dot(inverse, (v * beta[:, None]).to(dtype), input_precision=PRECISION)
            tl.store(changes_ptr + row[:, None] * VALUES + value[None, :], changes.to(dtype), mask=inside)


@triton.jit
def states_kernel(
    keys_ptr,
    decays_ptr,
    state_ptr,
    index_ptr,
    bounds_ptr,
    changes_ptr,
    weights_ptr,
    before_ptr,
    BOUNDS_STRIDE: tl.constexpr,
    INDEX_STRIDE: tl.constexpr,
    SLOT_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    VALUES: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Take a few values of one head's state through the chunks of a sequence."""
    overlap(OVERLAP)
    BLOCKS: tl.constexpr = (VALUES + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    head = (program // BLOCKS % VALUE_HEADS).to(tl.int64)
    sequence = (program // BLOCKS // VALUE_HEADS).to(tl.int64)
    slot = tl.load(index_ptr + sequence * INDEX_STRIDE).to(tl.int64)
    if slot >= 0:
        begin = tl.load(bounds_ptr + sequence * BOUNDS_STRIDE).to(tl.int64)
        end = tl.load(bounds_ptr + (sequence + 1) * BOUNDS_STRIDE).to(tl.int64)
        chunk = _chunks_before(sequence, bounds_ptr, BOUNDS_STRIDE).to(tl.int64)
        value, lane = program % BLOCKS * BLOCK + tl.arange(0, BLOCK), tl.arange(0, LANES)
        inside = (value < VALUES)[:, None] & (lane < KEYS)[None, :]
        of_state = value[:, None] * KEYS + lane[None, :]
        held = state_ptr + slot * SLOT_STRIDE + head * (VALUES * KEYS) + of_state
        state = tl.load(held, mask=inside, other=0.0).to(tl.float32)
        k_at = keys_ptr + head // (VALUE_HEADS // HEADS) * KEYS
        dtype = changes_ptr.dtype.element_ty
        for first in range(begin, end, CHUNK):
            before = before_ptr + (chunk * VALUE_HEADS + head) * (VALUES * KEYS) + of_state
            tl.store(before, state.to(before_ptr.dtype.element_ty), mask=inside)
            token = first + tl.arange(0, CHUNK).to(tl.int64)
            exists = token < end
            row = token * VALUE_HEADS + head
            of_values = exists[:, None] & (value < VALUES)[None, :]
            w_at = weights_ptr + head * KEYS
            weights = _rows(w_at, token, exists, VALUE_HEADS * KEYS, KEYS, LANES)
            change_at = changes_ptr + row[:, None] * VALUES + value[None, :]
            change = tl.load(change_at, mask=of_values, other=0.0).to(tl.float32)
            narrow = tl.trans(state.to(dtype))
            change -= tl.dot(weights, narrow, input_precision=PRECISION)
            tl.store(change_at, change.to(dtype), mask=of_values)
            decay = tl.load(decays_ptr + row, mask=exists, other=0.0)
            whole = tl.load(decays_ptr + (tl.minimum(first + CHUNK, end) - 1) * VALUE_HEADS + head)
            k = _rows(k_at, token, exists, HEADS * KEYS, KEYS, LANES)
            fading = tl.exp(tl.where(exists, whole - decay, 0.0))
            left = tl.trans((change * fading[:, None]).to(dtype))
            state = tl.dot(left, k, state * tl.exp(whole), input_precision=PRECISION)
            chunk += 1
        tl.store(held, state.to(state_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["sequences", "tokens", "scale"])
def results_kernel(
    q_ptr,
    keys_ptr,
    decays_ptr,
    index_ptr,
    bounds_ptr,
    changes_ptr,
    before_ptr,
    out_ptr,
    sequences,
    tokens,
    scale,
    Q_STRIDE: tl.constexpr,
    Q_HEAD: tl.constexpr,
    BOUNDS_STRIDE: tl.constexpr,
    INDEX_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    VALUES: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Compute a few values of one head for the tokens of a chunk, or zero those of some that are in none."""
    overlap(OVERLAP)
    BLOCKS: tl.constexpr = (VALUES + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    chunk = (program // BLOCKS // VALUE_HEADS).to(tl.int64)
    head = (program // BLOCKS % VALUE_HEADS).to(tl.int64)
    sequence, number = _chunk_of(chunk.to(tl.int32), bounds_ptr, sequences, BOUNDS_STRIDE)
    value = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    place, lane = tl.arange(0, CHUNK), tl.arange(0, LANES)
    dtype = out_ptr.dtype.element_ty
    if sequence < sequences:
        slot = tl.load(index_ptr + sequence.to(tl.int64) * INDEX_STRIDE)
        at = bounds_ptr + sequence.to(tl.int64) * BOUNDS_STRIDE
        begin, end = tl.load(at).to(tl.int64), tl.load(at + BOUNDS_STRIDE).to(tl.int64)
        token = begin + number * CHUNK + place
        exists = token < end
        row = (token * VALUE_HEADS + head)[:, None] * VALUES + value[None, :]
        of_values = exists[:, None] & (value < VALUES)[None, :]
        if slot >= 0:
            shared = head // (VALUE_HEADS // HEADS)
            q = _unit_rows(q_ptr + shared * Q_HEAD, token, exists, Q_STRIDE, KEYS, LANES).to(dtype)
            k = _rows(keys_ptr + shared * KEYS, token, exists, HEADS * KEYS, KEYS, LANES)
            decay = tl.load(decays_ptr + token * VALUE_HEADS + head, mask=exists, other=0.0)
            inside = (value < VALUES)[:, None] & (lane < KEYS)[None, :]
            before = before_ptr + (chunk * VALUE_HEADS + head) * (VALUES * KEYS)
            state = tl.load(before + value[:, None] * KEYS + lane[None, :], mask=inside, other=0.0).to(dtype)
            change = tl.load(changes_ptr + row, mask=of_values, other=0.0)
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            seen = _faded(products, decay, place[:, None] >= place[None, :]).to(dtype)
            out = tl.dot(q, tl.trans(state), input_precision=PRECISION) * tl.exp(decay)[:, None]
            out = tl.dot(seen, change, out, input_precision=PRECISION) * scale
            tl.store(out_ptr + row, out.to(dtype), mask=of_values)
        else:
            # A later layer reads these rows too.
            tl.store(out_ptr + row, tl.zeros([CHUNK, BLOCK], dtype), mask=of_values)
    else:
        # So it does those of tokens before the first sequence and behind the last.
        first = tl.load(bounds_ptr).to(tl.int64)
        last = tl.load(bounds_ptr + sequences.to(tl.int64) * BOUNDS_STRIDE).to(tl.int64)
        token = number * CHUNK + place
        token += tl.where(token < first, 0, last - first)
        row = (token * VALUE_HEADS + head)[:, None] * VALUES + value[None, :]
        of_values = (token < tokens)[:, None] & (value < VALUES)[None, :]
        tl.store(out_ptr + row, tl.zeros([CHUNK, BLOCK], dtype), mask=of_values)
