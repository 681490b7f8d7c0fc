"""SGLang's engine in a process of its own, told by lines which workload to run."""

import functools
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_fl.diagnostics.doctor.child import end, last_line, start
from sglang_fl.errors import SglangFlError
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.conversation import Conversation, ProcessEndedError, TooLongError

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
        self._conversation = Conversation(process)
        self._log = log
        self._budget = budget
        self.start_up = self._seconds(self._conversation.answer)

    def throughput(self, load: Load) -> float:
        """Run a workload once; return tokens a second.

        Raises
        ------
        EngineEndedError : it has ended
        OutOfTimeError : the minutes are over
        """
        order = {"requests": load.requests, "prompt": load.prompt, "new": load.new}
        return load.tokens / self._seconds(functools.partial(self._conversation.ask, order))

    def _seconds(self, ask: Callable[[float], Any]) -> float:
        try:
            return float(ask(self._budget.left))
        except TooLongError:
            raise OutOfTimeError("the minutes are over") from None
        except ProcessEndedError as error:
            said = last_line(self._log.read_text(errors="replace"))
            text = f"the engine ended with code {error.code}: {said}; its log: {self._log}"
            raise EngineEndedError(text) from None


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
        Conversation(process).close()


def _let_end(process: "subprocess.Popen[str]") -> None:
    """Let an engine give back what it holds of the device; it is ended if it does not."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=PATIENCE)
