"""The steps of a run: record what the model calls, measure each op, let the engine decide.

Each step keeps what it has measured in the state before the next begins. What the minutes do not suffice for
is left out and named.
"""

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sglang_fl.settings.policy import SGLANG
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.calls import RecordedCall, recorded_calls, spread
from sglang_fl.tune.decide import Compared, OpVerdict, compare_engines, decide_op
from sglang_fl.tune.engines import EngineEndedError, Launch, Load, started
from sglang_fl.tune.op_runs import measure_op
from sglang_fl.tune.sides import (
    CONTROL,
    PRESENT,
    Alternative,
    Outcome,
    alternatives,
    decide_engines,
)
from sglang_fl.tune.state import State
from sglang_fl.tune.subject import Subject, passes
from sglang_fl.tune.text import Report, as_yaml

__all__ = ["Options", "Tuning"]

#: Calls that a graph replays are not seen, and a cached prefix is not computed.
RECORDING = ("--disable-cuda-graph", "--disable-radix-cache", "--skip-server-warmup")
MEASURING = ("--skip-server-warmup",)
#: New tokens of the requests that are recorded.
RECORDED_TOKENS = 3
WARM_UPS = 1
#: How many times the recording engine's start one engine is expected to take, and seconds beside it.
START_FACTOR, BESIDE_START = 1.5, 20.0
#: The name of the choice that is measured once more as a whole.
WHOLE = "whole"


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Parameters
    ----------
    rounds : starts of each engine
    repetitions : of each workload in one start
    with_sglang : whether SGLang's own path is tried in the place of each of our kernels
    loads : the workloads, decode-heavy ones and prefills
    is_cuda : whether calls can be timed in CUDA graphs
    """

    rounds: int
    repetitions: int
    with_sglang: bool
    loads: tuple[Load, ...]
    is_cuda: bool


@dataclass
class Tuning:
    """One run.

    Parameters
    ----------
    launch : the model and its launch line
    subjects : the ops that have something to choose from
    state : what has been measured so far
    budget : what it may take
    options : how much is measured
    kept : what stood in the user's file before, by key
    say : called with each step
    """

    launch: Launch
    subjects: Sequence[Subject]
    state: State
    budget: Budget
    options: Options
    kept: Mapping[str, Any]
    say: Callable[[str], None]
    _unmeasured: list[str] = field(default_factory=list)
    _ended: dict[str, str] = field(default_factory=dict)

    def run(self) -> Report:
        """Carry out the steps.

        Raises
        ------
        EngineEndedError : the engine that records, or that of the present choice, does not start
        """
        self._record()
        calls = self._calls()
        verdicts = [self._verdict(subject, calls.get(subject.op, [])) for subject in self.subjects]
        report = Report({}, verdicts, {op: len(found) for op, found in calls.items()}, kept=self.kept)
        return replace(self._decided(report), unmeasured=tuple(self._unmeasured))

    def _tell(self, text: str) -> None:
        self.say(f"tune, {self.budget} left: {text}")

    def _record(self) -> None:
        for number, group in enumerate(passes([subject.op for subject in self.subjects])):
            if self.state.recorded(group) is not None:
                continue
            folder = self.state.calls / str(number)
            shutil.rmtree(folder, ignore_errors=True)  # half of a run that was interrupted
            self._tell(f"recording the calls of {', '.join(group)}")
            try:
                self.state.keep_recorded(group, self._record_group(group, folder))
            except OutOfTimeError:
                self._unmeasured.append(f"the calls of {', '.join(group)}: the minutes were over")

    def _record_group(self, group: Sequence[str], folder: Path) -> float:
        """Run the model on the references of some ops; return the seconds that its engine took to start."""
        self.state.calls.mkdir(exist_ok=True, mode=0o700)
        settings = {
            "SGLANG_FL_PER_OP": ";".join(f"{op}=reference" for op in group),
            "SGLANG_FL_KEEP_CALLS": str(folder.resolve()),
            "USE_FLAGGEMS": "0",  # the references must be exact
        }
        log = self.state.folder / "recording.log"
        with started(self.launch, RECORDING, settings, log, self.budget) as engine:
            for load in self.options.loads:
                short = replace(load, new=min(load.new, RECORDED_TOKENS))
                for requests in sorted({1, load.requests}):
                    engine.throughput(replace(short, requests=requests))
            return engine.start_up

    def _calls(self) -> dict[str, list[RecordedCall]]:
        found: dict[str, list[RecordedCall]] = {}
        for number, group in enumerate(passes([subject.op for subject in self.subjects])):
            recorded = recorded_calls(self.state.calls / str(number))
            found |= {op: spread(calls) for op, calls in recorded.items() if op in group}
        return found

    def _verdict(self, subject: Subject, calls: Sequence[RecordedCall]) -> OpVerdict:
        found = self.state.measured(subject.op)
        if found is None and not calls:
            reason = "no call of the model was recorded: it makes none, or one is larger than what is kept"
            return OpVerdict(subject.op, subject.present, None, None, reason, dict(subject.skipped))
        budget = self.budget.less(2 * self._seconds_of_an_engine)
        if found is None and not budget.left:
            self._unmeasured.append(f"{subject.op}: the minutes that the engines leave were over")
            reason = "not measured: the minutes were over"
            return OpVerdict(subject.op, subject.present, None, None, reason, dict(subject.skipped))
        if found is None:
            self._tell(
                f"measuring {subject.op}: {len(subject.targets)} implementations at {len(calls)} calls"
            )
            found = measure_op(subject, calls, budget, self.options.is_cuda)
            if budget.left:
                self.state.keep_measured(found)
            else:
                self._unmeasured.append(f"{subject.op}: the minutes that the engines leave were over")
        verdict = decide_op(found)
        return replace(verdict, others={**verdict.others, **subject.skipped})

    @property
    def _seconds_of_an_engine(self) -> float:
        known = (self.state.recorded(group) for group in passes([s.op for s in self.subjects]))
        return START_FACTOR * max((seconds or 0.0 for seconds in known), default=0.0) + BESIDE_START

    def _decided(self, report: Report) -> Report:
        called = [verdict for verdict in report.verdicts if report.calls.get(verdict.op)]
        tried = alternatives(called, self.options.with_sglang)
        if not tried:
            return replace(report, conclusion="Nothing is faster by more than its error: all stays as it is.")
        run = self._affordable(tried)
        try:
            starts = self._starts(run)
            outcome = decide_engines(run, starts)
        except OutOfTimeError:
            self._unmeasured += [f"engine {side.name}: the minutes were over" for side in tried]
            return replace(report, conclusion="No engine could be measured: all stays as it is.")
        return self._concluded(report, run, outcome, starts)

    def _affordable(self, tried: Sequence[Alternative]) -> Sequence[Alternative]:
        """Return the alternatives for which there is time, the first of them first."""
        needed = {
            side.name: self._seconds_of_an_engine * (self.options.rounds - len(self.state.starts(side.name)))
            for side in (Alternative(PRESENT, {}), Alternative(CONTROL, {}), *tried)
        }
        left = self.budget.left - needed[PRESENT] - needed[CONTROL]
        run = []
        for side in tried:
            left -= needed[side.name]
            if left < 0 and run:
                self._unmeasured.append(f"engine {side.name}: the minutes do not suffice")
            else:
                run.append(side)
        return run

    def _starts(
        self, run: Sequence[Alternative], suffix: str = ""
    ) -> dict[str, list[dict[str, list[float]]]]:
        """Start every engine so many times, in a random order in each round; return what was measured.

        Raises
        ------
        OutOfTimeError : not even one round of the present choice, its control and one alternative is complete
        """
        sides = [Alternative(PRESENT, {}), Alternative(CONTROL, {}), *run]
        draw = random.Random(7)
        try:
            for number in range(self.options.rounds):
                for side in draw.sample(sides, len(sides)):
                    if len(self.state.starts(side.name + suffix)) <= number and side.name not in self._ended:
                        self._start(side, suffix)
        except OutOfTimeError:
            self._unmeasured.append("further starts of the engines: the minutes were over")
        starts = {side.name: self.state.starts(side.name + suffix) for side in sides}
        if not (starts[PRESENT] and starts[CONTROL] and any(starts[side.name] for side in run)):
            raise OutOfTimeError("the minutes are over")
        return starts

    def _start(self, side: Alternative, suffix: str) -> None:
        self._tell(f"the engine of {side.name}{suffix and ', once more'}")
        self.budget.require(self._seconds_of_an_engine / START_FACTOR / 2)
        file = self.state.folder / "tried.yaml"
        settings = {}
        if side.orders:
            file.write_text(as_yaml(Report({}, (), {}, orders=side.orders, kept=self.kept)))
            settings = {"SGLANG_FL_CONFIG": str(file.resolve())}
        log = self.state.folder / "engines.log"
        try:
            with started(self.launch, MEASURING, settings, log, self.budget) as engine:
                figures = {
                    load.name: [engine.throughput(load) for _ in range(WARM_UPS + self.options.repetitions)]
                    for load in self.options.loads
                }
        except EngineEndedError as error:
            if side.name in (PRESENT, CONTROL):
                raise
            self._ended[side.name] = str(error)
            return
        kept = {name: values[WARM_UPS:] for name, values in figures.items()}
        self.state.keep_start(side.name + suffix, kept)

    def _concluded(
        self,
        report: Report,
        run: Sequence[Alternative],
        outcome: Outcome,
        starts: Mapping[str, list[dict[str, list[float]]]],
    ) -> Report:
        self._unmeasured += [f"engine {name}: {text}" for name, text in self._ended.items()]
        report = replace(
            report,
            engines=outcome.compared,
            control=outcome.control,
            reasons=_reasons(run, outcome, report.verdicts),
            beside_sglang=_beside_sglang(run, starts, report.verdicts),
        )
        if outcome.orders and outcome.confirmed is None:
            return self._whole(report, outcome)
        if outcome.confirmed is None:
            return replace(
                report, conclusion="The engine confirms nothing that is faster: all stays as it is."
            )
        found = outcome.compared[outcome.confirmed]
        return replace(report, orders=outcome.orders, conclusion=_confirmed(found))

    def _whole(self, report: Report, outcome: Outcome) -> Report:
        """Measure a choice that was confirmed in parts, as the whole that it is."""
        side = Alternative(WHOLE, outcome.orders)
        suffix = f" with {sorted(outcome.orders.items())}"
        try:
            again = decide_engines([side], self._starts([side], suffix))
        except OutOfTimeError:
            self._unmeasured.append("engine whole: the minutes were over")
            return replace(
                report, conclusion="What was confirmed in parts was not measured together: all stays."
            )
        engines = {**report.engines, **again.compared}
        report = replace(report, engines=engines, control=again.control)
        if again.confirmed is None:
            return replace(report, conclusion="The engine does not confirm the choice as a whole: all stays.")
        return replace(report, orders=outcome.orders, conclusion=_confirmed(again.compared[WHOLE]))


def _confirmed(found: Compared) -> str:
    return f"In the engine this choice runs at {found} of the speed of the present one."


def _reasons(run: Sequence[Alternative], outcome: Outcome, verdicts: Sequence[OpVerdict]) -> dict[str, str]:
    """Say of each op that an engine of its own has decided, what that has shown."""
    reasons = {}
    for side in run:
        if side.op and side.name in outcome.compared:
            order = side.orders[side.op].partition("|")[0].removeprefix("impl:")
            verdict = next(verdict for verdict in verdicts if verdict.op == side.op)
            told = f"in the engine {order} is {outcome.compared[side.name]} of its speed"
            reasons[side.op] = f"{verdict.reason}; {told}"
    return reasons


def _beside_sglang(
    run: Sequence[Alternative],
    starts: Mapping[str, list[dict[str, list[float]]]],
    verdicts: Sequence[OpVerdict],
) -> dict[str, tuple[str, Compared]]:
    """Return of each implementation that was measured beside SGLang's own path, how fast it was."""
    found = {}
    for side in run:
        verdict = next((verdict for verdict in verdicts if verdict.op == side.op), None)
        if verdict is None or not starts.get(side.name) or not starts.get(side.beside):
            continue
        own, other = starts[side.beside], starts[side.name]
        impl = verdict.best or verdict.present
        if side.orders[side.op] == SGLANG:
            own, other = other, own
        count = min(len(own), len(other))
        control = (starts[PRESENT], starts[CONTROL])
        found[side.op] = (impl, compare_engines(own[:count], other[:count], control))
    return found
