"""A kernel that ends SGLang's scheduler leaves its call behind, and ``sglang-fl replay`` finds it."""

import os
import sys
from pathlib import Path

import pytest

from sglang_fl.diagnostics.replay import replay
from sglang_fl.dispatch.kept_calls import RUNNING, kept_files
from tests.engine.fake_vendor import install_vendor

pytestmark = pytest.mark.timeout(300)

VENDOR = """
import os, signal
from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl, Vendor

def why() -> None:
    return None

def silu_and_mul(x):
    if len(x) > 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return OPS["silu_and_mul"].reference(x)

VENDOR = Vendor(
    "deadly", device_type="cpu", core_api=1, probe="deadly_vendor:why",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=(OpImpl("silu_and_mul", BackendKind.VENDOR, "vendor.deadly", "deadly_vendor:silu_and_mul"),),
)
"""


def test_the_call_of_a_kernel_that_ends_the_scheduler_is_found(run_offline, tmp_path: Path, monkeypatch):
    site = install_vendor(tmp_path / "site", "deadly", VENDOR)
    folder = tmp_path / "calls"
    settings = {"PYTHONPATH": str(site), "SGLANG_FL_PLATFORM": "deadly", "SGLANG_FL_KEEP_CALLS": str(folder)}
    run = run_offline(settings)
    assert run.code != 0
    assert run.result is None
    first, *others = kept_files(folder)
    assert first.name.endswith(f"silu_and_mul{RUNNING}")
    assert not any(path.name.endswith(RUNNING) for path in others)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
    (row, *_), code = replay(folder, "silu_and_mul", 120, print)
    assert code == 1
    assert (row["now"], row["what"], row["came_back"]) == ("ends its process", "SIGSEGV", False)
    assert row["fewest_rows"] == "4 (from 0)"
    assert row["layer"] == "SiluAndMul"
