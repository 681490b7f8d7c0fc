"""From a trace to steps: what ran when in each, and how long the device, or the CPU, waited in between.

With a device, a step is what was launched in its range, from its first kernel to its last. Without one it is
the range itself, and what counts are the ops: time in no op is the host's own.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sglang_fl.profiling.labels import STEP
from sglang_fl.profiling.trace import Node, Trace, Work

__all__ = ["Slice", "Step", "Steps", "Stretch", "steps_of"]


@dataclass(frozen=True)
class Slice:
    """A stretch of time in which one thing ran.

    Parameters
    ----------
    start, end : in microseconds
    node : the op, or the place of the launch
    name, kind : of the device's work; without a name it is an op on a CPU
    """

    start: float
    end: float
    node: Node | None
    name: str = ""
    kind: str = "kernel"


@dataclass(frozen=True)
class Stretch:
    """A stretch of a step in which the same things ran at a time; they share it evenly."""

    start: float
    end: float
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Step:
    """One batch.

    Parameters
    ----------
    phase : ``decode``, ``prefill`` or another mode of SGLang's
    requests, tokens : of the batch
    start, end : in microseconds
    stretches : in which something ran, one after another
    """

    phase: str
    requests: int
    tokens: int
    start: float
    end: float
    stretches: tuple[Stretch, ...]

    @property
    def busy(self) -> float:
        """Microseconds in which something ran."""
        return sum(stretch.end - stretch.start for stretch in self.stretches)

    @property
    def idle(self) -> float:
        """Microseconds in which nothing ran."""
        return max(0.0, self.end - self.start - self.busy)


@dataclass(frozen=True)
class Steps:
    """All steps of a trace.

    Parameters
    ----------
    steps : in the order of time
    is_device : whether a device was watched
    outside : microseconds of a device's work that was launched in no step
    """

    steps: tuple[Step, ...]
    is_device: bool
    outside: float = 0.0


def steps_of(trace: Trace) -> Steps:
    """Cut a trace into steps; nothing is read or written."""
    if trace.works:
        return _on_device(trace.works)
    found: dict[int, tuple[Node, list[Slice]]] = {}
    for thread in trace.threads:
        for node in thread:
            if node.label is not None and node.label.kind == STEP:
                found[id(node)] = node, []
        for slice_ in _op_times(thread):
            assert slice_.node is not None
            step = slice_.node.within(STEP)
            if step is not None:
                found[id(step)][1].append(slice_)
    steps = (_step(node, slices, (node.start, node.end)) for node, slices in found.values())
    return Steps(_in_order(steps), is_device=False)


def _in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(sorted(steps, key=lambda step: step.start))


def _on_device(works: Iterable[Work]) -> Steps:
    """Give each work to the step in which it was launched; one without a launch to the step that it is in."""
    slices: dict[int, list[Slice]] = defaultdict(list)
    nodes: dict[int, Node] = {}
    stray: list[Slice] = []
    for work in works:
        slice_ = Slice(work.start, work.end, work.node, work.name, work.kind)
        step = work.node.within(STEP) if work.node else None
        if step is None:
            stray.append(slice_)
        else:
            nodes[id(step)] = step
            slices[id(step)].append(slice_)
    bounds = {
        key: (min(each.start for each in found), max(each.end for each in found))
        for key, found in slices.items()
    }
    outside = 0.0
    for slice_ in stray:
        inside = (key for key, (start, end) in bounds.items() if start <= slice_.start and slice_.end <= end)
        key = next(inside, None) if slice_.node is None else None
        if key is None:
            outside += slice_.end - slice_.start
        else:
            slices[key].append(slice_)
    steps = (_step(nodes[key], found, bounds[key]) for key, found in slices.items())
    return Steps(_in_order(steps), is_device=True, outside=outside)


def _step(node: Node, slices: list[Slice], bounds: tuple[float, float]) -> Step:
    assert node.label is not None
    phase, requests, tokens = node.label.words
    return Step(phase, int(requests), int(tokens), *bounds, tuple(_stretches(slices)))


def _op_times(nodes: Iterable[Node]) -> Iterator[Slice]:
    """Yield the time of each op without that of the ops and ranges in it, and the time of ranges in ops."""
    open_: list[Node] = []
    clock = 0.0
    for node in nodes:
        while open_ and open_[-1].end <= node.start:
            last = open_.pop()
            yield from _busy(clock, last.end, last)
            clock = max(clock, last.end)
        if open_:
            yield from _busy(clock, node.start, open_[-1])
        clock = max(clock, node.start) if open_ else node.start
        open_.append(node)
    while open_:
        last = open_.pop()
        yield from _busy(clock, last.end, last)
        clock = max(clock, last.end)


def _busy(start: float, end: float, node: Node) -> Iterator[Slice]:
    if end > start and any(outer.is_op for outer in node.outwards()):
        yield Slice(start, end, node)


def _stretches(slices: Iterable[Slice]) -> Iterator[Stretch]:
    """Cut time wherever something begins or ends, so that what overlaps is counted once."""
    slices = list(slices)
    edges = [(each.start, 1, number) for number, each in enumerate(slices) if each.end > each.start]
    edges += [(slices[number].end, 0, number) for _, _, number in edges]
    running: dict[int, Slice] = {}
    clock = 0.0
    for at, begins, number in sorted(edges):
        if running and at > clock:
            yield Stretch(clock, at, tuple(running.values()))
        clock = at
        if begins:
            running[number] = slices[number]
        else:
            del running[number]
