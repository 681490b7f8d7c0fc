"""The steps of a run: record what the model calls, measure each op, let the engine decide.

Each step keeps what it has measured in the state before the next begins. What the minutes do not suffice for
is left out and named.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sglang_fl.settings.policy import SGLANG
from sglang_fl.tune.aten_decide import change_list
from sglang_fl.tune.aten_procedure import AtenTuning
from sglang_fl.tune.aten_subject import AtenSubject
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.calls import spread
from sglang_fl.tune.decide import Compared, Measured, OpVerdict, Starts, compare_engines, decide_op
from sglang_fl.tune.engines import Launch, Load
from sglang_fl.tune.op_runs import measure_op
from sglang_fl.tune.recording import ATEN, Recording
from sglang_fl.tune.sides import CONTROL, LAYER_1, PRESENT, Alternative, Outcome, alternatives, decide_engines
from sglang_fl.tune.state import State
from sglang_fl.tune.subject import Subject, passes
from sglang_fl.tune.text import Report
from sglang_fl.tune.trials import Trials

__all__ = ["Options", "Tuning"]

#: How many times the recording engine's start one engine is expected to take, and seconds beside it.
START_FACTOR, BESIDE_START = 1.5, 20.0
#: Engines for which the measuring of ops leaves time: present choice, control, and one other.
LEFT_FOR = 3
#: The most that they are left, of all that is left: what is known of the ops is worth something alone.
MOST_LEFT = 0.5
#: The name of the choice that is measured once more as a whole.
WHOLE = "whole"
OVER = "the minutes that the engines leave were over"


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Parameters
    ----------
    rounds : starts of each engine
    repetitions : of each workload in one start
    with_sglang : whether SGLang's own path is tried in the place of each of our kernels
    with_layer_1 : whether the ATen ops that are replaced at present are tried as PyTorch's
    loads : the workloads, decode-heavy ones and prefills
    is_cuda : whether calls can be timed in CUDA graphs
    """

    rounds: int
    repetitions: int
    with_sglang: bool
    with_layer_1: bool
    loads: tuple[Load, ...]
    is_cuda: bool


@dataclass
class Tuning:
    """One run.

    Parameters
    ----------
    launch : the model and its launch line
    subjects : the ops that have something to choose from
    aten : the ATen ops, likewise
    state : what has been measured so far
    budget : what it may take
    options : how much is measured
    kept : what stood in the user's file before, by key
    say : called with each step
    """

    launch: Launch
    subjects: Sequence[Subject]
    aten: AtenSubject
    state: State
    budget: Budget
    options: Options
    kept: Mapping[str, Any]
    say: Callable[[str], None]
    _unmeasured: list[str] = field(default_factory=list)

    def run(self) -> Report:
        """Carry out the steps.

        Raises
        ------
        EngineEndedError : the engine that records, or that of the present choice, does not start
        """
        recording = Recording(self.launch, self.options.loads, self.state, self.budget, self._tell)
        self._unmeasured += recording.record(self._ops)
        if self.aten.ops:
            self._unmeasured += recording.record_aten(self.aten.ops)
        of_engines = min(LEFT_FOR * self._seconds_of_an_engine, MOST_LEFT * self.budget.left)
        budget = self.budget.less(of_engines)
        found = {subject.op: self._measured(subject, recording, budget) for subject in self.subjects}
        uncalled = self._uncalled()
        verdicts = [
            self._verdict(subject, found[subject.op])
            for subject in self.subjects
            if subject.op not in uncalled
        ]
        aten = AtenTuning(self.aten, recording, self.state, self.options.is_cuda, self._tell)
        aten.measure(budget)
        self._unmeasured += aten.left_out
        if all(self.state.measured(op) for op in self.state.layers if op in (*self._ops, *self.aten.ops)):
            shutil.rmtree(self.state.calls, ignore_errors=True)  # they are large, and of no more use
        counts = {op: measured.calls for op, measured in found.items() if measured}
        report = Report({}, [*verdicts, *aten.verdicts], {**counts, **aten.calls}, kept=self.kept)
        report = self._decided(report)
        return replace(report, uncalled=uncalled, unmeasured=tuple(self._unmeasured))

    def _uncalled(self) -> tuple[str, ...]:
        """Return the ops of which nothing was found though they were recorded."""
        recorded = (
            op for group in passes(self._ops) if self.state.recorded(group) is not None for op in group
        )
        return tuple(op for op in recorded if op not in self.state.layers)

    @property
    def _ops(self) -> list[str]:
        return [subject.op for subject in self.subjects]

    def _tell(self, text: str) -> None:
        self.say(f"tune, {self.budget} left: {text}")

    @property
    def _seconds_of_an_engine(self) -> float:
        known = [self.state.recorded(group) or 0.0 for group in (*passes(self._ops), ATEN)]
        return START_FACTOR * max(known, default=0.0) + BESIDE_START

    def _measured(self, subject: Subject, recording: Recording, budget: Budget) -> Measured | None:
        """Return what is known of an op's calls, measured if it was not; None where nothing can be."""
        found = self.state.measured(subject.op)
        if found is not None or subject.op not in self.state.layers:
            return found
        if budget.left:
            calls = spread(recording.calls(self._ops, subject.op))
            many = f"{len(subject.targets)} implementations at {len(calls)} calls"
            self._tell(f"measuring {subject.op}: {many}")
            found = measure_op(subject, calls, budget, self.options.is_cuda)
        if budget.left and found is not None:
            self.state.keep_measured(found)
        else:
            self._unmeasured.append(f"{subject.op}: {OVER}")
        return found

    def _verdict(self, subject: Subject, found: Measured | None) -> OpVerdict:
        if found is not None:
            verdict = decide_op(found)
            return replace(verdict, others={**verdict.others, **subject.skipped})
        reason = "not measured: the minutes were over"
        return OpVerdict(subject.op, subject.present, None, None, reason, dict(subject.skipped))

    def _decided(self, report: Report) -> Report:
        called = [verdict for verdict in report.verdicts if report.calls.get(verdict.op)]
        ops = [verdict for verdict in called if not verdict.is_aten]
        aten = change_list(
            [verdict for verdict in called if verdict.is_aten], self.aten.replaced, self.aten.lifted
        )
        tried = alternatives(ops, self.options.with_sglang, self.options.with_layer_1, aten)
        if not tried:
            nothing = "Nothing is faster by more than its error" if called else "Nothing was measured"
            return replace(report, conclusion=f"{nothing}: all stays as it is.")
        trials = Trials(
            self.launch,
            self.options.loads,
            self.options.repetitions,
            self.options.rounds,
            self._seconds_of_an_engine,
            self.state.layers,
            self.kept,
            self.state,
            self.budget,
            self._tell,
            self._unmeasured,
        )
        try:
            starts = trials.starts(tried)
        except OutOfTimeError:
            told = "\n".join(self._unmeasured)
            due = [side for side in tried if f"engine {side.name}: " not in told]
            self._unmeasured += [f"engine {side.name}: the minutes were over" for side in due]
            return replace(report, conclusion="No engine could be measured: all stays as it is.")
        return self._concluded(report, trials, [side for side in tried if side.name in starts], starts)

    def _concluded(
        self, report: Report, trials: Trials, run: Sequence[Alternative], starts: Mapping[str, Starts]
    ) -> Report:
        outcome = decide_engines(run, starts)
        report = replace(
            report,
            engines={str(side): outcome.compared[side.name] for side in run if side.name in outcome.compared},
            control=outcome.control,
            reasons=_reasons(run, outcome, report.verdicts),
            beside_sglang=_beside_sglang(run, starts, report.verdicts),
        )
        if outcome.orders and outcome.whole is None:
            return self._whole(report, trials, outcome)
        if outcome.whole is None:
            nothing = "The engine confirms nothing that is faster: all stays as it is."
            return replace(report, conclusion=nothing)
        return replace(report, orders=self._that_ran(outcome.orders), conclusion=_confirmed(outcome.whole))

    def _whole(self, report: Report, trials: Trials, outcome: Outcome) -> Report:
        """Measure a choice that was confirmed in parts, as the whole that it is."""
        side = Alternative(WHOLE, outcome.orders)
        try:
            starts = trials.starts([side], suffix=f" with {sorted(outcome.orders.items())}")
        except OutOfTimeError:
            self._unmeasured.append("engine whole: the minutes were over")
            parts = "What was confirmed in parts was not measured together: all stays as it is."
            return replace(report, conclusion=parts)
        again = decide_engines([side], starts)
        compared = {str(side): found for found in again.compared.values()}
        report = replace(report, engines={**report.engines, **compared}, control=again.control)
        if again.whole is None:
            whole = "The engine does not confirm the choice as a whole: all stays as it is."
            return replace(report, conclusion=whole)
        return replace(report, orders=self._that_ran(outcome.orders), conclusion=_confirmed(again.whole))

    def _that_ran(self, orders: Mapping[str, str]) -> dict[str, str]:
        """Leave out of the list of ATen ops what no engine was seen to run: nothing speaks for it."""
        names = orders.get(LAYER_1, "0").split(",")
        known = {*self.aten.replaced, *self.state.ran}
        kept = [name for name in names if name in known or name.startswith("!") or name == "0"]
        return {**orders, LAYER_1: ",".join(kept)} if LAYER_1 in orders else dict(orders)


def _confirmed(found: Compared) -> str:
    return f"In the engine this choice has {found} times the speed of the present one."


def _reasons(run: Sequence[Alternative], outcome: Outcome, verdicts: Sequence[OpVerdict]) -> dict[str, str]:
    """Say of each op that an engine of its own has decided, what that has shown."""
    reasons = {}
    for side in run:
        if side.op not in ("", LAYER_1) and side.name in outcome.compared:
            order = side.orders[side.op].partition("|")[0].removeprefix("impl:")
            verdict = next(verdict for verdict in verdicts if verdict.op == side.op)
            own = verdict.best if verdict.gain is not None else verdict.present
            told = f"in the engine {order} has {outcome.compared[side.name]} times the speed of {own}"
            reasons[side.op] = f"{verdict.reason}; {told}"
    return reasons


def _beside_sglang(
    run: Sequence[Alternative], starts: Mapping[str, Starts], verdicts: Sequence[OpVerdict]
) -> dict[str, tuple[str, Compared]]:
    """Return of each implementation that was measured beside SGLang's own path, how fast it was."""
    found = {}
    for side in run:
        verdict = next((verdict for verdict in verdicts if verdict.op == side.op), None)
        if verdict is None or not starts.get(side.name) or not starts.get(side.beside):
            continue
        own, other = starts[side.beside], starts[side.name]
        if side.orders[side.op] == SGLANG:
            own, other = other, own
        control = (starts[PRESENT], starts[CONTROL])
        impl = verdict.best or verdict.present
        found[side.op] = (impl, compare_engines(own, other, control))
    return found
