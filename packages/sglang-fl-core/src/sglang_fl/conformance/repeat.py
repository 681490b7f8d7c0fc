"""The same call again: bit for bit, in a captured graph, and how long the host takes for it."""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Case, Kernel, Op, lacking
from sglang_fl.ops.op import Arguments

__all__ = ["graph_faults", "host_microseconds", "repeat_faults", "why_no_graph"]


def repeat_faults(
    op: Op, kernel: Kernel, case: Case, dtype: torch.dtype, device: str
) -> tuple[list[str], bytes] | None:
    """Call a kernel twice with the same arguments.

    Returns
    -------
    (list of str, bytes) : what differs; a digest of the first call's results
    None : the kernel refused
    """
    held = _call(op, kernel, case.arguments(dtype, device))
    if held is None:
        return None
    first = _bits(held)
    again = _bits(_call(op, kernel, case.arguments(dtype, device)) or ())
    where = f"{op}[{case}-{str(dtype).removeprefix('torch.')}]"
    faults = _unequal(first, again, f"{where}: a second call with the same arguments gives other bits")
    _call(op, kernel, case.arguments(dtype, device, seed=1))
    faults += _unequal(first, _bits(held), f"{where}: a later call changes this one's result")
    digest = hashlib.sha256(b"".join(result.numpy().tobytes() for result in first)).digest()
    return faults, digest


def _unequal(one: list[Tensor], other: list[Tensor], fault: str) -> list[str]:
    is_equal = len(one) == len(other) and all(map(torch.equal, one, other))
    return [] if is_equal else [fault]


def _call(op: Op, kernel: Kernel, given: Arguments) -> tuple[Tensor, ...] | None:
    """Return what a call returns and updates; None where the kernel refuses."""
    if lacking(kernel, [name for name in op.options if name in given]):
        return None
    try:
        outputs = kernel(**given)
    except UnsupportedError:
        return None
    returned = (outputs,) if isinstance(outputs, Tensor) else outputs
    return (*returned, *(given[name] for name in op.updates))


def _bits(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the bytes of tensors as they are now, on the CPU."""
    return [
        tensor.detach().contiguous().flatten().view(torch.uint8).to("cpu", copy=True) for tensor in tensors
    ]


def why_no_graph(device: str) -> str | None:
    """Return None where a device can capture graphs, else the reason."""
    if torch.device(device).type == "cpu":
        return "a CPU captures no graphs"
    module = torch.get_device_module(device)
    missing = [name for name in ("graph", _graph_class(device)) if not hasattr(module, name)]
    return f"torch.{torch.device(device).type} has no {' and no '.join(missing)}" if missing else None


def _graph_class(device: str) -> str:
    return f"{torch.device(device).type.upper()}Graph"


def graph_faults(op: Op, kernel: Kernel, case: Case, dtype: torch.dtype, device: str) -> list[str] | None:
    """Capture a call in a graph, replay it on other arguments in the same memory, compare with a plain call.

    Returns
    -------
    list of str : what is wrong
    None : the kernel refused
    """
    expected = _call(op, kernel, case.arguments(dtype, device, seed=1))
    if expected is None:
        return None
    where = f"{op}[{case}-{str(dtype).removeprefix('torch.')}]"
    module = torch.get_device_module(device)
    given = case.arguments(dtype, device)
    kernel(**case.arguments(dtype, device))  # compiles what it needs, outside of the capture
    module.synchronize()
    graph, captured = getattr(module, _graph_class(device))(), []
    try:
        with module.graph(graph):
            captured.append(_call(op, kernel, given))
    except RuntimeError as error:
        return [f"{where}: it cannot be captured in a graph: {str(error).splitlines()[0]}"]
    for name, value in case.arguments(dtype, device, seed=1).items():
        if isinstance(value, Tensor):
            given[name].copy_(value)
    graph.replay()
    module.synchronize()
    fault = f"{where}: a replayed graph gives other bits than a call"
    return _unequal(_bits(expected), _bits(captured[0] or ()), fault)


def host_microseconds(call: Callable[[], object], device: str, calls: int = 30) -> float:
    """Return the median time in µs that the host needs for a call, without waiting for the device."""
    wait = (lambda: None) if device == "cpu" else torch.get_device_module(device).synchronize
    times = []
    for _ in range(calls):
        wait()
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return round(1e6 * statistics.median(times), 1)
