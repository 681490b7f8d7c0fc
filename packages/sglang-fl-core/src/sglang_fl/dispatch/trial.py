"""A kernel before it is chosen: whether the contract allows the call, what the kernel harms, what it returns.

What one call of it goes through:

1. the contract is asked, on tensors without data: an excluded call raises before anything is copied;
2. what the kernel may write is kept aside (not while a graph is captured, which would replay the copies);
3. the kernel runs on the caller's own tensors, so that what works here works with these strides later;
4. its results are held against the contract: their number, shapes, dtypes and place;
5. a device is waited for (not while a graph is captured): a launch that fails is reported late;
6. if 3 to 5 fail, or the kernel refuses the call, what was kept aside is put back, and the next candidate
   gets unharmed arguments.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sglang_fl.dispatch.faults import Fault, is_out_of_memory
from sglang_fl.errors import ContractError, UnsupportedError, VendorError
from sglang_fl.ops import Kernel, Op, Outputs

__all__ = ["NextCandidateError", "Trial", "device_of", "is_capturing", "wait_for"]


class NextCandidateError(Exception):
    """Leaves the adapter's code, so that the next candidate runs; the trial says why."""


class Trial:
    """A kernel that is tried. It has the kernel's signature, so that adapters can ask for options.

    Parameters
    ----------
    op : the op
    kernel : the implementation's function
    strict : what the kernel raises is raised, and not taken down
    """

    def __init__(self, op: Op, kernel: Kernel, strict: bool = False) -> None:
        self.kernel = kernel
        self._op = op
        self._strict = strict
        self.__signature__ = inspect.signature(kernel)
        self.was_called = False
        self.has_run = False
        self.has_rows = False
        self.fault: Fault | None = None
        self.refusal = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Outputs:
        """Run the kernel.

        Raises
        ------
        ContractError : the contract, or the kernel's own check of it, excludes the call
        NextCandidateError : the kernel refused the call (``refusal``) or failed (``fault``)
        Exception : memory ran out; or whatever the kernel raised, if strict
        """
        self.was_called = True
        arguments = self._op.signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        expected = self._expected(arguments.arguments)
        self.has_rows = self._has_rows(expected, arguments.arguments)
        outputs = self._run(args, kwargs, arguments.arguments, expected)
        self.has_run = True
        return outputs

    def _has_rows(self, expected: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> bool:
        """Whether the call computes anything; one that returns nothing updates what its rows say."""
        if expected:
            return bool(expected[0].numel())
        return all(bool(arguments[name].numel()) for name in self._op.rows if arguments[name] is not None)

    def _expected(self, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Return the results that the contract promises, or raise ``ContractError``."""
        try:
            return self._op.results_like(arguments)
        except ContractError:
            raise
        except Exception as error:  # noqa: BLE001 - the reference cannot take this call, whatever it says
            raise ContractError(f"{self._op}: {type(error).__name__}: {error}") from None

    def _run(
        self, args: Any, kwargs: Any, arguments: Mapping[str, Any], expected: tuple[Tensor, ...]
    ) -> Outputs:
        device = device_of(arguments)
        is_captured = is_capturing(device)
        kept = [] if is_captured else [_Kept(self._op, n, arguments) for n in self._op.may_write(arguments)]
        versions = _versions(self._op, arguments)
        try:
            outputs: Outputs = self.kernel(*args, **kwargs)
            _hold_against(self._op, expected, outputs, device)
            if not is_captured:
                wait_for(device)
            return outputs
        except (ContractError, UnsupportedError) as error:
            for argument in kept:
                argument.restore()
            _require_unharmed(versions, arguments, Fault.of(error))
            if self._strict or isinstance(error, ContractError):
                raise
            self.refusal = str(error) or "no reason given"
            raise NextCandidateError from error
        except Exception as error:
            for argument in kept:
                argument.restore()
            if self._strict or is_out_of_memory(error):
                raise
            self.fault = Fault.of(error)
            _require_unharmed(versions, arguments, self.fault)
            raise NextCandidateError from error


def _hold_against(op: Op, expected: tuple[Tensor, ...], outputs: Any, device: torch.device) -> None:
    """Raise ``VendorError`` unless a kernel returned what the contract says, on the call's device."""
    unlike = op.why_not_like(outputs, expected)
    if unlike is not None:
        raise VendorError(unlike)
    for tensor in (outputs,) if isinstance(outputs, Tensor) else outputs:
        if tensor.device != device or tensor.layout is not torch.strided:
            place = f"on {tensor.device}, {tensor.layout}"
            raise VendorError(f"it returned a tensor {place}, and the call's are on {device}, torch.strided")


class _Kept:
    """A copy of what a kernel may write of one argument: all of it, or the rows that the call names."""

    def __init__(self, op: Op, name: str, arguments: Mapping[str, Any]) -> None:
        self._tensor: Tensor = arguments[name]
        self._rows = op.written_rows(name, arguments)
        self._copy = self._tensor.clone() if self._rows is None else self._tensor[self._rows]

    def restore(self) -> None:
        if self._rows is None:
            self._tensor.copy_(self._copy)
        else:
            self._tensor[self._rows] = self._copy


def _versions(op: Op, arguments: Mapping[str, Any]) -> dict[str, int]:
    """Return PyTorch's count of writes of each argument that the kernel may not write, where there is one."""
    return {
        name: value._version
        for name, value in arguments.items()
        if isinstance(value, Tensor) and not value.is_inference() and name not in op.may_write(arguments)
    }


def _require_unharmed(versions: Mapping[str, int], arguments: Mapping[str, Any], fault: Fault) -> None:
    """Raise ``VendorError`` if a failed kernel wrote what nobody has kept: no other may run on that."""
    for name, before in versions.items():
        if arguments[name]._version != before:
            raise VendorError(f"it wrote {name}, which the contract does not allow, and failed: {fault}")


def _ask_device(device: torch.device, function: str) -> Callable[[], Any] | None:
    """Return a function of ``torch.cuda`` or its like, or None where the device has none."""
    if device.type in ("cpu", "meta"):
        return None
    found: Callable[[], Any] | None = getattr(getattr(torch, device.type, None), function, None)
    return found


def device_of(arguments: Mapping[str, Any]) -> torch.device:
    """Return where the first tensor of a call lies; the CPU if it has none."""
    return next((v.device for v in arguments.values() if isinstance(v, Tensor)), torch.device("cpu"))


def is_capturing(device: torch.device) -> bool:
    """Whether a graph is being captured on a device."""
    ask = _ask_device(device, "is_current_stream_capturing")
    return bool(ask and ask())


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what was launched on it."""
    synchronize = _ask_device(device, "synchronize")
    if synchronize:
        synchronize()
