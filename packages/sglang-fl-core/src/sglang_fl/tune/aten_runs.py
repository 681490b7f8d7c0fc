"""Have kernels of ATen ops judged and timed in a process that they may bring down, one op after the other."""

import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sglang_fl.diagnostics.doctor.child import end, last_line, start
from sglang_fl.errors import SglangFlError
from sglang_fl.tune.aten_decide import KERNEL
from sglang_fl.tune.budget import Budget
from sglang_fl.tune.calls import RecordedCall
from sglang_fl.tune.conversation import Conversation, ProcessEndedError, TooLongError
from sglang_fl.tune.decide import RIGHT, Judged, Measured, Timed

__all__ = ["AtenRuns", "NoKernelsError"]

_CODE = "from sglang_fl.tune.aten_bench import serve; serve()"
#: Seconds for one call, in which a kernel may be tuned, and for the import of the kernel library.
LONGEST, IMPORT = 300.0, 300.0


class NoKernelsError(SglangFlError):
    """The kernel library cannot be imported."""


class AtenRuns:
    """The process that measures; it is started when it is needed, and again after a kernel has ended it.

    Parameters
    ----------
    log : where it prints; what is there stays
    is_cuda : whether graphs can be tried
    """

    def __init__(self, log: Path, is_cuda: bool) -> None:
        self._log = log
        self._is_cuda = is_cuda
        self._process: subprocess.Popen[str] | None = None
        self._conversation: Conversation

    def __enter__(self) -> "AtenRuns":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def measure(self, op: str, present: str, calls: Sequence[RecordedCall], budget: Budget) -> Measured:
        """Judge the kernel of an op at all calls, and time it beside PyTorch's own if it is exact.

        Parameters
        ----------
        op : its exact name: ``aten::mul.Tensor``
        present : whose runs now, ``PYTORCH`` or ``KERNEL``
        calls : the recorded ones
        budget : what is left

        Raises
        ------
        OutOfTimeError : it did not suffice
        NoKernelsError : the kernel library cannot be imported
        """
        judged = self._judged(op, calls, budget)
        if judged.state != RIGHT:
            return Measured(op, present, {KERNEL: judged}, calls=len(calls))
        timed = []
        for call in calls:
            said = self._timed(op, call, budget)
            if isinstance(said, Judged):
                trouble = f"its times could not be taken: {said}"
                return Measured(op, present, {KERNEL: judged}, trouble=trouble, calls=len(calls))
            timed.append(said)
        return Measured(op, present, {KERNEL: judged}, tuple(timed), calls=len(calls))

    def _judged(self, op: str, calls: Sequence[RecordedCall], budget: Budget) -> Judged:
        """Return the first finding against a kernel; else that it is right, and what was not tried."""
        notes = []
        for call in calls:
            said = self._asked(budget, op=op, file=str(call.path))
            found = said if isinstance(said, Judged) else Judged(said["state"], said["text"])
            if found.state != RIGHT:
                return found
            notes.append(found.text)
        return Judged(RIGHT, next(filter(None, notes), ""))

    def _timed(self, op: str, call: RecordedCall, budget: Budget) -> Timed | Judged:
        """Return the times of a call, in graphs where they can be captured; or how the process ended."""
        for graphs in (True, False) if self._is_cuda else (False,):
            said = self._asked(budget, op=op, file=str(call.path), graphs=graphs)
            if isinstance(said, Judged):
                return said
            if not said["trouble"]:
                return Timed(call.shapes, said["how"], said["times"])
        raise AssertionError("without graphs there is no trouble")

    def _asked(self, budget: Budget, **order: Any) -> Judged | dict[str, Any]:
        """Return the answer, or how the process ended."""
        self._start(budget)
        answer: Judged | dict[str, Any] = self._told(
            lambda seconds: self._conversation.ask(order, seconds), LONGEST, budget
        )
        if isinstance(answer, dict) and answer["is_spoiled"]:
            self._end()
        return answer

    def _start(self, budget: Budget) -> None:
        if self._process is not None:
            return
        budget.require()
        with self._log.open("a") as errors:
            self._process = start(("-c", _CODE), None, subprocess.PIPE, errors, subprocess.PIPE)
        self._conversation = Conversation(self._process)
        ready = self._told(self._conversation.answer, IMPORT, budget)
        if isinstance(ready, Judged):
            raise NoKernelsError(f"the ATen kernels cannot be imported: {ready}; see {self._log}")

    def _told(self, ask: Callable[[float], Any], longest: float, budget: Budget) -> Any:
        """Return an answer, or how the process ended.

        Raises
        ------
        OutOfTimeError : the minutes are over
        """
        budget.require()
        try:
            return ask(min(longest, budget.left))
        except TooLongError:
            self._end()
            budget.require()
            return Judged("hangs", f"not done after {longest:g} s")
        except ProcessEndedError as error:
            self._end()
            if error.code < 0:
                return Judged("ends its process", signal.Signals(-error.code).name)
            return Judged("raised", last_line(self._log.read_text(errors="replace")))

    def _end(self) -> None:
        if self._process is None:
            return
        end(self._process)
        self._process.wait()
        self._conversation.close()
        self._process = None
