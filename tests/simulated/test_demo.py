"""The demo on the simulated chip of the vendor package that is installed."""

import sys
from pathlib import Path

import pytest

from tests.engine.conftest import finish, processes_with

pytestmark = pytest.mark.timeout(300)


def test_demo_prints_the_answer_and_what_ran_it(simulating, vendor, tmp_path: Path):
    command = [sys.executable, "-m", "demo", "--keep", str(tmp_path), "--simulated", vendor.name]
    run = finish(command, simulating("", {}), timeout=250)
    assert run.code == 0, run.output[-3000:]
    for layer_class in ("RMSNorm", "RotaryEmbedding", "SiluAndMul"):
        assert f"  [OOT-DISPATCH] {layer_class} → vendor(vendor.{vendor})\n" in run.output
    assert run.output.count("[OOT-DISPATCH]") == 3
    assert "Answer (of random weights): " in run.output
    assert processes_with(str(tmp_path)) == []
