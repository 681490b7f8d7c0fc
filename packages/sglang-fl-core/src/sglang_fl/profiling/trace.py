"""A trace of PyTorch's profiler, as it writes it for Chrome, brought to what counts here.

On the host: ranges and ops, which nest on each thread. On the device: kernels, copies and fills, each with
the place on the host from which it was launched. Other events say nothing about time.
"""

import bisect
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_fl.profiling.labels import ATTENTION, LAYER, OURS, Label

__all__ = ["Node", "Trace", "Work", "read_trace", "trace_of"]

#: Categories of PyTorch's events. Runtimes are called after their chip: ``cuda_runtime``, ``xpu_runtime``.
_HOST = ("cpu_op", "user_annotation")
_DEVICE = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "fill"}
_LAUNCHERS = ("_runtime", "_driver")


@dataclass(eq=False)
class Node:
    """A range or an op on the host.

    Parameters
    ----------
    name : of the event
    start, end : in microseconds
    label : what it says, where it is a range of ours
    is_op : whether it is an op; a range of somebody else's is neither
    number : by which what the device did may name it, if it has one
    parent : what encloses it on its thread
    ran : the op of ours that computes the layer whose call this is, if any
    """

    name: str
    start: float
    end: float
    label: Label | None = None
    is_op: bool = False
    number: Any = None
    parent: "Node | None" = field(default=None, repr=False)
    ran: str | None = None

    def outwards(self) -> "Iterator[Node]":
        """Yield this one and all that enclose it."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def within(self, kind: str) -> "Node | None":
        """Return the nearest range of a kind that this is in, or is."""
        return next((node for node in self.outwards() if node.label and node.label.kind == kind), None)


@dataclass(frozen=True)
class Work:
    """What a device did.

    Parameters
    ----------
    name : of the kernel
    kind : ``kernel``, ``copy`` or ``fill``
    start, end : in microseconds
    node : where on the host it was launched; None where the trace does not tell
    """

    name: str
    kind: str
    start: float
    end: float
    node: Node | None


@dataclass(frozen=True)
class Trace:
    """What one process did.

    Parameters
    ----------
    threads : of each thread of the host its ranges and ops, in the order in which they began
    works : of the device; none where the trace is of a CPU, or the profiler does not know the device
    """

    threads: tuple[tuple[Node, ...], ...]
    works: tuple[Work, ...]


def read_trace(path: Path) -> Trace:
    """Read a file of ``export_chrome_trace``.

    Raises
    ------
    OSError, ValueError : it cannot be read, or is no such file
    """
    with path.open("rb") as file:
        read = json.load(file)
    events = read.get("traceEvents") if isinstance(read, dict) else None
    if not isinstance(events, list):
        raise ValueError(f"{path.name} has no traceEvents")
    return trace_of(events)


def trace_of(events: Iterable[dict[str, Any]]) -> Trace:
    """Bring the events of a trace to what counts here; nothing is read or written."""
    whole = [event for event in events if event.get("ph") == "X"]
    threads = {key: _nested(nodes) for key, nodes in _by_thread(whole).items()}
    launches = _launches(whole, threads)
    ops = {node.number: node for nodes in threads.values() for node in nodes if node.number is not None}
    works = tuple(_work(event, launches, ops) for event in whole if event.get("cat") in _DEVICE)
    return Trace(tuple(threads.values()), works)


_Thread = tuple[Any, Any]


def _by_thread(events: Iterable[dict[str, Any]]) -> dict[_Thread, list[Node]]:
    found: dict[_Thread, list[Node]] = defaultdict(list)
    for event in events:
        if event.get("cat") in _HOST:
            start, label = float(event["ts"]), Label.read(event["name"])
            is_op = label is None and event["cat"] == "cpu_op"
            end, number = start + float(event.get("dur", 0)), _given(event, "External id")
            node = Node(event["name"], start, end, label, is_op, number)
            found[_thread(event)].append(node)
    return found


def _thread(event: dict[str, Any]) -> _Thread:
    return event.get("pid"), event.get("tid")


def _nested(nodes: list[Node]) -> tuple[Node, ...]:
    """Tell each node what encloses it, and calls of layers which op of ours computes them."""
    nodes.sort(key=lambda node: (node.start, -node.end))
    innermost: Node | None = None
    for node in nodes:
        while innermost is not None and innermost.end <= node.start:
            innermost = innermost.parent
        node.parent = innermost
        if innermost is not None:
            node.end = min(node.end, innermost.end)  # clocks are read a little apart
        _tell_range_around(node)
        innermost = node
    return tuple(nodes)


def _tell_range_around(node: Node) -> None:
    """Tell the range around a kernel of ours, if the kernel is what computes that layer."""
    outer = next((each for each in node.outwards() if each is not node and each.label), None)
    if node.label is None or node.label.kind != OURS or outer is None or outer.label is None:
        return
    op, _, layer_class = node.label.words
    if outer.label.kind == ATTENTION or (LAYER, layer_class) == (outer.label.kind, outer.label.words[0]):
        outer.ran = op


def _launches(events: Iterable[dict[str, Any]], threads: dict[_Thread, tuple[Node, ...]]) -> dict[Any, Node]:
    """Return for each correlation where on the host it is from."""
    starts = {thread: [node.start for node in nodes] for thread, nodes in threads.items()}
    found: dict[Any, Node] = {}
    for event in events:
        number = _given(event, "correlation")
        thread = _thread(event)
        if number is None or thread not in threads or not str(event.get("cat")).endswith(_LAUNCHERS):
            continue
        node = _enclosing(threads[thread], starts[thread], float(event["ts"]))
        if node is not None:
            found[number] = node
    return found


def _given(event: dict[str, Any], name: str) -> Any:
    return event.get("args", {}).get(name) or None  # 0: none


def _enclosing(nodes: tuple[Node, ...], starts: list[float], at: float) -> Node | None:
    index = bisect.bisect_right(starts, at) - 1
    if index < 0:
        return None
    return next((node for node in nodes[index].outwards() if node.end >= at), None)


def _work(event: dict[str, Any], launches: dict[Any, Node], ops: dict[Any, Node]) -> Work:
    """Return what a device did, with the place of its launch; without that the op that it names."""
    start = float(event["ts"])
    end = start + float(event.get("dur", 0))
    node = launches.get(_given(event, "correlation")) or ops.get(_given(event, "External id"))
    return Work(event["name"], _DEVICE[event["cat"]], start, end, node)
