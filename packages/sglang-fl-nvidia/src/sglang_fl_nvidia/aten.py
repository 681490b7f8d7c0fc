"""Which of FlagGems' ATen kernels replace PyTorch's on an NVIDIA GPU, by what was measured of each.

``measured_aten.csv`` is the table that ``python -m benchmarks.bench_aten`` writes. A kernel replaces
PyTorch's where it is exact, at least as fast on the device at every shape, and called inside of CUDA graphs
alone: a call of FlagGems' costs 25 to 110 µs of the host, one of PyTorch's 8 to 20; replays cost neither.
"""

import csv
from collections.abc import Iterator, Mapping
from importlib.resources import files

from sglang_fl.vendor import AtenChoice
from sglang_fl_nvidia.aten_quarantine import QUARANTINE

__all__ = ["choices_of", "measured_choices"]

TABLE = "measured_aten.csv"


def measured_choices() -> tuple[AtenChoice, ...]:
    """Return the conclusion for each op that was measured, with its reason."""
    table = files("sglang_fl_nvidia").joinpath(TABLE).read_text(encoding="utf-8")
    faults = {name: entry.reason for entry in QUARANTINE for name in entry.names}
    return tuple(_without_faulty(choice, faults) for choice in choices_of(table))


def _without_faulty(choice: AtenChoice, faults: Mapping[str, str]) -> AtenChoice:
    """Return the choice, against a kernel whose fault the measurement did not come upon."""
    (name,) = choice.names
    if not choice.is_replaced or name not in faults:
        return choice
    return AtenChoice(choice.names, is_replaced=False, reason=f"in quarantine: {faults[name]}")


def choices_of(table: str) -> Iterator[AtenChoice]:
    """Return the conclusions from a table: a line of what measured it, a head, a line for each op."""
    heading, *lines = table.splitlines()
    where = heading.partition(";")[2].strip()
    for row in csv.DictReader(lines):
        objection = _objection(row)
        finding = objection or (
            f"exact, {row['least_ratio']} of PyTorch's speed at least, called in CUDA graphs alone"
        )
        name = row["op"] if "." in row["op"] else f"{row['op']}.default"
        yield AtenChoice((name,), is_replaced=objection is None, reason=f"{finding} ({where})")


def _objection(row: dict[str, str]) -> str | None:
    """Say what speaks against a kernel first, or None."""
    if row["fault"]:
        return f"differs from PyTorch: {row['fault']}"
    if row["trouble"]:
        return f"could not be measured: {row['trouble']}"
    if not row["least_ratio"]:
        return "cannot run in a CUDA graph: the shape of its result depends on its data"
    if float(row["least_ratio"]) < 1:
        at = f" at {row['shape']}" if row["shape"] else ""
        return f"{row['least_ratio']} of PyTorch's speed on the device{at}"
    if int(row["beside_graphs"] or 0):
        return (
            f"called beside CUDA graphs, where it costs {row['host']} µs of the host, not {row['own_host']}"
        )
    if not int(row["in_graphs"] or 0):
        return "no model that was measured calls it"
    return None
