"""The package as core finds it: its entry point, its probe, its targets."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from sglang_fl.conformance import check_declared
from sglang_fl.vendor import OpImpl, load_target
from sglang_fl_ascend import ASCEND
from sglang_fl_ascend.probe import why_unavailable

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
    (point,) = entry_points(group="sglang_fl.vendors", name="ascend")
    assert point.load() is ASCEND


def test_core_finds_this_package_alone_beside_its_own_vendor():
    assert {point.name for point in entry_points(group="sglang_fl.vendors")} == {"cpu", "ascend"}


def test_the_ops_with_a_fit_kernel_of_flaggems_are_listed():
    listed = {impl.op for impl in ASCEND.impls if impl.id == "flagos"}
    assert listed == {"silu_and_mul", "gelu_and_mul", "new_gelu", "rms_norm", "rotary_embedding"}


@pytest.mark.parametrize("impl", ASCEND.impls, ids=lambda impl: f"{impl.op}-{impl.id}")
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
    row = next(row for row in vendors if row["vendor"] == "ascend")
    assert row["device_type"] == ASCEND.device_type
    assert row["available"] == (why_unavailable() is None)
    assert row["reason"] == why_unavailable()


def test_probe_tells_that_the_device_package_is_missing():
    assert why_unavailable() == "torch_npu is not installed"


def test_probe_gives_the_cause_where_the_device_package_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "torch_npu.py").write_text("raise OSError('no driver')")
    monkeypatch.syspath_prepend(tmp_path)
    assert why_unavailable() == "torch_npu cannot be used: OSError: no driver"


def test_kernels_with_known_hazards_are_in_quarantine():
    assert {(entry.op, entry.impl) for entry in ASCEND.quarantine} == {
        ("rms_norm", "flagos"),
        ("rotary_embedding", "flagos"),
    }


def test_the_chips_own_operators_come_first():
    assert ASCEND.defaults == {"prefer": "vendor"}


@pytest.mark.npu
@pytest.mark.parametrize("entry", ASCEND.quarantine, ids=lambda entry: f"{entry.op}-{entry.impl}")
def test_the_fault_of_each_entry_is_still_there(entry):
    load_target(entry.reproduction)()


@pytest.mark.parametrize("entry", ASCEND.quarantine, ids=lambda entry: f"{entry.op}-{entry.impl}")
def test_the_reproduction_of_each_entry_exists(entry):
    assert callable(load_target(entry.reproduction))
