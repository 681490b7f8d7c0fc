"""Calls at the edge of an op's contract: far rows, large positions, inputs that are not finite.

They are made from the op's own cases, by the names of its arguments.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_fl.conformance.check import check_call
from sglang_fl.ops import Case, Kernel, Op
from sglang_fl.ops.op import Arguments

__all__ = ["Edge", "check_edge", "edges"]

#: The argument whose rows are tokens, in every op that has one.
ROWS = ("x", "query")
#: Past that, an index of an element no longer fits in 32 bits.
FAR = 2**31
#: Past that, not every integer is a float32.
INEXACT = 2**24


@dataclass(frozen=True)
class Edge:
    """One call at the edge.

    Parameters
    ----------
    name : says what is special about it
    make : called with a dtype and a device; returns the arguments there, and plain ones on the CPU for
        which the results are the same
    dtypes : those that it is worth while for
    finite : whether all inputs are
    """

    name: str
    make: Callable[[torch.dtype, str], tuple[Arguments, Arguments]]
    dtypes: tuple[torch.dtype, ...]
    finite: bool = True


def edges(op: Op) -> Iterator[Edge]:
    """Return the calls at the edge that an op has."""
    case = next((case for case in op.cases if _row_argument(case)), None)
    if case is not None:
        yield Edge("far-rows", _FarRows(case), (torch.float16,))
        halves_and_single = (torch.float16, torch.bfloat16, torch.float32)
        yield Edge("not-finite", _NotFinite(case), halves_and_single, finite=False)
    if {"positions", "cos_sin_cache"} <= set(op.signature.parameters):
        for dtype in (torch.int32, torch.int64):
            name = f"far-positions-{str(dtype).removeprefix('torch.')}"
            yield Edge(name, _FarPositions(op.cases, dtype), (torch.float16,))


def check_edge(op: Op, kernel: Kernel, edge: Edge, dtype: torch.dtype, device: str) -> list[str] | str:
    """Check a call at the edge.

    Returns
    -------
    list of str : what is wrong; empty if nothing is
    str : why it was not checked
    """
    where = f"{op}[{edge.name}-{str(dtype).removeprefix('torch.')}]"
    try:
        given, plain = edge.make(dtype, device)
    except (MemoryError, RuntimeError) as error:
        return f"{where}: {device} cannot hold it ({str(error).splitlines()[0]})"
    faults = check_call(op, kernel, given, plain, where, op.bound, edge.finite)
    return f"{where}: refused by the kernel" if faults is None else faults


def _row_argument(case: Case) -> str | None:
    """Return the name of the case's argument whose rows are tokens, if it has three rows and more."""
    arguments = case.arguments(torch.float32)
    for name in ROWS:
        value = arguments.get(name)
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] >= 3:
            return name
    return None


@dataclass(frozen=True)
class _FarRows:
    """The last row lies beyond element 2**31 of its memory; what is between the rows is never touched."""

    case: Case

    def __call__(self, dtype: torch.dtype, device: str) -> tuple[Arguments, Arguments]:
        given, name = self.case.arguments(dtype, device), _row_argument(self.case)
        assert name is not None
        dense = given[name]
        rows, width = dense.shape
        stride = FAR // (rows - 1) + 64
        memory = torch.empty((rows - 1) * stride + width, dtype=dtype, device=device)
        given[name] = memory.as_strided(dense.shape, (stride, 1)).copy_(dense)
        return given, self.case.arguments(dtype)


@dataclass(frozen=True)
class _NotFinite:
    """A NaN in the first row and an infinity in the second; the other rows must not notice."""

    case: Case

    def __call__(self, dtype: torch.dtype, device: str) -> tuple[Arguments, Arguments]:
        name = _row_argument(self.case)
        assert name is not None
        both = self.case.arguments(dtype, device), self.case.arguments(dtype)
        for arguments in both:
            arguments[name][0, 1] = torch.nan
            arguments[name][1, 1] = torch.inf
        return both


@dataclass(frozen=True)
class _FarPositions:
    """Positions past 2**24, and rows of the table past its element 2**31."""

    cases: tuple[Case, ...]
    dtype: torch.dtype

    def __call__(self, dtype: torch.dtype, device: str) -> tuple[Arguments, Arguments]:
        case = max(self.cases, key=lambda case: self._fitness(case.arguments(dtype)))
        given, plain = case.arguments(dtype, device), case.arguments(dtype)
        table = plain["cos_sin_cache"].to(dtype)
        plain["cos_sin_cache"] = table
        first = max(INEXACT, FAR // table.shape[1])
        memory = torch.empty(first + len(table), table.shape[1], dtype=dtype, device=device)
        memory[first:] = table.to(device)
        given["cos_sin_cache"] = memory
        given["positions"] = (given["positions"].long() + first).to(self.dtype)
        return given, plain

    @staticmethod
    def _fitness(arguments: Arguments) -> tuple[int, int]:
        """Of the cases without offsets prefer the widest table, then the most tokens."""
        wide = arguments["cos_sin_cache"].shape[1] if "offsets" not in arguments else 0
        return min(wide, 128), arguments["positions"].numel()
