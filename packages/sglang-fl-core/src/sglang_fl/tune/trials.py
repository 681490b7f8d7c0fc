"""Engines with other choices beside those of the present one: started in turn, told the same workloads.

Only what was measured in one run of the command is compared: another hour, device or neighbour on the host
may make more of a difference than a kernel does. So a round of starts, one of each engine, is kept where it
is whole, and measured anew where an engine is missing.

The first round begins with the present choice, its control and the first alternative. What these have taken
says for how many of the others there is time.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_fl.settings.policy import SGLANG
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.engines import EngineEndedError, Launch, Load, started
from sglang_fl.tune.sides import CONTROL, PRESENT, Alternative
from sglang_fl.tune.state import State
from sglang_fl.tune.text import Report, as_yaml

__all__ = ["Trials"]

FLAGS = ("--skip-server-warmup",)
WARM_UPS = 1
#: The engines that are compared in any case: the present choice, its control, and one other. As many are
#: started again to measure a choice as a whole.
TOGETHER = 3


@dataclass
class Trials:
    """Starts engines and keeps what they do.

    Parameters
    ----------
    launch : the model and its launch line
    loads : the workloads
    repetitions : of each workload in one start
    rounds : starts of each engine
    seconds : that one start takes at most, with its workloads, as far as the recording can tell
    layers : of each op, the layer classes that call it
    kept : what stood in the user's file before, by key
    state : where it is kept
    budget : what it may take
    tell : called with each step
    unmeasured : filled with what was left out, and why
    """

    launch: Launch
    loads: Sequence[Load]
    repetitions: int
    rounds: int
    seconds: float
    layers: Mapping[str, Sequence[str]]
    kept: Mapping[str, Any]
    state: State
    budget: Budget
    tell: Callable[[str], None]
    unmeasured: list[str]
    _failed: set[str] = field(default_factory=set)
    _took: list[float] = field(default_factory=list)

    def starts(
        self, tried: Sequence[Alternative], suffix: str = ""
    ) -> dict[str, list[dict[str, list[float]]]]:
        """Start every engine so many times, in a random order in each round; return what was measured.

        Alternatives for which the minutes do not suffice are left out and named, the last ones first.

        Parameters
        ----------
        tried : the alternatives; the present choice and its control are started beside them
        suffix : tells these starts from others of the same names

        Raises
        ------
        OutOfTimeError : not even one round of the present choice, its control and an alternative is complete
        EngineEndedError : the engine of the present choice does not start
        """
        first = [Alternative(PRESENT, {}), Alternative(CONTROL, {}), *tried[:1]]
        more = self._worth_starting(first, tried[1:], suffix)
        is_recorded = any(side.added for side in tried)  # of all sides or none: the record takes time
        draw = random.Random(7)

        def start(sides: Sequence[Alternative]) -> None:
            for side in draw.sample(sides, len(sides)):
                if side.name not in self._failed:
                    self._start(side, suffix, is_recorded)

        try:
            for number in range(self.rounds):
                due = [side for side in (*first, *more) if side.name not in self._failed]
                if all(len(self.state.starts(side.name + suffix)) > number for side in due):
                    continue
                self.state.forget_starts([side.name + suffix for side in (*first, *tried)], number)
                if number:
                    start([*first, *more])
                else:
                    start(first)
                    more = self._affordable(more)
                    start(more)
        except OutOfTimeError:
            self.unmeasured.append("further starts of the engines: the minutes were over")
        found = {side.name: self.state.starts(side.name + suffix) for side in (*first, *more)}
        failed = {*found} <= {PRESENT, CONTROL, *self._failed}
        others = any(found[name] for name in found if name not in (PRESENT, CONTROL))
        if not (found[PRESENT] and found[CONTROL] and (failed or others)):
            raise OutOfTimeError("the minutes are over")
        return found

    def _worth_starting(
        self, first: Sequence[Alternative], more: Sequence[Alternative], suffix: str
    ) -> list[Alternative]:
        """Return the further alternatives, but only those of an earlier run where all would take too long."""
        many = {side.name: len(self.state.starts(side.name + suffix)) for side in (*first, *more)}
        left_out = [side for side in more if not many[side.name]]
        is_begun = all(many[side.name] for side in first)
        if not (is_begun and left_out) or self.seconds * self.rounds * len(many) <= self.budget.left:
            return list(more)
        self._leave_out(left_out)
        return [side for side in more if many[side.name]]

    def _affordable(self, more: Sequence[Alternative]) -> list[Alternative]:
        """Return the alternatives for which there is time, by what engines have taken so far.

        There must be time for the further rounds, and to measure the choices of several once more together.
        """
        each = max(self._took, default=self.seconds)
        left = self.budget.left - each * TOGETHER * (2 * self.rounds - 1)
        many = next((n for n in range(len(more), 0, -1) if each * self.rounds * n <= left), 0)
        self._leave_out(more[many:])
        return list(more[:many])

    def _leave_out(self, sides: Sequence[Alternative]) -> None:
        self.unmeasured += [f"engine {side.name}: the minutes do not suffice" for side in sides]

    def _start(self, side: Alternative, suffix: str, is_recorded: bool) -> None:
        self.tell(f"the engine of {side.name}{', as a whole' if suffix else ''}")
        self.budget.require(max(self._took, default=self.seconds / 2))
        left = self.budget.left
        log, ran = self.state.folder / "engines.log", self.state.folder / "dispatch.log"
        record = self.state.folder / "aten_record.log"
        for file in (ran, record):
            file.unlink(missing_ok=True)
        settings = {"SGLANG_FL_DISPATCH_LOG": str(ran.resolve())}
        if is_recorded:
            recorded = {"SGLANG_FLAGGEMS_RECORD": "1", "SGLANG_FLAGGEMS_LOG_PATH": str(record.resolve())}
            settings |= {**recorded, "SGLANG_FLAGGEMS_LOG_ONCE": "1"}
        if side.orders:
            file = self.state.folder / "tried.yaml"
            file.write_text(as_yaml(Report({}, (), {}, orders=side.orders, kept=self.kept)))
            settings["SGLANG_FL_CONFIG"] = str(file.resolve())
        try:
            with started(self.launch, FLAGS, settings, log, self.budget) as engine:
                figures = {
                    load.name: [engine.throughput(load) for _ in range(WARM_UPS + self.repetitions)]
                    for load in self.loads
                }
        except EngineEndedError as error:
            if side.name in (PRESENT, CONTROL):
                raise
            self._fail(side, str(error))
            return
        self._took.append(left - self.budget.left)
        ran_aten = set(side.added) & _recorded(record)
        missing = _why_not_run(side, ran, self.layers)
        if side.added and not ran_aten:
            missing = (
                missing or f"none of {', '.join(side.added)} ran on the vendor's kernel: see engines.log"
            )
        if missing:
            self._fail(side, missing)
        else:
            kept = {name: values[WARM_UPS:] for name, values in figures.items()}
            self.state.keep_ran(ran_aten)
            self.state.keep_start(side.name + suffix, kept)

    def _fail(self, side: Alternative, reason: str) -> None:
        self._failed.add(side.name)
        self.unmeasured.append(f"engine {side.name}: {reason}")


def _why_not_run(side: Alternative, log: Path, layers: Mapping[str, Sequence[str]]) -> str:
    """Say which implementation an engine should have run by its log and has not; empty if there is none."""
    lines = log.read_text().splitlines() if log.exists() else []
    for op, order in side.orders.items():
        impl = order.partition("|")[0].removeprefix("impl:")
        of_op = [line for line in lines if any(f" {layer} " in line for layer in layers.get(op, ()))]
        if impl != SGLANG and layers.get(op) and not any(f"({impl})" in line for line in of_op):
            return f"{op} did not run on {impl}, which failed or refused a call: see engines.log"
    return ""


def _recorded(log: Path) -> set[str]:
    """Return the exact names of the ATen ops in a record of layer 1."""
    lines = log.read_text().splitlines() if log.exists() else []
    names = (line.rpartition(" ")[2] for line in lines)
    return {name if "." in name else f"{name}.default" for name in names}
