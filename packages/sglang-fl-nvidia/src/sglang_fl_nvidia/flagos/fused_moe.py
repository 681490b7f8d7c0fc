"""``fused_moe`` in Triton kernels of our own: two launches for few tokens, four for many."""

import itertools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops.fused_moe import check_experts
from sglang_fl_nvidia.flagos.expert_assignments import sort_kernel
from sglang_fl_nvidia.flagos.expert_tiles import (
    Tile,
    first_few,
    fitting,
    group_for,
    halvings,
    rows_for,
    second_few,
    sorted_tiles,
)
from sglang_fl_nvidia.flagos.experts_few import down_few_kernel, gate_up_few_kernel
from sglang_fl_nvidia.flagos.experts_sorted import down_sorted_kernel, gate_up_sorted_kernel, sum_kernel
from sglang_fl_nvidia.flagos.launch import (
    DTYPES,
    Launch,
    address,
    address_in,
    compiled,
    constants_of,
    precision_of,
    shared_memory,
)
from sglang_fl_nvidia.flagos.memory import aligned

__all__ = ["fused_moe"]

#: Assignments of tokens to experts up to which each program reads all of them instead of having them sorted,
#: and which must not be more than there are experts: most programs would find nothing to do.
FEW = 32
#: Assignments that a program of the sort reads at a time.
SORT_BLOCK = 2048
#: Columns of a program of the sum.
SUM_COLUMNS = 1024


def fused_moe(
    hidden_states: Tensor,
    w13_weight: Tensor,
    w2_weight: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    gemm1_alpha: float | None = None,
    gemm1_limit: float | None = None,
) -> Tensor:
    """See ``sglang_fl.ops.fused_moe``. Activated rows and each expert's result are rounded to the dtype.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32, weights in another one than
        ``hidden_states``, weights or biases without dense rows, an alpha that is not above zero, tensors on
        the CPU or on several devices
    """
    x, weights, ids = (
        tensor if tensor.stride(-1) == 1 else tensor.contiguous()
        for tensor in (hidden_states, topk_weights, topk_ids)
    )
    options = (w13_bias, w2_bias, gemm1_alpha, gemm1_limit)
    if weights.shape != ids.shape or len(ids) != len(x):
        check_experts(x, w13_weight, w2_weight, weights, ids, *options)
    # Where there is no bias its kernel reads none, but is given an address.
    b13 = w13_weight if w13_bias is None else w13_bias
    b2 = w2_weight if w2_bias is None else w2_bias
    given = _Given(x, w13_weight, b13, w2_weight, b2, weights, ids)
    biases = (w13_bias is not None, w2_bias is not None)
    layout = _Layout.of(given, *biases, apply_router_weight_on_input, gemm1_alpha, gemm1_limit)
    key = layout, *((tensor.dtype, tensor.device) for tensor in given)
    experts = _launches.get(key)
    if experts is None:
        check_experts(x, w13_weight, w2_weight, weights, ids, *options)
        _check(given, layout)
        if not (layout.top_k and len(w13_weight)):
            return x.new_zeros(x.shape)  # no kernel can be compiled for no expert
        experts = _launches[key] = _Experts(given, layout)
    if not ids.numel():
        return x.new_zeros(x.shape)
    return experts(given, float(routed_scaling_factor))


class _Given(NamedTuple):
    """The tensors of a call, with dense rows."""

    x: Tensor
    w13: Tensor
    b13: Tensor
    w2: Tensor
    b2: Tensor
    weights: Tensor
    ids: Tensor


class _Layout(NamedTuple):
    """How they lie, and what is to be done: all that kernels are compiled for, beside dtypes and device."""

    width: int
    w13_shape: tuple[int, ...]
    w2_shape: tuple[int, ...]
    top_k: int
    x_stride: int
    weight_stride: int
    id_stride: int
    w13_strides: tuple[int, ...]
    w2_strides: tuple[int, ...]
    b13_shape: tuple[int, ...]
    b2_shape: tuple[int, ...]
    b13_stride: int
    b2_stride: int
    has_b13: bool
    has_b2: bool
    weighs_input: bool
    alpha: float | None
    limit: float | None
    is_aligned: bool

    @classmethod
    def of(
        cls,
        given: _Given,
        has_b13: bool,
        has_b2: bool,
        weighs_input: bool,
        alpha: float | None,
        limit: float | None,
    ) -> "_Layout":
        """Return the layout of a call; what one row has for a stride is any number, and counts as dense."""
        is_row = len(given.x) == 1
        width, top_k = given.x.shape[1], given.ids.shape[1]
        return cls(
            width=width,
            w13_shape=given.w13.shape,
            w2_shape=given.w2.shape,
            top_k=top_k,
            x_stride=width if is_row else given.x.stride(0),
            weight_stride=top_k if is_row else given.weights.stride(0),
            id_stride=top_k if is_row else given.ids.stride(0),
            w13_strides=given.w13.stride(),
            w2_strides=given.w2.stride(),
            b13_shape=given.b13.shape,
            b2_shape=given.b2.shape,
            b13_stride=given.b13.stride(0),
            b2_stride=given.b2.stride(0),
            has_b13=has_b13,
            has_b2=has_b2,
            weighs_input=weighs_input,
            alpha=alpha,
            limit=limit,
            is_aligned=aligned(*given),
        )


class _Product(NamedTuple):
    """A product with the weights of one layer.

    Parameters
    ----------
    launch : runs it
    pieces : programs for each row of tiles
    """

    launch: Launch
    pieces: int


class _Experts:
    """The kernels for all layers of one layout, compiled when the first of them is computed."""

    def __init__(self, given: _Given, layout: _Layout) -> None:
        self._experts, self._width, self._inner = layout.w2_shape
        self._most_few = min(FEW, self._experts)
        self._is_aligned = layout.is_aligned
        self._memory = shared_memory(given.x.get_device())
        first, second = first_few(self._width), second_few(self._width, self._inner)
        self._arrivals = triton.next_power_of_2(triton.cdiv(self._width, second.columns))
        self._constants = {
            "X_STRIDE": layout.x_stride,
            "WEIGHT_STRIDE": layout.weight_stride,
            "ID_STRIDE": layout.id_stride,
            "WIDTH": self._width,
            "INNER": self._inner,
            "EXPERTS": self._experts,
            "TOP_K": layout.top_k,
            "PLACES": triton.next_power_of_2(max(1, self._most_few)),
            "TOKENS": triton.next_power_of_2(max(1, self._most_few // layout.top_k)),
            "ARRIVALS": self._arrivals,
            "BLOCK": triton.next_power_of_2(self._experts),
            "WEIGHS_INPUT": layout.weighs_input,
            "ALPHA": layout.alpha or 0.0,
            "LIMIT": layout.limit or 0.0,
            "PRECISION": precision_of(given.x.dtype),
        }
        order = given.ids.new_empty(2, dtype=torch.int32)
        few, many = (given.ids, given.x, order), (order, order, given.x)
        self._first_few = self._first(gate_up_few_kernel, first, given, layout, *few, 1)
        summed = given.x, 1, 1.0
        self._second_few = self._second(down_few_kernel, second, given, layout, *few, *summed)
        self._sorted = {
            rows: (
                self._first(gate_up_sorted_kernel, first, given, layout, *many),
                self._second(down_sorted_kernel, second, given, layout, *many),
            )
            for rows, (first, second) in sorted_tiles(self._inner).items()
        }
        self._sort = self._compiled(sort_kernel, (given.ids, order, order, 1), 8, BLOCK=SORT_BLOCK)
        columns = min(SUM_COLUMNS, triton.next_power_of_2(self._width))
        self._sum = _Product(
            self._compiled(sum_kernel, (given.x, given.ids, given.x, 1.0), 4, COLUMNS=columns),
            triton.cdiv(self._width, columns),
        )

    def __call__(self, given: _Given, factor: float) -> Tensor:
        """Compute the experts of each token, of which there is at least one."""
        x, ids = given.x, given.ids
        assignments, size = ids.numel(), x.element_size()
        out = x.new_empty(x.shape)
        x_at, w13_at, b13_at, w2_at, b2_at, weights_at, ids_at = map(address, given)
        is_few = assignments <= self._most_few
        activated, results = assignments * self._inner * size, assignments * self._width * size
        counts = (4 * self._arrivals,) if is_few else (4 * assignments, 4 * (self._experts + 1))
        *starts, end = _parts(activated, results, *counts)
        space = x.new_empty(end, dtype=torch.uint8)
        h_at, y_at = (address_in(space, start, x.dtype) for start in starts[:2])
        counts_at = tuple(address_in(space, start, torch.int32) for start in starts[2:])
        of_first, of_second = (x_at, w13_at, b13_at, weights_at), (h_at, w2_at, b2_at, weights_at)
        if is_few:
            first, second = self._first_few, self._second_few
            # Nothing may come between these two: the second reads ids before it waits for the first.
            first.launch(assignments * first.pieces, *of_first, ids_at, h_at, *counts_at, assignments)
            summed = address(out), assignments, factor
            second.launch(assignments * second.pieces, *of_second, ids_at, y_at, *counts_at, *summed)
        else:
            rows = rows_for(assignments, self._experts)
            first, second = self._sorted[rows]
            self._sort(self._experts + 1, ids_at, *counts_at, assignments)
            # As many as there can be: an expert's last tile need not be full.
            tiles = assignments // rows + min(assignments, self._experts)
            first.launch(tiles * first.pieces, *of_first, *counts_at, h_at)
            second.launch(tiles * second.pieces, *of_second, *counts_at, y_at)
            self._sum.launch(len(x) * self._sum.pieces, y_at, ids_at, address(out), factor)
        return out

    def _first(self, kernel: Any, tile: Tile, given: _Given, layout: _Layout, *rest: Any) -> _Product:
        arguments = (given.x, given.w13, given.b13, given.weights, *rest)
        facts = (layout.w13_strides, layout.b13_stride, layout.has_b13)
        # A program multiplies its rows by two tiles of weights: the gate's and the other factor's.
        return self._product(kernel, tile, 2, self._inner, arguments, *facts)

    def _second(self, kernel: Any, tile: Tile, given: _Given, layout: _Layout, *rest: Any) -> _Product:
        arguments = (given.x, given.w2, given.b2, given.weights, *rest)
        facts = (layout.w2_strides, layout.b2_stride, layout.has_b2)
        return self._product(kernel, tile, 1, self._width, arguments, *facts)

    def _product(
        self,
        kernel: Any,
        tile: Tile,
        weights: int,
        width: int,
        arguments: tuple[Any, ...],
        strides: tuple[int, ...],
        bias_stride: int,
        has_bias: bool,
    ) -> _Product:
        tile = fitting(tile, weights, arguments[0].element_size(), self._memory)
        launch = self._compiled(
            kernel,
            arguments,
            tile.num_warps,
            tile.num_stages,
            ROWS=tile.rows,
            HALVINGS=halvings(tile.rows, self._inner),
            GROUP=group_for(self._inner),
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            W_EXPERT=strides[0],
            W_ROW=strides[1],
            BIAS_STRIDE=bias_stride,
            HAS_BIAS=has_bias,
        )
        return _Product(launch, triton.cdiv(width, tile.columns))

    def _compiled(
        self,
        kernel: Any,
        arguments: tuple[Any, ...],
        num_warps: int,
        num_stages: int | None = None,
        **constants: Any,
    ) -> Launch:
        known = self._constants | constants
        return compiled(
            *(kernel, *arguments),
            is_aligned=self._is_aligned,
            num_warps=num_warps,
            num_stages=num_stages,
            **constants_of(kernel, known),
        )


_launches: dict[tuple[Any, ...], _Experts] = {}


def _parts(*sizes: int) -> list[int]:
    """Return where parts of so many bytes begin in a workspace, each aligned, and where the last one ends."""
    return [0, *itertools.accumulate((size + 15) // 16 * 16 for size in sizes)]


def _check(given: _Given, layout: _Layout) -> None:
    """Raise ``UnsupportedError`` for what fits the contract and no kernel here."""
    if layout.alpha is not None and layout.alpha <= 0:
        raise UnsupportedError(f"it takes a gemm1_alpha above zero, not {layout.alpha}")
    if any(tensor.stride(-1) != 1 for tensor in (given.w13, given.w2, given.b13, given.b2)):
        raise UnsupportedError("it takes experts' weights and biases whose rows are dense")
    dtypes = {given.x.dtype, given.w13.dtype, given.w2.dtype}
    others = {given.weights.dtype, given.b13.dtype, given.b2.dtype}
    if len(dtypes) > 1 or not dtypes | others <= set(DTYPES):
        raise UnsupportedError(
            f"it takes tokens and experts in one dtype, float16, bfloat16 or float32, not "
            f"{', '.join(sorted(map(str, dtypes | others)))}"
        )
