"""The demo with a vendor package installed: on its simulated chip, and on the CPU without one."""

import sys
from pathlib import Path

import pytest

from tests.programs import finish_started, processes_with

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("is_simulated", [True, False], ids=["simulated", "cpu"])
def test_demo_prints_the_answer_and_what_ran_it(simulating, vendor, tmp_path: Path, is_simulated: bool):
    words = ("--simulated", vendor.name) if is_simulated else ("--tiny",)
    ran = f"vendor(vendor.{vendor})" if is_simulated else "reference(reference)"
    command = [sys.executable, "-m", "demo", "--keep", str(tmp_path), *words]
    run = finish_started(command, simulating("", {}), timeout=250)
    assert run.code == 0, run.output[-3000:]
    for layer_class in ("RMSNorm", "RotaryEmbedding", "SiluAndMul"):
        assert f"  [OOT-DISPATCH] {layer_class} → {ran}\n" in run.output
    assert run.output.count("[OOT-DISPATCH]") == 3
    assert "Answer (of random weights): " in run.output
    assert processes_with(str(tmp_path)) == []
