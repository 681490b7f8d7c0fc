"""Run an implementation over the cases of its op, and say what of the contract it breaks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sglang_fl.conformance.call import title
from sglang_fl.conformance.memory import Snapshot, alias_faults
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Bound, Case, Kernel, Op, Outputs, lacking
from sglang_fl.ops.compare import error_in_units
from sglang_fl.ops.op import Arguments
from sglang_fl.vendor import OpImpl, load_target

__all__ = ["DTYPES", "check_call", "check_case", "check_impl"]

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
    """Check one call: shapes, dtypes, device, values against float64, what is written, whose memory it is.

    Returns
    -------
    list of str : what is wrong, naming op, case and dtype; that the kernel raised, too
    None : the kernel lacks an option of the case, or refused the call by ``UnsupportedError`` and had
        written nothing
    """
    given = case.arguments(dtype, device)
    bound = case.bound or op.bound
    return check_call(op, kernel, given, case.arguments(dtype), title(op, case, dtype), bound)


def check_call(
    op: Op,
    kernel: Kernel,
    given: Arguments,
    plain: Arguments,
    where: str,
    bound: Bound,
    finite: bool = True,
) -> list[str] | None:
    """Check one call, as ``check_case``.

    Parameters
    ----------
    given : the arguments on the device
    plain : arguments on the CPU for which the results are the same
    where : begins each fault
    finite : whether inputs are finite; where they are not, a result that is not finite in float64 may be
        any number that is not finite
    """
    snapshot = Snapshot(op, given)
    try:
        if lacking(kernel, [name for name in op.options if name in given]):
            return None
        outputs = kernel(**given)
    except UnsupportedError:
        return [f"{where}: {fault}" for fault in snapshot.faults(may_write=())] or None
    except Exception as error:  # noqa: BLE001 - a foreign kernel raises anything; that is its fault
        return [f"{where}: raised {type(error).__name__}: {error}"]
    faults = [f"{where}: {fault}" for fault in snapshot.faults(op.may_write(given))]
    exact = {name: _as_float64(value) for name, value in plain.items()}
    before = {name: exact[name].clone() for name in op.updated(exact)}
    expected = op.reference(**exact)
    wrong_form = _wrong_form(outputs, expected)
    if wrong_form:
        return [f"{where}: {wrong_form}", *faults]
    invalid = op.why_invalid and op.why_invalid(_as_tuple(outputs), given)
    if invalid:
        return [f"{where}: {invalid}", *faults]
    aliases = alias_faults(_as_tuple(outputs), given, op.may_write(given))
    faults += [f"{where}: {fault}" for fault in aliases]
    # What the reference returns for these very arguments says the shape and dtype of each result.
    forms = op.results(op.reference(**plain), plain)
    truth = op.results(expected, exact)
    sizes = _as_tuple(op.magnitude(truth, **exact | before)) if op.magnitude else truth
    device = next(value.device.type for value in given.values() if isinstance(value, Tensor))
    return faults + [
        f"{where}: result {index}: {fault}"
        for index, (output, form, true, size) in enumerate(
            zip(op.results(outputs, given), forms, truth, sizes, strict=True)
        )
        for fault in _value_faults(
            *(output, form, true if finite else _as_infinite(output, true), size, bound, device),
            op.unit_of(form.dtype, given),
        )
    ]


def _as_infinite(output: Tensor, truth: Tensor) -> Tensor:
    """Return the truth with the output's own infinity or NaN where neither is finite."""
    output = output.cpu()
    if output.shape != truth.shape:
        return truth
    return torch.where(~truth.isfinite() & ~output.isfinite(), output.to(truth.dtype), truth)


def _value_faults(
    output: Tensor,
    form: Tensor,
    truth: Tensor,
    size: Tensor,
    bound: Bound,
    device: str,
    unit: torch.dtype,
) -> Iterator[str]:
    got = (output.shape, output.dtype, output.device.type)
    expected = (form.shape, form.dtype, torch.device(device).type)
    if got != expected:
        yield f"shape, dtype, device are {got}, not {expected}"
        return
    if not output.is_floating_point():
        if not torch.equal(output.cpu(), truth.to(output.dtype)):
            yield "it differs from the reference"
        return
    error = error_in_units(output.cpu(), truth, size, unit)
    if error > bound.of(unit):
        yield f"{error:.3g} units from float64, allowed are {bound.of(unit)}"


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
