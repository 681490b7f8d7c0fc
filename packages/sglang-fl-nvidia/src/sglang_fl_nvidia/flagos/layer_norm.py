"""``layer_norm`` in one Triton kernel: mean and variance of a row that is loaded once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, address, compiled, overlap

__all__ = ["layer_norm"]

#: Elements, and rows, from which on a program norms several rows, because weight and bias, float32 in
#: SGLang's models, are four times as long as a row of bfloat16.
MANY, MANY_ROWS = 3 << 19, 512
#: How many then, and the stages in which they are loaded ahead. µs at 4096 x 4096 (bfloat16, H200) of eight
#: rows in one stage 21.6, of eight in three 19.3, of four in three 18.9; of a copy 17.7.
TURNS, STAGES = 4, 3
#: Bytes of a row up to which that many fit into the shared memory of any GPU.
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
    TURNS: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Norm so many rows, one after the other; weight and bias are loaded once."""
    first = tl.program_id(0).to(tl.int64) * TURNS
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    overlap(OVERLAP)
    for turn in tl.range(0, TURNS, num_stages=STAGES):
        row = first + turn
        here = inside & (row < rows)
        x = tl.load(x_ptr + row * STRIDE + column, mask=here, other=0.0).to(tl.float32)
        centred = tl.where(inside, x - tl.sum(x) / WIDTH, 0.0)
        result = centred * tl.rsqrt(tl.sum(centred * centred) / WIDTH + eps)
        if HAS_WEIGHT:
            result *= weight
        if HAS_BIAS:
            result += bias
        tl.store(out_ptr + row * WIDTH + column, result.to(out_ptr.dtype.element_ty), mask=here)


#: For few rows and for many, each a launch and the rows of a program; and after how many rows these begin.
_Norms = tuple[tuple[Launch, int], tuple[Launch, int], int]

_launches: dict[tuple[object, ...], _Norms] = {}


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See ``sglang_fl.ops.layer_norm``.

    Raises
    ------
    UnsupportedError : another dtype than float16, bfloat16 and float32, or rows of more than 65536 elements
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
        if parameter is not None and (parameter.numel() != width or not parameter.is_contiguous()):
            raise ContractError(f"layer_norm: {tuple(parameter.shape)} does not fit x {tuple(x.shape)}")
    key = (
        *(x.dtype, width, stride, weight is None, bias is None, scale.dtype, shift.dtype),
        *(is_aligned, x.get_device()),
    )
    found = _launches.get(key)
    if found is None:
        found = _launches[key] = _compiled(x, weight, bias, out, stride, is_aligned)
    few, many, most = found
    launch, rows_each = many if rows > most else few
    launch(-(-rows // rows_each), address(x), address(scale), address(shift), address(out), rows, eps)
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
    if x.dtype not in DTYPES or width > MOST_COLUMNS:
        raise UnsupportedError(
            f"it takes float16, bfloat16 and float32 in rows of at most {MOST_COLUMNS}, not "
            f"{width} of {x.dtype}"
        )
    block = triton.next_power_of_2(width)

    def launch(turns: int, stages: int, num_warps: int) -> tuple[Launch, int]:
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
            TURNS=turns,
            STAGES=stages,
        ), turns

    warps = min(32, max(1, block // 1024 if block >= 4096 else block // 256))
    most = max(MANY_ROWS, MANY // max(width, 1))
    if block * x.element_size() > MOST_STAGED:
        return launch(1, 1, warps), launch(TURNS, 1, warps), most
    return launch(1, 1, warps), launch(TURNS, STAGES, max(1, min(4, block // 1024))), most
