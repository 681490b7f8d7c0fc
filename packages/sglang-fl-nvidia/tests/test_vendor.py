"""The package as core finds it: its entry point, its probe, its targets."""

import importlib.util
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from sglang_fl.conformance import check_declared
from sglang_fl.ops import OPS
from sglang_fl.vendor import OpImpl
from sglang_fl_nvidia import NVIDIA
from sglang_fl_nvidia.probe import why_unavailable

KERNEL_LIBRARIES = (
    "flag_gems",
    "sgl_kernel",
    "flashinfer",
    "torch_npu",
    "torch_mlu",
    "torch_mlu_ops",
    "sglang",
)


def test_the_entry_point_names_the_vendor():
    (point,) = entry_points(group="sglang_fl.vendors", name="nvidia")
    assert point.load() is NVIDIA


def test_core_finds_this_package_alone_beside_its_own_vendor():
    assert {point.name for point in entry_points(group="sglang_fl.vendors")} == {"cpu", "nvidia"}


def modules(package: str) -> set[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return {module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)}


def test_every_call_of_flaggems_that_core_has_is_listed():
    listed = {impl.op for impl in NVIDIA.impls if impl.target.startswith("sglang_fl.flagos.")}
    assert listed == modules("sglang_fl.flagos") & OPS.keys()


def test_every_kernel_of_our_own_is_listed_and_comes_first():
    ours = {impl.op for impl in NVIDIA.impls if impl.target.startswith("sglang_fl_nvidia.flagos.")}
    assert ours == modules("sglang_fl_nvidia.flagos") & OPS.keys()
    assert all(next(impl for impl in NVIDIA.impls if impl.op == op).id == "flagos" for op in ours)


@pytest.mark.parametrize("impl", NVIDIA.impls, ids=lambda impl: f"{impl.op}-{impl.id}")
def test_target_exists_and_has_the_contracts_parameters(impl: OpImpl):
    assert check_declared(impl) == []


def test_listing_imports_no_kernel_library_and_tells_why_the_chip_is_not_used():
    code = (
        "import json, sys; from sglang_fl.diagnostics import report; "
        f"print(json.dumps([report.vendors(), [m for m in {KERNEL_LIBRARIES!r} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    vendors, imported = json.loads(done.stdout)
    assert imported == []
    row = next(row for row in vendors if row["vendor"] == "nvidia")
    assert row["device_type"] == NVIDIA.device_type
    assert row["available"] == (why_unavailable() is None)
    assert row["reason"] == why_unavailable()


def test_every_call_of_sglangs_own_kernels_is_listed():
    listed = {impl.op for impl in NVIDIA.impls if impl.id == "vendor.nvidia"}
    assert listed == modules("sglang_fl_nvidia.vendor")
