"""The same call a hundred times, on a device that is not quiet: what two calls do not tell."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sglang_fl.conformance.call import bits, computed, title
from sglang_fl.ops import Case, Kernel, Op
from sglang_fl.ops.op import Arguments

__all__ = ["REPEATS", "stress_faults"]

REPEATS = 100
#: Bytes that are written before a call, so that its arguments are in no cache: of a CPU's second level, and
#: more than the largest L2 cache of a chip has.
PRESSURE = {"cpu": 1 << 22}
PRESSURE_ON_A_CHIP = 1 << 28


def stress_faults(op: Op, kernel: Kernel, case: Case, dtype: torch.dtype, device: str) -> Iterator[str]:
    """Call a kernel again and again with the same arguments; say in which call its results are others.

    Before each call the memory that its results will be given is filled with numbers that are none, and the
    caches with other data.
    """
    kept = case.arguments(dtype, device)
    given = _copied(kept)
    first = computed(op, kernel, given)
    if first is None:
        return
    expected = bits(op, first, given)
    sizes = [(result.shape, result.dtype) for result in op.results(first, given)]
    pressure = torch.empty(PRESSURE.get(device, PRESSURE_ON_A_CHIP), dtype=torch.uint8, device=device)
    for repeat in range(1, REPEATS + 1):
        given = _copied(kept)
        pressure.fill_(repeat)
        _spoil_free_memory(sizes, device)
        found = bits(op, computed(op, kernel, given), given)
        count = sum(int((one != other).any()) for one, other in zip(expected, found, strict=True))
        if count:
            yield f"{title(op, case, dtype)}: of {REPEATS} repeats number {repeat} gives other bits"
            return


def _copied(arguments: Arguments) -> Arguments:
    """Return copies with the strides, and what is between the rows, of the given ones."""
    return {name: _copy(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def _copy(tensor: Tensor) -> Tensor:
    whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    return whole.clone().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _spoil_free_memory(sizes: list[tuple[torch.Size, torch.dtype]], device: str) -> None:
    """Fill blocks like those that the results need, and give them back: the next ones asked for are these."""
    blocks = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in sizes for _ in range(2)]
    for block in blocks:
        block.fill_(torch.nan if block.is_floating_point() else -1)
