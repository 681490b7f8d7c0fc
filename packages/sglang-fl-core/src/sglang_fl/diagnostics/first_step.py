"""What somebody who types ``sglang-fl`` alone should do first on this machine."""

import importlib.metadata

from sglang_fl.diagnostics import report

__all__ = ["first_step"]

_NEXT = """\
First:
  sglang-fl doctor    is anything wrong here, and what to do?
  sglang-fl ops       what would run each op, and what would follow?
then SGLang's own launch line with SGLANG_FL_DISPATCH_LOG=FILE before it;
sort -u FILE says what ran."""


def first_step() -> str:
    """Return what is there on this machine, a line each, and what to do first."""
    rows = [row for row in report.vendors() if row["vendor"] != "cpu"]
    chips = [row for row in rows if row["available"]]
    lines = [f"Here: {row['vendor']}, by {row['package']}." for row in chips]
    lines += [f"{row['package']} is not used here: {row['reason']}." for row in rows if not row["available"]]
    if not chips:
        lines.append("Here: the CPU, by plain PyTorch.")
    if not rows:
        lines.append("For a chip install its package: sglang-fl-nvidia, -ascend or -mlu.")
    try:
        importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return "\n".join([*lines, "First: install SGLang into this environment; then sglang-fl doctor."])
    return "\n".join([*lines, _NEXT])
