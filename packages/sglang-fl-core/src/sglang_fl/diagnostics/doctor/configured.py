"""Our own settings and the vendors: are they right, and what would this process do?"""

from collections.abc import Iterator

from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.errors import SglangFlError
from sglang_fl.registry import InstalledVendor
from sglang_fl.settings import unknown_variables
from sglang_fl.sglang_adapter.layer_lists import layer_lists
from sglang_fl.startup import Configuration, configure, usable_vendors

__all__ = ["configured", "settings", "vendors"]


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
    found = usable_vendors()
    chips = [vendor for vendor in found if vendor.name != "cpu"]
    has_chip = any(vendor.is_available for vendor in chips)
    configuration = configured()
    chosen = configuration.settings.platform if configuration else None
    for vendor in chips:
        if configuration and chosen and vendor.name != chosen and not vendor.fault:
            text = f"not used: {configuration.settings.quoted('platform')} chooses another"
            yield ok(f"vendor {vendor.name}", text)
        else:
            yield _of_vendor(vendor, has_chip)
    if not chips:
        remedy = "on a chip, install its package: sglang-fl-nvidia, -ascend or -mlu"
        yield ok("vendors", "no vendor package is installed: fused ops run their references", remedy)


def _of_vendor(vendor: InstalledVendor, has_chip: bool) -> Finding:
    what = f"vendor {vendor.name}"
    if vendor.is_available:
        return ok(what, f"{vendor.distribution}, its chip is here")
    if vendor.fault:
        text = f"{vendor.distribution} is left out: {vendor.fault}"
        return problem(what, text, f"reinstall or upgrade {vendor.distribution.split()[0]}")
    if has_chip:
        return ok(what, f"not used: {vendor.why_not}")
    return problem(
        what, f"its chip is not seen: {vendor.why_not}", "check the driver and this Python's torch"
    )
