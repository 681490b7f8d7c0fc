"""The kernel of the gated activations: an activation of the left half of a row times its right half."""

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, address, compiled, overlap

__all__ = ["gated"]

#: Bytes of the result up to which a launch is short, and up to which the result fits into the L2 cache.
SHORT, CACHED = 4 << 20, 32 << 20
#: Elements and warps of a program. With them, µs at 256 x 14336 and at 16384 x 14336 (bfloat16, H200):
#: 1024/8 5.79 and 333, 2048/8 5.90 and 322, 4096/16 5.92 and 321.
SHORT_TILE, LONG_TILE, WIDE_TILE = (1024, 8), (2048, 8), (4096, 16)
#: A row may be padded by so much of itself to be cut into the largest tiles.
MOST_PADDING = 0.25


@triton.jit
def _activated(gate, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate)
    if ACTIVATION == "none":
        return 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    # 0.5 (1 + tanh(z)) is sigmoid(2 z).
    return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))


@triton.jit
def gated_kernel(
    x_ptr,
    out_ptr,
    HALF: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVICTION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Compute one block of one row of the result.

    ``EVICTION`` is the hint that the L2 cache gets for the input, which nobody reads again: where the result
    fits into it, that stays for its reader (20.5 µs at 1024 x 14336, without 22.2). Where it does not, the
    hint costs 2 to 5 %, and up to a fifth where a short launch reads its input out of that cache.
    """
    BLOCKS: tl.constexpr = (HALF + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    row = (program // BLOCKS).to(tl.int64)
    column = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = column < HALF
    overlap(OVERLAP)
    start = x_ptr + row * STRIDE + column
    gate = tl.load(start, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)
    up = tl.load(start + HALF, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)
    result = _activated(gate, ACTIVATION) * up
    tl.store(out_ptr + row * HALF + column, result.to(out_ptr.dtype.element_ty), mask=inside)


#: A launch, and the programs of each row.
_Gated = tuple[Launch, int]

#: For a short launch, for a result that fits into the L2 cache, and for a larger one.
_Tiers = tuple[_Gated, _Gated, _Gated]

_launches: dict[tuple[object, ...], _Tiers] = {}


def gated(x: Tensor, activation: str) -> Tensor:
    """Multiply an activation of the first half of the last axis by the second half.

    Parameters
    ----------
    x : Tensor, (..., 2 * d), float16, bfloat16 or float32, any strides; not written
    activation : ``silu``, or a GELU: ``none`` by the error function, ``tanh`` by its approximation

    Returns
    -------
    Tensor, (..., d), dtype and device of ``x``, new; formed in float32 and rounded once

    Raises
    ------
    ContractError : the last axis is missing or odd
    UnsupportedError : another dtype
    """
    shape = x.shape
    if len(shape) != 2 or not x.is_contiguous():
        return _gated_any(x, activation)
    rows, width = shape
    return _run(x, activation, rows, width, width)


def _run(x: Tensor, activation: str, rows: int, width: int, stride: int) -> Tensor:
    half = width // 2
    out = x.new_empty((rows, half))
    is_aligned = x.data_ptr() % 16 == 0
    key = (x.dtype, width, stride, activation, is_aligned, x.device)
    found = _launches.get(key)
    if found is None:
        found = _launches[key] = _compiled(x, out, stride, activation, is_aligned)
    size = rows * half * x.itemsize
    launch, blocks = found[(size > SHORT) + (size > CACHED)]
    if size:
        launch(rows * blocks, address(x), address(out))
    return out


def _gated_any(x: Tensor, activation: str) -> Tensor:
    """Do the same for any shape and strides."""
    if x.dim() == 0:
        raise ContractError("a gated activation needs an even last axis, got a number")
    width = x.shape[-1]
    rows = x.reshape(x.shape[:-1].numel(), width)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    # The stride of a single row is any number.
    stride = rows.stride(0) if len(rows) > 1 else width
    return _run(rows, activation, len(rows), width, stride).view(*x.shape[:-1], width // 2)


def _compiled(x: Tensor, out: Tensor, stride: int, activation: str, is_aligned: bool) -> _Tiers:
    half = out.shape[1]
    if x.shape[1] % 2:
        raise ContractError(f"a gated activation needs an even last axis, got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise UnsupportedError(f"it computes in float32 and takes no {x.dtype}")

    def launch(block: int, warps: int, eviction: str = "") -> _Gated:
        fitting = triton.next_power_of_2(max(half, 1))
        if fitting < block:
            block, warps = fitting, max(1, warps * fitting // block)
        return compiled(
            *(gated_kernel, x, out),
            is_aligned=is_aligned,
            num_warps=warps,
            HALF=half,
            STRIDE=stride,
            BLOCK=block,
            ACTIVATION=activation,
            EVICTION=eviction,
        ), triton.cdiv(half, block)

    padding = -half % WIDE_TILE[0]
    long = WIDE_TILE if padding <= MOST_PADDING * half else LONG_TILE
    return launch(*SHORT_TILE), launch(*SHORT_TILE, "evict_first"), launch(*long)
