"""What of ``docs/ascend.md`` and ``docs/mlu.md`` is written from the vendor's package.

Nothing of a vendor's library is imported: what a kernel calls is read from its source.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sglang_fl.ops import OPS
from sglang_fl.vendor import Vendor

__all__ = ["VENDORS", "blocks", "engine_cells", "served"]


@dataclass(frozen=True)
class Library:
    """What a vendor's kernels call, and how they are held against it.

    Parameters
    ----------
    calls : the head of that column
    pattern : how a kernel names what it calls, with one group
    proof : see the head of the vendor's page
    served : the modules of ``tests.simulated`` in which SGLang's engine runs the kernels
    """

    calls: str
    pattern: str
    proof: str
    served: tuple[str, ...]


#: The vendors that have a page.
VENDORS = {
    "ascend": Library(
        "operators", r"torch_npu\.(npu_\w+)\(", "schema, shapes, emulation", served=("test_ascend",)
    ),
    "mlu": Library(
        "functions",
        r'\bfunction\(\s*"(\w+)"',
        "signature, emulation",
        served=("test_mlu", "test_attention", "more_families"),
    ),
}
#: Of an op that the package says nothing about.
NOT_LOOKED_FOR = "nobody has looked for one yet"


def blocks(name: str, engine: Mapping[str, str]) -> dict[str, str]:
    """Return the two tables of a vendor's page, by the marks between which they stand.

    Parameters
    ----------
    name : the vendor's
    engine : for each op the families that SGLang's engine runs on the vendor's kernel
    """
    vendor: Vendor = getattr(importlib.import_module(f"sglang_fl_{name}"), name.upper())
    return {"ops": _ops(vendor, engine), "aten": _aten(vendor)}


def _ops(vendor: Vendor, engine: Mapping[str, str]) -> str:
    library, limits = VENDORS[vendor.name], importlib.import_module(f"sglang_fl_{vendor}.limits")
    native = {impl.op for impl in vendor.impls if impl.id == f"vendor.{vendor}"}
    for text, ops in (("LIMITS", native), ("NO_KERNEL", OPS.keys() - native)):
        if wrong := sorted(getattr(limits, text).keys() - ops):
            state = "has no kernel" if text == "LIMITS" else "has a kernel, or is no op"
            raise SystemExit(f"sglang_fl_{vendor}/limits.py: {text}: {', '.join(wrong)} {state}")
    rows = [f"| op | {library.calls} | proof | engine | not taken |", "|---|---|---|---|---|"]
    for op in sorted(OPS, key=lambda op: op not in native):
        if op in native:
            calls = ", ".join(f"`{call}`" for call in sorted(_calls(vendor, op)))
            cells = (calls, library.proof, engine.get(op, ""), limits.LIMITS.get(op, ""))
        else:
            cells = ("none", "", "", limits.NO_KERNEL.get(op, NOT_LOOKED_FOR))
        rows.append(f"| `{op}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _calls(vendor: Vendor, op: str) -> set[str]:
    """Return what a kernel calls of the library, with what it takes from the files beside it."""
    folder = Path(importlib.import_module(f"sglang_fl_{vendor}.vendor").__path__[0])
    text, pattern = (folder / f"{op}.py").read_text(), VENDORS[vendor.name].pattern
    beside = re.findall(rf"^from sglang_fl_{vendor}\.vendor\.(\w+) import", text, re.MULTILINE)
    texts = [text, *((folder / f"{name}.py").read_text() for name in beside)]
    return {call for text in texts for call in re.findall(pattern, text)}


def _aten(vendor: Vendor) -> str:
    offer = vendor.aten
    if offer is None:
        raise SystemExit(f"sglang_fl_{vendor}: it has no ATen ops, of which its page has a table")
    rows = ["| ops | by default | why |", "|---|---|---|"]
    for entry in offer.quarantine:
        rows.append(_row(entry.names, f"in quarantine, {entry.library} {entry.versions}", entry.reason))
    for choice in offer.choices:
        rows.append(_row(choice.names, "replaced" if choice.is_replaced else "not replaced", choice.reason))
    return "\n".join(rows) + "\n"


def _row(names: tuple[str, ...], default: str, why: str) -> str:
    return f"| {', '.join(f'`{name}`' for name in names)} | {default} | {why} |"


def served(name: str) -> dict[str, str]:
    """Return for each op the families that SGLang's engine runs on the vendor's kernel in our tests."""
    # By name: what is imported here is not type-checked.
    families = importlib.import_module("tests.engine.models").FAMILIES
    # A family that runs with another attention backend than usual has classes of other families.
    of_others = {layer_class: op for family in families for layer_class, op in family.runs.items()}
    ops = {family.name: {**of_others, **family.runs} for family in families}
    found: dict[str, set[str]] = {}
    for module in VENDORS[name].served:
        tests = importlib.import_module(f"tests.simulated.{module}")
        for setup in tests.SETUPS:
            for layer_class, ran in setup.runs.items():
                if ran == tests.VENDOR:
                    found.setdefault(ops[setup.family][layer_class], set()).add(setup.family)
    return {op: ", ".join(sorted(families)) for op, families in found.items()}


def engine_cells(page: str) -> dict[str, str]:
    """Return the column ``engine`` as a page has it: asking the tests of the engine takes SGLang's import."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\| ([^|]*) \|[^|]*\|$", page, re.MULTILINE)
    return {op: cell.strip() for op, cell in rows}
