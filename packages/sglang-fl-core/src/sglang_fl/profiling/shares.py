"""From steps to shares: of each phase, how long each piece ran, and what is left to be ported."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sglang_fl.profiling.labels import DECODE, PREFILL
from sglang_fl.profiling.pieces import Piece, Who, op_of, piece_of
from sglang_fl.profiling.steps import Slice, Step, Steps

__all__ = ["AtenShare", "Candidate", "Phase", "Share", "aten_shares", "left", "percents", "phases_of"]

#: Of a phase's time: smaller pieces are not named as what to port next.
WORTH_NAMING = 0.01


@dataclass(frozen=True)
class Share:
    """What one piece took.

    Parameters
    ----------
    piece : who ran what
    us : microseconds in a step, the mean
    share : of all that ran in a step
    percent : the same in per cent with one decimal; those of a phase add up to 100
    ops : microseconds in a step of each op in it, or of each kernel without an op, the largest first
    """

    piece: Piece
    us: float
    share: float
    percent: float
    ops: Mapping[str, float]

    @property
    def largest_op(self) -> str:
        """The op that took most of it."""
        return next(iter(self.ops), "")


@dataclass(frozen=True)
class Phase:
    """What a step of one phase spends its time on; the shares add up to one.

    Parameters
    ----------
    name : ``decode``, ``prefill``
    steps : that were counted, of all ranks
    requests, tokens : in a step, the mean
    step_us : from the beginning of a step to its end
    busy_us : in which something ran
    idle_us : in which nothing did
    between_us : from the end of a step to the beginning of the next of this phase, where one follows
    shares : the largest first
    middle : the step of median length, for a picture
    """

    name: str
    steps: int
    requests: float
    tokens: float
    step_us: float
    busy_us: float
    idle_us: float
    between_us: float
    shares: tuple[Share, ...]
    middle: Step = field(repr=False, compare=False)

    def percent_of(self, *who: Who) -> float:
        """Return what these ran, of all that ran, in per cent."""
        return sum(share.percent for share in self.shares if share.piece.who in who)

    @property
    def ours(self) -> float:
        """What implementations of layers 1 and 2 ran, of all that ran."""
        return sum(share.share for share in self.shares if share.piece.who.is_ours)


@dataclass(frozen=True)
class AtenShare:
    """What one ATen op took, inside and outside of layers, but not inside kernels of layer 2.

    Parameters
    ----------
    op : as PyTorch calls it: ``aten::mm``
    who : ran it: PyTorch (``sglang``), or an implementation of layer 1
    share : of all that ran in a step of the phase
    """

    op: str
    who: Who
    share: float


@dataclass(frozen=True)
class Candidate:
    """A piece that runs on no kernel of ours, as what to port next.

    Parameters
    ----------
    what : the layer class, the shortcut, or what runs outside of layers
    share, percent : of all that ran in a step of the phase
    largest_op : the op that takes most of it
    our_op : the op of ours for it, or empty
    """

    what: str
    share: float
    percent: float
    largest_op: str
    our_op: str


def phases_of(ranks: Sequence[Steps]) -> tuple[Phase, ...]:
    """Return what steps spend their time on, over all ranks; decode first.

    Of decode steps those with the most requests count: others are the first and the last of a batch.
    """
    found: dict[str, list[list[Step]]] = {}
    for rank in ranks:
        for name in {step.phase for step in rank.steps}:
            found.setdefault(name, []).append([step for step in rank.steps if step.phase == name])
    names = sorted(found, key=lambda name: (name != DECODE, name != PREFILL, name))
    return tuple(_phase(name, _full(found[name]) if name == DECODE else found[name]) for name in names)


def _full(ranks: list[list[Step]]) -> list[list[Step]]:
    most = max(step.requests for rank in ranks for step in rank)
    return [[step for step in rank if step.requests == most] for rank in ranks]


def _phase(name: str, ranks: list[list[Step]]) -> Phase:
    steps = [step for rank in ranks for step in rank]
    number = len(steps)
    times, ops = _added(steps)
    busy = sum(times.values())
    gaps = [_gap(one, next_) for rank in ranks for one, next_ in itertools.pairwise(rank)]
    ordered = times.most_common()
    shown = percents([us / busy for _, us in ordered])
    shares = tuple(
        Share(piece, us / number, us / busy, percent, _means(ops[piece], number))
        for (piece, us), percent in zip(ordered, shown, strict=True)
    )
    by_length = sorted(steps, key=lambda step: step.end - step.start)
    return Phase(
        name,
        number,
        requests=sum(step.requests for step in steps) / number,
        tokens=sum(step.tokens for step in steps) / number,
        step_us=sum(step.end - step.start for step in steps) / number,
        busy_us=busy / number,
        idle_us=sum(step.idle for step in steps) / number,
        between_us=sum(gaps) / len(gaps) if gaps else 0.0,
        shares=shares,
        middle=by_length[number // 2],
    )


def _means(times: Counter[str], number: int) -> dict[str, float]:
    return {op: us / number for op, us in times.most_common()}


def percents(parts: Sequence[float]) -> list[float]:
    """Return shares in per cent with one decimal, so rounded that they add up to what their sum rounds to."""
    tenths = [int(part * 1000) for part in parts]
    missing = round(sum(parts) * 1000) - sum(tenths)
    by_rest = sorted(range(len(parts)), key=lambda index: tenths[index] - parts[index] * 1000)
    for index in by_rest[:missing]:
        tenths[index] += 1
    return [each / 10 for each in tenths]


def _gap(step: Step, next_: Step) -> float:
    return max(0.0, next_.start - step.end)


def _added(steps: Iterable[Step]) -> tuple[Counter[Piece], dict[Piece, Counter[str]]]:
    """Add up the time of each piece, and of each op in it; what runs at once shares the time evenly."""
    times: Counter[Piece] = Counter()
    ops: dict[Piece, Counter[str]] = defaultdict(Counter)
    for step in steps:
        for stretch in step.stretches:
            part = (stretch.end - stretch.start) / len(stretch.slices)
            for slice_ in stretch.slices:
                piece = piece_of(slice_.node, slice_.name, slice_.kind)
                times[piece] += part  # type: ignore[assignment]
                ops[piece][_op_name(slice_)] += part  # type: ignore[assignment]
    return times, ops


def _op_name(slice_: Slice) -> str:
    """Return the op of a slice; without one the kernel, without its namespaces and template arguments."""
    op = op_of(slice_.node) if slice_.node else None
    if op or not slice_.name:
        return op or "Python"
    plain = slice_.name.removeprefix("void ").partition("<")[0].partition("(")[0]
    return plain.rpartition("::")[2].strip() or slice_.name


def aten_shares(phase: Phase) -> list[AtenShare]:
    """Return what ATen ops took, the largest first: those of layer 1, and PyTorch's own."""
    found: Counter[tuple[str, Who]] = Counter()
    for share in phase.shares:
        if share.piece.who.is_ours:
            if share.piece.what.startswith("aten::"):
                found[share.piece.what, share.piece.who] += share.share  # type: ignore[assignment]
            continue
        for op, us in share.ops.items():
            if op.startswith("aten::"):
                found[op, Who.SGLANG] += us / phase.busy_us  # type: ignore[assignment]
    return [AtenShare(op, who, part) for (op, who), part in found.most_common()]


def left(phase: Phase, our_ops: Mapping[str, str]) -> list[Candidate]:
    """Return the pieces of SGLang's own that are worth naming, the largest first.

    Parameters
    ----------
    phase : of which
    our_ops : the op of ours for a layer class
    """
    return [
        Candidate(
            share.piece.what,
            share.share,
            share.percent,
            share.largest_op,
            _our_op(share.piece, phase, our_ops),
        )
        for share in phase.shares
        if share.piece.who is Who.SGLANG and share.share >= WORTH_NAMING
    ]


def _our_op(piece: Piece, phase: Phase, our_ops: Mapping[str, str]) -> str:
    name = piece.what.partition(" ")[0]
    if name == "RadixAttention":
        return "decode_attention" if phase.name == DECODE else "extend_attention"
    return our_ops.get(name, "")
