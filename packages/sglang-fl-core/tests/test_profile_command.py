"""``sglang-fl profile`` around its engine: what is refused before it starts, and what is said of its end."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sglang_fl.cli import app
from sglang_fl.errors import SettingsError
from sglang_fl.profiling import procedure

DECODE = [
    {"ph": "X", "cat": "user_annotation", "name": "sglang_fl|step|decode|4|4", "pid": 1, "tid": 1},
    {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 8}')
    return folder


class Engine:
    """One that leaves a trace of these events.

    Parameters
    ----------
    folder : for it
    events : of the trace
    """

    def __init__(self, folder: Path, events: list[dict[str, Any]]) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.called: list[str] = []
        self._folder = folder
        self._events = events

    def generate(self, prompts: list[list[int]], new_tokens: int, *, logprobs: bool) -> None:
        assert all(0 <= token < 8 for prompt in prompts for token in prompt)
        self.asked.append((len(prompts), len(prompts[0]), new_tokens))

    def call(self, method: str, step: str) -> None:
        self.called.append(step)
        events = [{**event, "ts": 0, "dur": 10} for event in self._events]
        (self._folder / "trace.rank0.json").write_text(json.dumps({"traceEvents": events}))

    def answers(self, name: str) -> list[dict[str, str]]:
        return [{"device": "cpu", "device_type": "cpu", "torch": "2"}]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What is started instead of SGLang: its launch lines, the engines, and what a start raises."""
    said = SimpleNamespace(lines=[], started=[], events=DECODE, raises=None)

    @contextlib.contextmanager
    def offline_engine(line: list[str], folder: Path) -> Iterator[Engine]:
        said.lines.append(line)
        if said.raises is not None:
            os.write(2, b"ValueError: no such thing\n\n")
            raise said.raises
        said.started.append(Engine(folder, said.events))
        yield said.started[-1]

    monkeypatch.setattr(procedure, "offline_engine", offline_engine)
    monkeypatch.setattr(procedure, "ask_for_profile", lambda folder: None)
    return said


def profile(*words: object) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, words)])


def test_the_same_requests_are_asked_for_twice_and_the_second_are_traced(model: Path, engines):
    said = profile("--model", model, "--batch", 3, "--prefill", 5, "--decode", 2, "--tp", "2")
    assert said.exit_code == 0, said.output
    (engine,) = engines.started
    assert engine.asked == [(3, 5, 3), (3, 5, 3)]
    assert engine.called == ["start", "stop"]
    assert engines.lines == [["--model-path", str(model), "--tp", "2"]]
    assert "On ours in decode: 0.0 %." in said.stdout


def test_files_are_written_and_traces_kept_where_the_user_says(model: Path, engines, tmp_path: Path):
    files = (tmp_path / "p.json", tmp_path / "p.html")
    folder = tmp_path / "kept"
    said = profile("--model", model, "--json", files[0], "--html", files[1], "--folder", folder)
    assert said.exit_code == 0, said.output
    assert json.loads(files[0].read_text())["phases"][0]["phase"] == "decode"
    assert files[1].read_text().startswith("<!doctype html>")
    assert {path.name for path in folder.iterdir()} == {"engine.log", "trace.rank0.json"}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_folder_nothing_is_left(model: Path, engines, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert profile("--model", model).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("events", [[], DECODE[:1], DECODE[1:]], ids=["none", "no op", "no step"])
def test_a_trace_without_steps_is_code_3(model: Path, engines, events: list[dict[str, Any]]):
    engines.events = events
    said = profile("--model", model)
    assert said.exit_code == 3
    assert "sglang-fl: the traces hold no step in which anything ran" in said.stderr


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (SystemExit(1), "SGLang ended it with code 1: ValueError: no such thing"),
        (RuntimeError("a\nb"), "RuntimeError: a b"),
        (SettingsError("--dp-size 2: one replica"), "sglang-fl: --dp-size 2: one replica"),
    ],
)
def test_an_engine_that_does_not_start_is_code_2_and_one_line(model, engines, raised, words: str):
    engines.raises = raised
    said = profile("--model", model)
    assert said.exit_code == 2
    assert words in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.output


def test_ctrl_c_is_not_an_engine_that_does_not_start(model: Path, engines):
    engines.raises = KeyboardInterrupt()
    assert profile("--model", model).exit_code == 130


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--json", "no/folder/p.json"), "No such file or directory"),
        (("--html", "model"), "it is a folder"),
        (("--json", "p", "--html", "./p"), "--json and --html name the same file"),
        (("--folder", "model"), "it is not empty. Name a new folder"),
        (("--folder", "model/config.json"), "File exists"),
        (("--batch", "0"), "--batch"),
        (("--decode", "many"), "--decode"),
    ],
)
def test_what_cannot_be_written_or_asked_is_refused_before_an_engine_starts(
    model: Path, engines, tmp_path: Path, monkeypatch, words: tuple[str, ...], reason: str
):
    monkeypatch.chdir(tmp_path)
    said = profile("--model", model, *words)
    assert (said.exit_code, engines.lines) == (2, [])
    assert reason in said.stderr


def test_a_mistyped_model_is_told_at_once_and_imports_no_pytorch(tmp_path: Path):
    code = (
        "import sys; from sglang_fl.cli import app\n"
        "try: app(['profile', '--model', '/nope'])\n"
        "except SystemExit as ended: print(ended.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 False"
    assert "there is no such folder. Name the folder of a checkpoint." in done.stderr
