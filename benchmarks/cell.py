"""What ``bench_ops`` measures: an op at one shape, by several sides."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from sglang_fl.dispatch.loading import load_kernel
from sglang_fl.ops import OPS
from sglang_fl_nvidia import NVIDIA

__all__ = ["Cell", "kernel", "when_called"]


#: Enough for inputs to leave the L2 cache (50 MB on Hopper) before they come round again.
FOOTPRINT = 160e6


@dataclass(frozen=True)
class Cell:
    """One op at one shape.

    Parameters
    ----------
    op, shape, tokens : its place in the table
    moved : bytes that the op must read and write
    inputs : makes the arguments of one call
    sides : by name, functions of these arguments
    """

    op: str
    shape: str
    tokens: int
    moved: int
    inputs: Callable[[], tuple]
    sides: dict[str, Callable]

    def several_inputs(self) -> list[tuple]:
        """Return the arguments of 2 to 24 calls: so many that none finds its own in the L2 cache."""
        return [self.inputs() for _ in range(max(2, min(24, int(FOOTPRINT / max(self.moved, 1)) + 1)))]


def kernel(op: str, impl_id: str = "flagos") -> Callable:
    (impl,) = (impl for impl in NVIDIA.impls if (impl.op, impl.id) == (op, impl_id))
    return load_kernel(OPS[op], impl, strict=True)


def when_called(make: Callable[[], Callable]) -> Callable:
    """Return a side that is made in its first call: without its library it has no figure, and others have."""
    made = functools.cache(make)
    return lambda *arguments: made()(*arguments)
