"""The conformance kit over the vendor of this machine, as data for the command line."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
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
from sglang_fl.conformance.simulated import GROUP as SIMULATED
from sglang_fl.diagnostics.examinations import verify_apart
from sglang_fl.errors import SettingsError, choices
from sglang_fl.ops import OPS
from sglang_fl.progress import Count
from sglang_fl.registry import InstalledVendor, Registry
from sglang_fl.settings.outputs import check_outputs
from sglang_fl.startup import Configuration, configure
from sglang_fl.vendor import BackendKind, OpImpl

__all__ = ["Verification", "compare", "verify"]

Rows = list[dict[str, Any]]

GOOD, FAULTS, NOT_LOOKED_AT = 0, 1, 3


@dataclass(frozen=True)
class Verification:
    """What became of the implementations of this machine.

    Parameters
    ----------
    rows : one for each implementation
    not_verified : what was not looked at, why, and how it can be; one sentence each
    code : 0 where all is well, 1 where an implementation fails, 3 where an installed vendor's
        implementations were not looked at
    """

    rows: Rows
    not_verified: list[str]
    code: int


def verify(
    ops: Collection[str],
    certificate: Path | None,
    references_only: bool,
    stress: bool,
    say: Callable[[str], None],
    jobs: int = 1,
) -> Verification:
    """Check every implementation of this machine's vendor, the references too, and write a certificate.

    Parameters
    ----------
    ops : only these; none for all
    certificate : where to write it; None for nowhere
    references_only : check core's references and no vendor's implementations
    stress : whether each call is repeated a hundred times as well
    say : called with each implementation before it is checked
    jobs : 1 checks one after the other in this process, more so many aspects at a time in their own ones

    Raises
    ------
    SettingsError : a wrong configuration, an unknown op, a file that cannot be written or is in use
    """
    for name in ops:
        if name not in OPS:
            raise SettingsError(f"there is no op {name!r}. {choices(name, OPS)}")
    configuration = configure()
    if certificate is not None:
        check_outputs({"--certificate": certificate})
    registry = configuration.registry
    vendor = registry.vendor
    aspects = (*ASPECTS, STRESS) if stress else ASPECTS
    impls = _implementations(registry, ops or OPS, references_only)
    verdicts = _verdicts(registry, impls, aspects, say, jobs)
    left_out = [] if references_only else list(_left_out(configuration, ops, verdicts))
    package = next(found.distribution for found in registry.installed if found.vendor is vendor)
    made = make_certificate(vendor, package, verdicts, [entry.text for entry in left_out])
    if certificate is not None:
        try:
            write_certificate(made, certificate)
        except OSError as error:
            raise SettingsError(
                f"{certificate}: the certificate cannot be written: {error.strerror}"
            ) from None
    code = GOOD if is_passed(made) else FAULTS
    if code == GOOD and any(entry.was_expected for entry in left_out):
        code = NOT_LOOKED_AT
    return Verification([_row(row) for row in made["implementations"]], made["not_verified"], code)


def _implementations(registry: Registry, ops: Collection[str], references_only: bool) -> list[OpImpl]:
    return [
        impl
        for each in OPS.values()
        if each.name in ops
        for impl in registry.implementations(each)
        if impl.kind is BackendKind.REFERENCE or not references_only
    ]


def _verdicts(
    registry: Registry,
    impls: Sequence[OpImpl],
    aspects: tuple[str, ...],
    say: Callable[[str], None],
    jobs: int,
) -> list[Verdict]:
    """Check implementations, but for those that are known to be wrong here and do not run."""
    known = {impl: verdict for impl in impls if (verdict := _of_quarantine(registry, impl))}
    others, device = [impl for impl in impls if impl not in known], registry.vendor.device_type
    if jobs > 1:
        checked = verify_apart(others, device, aspects, jobs, say)
    else:
        count, checked = Count(len(others)), []
        for impl in others:
            say(count.next(f"{impl.op} {impl}"))
            checked.append(verify_impl(impl, device, aspects))
    of = known | dict(zip(others, checked, strict=True))
    return [of[impl] for impl in impls]


def _of_quarantine(registry: Registry, impl: OpImpl) -> Verdict | None:
    for entry in registry.quarantine(impl.op):
        if entry.impl == impl.id:
            return Verdict(impl.op, str(impl), impl.target, not_checked=[f"in quarantine: {entry}"])
    return None


@dataclass(frozen=True)
class _LeftOut:
    """A vendor whose implementations were not looked at; not expected where the user chose another one."""

    text: str
    was_expected: bool


def _left_out(
    configuration: Configuration, ops: Collection[str], verdicts: list[Verdict]
) -> Iterator[_LeftOut]:
    """Yield the vendors that have implementations to check, none of which was checked."""
    registry, settings = configuration.registry, configuration.settings
    was_chosen = registry.vendor.name in (settings.platform, settings.simulated)
    for found in registry.installed:
        if found.vendor is None:
            yield _LeftOut(f"vendor {found.name} ({found.distribution}): {found.fault}", not was_chosen)
        elif not any(impl.op in (ops or OPS) for impl in found.vendor.impls):
            continue
        elif found.vendor is not registry.vendor:
            reason = found.why_not or f"{registry.vendor} was chosen"
            text = f"vendor {found.name} ({found.distribution}): {reason}{_way_to_simulate(found, ops)}"
            yield _LeftOut(text, not was_chosen)
        elif all(v.state == "not checked" for v in verdicts if v.impl != "reference"):
            text = f"vendor {found.name} ({found.distribution}): none of its implementations could be checked"
            yield _LeftOut(text, True)


def _way_to_simulate(found: InstalledVendor, ops: Collection[str]) -> str:
    if not entry_points(group=SIMULATED, name=found.name):
        return ""
    command = " ".join([f"SGLANG_FL_SIMULATED={found.name} sglang-fl verify", *ops])
    return f". On its simulated chip: {command}"


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
