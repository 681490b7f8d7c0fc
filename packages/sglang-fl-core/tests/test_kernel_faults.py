"""What the commands say of kernels of SGLang's own that are known to be wrong."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_fl.cli import app


@pytest.fixture
def sglang(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SGLang without a layer."""
    monkeypatch.delitem(sys.modules, "sglang", raising=False)  # another test may have imported the real one
    (site / "sglang").mkdir()
    (site / "sglang" / "__init__.py").write_text("raise AssertionError('a listing imported me')")


@pytest.mark.usefixtures("sglang")
def test_coverage_says_where_a_kernel_of_sglang_is_wrong():
    rows = json.loads(CliRunner().invoke(app, ["coverage", "--json"]).stdout)["shortcuts"]
    wrong = {row["where"]: row["wrong"] for row in rows if row["wrong"]}
    (where,) = wrong
    assert where.endswith("Qwen3_5AttentionDecoderLayer.forward_prepare_cuda_fused")
    assert wrong[where].startswith("that of 0.5.15 to 0.5.18 rotates pictures by the time axis alone")
    assert "wrong: that of 0.5.15 to 0.5.18 rotates" in CliRunner().invoke(app, ["coverage"]).stdout


@pytest.mark.parametrize(
    ("version", "off", "code", "text"),
    [
        ("0.5.18", False, 0, "it is turned off, its layers run instead"),
        ("0.5.15", True, 1, "it runs, because layer 2 is off"),
        ("0.5.19", True, 0, None),
    ],
)
def test_doctor_says_whether_a_wrong_kernel_runs(doctor, metadata_of, monkeypatch, version, off, code, text):
    metadata_of("sglang", version)
    if off:
        monkeypatch.setenv("SGLANG_FL_OOT_ENABLED", "0")
    got, rows = doctor("--only", "kernel-faults")
    assert got == code
    if text:
        assert (
            "0.5.15 to 0.5.18 rotates pictures by the time axis alone"
            in rows["fused_qk_norm_rope_gate"]["text"]
        )
        assert rows["fused_qk_norm_rope_gate"]["text"].endswith(text)
    else:
        assert rows["SGLang's own kernels"]["text"] == f"none is known to be wrong in {version}"
