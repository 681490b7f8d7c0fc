"""The package as core finds it: what every vendor package must keep, and what this one lists."""

from sglang_fl.conformance.suite import *  # noqa: F403 - the kit's tests, of VENDOR
from sglang_fl_mlu import MLU
from sglang_fl_mlu.probe import why_unavailable

VENDOR = MLU


def test_the_ops_with_a_fit_kernel_of_flaggems_are_listed():
    listed = {impl.op for impl in MLU.impls if impl.id == "flagos"}
    assert listed == {"silu_and_mul", "gelu_and_mul", "new_gelu", "rms_norm", "rotary_embedding"}


def test_probe_tells_that_the_device_package_is_missing():
    assert why_unavailable() == "torch_mlu is not installed"


def test_probe_gives_the_cause_where_the_device_package_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "torch_mlu.py").write_text("raise OSError('no driver')")
    monkeypatch.syspath_prepend(tmp_path)
    assert why_unavailable() == "torch_mlu cannot be used: OSError: no driver"
