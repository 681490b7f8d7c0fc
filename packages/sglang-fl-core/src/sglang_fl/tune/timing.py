"""Times of the same call by several functions, taken in turn, in a random order."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sglang_fl.dispatch.trial import wait_for

__all__ = ["NoGraphError", "Side", "in_turn", "sets_for", "side_of"]

#: Times of each side, and the fewest where one call takes long.
ROUNDS, FEWEST = 15, 5
#: Seconds that one time should take, and that all times of one call may take.
SAMPLE, PATIENCE = 0.002, 8.0
#: Calls in a graph.
CAPTURED = 50
#: Bytes of inputs that are taken in turn on a GPU, so that they leave its cache before they come round again.
FOOTPRINT, MOST_SETS = 160e6, 8


class NoGraphError(Exception):
    """A call cannot be captured; what follows in this process cannot be trusted."""


@dataclass(frozen=True)
class Side:
    """One function at one call.

    Parameters
    ----------
    run : makes ``count`` calls
    prepare : called before each time that is taken: brings back what calls have written
    count : of calls in ``run``
    """

    run: Callable[[], Any]
    prepare: Callable[[], None]
    count: int


def sets_for(size: int, device: torch.device) -> int:
    """Return how many copies of the inputs of a call are taken in turn; they have so many bytes."""
    if device.type != "cuda":
        return 1
    return min(MOST_SETS, max(1, int(FOOTPRINT / max(size, 1))))


def side_of(
    calls: Sequence[Callable[[], Any]],
    written: Sequence[Tensor],
    device: torch.device,
    graphs: bool,
    before: Callable[[], None] = lambda: None,
) -> Side:
    """Return a side, called once already.

    Parameters
    ----------
    calls : the same call with copies of its inputs, made in turn
    written : what they write
    device : on which they run
    graphs : whether they are captured in a graph
    before : called before each time that is taken, too, and before the capture

    Raises
    ------
    NoGraphError : they cannot be captured
    """
    copies = [(tensor, tensor.clone()) for tensor in written]

    def prepare() -> None:
        before()
        for tensor, copy in copies:
            tensor.copy_(copy)

    before()
    for call in calls:
        call()
    wait_for(device)
    prepare()
    if graphs:
        return Side(_captured(calls).replay, prepare, CAPTURED)
    count = _count(calls, device)
    return Side(lambda: [calls[turn % len(calls)]() for turn in range(count)], prepare, count)


def in_turn(
    sides: Mapping[str, Side], device: torch.device, graphs: bool, draw: random.Random
) -> tuple[str, dict[str, list[float]]]:
    """Return how times were taken, and those of each side in microseconds a call.

    Parameters
    ----------
    sides : by name
    device : on which they run
    graphs : whether they are captured
    draw : draws their order
    """
    how = "graph" if graphs else "events" if device.type == "cuda" else "clock"
    measure = _by_clock if how == "clock" else _by_events

    def seconds(side: Side) -> float:
        side.prepare()
        return measure(side, device)

    once = sum(map(seconds, sides.values()))  # and warm
    rounds = max(FEWEST, min(ROUNDS, int(PATIENCE / max(once, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in draw.sample(list(sides), len(sides)):
            times[name].append(1e6 * seconds(sides[name]) / sides[name].count)
    return how, times


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


def _by_events(side: Side, device: torch.device) -> float:
    event: Any = torch.cuda.Event
    start, end = (event(enable_timing=True) for _ in range(2))
    start.record()
    side.run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _by_clock(side: Side, device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    side.run()
    wait_for(device)
    return time.perf_counter() - start
