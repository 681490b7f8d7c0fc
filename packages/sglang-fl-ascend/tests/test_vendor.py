"""The package as core finds it: what every vendor package must keep, and what this one lists."""

import pytest

from sglang_fl.conformance.suite import *  # noqa: F403 - the kit's tests, of VENDOR
from sglang_fl.vendor import load_target
from sglang_fl_ascend import ASCEND
from sglang_fl_ascend.probe import why_unavailable

VENDOR = ASCEND


def test_the_ops_with_a_fit_kernel_of_flaggems_are_listed():
    listed = {impl.op for impl in ASCEND.impls if impl.id == "flagos"}
    assert listed == {"silu_and_mul", "gelu_and_mul", "new_gelu", "rms_norm", "rotary_embedding"}


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


@pytest.mark.parametrize("entry", ASCEND.quarantine, ids=lambda entry: f"{entry.op}-{entry.impl}")
def test_the_reproduction_of_each_entry_exists(entry):
    assert callable(load_target(entry.reproduction))
