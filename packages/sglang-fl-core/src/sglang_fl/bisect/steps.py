"""The steps of a bisection: what each asked, with what on, and what it has shown."""

import enum
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from sglang_fl.bisect.readings import Distance

__all__ = ["Asks", "Step", "StepUnderWay", "Steps"]


class Asks(enum.Enum):
    """What a step is for."""

    START = "start"
    #: Whether the same batch gives the same numbers twice.
    TWICE = "twice"
    #: Whether SGLang's attention is right by itself.
    ATTENTION = "attention"
    #: Whether the plugin alone changes the numbers.
    OFF = "off"
    #: How far rounding alone moves the numbers.
    REFERENCES = "references"
    #: Whether a mistake that is planted on purpose is seen.
    PLANTED = "planted"
    #: Whether all units that are not found guilty yet change the numbers.
    EVERYTHING = "everything"
    #: Whether some of them do.
    SOME = "some"
    #: Whether one unit does in some layers of the model.
    LAYERS = "layers"
    #: Whether a call of these units is wrong by itself.
    CALLS = "calls"


@dataclass(frozen=True)
class Step:
    """One step, most of them a pass of the model beside the baseline.

    Parameters
    ----------
    asks : what it is for
    what : the same for people
    on : the units that were on: ``rms_norm``, ``aten::mul.Tensor``
    layers : the layers of the model in which they were; empty for all
    distance : of a log-probability from the baseline, in nats, the largest; None where that is not asked
    flips : positions whose likeliest token differs from the baseline's
    agrees : whether the numbers count as the baseline's, or no call is wrong; None where that is not asked
    text : what it has shown; empty where it did not end
    seconds : that it took
    """

    asks: Asks
    what: str
    on: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    distance: float | None = None
    flips: int = 0
    agrees: bool | None = None
    text: str = ""
    seconds: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether it came to an end, and nothing ended the engine meanwhile."""
        return bool(self.text)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "asks": self.asks.value}


class StepUnderWay:
    """A step that is under way.

    Parameters
    ----------
    step : what is known of it
    """

    def __init__(self, step: Step) -> None:
        self.step = step

    def found(self, distance: Distance, agrees: bool | None) -> None:
        """Say how far the numbers were from the baseline's, and whether they count as the same."""
        flips = len(distance.flips)
        self.step = replace(self.step, distance=distance.largest, flips=flips)
        self.told(str(distance), agrees)

    def told(self, text: str, agrees: bool | None = None) -> None:
        """Say what a step has shown that takes no distance, or more than that."""
        self.step = replace(self.step, text=text, agrees=agrees)


class Steps:
    """The steps so far; a step that did not end is the last one.

    Parameters
    ----------
    say : called with a line for each step that has ended
    begin : called with what a step is for before it is made
    """

    def __init__(self, say: Callable[[str], None], begin: Callable[[str], None]) -> None:
        self.say, self._begin = say, begin
        self._steps: list[Step] = []

    def __iter__(self) -> Iterator[Step]:
        return iter(self._steps)

    @contextmanager
    def step(
        self, asks: Asks, what: str, on: Sequence[str] = (), layers: Sequence[str] = ()
    ) -> Iterator[StepUnderWay]:
        """Carry out a step in this context; what it has shown is said to what this gives."""
        self._begin(what)
        begun = time.perf_counter()
        under_way = StepUnderWay(Step(asks, what, tuple(on), tuple(layers)))
        try:
            yield under_way
        finally:
            step = replace(under_way.step, seconds=round(time.perf_counter() - begun, 3))
            self._steps.append(step)
        self.say(f"{step.what}: {step.text}")
