"""Engines that are told what to do by lines, in the place of SGLang's a few lines of Python."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sglang_fl.diagnostics.doctor import child
from sglang_fl.tune import engines
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.engines import EngineEndedError, Launch, Load, started

LAUNCH = Launch("model", ("--tp", "2"), 8)
DECODE = Load("decode", 4, 16, 32)
ANSWERS = "import sys\nprint(1.5, flush=True)\nfor line in sys.stdin: print(0.5, flush=True)"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, subprocess.Popen]]:
    """``program.append(code)`` before a start makes this the engine; afterwards the code and the process."""
    seen: list = []

    def start(arguments: list[str], *others: Any) -> subprocess.Popen:
        process = child.start(("-c", seen.pop()), *others)
        seen.append((arguments[1], process))
        return process

    monkeypatch.setattr(engines, "start", start)
    return seen


def test_an_engine_answers_with_tokens_a_second_and_is_gone_at_the_end(program: list, tmp_path: Path):
    program.append(ANSWERS)
    with started(LAUNCH, ("--flag",), {}, tmp_path / "log", Budget(1)) as engine:
        assert engine.start_up == 1.5
        assert engine.throughput(DECODE) == 4 * 32 / 0.5
        assert engine.throughput(Load("prefill", 2, 100, 1)) == 2 * 100 / 0.5
    code, process = program[0]
    assert process.returncode == 0
    assert code.endswith("serve(['--model-path', 'model', '--tp', '2'], ['--flag'], 8)")


def test_an_engine_that_ends_is_told_with_the_last_line_of_its_log(program: list, tmp_path: Path):
    program.append("raise ValueError('no such model')")
    with (
        pytest.raises(
            EngineEndedError, match="the engine ended with code 1: ValueError: no such model; its log"
        ),
        started(LAUNCH, (), {}, tmp_path / "log", Budget(1)),
    ):
        pass


def test_an_engine_that_ends_under_a_workload_is_told(program: list, tmp_path: Path):
    program.append("import os, sys; print(1.0, flush=True); sys.stdin.readline(); os.abort()")
    with (
        pytest.raises(EngineEndedError, match="the engine ended with code -6"),
        started(LAUNCH, (), {}, tmp_path / "log", Budget(1)) as engine,
    ):
        engine.throughput(DECODE)


def test_an_engine_that_does_not_answer_in_time_is_ended(program: list, tmp_path: Path):
    program.append("import time; time.sleep(100)")
    with (
        pytest.raises(OutOfTimeError, match="the minutes are over"),
        started(LAUNCH, (), {}, tmp_path / "log", Budget(0.01)),
    ):
        pass
    assert program[0][1].returncode == -9


def test_an_interrupt_ends_the_engine(program: list, tmp_path: Path):
    program.append(ANSWERS)
    with pytest.raises(KeyboardInterrupt), started(LAUNCH, (), {}, tmp_path / "log", Budget(1)):
        raise KeyboardInterrupt
    assert program[0][1].returncode == -9


def test_a_workload_says_what_it_is():
    assert str(DECODE) == "decode (4 x 16 in, 32 out)"
