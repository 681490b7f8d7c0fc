"""The model runs on exact references, and its calls of each op are kept; once more for its ATen ops.

ATen ops are recorded beside what runs at present: a kernel of layer 2 takes others than its reference does.
"""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sglang_fl.settings import ATEN_CALLS, ROOM
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.calls import RecordedCall, recorded_calls
from sglang_fl.tune.engines import Launch, Load, started
from sglang_fl.tune.state import State
from sglang_fl.tune.subject import passes

__all__ = ["ATEN", "Recording"]

#: What stands for the ATen ops, which are recorded together, in the state.
ATEN = ("ATen ops",)

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
            references = ";".join(f"{op}=reference" for op in group)
            folder = self._folder(number)
            settings = {"SGLANG_FL_PER_OP": references, "SGLANG_FL_KEEP_CALLS": str(folder.resolve())}
            what = f"the calls of {', '.join(group)}"
            left_out = self._record(group, what, folder, settings, group, group)
            if left_out:
                return left_out
        return []

    def record_aten(self, ops: Collection[str]) -> list[str]:
        """Record the calls of ATen ops beside what runs at present; as ``record``.

        Parameters
        ----------
        ops : those that are to be measured; all are recorded
        """
        settings = {ATEN_CALLS: str(self._aten_folder.resolve())}
        return self._record(ATEN, "the calls of ATen ops", self._aten_folder, settings, ops)

    def aten_calls(self) -> dict[str, list[RecordedCall]]:
        """Return what has been recorded of each ATen op."""
        return recorded_calls(self._aten_folder)

    def calls(self, ops: Sequence[str], op: str) -> list[RecordedCall]:
        """Return what has been recorded of one of the ops."""
        number = next(number for number, group in enumerate(passes(ops)) if op in group)
        return recorded_calls(self._folder(number)).get(op, [])

    def _folder(self, number: int) -> Path:
        return self.state.calls / str(number)

    @property
    def _aten_folder(self) -> Path:
        return self.state.calls / "aten"

    def _record(
        self,
        group: Sequence[str],
        what: str,
        folder: Path,
        settings: Mapping[str, str],
        due: Collection[str],
        wanted: Sequence[str] = (),
    ) -> list[str]:
        """Record a group that is not recorded yet, or whose files are gone and due to be measured.

        Return what the minutes did not suffice for.
        """
        is_recorded = self.state.recorded(group) is not None
        if is_recorded and (folder.is_dir() or not self.state.has_unmeasured(group, due)):
            return []
        self.tell(f"recording {what}")
        try:
            seconds = self._run(folder, settings)
        except OutOfTimeError:
            return [f"{what}: the minutes were over"]
        found = {op: calls for op, calls in recorded_calls(folder).items() if not wanted or op in wanted}
        layers = {op: sorted({call.layer for call in calls if call.layer}) for op, calls in found.items()}
        self.state.keep_recorded(group, seconds, layers)
        return []

    def _run(self, folder: Path, settings: Mapping[str, str]) -> float:
        """Run the model once; return the seconds that its engine took to start."""
        shutil.rmtree(folder, ignore_errors=True)  # half of a run that was interrupted
        self.state.calls.mkdir(exist_ok=True, mode=0o700)
        half_of_the_disk = shutil.disk_usage(self.state.calls).free >> 21
        room = {ROOM: str(min(MOST_MIB, half_of_the_disk))}
        exact = {"USE_FLAGGEMS": "0"}  # PyTorch's own ATen ops
        log = self.state.folder / "recording.log"
        with started(self.launch, FLAGS, {**settings, **room, **exact}, log, self.budget) as engine:
            for load in self.loads:
                short = replace(load, new=min(load.new, MOST_TOKENS))
                for requests in sorted({1, load.requests}):
                    engine.throughput(replace(short, requests=requests))
            return engine.start_up
