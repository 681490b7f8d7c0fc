"""``sglang-fl report``: dispatch logs and records of ATen ops, in one run and against another."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sglang_fl.aten.record_log import AtenRecord
from sglang_fl.cli import app
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.vendor import AtenKernel


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def run_json(*words: object) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def dispatch(path: Path, **ran: str) -> Path:
    """Write a dispatch log as a process does."""
    log = DispatchLog(path)
    for layer_class, implementation in ran.items():
        log.write(layer_class, implementation)
    return path


def record(path: Path, *ops: str) -> Path:
    """Write a record of ATen ops as a process does."""
    log = AtenRecord(path, once=False)
    for op in ops:
        log.recording(AtenKernel(op, op.split(".")[0], len, "flag_gems.ops." + op.split(".")[0]))(())
    return path


def test_report_tells_what_ran_each_layer_class_and_aten_op(tmp_path: Path):
    layers = dispatch(tmp_path / "d", SiluAndMul="flagos(flagos)", RMSNorm="vendor(vendor.nvidia)")
    aten = record(tmp_path / "a", "mul.Tensor", "cos", "mul.Tensor")
    told = run_json("--dispatch", layers, "--aten", aten)
    assert told["layer_classes"] == [
        {"layer_class": "RMSNorm", "runs": ["vendor(vendor.nvidia)"], "lines": 1, "disagree": False},
        {"layer_class": "SiluAndMul", "runs": ["flagos(flagos)"], "lines": 1, "disagree": False},
    ]
    assert told["aten_ops"] == [
        {"op": "cos", "kernels": ["flag_gems.ops.cos.cos"], "lines": 1},
        {"op": "mul.Tensor", "kernels": ["flag_gems.ops.mul.mul"], "lines": 2},
    ]
    assert (told["differences"], told["no_log_lines"]) == ([], [])


def test_ranks_that_disagree_are_told(tmp_path: Path):
    """Two processes append to one file, and a third has one of its own."""
    shared = dispatch(tmp_path / "d", RMSNorm="flagos(flagos)", SiluAndMul="flagos(flagos)")
    dispatch(shared, RMSNorm="reference(reference)", SiluAndMul="flagos(flagos)")
    own = dispatch(tmp_path / "e", RMSNorm="flagos(flagos)")
    rows = {
        row["layer_class"]: row for row in run_json("--dispatch", shared, "--dispatch", own)["layer_classes"]
    }
    assert rows["RMSNorm"]["disagree"] is True
    assert rows["RMSNorm"]["runs"] == ["flagos(flagos)", "reference(reference)"]
    assert (rows["RMSNorm"]["lines"], rows["SiluAndMul"]["disagree"]) == (3, False)
    assert "disagree about RMSNorm" in run("--dispatch", shared).stdout


def test_differences_of_two_runs_are_told(tmp_path: Path):
    first = dispatch(tmp_path / "1", RMSNorm="flagos(flagos)", SiluAndMul="flagos(flagos)")
    second = dispatch(
        tmp_path / "2", RMSNorm="sglang(native)", SiluAndMul="flagos(flagos)", TopK="flagos(flagos)"
    )
    aten = record(tmp_path / "a", "mul.Tensor")
    against = ("--against-dispatch", second, "--against-aten", record(tmp_path / "b", "cos", "mul.Tensor"))
    told = run_json("--dispatch", first, "--aten", aten, *against)
    assert told["differences"] == [
        {"kind": "layer class", "what": "RMSNorm", "first": ["flagos(flagos)"], "second": ["sglang(native)"]},
        {"kind": "layer class", "what": "TopK", "first": [], "second": ["flagos(flagos)"]},
        {"kind": "ATen op", "what": "cos", "first": [], "second": ["flag_gems.ops.cos.cos"]},
    ]
    assert "Differences" in run("--dispatch", first, *against[:2]).stdout
    assert "The two runs do not differ." in run("--dispatch", first, "--against-dispatch", first).stdout


def test_lines_that_are_no_log_lines_are_counted_and_shown(tmp_path: Path):
    path = dispatch(tmp_path / "d", RMSNorm="flagos(flagos)")
    with path.open("ab") as file:
        file.write(
            b"[OOT-DISPATCH] SiluAndMul\n\n\x1b[31mred\x1b[0m \xff\n[OOT-DISPATCH] TopK \xe2\x86\x92 fla"
        )
    rows = run_json("--dispatch", path)["no_log_lines"]
    assert [row["line"] for row in rows] == [2, 4, 5]
    assert rows[0] == {"file": str(path), "line": 2, "text": "[OOT-DISPATCH] SiluAndMul"}
    printed = run("--dispatch", path).stdout
    assert "3 lines that are no log lines" in printed
    assert "\x1b" not in printed


def test_record_given_as_a_dispatch_log_is_not_taken_for_one(tmp_path: Path):
    told = run("--dispatch", record(tmp_path / "a", "cos"))
    assert told.exit_code == 2
    assert "a: it is no dispatch log (SGLANG_FL_DISPATCH_LOG); its first line is " in told.stderr


def test_empty_log_is_told_so(tmp_path: Path):
    (tmp_path / "d").touch()
    assert run("--dispatch", tmp_path / "d").stdout == "Layer classes: no line\n"


@pytest.mark.parametrize("words", [("--dispatch", "/no/such.log"), ("--aten", "/"), ()])
def test_nothing_to_read_is_one_message_and_code_2(words: tuple[str, ...]):
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    if words:
        assert result.stderr.startswith(f"sglang-fl: {words[1]}: ")
    else:
        assert "--dispatch FILE" in result.stderr
