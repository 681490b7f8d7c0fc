"""Times of CUDA work: side by side, in turn, by events."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

__all__ = ["captured", "graph_times", "host_time"]


def graph_times(calls: dict[str, Sequence[Callable]], count: int, rounds: int = 9) -> dict[str, float]:
    """Return the time of a call on the device in µs, by name: medians over rounds in which all run in turn.

    Each side is captured into a CUDA graph of ``count`` calls, as a server with CUDA graphs runs them, so
    that host time does not enter.

    Parameters
    ----------
    calls : for each name callables that do the same on other inputs, taken in turn
    count : of calls in a graph
    """
    graphs = {name: captured(callables, count) for name, callables in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            times[name].append(_replay(graph) / count)
    return {name: statistics.median(measured) for name, measured in times.items()}


def captured(callables: Sequence[Callable], count: int) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of ``count`` calls, of each callable in turn, that has been replayed once."""
    for call in callables:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(count):
            callables[turn % len(callables)]()
    _replay(graph)
    return graph


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3


def host_time(call: Callable, count: int = 400, rounds: int = 7) -> float:
    """Return the host time of a call in µs: the median over rounds of ``count`` calls without a graph."""
    times = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - start) / count * 1e6)
    torch.cuda.synchronize()
    return statistics.median(times[1:])
