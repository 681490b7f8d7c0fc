"""What a real scheduler has imported of ours when it serves: nothing that only a person asks for."""

from pathlib import Path

import pytest

from tests.engine.fake_vendor import install_vendor

pytestmark = pytest.mark.timeout(300)

#: A vendor package whose first kernel call writes down what its process has imported.
VENDOR = """
import os
import sys

from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl, Vendor


def why_unavailable():
    return None


def silu_and_mul(x):
    with open(os.environ["IMPORTED"], "w") as file:
        file.write("\\n".join(sys.modules))
    return OPS["silu_and_mul"].reference(x)


VENDOR = Vendor(
    "witness", device_type="cpu", core_api=1, probe="witness_vendor:why_unavailable",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=(OpImpl("silu_and_mul", BackendKind.FLAGOS, "flagos", "witness_vendor:silu_and_mul"),),
)
"""


@pytest.mark.parametrize("settings", [{}, {"SGLANG_FL_VERIFY": "all"}], ids=["plain", "verifying"])
def test_a_scheduler_imports_no_kit_no_bisect_no_diagnostics_and_no_scaffold(run_offline, tmp_path, settings):
    package, imported = install_vendor(tmp_path / "package", "witness", VENDOR), Path(tmp_path, "imported")
    run = run_offline({"PYTHONPATH": str(package), "IMPORTED": str(imported), **settings})
    assert run.code == 0, run.output[-3000:]
    names = imported.read_text().split()
    assert "sglang.srt.managers.scheduler" in names
    assert "sglang_fl.dispatch.life" in names
    rooms = ("conformance", "bisect", "compare", "diagnostics", "profiling", "scaffold", "cli")
    ours = [name for name in names if name.startswith("sglang_fl.")]
    assert [name for name in ours if name.split(".")[1] in rooms] == []
