"""What of ``docs/features.md`` is written from the packages, the certificates and the engine's results.

For each op and chip: which implementations there are, and how it is known that each is right.
"""

import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_fl.ops import OPS
from sglang_fl.vendor import OpImpl, Vendor

__all__ = ["blocks"]

DOCS = Path(__file__).parents[1] / "docs"
#: The vendors, as the columns are called.
CHIPS = {"nvidia": "NVIDIA", "ascend": "Ascend", "mlu": "MLU"}
#: For each op the model families that SGLang's engine runs on the vendor's kernel, on the simulated chip.
Engine = Mapping[str, str]


def blocks(engines: Mapping[str, Engine]) -> dict[str, str]:
    """Return the tables of the page, by the marks between which they stand.

    Parameters
    ----------
    engines : by the vendor's name
    """
    certificates = [json.loads(file.read_text()) for file in sorted(DOCS.glob("runs/certificate-*.json"))]
    return {"features": _ops(engines, certificates), "evidence": _evidence(certificates)}


def _ops(engines: Mapping[str, Engine], certificates: list[dict[str, Any]]) -> str:
    vendors = {name: getattr(importlib.import_module(f"sglang_fl_{name}"), name.upper()) for name in CHIPS}
    rows = [f"| op | {' | '.join(CHIPS.values())} |", "|---" * (len(CHIPS) + 1) + "|"]
    for op in OPS:
        cells = []
        for name, vendor in vendors.items():
            passed = {  # targets: an id may have come to stand for another kernel since
                row["target"]
                for certificate in certificates
                for row in certificate["implementations"]
                if (certificate["vendor"], row["op"], row["state"]) == (name, op, "passes")
            }
            impls = [impl for impl in vendor.impls if impl.op == op]
            cells.append("; ".join(_impl(vendor, impl, passed, engines.get(name, {})) for impl in impls))
        rows.append(f"| [`{op}`](ops.md#{op}) | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _impl(vendor: Vendor, impl: OpImpl, passed: set[str], engine: Engine) -> str:
    """Return an implementation's id, and how far it was proven."""
    is_simulated = impl.id == f"vendor.{vendor.name}" and vendor.name in _on_a_simulated_chip()
    if impl.target in passed:
        proof = "**chip**"
    elif is_simulated:
        proof = f"simulated, engine ({engine[impl.op]})" if engine.get(impl.op) else "simulated"
    else:
        proof = "declared"
    key = (impl.op, impl.id)
    if key in {(entry.op, entry.impl) for entry in vendor.quarantine}:
        proof += ", in quarantine"
    if key in {(entry.op, entry.impl) for entry in vendor.choices if not entry.is_default}:
        proof += ", no default"
    return f"`{impl.id}` {proof}"


def _on_a_simulated_chip() -> set[str]:
    """Return the vendors whose kernels the conformance kit runs on a simulated chip."""
    return {name for name in CHIPS if importlib.util.find_spec(f"sglang_fl_{name}.simulated")}


def _evidence(certificates: list[dict[str, Any]]) -> str:
    rows = ["| what | says |", "|---|---|"]
    for certificate in certificates:
        versions = ", ".join(f"{name} {version}" for name, version in certificate["versions"].items())
        states = [row["state"] for row in certificate["implementations"]]
        graphs = sum(row["graphs"] for row in certificate["implementations"])
        rows.append(
            f"| certificate of an {certificate['device']} | {states.count('passes')} of {len(states)} "
            f"implementations pass, {graphs} calls captured in graphs; {versions} |"
        )
    for release, found in json.loads((DOCS / "compatibility.json").read_text()).items():
        files = found["files"].values()
        passed, failed = (sum(_number(file[key]) for file in files) for key in ("passed", "failed"))
        dates = {file["date"] for file in files}
        rows.append(
            f"| engine's tests on a CPU, SGLang {release} | {passed} passed, {failed} failed; "
            f"torch {found['torch']}, {min(dates)} to {max(dates)} |"
        )
    return "\n".join(rows) + "\n"


def _number(found: int | list[str]) -> int:
    return found if isinstance(found, int) else len(found)
