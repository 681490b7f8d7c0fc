"""The kit as tests: what every vendor package must keep, collected by pytest in that package's own tests.

A package's ``tests/test_vendor.py`` needs no more than::

    from sglang_fl.conformance.suite import *  # the kit's tests, of this vendor:
    from sglang_fl_mychip import MYCHIP

    VENDOR = MYCHIP

Tests that need the chip are skipped, with the probe's reason, where it is not.
"""

import json
import subprocess
import sys
import time
from importlib.metadata import entry_points
from typing import Any

import pytest

from sglang_fl.conformance.declared import check_declared
from sglang_fl.conformance.verdict import ASPECTS, verify_impl
from sglang_fl.vendor import OpImpl, Vendor, load_target

__all__ = [
    "pytest_generate_tests",
    "test_implementation_keeps_its_contract",
    "test_listing_imports_no_kernel_library_and_tells_why_the_chip_is_not_used",
    "test_probe_answers_quickly_and_with_a_reason",
    "test_reproduction_of_a_quarantined_fault_still_fails",
    "test_target_exists_and_has_the_contracts_parameters",
    "test_the_entry_point_names_the_vendor_alone",
]

GROUP = "sglang_fl.vendors"
#: A probe has 30 s in a server's start, where every process probes.
QUICK = 10.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test the vendor of its module, its implementations, or what it has in quarantine."""
    vendor: Vendor = metafunc.module.VENDOR
    if "vendor" in metafunc.fixturenames:
        metafunc.parametrize("vendor", [vendor], ids=str)
    if "impl" in metafunc.fixturenames:
        metafunc.parametrize("impl", vendor.impls, ids=lambda impl: f"{impl.op}-{impl.id}")
    if "quarantined" in metafunc.fixturenames:
        entries = [*vendor.quarantine, *(vendor.aten.quarantine if vendor.aten else ())]
        metafunc.parametrize("quarantined", entries, ids=lambda entry: entry.reproduction)


def why_absent(vendor: Vendor) -> str | None:
    """Ask the probe why the chip is not here; None where it is."""
    reason: str | None = load_target(vendor.probe)()
    return reason


def skip_without_chip(vendor: Vendor) -> None:
    """Skip a test that needs the chip, with the probe's reason."""
    reason = why_absent(vendor)
    if reason is not None:
        pytest.skip(f"needs the chip of {vendor}: {reason}")


def test_the_entry_point_names_the_vendor_alone(vendor: Vendor) -> None:
    """The package is found under its name, and no other package claims it."""
    points = entry_points(group=GROUP, name=vendor.name)
    loaded = [point.load() for point in points]
    assert loaded == [vendor], f"entry points {vendor.name!r} in {GROUP}: {[p.value for p in points]}"


def test_probe_answers_quickly_and_with_a_reason(vendor: Vendor) -> None:
    """The probe returns None or a sentence, and is cheap: every process of a server asks it."""
    begin = time.monotonic()
    reason = why_absent(vendor)
    seconds = time.monotonic() - begin
    assert reason is None or (isinstance(reason, str) and reason), f"the probe returned {reason!r}"
    assert seconds < QUICK, f"the probe took {seconds:.1f} s"


def test_target_exists_and_has_the_contracts_parameters(impl: OpImpl) -> None:
    """The source of each target fits the contract; nothing is imported."""
    faults = check_declared(impl)
    assert not faults, "\n".join(faults)


_LISTING = """
import json, sys
from sglang_fl.registry import installed_vendors
found = next(found for found in installed_vendors() if found.name == sys.argv[1])
imported = [name for name in sys.argv[2:] if name in sys.modules]
print(json.dumps([found.is_available, found.fault, found.absence, imported]))
"""


def test_listing_imports_no_kernel_library_and_tells_why_the_chip_is_not_used(vendor: Vendor) -> None:
    """Core, in a process of its own, finds the vendor and imports none of what its kernels require."""
    libraries = sorted(
        {module for impl in vendor.impls for module in impl.requires} - {"triton"} | {"sglang"}
    )
    command = [sys.executable, "-c", _LISTING, vendor.name, *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    is_available, fault, absence, imported = json.loads(done.stdout.splitlines()[-1])
    assert fault is None, fault
    assert not imported, f"a listing imports {imported}"
    assert (is_available, absence) == (why_absent(vendor) is None, why_absent(vendor))


@pytest.mark.parametrize("aspect", ASPECTS)
def test_implementation_keeps_its_contract(vendor: Vendor, impl: OpImpl, aspect: str) -> None:
    """Every implementation, on the chip, in each aspect that the kit looks at."""
    skip_without_chip(vendor)
    if (impl.op, impl.id) in {(entry.op, entry.impl) for entry in vendor.quarantine}:
        pytest.skip("in quarantine: its fault has a test of its own")
    verdict = verify_impl(impl, vendor.device_type, (aspect,))
    faults = [fault for found in verdict.faults.values() for fault in found]
    assert not faults, "\n".join(faults)
    if verdict.state == "not checked":
        pytest.skip("; ".join(verdict.not_checked))


def test_reproduction_of_a_quarantined_fault_still_fails(vendor: Vendor, quarantined: Any) -> None:
    """What is in quarantine is still wrong here; else the entry must go."""
    skip_without_chip(vendor)
    load_target(quarantined.reproduction)()
