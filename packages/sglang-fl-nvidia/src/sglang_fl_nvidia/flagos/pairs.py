"""The pairs of elements that a rotation turns: loading them from heads, storing them there."""

import triton
import triton.language as tl

__all__ = ["load_pair", "store_pair"]


@triton.jit
def load_pair(  # noqa: ANN201 (Triton reads the names in an annotation as globals of the kernel)
    start,
    inside,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    IS_NEOX: tl.constexpr,
):
    """Load both elements of the pairs of heads in float32, zeros outside.

    Parameters
    ----------
    start : of the heads, (TOKENS, HEADS, 1)
    inside : which heads there are, likewise
    HALF : pairs of a head
    LANES : a power of two from ``HALF`` on
    IS_NEOX : see ``sglang_fl.ops.rotary_embedding``

    Returns
    -------
    (left, right), each (TOKENS, HEADS, LANES)
    """
    if IS_NEOX:
        lane = tl.arange(0, LANES)[None, None, :]
        in_half = inside & (lane < HALF)
        left = tl.load(start + lane, mask=in_half, other=0.0).to(tl.float32)
        right = tl.load(start + HALF + lane, mask=in_half, other=0.0).to(tl.float32)
    else:
        element = tl.arange(0, 2 * LANES)[None, None, :]
        whole = tl.load(start + element, mask=inside & (element < 2 * HALF), other=0.0).to(tl.float32)
        left, right = tl.split(tl.reshape(whole, (TOKENS, HEADS, LANES, 2)))
    return left, right


@triton.jit
def store_pair(
    start,
    left,
    right,
    inside,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    IS_NEOX: tl.constexpr,
) -> None:
    """Store both elements of the pairs of heads; see ``load_pair``."""
    if IS_NEOX:
        lane = tl.arange(0, LANES)[None, None, :]
        in_half = inside & (lane < HALF)
        tl.store(start + lane, left, mask=in_half)
        tl.store(start + HALF + lane, right, mask=in_half)
    else:
        element = tl.arange(0, 2 * LANES)[None, None, :]
        whole = tl.reshape(tl.join(left, right), (TOKENS, HEADS, 2 * LANES))
        tl.store(start + element, whole, mask=inside & (element < 2 * HALF))
