"""The kernel of the root-mean-square norms, with and without a residual that is added first."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import Outputs, unshared
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, address, compiled, overlap
from sglang_fl_nvidia.flagos.memory import aligned

__all__ = ["PLAIN", "SHIFTED", "Style", "norm_rows"]

#: Rows from which on programs are bound by the memory, not by their latency.
MANY = 512
#: A row must fit into one program's registers.
MOST_COLUMNS = 65536


class Style(NamedTuple):
    """What kind of norm.

    Parameters
    ----------
    shift : added to the weight
    rounds_first : round to the dtype of ``x`` before the weight is multiplied
    variance_size : the mean square is that of the first so many elements; None: of all
    float32_sum : the sum with the residual is returned in float32
    """

    shift: float = 0.0
    rounds_first: bool = False
    variance_size: int | None = None
    float32_sum: bool = False


PLAIN = Style()
SHIFTED = Style(shift=1.0)


@triton.jit(do_not_specialize=["rows", "eps"])
def norm_kernel(
    x_ptr,
    weight_ptr,
    residual_ptr,
    post_ptr,
    out_ptr,
    sum_ptr,
    rows,
    eps,
    WIDTH: tl.constexpr,
    X_STRIDE: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr,
    POST_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    SUM_STRIDE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_POST: tl.constexpr,
    VARIANCE_SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Norm so many whole rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32) + SHIFT
    if ROWS > 1:
        inside = inside & (row < rows)
    overlap(OVERLAP)
    h = tl.load(x_ptr + row * X_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        h += tl.load(residual_ptr + row * RESIDUAL_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
        if HAS_POST:
            h += tl.load(post_ptr + row * POST_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(sum_ptr + row * SUM_STRIDE + column, h.to(sum_ptr.dtype.element_ty), mask=inside)
    squares = h * h
    if VARIANCE_SIZE < WIDTH:
        squares = tl.where(column < VARIANCE_SIZE, squares, 0.0)
    scale = tl.rsqrt(tl.sum(squares, axis=1, keep_dims=True) / VARIANCE_SIZE + eps)
    normed = h * scale
    if ROUNDS_FIRST:
        normed = normed.to(x_ptr.dtype.element_ty).to(tl.float32)
    result = (normed * weight).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * OUT_STRIDE + column, result, mask=inside)


def _tile(width: int, is_many: bool, has_residual: bool) -> tuple[int, int, int]:
    """Return rows and columns of a program, and its warps.

    µs on an H200 (bfloat16), few rows (16) and many (16384), for rows/warps of a program: 896 wide: 1/4 0.85
    and 20.4, 2/2 1.05 and 14.3; with a residual many 2/2 29.8 and 1/4 29.6, and at 4096 rows 9.3 and 8.6.
    4096 wide with a residual: many 1/2 131.3, 1/4 133.5 and 1/8 134.6. 7168 wide: 1/8 1.28 and 113.3, many
    1/4 112.2.
    """
    block = triton.next_power_of_2(width)
    if block >= 2048:
        least = 8 if not is_many else 2 if has_residual else 4
        return 1, block, min(32, max(least, block // 2048))
    if block == 1024:
        return (2, block, 2) if is_many and not has_residual else (1, block, 4)
    return 1024 // block, block, 2


#: For few rows and for many, each a launch and the rows of a program.
_Norms = tuple[tuple[Launch, int], tuple[Launch, int]]

_launches: dict[tuple[object, ...], _Norms] = {}


def norm_rows(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, post: Tensor | None, style: Style
) -> Outputs:
    """Scale each row to unit root mean square and by a weight; first add the residual, if any.

    Parameters
    ----------
    x : Tensor, (..., n), float16, bfloat16 or float32, any strides; with ``residual`` the result is written
        here, where it lies in rows at one stride and its memory is its own
    weight : Tensor, (n,), dense, any of these dtypes
    eps : added to the mean square
    residual : Tensor, like ``x``, or None; the sum is written here under the same condition
    post : Tensor, like ``x``, or None; added to the residual as well
    style : the kind of norm

    Returns
    -------
    Tensor, or (normed, sum) with ``residual``; see ``sglang_fl.ops.rms_norm``

    Raises
    ------
    ContractError : the weight or a summand does not fit ``x``
    UnsupportedError : another dtype, a weight that is not dense, rows of none or more than 65536
    """
    shape = x.shape
    if (
        len(shape) != 2
        or not x.is_contiguous()
        or post is not None
        or weight.shape != shape[1:]
        or not weight.is_contiguous()
        or (residual is not None and (residual.shape != shape or not residual.is_contiguous()))
        or style.rounds_first
        or style.float32_sum
    ):
        return _norm_any(x, weight, eps, residual, post, style)
    # The way of a model's layers, in as few steps as there can be.
    rows, width = shape
    at, weight_at = address(x), address(weight)
    begin, weight_begin = x.data_ptr(), weight.data_ptr()
    start = begin | weight_begin
    out, summand, summand_at = x, None, at
    if residual is None:
        out = torch.empty_like(x)  # cheaper on the host than x.new_empty
    else:
        sum_begin, size, weight_size = residual.data_ptr(), x.nbytes, weight.nbytes
        if (
            -size < sum_begin - begin < size
            or -weight_size < weight_begin - begin < size
            or -weight_size < weight_begin - sum_begin < size
        ):
            return _norm_any(x, weight, eps, residual, post, style)
        start |= sum_begin
        summand, summand_at = (residual.dtype, residual.device), address(residual)
    key = (x.dtype, weight.dtype, summand, width, start % 16 == 0, style, x.device, weight.device)
    found = _launches.get(key)
    if found is None:
        total = x if residual is None else residual
        found = _launches[key] = _compiled(x, weight, residual, None, out, total, style, start % 16 == 0)
    launch, rows_each = found[rows > MANY]
    if rows:
        programs = (rows + rows_each - 1) // rows_each
        launch(programs, at, weight_at, summand_at, at, address(out), summand_at, rows, eps)
    return out if residual is None else (out, residual)


def _norm_any(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, post: Tensor | None, style: Style
) -> Outputs:
    """Do the same for any shape, strides and style."""
    _check(x, weight, residual, post, style)
    if residual is not None:
        x, residual = unshared(x, weight, residual, post), unshared(residual, weight, x, post)
    if x.dim() != 2 or any(t is not None and t.stride(1) != 1 for t in (x, residual, post)):
        return _in_rows(x, weight, eps, residual, post, style)
    out, total = _results(x, weight, residual, style)
    added, added_too = x if residual is None else residual, x if post is None else post
    tensors = (x, weight, added, added_too, out, total)
    is_aligned = aligned(*tensors)
    rows = x.shape[0]
    # The stride of a single row is any number.
    key = (
        *(tuple((t.dtype, t.stride(0) if rows > 1 else 0, t.device) for t in tensors), x.shape[1]),
        *(residual is None, post is None, style, rows == 1, is_aligned),
    )
    found = _launches.get(key)
    if found is None:
        found = _launches[key] = _compiled(x, weight, residual, post, out, total, style, is_aligned)
    launch, rows_each = found[rows > MANY]
    if rows:
        launch(-(-rows // rows_each), *map(address, tensors), rows, eps)
    return out if residual is None else (out, total)


def _results(x: Tensor, weight: Tensor, residual: Tensor | None, style: Style) -> tuple[Tensor, Tensor]:
    """Return where the normed rows and the sum go: over the arguments, where the contract allows it."""
    dtype = x.dtype
    if style.rounds_first and weight.dtype is not dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    if residual is None:
        out = x.new_empty(x.shape, dtype=dtype)
        return out, out
    out = x if dtype is x.dtype else x.new_empty(x.shape, dtype=dtype)
    sum_dtype = torch.float32 if style.float32_sum else x.dtype
    return out, residual if residual.dtype is sum_dtype else x.new_empty(x.shape, dtype=sum_dtype)


def _in_rows(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, post: Tensor | None, style: Style
) -> Outputs:
    """Bring the arguments into two axes with dense rows, and the results into the shape of ``x``."""
    shape = (x.shape[:-1].numel(), x.shape[-1])
    added, added_too = (t if t is None else _dense_rows(t, shape) for t in (residual, post))
    result = _norm_any(_dense_rows(x, shape), weight, eps, added, added_too, style)
    if isinstance(result, Tensor):
        return result.view(x.shape)
    return tuple(part.view(x.shape) for part in result)


def _dense_rows(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    rows = tensor.reshape(shape)
    # What has no elements, or rows of one, counts as contiguous with whatever strides.
    return rows if rows.stride(1) == 1 else rows.new_empty(shape).copy_(rows)


def _compiled(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    post: Tensor | None,
    out: Tensor,
    total: Tensor,
    style: Style,
    is_aligned: bool,
) -> _Norms:
    _check(x, weight, residual, post, style)
    rows, width = x.shape
    added, added_too = x if residual is None else residual, x if post is None else post
    strides = [t.stride(0) if rows > 1 else width for t in (x, added, added_too, out, total)]
    names = ("X_STRIDE", "RESIDUAL_STRIDE", "POST_STRIDE", "OUT_STRIDE", "SUM_STRIDE")

    def launch(is_many: bool) -> tuple[Launch, int]:
        rows_each, block, warps = _tile(width, is_many, residual is not None)
        return compiled(
            norm_kernel,
            *(x, weight, added, added_too, out, total, rows, 1e-6),
            is_aligned=is_aligned,
            num_warps=warps,
            WIDTH=width,
            **dict(zip(names, strides, strict=True)),
            HAS_RESIDUAL=residual is not None,
            HAS_POST=post is not None,
            VARIANCE_SIZE=min(style.variance_size or width, width),
            SHIFT=style.shift,
            ROUNDS_FIRST=style.rounds_first,
            ROWS=rows_each,
            BLOCK=block,
        ), rows_each

    return launch(False), launch(True)


def _check(x: Tensor, weight: Tensor, residual: Tensor | None, post: Tensor | None, style: Style) -> None:
    if x.dim() == 0:
        raise ContractError("a norm needs rows, got a number")
    if weight.shape != x.shape[-1:]:
        raise ContractError(f"a norm: weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}")
    if post is not None and residual is None:
        raise ContractError("a norm: post_residual_addition needs a residual")
    for name, summand in (("residual", residual), ("post_residual_addition", post)):
        may_be = {x.dtype, *([torch.float32] if style.float32_sum else [])}
        if summand is not None and (summand.shape != x.shape or summand.dtype not in may_be):
            raise ContractError(
                f"a norm: {name} {tuple(summand.shape)} {summand.dtype} is not like "
                f"x {tuple(x.shape)} {x.dtype}"
            )
    if not weight.is_contiguous():
        # A dense copy would be made by the kernel before, and weights are loaded before it is waited for.
        raise UnsupportedError(f"it takes a weight that is dense, not with strides {weight.stride()}")
    if x.dtype not in DTYPES or weight.dtype not in DTYPES or not 0 < x.shape[-1] <= MOST_COLUMNS:
        raise UnsupportedError(
            f"it takes float16, bfloat16 and float32 in rows of 1 to {MOST_COLUMNS}, not x "
            f"{tuple(x.shape)} {x.dtype}, weight {weight.dtype}"
        )
