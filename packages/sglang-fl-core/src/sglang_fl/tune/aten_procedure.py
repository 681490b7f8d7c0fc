"""The steps for ATen ops up to their verdicts: measure those of which a call was recorded, one by one."""

from collections.abc import Callable
from dataclasses import dataclass

from sglang_fl.tune.aten_decide import decide_aten
from sglang_fl.tune.aten_runs import AtenRuns, NoKernelsError
from sglang_fl.tune.aten_subject import AtenSubject
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.calls import spread
from sglang_fl.tune.decide import OpVerdict
from sglang_fl.tune.recording import Recording
from sglang_fl.tune.state import State

__all__ = ["AtenTuning"]


@dataclass
class AtenTuning:
    """Measures ATen ops.

    Parameters
    ----------
    subject : the ops
    recording : of their calls
    state : what has been measured so far
    is_cuda : whether calls can be timed in CUDA graphs
    tell : called with each step
    unmeasured : why something could not be measured; else empty
    """

    subject: AtenSubject
    recording: Recording
    state: State
    is_cuda: bool
    tell: Callable[[str], None]
    unmeasured: str = ""

    @property
    def called(self) -> list[str]:
        """The ops of which a call was recorded."""
        return [op for op in self.subject.ops if op in self.state.layers]

    def measure(self, budget: Budget) -> None:
        """Measure what is not measured yet; ``unmeasured`` says why something cannot be."""
        due = self._due
        if not due:
            return
        calls = self.recording.aten_calls()
        self.tell(f"measuring {len(due)} ATen ops")
        try:
            with AtenRuns(self.state.folder / "aten.log", self.is_cuda) as runs:
                for op in due:
                    present = self.subject.present(op)
                    self.state.keep_measured(runs.measure(op, present, spread(calls[op]), budget))
        except OutOfTimeError:
            self.unmeasured = "the minutes that the engines leave were over"
        except NoKernelsError as error:
            self.unmeasured = str(error)

    @property
    def _due(self) -> list[str]:
        return [op for op in self.called if self.state.measured(op) is None]

    @property
    def left_out(self) -> list[str]:
        """What could not be measured, and why, in a line."""
        return [f"{', '.join(self._due)}: {self.unmeasured}"] if self.unmeasured else []

    @property
    def calls(self) -> dict[str, int]:
        """At how many calls each op was measured."""
        return {op: found.calls for op in self.called if (found := self.state.measured(op)) is not None}

    @property
    def verdicts(self) -> list[OpVerdict]:
        """What follows for each op of which a call was recorded."""
        return [self._verdict(op) for op in self.called]

    def _verdict(self, op: str) -> OpVerdict:
        found = self.state.measured(op)
        if found is not None:
            return decide_aten(found)
        return OpVerdict(op, self.subject.present(op), None, None, f"not measured: {self.unmeasured}")
