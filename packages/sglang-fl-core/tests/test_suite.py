"""The kit as tests: an installed vendor package is tested by importing them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("forked")

Install = Callable[..., str]

TESTS = """
from sglang_fl.conformance.suite import *
from {package} import CHIP

VENDOR = CHIP
"""


@pytest.fixture
def outcomes(install_vendor: Install, site: Path, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Install a vendor with one kernel of this body, run the suite on it; return what became of each test."""

    def outcomes(body: str, **special: str) -> dict[str, str]:
        (site / "toy_kernels.py").write_text(body)
        impls = 'OpImpl("relu2", VENDOR, "vendor.toy", "toy_kernels:relu2"),'
        package = install_vendor("toy", impls=impls, **special)
        (tmp_path / "test_toy.py").write_text(TESTS.format(package=package))
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "test_toy.py"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        told = [line.split(" - ")[0].split(" ", 1) for line in done.stdout.splitlines() if "::" in line]
        found = {
            name.partition("::test_")[2]: outcome for outcome, name in told if outcome in ("PASSED", "FAILED")
        }
        return found | {"skipped": str("SKIPPED" in done.stdout), "text": done.stdout}

    return outcomes


RIGHT = "from sglang_fl.ops.relu2 import relu2 as reference\ndef relu2(x): return reference(x)\n"


def test_right_package_passes_all(outcomes: Callable[..., dict[str, str]]):
    found = outcomes(RIGHT)
    assert "FAILED" not in found.values(), found["text"]
    assert found["implementation_keeps_its_contract[toy-relu2-vendor.toy-cases]"] == "PASSED"
    assert found["the_entry_point_names_the_vendor_alone[toy]"] == "PASSED"


def test_wrong_kernel_fails_with_its_faults(outcomes: Callable[..., dict[str, str]]):
    found = outcomes(RIGHT.replace("reference(x)", "x"))
    assert found["implementation_keeps_its_contract[toy-relu2-vendor.toy-cases]"] == "FAILED"
    assert "units from float64" in found["text"]


def test_without_the_chip_what_needs_it_is_skipped_with_the_reason(outcomes: Callable[..., dict[str, str]]):
    found = outcomes(RIGHT, probe="return 'no /dev/toy0'")
    assert "needs the chip of toy: no /dev/toy0" in found["text"]
    assert "FAILED" not in found.values(), found["text"]


def test_another_signature_is_told_without_the_chip(outcomes: Callable[..., dict[str, str]]):
    found = outcomes("def relu2(x, out): return out\n", probe="return 'no /dev/toy0'")
    assert found["target_exists_and_has_the_contracts_parameters[relu2-vendor.toy]"] == "FAILED"
