"""The rows of an op's arguments, by its contract: some of them alone, and laid out in other ways."""

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from sglang_fl.ops import Case, Op
from sglang_fl.ops.op import Arguments

__all__ = [
    "count",
    "fitting",
    "inner_extent",
    "laid_out",
    "named",
    "of_several_elements",
    "parameters",
    "row_arguments",
    "sample",
    "starts",
    "take",
]


def row_arguments(op: Op, arguments: Arguments) -> dict[str, int]:
    """Return the arguments of this call that hold rows, and the axis along which they lie."""
    return {
        name: axis % arguments[name].dim()
        for name, axis in op.rows.items()
        if isinstance(arguments.get(name), Tensor) and arguments[name].dim()
    }


def parameters(op: Op, arguments: Arguments) -> Iterator[str]:
    """Yield the floating arguments that are the same for all rows, and that no call writes: the weights."""
    for name, value in arguments.items():
        is_weight = isinstance(value, Tensor) and value.is_floating_point()
        if is_weight and name not in (*op.rows, *op.updates, *op.of_sequences):
            yield name


def count(op: Op, arguments: Arguments) -> int:
    """Return how many rows there are, or sequences of rows; 0 where the arguments do not agree."""
    found = {name: (arguments[name], axis) for name, axis in row_arguments(op, arguments).items()}
    sizes = {value.shape[axis] for value, axis in found.values()}
    if len(sizes) != 1 or any(value.is_floating_point() and value.dim() < 2 for value, _ in found.values()):
        return 0
    return len(arguments[op.sequences]) - 1 if op.sequences else sizes.pop()


def starts(op: Op, arguments: Arguments) -> list[int]:
    """Return the first row of each sequence, or of each row itself, and the number of rows."""
    if op.sequences:
        found: list[int] = arguments[op.sequences].tolist()
        return found
    return list(range(count(op, arguments) + 1))


def fitting(op: Op, *names: str, at_least: int = 3) -> tuple[Case, ...]:
    """Return the cases with so many rows and with these arguments, those without options first.

    A kernel need not take an option, nor every dtype of a weight: so there are several to choose from.
    """
    found = []
    for case in op.cases:
        given = sample(case)
        indices = [given[of] for of in op.writes_rows.values() if given.get(of) is not None]
        is_fit = count(op, given) >= at_least and all(given.get(name) is not None for name in names)
        if is_fit and all(bool((rows >= 0).all()) for rows in indices):
            found.append((sum(option in given for option in op.options), case))
    return tuple(case for _, case in sorted(found, key=lambda pair: pair[0]))


def of_several_elements(op: Op, name: str) -> tuple[Case, ...]:
    """Return the cases in which a row of an argument has several elements."""
    axis = op.rows.get(name, 0)
    return tuple(
        case for case in fitting(op, name) if axis >= 0 and inner_extent(sample(case)[name], axis) > 1
    )


@functools.lru_cache(maxsize=64)  # more than an op has: each of its edges looks at all of them
def sample(case: Case) -> Arguments:
    """Return the arguments of a case in float32, to be looked at alone."""
    return case.arguments(torch.float32)


def take(op: Op, arguments: Arguments, first: int, last: int) -> Arguments:
    """Return the call for the rows, or sequences of rows, from ``first`` to before ``last``."""
    bounds, taken = starts(op, arguments), dict(arguments)
    for name, axis in row_arguments(op, arguments).items():
        taken[name] = arguments[name].narrow(axis, bounds[first], bounds[last] - bounds[first])
    if op.sequences:
        taken[op.sequences] = arguments[op.sequences][first : last + 1] - bounds[first]
        for name in {*op.writes_rows.values(), *op.of_sequences}:
            taken[name] = arguments[name][first:last]
    for name in op.bounds:  # bounds need not begin at 0
        if arguments.get(name) is not None:
            taken[name] = arguments[name][first : last + 1]
    return taken


def named(op: Op, name: str, arguments: Arguments) -> list[list[int]] | None:
    """Return the rows of a pool that each row or sequence of a call names; None where it is no pool."""
    written = op.written_rows(name, arguments)
    if written is not None:
        return [[row] for row in written.tolist()]
    if name not in op.reads_rows:
        return None
    indices, bounds = (arguments[of].tolist() for of in op.reads_rows[name])
    return [indices[first:last] for first, last in itertools.pairwise(bounds)]


def inner_extent(value: Tensor, axis: int) -> int:
    """Return the elements of one row, of which there are ``value.shape[axis]``."""
    return value.select(axis, 0).numel()


def laid_out(value: Tensor, axis: int, stride: int, offset: int = 0) -> Tensor:
    """Return the same rows at another stride, counted in elements, each of them dense.

    Parameters
    ----------
    value : rows along an axis before which the axes have one element each, or rows of single elements
    axis : along which they lie
    stride : from row to row; below the length of a row they overlap, and the later ones win
    offset : elements in front of the first row
    """
    rows, strides, step = value.shape[axis], [0] * value.dim(), 1
    for other in reversed(range(value.dim())):
        if other != axis:
            strides[other] = step
            step *= value.shape[other]
    strides[axis] = stride
    memory = torch.empty(offset + max(rows - 1, 0) * stride + step, dtype=value.dtype, device=value.device)
    laid = memory.as_strided(value.shape, strides, offset)
    for row in range(rows):  # one after the other, because they may overlap
        laid.select(axis, row).copy_(value.select(axis, row))
    return laid
