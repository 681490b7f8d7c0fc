"""What a number in one row reaches: results that do not depend on it must not change by a bit."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sglang_fl.conformance.call import computed
from sglang_fl.ops import Kernel, Op
from sglang_fl.ops.op import Arguments

__all__ = ["reach_faults"]


def reach_faults(
    op: Op, kernel: Kernel, spoilt: tuple[Arguments, Arguments], clean: tuple[Arguments, Arguments]
) -> Iterator[str]:
    """Call a kernel with arguments of which some rows are not finite, and with the same that all are.

    Where the reference gives the same for both, the kernel's results must be the same bit for bit.

    Parameters
    ----------
    spoilt, clean : each the arguments on the device and the same on the CPU
    """
    got = [_results(op, kernel, given) for given, _ in (spoilt, clean)]
    truth = [_results(op, op.reference, _in_float64(plain)) for _, plain in (spoilt, clean)]
    for index, results in enumerate(zip(*got, *truth, strict=True)):
        with_it, without, true_with_it, true_without = results
        is_reached = (true_with_it == true_without) & (with_it != without)
        if is_reached.any():
            yield (
                f"result {index}: {int(is_reached.sum())} of {is_reached.numel()} elements change "
                f"with rows that they do not depend on"
            )


def _results(op: Op, kernel: Kernel, given: Arguments) -> list[Tensor]:
    outputs = computed(op, kernel, given)
    return [] if outputs is None else [result.cpu() for result in op.results(outputs, given)]


def _in_float64(arguments: Arguments) -> Arguments:
    return {
        name: value.to(torch.float64) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
