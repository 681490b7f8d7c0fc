"""Processes that a twin forks: they find what a fresh interpreter finds, and end as it does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.twin import Twin, started

#: ``.pth`` files of third-party packages reorder the rest of the path.
SHOW = """
import os, sys

print(sys.argv, sys.orig_argv, sys.path[0], sorted({*sys.path}))
print(sorted(os.environ), os.getcwd(), __name__, sys.stdin.read())
print(sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering)
print([name for name in sys.modules if name.startswith(("sglang", "tests"))])
"""
IS_FORKED = "import sys; print('torch' in sys.modules)"


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with started() as twin:
        yield twin


@pytest.fixture
def forked(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "_fork_exec", twin.fork_exec)


def python(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("how", ["-c", "-m"])
def test_a_process_finds_what_a_fresh_interpreter_finds(twin, tmp_path: Path, monkeypatch, how: str):
    (tmp_path / "shown.py").write_text(SHOW)
    words = {"-c": ("-c", SHOW), "-m": ("-m", "shown")}[how]
    options = {"cwd": tmp_path, "input": "words", "env": {**os.environ, "PYTHONPATH": "/nowhere", "X": "x"}}
    fresh = python(*words, "--flag", **options)
    monkeypatch.setattr(subprocess, "_fork_exec", twin.fork_exec)
    done = python(*words, "--flag", **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == fresh.stdout.splitlines()
    assert "words" in done.stdout


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
        ("print('before'); 1 / 0", 1, "ZeroDivisionError"),
        ("import sys; sys.exit('the reason')", 1, "the reason"),
    ],
    ids=["exit", "signal", "error", "message"],
)
@pytest.mark.usefixtures("forked")
def test_a_process_ends_as_it_would_elsewhere(code: str, expected: int, said: str):
    done = python("-c", code)
    assert done.returncode == expected
    assert said in done.stderr


@pytest.mark.usefixtures("forked")
def test_a_process_is_the_child_of_the_one_that_asked_and_may_lead_a_session():
    code = "import os, sys; print(os.getppid(), os.getsid(0) == os.getpid(), flush=True); sys.stdin.read()"
    for leads in (True, False):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=leads,
        )
        assert process.stdout.readline() == f"{os.getpid()} {leads}\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
        assert process.communicate(timeout=20)[0] == ""  # nobody else holds the pipe


@pytest.mark.usefixtures("forked")
def test_what_it_starts_is_forked_too():
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {IS_FORKED!r}])"
    assert python("-c", code).stdout == "True\n"


@pytest.mark.usefixtures("forked")
def test_site_customization_is_run(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import torch\ntorch.is_customized = True\n")
    done = python("-c", "import torch; print(torch.is_customized)", env={"PYTHONPATH": str(tmp_path)})
    assert done.stdout == "True\n"


@pytest.mark.usefixtures("forked")
def test_what_would_be_loaded_otherwise_is_executed(tmp_path: Path):
    assert python("-c", IS_FORKED).stdout == "True\n"
    variable = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    (tmp_path / "torch.py").touch()
    another = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for options in ({"env": variable}, {"env": another}, {"cwd": tmp_path}, {"preexec_fn": lambda: None}):
        assert python("-c", IS_FORKED, **options).stdout == "False\n"
