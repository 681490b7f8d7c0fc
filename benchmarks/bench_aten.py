"""FlagGems' ATen kernels beside PyTorch's, in one run: are they exact, and what do they cost?

    python -m benchmarks.bench_aten [--op NAME ...] [--calls FILE] [--csv FILE]

An op is exact where no call of ``benchmarks/aten_cases.py`` differs from PyTorch: floating-point results are
at most 16 units of the dtype's rounding further from float64 than PyTorch's own, integers and what is written
to the arguments are equal, two calls alike. Times: of a call on the device, both sides as CUDA graphs of the
same calls in turn, the least ratio over the shapes; and of a call on the host. An op whose result's shape
depends on its data cannot be captured, and has no time on the device. Where a served model calls it comes
from the table of ``benchmarks/aten_calls.py``.
"""

import argparse
import csv
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.about import about
from benchmarks.aten_cases import SERVED, Call, edges_of
from benchmarks.cuda_timing import graph_times, host_time
from benchmarks.tables import write_table
from sglang_fl.aten import call_check, load_kernels
from sglang_fl.vendor import AtenKernel
from sglang_fl_nvidia import NVIDIA

#: Their results' shapes depend on their data. A capture that fails would spoil those after it.
UNCAPTURED = ("repeat_interleave.self_Tensor",)
#: Seconds for one op: tuners try hundreds of configurations.
PATIENCE = 40


@dataclass
class Row:
    """What was measured of one op.

    Parameters
    ----------
    op, kernel : as ATen and as FlagGems calls it
    fault : the first difference from PyTorch, or empty
    least_ratio : PyTorch's time on the device / the kernel's, at the worst shape
    shape : of the first tensor there
    host, own_host : µs of a call on the host, the kernel's and PyTorch's
    in_graphs, beside_graphs : calls in a decode step of a served model
    trouble : why something is missing
    """

    op: str
    kernel: str
    fault: str = ""
    least_ratio: str = ""
    shape: str = ""
    host: str = ""
    own_host: str = ""
    in_graphs: str = ""
    beside_graphs: str = ""
    trouble: str = ""


def measured(kernel: AtenKernel) -> Row:
    """Check and time one kernel."""
    row = Row(kernel.overload, kernel.name)
    try:
        with time_limit(PATIENCE):
            row.fault = first_line(next(faults(kernel), ""))
            calls = list(SERVED[kernel.overload]())
            own = _own(kernel)
            row.host = f"{host_time(_bound(kernel.function, calls[0]), 100, 3):.1f}"
            row.own_host = f"{host_time(_bound(own, calls[0]), 100, 3):.1f}"
            if kernel.overload not in UNCAPTURED:
                row.least_ratio, row.shape = least_ratio(kernel.function, own, calls)
    except Exception as error:  # noqa: BLE001 - kernels fail in every way; the row says so
        row.trouble = first_line(f"{type(error).__name__}: {error}")
        torch.cuda.synchronize()
    return row


def first_line(text: str) -> str:
    return text.partition("\n")[0][:160]


def faults(kernel: AtenKernel) -> Iterator[str]:
    for call in SERVED[kernel.overload]():
        yield from (str(fault) for fault in call_check.compare(kernel, call))
        for what, edge in edges_of(kernel.overload, call):
            yield from (f"{what}: {fault}" for fault in call_check.compare(kernel, edge))


def least_ratio(function: Callable, own: Callable, calls: list[Call]) -> tuple[str, str]:
    worst, where = float("inf"), ""
    for call in calls:
        sides = {"kernel": [_bound(function, call)], "own": [_bound(own, call)]}
        times = graph_times(sides, count=20, rounds=5)
        if times["own"] / times["kernel"] < worst:
            worst = times["own"] / times["kernel"]
            tensors = [value for value in call[0] if isinstance(value, torch.Tensor)]
            where = "x".join(map(str, tensors[0].shape)) if tensors else ""
    return f"{worst:.3f}", where


def _own(kernel: AtenKernel) -> Callable:
    name, _, overload = kernel.overload.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload or "default")


def _bound(function: Callable, call: Call) -> Callable[[], Any]:
    args, keywords = call
    return lambda: function(*args, **keywords)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise ``TimeoutError`` in the block after some seconds."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", choices=SERVED, help="only these")
    parser.add_argument("--calls", type=Path, help="the table of aten_calls")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    calls = calls_in(options.calls) if options.calls else {}
    torch.manual_seed(0)
    rows = []
    for kernel in load_kernels(NVIDIA):
        if kernel.overload in (options.op or SERVED):
            row = measured(kernel)
            row.in_graphs, row.beside_graphs = calls.get(kernel.overload.partition(".")[0], ("", ""))
            rows.append(row)
            print(*astuple(rows[-1]), sep=" | ", flush=True)
    if options.csv:
        head = [field.name for field in fields(Row)]
        write_table(options.csv, about(), head, map(astuple, rows))


def calls_in(table: Path) -> dict[str, tuple[str, str]]:
    """Return the calls of each op inside of graphs and beside them; ATen's names without overloads."""
    with table.open(newline="") as file:
        return {op: (inside, beside) for op, inside, beside in list(csv.reader(file))[2:]}


if __name__ == "__main__":
    main()
