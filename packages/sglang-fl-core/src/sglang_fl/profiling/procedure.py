"""From a model and launch arguments to a profile: a process that runs the engine, and what its traces say."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sglang_fl.errors import SglangFlError
from sglang_fl.profiling.engine import ABOUT, FAILED, Asked
from sglang_fl.profiling.profile import Profile
from sglang_fl.profiling.shares import phases_of
from sglang_fl.profiling.steps import Steps, steps_of
from sglang_fl.profiling.trace import read_trace
from sglang_fl.sglang_adapter.terminal import last_error

__all__ = ["LOG", "EngineError", "NoStepsError", "profile_model", "run_process"]

#: What SGLang prints goes here, in the folder of the traces.
LOG = "engine.log"
#: What runs the engine.
ENGINE = ("-m", "sglang_fl.profiling.engine")
#: Seconds that the process has to end what it has started.
PATIENCE = 30.0


class EngineError(SglangFlError):
    """The engine did not start, or ended."""


class NoStepsError(SglangFlError):
    """The engine ran, and the traces hold no step in which anything ran."""


def profile_model(asked: Asked, folder: Path, say: Callable[[str], None]) -> Profile:
    """Run an engine and measure what its steps spend their time on.

    Parameters
    ----------
    asked : of which model, and what
    folder : for traces and SGLang's log; an empty one
    say : called with each step

    Raises
    ------
    EngineError : the settings are wrong, as a start would say; the engine did not start, or ended
    NoStepsError : there is nothing to measure in the traces
    """
    asked.write(folder)
    code = run_process(folder, say)
    if code:
        raise EngineError(f"the engine could not be measured: {_reason(folder, code)}")
    say("reading the traces")
    try:
        ranks = [_where_something_ran(steps_of(read_trace(path))) for path in _traces(folder)]
    except ValueError as error:
        raise NoStepsError(f"the traces cannot be read: {error}") from error
    if not any(rank.steps for rank in ranks):
        raise NoStepsError("the traces hold no step in which anything ran")
    return _profile(asked, ranks, json.loads((folder / ABOUT).read_text()))


def run_process(folder: Path, say: Callable[[str], None]) -> int:
    """Run ``engine`` in a process of its own, and return its exit code; it is gone whatever happens."""
    reading, writing = os.pipe()
    command = [sys.executable, *ENGINE, str(folder), str(writing)]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # open for as long as this process is there
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,  # Ctrl-C reaches it once, from here, while it ends its own processes
        )
    os.close(writing)
    with _gone_at_the_end(process), os.fdopen(reading) as steps:
        for step in steps:
            say(step.rstrip("\n"))
        return process.wait()


@contextmanager
def _gone_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process and all of its group, gently first, where it has not ended well by itself."""
    former = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    except BaseException:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        raise
    finally:
        if process.poll() != 0:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
        signal.signal(signal.SIGTERM, former)


def _reason(folder: Path, code: int) -> str:
    """Return why a process has ended: what it has left, or what stands in its log."""
    failed = folder / FAILED
    reason = json.loads(failed.read_text())["reason"] if failed.exists() else ""
    how = f"SGLang ended it by signal {-code}" if code < 0 else f"SGLang ended it with code {code}"
    return reason or f"{how}: {last_error(folder / LOG)}"


def _traces(folder: Path) -> list[Path]:
    return sorted(folder.glob("trace.rank*.json"))


def _where_something_ran(rank: Steps) -> Steps:
    return Steps(tuple(step for step in rank.steps if step.stretches), rank.is_device, rank.outside)


def _profile(asked: Asked, ranks: list[Steps], about: dict[str, Any]) -> Profile:
    return Profile(
        asked.model,
        asked.arguments,
        asked.request,
        software=about["software"],
        device=about["device"],
        device_type=about["device_type"],
        ranks=len(ranks),
        is_device=any(rank.is_device for rank in ranks),
        phases=phases_of(ranks),
        outside_us=sum(rank.outside for rank in ranks),
        our_ops=about["our_ops"],
    )
