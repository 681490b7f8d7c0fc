"""Judge and time implementations of one op at recorded calls; this is the process that they may bring down.

Each answer is a line of JSON behind ``ANSWER``, written as soon as it is known.
"""

import functools
import inspect
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_fl.dispatch.kept_calls import unpacked
from sglang_fl.dispatch.op_check import Given, violations
from sglang_fl.dispatch.trial import device_of, wait_for
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Kernel, Op, lacking
from sglang_fl.settings import prepare_environment
from sglang_fl.startup import configure
from sglang_fl.vendor import load_target

__all__ = ["ANSWER", "NoGraphError", "judge", "time_calls"]

ANSWER = "SGLANG_FL_TUNE "
#: Times of each implementation at each call, and the fewest where one call takes long.
ROUNDS, FEWEST = 15, 5
#: Seconds that one time should take, and that all times of one call may take.
SAMPLE, PATIENCE = 0.002, 8.0
#: Calls in a graph.
CAPTURED = 50
#: Bytes of inputs that are taken in turn on a GPU, so that they leave its cache before they come round again.
FOOTPRINT, MOST_SETS = 160e6, 8


class NoGraphError(Exception):
    """A call cannot be captured."""


def judge(op_name: str, targets: Mapping[str, str], files: Sequence[str]) -> None:
    """Hold each implementation against float64 at each call, with the bounds of ``sglang-fl replay``."""
    prepare_environment(configure().registry.vendor)
    op = OPS[op_name]
    for impl, target in targets.items():
        state, text = _judged(op, target, files)
        _answer({"impl": impl, "state": state, "text": text})


def time_calls(op_name: str, targets: Mapping[str, str], files: Sequence[str], graphs: bool) -> None:
    """Time implementations in turn, in a random order, at each call.

    Raises
    ------
    NoGraphError : graphs are asked for, and a call cannot be captured; what follows in this process cannot
        be trusted
    """
    prepare_environment(configure().registry.vendor)
    op, draw = OPS[op_name], random.Random(7)
    kernels = {impl: load_target(target) for impl, target in targets.items()}
    for number, file in enumerate(files):
        how, times = _timed(op, kernels, file, graphs, draw)
        _answer({"call": number, "how": how, "times": times})


def _answer(said: Mapping[str, Any]) -> None:
    print(f"{ANSWER}{json.dumps(said)}", flush=True)  # noqa: T201 - to its parent


def _arguments(file: str) -> dict[str, Any]:
    kept = torch.load(Path(file), weights_only=True)
    return unpacked(kept["arguments"], kept["device"])


def _given(op: Op, kernel: Kernel, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the kernel takes.

    Raises
    ------
    UnsupportedError : it lacks an option that the call sets
    """
    usual = {name: parameter.default for name, parameter in op.signature.parameters.items()}
    needed = [name for name in op.options if name in arguments and arguments[name] is not usual[name]]
    missing = lacking(kernel, needed)
    if missing:
        raise UnsupportedError(f"it does not take {', '.join(missing)}")
    taken = inspect.signature(kernel).parameters
    return {name: value for name, value in arguments.items() if name in taken}


def _judged(op: Op, target: str, files: Iterable[str]) -> tuple[str, str]:
    try:
        kernel = load_target(target)
        op.check_signature(kernel)
        for file in files:
            arguments = _arguments(file)
            before = Given(op, arguments)
            results = kernel(**_given(op, kernel, arguments))
            wait_for(device_of(arguments))
            found = violations(op, "a recorded call", before, results, arguments)
            if found:
                return "wrong", str(found[0])
    except UnsupportedError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return "raised", f"{type(error).__name__}: {error}"
    return "right", ""


@dataclass(frozen=True)
class _Side:
    """One implementation at one call.

    Parameters
    ----------
    run : makes ``count`` calls
    restore : brings back what the calls have written
    count : of calls in ``run``
    """

    run: Callable[[], Any]
    restore: Callable[[], None]
    count: int


def _timed(
    op: Op, kernels: Mapping[str, Kernel], file: str, graphs: bool, draw: random.Random
) -> tuple[str, dict[str, list[float]]]:
    arguments = _arguments(file)
    device = device_of(arguments)
    sides = {impl: _side(op, kernel, file, graphs, device) for impl, kernel in kernels.items()}
    how = "graph" if graphs else "events" if device.type == "cuda" else "clock"
    measure = _by_clock if how == "clock" else _by_events
    once = sum(measure(side, device) for side in sides.values())  # and warm
    rounds = max(FEWEST, min(ROUNDS, int(PATIENCE / max(once, 1e-9))))
    times: dict[str, list[float]] = {impl: [] for impl in sides}
    for _ in range(rounds):
        for impl in draw.sample(list(sides), len(sides)):
            side = sides[impl]
            side.restore()
            times[impl].append(1e6 * measure(side, device) / side.count)
    return how, times


def _side(op: Op, kernel: Kernel, file: str, graphs: bool, device: torch.device) -> _Side:
    sets = [_arguments(file)]
    size = sum(v.numel() * v.element_size() for v in sets[0].values() if isinstance(v, Tensor))
    if device.type == "cuda":
        wanted = min(MOST_SETS, max(1, int(FOOTPRINT / max(size, 1))))
        sets += [_arguments(file) for _ in range(wanted - 1)]
    calls = [functools.partial(kernel, **_given(op, kernel, arguments)) for arguments in sets]
    written = [(v, v.clone()) for arguments in sets for v in _written(op, arguments)]

    def restore() -> None:
        for tensor, copy in written:
            tensor.copy_(copy)

    for call in calls:
        call()
    wait_for(device)
    restore()
    if graphs:
        return _Side(_captured(calls).replay, restore, CAPTURED)
    count = _count(calls, device)
    return _Side(lambda: [calls[turn % len(calls)]() for turn in range(count)], restore, count)


def _written(op: Op, arguments: Mapping[str, Any]) -> list[Tensor]:
    values = (arguments[name] for name in op.may_write(arguments))
    return [value for value in values if isinstance(value, Tensor)]


def _count(calls: Sequence[Callable[[], Any]], device: torch.device) -> int:
    start = time.perf_counter()
    for _ in range(3):
        calls[0]()
    wait_for(device)
    return max(1, min(100, int(3 * SAMPLE / (time.perf_counter() - start))))


def _captured(calls: Sequence[Callable[[], Any]]) -> Any:
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for turn in range(CAPTURED):
                calls[turn % len(calls)]()
        graph.replay()
        torch.cuda.synchronize()
    except Exception as error:
        raise NoGraphError(f"{type(error).__name__}: {error}") from error
    return graph


def _by_events(side: _Side, device: torch.device) -> float:
    event: Any = torch.cuda.Event
    start, end = (event(enable_timing=True) for _ in range(2))
    start.record()
    side.run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _by_clock(side: _Side, device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    side.run()
    wait_for(device)
    return time.perf_counter() - start
