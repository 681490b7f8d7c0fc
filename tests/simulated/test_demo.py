"""The demo with a vendor package installed: on its simulated chip, and on the CPU without one.

Its server is forked from one that has third-party modules loaded; ``tests/engine/test_demo.py`` starts it.
"""

from pathlib import Path

import pytest

import demo.server
from demo.__main__ import parse, run
from tests.programs import processes_with, start_preloaded

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("is_simulated", [True, False], ids=["simulated", "cpu"])
def test_demo_prints_the_answer_and_what_ran_it(
    vendor, tmp_path: Path, monkeypatch, capsys, is_simulated: bool
):
    monkeypatch.setattr(demo.server, "start", start_preloaded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ("--simulated", vendor.name) if is_simulated else ("--tiny",)
    ran = f"vendor(vendor.{vendor})" if is_simulated else "reference(reference)"
    code = run(parse(["--keep", str(tmp_path), *words]))
    captured = capsys.readouterr()
    assert code == 0, captured.err[-3000:]
    for layer_class in ("RMSNorm", "RotaryEmbedding", "SiluAndMul"):
        assert f"  [OOT-DISPATCH] {layer_class} → {ran}\n" in captured.out
    assert captured.out.count("[OOT-DISPATCH]") == 4
    assert "Answer (of random weights): " in captured.out
    assert processes_with(str(tmp_path)) == []
