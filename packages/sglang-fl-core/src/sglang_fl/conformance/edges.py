"""Calls at the edge of an op's contract, made from its own cases by what the contract says of its rows.

Rows that lie far apart, overlap, are not finite or underflow; arguments in each other's memory; calls after
the first one with other sizes, strides and weights; large positions.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_fl.conformance import rows
from sglang_fl.conformance.check import check_call
from sglang_fl.conformance.indices import (
    FAR,
    FarWeights,
    OtherIntegers,
    with_integers,
    with_large_weights,
)
from sglang_fl.conformance.reach import reach_faults
from sglang_fl.ops import Case, Kernel, Op, lacking
from sglang_fl.ops.op import Arguments

__all__ = ["Edge", "Pair", "check_edge", "edges"]

#: Past that, not every integer is a float32.
INEXACT = 2**24

HALF, HALVES_AND_SINGLE = (torch.float16,), (torch.float16, torch.bfloat16, torch.float32)

#: The arguments of a call on the device, and on the CPU plain ones for which the results are the same.
Pair = tuple[Arguments, Arguments]


@dataclass(frozen=True)
class Edge:
    """Calls at the edge, to be made of a case.

    Parameters
    ----------
    name : says what is special about them
    make : called with a case, a dtype and a device; yields one call after the other
    cases : those that they can be made of; the first one that a kernel takes is used
    dtypes : those that it is worth while for
    finite : whether all inputs are
    """

    name: str
    make: Callable[[Case, torch.dtype, str], Iterator[Pair]]
    cases: tuple[Case, ...]
    dtypes: tuple[torch.dtype, ...] = HALF
    finite: bool = True


def edges(op: Op) -> Iterator[Edge]:
    """Return the calls at the edge that an op has."""
    yield from (edge for edge in _edges(op) if edge.cases)


def _edges(op: Op) -> Iterator[Edge]:
    """Yield them, also those that no case of the op can be made into."""
    yield Edge("later-calls", _LaterCalls(op), rows.fitting(op))
    yield Edge("tiny-rows", _TinyRows(op), rows.fitting(op), HALVES_AND_SINGLE)
    names = [name for name in op.rows if _is_floating(op, name)]
    for name in (*names, *op.writes_rows, *op.reads_rows):
        # The first argument is what the rest is about.
        dtypes = HALVES_AND_SINGLE if name == names[0] else HALF
        cases = tuple(case for case in rows.fitting(op, name) if _names_rows(op, name, case))
        yield Edge(f"not-finite-{name}", _NotFinite(op, name), cases, dtypes, finite=False)
    for name in (*op.rows, *op.writes_rows, *op.reads_rows):
        fitting = rows.of_several_elements(op, name)
        cases = tuple(case for case in fitting if _names_rows(op, name, case, is_last=True))
        yield Edge(f"far-{name}", _FarRows(op, name), cases)
    for name in names:
        for what, make in (("expanded", _Expanded), ("overlapping", _Overlapping)):
            yield Edge(f"{what}-{name}", make(op, name), rows.fitting(op, name))
    for one, other in itertools.combinations(names, 2):
        cases = _alike(op, one, other)
        yield Edge(f"{other}-is-{one}", _Shared(op, one, other, 0), cases)
        yield Edge(f"{other}-a-row-after-{one}", _Shared(op, one, other, 1), cases)
    yield from _of_results(op, names)
    yield Edge("strided-weights", _StridedWeights(op), _with_weights(op))
    yield Edge("other-numbers", _OtherNumbers(op), _with_numbers(op))
    yield Edge("other-integers", OtherIntegers(), with_integers(op))
    if op.picks_rows:
        yield Edge("far-weights", FarWeights(op), with_large_weights(op))
    if {"positions", "cos_sin_cache"} <= set(op.signature.parameters):
        for dtype in (torch.int32, torch.int64):
            fittest = sorted(op.cases, key=_fitness_for_far_positions, reverse=True)
            name = f"far-positions-{str(dtype).removeprefix('torch.')}"
            yield Edge(name, _FarPositions(dtype), tuple(fittest))


def _of_results(op: Op, names: list[str]) -> Iterator[Edge]:
    """Yield those of arguments that a kernel may write, beside the floating rows of those names."""
    for name in op.writes:
        yield Edge(f"weight-in-{name}", _WeightInRows(op, name), _with_row_weight(op, name))
        if name not in op.rows:
            yield Edge(f"expanded-{name}", _ExpandedResult(name), rows.fitting(op, name, at_least=2))
        for other in (*names, *op.reads_rows):
            yield Edge(f"{name}-in-{other}", _ResultInside(name, other), _holding(op, name, other))


def check_edge(op: Op, kernel: Kernel, edge: Edge, dtype: torch.dtype, device: str) -> list[str] | str:
    """Check the calls at an edge.

    Returns
    -------
    list of str : what is wrong; empty if nothing is
    str : why it was not checked; a kernel without an option that the calls need is not to be checked
    """
    where = f"{op}[{edge.name}-{str(dtype).removeprefix('torch.')}]"
    cases = [case for case in edge.cases if not lacking(kernel, _options(op, case))]
    if not cases:
        return []
    for case in cases:
        try:
            answer = _faults(op, kernel, edge, case, dtype, device)
        except _CannotHold as error:
            return f"{where}: {device} cannot hold it ({error})"
        if answer is not None:
            return [f"{where}: {fault}" for fault in answer]
    return f"{where}: refused by the kernel"


class _CannotHold(Exception):  # noqa: N818 - no error of anybody's
    """The device has too little memory for the arguments."""


def _faults(
    op: Op, kernel: Kernel, edge: Edge, case: Case, dtype: torch.dtype, device: str
) -> list[str] | None:
    """Check the calls made of a case; None where the kernel refuses all of them."""
    is_taken = False
    faults: list[str] = []
    calls = _made(edge, case, dtype, device)
    for number, (given, plain) in enumerate(calls, 1):
        found = check_call(op, kernel, given, plain, f"call {number}", case.bound or op.bound, edge.finite)
        is_taken |= found is not None
        faults += found or ()
    if is_taken and not edge.finite:
        spoilt = next(_made(edge, case, dtype, device))
        faults += reach_faults(op, kernel, spoilt, (case.arguments(dtype, device), case.arguments(dtype)))
    return faults if is_taken else None


def _made(edge: Edge, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
    try:
        yield from edge.make(case, dtype, device)
    except (MemoryError, RuntimeError) as error:
        raise _CannotHold(str(error).splitlines()[0]) from error


def _options(op: Op, case: Case) -> list[str]:
    given = rows.sample(case)
    return [name for name in op.options if name in given]


def _is_floating(op: Op, name: str) -> bool:
    made = (rows.sample(case).get(name) for case in op.cases)
    return any(isinstance(value, Tensor) and value.is_floating_point() for value in made)


def _alike(op: Op, one: str, other: str) -> tuple[Case, ...]:
    """Return the cases in which two arguments could be one tensor."""
    found = []
    for case in rows.fitting(op, one, other):
        given = case.arguments(torch.float16)
        if (given[one].shape, given[one].dtype) == (given[other].shape, given[other].dtype):
            found.append(case)
    return tuple(found)


def _with_row_weight(op: Op, name: str) -> tuple[Case, ...]:
    """Return the cases with a weight that could be a row of an argument."""
    cases = rows.fitting(op, name)
    return tuple(case for case in cases if _row_weights(op, name, case.arguments(torch.float16)))


def _row_weights(op: Op, name: str, arguments: Arguments) -> list[str]:
    row = arguments[name][0]
    form = (row.shape, row.dtype)
    return [p for p in rows.parameters(op, arguments) if (arguments[p].shape, arguments[p].dtype) == form]


@dataclass(frozen=True)
class _FarRows:
    """The last row lies beyond element 2**31 of its memory; what is between the rows is never touched."""

    op: Op
    name: str

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        given = case.arguments(dtype, device)
        dense, axis = given[self.name], self.op.rows.get(self.name, 0) % given[self.name].dim()
        stride = FAR // (dense.shape[axis] - 1) + 64
        given[self.name] = rows.laid_out(dense, axis, stride)
        yield given, case.arguments(dtype)


@dataclass(frozen=True)
class _NotFinite:
    """A NaN in the first row or sequence and an infinity in the second; the others must not notice.

    For a pool of which the call names some rows: in the first one that either names, and a NaN in all that it
    does not name.
    """

    op: Op
    name: str

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        both = case.arguments(dtype, device), case.arguments(dtype)
        for arguments in both:
            self._spoil(arguments)
        yield both

    def _spoil(self, arguments: Arguments) -> None:
        value = arguments[self.name]
        all_named = rows.named(self.op, self.name, arguments)
        if all_named is not None:
            others = sorted({*range(len(value))} - {*itertools.chain(*all_named)})
            value[others] = torch.nan
            axis, named = 0, [of_sequence[0] for of_sequence in all_named if of_sequence]
        else:
            axis, named = self.op.rows[self.name] % value.dim(), rows.starts(self.op, arguments)
        for row, number in zip(named, (torch.nan, torch.inf), strict=False):
            of_row = value.select(axis, row)
            second = (*(0,) * (of_row.dim() - 1), min(1, of_row.shape[-1] - 1))
            of_row[second] = number


@dataclass(frozen=True)
class _TinyRows:
    """Zeros in the first row, and in the second numbers whose squares underflow."""

    op: Op

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        both = case.arguments(dtype, device), case.arguments(dtype)
        for arguments in both:
            for name, axis in rows.row_arguments(self.op, arguments).items():
                value = arguments[name]
                if value.is_floating_point():
                    value.select(axis, 0).zero_()
                    # A half of it is not subnormal yet: those a chip may take for zero.
                    value.select(axis, 1).fill_(2**10 * torch.finfo(value.dtype).smallest_normal)
        yield both


@dataclass(frozen=True)
class _Expanded:
    """All rows of an argument are one."""

    op: Op
    name: str

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        given, plain = case.arguments(dtype, device), case.arguments(dtype)
        axis = self.op.rows[self.name] % given[self.name].dim()
        given[self.name] = given[self.name].narrow(axis, 0, 1).clone().expand(given[self.name].shape)
        plain[self.name] = plain[self.name].narrow(axis, 0, 1).expand(plain[self.name].shape).clone()
        yield given, plain


@dataclass(frozen=True)
class _Overlapping:
    """Each row of an argument begins in the middle of the one before."""

    op: Op
    name: str

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        given, plain = case.arguments(dtype, device), case.arguments(dtype)
        axis = self.op.rows[self.name] % given[self.name].dim()
        stride = max(1, rows.inner_extent(given[self.name], axis) // 2)
        given[self.name] = rows.laid_out(given[self.name], axis, stride)
        plain[self.name] = rows.laid_out(plain[self.name], axis, stride).clone()
        yield given, plain


@dataclass(frozen=True)
class _Shared:
    """Two arguments are one tensor, or the rows of one begin so many rows after those of the other."""

    op: Op
    one: str
    other: str
    distance: int

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        given, plain = case.arguments(dtype, device), case.arguments(dtype)
        for arguments in (given, plain):
            first = arguments[self.one]
            axis = self.op.rows[self.one] % first.dim()
            if self.distance:
                both = torch.cat((first, arguments[self.other].narrow(axis, 0, self.distance)), dim=axis)
                arguments[self.one] = both.narrow(axis, 0, first.shape[axis])
                arguments[self.other] = both.narrow(axis, self.distance, first.shape[axis])
            else:
                arguments[self.other] = first
        yield given, {n: v.clone() if isinstance(v, Tensor) else v for n, v in plain.items()}


@dataclass(frozen=True)
class _WeightInRows:
    """A weight is the last row of an argument that a kernel may write."""

    op: Op
    name: str

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        given, plain = case.arguments(dtype, device), case.arguments(dtype)
        for weight in _row_weights(self.op, self.name, plain):
            given[weight], plain[weight] = given[self.name][-1], plain[self.name][-1].clone()
        yield given, plain


@dataclass(frozen=True)
class _ExpandedResult:
    """All rows of a tensor for results are one."""

    name: str

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        given, plain = case.arguments(dtype, device), case.arguments(dtype)
        given[self.name] = given[self.name][:1].clone().expand(given[self.name].shape)
        yield given, plain


@dataclass(frozen=True)
class _ResultInside:
    """A tensor for results is the beginning of an argument that is only read."""

    name: str
    other: str

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        given, plain = case.arguments(dtype, device), case.arguments(dtype)
        shape = given[self.name].shape
        given[self.name] = given[self.other].view(-1)[: shape.numel()].view(shape)
        yield given, plain


def _holding(op: Op, name: str, other: str) -> tuple[Case, ...]:
    """Return the cases in which an argument is dense and large enough to hold a tensor for results."""
    if name in op.rows:
        return ()
    found = []
    for case in rows.fitting(op, name, other, at_least=2):
        given = case.arguments(torch.float16)
        result, memory = given[name], given[other]
        is_fit = memory.is_contiguous() and memory.dtype is result.dtype
        if is_fit and memory.numel() >= result.numel():
            found.append(case)
    return tuple(found)


@dataclass(frozen=True)
class _StridedWeights:
    """Between the elements of each weight lies what is no number."""

    op: Op

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        for name in _weights(self.op, case.arguments(dtype)):
            given = case.arguments(dtype, device)
            apart = given[name].new_full((*given[name].shape, 2), torch.nan)
            apart[..., 0] = given[name]
            yield given | {name: apart[..., 0]}, case.arguments(dtype)


def _weights(op: Op, arguments: Arguments) -> list[str]:
    """Return the weights with one number for each head or element, which no call writes."""
    names = (name for name in rows.parameters(op, arguments) if name not in op.writes)
    return [name for name in names if arguments[name].dim() == 1]


def _with_weights(op: Op) -> tuple[Case, ...]:
    """Return the cases with rows and such weights, those with the most first."""
    return _with_most(op, lambda arguments: _weights(op, arguments))


def _with_most(op: Op, found_in: Callable[[Arguments], list[str]]) -> tuple[Case, ...]:
    """Return the cases with rows of which something is found in the arguments, those of the most first."""
    counts = {}
    for case in op.cases:
        given = rows.sample(case)
        if rows.count(op, given) and found_in(given):
            counts[case] = len(found_in(given))
    return tuple(sorted(counts, key=lambda case: -counts[case]))


@dataclass(frozen=True)
class _OtherNumbers:
    """The same tensors with another number at a time, as another layer has: no kernel may keep the first."""

    op: Op

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        for name in (None, *_numbers(case.arguments(dtype))):
            given, plain = case.arguments(dtype, device), case.arguments(dtype)
            other = {} if name is None else {name: 0.75 * plain[name]}
            yield given | other, plain | other


def _numbers(arguments: Arguments) -> list[str]:
    return [name for name, value in arguments.items() if isinstance(value, float) and value]


def _with_numbers(op: Op) -> tuple[Case, ...]:
    """Return the cases with rows and with numbers that may be any, those with the most first."""
    return _with_most(op, _numbers)


def _names_rows(op: Op, name: str, case: Case, is_last: bool = False) -> bool:
    """Whether two sequences of a call name rows of a pool, and whether one of all is its last row.

    Of what is no pool all rows are named.
    """
    given = rows.sample(case)
    named = rows.named(op, name, given)
    if named is None:
        return True
    return sum(map(bool, named)) > 1 and (not is_last or len(given[name]) - 1 in itertools.chain(*named))


@dataclass(frozen=True)
class _LaterCalls:
    """Calls with the same weights one after the other: no, one, all rows; other strides; other weights."""

    op: Op

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        whole, plain = case.arguments(dtype, device), case.arguments(dtype)
        most = rows.count(self.op, plain)
        layouts = [
            (0, 0, 0),
            (1, 0, 0),
            (most, 0, 0),
            (most, 24, 0),
            (1, 40, 0),
            (most - 1, 0, 1),
            (most, 8, 1),
        ]
        for last, padding, offset in layouts:
            yield self._call(whole, last, padding, offset), self._call(plain, last, 0, 0)
        for arguments in (whole, plain):
            for name in rows.parameters(self.op, arguments):
                # SGLang loads weights anew past PyTorch's count of writes; tables it makes.
                held = arguments[name] if name == "cos_sin_cache" else arguments[name].data
                held.mul_(0.5)  # exact, but for subnormal numbers
        for last in (most, 0):
            yield self._call(whole, last, 0, 0), self._call(plain, last, 0, 0)

    def _call(self, arguments: Arguments, last: int, padding: int, offset: int) -> Arguments:
        """Return the call of the first so many rows, at their own stride or at a padded one."""
        taken = rows.take(self.op, arguments, 0, last)
        for name, axis in rows.row_arguments(self.op, taken).items():
            value = taken[name]
            if not value.numel() or not (padding or offset) or not value.is_floating_point():
                taken[name] = value.clone()
                continue
            stride = rows.inner_extent(value, axis) + padding
            taken[name] = rows.laid_out(value, axis, stride, offset)
        return taken | {name: taken[name].clone() for name in self.op.updated(taken)}


@dataclass(frozen=True)
class _FarPositions:
    """Positions past 2**24, and rows of the table past its element 2**31."""

    dtype: torch.dtype

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[Pair]:
        given, plain = case.arguments(dtype, device), case.arguments(dtype)
        table = plain["cos_sin_cache"].to(dtype)
        plain["cos_sin_cache"] = table
        first = max(INEXACT, FAR // table.shape[1])
        memory = torch.empty(first + len(table), table.shape[1], dtype=dtype, device=device)
        memory[first:] = table.to(device)
        given["cos_sin_cache"] = memory
        given["positions"] = (given["positions"].long() + first).to(self.dtype)
        yield given, plain


def _fitness_for_far_positions(case: Case) -> tuple[int, int]:
    """Prefer of the cases without offsets the widest table, then the most tokens."""
    arguments = case.arguments(torch.float16)
    wide = arguments["cos_sin_cache"].shape[1] if "offsets" not in arguments else 0
    return min(wide, 128), arguments["positions"].numel()
