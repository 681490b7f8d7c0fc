"""``layer_norm`` in one Triton kernel: mean and variance of a row that is loaded once."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, address, compiled, multiprocessors, overlap

__all__ = ["layer_norm"]

#: Elements, and rows, from which on a program norms several rows, because weight and bias, float32 in
#: SGLang's models, are four times as long as a row of bfloat16.
MANY, MANY_ROWS = 3 << 19, 512
#: How many then.
TURNS = 4
#: Rows from this length on are dealt evenly to as many programs as run at once (two on a multiprocessor), or
#: to a multiple of that where each would norm more than ``MOST_TURNS``, then no more than ``LATER_TURNS``: so
#: all end together. Share of a copy's speed (7168 wide, bfloat16, H200) of four rows a program, and so: 768
#: rows 0.82 and 0.92, 3072 0.88 and 0.94, 4096 0.88 and 0.92; of 16 rows a program and of 8: 16384 rows 0.92
#: and 0.93. Of rows up to 6144 wide more programs run at once, and it made no such difference. (Long rows of
#: float32, and any of more than 8192, are not loaded in stages at all.)
LONG, AT_ONCE, MOST_TURNS, LATER_TURNS = 6145, 2, 16, 8
#: The stages in which rows are loaded ahead, and elements of a row that are one tensor there: in one of 8192
#: three eighths of a row of 5120 are padding, 0.90 of a copy where five of 1024 make 0.93.
STAGES, PIECE = 3, 1024
#: Bytes of a row up to which that many stages fit into the shared memory of any GPU.
MOST_STAGED = 16384
#: A row must fit into one program's registers.
MOST_COLUMNS = 65536


@triton.jit(do_not_specialize=["rows", "eps"])
def layer_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    eps,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    ONE_ROW: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Norm a program's rows, one after the other, each in pieces of ``BLOCK``; load weight and bias once."""
    PIECES: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    lane = tl.arange(0, BLOCK)
    weights = ()  # Triton knows tuples, but no stars in them
    biases = ()
    for piece in tl.static_range(PIECES):
        column = piece * BLOCK + lane
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0)
            weights = weights + (weight.to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
        if HAS_BIAS:
            bias = tl.load(bias_ptr + column, mask=column < WIDTH, other=0.0)
            biases = biases + (bias.to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    overlap(OVERLAP)
    first, step = tl.program_id(0), tl.num_programs(0)
    # A loop of one turn is none to the compiler, and few rows are normed 1 to 6 % faster.
    for turn in tl.range(0, 1 if ONE_ROW else tl.cdiv(rows - first, step), num_stages=STAGES):
        row = first + turn * step
        start = x_ptr + tl.cast(row, tl.int64) * STRIDE
        parts = ()
        sums = tl.zeros((BLOCK,), tl.float32)
        for piece in tl.static_range(PIECES):
            column = piece * BLOCK + lane
            part = tl.load(start + column, mask=column < WIDTH, other=0.0).to(tl.float32)
            parts = parts + (part,)  # type: ignore[assignment]  # noqa: RUF005
            sums += part
        mean = tl.sum(sums) / WIDTH
        squares = tl.zeros((BLOCK,), tl.float32)
        for piece in tl.static_range(PIECES):
            centred = tl.where(piece * BLOCK + lane < WIDTH, parts[piece] - mean, 0.0)
            squares += centred * centred
        scale = tl.rsqrt(tl.sum(squares) / WIDTH + eps)
        for piece in tl.static_range(PIECES):
            column = piece * BLOCK + lane
            result = (parts[piece] - mean) * scale
            if HAS_WEIGHT:
                result *= weights[piece]
            if HAS_BIAS:
                result += biases[piece]
            at = out_ptr + tl.cast(row, tl.int64) * WIDTH + column
            tl.store(at, result.to(out_ptr.dtype.element_ty), mask=column < WIDTH)


class _Norms(NamedTuple):
    """How rows of one kind are normed.

    Parameters
    ----------
    few : a program a row
    many : each program norms several
    most : rows that still are few
    at_once : programs that run at once, to which many rows are dealt; 0: a program for each ``TURNS`` rows
    """

    few: Launch
    many: Launch
    most: int
    at_once: int


_launches: dict[tuple[object, ...], _Norms] = {}


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See ``sglang_fl.ops.layer_norm``.

    Raises
    ------
    UnsupportedError : another dtype than float16, bfloat16 and float32, weights that are not dense, or rows
        of none or more than 65536
    """
    if x.dim() != 2 or x.stride(1) != 1:
        if x.dim() == 0:
            raise ContractError("layer_norm: x needs rows, got a number")
        shape = (x.shape[:-1].numel(), x.shape[-1])
        # What has no elements, or rows of one, counts as contiguous with whatever strides.
        dense = x.new_empty(shape).copy_(x.reshape(shape))
        return layer_norm(dense, weight, bias, eps).view(x.shape)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, width = x.shape
    if rows == 0:
        return out
    scale, shift = x if weight is None else weight, x if bias is None else bias
    is_aligned = (x.data_ptr() | scale.data_ptr() | shift.data_ptr()) % 16 == 0
    stride = x.stride(0) if rows > 1 else width
    for parameter in (weight, bias):
        if parameter is not None and parameter.shape != x.shape[1:]:
            raise ContractError(f"layer_norm: {tuple(parameter.shape)} does not fit x {tuple(x.shape)}")
        if parameter is not None and not parameter.is_contiguous():
            # A dense copy would be made by the kernel before, and weights are loaded before it is waited for.
            raise UnsupportedError(f"it takes weights that are dense, not with strides {parameter.stride()}")
    key = (
        *(x.dtype, width, stride, weight is None, bias is None, scale.dtype, shift.dtype),
        *(is_aligned, x.device, scale.device, shift.device),
    )
    found = _launches.get(key)
    if found is None:
        found = _launches[key] = _compiled(x, weight, bias, out, stride, is_aligned)
    few, many, most, at_once = found
    if rows <= most:
        launch, programs = few, rows
    elif at_once:
        waves = 1 if rows <= at_once * MOST_TURNS else -(-rows // (at_once * LATER_TURNS))
        launch, programs = many, min(rows, at_once * waves)
    else:
        launch, programs = many, -(-rows // TURNS)
    launch(programs, address(x), address(scale), address(shift), address(out), rows, eps)
    return out


def _compiled(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor, stride: int, is_aligned: bool
) -> _Norms:
    width = x.shape[1]
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if parameter.dtype not in DTYPES:
            raise UnsupportedError(f"it takes no {name} of {parameter.dtype}")
    if x.dtype not in DTYPES or not 0 < width <= MOST_COLUMNS:
        raise UnsupportedError(
            f"it takes float16, bfloat16 and float32 in rows of 1 to {MOST_COLUMNS}, not {width} of {x.dtype}"
        )
    block = triton.next_power_of_2(width)

    def launch(block: int, stages: int, num_warps: int, one_row: bool = False) -> Launch:
        return compiled(
            layer_norm_kernel,
            *(x, x if weight is None else weight, x if bias is None else bias, out, x.shape[0], 1e-5),
            is_aligned=is_aligned,
            num_warps=num_warps,
            WIDTH=width,
            STRIDE=stride,
            HAS_WEIGHT=weight is not None,
            HAS_BIAS=bias is not None,
            BLOCK=block,
            STAGES=stages,
            ONE_ROW=one_row,
        )

    warps = min(32, max(1, block // 1024 if block >= 4096 else block // 256))
    few, most = launch(block, 1, warps, one_row=True), max(MANY_ROWS, MANY // width)
    if block * x.element_size() > MOST_STAGED:
        return _Norms(few, launch(block, 1, warps), most, 0)
    many = launch(min(block, PIECE), STAGES, max(1, min(4, block // 1024)))
    return _Norms(few, many, most, AT_ONCE * multiprocessors(x.get_device()) if width >= LONG else 0)
