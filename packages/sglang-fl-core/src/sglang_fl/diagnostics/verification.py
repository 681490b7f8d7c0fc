"""The conformance kit over the vendor of this machine, as data for the command line."""

from pathlib import Path
from typing import Any

from sglang_fl.conformance import ASPECTS, STRESS, Verdict, verify_impl
from sglang_fl.conformance.certificate import (
    differences,
    is_passed,
    make_certificate,
    read_certificate,
    write_certificate,
)
from sglang_fl.errors import SettingsError, choices
from sglang_fl.ops import OPS
from sglang_fl.registry import Registry
from sglang_fl.startup import configure
from sglang_fl.vendor import OpImpl

__all__ = ["compare", "verify"]

Rows = list[dict[str, Any]]


def verify(op: str | None, certificate: Path | None, stress: bool = False) -> tuple[Rows, bool]:
    """Check every implementation of this machine's vendor, the references too, and write a certificate.

    Parameters
    ----------
    op : one op alone; None for all
    certificate : where to write it; None for nowhere
    stress : whether each call is repeated a hundred times as well

    Returns
    -------
    (list of dict, bool) : one row for each implementation; whether something was checked and nothing failed

    Raises
    ------
    SettingsError : a wrong configuration, an unknown op, a file that cannot be written
    """
    if op is not None and op not in OPS:
        raise SettingsError(f"there is no op {op!r}. {choices(op, OPS)}")
    registry = configure().registry
    vendor = registry.vendor
    impls = [
        impl for each in OPS.values() if op in (None, each.name) for impl in registry.implementations(each)
    ]
    aspects = (*ASPECTS, STRESS) if stress else ASPECTS
    verdicts = [_verdict(registry, impl, aspects) for impl in impls]
    package = next(found.distribution for found in registry.installed if found.vendor is vendor)
    made = make_certificate(vendor, package, verdicts)
    if certificate is not None:
        try:
            write_certificate(made, certificate)
        except OSError as error:
            raise SettingsError(
                f"{certificate}: the certificate cannot be written: {error.strerror}"
            ) from None
    return [_row(row) for row in made["implementations"]], is_passed(made)


def _verdict(registry: Registry, impl: OpImpl, aspects: tuple[str, ...]) -> Verdict:
    """Check an implementation, unless it is known to be wrong here and does not run."""
    for entry in registry.quarantine(OPS[impl.op]):
        if entry.impl == impl.id:
            return Verdict(impl.op, str(impl), impl.target, not_checked=[f"in quarantine: {entry}"])
    return verify_impl(impl, registry.vendor.device_type, aspects)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    faults = [fault for found in row["faults"].values() for fault in found]
    return {
        "op": row["op"],
        "implementation": row["impl"],
        "state": row["state"],
        "checked": list(row["faults"]),
        "graphs": row["graphs"],
        "host_us": row["host_us"],
        "faults": faults,
        "not_checked": row["not_checked"],
    }


def compare(one: Path, other: Path) -> tuple[Rows, bool]:
    """Compare two certificates.

    Returns
    -------
    (list of dict, bool) : what differs; whether every implementation has the same state in both

    Raises
    ------
    SettingsError : one of them is no certificate, or was changed
    """
    rows = [
        {"what": where, "first": left, "second": right}
        for where, left, right in differences(read_certificate(one), read_certificate(other))
    ]
    return rows, not any(row["what"].endswith((" state", " faults")) for row in rows)
