"""One file for a bug report: what is in it, and what is not."""

import os
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_fl.cli import app
from sglang_fl.diagnostics import doctor
from sglang_fl.diagnostics.doctor.finding import problem

SECRET = "hf_abcdefghijklmnop"


@pytest.fixture(autouse=True)
def one_check(monkeypatch) -> None:
    """Let doctor make one finding: its own tests are elsewhere, and all of it takes half a minute."""
    row = doctor.Row("memory", problem("memory", f"too small for {SECRET}", "buy some"))
    monkeypatch.setattr(doctor, "examine", lambda launch, only, say: [row])
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def written(tmp_path: Path, *words: str) -> str:
    path = tmp_path / "issue.md"
    done = CliRunner().invoke(app, ["report", "--issue", str(path), *words])
    assert done.exit_code == 0, done.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path.read_text()


def test_it_has_versions_settings_vendors_ops_doctor_and_the_ends_of_logs(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "reference")
    log = tmp_path / "server.log"
    log.write_text("".join(f"line {number} \x1b[31m{SECRET}\n" for number in range(5000)))
    text = written(tmp_path, "--log", str(log))
    for part in ("Versions", "Settings", "Vendors", "Ops", "Doctor", "The end of server.log"):
        assert f"## {part}\n" in text
    assert "sglang-fl-core " in text
    assert "SGLANG_FL_PREFER=reference (environment)" in text
    assert "SGLANG_FL_STRICT" not in text
    assert '{"op": "rms_norm", "runs": "reference"}' in text
    assert "problem [memory] memory: too small for *** -> buy some" in text
    assert "line 4999 " in text
    assert "line 1 " not in text
    assert SECRET not in text
    assert "\x1b" not in text


def test_what_cannot_be_told_says_why_and_the_rest_is_there(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "flagso")
    text = written(tmp_path)
    assert "cannot be told: SGLANG_FL_PREFER='flagso': no such backend kind." in text
    assert "## Doctor\n" in text


def test_a_file_that_is_there_stays(tmp_path: Path):
    (tmp_path / "issue.md").write_text("mine")
    done = CliRunner().invoke(app, ["report", "--issue", str(tmp_path / "issue.md")])
    assert done.exit_code == 2
    assert "Name a new file." in done.stderr
    assert (tmp_path / "issue.md").read_text() == "mine"


def test_a_log_that_cannot_be_read_is_refused_before_anything_is_written(tmp_path: Path):
    words = ["report", "--issue", str(tmp_path / "issue.md"), "--log", str(tmp_path / "none.log")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "none.log: cannot be read: No such file or directory" in done.stderr
    assert not (tmp_path / "issue.md").exists()


@pytest.mark.parametrize(
    "words", [["--log", "server.log"], ["--issue", "a.md", "--json"], ["--certificate", "c.json"]]
)
def test_options_that_do_not_belong_together_are_refused(words: list[str]):
    done = CliRunner().invoke(app, ["report", *words])
    assert done.exit_code == 2
    assert "--issue" in done.stderr
