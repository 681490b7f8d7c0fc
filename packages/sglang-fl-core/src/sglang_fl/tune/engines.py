"""SGLang's engine in a process of its own, told by lines which workload to run."""

import json
import os
import selectors
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sglang_fl.diagnostics.doctor.child import end, last_line, start
from sglang_fl.errors import SglangFlError
from sglang_fl.tune.budget import Budget, OutOfTimeError

__all__ = ["EngineEndedError", "Launch", "Load", "ToldEngine", "started"]

#: Seconds in which an engine that is told to end must have done so.
PATIENCE = 30.0


class EngineEndedError(SglangFlError):
    """An engine has ended without an answer."""


@dataclass(frozen=True)
class Launch:
    """What all engines of a run have in common.

    Parameters
    ----------
    model : the folder of the checkpoint
    arguments : of SGLang's launch line, beside the model
    vocabulary : how many tokens there are
    """

    model: str
    arguments: tuple[str, ...]
    vocabulary: int


@dataclass(frozen=True)
class Load:
    """So many requests at once.

    Parameters
    ----------
    name : for people
    requests, prompt, new : their number, tokens of each prompt, tokens to generate
    """

    name: str
    requests: int
    prompt: int
    new: int

    @property
    def tokens(self) -> int:
        """Tokens that count: new ones, or those of the prompts where a prefill is measured."""
        return self.requests * (self.prompt if self.new == 1 else self.new)

    def __str__(self) -> str:
        return f"{self.name} ({self.requests} x {self.prompt} in, {self.new} out)"


class ToldEngine:
    """A running engine.

    Parameters
    ----------
    process : that of ``sglang_adapter.told_engine``
    log : where SGLang prints
    budget : no answer is awaited longer
    """

    def __init__(self, process: "subprocess.Popen[str]", log: Path, budget: Budget) -> None:
        self._process = process
        self._log = log
        self._budget = budget
        self._read = b""
        self.start_up = self._answer()

    def throughput(self, load: Load) -> float:
        """Run a workload once; return tokens a second.

        Raises
        ------
        EngineEndedError : it has ended
        OutOfTimeError : the minutes are over
        """
        assert self._process.stdin is not None
        order = {"requests": load.requests, "prompt": load.prompt, "new": load.new}
        with suppress(BrokenPipeError):  # the answer says that it has ended
            self._process.stdin.write(f"{json.dumps(order)}\n")
            self._process.stdin.flush()
        return load.tokens / self._answer()

    def _answer(self) -> float:
        while b"\n" not in self._read:
            self._read += self._more()
        line, _, self._read = self._read.partition(b"\n")
        return float(line)

    def _more(self) -> bytes:
        assert self._process.stdout is not None
        number = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(number, selectors.EVENT_READ)
            if not selector.select(self._budget.left):
                raise OutOfTimeError("the minutes are over")
        text = os.read(number, 1 << 16)
        if not text:
            code = self._process.wait()
            said = last_line(self._log.read_text(errors="replace"))
            raise EngineEndedError(f"the engine ended with code {code}: {said}; its log: {self._log}")
        return text


@contextmanager
def started(
    launch: Launch, flags: Sequence[str], settings: Mapping[str, str], log: Path, budget: Budget
) -> Iterator[ToldEngine]:
    """Start an engine; it and all that it has started are gone at the end, whatever happens.

    Parameters
    ----------
    launch : the model and its launch line
    flags : further ones
    settings : more of the environment, for it alone
    log : where SGLang prints; what is there stays
    budget : how long it may take

    Raises
    ------
    EngineEndedError : it did not start
    OutOfTimeError : the minutes are over
    """
    line = ["--model-path", launch.model, *launch.arguments]
    code = (
        "from sglang_fl.sglang_adapter.told_engine import serve; "
        f"serve({line!r}, {list(flags)!r}, {launch.vocabulary})"
    )
    with log.open("a") as errors:
        process = start(("-c", code), settings, subprocess.PIPE, errors, subprocess.PIPE)
    try:
        yield ToldEngine(process, log, budget)
        _let_end(process)
    finally:
        end(process)
        process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):
                stream and stream.close()


def _let_end(process: "subprocess.Popen[str]") -> None:
    """Let an engine give back what it holds of the device; it is ended if it does not."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=PATIENCE)
