"""The model runs once on exact references, and its calls of each op are kept."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sglang_fl.settings import ROOM
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.calls import RecordedCall, recorded_calls
from sglang_fl.tune.engines import Launch, Load, started
from sglang_fl.tune.state import State
from sglang_fl.tune.subject import passes

__all__ = ["Recording"]

#: Calls that a graph replays are not seen, and a cached prefix is not computed.
FLAGS = ("--disable-cuda-graph", "--disable-radix-cache", "--skip-server-warmup")
#: New tokens of the requests that are recorded.
MOST_TOKENS = 3
#: MiB of kept calls: the weights of all experts of a layer are part of a call of theirs.
MOST_MIB = 16384


@dataclass(frozen=True)
class Recording:
    """Records the calls of some ops.

    Parameters
    ----------
    launch : the model and its launch line
    loads : the workloads whose shapes are recorded
    state : where the calls are kept
    budget : what it may take
    tell : called with each step
    """

    launch: Launch
    loads: Sequence[Load]
    state: State
    budget: Budget
    tell: Callable[[str], None]

    def record(self, ops: Sequence[str]) -> list[str]:
        """Record what is not recorded yet; return what the minutes did not suffice for.

        Raises
        ------
        EngineEndedError : the engine does not start
        """
        for number, group in enumerate(passes(ops)):
            if self.state.recorded(group) is not None:
                continue
            self.tell(f"recording the calls of {', '.join(group)}")
            try:
                folder = self._folder(number)
                seconds = self._record(group, folder)
                found = {op: calls for op, calls in recorded_calls(folder).items() if op in group}
                layers = {op: sorted({call.layer for call in calls}) for op, calls in found.items()}
                self.state.keep_recorded(group, seconds, layers)
            except OutOfTimeError:
                return [f"the calls of {', '.join(group)}: the minutes were over"]
        return []

    def calls(self, ops: Sequence[str], op: str) -> list[RecordedCall]:
        """Return what has been recorded of one of the ops."""
        number = next(number for number, group in enumerate(passes(ops)) if op in group)
        return recorded_calls(self._folder(number)).get(op, [])

    def _folder(self, number: int) -> Path:
        return self.state.calls / str(number)

    def _record(self, group: Sequence[str], folder: Path) -> float:
        """Run the model on the references of some ops; return the seconds that its engine took to start."""
        shutil.rmtree(folder, ignore_errors=True)  # half of a run that was interrupted
        self.state.calls.mkdir(exist_ok=True, mode=0o700)
        half_of_the_disk = shutil.disk_usage(self.state.calls).free >> 21
        settings = {
            "SGLANG_FL_PER_OP": ";".join(f"{op}=reference" for op in group),
            "SGLANG_FL_KEEP_CALLS": str(folder.resolve()),
            ROOM: str(min(MOST_MIB, half_of_the_disk)),
            "USE_FLAGGEMS": "0",  # the references must be exact
        }
        log = self.state.folder / "recording.log"
        with started(self.launch, FLAGS, settings, log, self.budget) as engine:
            for load in self.loads:
                short = replace(load, new=min(load.new, MOST_TOKENS))
                for requests in sorted({1, load.requests}):
                    engine.throughput(replace(short, requests=requests))
            return engine.start_up
