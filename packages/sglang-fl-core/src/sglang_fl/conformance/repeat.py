"""The same call again: bit for bit, and how long the host takes for it."""

import hashlib
import statistics
import time
from collections.abc import Callable

import torch

from sglang_fl.conformance.call import bits, computed, differ, title
from sglang_fl.ops import Case, Kernel, Op

__all__ = ["host_microseconds", "repeat_faults"]


def repeat_faults(
    op: Op, kernel: Kernel, case: Case, dtype: torch.dtype, device: str
) -> tuple[list[str], bytes] | None:
    """Call a kernel twice with the same arguments.

    Returns
    -------
    (list of str, bytes) : what differs; a digest of the first call's results
    None : the kernel refused
    """
    given, again = case.arguments(dtype, device), case.arguments(dtype, device)
    held = computed(op, kernel, given)
    if held is None:
        return None
    where, first, faults = title(op, case, dtype), bits(op, held, given), []
    if differ(first, bits(op, computed(op, kernel, again), again)):
        faults.append(f"{where}: a second call with the same arguments gives other bits")
    computed(op, kernel, case.arguments(dtype, device, seed=1))
    if differ(first, bits(op, held, given)):
        faults.append(f"{where}: a later call changes this one's result")
    digest = hashlib.sha256(b"".join(result.numpy().tobytes() for result in first)).digest()
    return faults, digest


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
