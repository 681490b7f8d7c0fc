"""Run an implementation over the cases of its op, and say what of the contract it breaks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sglang_fl.conformance.error import error_in_units
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Case, Kernel, Op, Outputs
from sglang_fl.ops.op import Arguments
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
    list of str : what is wrong, one line for each fault; empty if it keeps the contract. A 16-bit
        dtype of which every case is refused is a fault too: models are served in those.
    """
    op, kernel = OPS[impl.op], load_target(impl.target)
    op.check_signature(kernel)
    faults = []
    for dtype in DTYPES:
        results = [check_case(op, kernel, case, dtype, device) for case in op.cases]
        faults += [fault for result in results for fault in result or ()]
        if dtype is not torch.float32 and all(result is None for result in results):
            faults.append(f"{impl.op} {impl}: every case of {dtype} is refused")
    return faults


def check_case(op: Op, kernel: Kernel, case: Case, dtype: torch.dtype, device: str) -> list[str] | None:
    """Check one call: shapes, dtypes, device, values against float64, and what is written.

    Returns
    -------
    list of str : what is wrong, naming op, case and dtype
    None : the kernel refused the call by ``UnsupportedError``, and had written nothing
    """
    given = case.arguments(dtype, device)
    before = {name: v.clone() for name, v in given.items() if isinstance(v, Tensor)}
    where = f"{op}[{case}-{str(dtype).removeprefix('torch.')}]"
    try:
        outputs = kernel(**given)
    except UnsupportedError:
        return _write_faults(where, given, before, may_write=()) or None
    exact = {name: _as_float64(value) for name, value in case.arguments(dtype).items()}
    expected = op.reference(**exact)
    wrong_form = _wrong_form(outputs, expected)
    if wrong_form:
        return [f"{where}: {wrong_form}"]
    truth = _as_tuple(expected)
    sizes = _as_tuple(op.magnitude(**exact)) if op.magnitude else truth
    return [
        f"{where}: result {index}: {fault}"
        for index, triple in enumerate(zip(_as_tuple(outputs), truth, sizes, strict=True))
        for fault in _value_faults(*triple, op.bound.of(dtype), dtype, device)
    ] + _write_faults(where, given, before, op.may_write(given))


def _write_faults(
    where: str, given: Arguments, before: dict[str, Tensor], may_write: tuple[str, ...]
) -> list[str]:
    return [
        f"{where}: {name} was written"
        for name in sorted(before.keys() - set(may_write))
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
