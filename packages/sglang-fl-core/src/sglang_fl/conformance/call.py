"""One call of a kernel, and the bits of what it computed."""

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Case, Kernel, Op, Outputs, lacking
from sglang_fl.ops.op import Arguments

__all__ = ["bits", "computed", "differ", "title"]


def computed(op: Op, kernel: Kernel, given: Arguments) -> Outputs | None:
    """Call a kernel; return None where it refuses."""
    if lacking(kernel, [name for name in op.options if name in given]):
        return None
    try:
        return kernel(**given)
    except UnsupportedError:
        return None


def bits(op: Op, outputs: Outputs | None, given: Arguments) -> list[Tensor]:
    """Return the bytes of what a call returned and updated, as they are now, on the CPU."""
    if outputs is None:
        return []
    return [
        tensor.detach().contiguous().flatten().view(torch.uint8).to("cpu", copy=True)
        for tensor in op.results(outputs, given)
    ]


def differ(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two calls have computed other bits, or another number of results."""
    return len(one) != len(other) or not all(map(torch.equal, one, other))


def title(op: Op, case: Case, dtype: torch.dtype) -> str:
    """Return what begins each fault of a call: op, case and dtype."""
    return f"{op}[{case}-{str(dtype).removeprefix('torch.')}]"
