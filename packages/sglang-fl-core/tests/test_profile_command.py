"""``sglang-fl profile`` around its engine: what is refused before it starts, and what is said of its end."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sglang_fl.cli import app
from sglang_fl.profiling import engine, procedure
from sglang_fl.profiling.engine import Asked
from sglang_fl.profiling.profile import Request
from sglang_fl.sglang_adapter import offline

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


@dataclass
class Processes:
    """What is run instead of a process with SGLang.

    Parameters
    ----------
    events : of the trace that it leaves
    code : its exit code
    reason : why it failed, as it leaves it; None: it leaves none
    log : what SGLang has printed
    asked : of each process that was run
    """

    events: list[dict[str, Any]] = field(default_factory=lambda: DECODE)
    code: int = 0
    reason: str | None = None
    log: str = ""
    asked: list[Asked] = field(default_factory=list)

    def run(self, folder: Path, say: Callable[[str], None]) -> int:
        self.asked.append(Asked.read(folder))
        say("a step")
        (folder / "engine.log").write_text(self.log)
        events = [{**event, "ts": 0, "dur": 10} for event in self.events]
        (folder / "trace.rank0.json").write_text(json.dumps({"traceEvents": events}))
        about = {"device": "cpu", "device_type": "cpu", "software": {"SGLang": "1"}, "our_ops": {}}
        (folder / "about.json").write_text(json.dumps(about))
        if self.reason is not None:
            (folder / "failed.json").write_text(json.dumps({"reason": self.reason}))
        return self.code


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Processes:
    processes = Processes()
    monkeypatch.setattr(procedure, "run_process", processes.run)
    return processes


def profile(*words: object) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, words)])


def test_what_the_user_says_is_asked_of_the_process(model: Path, engines: Processes):
    said = profile("--model", model, "--batch", 3, "--prefill", 5, "--decode", 2, "--tp", "2")
    assert said.exit_code == 0, said.output
    assert engines.asked == [Asked(str(model), 8, ("--tp", "2"), Request(3, 5, 2))]
    assert "On ours in decode: 0.0 %." in said.stdout
    assert "a step" in said.stderr


class Engine:
    """What ``run_engine`` asks of SGLang's engine."""

    def __init__(self) -> None:
        self.prompts: list[list[list[int]]] = []
        self.steps: list[str] = []

    def generate(self, prompts: list[list[int]], new_tokens: int, *, logprobs: bool) -> None:
        assert (new_tokens, logprobs) == (3, False)
        self.prompts.append(prompts)
        self.steps.append("generate")

    def call(self, method: str, step: str) -> None:
        self.steps.append(step)

    def answers(self, name: str) -> list[dict[str, str]]:
        return [{"device": "a chip", "device_type": "cpu"}]


def test_the_same_requests_are_asked_for_twice_and_the_second_are_traced(tmp_path: Path, monkeypatch):
    started, lines = Engine(), []

    @contextlib.contextmanager
    def offline_engine(line: list[str], folder: Path) -> Iterator[Engine]:
        lines.append(line)
        yield started

    monkeypatch.setattr(offline, "offline_engine", offline_engine)
    monkeypatch.setattr("sglang_fl.settings.ask_for_profile", lambda folder: None)
    engine.run_engine(Asked("model", 8, ("--tp", "2"), Request(3, 5, 2)), tmp_path, lambda step: None)
    assert started.steps == ["generate", "start", "generate", "stop"]
    assert started.prompts[0] == started.prompts[1]
    assert [len(prompt) for prompt in started.prompts[0]] == [5, 5, 5]
    assert lines == [["--model-path", "model", "--tp", "2"]]
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["device"] == "a chip"
    assert about["our_ops"]["RMSNorm"] == "rms_norm"


def test_files_are_written_and_traces_kept_where_the_user_says(
    model: Path, engines: Processes, tmp_path: Path, fits: Callable[[str, object], None]
):
    files = (tmp_path / "p.json", tmp_path / "p.html")
    folder = tmp_path / "kept"
    said = profile("--model", model, "--json-file", files[0], "--html", files[1], "--folder", folder)
    assert said.exit_code == 0, said.output
    assert "Written: " in said.stdout
    data = json.loads(files[0].read_text())
    assert data["phases"][0]["phase"] == "decode"
    fits("profile", data)
    assert files[1].read_text().startswith("<!doctype html>")
    assert {"engine.log", "trace.rank0.json"} <= {path.name for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_json_is_printed_and_nothing_else(model: Path, engines: Processes, tmp_path: Path):
    file = tmp_path / "p.json"
    said = profile("--model", model, "--json", "--json-file", file)
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["phases"]
    assert file.read_text() == said.stdout


def test_without_a_folder_nothing_is_left(model: Path, engines: Processes, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert profile("--model", model).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("events", [[], DECODE[:1], DECODE[1:]], ids=["none", "no op", "no step"])
def test_a_trace_without_steps_is_code_3(model: Path, engines: Processes, events: list[dict[str, Any]]):
    engines.events = events
    said = profile("--model", model)
    assert said.exit_code == 3
    assert "sglang-fl: the traces hold no step in which anything ran" in said.stderr


TRACEBACK = "Traceback (most recent call last):\n  File x\nValueError: no such thing\n\n"


@pytest.mark.parametrize(
    ("code", "reason", "log", "words"),
    [
        (2, "RuntimeError: a\nb", "", "RuntimeError: a b"),
        (2, "--dp-size 2: one replica", "", "measured: --dp-size 2: one replica"),
        (2, "", "launch_server: error: argument --tp\n\n", "code 2: launch_server: error: argument --tp"),
        (-9, None, f"{TRACEBACK}[0] Received sigquit\n", "signal 9: ValueError: no such thing"),
        (-9, None, "", "signal 9: it said nothing"),
    ],
)
def test_an_engine_that_does_not_start_is_code_2_and_one_line(
    model, engines: Processes, code: int, reason: str | None, log: str, words: str
):
    engines.code, engines.reason, engines.log = code, reason, log
    said = profile("--model", model)
    assert said.exit_code == 2
    assert said.stderr.splitlines()[-1].startswith("sglang-fl: the engine could not be measured: ")
    assert said.stderr.splitlines()[-1].endswith(words)


ENGINE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", sys.argv[1]])
os.write(int(sys.argv[2]), b"it runs\\n")
print("printed", flush=True)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("os._exit(0)", 0), ("os._exit(2)", 2), ("os.kill(os.getpid(), 9)", -9)],
    ids=["well", "badly", "by force"],
)
def test_a_process_tells_its_steps_and_its_code(tmp_path: Path, monkeypatch, end: str, code: int):
    stand_in(monkeypatch, tmp_path, f"{ENGINE}if {code == 0}: child.kill()\n{end}")
    steps: list[str] = []
    assert procedure.run_process(tmp_path, steps.append) == code
    assert steps == ["it runs"]
    assert (tmp_path / "engine.log").read_text() == "printed\n"
    assert gone(tmp_path)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(143)])
def test_whatever_ends_the_command_ends_the_process_and_what_it_has_started(tmp_path, monkeypatch, raised):
    stand_in(monkeypatch, tmp_path, f"{ENGINE}time.sleep(300)")

    def end(step: str) -> None:
        raise raised

    with pytest.raises(type(raised)):
        procedure.run_process(tmp_path, end)
    assert gone(tmp_path)


def test_a_command_that_is_killed_takes_its_engine_along(tmp_path: Path):
    Asked("model", 8, (), Request(1, 1, 1)).write(tmp_path)
    (tmp_path / "engine.py").write_text(
        "import time; from sglang_fl.profiling import engine\n"
        "def run(asked, folder, say): say('it runs'); time.sleep(300)\n"
        "engine.run_engine = run; engine.main()"
    )
    code = (
        "import sys; from pathlib import Path; from sglang_fl.profiling import procedure\n"
        "procedure.ENGINE = (sys.argv[1] + '/engine.py',)\n"
        "procedure.run_process(Path(sys.argv[1]), lambda step: print(step, flush=True))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "it runs\n"
        process.kill()
    assert gone(tmp_path)


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Run this instead of the module that runs the engine, with the same arguments."""
    script = folder / "engine.py"
    script.write_text(program)
    monkeypatch.setattr(procedure, "ENGINE", (str(script),))


def words_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


def gone(folder: Path) -> bool:
    """Wait until no process has this folder among its arguments."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        running = map(words_of, Path("/proc").glob("[0-9]*/cmdline"))
        if not any(str(folder).encode() in words for words in running):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--json-file", "no/folder/p.json"), "No such file or directory"),
        (("--html", "model"), "it is a folder"),
        (("--json-file", "p", "--html", "./p"), "--json-file and --html name the same file"),
        (("--html", "mine.yaml"), "--html 'mine.yaml' and SGLANG_FL_CONFIG='mine.yaml' are the same file"),
        (("--folder", "model"), "it is not empty. Name a new folder"),
        (("--folder", "model/config.json"), "File exists"),
        (("--batch", "0"), "--batch"),
        (("--decode", "many"), "--decode"),
    ],
)
def test_what_cannot_be_written_or_asked_is_refused_before_an_engine_starts(
    model: Path, engines: Processes, tmp_path: Path, monkeypatch, words: tuple[str, ...], reason: str
):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("strict: 1\n")
    monkeypatch.setenv("SGLANG_FL_CONFIG", "mine.yaml")
    said = profile("--model", model, *words)
    assert (said.exit_code, engines.asked) == (2, [])
    assert Path("mine.yaml").read_text() == "strict: 1\n"
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
