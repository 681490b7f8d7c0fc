"""Try something in a Python process of its own, which can neither hang doctor nor bring it down."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from sglang_fl.diagnostics.doctor.foreign import child_environment

__all__ = ["Child", "end", "last_line", "run_python", "start"]


@dataclass(frozen=True)
class Child:
    """How a process ended.

    Parameters
    ----------
    code : its exit code, or None where it was ended because its time was over
    output : standard output
    errors : standard error
    """

    code: int | None
    output: str
    errors: str


def run_python(code: str, seconds: float, extra: Mapping[str, str] | None = None) -> Child:
    """Run Python code as ``python -c`` in the working directory, for so many seconds at most."""
    process = start(("-c", code), extra, subprocess.PIPE, subprocess.PIPE)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(process)
        return Child(None, *_rest(process))
    finally:
        if process.poll() is None:  # Ctrl-C: it reaches no process of another session
            end(process)
            process.wait()
    return Child(process.returncode, output, errors)


def start(
    arguments: Sequence[str],
    extra: Mapping[str, str] | None,
    output: int | IO[str],
    errors: int | IO[str],
    commands: int = subprocess.DEVNULL,
) -> "subprocess.Popen[str]":
    """Start Python as the leader of a session of its own, which Ctrl-C does not reach; the caller ends it.

    Parameters
    ----------
    arguments : of Python
    extra : more of the environment, for it alone
    output, errors, commands : as ``subprocess`` takes ``stdout``, ``stderr`` and ``stdin``
    """
    pressed: list[int] = []
    # In the middle of Popen an interrupt would leave a process that nobody knows and nobody ends. Only the
    # main thread is interrupted.
    own = signal.getsignal(signal.SIGINT)
    is_held = threading.current_thread() is threading.main_thread() and callable(own)
    if is_held:
        signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=child_environment(extra),
            stdin=commands,
            stdout=output,
            stderr=errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    finally:
        if is_held:
            signal.signal(signal.SIGINT, own)
    if pressed:
        end(process)
        process.wait()
        signal.raise_signal(signal.SIGINT)
    return process


def _rest(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return what an ended process has written; a grandchild that fled its session may hold the pipes."""
    try:
        return process.communicate(timeout=2)
    except subprocess.TimeoutExpired:
        return "", ""


def end(process: "subprocess.Popen[str]") -> None:
    """End a process and all that it has started; it must lead a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def last_line(text: str) -> str:
    """Return the last line with anything on it: of a traceback, the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("- ")[:300] if lines else "no message"
