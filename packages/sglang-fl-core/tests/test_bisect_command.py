"""``sglang-fl bisect`` around its engine: the folder, the model, what is said where it cannot begin."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from sglang_fl.bisect import command
from sglang_fl.bisect.bench import Bench
from sglang_fl.bisect.verdict import Outcome, Verdict
from sglang_fl.cli import app
from sglang_fl.sglang_adapter import offline


@pytest.fixture(autouse=True)
def no_process_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "ask_for_bench", lambda folder: None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 8}')
    return folder


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the engines that were started; each leaves an answer, and finds nothing."""
    started: list[Path] = []

    @contextlib.contextmanager
    def offline_engine(line: list[str], folder: Path) -> Iterator[None]:
        started.append(folder)
        (folder / "step.rank0.json").write_text("{}")
        yield None

    found = Verdict(Outcome.NOTHING_FOUND, "nothing")
    monkeypatch.setattr(offline, "offline_engine", offline_engine)
    monkeypatch.setattr(command, "Bisection", lambda *_: SimpleNamespace(run=lambda: found))
    return started


def bisect(*words: object) -> tuple[int, dict[str, Any]]:
    said = CliRunner().invoke(app, ["bisect", "--json", *map(str, words)])
    assert isinstance(said.exception, SystemExit | None), said.exception
    return said.exit_code, json.loads(said.stdout)


@pytest.mark.usefixtures("forked")
def test_what_the_engine_prints_goes_to_its_log_and_the_steps_to_the_terminal(tmp_path, model):
    """In a process of its own: it is about descriptors, which pytest replaces."""
    code = (
        "import contextlib, os, subprocess, sys, types\n"
        "from sglang_fl.bisect import command\n"
        "from sglang_fl.bisect.verdict import Outcome, Verdict\n"
        "from sglang_fl.sglang_adapter import offline\n"
        "@contextlib.contextmanager\n"
        "def engine(line, folder):\n"
        "    print('printed'); subprocess.run([sys.executable, '-c', 'import os; os.write(2, b\"child\")'])\n"
        "    yield None\n"
        "def bisection(engine, method, tokens, steps):\n"
        "    steps.say('a step'); found = Verdict(Outcome.NOTHING_FOUND, 'nothing')\n"
        "    return types.SimpleNamespace(run=lambda: found)\n"
        "command.ask_for_bench = lambda folder: None\n"
        "offline.offline_engine, command.Bisection = engine, bisection\n"
        "from sglang_fl.cli import app\n"
        "app(sys.argv[1:])\n"
    )
    words = ("bisect", "--json", "--model", str(model), "--folder", str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert json.loads(done.stdout)["outcome"] == "nothing_found", done.stderr
    (log,) = (tmp_path / "out").glob("*/engine.log")
    assert [line for line in done.stderr.splitlines() if not line.startswith("bisect: ")] == [
        f"starting the engine; SGLang's log: {log}",
        f"if a kernel ends it: sglang-fl replay {log.with_name('calls')}",
        "starting the engine: it runs",
        "a step",
    ]
    assert log.read_text() == "printed\nchild" or log.read_text() == "childprinted\n"


def test_what_the_user_has_in_the_folder_stays_and_each_run_has_its_own(tmp_path, model, engines):
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    names = (
        "versions.json",
        "error.txt",
        "verdict.json",
        "reproduce-me.py",
        "step.rank0.json",
        "a.rank0.pt",
    )
    for name in names:
        (folder / name).write_text("mine")
    for _ in range(2):
        code, verdict = bisect("--model", model, "--folder", folder)
        assert (code, verdict["outcome"]) == (0, "nothing_found"), verdict
    runs = [path for path in folder.iterdir() if path.is_dir()]
    assert sorted(runs) == sorted(engines)
    assert {(folder / name).read_text() for name in names} == {"mine"}
    for run in runs:
        assert run.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in run.iterdir()} == {"engine.log", "verdict.json", "versions.json"}


def test_a_start_that_sglang_refuses_is_told_by_its_own_words(tmp_path, model, engines, monkeypatch):
    @contextlib.contextmanager
    def offline_engine(line: list[str], folder: Path) -> Iterator[None]:
        os.write(2, b"usage: launch_server\nlaunch_server: error: argument --tp: invalid int value\n\n")
        sys.exit(2)
        yield

    monkeypatch.setattr(offline, "offline_engine", offline_engine)
    code, verdict = bisect("--model", model, "--folder", tmp_path / "out")
    words = "launch_server: error: argument --tp: invalid int value"
    assert (code, verdict["outcome"]) == (2, "set_up_broken")
    assert verdict["summary"] == f"SGLang ended with code 2: {words}"


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300, "pipe"])
def test_a_folder_that_cannot_be_made_is_code_2_and_starts_no_engine(tmp_path, model, engines, name: str):
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    code, verdict = bisect("--model", model, "--folder", tmp_path / name)
    assert (code, verdict["outcome"], engines) == (2, "set_up_broken", [])
    assert verdict["summary"].startswith(f"--folder {str(tmp_path / name)!r}: no folder can be made in it: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_mistyped_model_leaves_no_folder_and_imports_no_pytorch(tmp_path):
    code = (
        "import sys; from sglang_fl.cli import app\n"
        "try: app(['bisect', '--model', '/nope', '--folder', sys.argv[1]])\n"
        "except SystemExit as ended: print(ended.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "2 False"
    assert not (tmp_path / "runs").exists()


def test_a_page_lies_beside_the_verdict_whatever_that_says(tmp_path, model, engines, monkeypatch, fits):
    words = ("--model", model, "--folder", tmp_path / "out", "--html")
    said = CliRunner().invoke(app, ["bisect", *map(str, words), "--dtype", "<half>"])
    assert said.exit_code == 0, said.output
    (page,) = (tmp_path / "out").glob("*/verdict.html")
    assert f"The steps as a page: {page}" in said.stdout
    assert "nothing found: nothing" in page.read_text()
    assert f"--model {model} --dtype &lt;half&gt;" in page.read_text()

    def refused(*_: object) -> None:
        raise RuntimeError("no <engine>")

    monkeypatch.setattr(offline, "offline_engine", refused)
    code, verdict = bisect(*words)
    assert (code, [step["asks"] for step in verdict["steps"]]) == (2, ["start"])
    fits("bisect", verdict)
    text = Path(verdict["folder"], "verdict.html").read_text()
    assert "set up broken: RuntimeError: no &lt;engine&gt;" in text
    assert "it did not end" in text


def test_the_steps_by_hand_have_no_page(model):
    said = CliRunner().invoke(app, ["bisect", "--plan", "--html", "--model", str(model)])
    assert said.exit_code == 2
    assert "--html is of a bisection" in said.stderr


def test_a_report_that_cannot_be_written_does_not_lose_the_verdict(tmp_path, model, engines, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_report", full)
    code, verdict = bisect("--model", model, "--folder", tmp_path)
    assert (code, verdict["outcome"]) == (0, "nothing_found")
    (limit,) = verdict["limits"]
    assert limit.endswith("cannot be written: No space left on device")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "there is no such folder"),
        ("", "config.json: No such file or directory"),
        (
            "{",
            "config.json: it is no JSON: line 1, column 2: ",
        ),
        ("[]", "its config.json names no vocab_size that is a number"),
        ('{"text_config": 3}', "its config.json names no vocab_size that is a number"),
    ],
)
def test_a_model_that_is_none_is_told_in_a_second(tmp_path, engines, config: str | None, reason: str):
    model = tmp_path / "model"
    if config is not None:
        model.mkdir()
    if config:
        (model / "config.json").write_text(config)
    begin = time.monotonic()
    code, verdict = bisect("--model", model, "--folder", tmp_path / "out")
    assert time.monotonic() - begin < 1
    assert (code, engines) == (2, [])
    assert verdict["summary"].startswith(f"--model {str(model)!r}: {reason}")
    assert verdict["summary"].endswith(". Name the folder of a checkpoint.")


def test_the_plan_quotes_the_model(tmp_path, monkeypatch):
    folder = tmp_path / "my model; rm -rf x"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 8}')
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["bisect", "--plan", "--model", folder.name, "--dtype", "a b"])
    commands = [line for line in said.stdout.splitlines() if not line.startswith("#")]
    assert commands
    assert all("--model-path 'my model; rm -rf x' --dtype 'a b'" in line for line in commands)


@pytest.mark.parametrize("secret", ["rms_norm", "no_such_step", "silu_and_mul"])
def test_processes_tell_each_other_names_that_happen_to_be_secrets(tmp_path, monkeypatch, secret: str):
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    check: Any = SimpleNamespace()
    bench = Bench(tmp_path, SimpleNamespace(ops={secret: ["layer"]}), check, lambda: (), "cpu")  # type: ignore[arg-type]
    bench.do(secret)
    (answer,) = tmp_path.iterdir()
    assert json.loads(answer.read_text())["step"] == secret


def test_a_wrong_setting_is_the_verdict(tmp_path: Path, model: Path):
    """In a process that has not imported SGLang, whose import ends it where a setting is wrong."""
    words = ("bisect", "--json", "--model", str(model), "--folder", str(tmp_path / "out"))
    settings = {**os.environ, "SGLANG_FL_PREFER": "gpu"}
    done = subprocess.run(
        [sys.executable, "-m", "sglang_fl", *words], env=settings, capture_output=True, text=True
    )
    assert done.returncode == 2
    verdict = json.loads(done.stdout)
    assert verdict["summary"].startswith("SGLANG_FL_PREFER='gpu': no such backend kind. Valid: flagos, ")
    assert not (tmp_path / "out").exists()
