"""Our own settings and the vendors: are they right, and what would this process do?"""

from collections.abc import Iterator
from typing import TypeGuard

from sglang_fl.conformance.declared import check_declared
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.errors import SglangFlError
from sglang_fl.registry import InstalledVendor
from sglang_fl.settings import unknown_variables
from sglang_fl.sglang_adapter.layer_lists import layer_lists
from sglang_fl.startup import Configuration, configure, usable_vendors

__all__ = ["configured", "settings", "targets", "vendors"]


def configured() -> Configuration | None:
    """Return what a start would do; None where it would be refused, which ``settings`` tells."""
    try:
        return configure()
    except SglangFlError:
        return None


def settings(launch: Launch) -> Iterator[Finding]:
    """Would a start be refused for a setting?"""
    try:
        configuration = configure()
        layer_lists(configuration.settings)
    except SglangFlError as error:
        for line in str(error).splitlines():
            yield problem("settings", line, "correct it; `sglang-fl env` shows each setting and its source")
        return
    for complaint in unknown_variables():
        yield problem("settings", complaint, "correct the name, or unset it: it does nothing")
    given = [setting.variable for setting in configuration.explain() if setting.source != "default"]
    yield ok("settings", f"set: {', '.join(given)}" if given else "all as they are by default")


def vendors(launch: Launch) -> Iterator[Finding]:
    """Is a vendor package broken, or does none of them see its chip?"""
    configuration = configured()
    chosen = configuration.settings.quoted("platform") if _is_chosen(configuration) else None
    found = usable_vendors()
    chips = [vendor for vendor in found if vendor.name != "cpu"]
    available = [vendor.name for vendor in chips if vendor.is_available]
    for vendor in chips:
        yield _of_vendor(vendor, chosen or (f"{available[0]} is here" if available else None))
    if not chips:
        remedy = "on a chip, install its package: sglang-fl-nvidia, -ascend or -mlu"
        yield ok("vendors", "no vendor package is installed: fused ops run their references", remedy)


def _is_chosen(configuration: Configuration | None) -> TypeGuard[Configuration]:
    """Whether the user has named the vendor to use."""
    return configuration is not None and configuration.settings.platform is not None


def _of_vendor(vendor: InstalledVendor, another: str | None) -> Finding:
    """Judge a vendor package; its chip may be missing where another vendor is used, for this reason."""
    what = f"vendor {vendor.name}"
    if vendor.is_available:
        return ok(what, f"{vendor.distribution}, its chip is here")
    if vendor.fault:
        text = f"{vendor.distribution} is left out: {vendor.fault}"
        return problem(what, text, f"reinstall or upgrade {vendor.distribution.split()[0]}")
    if another:
        return ok(what, f"not used ({another}): {vendor.why_not}")
    remedy = "check the driver and this Python's torch; on a machine without it, SGLANG_FL_PLATFORM=cpu"
    return problem(what, f"its chip is not seen: {vendor.why_not}", remedy)


def targets(launch: Launch) -> Iterator[Finding]:
    """Does every implementation name a function that exists and fits its contract? Nothing is imported."""
    count = 0
    for found in usable_vendors():
        for impl in found.vendor.impls if found.vendor else ():
            count += 1
            for fault in check_declared(impl):
                remedy = f"correct it in the package {found.distribution.split()[0]}"
                yield problem(f"target of {impl.op} {impl}", fault, remedy)
    yield ok("targets", f"{count} implementations of the installed vendor packages were looked at")
