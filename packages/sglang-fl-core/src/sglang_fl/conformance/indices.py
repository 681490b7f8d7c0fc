"""Calls at the edge by what they index with: integers of the other size, and weights that lie far."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_fl.conformance import rows
from sglang_fl.ops import Case, Op
from sglang_fl.ops.op import Arguments

__all__ = ["FAR", "FarWeights", "OtherIntegers", "with_integers", "with_large_weights"]

#: Past that, an index of an element no longer fits in 32 bits.
FAR = 2**31

_OTHER = {torch.int32: torch.int64, torch.int64: torch.int32}


def _integers(arguments: Arguments) -> list[str]:
    """Return the arguments that hold indices, bounds or positions, which may be int32 or int64."""
    return [name for name, value in arguments.items() if isinstance(value, Tensor) and value.dtype in _OTHER]


@dataclass(frozen=True)
class OtherIntegers:
    """Indices in int64 for such in int32, and the other way round, one argument at a time."""

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[tuple[Arguments, Arguments]]:
        """Yield the calls; see ``edges.Edge``."""
        for name in _integers(case.arguments(dtype)):
            given, plain = case.arguments(dtype, device), case.arguments(dtype)
            yield given | {name: given[name].to(_OTHER[given[name].dtype])}, plain


@dataclass(frozen=True)
class FarWeights:
    """The weights that a call picks by an index lie beyond element 2**31; none before is picked."""

    op: Op

    def __call__(self, case: Case, dtype: torch.dtype, device: str) -> Iterator[tuple[Arguments, Arguments]]:
        """Yield the call; see ``edges.Edge``."""
        given, plain = case.arguments(dtype, device), case.arguments(dtype)
        picked = {name: of for name, of in self.op.picks_rows.items() if given.get(name) is not None}
        matrices = [given[name] for name in picked if given[name].dim() > 2]
        more = max(FAR // matrix[0].numel() for matrix in matrices) + 1
        for name in picked:
            few = given[name]
            many = few.new_empty(more + len(few), *few.shape[1:])
            many[more:] = few
            given[name] = many
        for indices in set(picked.values()):
            given[indices] = torch.where(given[indices] >= 0, given[indices] + more, given[indices])
        yield given, plain


def with_integers(op: Op) -> tuple[Case, ...]:
    """Return the cases with several rows and with indices, those with the most first."""
    counts = {case: len(_integers(rows.sample(case))) for case in rows.fitting(op)}
    return tuple(sorted(filter(counts.get, counts), key=lambda case: -counts[case]))


def with_large_weights(op: Op) -> tuple[Case, ...]:
    """Return the cases with weights to pick from, those with the largest first: fewer of them go far."""
    cases = rows.fitting(op, *op.picks_rows)
    return tuple(
        sorted(cases, key=lambda case: -min(rows.sample(case)[name][0].numel() for name in op.picks_rows))
    )
