"""From measurements to choices, each with its reason. Nothing here runs anything.

1. An implementation that is not exact at every call of the model is never chosen.
2. Of the exact ones the fastest kernel is proposed, if it is faster than what runs at present by more than
   its error; core's reference only where no kernel is. Where SGLang's own path runs at present, which is no
   kernel and has no time of its own, the fastest kernel is proposed for the engine to decide.
3. The engine decides: what is proposed must be faster in one workload by more than its error, and slower in
   none. Otherwise all stays as it is.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sglang_fl.settings.policy import SGLANG
from sglang_fl.tune.figures import Ratio, of_starts, of_times, together

__all__ = [
    "ATEN",
    "REFERENCE",
    "RIGHT",
    "WRONG",
    "Compared",
    "Judged",
    "Measured",
    "OpVerdict",
    "Starts",
    "Timed",
    "compare_engines",
    "decide_op",
    "gain_of",
]

#: The state of an implementation whose results are within the bounds at every call.
RIGHT = "right"
#: Core's own, in plain PyTorch: SGLang's path is never worse than that.
REFERENCE = "reference"
#: How the names of ATen ops begin.
ATEN = "aten::"


@dataclass(frozen=True)
class Judged:
    """Whether an implementation is exact.

    Parameters
    ----------
    state : ``right``, ``wrong``, ``raised``, ``refused``, ``hangs``, ``ends its process``, ``not measured``
    text : what was found
    """

    state: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.text}" if self.text else self.state


@dataclass(frozen=True)
class Timed:
    """Times of one recorded call.

    Parameters
    ----------
    shapes : of its tensors, for people
    how : ``graph``, ``events`` or ``clock``
    times : microseconds by implementation, measured in turn
    """

    shapes: str
    how: str
    times: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Measured:
    """What was measured of one op.

    Parameters
    ----------
    op : its name
    present : what runs it now
    judged : by implementation
    timed : the calls
    trouble : why something is missing; empty where nothing is
    calls : at how many they were judged
    """

    op: str
    present: str
    judged: Mapping[str, Judged]
    timed: Sequence[Timed] = ()
    trouble: str = ""
    calls: int = 0


@dataclass(frozen=True)
class OpVerdict:
    """What follows for one op from its calls alone.

    Parameters
    ----------
    op, present : as in ``Measured``
    best : the implementation that is proposed, or None: nothing is
    gain : how many times as fast as the present one it is; None where that is SGLang's own path
    reason : why, in half a sentence
    others : of every other implementation, why it is not proposed
    kernel_gain : of an ATen op, how many times as fast as PyTorch's own the vendor's kernel is; None where it
        was not timed
    """

    op: str
    present: str
    best: str | None
    gain: Ratio | None
    reason: str
    others: Mapping[str, str] = field(default_factory=dict)
    kernel_gain: Ratio | None = None

    @property
    def is_aten(self) -> bool:
        """Whether it is an ATen op (layer 1)."""
        return self.op.startswith(ATEN)

    @property
    def is_present_wrong(self) -> bool:
        """Whether what runs at present is known not to be exact."""
        return self.present in self.others and self.others[self.present].startswith(WRONG)


#: How what is said of an implementation begins that is known not to be exact.
WRONG = ("wrong", "raised", "hangs", "ends its process")


def decide_op(found: Measured) -> OpVerdict:
    """Decide by an op's calls alone what the engine is to try."""
    exact = [impl for impl, judged in found.judged.items() if judged.state == RIGHT]
    others = {impl: str(judged) for impl, judged in found.judged.items() if impl not in exact}
    timed = [impl for impl in exact if found.timed and all(impl in call.times for call in found.timed)]
    others |= {impl: "exact, and not timed" for impl in exact if impl not in timed and found.timed}
    if not timed:
        return OpVerdict(found.op, found.present, None, None, _why_no_times(found, exact), others)
    if found.present == SGLANG:
        return _beside_sglang(found, timed, others)
    if found.present not in timed:
        reason = f"{found.present}, which runs at present, is not exact: {others.get(found.present, '')}"
        return OpVerdict(found.op, found.present, None, None, reason, others)
    return _beside_present(found, timed, others)


def _why_no_times(found: Measured, exact: Sequence[str]) -> str:
    if found.trouble or not exact:
        return found.trouble or "no implementation is exact"
    is_alone = {*exact} <= {found.present, REFERENCE}
    return "there is no other exact kernel" if is_alone else "no time was measured"


def _beside_sglang(found: Measured, timed: Sequence[str], others: dict[str, str]) -> OpVerdict:
    kernels = [impl for impl in timed if impl != REFERENCE]
    if not kernels:
        reason = "no kernel but the reference is exact"
        return OpVerdict(found.op, found.present, None, None, reason, others)
    best = min(kernels, key=lambda impl: _mean_time(found, impl))
    for impl in timed:
        if impl != best:
            others[impl] = f"{gain_of(found, best, impl)} times the speed of {best}"
    reason = f"the fastest exact kernel of {len(kernels)}"
    return OpVerdict(found.op, found.present, best, None, reason, others)


def _beside_present(found: Measured, timed: Sequence[str], others: dict[str, str]) -> OpVerdict:
    gains = {impl: gain_of(found, found.present, impl) for impl in timed if impl != found.present}
    best = _first_of_the_best(gains)
    for impl, gain in gains.items():
        if impl != best:
            others[impl] = f"{gain} times the speed of {found.present}"
    if best is None:
        reason = f"no other exact kernel is faster than {found.present} by more than its error"
        return OpVerdict(found.op, found.present, None, None, reason, others)
    reason = f"{gains[best]} times the speed of {found.present}"
    return OpVerdict(found.op, found.present, best, gains[best], reason, others)


def _first_of_the_best(gains: Mapping[str, Ratio]) -> str | None:
    """Return the first in the vendor's order that is faster and not told apart from the fastest, or None.

    The reference is there to be exact: it is proposed only where no kernel is faster.
    """
    kernels = {impl: gain for impl, gain in gains.items() if impl != REFERENCE and gain.is_faster}
    good = kernels or {impl: gain for impl, gain in gains.items() if gain.is_faster}
    most = max((gain.value for gain in good.values()), default=0.0)
    return next((impl for impl, gain in good.items() if gain.value + gain.error >= most), None)


def gain_of(found: Measured, own: str, other: str) -> Ratio:
    """Return how many times as fast one implementation is as another, over all calls."""
    return together([of_times(call.times[own], call.times[other]) for call in found.timed])


def _mean_time(found: Measured, impl: str) -> float:
    return statistics.geometric_mean(statistics.median(call.times[impl]) for call in found.timed)


#: For each start the throughputs of each workload's repetitions.
Starts = Sequence[Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Compared:
    """An engine beside the one that it is compared with.

    Parameters
    ----------
    ratios : of tokens a second, by workload
    """

    ratios: Mapping[str, Ratio]

    @property
    def is_confirmed(self) -> bool:
        """Whether it is faster in one workload by more than the error, and slower in none."""
        found = self.ratios.values()
        return any(ratio.is_faster for ratio in found) and not any(ratio.may_be_slower for ratio in found)

    @property
    def mean(self) -> float:
        """The mean ratio of all workloads."""
        return together(list(self.ratios.values())).value

    def __str__(self) -> str:
        return ", ".join(f"{workload} {ratio}" for workload, ratio in self.ratios.items())


def compare_engines(own: Starts, other: Starts, control: tuple[Starts, Starts] | None = None) -> Compared:
    """Compare two engines by workload.

    Parameters
    ----------
    own, other : their starts; those at one place were made one after the other, and what one has more is left
        out
    control : two engines of the present choice
    """
    count = min(len(own), len(other))
    own, other = own[:count], other[:count]
    return Compared(
        {
            workload: _controlled(
                of_starts([start[workload] for start in own], [start[workload] for start in other]),
                control and of_starts(*([start[workload] for start in side] for side in control)),
            )
            for workload in own[0]
        }
    )


def _controlled(found: Ratio, control: Ratio | None) -> Ratio:
    """Return a ratio with an error of at least what the control is away from 1, as a part of it."""
    if control is None:
        return found
    return Ratio(found.value, max(found.error, found.value * abs(control.value - 1)))
