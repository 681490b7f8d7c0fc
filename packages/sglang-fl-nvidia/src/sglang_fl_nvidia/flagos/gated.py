"""The kernel of the gated activations: an activation of the left half of a row times its right half."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, Launches, address, compiled

__all__ = ["gated"]

#: Results from which on larger programs are faster.
MANY = 6 << 20
#: Elements and warps of a program, for a few results and for many. With them, µs at 256 x 14336 and at
#: 16384 x 14336 (bfloat16, H200): 1024/8 5.76 and 334, 2048/8 5.87 and 320, 1024/4 5.91 and 320,
#: 512/4 9.6 and 553.
FEW_TILE, MANY_TILE = (1024, 8), (2048, 8)


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
    OVERLAP: tl.constexpr,
):
    """Compute one block of one row of the result."""
    BLOCKS: tl.constexpr = (HALF + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    row = (program // BLOCKS).to(tl.int64)
    column = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = column < HALF
    if OVERLAP:
        gdc_wait()
    gate = tl.load(x_ptr + row * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * STRIDE + HALF + column, mask=inside, other=0.0).to(tl.float32)
    result = _activated(gate, ACTIVATION) * up
    tl.store(out_ptr + row * HALF + column, result.to(out_ptr.dtype.element_ty), mask=inside)
    if OVERLAP:
        gdc_launch_dependents()


_launches: dict[tuple[object, ...], Launches] = {}


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
    key = (x.dtype, width, stride, activation, is_aligned, x.get_device())
    found = _launches.get(key)
    if found is None:
        found = _launches[key] = _compiled(x, out, stride, activation, is_aligned)
    launch, blocks = found[rows * half > MANY]
    if rows and half:
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
    # The stride of a single row is of no account, and may be any number.
    stride = rows.stride(0) if len(rows) > 1 else width
    return _run(rows, activation, len(rows), width, stride).view(*x.shape[:-1], width // 2)


def _compiled(x: Tensor, out: Tensor, stride: int, activation: str, is_aligned: bool) -> Launches:
    half = out.shape[1]
    if x.shape[1] % 2:
        raise ContractError(f"a gated activation needs an even last axis, got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise UnsupportedError(f"it computes in float32 and takes no {x.dtype}")

    def launch(block: int, warps: int) -> tuple[Launch, int]:
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
        ), triton.cdiv(half, block)

    return launch(*FEW_TILE), launch(*MANY_TILE)
