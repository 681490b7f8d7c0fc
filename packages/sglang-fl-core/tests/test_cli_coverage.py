"""``sglang-fl coverage``: layer classes, their ops, and the shortcuts past them."""

import sys
from pathlib import Path

import pytest

from command_line import line_with, run, run_json
from sglang_fl.sglang_adapter import releases


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables do not wrap."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def sglang(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An SGLang with one layer that has an adapter and one that has none."""
    monkeypatch.delitem(sys.modules, "sglang", raising=False)  # another test may have imported the real one
    package = site / "sglang"
    sources = {
        "__init__.py": "raise AssertionError('a listing imported me')",
        "kernels/fused_op.py": "class BaseFusedOp: ...",
        "srt/layers/activation.py": "from sglang.kernels.fused_op import BaseFusedOp\n"
        "class SiluAndMul(BaseFusedOp): ...\nclass XIELU(BaseFusedOp): ...\nclass Newcomer(BaseFusedOp): ...",
    }
    for name, source in sources.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    return package


def test_coverage_tells_each_layer_class_its_op_or_the_reason(sglang: Path):
    classes = run_json("coverage")["layer_classes"]
    rows = {row["layer_class"].rpartition(":")[2]: row for row in classes}
    assert rows["SiluAndMul"] == {
        "layer_class": "srt.layers.activation:SiluAndMul",
        "ops": ["silu_and_mul"],
        "left_to_sglang": None,
    }
    assert "overrides forward" in rows["XIELU"]["left_to_sglang"]
    assert "unknown to this version" in rows["Newcomer"]["left_to_sglang"]


def test_coverage_tells_the_shortcuts_past_each_op_and_how_they_are_turned_off(sglang: Path):
    rows = run_json("coverage")["shortcuts"]
    dual_gemm = next(row for row in rows if row["shortcut"] == "dual_gemm")
    assert dual_gemm["past"] == ["silu_and_mul"]
    assert dual_gemm["releases"] == f"0.5.22 to {releases.newest()}"
    assert dual_gemm["off_where_the_op_is_named"] == "DualGemm.can_run says no"
    refused = next(row for row in rows if row["where"] == "models.olmo2:Olmo2Attention")
    assert "the start is refused" in refused["off_where_the_op_is_named"]


def test_coverage_prints_both_tables(sglang: Path):
    result = run("coverage")
    assert result.exit_code == 0
    assert "silu_and_mul" in line_with("activation:SiluAndMul", result.stdout)
    assert "Shortcuts of SGLang past them" in result.stdout


def test_coverage_without_sglang_is_one_message_and_code_2(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("coverage")
    assert result.exit_code == 2
    assert result.stderr.startswith("sglang-fl: SGLang is not installed here. Install sglang 0.5.15 to ")
