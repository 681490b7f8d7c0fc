"""Run an implementation over the cases of its op, and say what of the contract it breaks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sglang_fl.conformance.error import error_in_units
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Case, Kernel, Op, Outputs
from sglang_fl.vendor import OpImpl, load_target

__all__ = ["DTYPES", "check_case", "check_impl"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def check_impl(impl: OpImpl, device: str) -> list[str]:
    """Check an implementation over all cases of its op and the three dtypes.

    Parameters
    ----------
    impl : its target is imported here
    device : PyTorch's string, ``cuda``

    Returns
    -------
    list of str : what is wrong, one line for each fault; empty if it keeps the contract
    """
    op, kernel = OPS[impl.op], load_target(impl.target)
    op.check_signature(kernel)
    return [
        fault
        for dtype in DTYPES
        for case in op.cases
        for fault in check_case(op, kernel, case, dtype, device)
    ]


def check_case(op: Op, kernel: Kernel, case: Case, dtype: torch.dtype, device: str) -> list[str]:
    """Check one call: shapes, dtypes, device, values against float64, and what is written.

    A kernel may refuse a call by ``UnsupportedError``; that is no fault.

    Returns
    -------
    list of str : what is wrong, naming op, case and dtype
    """
    given = case.arguments(dtype, device)
    before = {name: v.clone() for name, v in given.items() if isinstance(v, Tensor)}
    exact = {name: _as_float64(value) for name, value in case.arguments(dtype).items()}
    expected = op.reference(**exact)
    truth = _as_tuple(expected)
    sizes = _as_tuple(op.magnitude(**exact)) if op.magnitude else truth
    where = f"{op}[{case}-{str(dtype).removeprefix('torch.')}]"
    faults: list[str] = []
    may_write: tuple[str, ...] = ()
    try:
        outputs = kernel(**given)
    except UnsupportedError:
        pass  # it must not have written anything
    else:
        wrong_form = _wrong_form(outputs, expected)
        if wrong_form:
            return [f"{where}: {wrong_form}"]
        may_write = op.may_write(given)
        faults = [
            f"{where}: result {index}: {fault}"
            for index, triple in enumerate(zip(_as_tuple(outputs), truth, sizes, strict=True))
            for fault in _value_faults(*triple, op.bound.of(dtype), dtype, device)
        ]
    untouched = before.keys() - set(may_write)
    return faults + [
        f"{where}: {name} was written"
        for name in sorted(untouched)
        if not torch.equal(given[name], before[name])
    ]


def _value_faults(
    output: Tensor, truth: Tensor, size: Tensor, bound: float, dtype: torch.dtype, device: str
) -> Iterator[str]:
    got = (output.shape, output.dtype, output.device.type)
    expected = (truth.shape, dtype, torch.device(device).type)
    if got != expected:
        yield f"shape, dtype, device are {got}, not {expected}"
        return
    error = error_in_units(output.cpu(), truth, size)
    if error > bound:
        yield f"{error:.3g} units from float64, allowed are {bound}"


def _wrong_form(outputs: object, expected: Outputs) -> str | None:
    """Say how the results differ in number, or one tensor from a tuple of one."""
    if not isinstance(outputs, (Tensor, tuple)):
        return f"the result is a {type(outputs).__name__}, neither a tensor nor a tuple"
    count, wanted = len(_as_tuple(outputs)), len(_as_tuple(expected))
    if count != wanted:
        return f"{count} results instead of {wanted}"
    if isinstance(outputs, tuple) != isinstance(expected, tuple):
        return "the result is a tuple of one instead of a tensor"
    return None


def _as_float64(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.float64)
    return value


def _as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs
