"""Which kept calls are wrong, or end their process, and how few rows show it."""

import json
import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_fl.diagnostics.doctor.child import Child, last_line, run_python
from sglang_fl.errors import SettingsError
from sglang_fl.progress import Count

__all__ = ["FOUND", "GOOD", "NOTHING", "replay"]

GOOD, FOUND, NOTHING = 0, 1, 3
#: What reading a file raises that is none of ours, or was cut off.
_NO_CALL = (
    *(OSError, EOFError, LookupError, TypeError, AttributeError, RuntimeError),
    pickle.UnpicklingError,
)
#: States in which a call is not as it should be.
BAD = ("ends its process", "hangs", "raised", "wrong")


@dataclass(frozen=True)
class _Kept:
    """What a file says of its call, without the tensors' contents.

    Parameters
    ----------
    path : of the file
    op, implementation, layer : as in the dispatch log
    shapes : of its tensors, for people
    rows : how many rows it has; 0 where rows cannot be taken out
    never_returned : whether the process ended while it ran
    """

    path: Path
    op: str
    implementation: str
    layer: str
    shapes: str
    rows: int
    never_returned: bool


@dataclass(frozen=True)
class _Answer:
    state: str
    text: str

    @property
    def is_bad(self) -> bool:
        return self.state in BAD


def replay(
    folder: Path, op: str | None, seconds: float, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], int]:
    """Run kept calls again, those that never came back first, each in a process of its own.

    Parameters
    ----------
    folder : of ``SGLANG_FL_KEEP_CALLS``
    op : only calls of this op; None for all
    seconds : for each call, after which it hangs
    say : told of each call before it is run

    Returns
    -------
    (list of dict, int) : a row for each call; 0 where those that could be judged are right, 1 where one is
        not, 3 where none could

    Raises
    ------
    SettingsError : the folder has no kept calls, or one cannot be read
    """
    kept = [call for call in _calls(folder) if op in (None, call.op)]
    count, rows = Count(len(kept)), []
    for call in kept:
        say(count.next(f"{call.op} {call.implementation}"))
        answer = _run(call, seconds)
        fewest = _fewest(call, answer, seconds) if answer.is_bad else ""
        rows.append(
            {
                "op": call.op,
                "implementation": call.implementation,
                "layer": call.layer,
                "shapes": call.shapes,
                "came_back": not call.never_returned,
                "now": answer.state,
                "what": answer.text,
                "fewest_rows": fewest,
                "file": str(call.path.relative_to(folder)),
            }
        )
    states = {row["now"] for row in rows}
    if states & {*BAD}:
        return rows, FOUND
    return rows, GOOD if "right" in states else NOTHING


def _calls(folder: Path) -> list[_Kept]:
    from sglang_fl.dispatch.kept_calls import kept_files

    files = kept_files(folder)
    if not files:
        raise SettingsError(
            f"{str(folder)!r}: no kept calls. Start the server with SGLANG_FL_KEEP_CALLS={folder}, and give "
            "this folder."
        )
    return [_read(path) for path in files]


def _read(path: Path) -> _Kept:
    import torch

    from sglang_fl.ops import OPS

    try:
        found = torch.load(path, weights_only=True, mmap=True)
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__}")
        tensors = {name: tuple(v["size"]) for name, v in found["arguments"].items() if isinstance(v, dict)}
        op, implementation, layer = OPS[found["op"]], found["implementation"], found["layer"]
        return _kept(path, op, implementation, layer, tensors)
    except _NO_CALL as error:
        lines = str(error).splitlines()[:1]
        raise SettingsError(f"{path}: no kept call: {': '.join([type(error).__name__, *lines])}") from None


def _kept(path: Path, op: Any, implementation: str, layer: str, tensors: dict[str, tuple[int, ...]]) -> _Kept:
    from sglang_fl.dispatch.kept_calls import RUNNING

    axes = {name: axis for name, axis in op.rows.items() if name in tensors}
    has_own_rows = bool(axes) and op.sequences is None and not op.bounds
    return _Kept(
        path,
        op.name,
        implementation,
        layer,
        ", ".join(f"{name} {tuple(size)}" for name, size in tensors.items()),
        min(tensors[name][axis] for name, axis in axes.items()) if has_own_rows else 0,
        path.name.endswith(RUNNING),
    )


def _run(call: _Kept, seconds: float, first: int = 0, count: int = 0) -> _Answer:
    code = f"from sglang_fl.diagnostics.replay.call import run; run({str(call.path)!r}, {first}, {count})"
    return _answer(run_python(code, seconds), seconds)


def _answer(child: Child, seconds: float) -> _Answer:
    if child.code is None:
        return _Answer("hangs", f"not done after {seconds:g} s")
    if child.code < 0:
        return _Answer("ends its process", signal.Signals(-child.code).name)
    lines = child.output.splitlines()
    if child.code or not lines:
        return _Answer("not judged", last_line(child.errors))
    said = json.loads(lines[-1])
    return _Answer(said["state"], said["text"])


def _fewest(call: _Kept, answer: _Answer, seconds: float) -> str:
    """Return how few rows are as bad, ``3 (from 0)``; empty where rows cannot be taken out."""
    if not call.rows:
        return ""
    first, count = 0, _smallest(call.rows, lambda count: _is_as_bad(call, answer, seconds, 0, count))
    if count == call.rows:  # the bad ones may be the last
        count = _smallest(
            call.rows, lambda count: _is_as_bad(call, answer, seconds, call.rows - count, count)
        )
        first = call.rows - count
    return f"{count} (from {first})"


def _is_as_bad(call: _Kept, answer: _Answer, seconds: float, first: int, count: int) -> bool:
    return _run(call, seconds, first, count).state == answer.state


def _smallest(rows: int, is_as_bad: Callable[[int], bool]) -> int:
    """Return how many rows are as bad as all: twice as many each time, then halves in between."""
    few, count = 0, 1
    while count < rows and not is_as_bad(count):
        few, count = count, 2 * count
    count = min(count, rows)
    while count - few > 1:
        middle = (count + few) // 2
        few, count = (few, middle) if is_as_bad(middle) else (middle, count)
    return count
